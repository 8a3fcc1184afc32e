//go:build unix

package vllm

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// reserved are the files that a process wants beside its connections: archives, a server's pipes, timers, libraries.
const reserved = 64

// MaxConnections is how many connections this process may have open at once by its limit of open files, 0 for no known
// limit.
func MaxConnections() int {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil || limit.Cur > 1<<30 {
		return 0
	}
	return max(1, int(limit.Cur)-reserved)
}

// ReserveConnections makes room for n connections, or as many as may be open, in this process's table of open files.
// Else Linux doubles the table as connections are opened, and each time waits for a grace period of all processors
// (fs/file.c, expand_fdtable): on one processor nothing is sent or read meanwhile.
func ReserveConnections(n int) {
	if limit := MaxConnections(); limit > 0 {
		n = min(n, limit)
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		return // it is slower without, no more
	}
	defer f.Close()
	if high, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, n+reserved-1); err == nil {
		_ = unix.Close(high)
	}
}
