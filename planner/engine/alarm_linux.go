package engine

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// timerAlarm reads a timerfd through the runtime's poller. The runtime's own timers fire up to 1 ms late, because the
// poller rounds its timeout up to milliseconds (runtime/netpoll_epoll.go), and 1 ms is a fifth of a short step; a
// timerfd wakes the poller within about 0.1 ms, and needs neither spinning nor a thread.
type timerAlarm struct {
	fd   int
	file *os.File
}

func newAlarm() (alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot create a timer: %w", err)
	}
	return &timerAlarm{fd: fd, file: os.NewFile(uintptr(fd), "timerfd")}, nil
}

func (a *timerAlarm) wait(t time.Time) error {
	d := time.Until(t)
	if d <= 0 {
		return nil
	}
	if err := unix.TimerfdSettime(a.fd, 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}, nil); err != nil {
		return fmt.Errorf("cannot set a timer: %w", err)
	}
	var expirations [8]byte
	if _, err := a.file.Read(expirations[:]); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("cannot wait for a timer: %w", err)
	}
	return nil
}

func (a *timerAlarm) ring() error { return a.file.SetReadDeadline(time.Unix(1, 0)) }

func (a *timerAlarm) close() error { return a.file.Close() }
