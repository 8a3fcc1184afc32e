//go:build unix

package vllm

import (
	"os/exec"
	"syscall"
)

// ownGroup keeps the terminal's signals away from a process.
func ownGroup(p *exec.Cmd) { p.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }
