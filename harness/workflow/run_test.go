package workflow_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/vllm"
	"kvtune/harness/workflow"
	"kvtune/planner"
)

func TestRunRefusals(t *testing.T) {
	tests := []struct {
		name   string
		change func(*workflow.Options)
		want   string
	}{
		{"nothing to do", func(o *workflow.Options) { o.Configs = nil }, "no configuration"},
		{"two of one name", func(o *workflow.Options) { o.Configs[1].Name = "First" }, `name is "First"`},
		{"a name that is taken", func(o *workflow.Options) { o.Configs[0].Name = "probes" }, `name is "probes"`},
		{"a setting without a legal value", func(o *workflow.Options) { o.Configs[0].SchedulingPolicy = "lottery" },
			"lottery"},
		{"a pin without a legal value", func(o *workflow.Options) { o.Fixed.SchedulingPolicy = "lottery" }, "lottery"},
	}
	for _, tt := range tests {
		dir := t.TempDir()
		opt := options(t, dir)
		tt.change(&opt)
		opt.OnStage = func(text string) { t.Errorf("%s: begun: %s", tt.name, text) }
		if err := opt.Check(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: check says %v, want %q", tt.name, err, tt.want)
		}
		if _, err := workflow.Run(t.Context(), opt); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: run says %v, want %q", tt.name, err, tt.want)
		}
		if files, _ := os.ReadDir(dir); len(files) != 1 { // the manifest
			t.Errorf("%s: files %v", tt.name, files)
		}
	}
}

func TestRunNamesConfigurations(t *testing.T) {
	opt := options(t, t.TempDir())
	opt.Configs = []harness.Config{small("", 32), small("", 64)}
	ctx, cancel := context.WithCancel(t.Context())
	opt.OnStage = func(text string) {
		if text == "config2: starting the server" {
			cancel()
		}
	}
	out, err := workflow.Run(ctx, opt)
	if err != nil {
		t.Fatal(err)
	}
	if out.Runs[0].Result.Name != "config1" || ctx.Err() == nil || opt.Configs[0].Name != "" {
		t.Errorf("names %q, the caller's %q", out.Runs[0].Result.Name, opt.Configs[0].Name)
	}
}

// Two configurations fail, at the start and in the middle; the third is measured, planned and verified all the same.
func TestRunGoesOnWithoutThoseThatFail(t *testing.T) {
	dir := t.TempDir()
	opt := options(t, dir)
	source := launched(t)
	opt.Source = source
	opt.Configs = []harness.Config{small("stillborn", 32), small("mortal", 32), small("sound", 64)}
	opt.Configs[0].MaxNumSeqs, opt.Configs[1].MaxNumSeqs = diesAtStart, diesAtWork
	var told stages
	opt.OnStage = told.add
	out, err := workflow.Run(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	if !told.has("4 server starts, about 6m") {
		t.Errorf("the starts were not told: %q", told.told)
	}
	if !out.Partial || !strings.Contains(out.Why, "stillborn: the server process ended") ||
		!strings.Contains(out.Why, "unlucky") ||
		!strings.Contains(out.Why, "mortal: the probes were cut short: ") {
		t.Errorf("partial %v: %s", out.Partial, out.Why)
	}
	if len(out.Runs) != 4 || !out.Runs[0].Result.Partial || !out.Runs[1].Result.Partial || out.Runs[2].Result.Partial {
		t.Fatalf("%d runs", len(out.Runs))
	}
	if out.Chosen != 2 || out.NotVerified != "" || len(out.ChosenPlan().Compared) == 0 {
		t.Errorf("chosen %d, not verified: %q", out.Chosen, out.NotVerified)
	}
	f, err := archive.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]archive.State{
		"stillborn": archive.Failed, "mortal": archive.Failed, "sound": archive.Done, "probes": archive.Done,
	} {
		if part, _ := f.Part(name); part.State != want {
			t.Errorf("%s is %q, want %q", name, part.State, want)
		}
	}
	// What the server was launched with is known to be in force, and is what the plan starts from.
	if got := out.Runs[3].Result.Conditions.Server.Args.MaxModelLen; got != 1024 {
		t.Errorf("max_model_len %d", got)
	}

	// When all fail, their errors are the workflow's.
	opt.Configs, opt.Folder = opt.Configs[:1], nil
	var died *vllm.DiedError
	if _, err := workflow.Run(t.Context(), opt); !errors.As(err, &died) || !strings.Contains(err.Error(), "stillborn: ") {
		t.Errorf("all failed: %v", err)
	}
}

