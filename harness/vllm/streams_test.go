package vllm

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kvtune/harness/load"
	"kvtune/harness/workload"
)

// playStreams is a client of the address named, with as many streams at once as playCount says.
const playStreams, playCount = "KVTUNE_TEST_STREAMS", "KVTUNE_TEST_COUNT"

// streamed is what such a client says of its run.
type streamed struct {
	Sent, OK, Failed, Cancelled, Unsent int
	Bad                                 string // of a record that cannot be
	Leaked                              int    // goroutines
	Peak                                int    // resident memory, KiB
}

// streamMany is the client. It ends the run when few requests are left, which never end by themselves.
func streamMany(url string, n int) (got streamed, err error) {
	before := runtime.NumGoroutine()
	s, err := Connect(context.Background(), url, Options{})
	if err != nil {
		return got, err
	}
	w := &workload.Workload{Concurrency: n}
	for i := range n {
		r := *request(100, 10)
		r.Index = i
		w.Requests = append(w.Requests, r)
	}
	ReserveConnections(n)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	run, err := load.Do(ctx, load.Options{Client: s.Client(ClientOptions{}), Workload: w, GiveUpAfter: n,
		OnProgress: func(p load.Progress) {
			if p.Ended >= n*fates.ends/100 {
				cancel()
			}
		}})
	if err != nil {
		return got, err
	}
	got = streamed{Sent: run.Sent, OK: run.OK, Failed: run.Failed, Cancelled: run.Cancelled, Unsent: run.Unsent}
	for i := range run.Records {
		if r := &run.Records[i]; r.OK() && (r.OutputTokens != 10 || len(r.Tokens) == 0) || !r.OK() && r.Error == "" {
			got.Bad = fmt.Sprintf("%+v", r)
		}
	}
	s.Close()
	for range 500 {
		if got.Leaked = runtime.NumGoroutine() - before; got.Leaked <= 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	status, err := os.ReadFile("/proc/self/status")
	_, peak, _ := strings.Cut(string(status), "VmHWM:")
	_, _ = fmt.Sscan(peak, &got.Peak)
	return got, err
}

// fates are how many streams of a hundred are reset, are cut off and hang; ends are those that end by themselves.
var fates = struct{ reset, cut, hang, ends int }{10, 5, 3, 97}

// limited is a command whose memory is bounded by a cgroup where one can be made, and by GOMEMLIMIT below that.
func limited(t *testing.T, mib int) (cmd *exec.Cmd, how string) {
	t.Helper()
	cmd, how = exec.Command(os.Args[0]), "GOMEMLIMIT"
	cmd.Env = append(os.Environ(), fmt.Sprintf("GOMEMLIMIT=%dMiB", mib*3/4))
	for _, c := range [][2]string{{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"}, {"/sys/fs/cgroup", "memory.max"}} {
		dir := filepath.Join(c[0], "kvtune-test-"+strconv.Itoa(os.Getpid()))
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		t.Cleanup(func() { _ = os.Remove(dir) })
		if os.WriteFile(filepath.Join(dir, c[1]), strconv.AppendInt(nil, int64(mib)<<20, 10), 0) == nil {
			env := cmd.Env
			cmd = exec.Command("sh", "-c", `echo $$ >"$1/cgroup.procs" && exec "$2"`, "sh", dir, os.Args[0])
			cmd.Env = env
			return cmd, how + " and a cgroup"
		}
	}
	return cmd, how
}

// Thousands of streams at once, some reset, cut off or left hanging by the server at random: each request is accounted
// for once, no goroutine is left, and the memory is bounded.
func TestManyStreams(t *testing.T) {
	if _, err := os.Stat("/proc/self/status"); err != nil {
		t.Skip("skipped: needs Linux")
	}
	n := 500
	if underFire {
		n = 10_000
	}
	if limit := MaxConnections(); limit > 0 && limit < n {
		t.Skipf("skipped: %d open files are too few", limit)
	}
	var arrived, reset, cut, hung atomic.Int64
	all := make(chan struct{}) // closed when every stream has begun
	s := httptest.NewServer(completions(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		k := arrived.Add(1)
		_, _ = io.WriteString(w, ev("", 1))
		control := http.NewResponseController(w)
		_ = control.Flush()
		if int(k) == n {
			close(all)
		}
		<-all
		fate := int(uint64(k) * 0x9e3779b97f4a7c15 >> 33 % 100)
		for i := range 9 {
			finish := ""
			switch at := int(k) % 9; {
			case i == 8:
				finish = "length"
			case i < at:
			case fate < fates.reset:
				if conn, _, err := control.Hijack(); err == nil {
					reset.Add(1)
					_ = conn.(*net.TCPConn).SetLinger(0)
					conn.Close()
				}
				return
			case fate < fates.reset+fates.cut:
				cut.Add(1)
				return
			case fate < fates.reset+fates.cut+fates.hang:
				hung.Add(1)
				<-r.Context().Done()
				return
			}
			_, _ = io.WriteString(w, ev(finish, i))
			_ = control.Flush()
		}
		_, _ = io.WriteString(w, usageEvent(100, 10, "")+done)
	}))
	defer s.Close()
	mib := 256 + n/16
	if underRace {
		mib *= 8
	}
	cmd, how := limited(t, mib)
	cmd.Env = append(cmd.Env, playStreams+"="+s.URL, playCount+"="+strconv.Itoa(n))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	var got streamed
	if err == nil {
		err = json.Unmarshal(out, &got)
	}
	if err != nil {
		t.Fatalf("with %d MiB by %s: %v %s", mib, how, err, out)
	}
	t.Logf("%d streams at once: %+v; %d MiB at most, of %d by %s", n, got, got.Peak>>10, mib, how)
	if got.Sent != n || got.Unsent != 0 || got.Sent != got.OK+got.Failed+got.Cancelled || got.Bad != "" || got.Leaked > 0 {
		t.Errorf("%d streams: %+v", n, got)
	}
	if died := int(reset.Load() + cut.Load()); got.Failed > died || got.OK > n-died || died == 0 || got.Cancelled == 0 {
		t.Errorf("%d were reset or cut off, %d hung: %+v", died, hung.Load(), got)
	}
}
