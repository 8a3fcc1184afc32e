package vllm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestMain lets the test binary play the server: with the variable set it is one.
func TestMain(m *testing.M) {
	if mode := os.Getenv("KVTUNE_FAKE_SERVER"); mode != "" {
		fakeServer(mode)
	}
	if url := os.Getenv(playStreams); url != "" {
		n, _ := strconv.Atoi(os.Getenv(playCount))
		got, err := streamMany(url, n)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		if err := json.NewEncoder(os.Stdout).Encode(got); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// underFire lets the tests of damage go their whole way (make test-fire).
var underFire = os.Getenv("KVTUNE_FIRE") != ""

// fakeServer serves /health at --port, or fails as mode says. It never returns.
func fakeServer(mode string) {
	fmt.Println("(APIServer pid=7) INFO 11-24 02:06:07 [api_server.py:99] starting with", strings.Join(os.Args[1:], " "))
	switch {
	case strings.HasPrefix(mode, "die:"):
		fmt.Fprintln(os.Stderr, strings.TrimPrefix(mode, "die:"))
		os.Exit(3)
	case mode == "port taken at first":
		mark, err := os.OpenFile(os.Getenv("KVTUNE_FAKE_LOG"), os.O_CREATE|os.O_EXCL, 0o600)
		if err == nil {
			mark.Close()
			fmt.Println("OSError: [Errno 98] error while attempting to bind on address: address already in use")
			os.Exit(1)
		}
	case mode == "never ready":
		time.Sleep(time.Hour)
	case mode == "stubborn":
		signal.Ignore(syscall.SIGTERM)
	case mode == "worker":
		signal.Ignore(syscall.SIGTERM)
		time.Sleep(time.Hour)
	case mode == "leaves a worker":
		worker := exec.Command(os.Args[0])
		worker.Env = append(os.Environ(), "KVTUNE_FAKE_SERVER=worker")
		if err := worker.Start(); err != nil {
			os.Exit(4)
		}
		fmt.Println("worker", worker.Process.Pid)
	case mode == "launcher": // starts a server like kvtune does, and waits to be killed
		p, err := Launch(context.Background(), LaunchOptions{Argv: []string{os.Args[0]},
			Env: []string{"KVTUNE_FAKE_SERVER=leaves a worker"}, LogPath: os.Getenv("KVTUNE_FAKE_LOG"), Grace: time.Second,
			StopCommand: strings.Fields(os.Getenv("KVTUNE_FAKE_STOP"))})
		if err != nil {
			os.Exit(5)
		}
		worker := 0
		for _, l := range p.LogTail(10) {
			_, _ = fmt.Sscanf(l, "worker %d", &worker)
		}
		fmt.Println("server", p.PID(), worker)
		time.Sleep(time.Hour)
	}
	port, _ := flagValue(os.Args[1:], "--port")
	if outside := os.Getenv("KVTUNE_FAKE_OUTSIDE"); outside != "" {
		port = outside // behind a mapping
	}
	host, _ := flagValue(os.Args[1:], "--host")
	http.HandleFunc("/health", func(http.ResponseWriter, *http.Request) {})
	fmt.Println(http.ListenAndServe(net.JoinHostPort(host, port), nil))
	os.Exit(6)
}

// launchFake starts the fake server in a mode, with a log in the test's folder.
func launchFake(t *testing.T, mode string, opt LaunchOptions) (*Process, error) {
	t.Helper()
	opt.Argv = []string{os.Args[0]}
	opt.Env = append(opt.Env, "KVTUNE_FAKE_SERVER="+mode)
	opt.LogPath = filepath.Join(t.TempDir(), "server.log")
	p, err := Launch(t.Context(), opt)
	if err == nil {
		t.Cleanup(func() { _ = p.Stop() })
	}
	return p, err
}

// alive reports whether a process runs; one that ended but was not reaped by its parent does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(after, "Z")
}

// gone waits for the end of a process that is not our child.
func gone(t *testing.T, pid int) {
	t.Helper()
	for range 1000 {
		if !alive(pid) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("process %d still runs", pid)
}

func TestLaunchAndStop(t *testing.T) {
	var progress []string
	p, err := launchFake(t, "serve", LaunchOptions{Model: "tiny", Args: []string{"--max-num-seqs", "8"},
		Extra: []string{"--enforce-eager"}, OnProgress: func(line string) { progress = append(progress, line) }})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(p.URL() + "/health")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("health: %v", err)
	}
	resp.Body.Close()
	port := p.URL()[strings.LastIndex(p.URL(), ":")+1:]
	want := []string{os.Args[0], "tiny", "--max-num-seqs", "8", "--host", "127.0.0.1", "--port", port, "--enforce-eager"}
	if !slices.Equal(p.Argv(), want) {
		t.Errorf("argv %q, want %q", p.Argv(), want)
	}
	if pgid, err := syscall.Getpgid(p.PID()); err != nil || pgid != p.PID() {
		t.Errorf("process group %d of %d, %v", pgid, p.PID(), err)
	}
	line := "starting with " + strings.Join(want[1:], " ")
	if got := p.LogTail(1); !slices.Equal(got, []string{line}) {
		t.Errorf("log ends with %q, want %q", got, line)
	}
	for _, shown := range progress {
		if shown != "" && shown != line {
			t.Errorf("progress shows %q", shown)
		}
	}
	if err := p.Err(); err != nil {
		t.Errorf("while it runs: %v", err)
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	if err := p.Stop(); err != nil {
		t.Errorf("again: %v", err)
	}
	<-p.Ended()
	var died *DiedError
	if !errors.As(p.Err(), &died) || !strings.Contains(died.State, "terminated") {
		t.Errorf("after: %v", p.Err())
	}
	if _, err := os.Stat(p.LogPath()); err != nil {
		t.Errorf("the log is not kept: %v", err)
	}
}

func TestLaunchObeysHostAndPortOfTheUser(t *testing.T) {
	port := freeTestPort(t)
	p, err := launchFake(t, "serve", LaunchOptions{Extra: []string{"--host", "0.0.0.0", "--port=" + strconv.Itoa(port)}})
	if err != nil {
		t.Fatal(err)
	}
	if p.URL() != fmt.Sprintf("http://127.0.0.1:%d", port) || len(p.Argv()) != 4 {
		t.Errorf("%s, %q", p.URL(), p.Argv())
	}
	if _, err := launchFake(t, "serve", LaunchOptions{Port: port}); err == nil || !strings.Contains(err.Error(),
		"already answers") {
		t.Errorf("a second server at the same port: %v", err)
	}
}

func TestLaunchConflicts(t *testing.T) {
	for _, c := range []struct {
		args, extra []string
		flag        string
	}{
		{[]string{"--max-num-seqs", "8"}, []string{"--max-num-seqs", "9"}, "--max-num-seqs"},
		{[]string{"--max-num-seqs=8"}, []string{"--max_num_seqs=9"}, "--max-num-seqs"},
		{[]string{"--enable-prefix-caching"}, []string{"--no-enable-prefix-caching"}, "--no-enable-prefix-caching"},
		{[]string{"--no-async-scheduling"}, []string{"--async-scheduling"}, "--async-scheduling"},
		{[]string{"--max-num-seqs", "8"}, []string{"--enforce-eager", "--seed", "1"}, ""},
	} {
		flag, ok := Conflict(c.args, c.extra)
		if flag != c.flag || ok != (c.flag != "") {
			t.Errorf("%q against %q: %q, %v; want %q", c.args, c.extra, flag, ok, c.flag)
		}
	}
	var conflict *ConflictError
	_, err := launchFake(t, "serve", LaunchOptions{Args: []string{"--seed", "1"}, Extra: []string{"--seed", "2"}})
	if !errors.As(err, &conflict) || conflict.Flag != "--seed" {
		t.Errorf("launch: %v", err)
	}
}

func TestLaunchOfWhatIsNotThere(t *testing.T) {
	_, err := Launch(t.Context(), LaunchOptions{Argv: []string{"no-such-vllm-program"},
		LogPath: filepath.Join(t.TempDir(), "log")})
	if err == nil || !strings.Contains(err.Error(), "executable file not found in $PATH; install vLLM") {
		t.Errorf("%v", err)
	}
	_, err = Launch(t.Context(), LaunchOptions{Argv: []string{os.Args[0]}, LogPath: filepath.Join(t.TempDir(), "no",
		"log")})
	if err == nil || !strings.Contains(err.Error(), "server log") {
		t.Errorf("log that cannot be written: %v", err)
	}
	_, err = Launch(t.Context(), LaunchOptions{Argv: []string{os.Args[0]}, Extra: []string{"--port", "http"}})
	if err == nil || !strings.Contains(err.Error(), `--port "http"`) {
		t.Errorf("port: %v", err)
	}
}

// A server that dies while starting: the log's decisive line and what to change, not a timeout.
func TestLaunchOfAServerThatDies(t *testing.T) {
	noise := "INFO 11-24 02:06:07 [core.py:1] loading\nTraceback (most recent call last):\n  File \"x.py\", line 1, in y\n"
	for _, c := range []struct{ name, log, line, suggestion string }{
		{"unknown flag", "usage: vllm serve [options]\nvllm: error: unrecognized arguments: --swap-space 4",
			"vllm: error: unrecognized arguments: --swap-space 4", "this version of vLLM does not take the flag"},
		{"out of memory",
			noise + "(EngineCore pid=9) ERROR 11-24 02:06:08 [core.py:2] torch.OutOfMemoryError: CUDA out of memory. " +
				"Tried to allocate 2.00 GiB.\nRuntimeError: Engine core initialization failed. See root cause above.",
			"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "lower gpu_memory_utilization"},
		{"device is used",
			noise + "ValueError: Free memory on device cuda:0 (3.1/79.2 GiB) on startup is less than desired GPU memory " +
				"utilization (0.92, 72.9 GiB).", "ValueError: Free memory on device", "free the device"},
		{"cache too small",
			noise + "ValueError: To serve at least one request with the models's max seq len (131072), (16.0 GiB KV " +
				"cache is needed, which is larger than the available KV cache memory (5.1 GiB).", "ValueError: To serve",
			"lower max_model_len"},
		{"port", noise + "OSError: [Errno 98] Address already in use", "Address already in use", "port is taken"},
		{"block size", noise + "ValueError: No common block size for 16 (CPU_ATTN: [MultipleOf(32)]).",
			"No common block size for 16",
			"of 32 on the CPU"},
		{"pair of values",
			noise + "  Value error, max_num_batched_tokens (64) must be greater than or equal to max_num_seqs (128). " +
				"[type=value_error]", "Value error, max_num_batched_tokens (64)", "together"},
		{"model", noise + "OSError: nope is not a local folder and is not a valid model identifier listed on the hub",
			"OSError: nope is not a local folder", "model was not found"},
		{"other value error", noise + "ValueError: something new", "ValueError: something new", "refuses the configuration"},
		{"other error", noise + "ImportError: libfoo.so", "ImportError: libfoo.so", ""},
		{"nothing known", "just this", "just this", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := launchFake(t, "die:"+c.log, LaunchOptions{})
			var died *DiedError
			if !errors.As(err, &died) {
				t.Fatal(err)
			}
			if died.State != "exit status 3" || !strings.Contains(strings.Join(died.Lines, "\n"), c.line) ||
				len(died.Lines) > maxLines {
				t.Errorf("%s, lines %q; want %q", died.State, died.Lines, c.line)
			}
			if !strings.Contains(died.Suggestion, c.suggestion) || c.suggestion == "" && died.Suggestion != "" {
				t.Errorf("suggestion %q, want %q", died.Suggestion, c.suggestion)
			}
			if !strings.Contains(err.Error(), died.LogPath) {
				t.Errorf("the error does not name the log: %v", err)
			}
		})
	}
}

func TestLaunchGivesUpWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	interrupted := errors.New("interrupted")
	var pid int
	log := filepath.Join(t.TempDir(), "log")
	_, err := Launch(ctx, LaunchOptions{Argv: []string{os.Args[0]}, Env: []string{"KVTUNE_FAKE_SERVER=never ready"},
		LogPath: log,
		OnProgress: func(line string) {
			if line != "" {
				cancel(interrupted)
			}
		}})
	if !errors.Is(err, interrupted) || !strings.Contains(err.Error(), log) {
		t.Errorf("%v (process %d)", err, pid)
	}
}

func TestStopKillsWhatDoesNotListen(t *testing.T) {
	p, err := launchFake(t, "stubborn", LaunchOptions{Grace: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	if err := p.Err(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("ended by %v, want a kill", err)
	}
}

func TestStopLeavesNoWorker(t *testing.T) {
	p, err := launchFake(t, "leaves a worker", LaunchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	worker := 0
	for _, l := range p.LogTail(10) {
		_, _ = fmt.Sscanf(l, "worker %d", &worker)
	}
	if worker == 0 || !alive(worker) {
		t.Fatalf("no worker in %q", p.LogTail(10))
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	gone(t, worker)
}

func TestStopCommand(t *testing.T) {
	p, err := launchFake(t, "serve", LaunchOptions{StopCommand: []string{"false"}, Grace: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(); err == nil || !strings.Contains(err.Error(), "stop command false") {
		t.Errorf("a stop command that fails: %v", err)
	}
	gone(t, p.PID())
	mark := filepath.Join(t.TempDir(), "stopped")
	p, err = launchFake(t, "serve", LaunchOptions{StopCommand: []string{"touch", mark}, Grace: 3 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(mark); err != nil {
		t.Errorf("the stop command was not run: %v", err)
	}
}

// kvtune killed hard takes its server and all that this started with it, also one that another command stops.
func TestServerDiesWithItsParent(t *testing.T) {
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		t.Skip("skipped: needs Linux")
	}
	mark := filepath.Join(t.TempDir(), "stopped")
	for _, stop := range []string{"", "touch " + mark} {
		launcher := exec.Command(os.Args[0])
		launcher.Env = append(os.Environ(), "KVTUNE_FAKE_SERVER=launcher", "KVTUNE_FAKE_STOP="+stop,
			"KVTUNE_FAKE_LOG="+filepath.Join(t.TempDir(), "log"))
		out, err := launcher.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := launcher.Start(); err != nil {
			t.Fatal(err)
		}
		var server, worker int
		lines := bufio.NewScanner(out)
		for server == 0 && lines.Scan() {
			_, _ = fmt.Sscanf(lines.Text(), "server %d %d", &server, &worker)
		}
		if server == 0 || !alive(server) || worker == 0 || !alive(worker) {
			t.Fatalf("server %d or worker %d does not run: %v", server, worker, lines.Err())
		}
		_ = launcher.Process.Kill()
		_ = launcher.Wait()
		gone(t, server)
		gone(t, worker) // which ignores SIGTERM
		if _, err := os.Stat(mark); (err == nil) != (stop != "") {
			t.Errorf("stop command %q: %v", stop, err)
		}
	}
}

// No shell reads a model's name, a flag or the command that stops a server: each is one word of an argument vector. The
// guard, which is a shell script, takes them as its arguments.
func TestLaunchWordsStayWords(t *testing.T) {
	dir := t.TempDir()
	mark := filepath.Join(dir, "pwned")
	for _, evil := range []string{"m; touch " + mark, "$(touch " + mark + ")", "`touch " + mark + "`", "m\ntouch " + mark,
		"m' && touch " + mark + " '", `m" | touch ` + mark + ` "`} {
		stopped := filepath.Join(t.TempDir(), "stopped "+filepath.Base(evil))
		p, err := launchFake(t, "serve", LaunchOptions{Model: evil, Args: []string{"--served-model-name", evil},
			Extra:       []string{"--seed=" + evil},
			StopCommand: []string{"touch", stopped, filepath.Join(dir, "x"+filepath.Base(evil))}, Grace: 50 * time.Millisecond})
		if err != nil {
			t.Fatalf("%q: %v", evil, err)
		}
		said := strings.Join(p.LogTail(50), "\n")
		if !slices.Contains(p.Argv(), evil) || !strings.Contains(said, "starting with "+evil+" --served-model-name "+evil) ||
			!strings.Contains(said, "--seed="+evil) {
			t.Errorf("%q became %q, of which came: %s", evil, p.Argv(), said)
		}
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(stopped); err != nil {
			t.Errorf("%q: the stop command had other words: %v", evil, err)
		}
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("a word was run by a shell")
	}
}

func TestLaunchTriesAnotherPort(t *testing.T) {
	env := []string{"KVTUNE_FAKE_LOG=" + filepath.Join(t.TempDir(), "mark")}
	p, err := launchFake(t, "port taken at first", LaunchOptions{Env: env})
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := http.Get(p.URL() + "/health"); err != nil {
		t.Error(err)
	} else {
		resp.Body.Close()
	}
	env[0] += "2"
	var died *DiedError
	port := freeTestPort(t)
	if _, err := launchFake(t, "port taken at first", LaunchOptions{Env: env, Port: port}); !errors.As(err, &died) ||
		died.Cause != CausePort {
		t.Errorf("a port that the user chose: %v", err)
	}
}

func freeTestPort(t *testing.T) int {
	t.Helper()
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	return port
}
