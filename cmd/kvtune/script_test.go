package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"kvtune/harness/archive"
)

func TestMain(m *testing.M) {
	testscript.Main(leakChecked{m}, map[string]func(){"kvtune": main})
}

// leakChecked are tests that no goroutine outlives.
type leakChecked struct{ *testing.M }

func (m leakChecked) Run() int {
	status := m.M.Run()
	if err := goleak.Find(); err != nil && status == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return status
}

func TestScripts(t *testing.T) {
	schemas, err := newValidators()
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: os.Getenv("KVTUNE_UPDATE") != "",
		Setup:         schemas.checkWritten,
		Condition: func(cond string) (bool, error) {
			if cond == "race" {
				return raceDetector, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status": status, "records": records, "listening": listening,
			"valid": schemas.valid,
		},
	})
}

// status runs a command that must exit with the given status: status 2 kvtune profile --B 0, or with one of several
// where a busy machine decides: status 0|3 kvtune verify. Like exec, it keeps stdout and stderr for the lines that
// follow.
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N command [args...]")
	}
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if !slices.Contains(strings.Split(args[0], "|"), strconv.Itoa(got)) {
		ts.Fatalf("%v: exit status %d, want %s", args[1:], got, args[0])
	}
}

// patience is how often what a script waits for is looked for, 50 ms apart: two minutes, on a busy machine.
const patience = 2400

// records waits until a requests file that is still being written holds at least N records: records FILE N.
func records(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: records file N")
	}
	want, err := strconv.Atoi(args[1])
	if err != nil {
		ts.Fatalf("records %s: %v", args[1], err)
	}
	path := ts.MkAbs(args[0])
	for range patience {
		for _, name := range []string{path + archive.PartialSuffix, path} {
			data, err := os.ReadFile(name)
			if err != nil {
				continue
			}
			if got, _, err := archive.ReadRequests(bytes.NewReader(data)); err == nil && len(got) >= want {
				return
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	ts.Fatalf("%s never held %d records", args[0], want)
}

// listening waits until something accepts connections at an address: listening 127.0.0.1:8000.
func listening(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: listening host:port")
	}
	for range patience {
		conn, err := net.Dial("tcp", args[0])
		if err == nil {
			ts.Check(conn.Close())
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	ts.Fatalf("nothing ever listened at %s", args[0])
}
