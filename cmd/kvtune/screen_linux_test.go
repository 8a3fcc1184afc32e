package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kvtune/harness/load"
	"kvtune/harness/profile"
	"kvtune/harness/vllm"
)

// terminal opens a terminal of some width: what is written to tty can be read from master.
func terminal(t *testing.T, columns uint16) (master, tty *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no terminals here: ", err)
	}
	t.Cleanup(func() { master.Close() })
	raw, err := master.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var number int
	var failed error
	err = raw.Control(func(fd uintptr) {
		if failed = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); failed != nil {
			return
		}
		if number, failed = unix.IoctlGetInt(int(fd), unix.TIOCGPTN); failed != nil {
			return
		}
		failed = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns})
	})
	if err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	if tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	return master, tty
}

// On a terminal of 80 columns all that is known of a run is on the screen, and nothing of it is left at the end.
func TestTerminalScreen(t *testing.T) {
	t.Setenv("TERM", "xterm")
	master, tty := terminal(t, 80)
	shown := make(chan string)
	go func() {
		defer close(shown)
		buf := make([]byte, 1<<12)
		for {
			n, err := master.Read(buf)
			if n > 0 {
				shown <- string(buf[:n])
			}
			if err != nil {
				return
			}
		}
	}()
	s := newScreen(tty)
	if s.bars == nil {
		t.Fatal("a terminal is not taken for one")
	}
	s.stage("profiling")
	p := profile.Progress{Progress: load.Progress{Total: 400, Sent: 152, Ended: 120}, Rate: 12.5}
	p.TTFT = profile.Spread{P50: 120 * time.Millisecond, P99: 340 * time.Millisecond}
	p.ITL = profile.Spread{P50: 8 * time.Millisecond, P99: 12500 * time.Microsecond}
	p.Lag.P99 = 100 * time.Microsecond
	p.Server = &vllm.Now{Running: 29, Waiting: 3, KVUsage: 0.45, OutputRate: 1800}
	var seen strings.Builder
	for _, want := range []string{"profiling", "120/400", "12.5/s", "32 in flight", "TTFT 120/340 ms", "ITL 8/12.5 ms",
		"lag 0.1 ms", "1800 token/s", "KV 45 %", "3 waiting"} {
		for !strings.Contains(seen.String(), want) {
			s.progress(p)
			select {
			case text := <-shown:
				seen.WriteString(text)
			case <-time.After(20 * time.Second):
				t.Fatalf("no %q in %q", want, seen.String())
			}
		}
	}
	s.close()
	tty.Close()
	for text := range shown {
		seen.WriteString(text)
	}
	// What mpb wrote last clears the lines: nothing visible follows the last clearing.
	all := seen.String()
	if rest := all[strings.LastIndex(all, "\x1b[J")+len("\x1b[J"):]; strings.ContainsAny(rest, "0123456789") {
		t.Errorf("left on the terminal: %q", rest)
	}
}
