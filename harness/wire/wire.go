// Package wire has connections that know when bytes left and arrived.
//
// A program with a thousand streams on one processor handles an event late when many come at once, and net/http reads
// it only then. Connections of a [Group] are read as soon as something is there, whoever runs, and handled later; on
// Linux the kernel's stamp says when it came. So a burst of the program's own does not end up in the latencies that it
// measures.
package wire

import (
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Conn is a connection with stamps. It has no deadlines for reading ([os.ErrNoDeadline]).
type Conn struct {
	net.Conn
	start time.Time
	wrote atomic.Int64 // nanoseconds from start
	last  atomic.Int64 // when what was read last had come, likewise

	from   *inbox // nil where no group reads for it
	socket socket
}

// inbox is what was read for a connection and is not handled yet.
type inbox struct {
	mu     sync.Mutex
	bytes  []byte // from taken on
	taken  int
	pieces []piece // what came at once, oldest first
	err    error   // after them
	full   bool    // more may be there, but nobody reads it before something is taken
	ready  chan struct{}
}

type piece struct {
	end int           // in bytes
	at  time.Duration // from the connection's start
}

// mostWaiting is what an inbox takes before it waits for its reader, who is slow then.
const mostWaiting = 256 << 10

// Read reads what came next into b, never of two arrivals at once.
func (c *Conn) Read(b []byte) (int, error) {
	if c.from == nil {
		n, err := c.Conn.Read(b)
		c.last.Store(int64(time.Since(c.start)))
		return n, err
	}
	return c.receive(b)
}

// take hands out the oldest piece, or the error after the last; false where nothing is there. in.mu is held.
func (in *inbox) take(b []byte) (n int, at time.Duration, err error, ok bool) {
	if len(in.pieces) == 0 {
		return 0, 0, in.err, in.err != nil
	}
	first := in.pieces[0]
	n = copy(b, in.bytes[in.taken:first.end])
	in.taken += n
	if in.taken == first.end {
		in.pieces = in.pieces[:copy(in.pieces, in.pieces[1:])]
	}
	if len(in.pieces) == 0 {
		in.bytes, in.taken = in.bytes[:0], 0
	}
	return n, first.at, nil, true
}

// put adds what came, or the error that came instead. in.mu is held.
func (in *inbox) put(b []byte, at time.Duration, err error) {
	if len(b) > 0 {
		in.bytes = append(in.bytes, b...)
		in.pieces = append(in.pieces, piece{len(in.bytes), at})
	}
	if err != nil && in.err == nil {
		in.err = err
	}
	select {
	case in.ready <- struct{}{}:
	default: // its reader knows
	}
}

// SetReadDeadline is not supported: it returns [os.ErrNoDeadline].
func (*Conn) SetReadDeadline(time.Time) error { return os.ErrNoDeadline }

// SetDeadline is not supported for the sake of reading: it returns [os.ErrNoDeadline].
func (*Conn) SetDeadline(time.Time) error { return os.ErrNoDeadline }

// Write writes b and notes when that began, if it is the first since Begin.
func (c *Conn) Write(b []byte) (int, error) {
	c.wrote.CompareAndSwap(0, int64(time.Since(c.start)))
	return c.Conn.Write(b)
}

// Begin says that the next write is the first of something.
func (c *Conn) Begin() { c.wrote.Store(0) }

// Wrote is when the first write since Begin began; false as long as there was none.
func (c *Conn) Wrote() (at time.Time, ok bool) {
	d := c.wrote.Load()
	return c.start.Add(time.Duration(d)), d != 0
}

// Received is when what was read last had come.
func (c *Conn) Received() time.Time { return c.start.Add(time.Duration(c.last.Load())) }
