//go:build !unix

package vllm

// MaxConnections is how many connections this process may have open at once, 0 for no known limit.
func MaxConnections() int { return 0 }
