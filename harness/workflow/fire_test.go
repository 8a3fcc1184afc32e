package workflow_test

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"kvtune/harness/archive"
	"kvtune/harness/workflow"
)

// underFire lets the tests of damage go their whole way (make test-fire).
var underFire = os.Getenv("KVTUNE_FIRE") != ""

// playLaunching is a kvtune that works in the folder named, on servers that it launches; it goes on with what it finds.
const playLaunching = "KVTUNE_TEST_LAUNCHING"

// launchingWorkflow is what that process does.
func launchingWorkflow(dir string) error {
	opt, err := optionsIn(dir)
	if err != nil {
		return err
	}
	if err := os.Setenv(playServer, "1"); err != nil { // of those that are launched
		return err
	}
	opt.Source = &workflow.Launched{Argv: []string{os.Args[0]}, Model: "gpt2", Device: workflow.DeviceOf(opt.GPU),
		LogDir: dir}
	opt.Resume = true
	out, err := workflow.Run(context.Background(), opt)
	if err == nil && out.Partial {
		err = fmt.Errorf("partial: %s", out.Why)
	}
	return err
}

// doneParts are the files of the parts that are done: what no later process may measure again.
func doneParts(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	f, err := archive.Open(dir)
	if err != nil {
		t.Fatalf("after a kill: %v", err)
	}
	files := map[string][]byte{}
	for _, part := range f.Parts() {
		for _, suffix := range []string{archive.RequestsSuffix, archive.ResultSuffix} {
			data, err := os.ReadFile(f.Path(part.Name + suffix))
			switch {
			case err == nil && part.State == archive.Done:
				files[part.Name+suffix] = data
			case part.State == archive.Done:
				t.Errorf("%s is done without a %s: %v", part.Name, suffix, err)
			}
		}
		if _, _, err := f.ReadRequests(part.Name); err != nil && !os.IsNotExist(err) {
			t.Errorf("%s after a kill: %v", part.Name, err)
		}
	}
	return files
}

// servers are the processes that serve a model for a workflow in the folder, by their environment.
func servers(t *testing.T, dir string) (pids []int) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		env, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(env, []byte(playLaunching+"="+dir+"\x00")) {
			continue // has ended, or is another's
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !bytes.Contains(stat, []byte(") Z ")) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// kvtune is killed hard at random moments of a workflow on servers that it launches, and started again each time until
// it is through. No server outlives it, what was done is neither lost nor measured again, and the end has every request
// once.
func TestKilledAtRandom(t *testing.T) {
	if _, err := os.Stat("/proc/self/environ"); err != nil {
		t.Skip("skipped: needs Linux")
	}
	kills := 3
	if underFire {
		kills = 50
	}
	rng := rand.New(rand.NewPCG(5, 6))
	wholes, last := 0, 4*time.Second // how long a workflow takes at most
	for killed := 0; killed < kills || wholes == 0; wholes++ {
		dir := t.TempDir()
		kept := map[string][]byte{}
		for done := false; !done; {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), playLaunching+"="+dir)
			var output bytes.Buffer
			cmd.Stdout, cmd.Stderr = &output, &output
			start := time.Now()
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			timer := time.NewTimer(time.Duration(rng.Int64N(int64(last))))
			if killed >= kills {
				timer.Stop()
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			var err error
			select {
			case err = <-ended:
				last = max(last, time.Since(start))
			case <-timer.C:
				if e := cmd.Process.Signal(syscall.SIGKILL); e == nil {
					killed++
				}
				err = <-ended
			}
			timer.Stop()
			done = err == nil
			if err != nil && !strings.Contains(err.Error(), "killed") {
				t.Fatalf("%v\n%s", err, &output)
			}
			for tries := 0; len(servers(t, dir)) > 0; tries++ {
				if tries == 1000 {
					t.Fatalf("servers outlive kvtune: %v", servers(t, dir))
				}
				time.Sleep(10 * time.Millisecond)
			}
			if _, err := os.Stat(filepath.Join(dir, archive.ManifestName)); os.IsNotExist(err) {
				continue // killed before its first file
			}
			now := doneParts(t, dir)
			for name, data := range kept {
				if !bytes.Equal(now[name], data) {
					t.Errorf("%s was done, and is lost or measured again", name)
				}
			}
			kept = now
		}
		checkOnce(t, dir)
	}
	t.Logf("%d kills, %d workflows", kills, wholes)
}

// checkOnce checks that a workflow's folder is complete, and that every request is in it once.
func checkOnce(t *testing.T, dir string) {
	t.Helper()
	f, err := archive.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	verified := 0
	for _, part := range f.Parts() {
		if part.State != archive.Done {
			t.Errorf("%s is %s", part.Name, part.State)
			continue
		}
		run, err := workflow.ReadRun(f, part.Name)
		if err != nil {
			t.Fatal(err)
		}
		seen := make([]int, len(run.Records)) // in the order in which they ended
		for _, r := range run.Records {
			if r.Index < len(seen) {
				seen[r.Index]++
			}
		}
		if slices.ContainsFunc(seen, func(n int) bool { return n != 1 }) {
			t.Errorf("%s: of its requests one is lost or there twice: %v", part.Name, seen)
		}
		if ok, _ := run.Result.Metrics.Value("requests", "ok"); run.Result.Partial || len(run.Records) == 0 || ok == 0 {
			t.Errorf("%s: partial %v, %d records, %v counted", part.Name, run.Result.Partial, len(run.Records), ok)
		}
		if strings.HasSuffix(part.Name, "_verify") {
			verified++
		}
	}
	if verified == 0 || len(f.Parts()) < 4 {
		t.Errorf("parts %v", f.Parts())
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if strings.HasSuffix(path, archive.PartialSuffix) {
			t.Errorf("left over: %s", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
