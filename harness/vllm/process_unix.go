//go:build unix

package vllm

import "syscall"

// killGroup kills what is left of the process group that pid leads; none left is fine.
func killGroup(pid int) { _ = syscall.Kill(-pid, syscall.SIGKILL) }