// A flag that is passed on unchanged holds in every plan; one that a configuration sets otherwise is refused at once.
func TestRunKeepsWhatIsPassedOn(t *testing.T) {
	opt := options(t, t.TempDir())
	source := launched(t)
	source.Extra = []string{"--max-num-seqs", "2"}
	opt.Source = source
	opt.Configs = opt.Configs[:1]
	out, err := workflow.Run(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	plan := out.ChosenPlan()
	if plan == nil || plan.Args.MaxNumSeqs != 2 || len(plan.Compared) == 0 {
		t.Fatalf("plan: %s, not verified: %q", out.Plans[0].Verdict, out.NotVerified)
	}
	if got := out.Runs[0].Result.Conditions.Server.Args.MaxNumSeqs; got != 2 {
		t.Errorf("max_num_seqs %d is taken to be in force", got)
	}

	logs, err := filepath.Glob(filepath.Join(source.LogDir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range []func(*workflow.Options){
		func(o *workflow.Options) { o.Configs[0].MaxNumSeqs = 4 },
		func(o *workflow.Options) { o.Fixed.MaxNumSeqs = 4 },
	} {
		opt := options(t, t.TempDir())
		opt.Source = source
		change(&opt)
		var conflict *vllm.ConflictError
		if err := opt.Check(t.Context()); !errors.As(err, &conflict) || conflict.Flag != "--max-num-seqs" {
			t.Errorf("check says %v", err)
		}
		if _, err := workflow.Run(t.Context(), opt); !errors.As(err, &conflict) {
			t.Errorf("run says %v", err)
		}
	}
	if again, err := filepath.Glob(filepath.Join(source.LogDir, "*")); err != nil || len(again) != len(logs) {
		t.Errorf("servers were started: %v, %v", err, again)
	}
}

// What was measured is there although no cost model explains it: the server is much faster than its device could be.
func TestRunWithoutFit(t *testing.T) {
	opt := options(t, t.TempDir())
	opt.Source = running(t, harness.EngineArgs{MaxNumSeqs: 8}, 1e3, nil)
	opt.Model = model70B(t)
	out, err := workflow.Run(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	if !out.Partial || !strings.HasPrefix(out.Why, "fit: ") || len(out.Runs) != 2 || out.Chosen >= 0 || out.Cost != nil {
		t.Errorf("partial %v: %s; %d runs, chosen %d", out.Partial, out.Why, len(out.Runs), out.Chosen)
	}
	if part, _ := opt.Folder.Part("second"); part.State != archive.Done {
		t.Errorf("second is %q", part.State)
	}
}

func TestRunningServerIsNotReplanned(t *testing.T) {
	dir := t.TempDir()
	opt := options(t, dir)
	opt.Source = running(t, harness.EngineArgs{MaxNumSeqs: 1}, 1, nil) // 4 requests at once want more
	opt.Target = planner.Throughput
	opt.Configs = opt.Configs[:1]
	opt.Configs[0].BlockSize = 32
	out, err := workflow.Run(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	plan := out.ChosenPlan()
	if plan == nil || plan.Keep || plan.Args.MaxNumSeqs == 1 {
		t.Fatalf("plan: %s", out.Plans[0].Verdict)
	}
	if out.Partial || len(out.Runs) != 1 || len(plan.Compared) != 0 ||
		!strings.Contains(out.NotVerified, "first: the running server keeps its settings") {
		t.Errorf("partial %v, %d runs, not verified: %q", out.Partial, len(out.Runs), out.NotVerified)
	}
	if got := strings.Join(out.Runs[0].Result.Warnings, "\n"); !strings.Contains(got,
		"block_size 32 was asked for, the server has 16") {
		t.Errorf("warnings %q", got)
	}

	// The stage alone, too, measures only what the server has.
	if _, err := opt.Verify(t.Context(), out.Plans[0].Config, plan); !errors.Is(err, workflow.ErrNotRestartable) ||
		!strings.Contains(err.Error(), "max_num_seqs") {
		t.Errorf("verify: %v", err)
	}
	base := out.Plans[0].Baseline
	run, err := opt.Verify(t.Context(), out.Plans[0].Config, &base)
	if err != nil {
		t.Fatal(err)
	}
	if run.Result.Partial || len(base.Compared) == 0 || run.Result.Name != "first_verify" {
		t.Errorf("%s: %d figures compared", run.Result.Name, len(base.Compared))
	}
}

// A vLLM does not state all settings: those that the user says it has are taken, and a plan is measured on it when it
// has what it states.
func TestVerifyOnAServerThatSaysLittle(t *testing.T) {
	source := running(t, harness.EngineArgs{MaxNumSeqs: 3}, 1, likeVLLM)
	opt := options(t, t.TempDir())
	opt.Source, opt.Current = source, harness.EngineArgs{MaxNumSeqs: 3}
	opt.Configs = opt.Configs[:1]
	out, err := workflow.Run(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	res := out.Runs[0].Result
	if res.Origin != harness.OriginMeasured || res.Conditions.Server.Args.MaxNumSeqs != 3 ||
		out.Plans[0].Baseline.Args.MaxNumSeqs != 3 {
		t.Errorf("origin %s, settings %+v", res.Origin, res.Conditions.Server.Args)
	}
	plan := out.Plans[0].Plans[0]
	plan.Args = out.Plans[0].Baseline.Args
	plan.Args.MaxNumSeqs = 8
	run, err := opt.Verify(t.Context(), out.Plans[0].Config, &plan)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(run.Result.Warnings, "\n"); !strings.Contains(got,
		"does not state its max_num_batched_tokens, max_num_seqs") {
		t.Errorf("warnings %q", got)
	}
	plan.Args.BlockSize = 64
	if _, err := opt.Verify(t.Context(), out.Plans[0].Config, &plan); !errors.Is(err, workflow.ErrNotRestartable) ||
		!strings.Contains(err.Error(), "block_size 64") {
		t.Errorf("another block size: %v", err)
	}
}

// busy reports requests of others in an engine's metrics.
func busy(h http.Handler) http.Handler {
	gauge := regexp.MustCompile(`(?m)^(vllm:num_requests_running\{.*\}) 0$`)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/metrics" {
			h.ServeHTTP(w, r)
			return
		}
		page := httptest.NewRecorder()
		r.Header.Del("Accept-Encoding")
		h.ServeHTTP(page, r)
		w.Header().Set("Content-Type", page.Header().Get("Content-Type"))
		_, _ = w.Write(gauge.ReplaceAll(page.Body.Bytes(), []byte("$1 3"))) // a client that is gone does not read it
	})
}

func TestProbesRefuseABusyServer(t *testing.T) {
	source := running(t, harness.EngineArgs{MaxNumSeqs: 8}, 1e3, busy)
	opt := options(t, t.TempDir())
	opt.Source = source
	_, err := opt.ProfileWithProbes(t.Context(), opt.Configs[0], true)
	var other *workflow.BusyError
	if !errors.As(err, &other) || other.Requests != 3 || !strings.Contains(err.Error(), "--shared-server") {
		t.Fatalf("probes: %v", err)
	}
	if parts := opt.Folder.Parts(); len(parts) != 0 {
		t.Errorf("parts %v", parts)
	}
	if out, err := opt.Profile(t.Context(), opt.Configs[0]); err != nil || out.Result.Partial {
		t.Errorf("a profile, which may share: %v", err)
	}
	opt.SharedServer = true
	outs, err := opt.ProfileWithProbes(t.Context(), opt.Configs[0], true)
	if err != nil || len(outs) != 2 || outs[0].Result.Name != "probes" || outs[1].Result.Name != "first" {
		t.Errorf("shared: %v, %d results", err, len(outs))
	}
}

func TestBudgetThatIsTooSmall(t *testing.T) {
	opt := options(t, t.TempDir())
	opt.Source = &workflow.Launched{Argv: []string{"/no/such/program"}, Model: "gpt2", LogDir: t.TempDir()}
	opt.Budget = 4 * time.Minute
	opt.OnStage = func(text string) { t.Errorf("begun: %s", text) }
	check := func(err error) {
		t.Helper()
		var budget *workflow.BudgetError
		if !errors.As(err, &budget) {
			t.Fatal(err)
		}
		// Two configurations and the verification.
		if n := budget.Needed; n.Starts != 3 || n.Starting != 270*time.Second || n.Requests <= 0 ||
			n.Total() != n.Starting+n.Requests {
			t.Errorf("needed %+v", n)
		}
		for _, want := range []string{"a budget of 4m0s is too small", "3 server starts, about 4m3", "allow at least 4m3"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q lacks %q", err, want)
			}
		}
	}
	check(opt.Check(t.Context()))
	_, err := workflow.Run(t.Context(), opt)
	check(err)
	var told stages
	opt.OnStage = told.add
	if _, done, err := opt.Begin(t.Context(), workflow.Work{Configs: opt.Configs}); err != nil ||
		!told.has("2 server starts, about 3m") {
		t.Errorf("two starts are within the budget: %v, %q", err, told.told)
	} else {
		done()
	}
	opt.Quick = false // every plan is verified
	var budget *workflow.BudgetError
	if err := opt.Check(t.Context()); !errors.As(err, &budget) || budget.Needed.Starts != 4 {
		t.Errorf("%v", err)
	}
	opt.Budget, opt.Quick = time.Hour, true
	if err := opt.Check(t.Context()); err != nil {
		t.Errorf("an hour: %v", err)
	}
}

// A budget that was thought to be enough ends the work where it is used up; what was measured is kept.
func TestBudgetThatIsUsedUp(t *testing.T) {
	dir := t.TempDir()
	opt := options(t, dir)
	opt.Source = running(t, harness.EngineArgs{MaxNumSeqs: 8}, 0.001, nil) // a step takes seconds
	opt.Budget = 2 * time.Second
	out, err := workflow.Run(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	if !out.Partial || out.Why != "the budget of 2s is used up" || out.Cost != nil {
		t.Errorf("partial %v: %s", out.Partial, out.Why)
	}
	if part, _ := opt.Folder.Part("probes"); part.State != archive.Partial {
		t.Errorf("probes are %q", part.State)
	}
	if res, err := opt.Folder.Result("probes"); err != nil || !strings.Contains(res.Why, "budget") {
		t.Errorf("%v, %+v", err, res)
	}
}

func TestEstimate(t *testing.T) {
	tests := []struct {
		e    workflow.Estimate
		want string
	}{
		{workflow.Estimate{Requests: 1500 * time.Millisecond}, "about 2s of requests"},
		{workflow.Estimate{Starts: 1, Starting: 90 * time.Second, Requests: 30 * time.Second},
			"1 server start, about 2m0s in all: 1m30s in which no server answers (90 s per start), 30s of requests"},
		{workflow.Estimate{Starts: 3, Starting: 270 * time.Second, Requests: time.Hour},
			"3 server starts, about 1h4m30s in all: 4m30s in which no server answers (90 s per start), 1h0m0s of requests"},
	}
	for _, tt := range tests {
		if got := tt.e.String(); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}
