package main

import (
	"bytes"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"kvtune/harness/archive"
)

// underFire lets the tests of damage go their whole way (make test-fire).
var underFire = os.Getenv("KVTUNE_FIRE") != ""

// onSmallDisk runs the program with a disk of so many bytes behind out, which it copies to left; 0 is a large disk.
func onSmallDisk(t *testing.T, bytesOfDisk int, left string, args ...string) (status int, stderr string) {
	t.Helper()
	const script = `mount -t tmpfs -o size="$1" tmpfs "$2" || exit 99
		shift; disk=$1; left=$2; shift 2
		kvtune "$@" --output-dir "$disk/out"; status=$?
		cp -r "$disk/out" "$left" 2>/dev/null; exit $status`
	if bytesOfDisk == 0 {
		bytesOfDisk = 64 << 20
	}
	cmd := exec.Command("unshare", append([]string{"-rm", "sh", "-c", script, "sh", strconv.Itoa(bytesOfDisk), t.TempDir(),
		left}, args...)...)
	cmd.Env = append(os.Environ(), "PATH="+program(t)+string(os.PathListSeparator)+os.Getenv("PATH"))
	var out bytes.Buffer
	cmd.Stderr = &out
	_ = cmd.Run()
	return cmd.ProcessState.ExitCode(), out.String()
}

// A disk that is full at any byte: exit status 1 with a message that says so, and what was written is whole and marked.
func TestDiskFull(t *testing.T) {
	if out, err := exec.Command("unshare", "-rm", "sh", "-c", "mount -t tmpfs tmpfs /mnt").CombinedOutput(); err != nil {
		t.Skipf("skipped: no file system may be mounted here: %v %s", err, out)
	}
	args := []string{"profile", "--model", "gpt2", "--gpu", "L4", "--C", "64", "--M", "1", "--B", "8", "--output-len",
		"128", "--num-measurements", "6"}
	all := filepath.Join(t.TempDir(), "all")
	if status, stderr := onSmallDisk(t, 0, all, args...); status != exitDone {
		t.Fatalf("on a large disk: %d, %s", status, stderr)
	}
	total, records := 0, 0
	page := os.Getpagesize()
	err := filepath.WalkDir(all, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			info, e := d.Info()
			if e != nil {
				return e
			}
			total += (int(info.Size()) + page - 1) / page * page
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, _, err := onlyFolder(t, all).ReadRequests("profiling"); err != nil {
		t.Fatal(err)
	} else {
		records = len(got)
	}
	rounds := 3
	if underFire {
		rounds = 20
	}
	rng := rand.New(rand.NewPCG(3, 4))
	full := 0
	for range rounds {
		size := page * (1 + rng.IntN(total/page)) // a file system in memory has whole pages
		left := filepath.Join(t.TempDir(), "left")
		status, stderr := onSmallDisk(t, size, left, args...)
		if status == exitDone {
			continue // the manifest's turns need less at times
		}
		full++
		if status != exitError || !strings.Contains(stderr,
			"the disk is full: free some space or choose another output folder") ||
			strings.Contains(stderr, "goroutine ") {
			t.Errorf("%d bytes: status %d: %s", size, status, stderr)
		}
		if _, err := os.Stat(filepath.Join(left, archive.ManifestName)); err != nil {
			continue // no room for the first file
		}
		f := onlyFolder(t, left)
		if part, ok := f.Part("profiling"); ok && part.State == archive.Done {
			t.Errorf("%d bytes: the part is done", size)
		}
		got, partial, err := f.ReadRequests("profiling")
		t.Logf("%d of %d bytes: status %d, %d of %d records left, partial %v", size, total, status, len(got), records,
			partial)
		if err == nil && !partial && len(got) != records {
			t.Errorf("%d bytes: %d of %d records, unmarked", size, len(got), records)
		}
		if err != nil && !os.IsNotExist(err) {
			t.Errorf("%d bytes: what is left of the requests: %v", size, err)
		}
		if _, err := f.Result("profiling"); err != nil && !os.IsNotExist(err) {
			t.Errorf("%d bytes: what is left of the result: %v", size, err)
		}
		if tmp, _ := filepath.Glob(filepath.Join(left, ".*tmp*")); len(tmp) > 0 {
			t.Errorf("%d bytes: left over: %v", size, tmp)
		}
	}
	if full*2 < rounds {
		t.Errorf("only %d of %d disks were full", full, rounds)
	}
}

func onlyFolder(t *testing.T, dir string) *archive.Folder {
	t.Helper()
	f, err := archive.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return f
}
