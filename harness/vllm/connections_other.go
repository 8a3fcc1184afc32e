//go:build !unix

package vllm

// MaxConnections is how many connections this process may have open at once, 0 for no known limit.
func MaxConnections() int { return 0 }

// ReserveConnections makes room for n connections in this process's table of open files, where that helps.
func ReserveConnections(int) {}
