//go:build linux && (amd64 || arm64)

package wire

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// stale is how old the last look at a group may be when one of its connections is read.
const stale = 500 * time.Microsecond

// Group is connections that are read together, into their inboxes: when something comes and nobody is busy, and by
// everyone who wants to read, since with all processors busy Go's own poller looks every 10 ms only (runtime, sysmon).
// The zero Group is ready. As long as it has connections it has a goroutine.
type Group struct {
	mu    sync.Mutex
	conns map[int32]*Conn // by file descriptor
	epoll *os.File        // nil without connections
	fd    int             // of epoll

	looking sync.Mutex   // of what follows
	looked  atomic.Int64 // when, by the wall clock in nanoseconds: only how old a look is counts
	events  [256]unix.EpollEvent
	buf     []byte
	msg     unix.Msghdr
	iov     unix.Iovec
	words   [64]byte
}

// socket is how a group reads a connection.
type socket struct {
	group  *Group
	fd     int32
	raw    syscall.RawConn
	fill   func(fd uintptr)
	ended  bool          // the peer sends no more; the group's looking is held
	drift  time.Duration // of the wall clock against the monotonic one, since the connection's start
	filled time.Duration // when the last bytes came, after the connection's start
}

// Stamp adds stamps to conn, and to the group if it is TCP.
func (g *Group) Stamp(conn net.Conn) *Conn {
	c := &Conn{Conn: conn, start: time.Now()}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return c
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return c
	}
	c.socket = socket{group: g, raw: raw}
	c.socket.fill = func(fd uintptr) { c.fill(fd) }
	c.from = &inbox{ready: make(chan struct{}, 1)}
	const software = unix.SOF_TIMESTAMPING_RX_SOFTWARE | unix.SOF_TIMESTAMPING_SOFTWARE
	refused := raw.Control(func(fd uintptr) {
		// Without stamps the moment of reading counts.
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPING, software)
		err = g.add(int32(fd), c)
	})
	if err != nil || refused != nil {
		c.from = nil
	}
	return c
}

// add begins to watch a connection.
func (g *Group) add(fd int32, c *Conn) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.epoll == nil {
		epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
		if err == nil {
			err = unix.SetNonblock(epoll, true) // an epoll can be watched by another: Go's
		}
		if err != nil {
			return err
		}
		g.fd, g.epoll, g.conns = epoll, os.NewFile(uintptr(epoll), "epoll"), map[int32]*Conn{}
		go g.watch(g.epoll)
	}
	c.socket.fd = fd
	g.conns[fd] = c
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff, Fd: fd}
	if err := unix.EpollCtl(g.fd, unix.EPOLL_CTL_ADD, int(fd), &event); err != nil {
		delete(g.conns, fd)
		return err
	}
	return nil
}

// remove ends watching a connection that is still open.
func (g *Group) remove(c *Conn) {
	if epoll := g.forget(c); epoll != nil {
		epoll.Close() // which ends watch, and waits for who looks at it: without g.mu, which they want
	}
}

// forget returns what nobody needs to watch any more: nil as long as there are connections.
func (g *Group) forget(c *Conn) (epoll *os.File) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.conns[c.socket.fd] != c {
		return nil
	}
	delete(g.conns, c.socket.fd)
	_ = unix.EpollCtl(g.fd, unix.EPOLL_CTL_DEL, int(c.socket.fd), nil)
	if len(g.conns) == 0 {
		epoll, g.epoll = g.epoll, nil
	}
	return epoll
}

// watch looks whenever something comes, until epoll is closed.
func (g *Group) watch(epoll *os.File) {
	raw, err := epoll.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool {
		g.looking.Lock()
		defer g.looking.Unlock()
		g.lookAt(int(fd))
		return false
	})
}

// lookAgain looks if the last look is stale and nobody else does.
func (g *Group) lookAgain() {
	if time.Now().UnixNano()-g.looked.Load() < int64(stale) || !g.looking.TryLock() {
		return
	}
	defer g.looking.Unlock()
	g.mu.Lock()
	epoll := g.epoll
	g.mu.Unlock()
	if epoll == nil {
		return
	}
	if raw, err := epoll.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { g.lookAt(int(fd)) })
	}
}

