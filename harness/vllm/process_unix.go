//go:build unix

package vllm

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

// groupAttr gives a child its own process group, so that it can be ended with everything that it starts and a
// terminal's ^C does not reach it.
func groupAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// killGroup kills what is left of the process group that pid leads; none left is fine.
func killGroup(pid int) { _ = syscall.Kill(-pid, syscall.SIGKILL) }

// guardScript is what the guard runs: $1 is the process group, $2 the grace time in seconds, the rest the command that
// stops the server. A line on its input dismisses it; the input's end says that nobody is left to do so.
const guardScript = `read -r dismissed && exit
group=$1 left=$2
shift 2
if [ $# -gt 0 ]; then "$@"; else kill -s TERM -- "-$group"; fi
while [ "$left" -gt 0 ] && kill -s 0 -- "-$group"; do sleep 1; left=$((left - 1)); done
kill -s KILL -- "-$group"`

// guard starts a shell that outlives this process and, when this process ends in whatever way (a panic, SIGKILL, a
// second ^C), stops the process group that it left behind. The caller dismisses it when the group is gone.
//
// A parent-death signal would not do: it reaches one process, not the children of a wrapper, and no stop command.
func guard(pgid int, stop []string, grace time.Duration) (dismiss func(), err error) {
	end, alive, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer end.Close()
	seconds := strconv.Itoa(int((grace + time.Second - 1) / time.Second))
	cmd := exec.Command("/bin/sh", append([]string{"-c", guardScript, "kvtune-guard", strconv.Itoa(pgid), seconds},
		stop...)...)
	cmd.Stdin = end
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no terminal: its ^C and hang-up are not for the guard
	if err := cmd.Start(); err != nil {
		alive.Close()
		return nil, fmt.Errorf("the guard that would stop the server if kvtune crashed: %w", err)
	}
	return func() {
		_, _ = io.WriteString(alive, "\n") // one that is gone needs no word
		alive.Close()
		_ = cmd.Wait()
	}, nil
}
