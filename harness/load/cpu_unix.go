//go:build unix

package load

import (
	"syscall"
	"time"
)

// cpuTime is the processor time that this process has used; ok is false where the system does not say.
func cpuTime() (used time.Duration, ok bool) {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0, false
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), true
}