// lookAt reads what has come to any connection. g.looking is held.
func (g *Group) lookAt(epoll int) {
	if g.buf == nil {
		g.buf = make([]byte, 64<<10)
	}
	for {
		n, err := unix.EpollWait(epoll, g.events[:], 0)
		g.looked.Store(time.Now().UnixNano())
		for _, e := range g.events[:max(0, n)] {
			g.mu.Lock()
			c := g.conns[e.Fd]
			g.mu.Unlock()
			if c != nil {
				c.socket.ended = c.socket.ended || e.Events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0
				_ = c.socket.raw.Control(c.socket.fill) // closed meanwhile: nobody reads any more
			}
		}
		if err != unix.EINTR && n < len(g.events) {
			return
		}
	}
}

// fill reads what has come into c's inbox. The group's looking is held.
func (c *Conn) fill(fd uintptr) {
	g, in := c.socket.group, c.from
	in.mu.Lock()
	defer in.mu.Unlock()
	for in.err == nil {
		if in.full = len(in.bytes) >= mostWaiting; in.full {
			return
		}
		n, stamp, err := g.receive(fd)
		if err == unix.EAGAIN {
			return
		}
		now := time.Now()
		at := now.Sub(c.start)
		// The kernel's clock is the wall clock: its stamp is turned into an age at once, and not believed where that clock
		// was set since the last time.
		before := c.socket.drift
		c.socket.drift = time.Duration(now.UnixNano()-c.start.UnixNano()) - at
		if stamp > 0 && (c.socket.drift-before).Abs() < time.Millisecond {
			// The two clocks are not read at the same instant: what comes later is not said to have come earlier.
			at = max(c.socket.filled, at-max(0, time.Duration(now.UnixNano()-stamp)))
		}
		c.socket.filled = at
		switch {
		case err != nil:
			err = &net.OpError{Op: "read", Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(),
				Err: os.NewSyscallError("read", err)}
		case n == 0:
			err = io.EOF
		}
		in.put(g.buf[:n], at, err)
		if n < len(g.buf) && !c.socket.ended {
			return // there is no more, or an event will tell (epoll(7), edge-triggered streams)
		}
	}
}

// receive takes what is there into g.buf, and the kernel's stamp of its last packet in nanoseconds of the wall clock; 0
// without one. The error is of the type syscall.Errno. g.looking is held.
func (g *Group) receive(fd uintptr) (n int, stamp int64, err error) {
	g.iov.Base = &g.buf[0]
	g.iov.SetLen(len(g.buf))
	g.msg.Iov, g.msg.Iovlen = &g.iov, 1
	g.msg.Control = &g.words[0]
	g.msg.SetControllen(len(g.words))
	for {
		got, _, errno := unix.Syscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&g.msg)), unix.MSG_DONTWAIT)
		switch errno {
		case 0:
			heard(fd)
			return int(got), stampIn(g.words[:g.msg.Controllen]), nil
		case unix.EINTR:
		default:
			return 0, 0, errno
		}
	}
}

// stampIn finds the software stamp among the words beside a message (Linux, Documentation/networking/timestamping.rst,
// section 2.1: three times, the first is software's); 0 without one.
func stampIn(words []byte) (ns int64) {
	for len(words) > 0 {
		head, data, rest, err := unix.ParseOneSocketControlMessage(words)
		if err != nil {
			return 0
		}
		if head.Level == unix.SOL_SOCKET && head.Type == unix.SCM_TIMESTAMPING && len(data) >= 16 {
			return int64(binary.NativeEndian.Uint64(data))*1e9 + int64(binary.NativeEndian.Uint64(data[8:]))
		}
		words = rest
	}
	return 0
}

// receive waits for what comes next and takes it.
func (c *Conn) receive(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	g, in := c.socket.group, c.from
	for {
		g.lookAgain()
		in.mu.Lock()
		n, at, err, ok := in.take(b)
		more := in.full && len(in.pieces) == 0
		in.mu.Unlock()
		if more { // it was left in the socket, and no event will tell
			g.looking.Lock()
			_ = c.socket.raw.Control(c.socket.fill)
			g.looking.Unlock()
		}
		if ok {
			if err == nil {
				c.last.Store(int64(at))
			}
			return n, err
		}
		<-in.ready
	}
}

// Close closes the connection; who reads it gets [net.ErrClosed].
func (c *Conn) Close() error {
	if c.from != nil {
		c.socket.group.remove(c) // before its descriptor can be another's
		c.from.mu.Lock()
		c.from.put(nil, 0, &net.OpError{Op: "read", Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(),
			Err: net.ErrClosed})
		c.from.mu.Unlock()
	}
	return c.Conn.Close()
}
