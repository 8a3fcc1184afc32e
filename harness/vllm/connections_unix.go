//go:build unix

package vllm

import "syscall"

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
