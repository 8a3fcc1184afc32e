package load

import (
	"container/heap"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// pacer wakes goroutines at their moments, within about 0.1 ms. The runtime's own timers fire up to 1 ms late when the
// process is idle, because its poller rounds up to milliseconds (runtime/netpoll_epoll.go), and that would be charged
// to the server. A timerfd wakes the poller in time; and unlike a sleeping thread it keeps no processor from the
// goroutines that read streams. One is enough for all: it is set to the earliest moment that somebody waits for.
type pacer struct {
	fd   int
	file *os.File
	done chan struct{} // closed when nobody will be woken any more

	mu      sync.Mutex
	waiting moments
}

func newPacer() (*pacer, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot create a timer: %w", err)
	}
	p := &pacer{fd: fd, file: os.NewFile(uintptr(fd), "timerfd"), done: make(chan struct{})}
	go p.run()
	return p, nil
}

// run ends when the file is closed.
func (p *pacer) run() {
	defer close(p.done)
	var expirations [8]byte
	for {
		if _, err := p.file.Read(expirations[:]); err != nil {
			return
		}
		p.mu.Lock()
		for now := time.Now(); len(p.waiting) > 0 && !p.waiting[0].at.After(now); {
			close(heap.Pop(&p.waiting).(moment).wake)
		}
		p.set()
		p.mu.Unlock()
	}
}

// set sets the timer to the earliest moment.
func (p *pacer) set() {
	if len(p.waiting) == 0 {
		return
	}
	d := max(1, time.Until(p.waiting[0].at))                                                      // 0 would disarm it
	_ = unix.TimerfdSettime(p.fd, 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}, nil) // the fd is a timer's
}

// wait returns at t, at once when it has passed.
func (p *pacer) wait(t time.Time) {
	if time.Until(t) <= 0 {
		return
	}
	m := moment{t, make(chan struct{})}
	p.mu.Lock()
	heap.Push(&p.waiting, m)
	if p.waiting[0] == m {
		p.set()
	}
	p.mu.Unlock()
	select {
	case <-m.wake:
	case <-p.done:
		time.Sleep(time.Until(t))
	}
}

func (p *pacer) close() { p.file.Close() }

// moment is when somebody wants to be woken.
type moment struct {
	at   time.Time
	wake chan struct{}
}

// moments is a heap, the earliest first.
type moments []moment

func (q moments) Len() int           { return len(q) }
func (q moments) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q moments) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *moments) Push(m any)        { *q = append(*q, m.(moment)) }

func (q *moments) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}
