package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"kvtune/harness/archive"
)

// memoryGroup is a cgroup (version 1 or 2) of so much memory; "" where none can be made.
func memoryGroup(t *testing.T, mib int) (dir string) {
	t.Helper()
	for _, c := range [][2]string{{"memory", "memory.limit_in_bytes"}, {"", "memory.max"}} {
		dir := filepath.Join("/sys/fs/cgroup", c[0], fmt.Sprintf("kvtune-test-%d-%d", os.Getpid(), mib))
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		t.Cleanup(func() { _ = os.Remove(dir) })
		if os.WriteFile(filepath.Join(dir, c[1]), strconv.AppendInt(nil, int64(mib)<<20, 10), 0) == nil {
			return dir
		}
	}
	return ""
}

// withMemory runs the program in a cgroup, and with GOMEMLIMIT at three quarters of it. killed is that the kernel ended
// it.
func withMemory(t *testing.T, mib int, args ...string) (killed bool, status int, stderr string) {
	t.Helper()
	group := memoryGroup(t, mib)
	if group == "" {
		t.Skip("skipped: no cgroup with a memory limit can be made here")
	}
	cmd := exec.Command("sh", append([]string{"-c", `echo $$ >"$0/cgroup.procs" && exec kvtune "$@"`, group}, args...)...)
	cmd.Env = append(os.Environ(), "PATH="+program(t)+string(os.PathListSeparator)+os.Getenv("PATH"),
		fmt.Sprintf("GOMEMLIMIT=%dMiB", mib*3/4))
	var out bytes.Buffer
	cmd.Stderr = &out
	_ = cmd.Run()
	status = cmd.ProcessState.ExitCode()
	return status < 0, status, out.String()
}

// TestMemoryLimit: 10,000 requests sent, simulated and reported in a cgroup of 64 MiB each; in smaller ones they finish
// or are killed, and what was measured until then is there, whole, and not marked as done.
func TestMemoryLimit(t *testing.T) {
	if !underFire || raceDetector {
		t.Skip("skipped: a part of make test-fire")
	}
	const n = 10_000
	dir := t.TempDir()
	count := []string{"--num-requests", strconv.Itoa(n), "--quiet", "--output-dir"}
	simulate := append([]string{"simulate", "--gpu", "H200", "--C", "100", "--output-len", "20", "--rate", "100"},
		count...)
	load := append([]string{"profile", "--model", "gpt2", "--gpu", "H200", "--C", "16", "--M", "0", "--output-len", "4",
		"--concurrency", "128"}, count...)
	survived := 0
	for _, job := range []struct {
		name string
		args []string
	}{{"simulation", simulate}, {"profiling", load}} {
		for _, mib := range []int{64, 24, 16, 12} {
			out := filepath.Join(dir, job.name+strconv.Itoa(mib))
			killed, status, stderr := withMemory(t, mib, append(job.args, out)...)
			left, done := leftOf(t, out, job.name)
			t.Logf("%s in %d MiB: killed %v, status %d, %d requests there, done %v", job.name, mib, killed, status, left, done)
			switch { // those of the warm-up are there, too
			case strings.Contains(stderr, "goroutine "), done && left < n, !done && !killed:
				t.Errorf("%s in %d MiB: %s", job.name, mib, stderr)
			case killed && mib == 64:
				t.Errorf("%s was killed in %d MiB", job.name, mib)
			case killed && left > 0:
				survived++
			}
		}
	}
	t.Logf("%d were killed and left requests", survived)
	for _, name := range []string{"simulation64", "profiling64"} {
		if killed, status, stderr := withMemory(t, 96, "report", "--quiet", filepath.Join(dir, name)); status != exitDone {
			t.Errorf("report of %s in 96 MiB: killed %v, status %d: %s", name, killed, status, stderr)
		}
	}
}

// leftOf is how many requests of a part are in a folder, and whether it says that the part is done.
func leftOf(t *testing.T, dir, name string) (requests int, done bool) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(dir, archive.ManifestName)); err != nil {
		return 0, false // ended before its first file
	}
	f := onlyFolder(t, dir)
	part, ok := f.Part(name)
	records, _, err := f.ReadRequests(name)
	if err != nil && !os.IsNotExist(err) {
		t.Errorf("%s: what is left of the requests: %v", dir, err)
	}
	if tmp, _ := filepath.Glob(filepath.Join(dir, ".*tmp*")); len(tmp) > 1 {
		t.Errorf("%s: left over: %v", dir, tmp)
	}
	return len(records), ok && part.State == archive.Done
}
