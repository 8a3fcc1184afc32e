//go:build unix && !linux

package vllm

import "syscall"

// groupAttr gives the child its own process group. Only Linux can tie its life to this process's.
func groupAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

func lockThread() (unlock func()) { return func() {} }
