package workflow_test

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/vllmflags"
	"kvtune/harness/workflow"
	"kvtune/planner"
	"kvtune/planner/engine"
	"kvtune/planner/report"
	"kvtune/planner/spec"
)

// The test binary plays other programs when these are set.
const (
	playServer   = "KVTUNE_TEST_SERVER"   // a vLLM that is launched
	playWorkflow = "KVTUNE_TEST_WORKFLOW" // a kvtune that works in the folder named
	pidFile      = "KVTUNE_TEST_PID"      // where the server leaves its process id
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(playServer) != "":
		fmt.Println(launchedServer(os.Args[1:]))
		os.Exit(1)
	case os.Getenv(playLaunching) != "":
		if err := launchingWorkflow(os.Getenv(playLaunching)); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	case os.Getenv(playWorkflow) != "":
		if err := killedWorkflow(os.Getenv(playWorkflow)); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m) // no goroutine outlives the tests
}

// Values of max_num_seqs with which a launched server fails.
const (
	diesAtStart = 13
	diesAtWork  = 14
	outOfMemory = 15 // unless gpu_memory_utilization is 0.83 or less
)

// launchedServer is a program like `vllm serve`, with the embedded engine behind it. It returns only when it fails.
func launchedServer(args []string) error {
	model, set, rest, err := vllmflags.ParseServeCommand("vllm serve " + report.ShellLine(args))
	if err != nil {
		return err
	}
	var port string
	for i, word := range rest {
		if word == "--port" {
			port = rest[i+1]
		}
	}
	if set.MaxNumSeqs == diesAtStart {
		return fmt.Errorf("ValueError: %d is an unlucky number", diesAtStart)
	}
	if set.MaxNumSeqs == outOfMemory && (set.GPUMemoryUtilization == 0 || set.GPUMemoryUtilization > 0.83) {
		return errors.New("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
	}
	shape, err := spec.FindModel(model)
	if err != nil {
		return err
	}
	gpu, err := spec.FindGPU("L4")
	if err != nil {
		return err
	}
	if set.MaxModelLen == 0 {
		set.MaxModelLen = shape.MaxPosition
	}
	set, _, err = workflow.Legal(set, workflow.EngineVersion, gpu)
	if err != nil {
		return err
	}
	e, err := engine.New(engine.Options{Model: shape, GPU: gpu, Args: set, Seed: 1})
	if err != nil {
		return err
	}
	if file := os.Getenv(pidFile); file != "" {
		if err := os.WriteFile(file, []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
			return err
		}
	}
	var served atomic.Int64
	handler := likeVLLM(e.Handler())
	counting := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/completions" && set.MaxNumSeqs == diesAtWork && served.Add(1) > 5 {
			os.Exit(9)
		}
		handler.ServeHTTP(w, r)
	})
	return http.ListenAndServe(net.JoinHostPort("127.0.0.1", port), counting)
}

// likeVLLM hides that the embedded engine answers, which would tell all its settings; a vLLM tells few.
func likeVLLM(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/version" {
			w.Header().Set("Server", "uvicorn")
			fmt.Fprintf(w, `{"version":%q}`, workflow.EngineVersion)
			return
		}
		h.ServeHTTP(w, r)
	})
}

func gpt2(t testing.TB) spec.Model {
	t.Helper()
	m, err := spec.FindModel("gpt2")
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// model70B is a model of 140 GB.
func model70B(t testing.TB) spec.Model {
	t.Helper()
	m, err := spec.FindModel("meta-llama/Llama-3.1-70B")
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func gpu(t testing.TB, name string) spec.GPU {
	t.Helper()
	g, err := spec.FindGPU(name)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// small is a configuration that gpt2 is through with in a moment.
func small(name string, c int) harness.Config {
	cfg := harness.DefaultConfig()
	cfg.Name, cfg.C, cfg.M, cfg.B, cfg.OutputLen, cfg.Seed = name, c, 2, 4, "16", 1
	cfg.NumWarmup, cfg.NumMeasurements = 0, 1
	return cfg
}

// running is an engine behind HTTP, at a speed; wrap may stand in between.
func running(t *testing.T, args harness.EngineArgs, speed float64,
	wrap func(http.Handler) http.Handler) workflow.Running {
	t.Helper()
	args.MaxModelLen = 1024
	args, _, err := workflow.Legal(args, workflow.EngineVersion, gpu(t, "L4"))
	if err != nil {
		t.Fatal(err)
	}
	e, err := engine.New(engine.Options{Model: gpt2(t), GPU: gpu(t, "L4"), Args: args, Seed: 1, Speed: speed})
	if err != nil {
		t.Fatal(err)
	}
	handler := e.Handler()
	if wrap != nil {
		handler = wrap(handler)
	}
	s := httptest.NewServer(handler)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return workflow.Running{URL: s.URL}
}

// launched is a source that starts the test binary as a server.
func launched(t *testing.T) *workflow.Launched {
	t.Setenv(playServer, "1")
	return &workflow.Launched{
		Argv: []string{os.Args[0]}, Model: "gpt2", Device: workflow.DeviceOf(gpu(t, "L4")), LogDir: t.TempDir(),
	}
}

// stages collects what OnStage is told.
type stages struct {
	mu   sync.Mutex
	told []string
	on   func(string)
}

func (s *stages) add(text string) {
	s.mu.Lock()
	s.told = append(s.told, text)
	s.mu.Unlock()
	if s.on != nil {
		s.on(text)
	}
}

func (s *stages) has(part string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(strings.Join(s.told, "\n"), part)
}

func folder(t *testing.T, dir string) *archive.Folder {
	t.Helper()
	f, err := archive.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// options are a quick workflow of two configurations on the embedded engine, with its files in dir.
func options(t *testing.T, dir string) workflow.Options {
	t.Helper()
	opt, err := optionsIn(dir)
	if err != nil {
		t.Fatal(err)
	}
	return opt
}

func optionsIn(dir string) (opt workflow.Options, err error) {
	if opt.Model, err = spec.FindModel("gpt2"); err != nil {
		return opt, err
	}
	if opt.GPU, err = spec.FindGPU("L4"); err != nil {
		return opt, err
	}
	if opt.Folder, err = archive.Create(dir); err != nil {
		return opt, err
	}
	opt.Source = workflow.Embedded{Model: opt.Model, GPU: opt.GPU, Seed: 1}
	opt.Configs = []harness.Config{small("first", 64), small("second", 128)}
	opt.Target, opt.Quick = planner.Balanced, true
	return opt, nil
}
