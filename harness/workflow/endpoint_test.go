package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kvtune/harness"
	"kvtune/harness/vllm"
	"kvtune/harness/vllmflags"
	"kvtune/harness/workflow"
)

func TestLegal(t *testing.T) {
	for _, name := range []string{"H200", "L4", "CPU"} {
		args, notes, err := workflow.Legal(harness.EngineArgs{}, workflow.EngineVersion, gpu(t, name))
		if err != nil || len(notes) != 0 {
			t.Errorf("%s: %v, notes %q", name, err, notes)
		}
		defaults := vllmflags.Defaults(workflow.EngineVersion, workflow.DeviceOf(gpu(t, name)))
		if !args.Equal(defaults) {
			t.Errorf("%s: nothing set gives %+v, want vLLM's defaults %+v", name, args, defaults)
		}
		again, notes, err := workflow.Legal(args, workflow.EngineVersion, gpu(t, name))
		if err != nil || len(notes) != 0 || !again.Equal(args) {
			t.Errorf("%s: legal settings do not stay: %v, %q, %+v", name, err, notes, again)
		}
	}
	args, notes, err := workflow.Legal(harness.EngineArgs{BlockSize: 8, SwapSpace: 4, MaxNumSeqs: 7},
		workflow.EngineVersion, gpu(t, "H200"))
	if err != nil || args.BlockSize != 16 || args.SwapSpace != 0 || args.KVOffloadingSize != 4 || args.MaxNumSeqs != 7 {
		t.Errorf("%v, %+v", err, args)
	}
	if len(notes) != 2 || !strings.HasPrefix(notes[0], "block_size 8 replaced by 16") ||
		!strings.HasPrefix(notes[1], "swap_space 4 replaced by") {
		t.Errorf("notes %q", notes)
	}
	if _, _, err := workflow.Legal(harness.EngineArgs{SchedulingPolicy: "lottery"}, "", gpu(t, "H200")); err == nil ||
		!strings.Contains(err.Error(), "lottery") {
		t.Errorf("a policy that does not exist: %v", err)
	}
}

func TestEmbedded(t *testing.T) {
	source := workflow.Embedded{Model: gpt2(t), GPU: gpu(t, "L4"), Seed: 1,
		Base: harness.EngineArgs{MaxNumSeqs: 9, BlockSize: 32}}
	if !source.Restartable() || source.StartTime() != 0 {
		t.Error("an embedded engine starts with any settings at once")
	}
	ep, err := source.Start(t.Context(), harness.EngineArgs{BlockSize: 8, MaxNumBatchedTokens: 512})
	if err != nil {
		t.Fatal(err)
	}
	info := ep.Info()
	if a := info.Args; a.MaxNumSeqs != 9 || a.BlockSize != 16 || a.MaxNumBatchedTokens != 512 || a.MaxModelLen != 1024 {
		t.Errorf("settings in force %+v", a)
	}
	if !info.Simulated() || info.GPU != "L4" || info.MaxModelLen != 1024 || info.BlockSize != 16 || ep.Argv != nil {
		t.Errorf("server %+v, argv %q", info, ep.Argv)
	}
	if len(ep.Notes) != 1 || !strings.HasPrefix(ep.Notes[0], "block_size 8 replaced by 16") {
		t.Errorf("notes %q", ep.Notes)
	}
	if err := ep.Close(); err != nil {
		t.Error(err)
	}
	var gone *vllm.UnreachableError
	if _, err := vllm.Connect(t.Context(), ep.URL(), vllm.Options{}); !errors.As(err, &gone) {
		t.Errorf("a closed engine: %v", err)
	}

	wrong := harness.EngineArgs{SchedulingPolicy: "lottery"}
	if err := source.Check(wrong); err == nil {
		t.Error("Check accepts what Start refuses")
	}
	if _, err := source.Start(t.Context(), wrong); err == nil {
		t.Error("a policy that does not exist")
	}
}

