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
