package profile_test

import (
	"math"
	"math/rand/v2"
	"testing"

	"kvtune/harness"
	"kvtune/harness/profile"
	"kvtune/harness/vllm"
	"kvtune/harness/workload"
	"kvtune/planner/engine"
)

// Whatever the server: the prompts fit its KV cache together, and with their outputs they do not.
func TestCapacityOverflows(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	made := 0
	for range 2000 {
		pick := func(values ...int) int { return values[rng.IntN(len(values))] }
		info := harness.ServerInfo{
			MaxModelLen: pick(0, 128, 1024, 4096, 16384), BlockSize: pick(0, 8, 16, 32, 128),
			NumGPUBlocks: pick(0, 3, 40, 401, 3000, 57489), Args: harness.EngineArgs{MaxNumSeqs: pick(0, 1, 8, 64, 1024)},
		}
		w := profile.Capacity(info, 1)
		if w == nil {
			continue
		}
		made++
		if err := w.Validate(); err != nil {
			t.Fatalf("%+v: %v", info, err)
		}
		prompts, all := 0, 0
		for i := range w.Requests {
			r := &w.Requests[i]
			prompts += (r.PromptTokens() + info.BlockSize - 1) / info.BlockSize
			all += (r.PromptTokens() + r.OutputTokens - 1 + info.BlockSize - 1) / info.BlockSize
			if info.MaxModelLen > 0 && r.PromptTokens()+r.OutputTokens > info.MaxModelLen {
				t.Fatalf("%+v: %d and %d tokens", info, r.PromptTokens(), r.OutputTokens)
			}
		}
		if usable := info.NumGPUBlocks - 1; prompts > usable || all <= usable {
			t.Fatalf("%+v: %d blocks of prompts, %d in the end, %d are usable", info, prompts, all, usable)
		}
	}
	if made < 100 {
		t.Errorf("only %d servers could be filled", made)
	}
}

// On a server whose cache is known: the capacity that is measured is the one that it has.
func TestCapacityOfAServer(t *testing.T) {
	const blocks, block = 401, 16
	srv := connect(t, serve(t, func(o *engine.Options) {
		o.NumGPUBlocks, o.Speed = blocks, 0.1
		o.Args.MaxNumSeqs = 8
	}, nil), vllm.Options{})
	info := srv.Info()
	info.Args.MaxNumSeqs = 8
	w := profile.Capacity(info, 1)
	if w == nil || len(w.Requests) != 8 {
		t.Fatalf("%+v: %v", info, w)
	}
	out, err := profile.Run(t.Context(), profile.Options{Server: srv, Config: harness.Config{Name: "capacity"},
		Workload: w, Name: "capacity"})
	if err != nil {
		t.Fatal(err)
	}
	if n := value(t, out.Result, harness.MetricPreemptions, ""); n == 0 {
		t.Errorf("nothing was preempted: %v", out.Result.Warnings)
	}
	got := value(t, out.Result, harness.MetricKVCapacity, "")
	if want := float64(block * (blocks - 1)); math.Abs(got/want-1) > 0.05 {
		t.Errorf("a capacity of %.0f tokens, the server has %.0f", got, want)
	}
	if onset := value(t, out.Result, harness.MetricPreemptionOnset, ""); onset < 0.9 || onset > 1 {
		t.Errorf("preemption set in at %.3f", onset)
	}
}

func TestIsolatesKnowsEveryProbe(t *testing.T) {
	info := harness.ServerInfo{MaxModelLen: 16384, BlockSize: 16, NumGPUBlocks: 60000}
	for _, w := range []*workload.Workload{profile.Probes(info, 1, false), profile.Capacity(info, 1)} {
		for i := range w.Requests {
			if profile.Isolates(w.Requests[i].Probe) == "" {
				t.Fatalf("%s isolates nothing", w.Requests[i].Probe)
			}
		}
	}
}