func TestRunning(t *testing.T) {
	source := running(t, harness.EngineArgs{MaxNumSeqs: 8}, 1e3, likeVLLM)
	if source.Restartable() || source.StartTime() != 0 || source.Check(harness.EngineArgs{MaxNumSeqs: 9}) != nil {
		t.Error("a running server is what it is")
	}
	known := source
	known.Opts.Args = harness.EngineArgs{MaxNumSeqs: 8}
	const keeps = ": a running server keeps its settings (--launch starts one with others)"
	tests := []struct {
		name   string
		source workflow.Running
		asked  harness.EngineArgs
		notes  []string
	}{
		{"nothing", source, harness.EngineArgs{}, nil},
		{"what it has", source, harness.EngineArgs{BlockSize: 16, KVCacheDType: "auto"}, nil},
		{"a limit of the workload", source, harness.EngineArgs{MaxModelLen: 512}, nil},
		{"what it has otherwise", source, harness.EngineArgs{BlockSize: 32},
			[]string{"block_size 32 was asked for, the server has 16" + keeps}},
		{"what it does not state", source, harness.EngineArgs{MaxNumSeqs: 8, SchedulingPolicy: "priority"},
			[]string{"does not state its max_num_seqs, scheduling_policy"}},
		{"what is known of it", known, harness.EngineArgs{MaxNumSeqs: 8}, nil},
		{"what it is known to have otherwise", known, harness.EngineArgs{MaxNumSeqs: 9},
			[]string{"max_num_seqs 9 was asked for, the server has 8" + keeps}},
	}
	for _, tt := range tests {
		ep, err := tt.source.Start(t.Context(), tt.asked)
		if err != nil {
			t.Fatal(err)
		}
		if len(ep.Notes) != len(tt.notes) {
			t.Errorf("%s: notes %q, want %q", tt.name, ep.Notes, tt.notes)
			continue
		}
		for i, note := range tt.notes {
			if !strings.Contains(ep.Notes[i], note) {
				t.Errorf("%s: note %q, want %q", tt.name, ep.Notes[i], note)
			}
		}
		if err := ep.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := vllm.Connect(t.Context(), source.URL, vllm.Options{}); err != nil {
		t.Errorf("Close stopped a server that somebody else started: %v", err)
	}
	var gone *vllm.UnreachableError
	nobody := workflow.Running{URL: "http://127.0.0.1:1"}
	if _, err := nobody.Start(t.Context(), harness.EngineArgs{}); !errors.As(err, &gone) {
		t.Errorf("nobody there: %v", err)
	}
}

func TestLaunched(t *testing.T) {
	source := launched(t)
	source.Extra = []string{"--enforce-eager", "--load-format", "dummy"}
	pid := filepath.Join(t.TempDir(), "pid")
	t.Setenv(pidFile, pid)
	source.StopCommand = []string{"sh", "-c", fmt.Sprintf("kill $(cat %s) && rm %s", pid, pid)}
	if !source.Restartable() || source.StartTime() <= 0 {
		t.Error("a launched server has any settings, and its start takes time")
	}
	ep, err := source.Start(t.Context(), harness.EngineArgs{BlockSize: 8, MaxNumSeqs: 12})
	if err != nil {
		t.Fatal(err)
	}
	for _, words := range []string{"gpt2", "--block-size 16", "--max-num-seqs 12", "--enforce-eager --load-format dummy"} {
		if !strings.Contains(strings.Join(ep.Argv, " ")+" ", " "+words+" ") {
			t.Errorf("argv %q lacks %q", ep.Argv, words)
		}
	}
	info := ep.Info()
	if a := info.Args; a.MaxNumSeqs != 12 || a.BlockSize != 16 || a.EnforceEager == nil || !*a.EnforceEager {
		t.Errorf("settings in force %+v", a)
	}
	if info.Simulated() || info.Version != workflow.EngineVersion {
		t.Errorf("server %+v", info)
	}
	if len(ep.Notes) != 1 || !strings.HasPrefix(ep.Notes[0], "block_size 8 replaced by 16") {
		t.Errorf("notes %q", ep.Notes)
	}
	if _, err := os.Stat(pid); err != nil {
		t.Error(err)
	}
	if err := ep.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(pid); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the stop command was not run: %v", err)
	}
	if log, err := os.ReadFile(filepath.Join(source.LogDir, "server_1.log")); err != nil {
		t.Errorf("the log is not kept: %v, %q", err, log)
	}

	var died *vllm.DiedError
	if _, err := source.Start(t.Context(), harness.EngineArgs{MaxNumSeqs: diesAtStart}); !errors.As(err, &died) ||
		!strings.Contains(err.Error(), "unlucky number") || !strings.Contains(err.Error(), "server_2.log") {
		t.Errorf("a server that dies: %v", err)
	}
	source.StopCommand = nil
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := source.Start(ctx, harness.EngineArgs{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// A server that runs out of memory is started again with less, and what was lowered is on record.
func TestLaunchedStepsDown(t *testing.T) {
	source := launched(t)
	var told []string
	source.OnRetry = func(text string) { told = append(told, text) }
	ep, err := source.Start(t.Context(), harness.EngineArgs{MaxNumSeqs: outOfMemory})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := ep.Close(); err != nil {
			t.Error(err)
		}
	}()
	want := []string{
		"the server did not start as asked, it ran out of memory (server_1.log): gpu_memory_utilization 0.92 -> 0.87",
		"the server did not start as asked, it ran out of memory (server_2.log): gpu_memory_utilization 0.87 -> 0.82",
	}
	if !slices.Equal(told, want) || !slices.Equal(ep.Notes[:2], want) {
		t.Errorf("told %q, notes %q", told, ep.Notes)
	}
	if got := ep.Info().Args.GPUMemoryUtilization; got != 0.82 || !slices.Contains(ep.Argv, "0.82") {
		t.Errorf("it runs with %g, started by %q", got, ep.Argv)
	}
	// A flag that the user pins is not lowered.
	source.Extra = []string{"--gpu-memory-utilization", "0.9"}
	var died *vllm.DiedError
	if _, err := source.Start(t.Context(), harness.EngineArgs{MaxNumSeqs: outOfMemory}); !errors.As(err, &died) ||
		died.Cause != vllm.CauseMemory {
		t.Errorf("pinned: %v", err)
	}
}

func TestLaunchedConflicts(t *testing.T) {
	on, off := true, false
	tests := []struct {
		extra    []string
		args     harness.EngineArgs
		conflict string // "" for none
	}{
		{nil, harness.EngineArgs{MaxNumSeqs: 8}, ""},
		{[]string{"--load-format", "dummy"}, harness.EngineArgs{MaxNumSeqs: 8}, ""},
		{[]string{"--max-num-seqs", "9"}, harness.EngineArgs{BlockSize: 16}, ""},
		{[]string{"--max-num-seqs", "9"}, harness.EngineArgs{MaxNumSeqs: 8}, "--max-num-seqs"},
		{[]string{"--max_num_seqs=9"}, harness.EngineArgs{MaxNumSeqs: 8}, "--max-num-seqs"},
		{[]string{"--max-num-seqs=8"}, harness.EngineArgs{MaxNumSeqs: 8}, ""}, // agrees
		{[]string{"--no-enable-prefix-caching"}, harness.EngineArgs{EnablePrefixCaching: &on}, "--no-enable-prefix-caching"},
		{[]string{"--no-enable-prefix-caching"}, harness.EngineArgs{EnablePrefixCaching: &off}, ""},
	}
	for _, tt := range tests {
		l := &workflow.Launched{Argv: []string{"/no/such/program"}, Model: "gpt2", Extra: tt.extra, LogDir: t.TempDir()}
		err := l.Check(tt.args)
		var conflict *vllm.ConflictError
		if found := errors.As(err, &conflict); found != (tt.conflict != "") || !found && err != nil ||
			found && conflict.Flag != tt.conflict {
			t.Errorf("%q with %+v: %v, want a conflict in %q", tt.extra, tt.args, err, tt.conflict)
		}
		if tt.conflict != "" {
			if _, err := l.Start(t.Context(), tt.args); !errors.As(err, &conflict) {
				t.Errorf("start: %v", err)
			}
		}
		if files, _ := os.ReadDir(l.LogDir); len(files) != 0 {
			t.Errorf("something was started: %v", files)
		}
	}
	l := &workflow.Launched{Extra: []string{"--max-num-seqs", "many"}}
	if err := l.Check(harness.EngineArgs{}); err == nil || !strings.Contains(err.Error(), "many") {
		t.Errorf("a value that is no number: %v", err)
	}
	l.Extra = []string{"--load-format", "dummy", "--skip-tokenizer-init", "--dtype", "bfloat16", "--enforce-eager",
		"--max-num-seqs", "9"}
	if pinned, err := l.Pinned(); err != nil || !pinned.Equal(harness.EngineArgs{MaxNumSeqs: 9, EnforceEager: &on}) {
		t.Errorf("pinned: %v, %+v", err, pinned)
	}
}

// A plan whose flags are passed to a server runs with all of the plan's settings.
func TestVerificationHasThePlansSettings(t *testing.T) {
	setup := workflow.Setup{Model: gpt2(t), GPU: gpu(t, "L4")}
	basis, err := workflow.OnPaper(small("x", 200), setup.Model, setup.GPU, nil)
	if err != nil {
		t.Fatal(err)
	}
	plans, err := basis.Plan(t.Context(), workflow.PlanOptions{Quick: true, Current: harness.EngineArgs{MaxNumSeqs: 2}})
	if err != nil {
		t.Fatal(err)
	}
	changed := 0
	for i := range plans.Plans {
		plan := &plans.Plans[i]
		changed += len(plan.Changed)
		cfg, err := setup.Verification(plans.Config, plan)
		if err != nil {
			t.Fatal(err)
		}
		if cfg.Name != "x_verify" || cfg.C != 200 || cfg.B != 4 {
			t.Errorf("%s: another workload: %+v", plan.Strategy, cfg)
		}
		got, notes, err := workflow.Legal(cfg.EngineArgs, workflow.EngineVersion, setup.GPU)
		if err != nil || len(notes) > 0 || !got.Equal(plan.Args) {
			t.Errorf("%s: %v, %q: runs with %+v, the plan has %+v", plan.Strategy, err, notes, got, plan.Args)
		}
		argv, _, err := vllmflags.Argv(cfg.EngineArgs, workflow.EngineVersion, workflow.DeviceOf(setup.GPU))
		if err != nil || !slices.Equal(argv, plan.Launch[3:]) {
			t.Errorf("%s: %v: verified with %q, the plan says %q", plan.Strategy, err, argv, plan.Launch)
		}
	}
	if changed == 0 {
		t.Error("no plan changes a thing: nothing was tested")
	}
}
