package vllm

import (
	"runtime"
	"syscall"
)

// groupAttr gives the child its own process group, and a SIGTERM when the thread that starts it ends: vLLM's API
// server then takes its engine with it, which SIGKILL would leave behind.
func groupAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}

// lockThread keeps the calling goroutine's thread alive until unlock.
func lockThread() (unlock func()) {
	runtime.LockOSThread()
	return runtime.UnlockOSThread
}
