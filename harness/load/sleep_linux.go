package load

import (
	"syscall"
	"time"
)

// sleepUntil waits for a moment to within about 0.1 ms. The runtime's timers fire up to 1 ms late when the process is
// idle, because its poller rounds up to milliseconds (runtime/netpoll_epoll.go), and that would be charged to the server.
func sleepUntil(t time.Time) {
	const stretch = 1200 * time.Microsecond
	d := time.Until(t)
	if d > stretch {
		time.Sleep(d - stretch)
		d = time.Until(t)
	}
	if d <= 0 {
		return
	}
	left := syscall.NsecToTimespec(int64(d))
	for syscall.Nanosleep(&left, &left) == syscall.EINTR {
	}
	time.Sleep(time.Until(t)) // not over yet where the clock is not the kernel's (testing/synctest)
}
