//go:build linux && (amd64 || arm64)

package wire

import (
	"testing"
	"time"
)

// The kernel's stamp counts where even the group looks late.
func TestKernelStamps(t *testing.T) {
	var g Group
	c, there := pair(t, &g)
	if c.from == nil {
		t.Skip("nobody reads for a connection here")
	}
	for try := 1; ; try++ { // the kernel begins some time after it was asked
		g.looking.Lock()
		if _, err := there.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
		looked := time.Now()
		g.looking.Unlock()
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		at := c.Received()
		if at.Before(looked) {
			return
		}
		if try == 100 {
			t.Fatalf("read %v after it had come, and said to come then", at.Sub(looked))
		}
	}
}

// The last connection closes while someone looks, who wants to know the connections, and the group's goroutine waits.
func TestCloseWhileLooking(t *testing.T) {
	var g Group
	c, there := pair(t, &g)
	if c.from == nil {
		t.Skip("nobody reads for a connection here")
	}
	g.looking.Lock()
	if _, err := there.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond) // for the group's goroutine, which waits now
	closed := make(chan error)
	go func() { closed <- c.Close() }()
	time.Sleep(20 * time.Millisecond)
	free := false
	for range 100 {
		if free = g.mu.TryLock(); free {
			g.mu.Unlock()
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	g.looking.Unlock()
	if !free {
		t.Fatal("who looks waits for who closes, and the other way round")
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}
