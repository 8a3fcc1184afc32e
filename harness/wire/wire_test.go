package wire

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair is two ends of a TCP connection; the first has stamps.
func pair(t *testing.T, g *Group) (*Conn, *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	there, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	here, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c := g.Stamp(here)
	t.Cleanup(func() {
		c.Close()
		there.Close()
	})
	return c, there.(*net.TCPConn)
}

// Every byte arrives once and in order, over many connections at once, with readers that fall behind by more than an
// inbox holds and reads that are smaller or larger than writes; then comes the end.
func TestEveryByteArrives(t *testing.T) {
	const conns, total = 12, 3 << 19
	var g Group
	var wg sync.WaitGroup
	for i := range conns {
		c, there := pair(t, &g)
		random := rand.New(rand.NewPCG(1, uint64(i)))
		sent := make([]byte, total)
		for k := range sent {
			sent[k] = byte(random.Uint32())
		}
		wg.Go(func() {
			defer there.Close()
			random := rand.New(rand.NewPCG(2, uint64(i)))
			for rest := sent; len(rest) > 0; {
				n := min(len(rest), 1+random.IntN(1<<random.IntN(18)))
				if _, err := there.Write(rest[:n]); err != nil {
					t.Error(err)
					return
				}
				rest = rest[n:]
			}
		})
		wg.Go(func() {
			random := rand.New(rand.NewPCG(3, uint64(i)))
			var got []byte
			last := time.Time{}
			for {
				if random.IntN(50) == 0 {
					time.Sleep(time.Duration(random.IntN(20)) * time.Millisecond)
				}
				b := make([]byte, 1+random.IntN(1<<random.IntN(17)))
				n, err := c.Read(b)
				got = append(got, b[:n]...)
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Errorf("connection %d, after %d bytes: %v", i, len(got), err)
					break
				}
				if at := c.Received(); at.Before(last) || at.After(time.Now()) {
					t.Errorf("connection %d: bytes received %v after those before them, %v ago", i, at.Sub(last), time.Since(at))
				} else {
					last = at
				}
			}
			if !bytes.Equal(got, sent) {
				t.Errorf("connection %d: %d bytes of %d arrived, or others", i, len(got), len(sent))
			}
		})
	}
	wg.Wait()
}

// What came while the reader was busy has the time at which it came, and one Read never mixes two arrivals.
func TestLateReaderHasTheTimeOfArrival(t *testing.T) {
	var g Group
	c, there := pair(t, &g)
	if c.from == nil {
		t.Skip("nobody reads for a connection here")
	}
	var before [3]time.Time
	for i := range before {
		before[i] = time.Now()
		if _, err := there.Write([]byte{byte(i), byte(i)}); err != nil {
			t.Fatal(err)
		}
		for { // until the group has read it
			c.from.mu.Lock()
			n := len(c.from.pieces)
			c.from.mu.Unlock()
			if n == i+1 {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	before2 := append(before[1:], time.Now())
	b := make([]byte, 64)
	for i := range before {
		n, err := c.Read(b)
		if err != nil || n != 2 || b[0] != byte(i) {
			t.Fatalf("read %d: %v, %v", i, b[:n], err)
		}
		if at := c.Received(); at.Before(before[i].Add(-time.Microsecond)) || at.After(before2[i]) {
			t.Errorf("write %d is said to have come at %v, it was written between 0 and %v", i, at.Sub(before[i]),
				before2[i].Sub(before[i]))
		}
	}
}

func TestEnds(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func(t *testing.T, c *Conn, there *net.TCPConn)
		want func(error) bool
	}{
		{"the peer closes", func(t *testing.T, _ *Conn, there *net.TCPConn) { there.Close() },
			func(err error) bool { return err == io.EOF }},
		{"the peer resets", func(t *testing.T, _ *Conn, there *net.TCPConn) {
			_ = there.SetLinger(0)
			there.Close()
		}, func(err error) bool {
			var op *net.OpError
			return errors.As(err, &op) && op.Op == "read" && err != io.EOF
		}},
		{"closed here", func(t *testing.T, c *Conn, _ *net.TCPConn) { c.Close() },
			func(err error) bool { return errors.Is(err, net.ErrClosed) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			var g Group
			c, there := pair(t, &g)
			if _, err := there.Write([]byte("what came before")); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 64)
			if n, err := c.Read(b); err != nil || string(b[:n]) != "what came before" {
				t.Fatalf("%q, %v", b[:n], err)
			}
			ended := make(chan error)
			go func() {
				_, err := c.Read(b)
				ended <- err
			}()
			test.end(t, c, there)
			if err := <-ended; !test.want(err) {
				t.Errorf("the read ended with %v", err)
			}
			if _, err := c.Read(b); !test.want(err) {
				t.Errorf("the next read ends with %v", err)
			}
		})
	}
}

// A group lives as long as its connections, and again.
func TestGroupBeginsAgain(t *testing.T) {
	var g Group
	for range 3 {
		c, there := pair(t, &g)
		if _, err := there.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 2)); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		c.Close()
		if err := c.Close(); err == nil {
			t.Error("closing twice is no error")
		}
	}
	goleak.VerifyNone(t)
}

// Connections come and go while others are read, down to none and up again.
func TestCloseUnderTraffic(t *testing.T) {
	var g Group
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // echoes
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	for round := range 400 {
		var wg sync.WaitGroup
		for range 6 {
			wg.Go(func() {
				conn, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				c := g.Stamp(conn)
				said := bytes.Repeat([]byte{byte(round)}, 1+97*round)
				heard := make([]byte, len(said))
				wg.Go(func() { _, _ = c.Write(append(said, said...)) })
				if _, err := io.ReadFull(c, heard); err != nil || !bytes.Equal(said, heard) {
					t.Errorf("%d bytes said, heard others: %v", len(said), err)
				}
				wg.Go(func() { // the second half, or a part of it
					for n, err := 1, error(nil); err == nil; n, err = c.Read(heard) {
						time.Sleep(time.Duration(n) * time.Nanosecond)
					}
				})
				time.Sleep(time.Millisecond) // so that looks are stale
				c.Close()
			})
		}
		wg.Wait()
	}
}

func TestWrote(t *testing.T) {
	var g Group
	c, _ := pair(t, &g)
	if _, ok := c.Wrote(); ok {
		t.Error("nothing was written, and something was")
	}
	var at [3]time.Time
	for i := range at {
		if i != 1 {
			c.Begin()
		}
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		at[i], _ = c.Wrote()
	}
	if !at[1].Equal(at[0]) || !at[2].After(at[1]) {
		t.Errorf("first writes at %v", at)
	}
	if err := c.SetReadDeadline(time.Now()); !errors.Is(err, os.ErrNoDeadline) {
		t.Errorf("a deadline for reading: %v", err)
	}
}
