package workflow_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"kvtune/harness"
	"kvtune/harness/vllmflags"
	"kvtune/harness/workflow"
	"kvtune/planner"
	"kvtune/planner/cost"
)

func TestBasisOfAResult(t *testing.T) {
	model, device := gpt2(t), gpu(t, "L4")
	off := false
	asked := harness.EngineArgs{MaxNumSeqs: 7, BlockSize: 8, SwapSpace: 4, MaxModelLen: 900}
	tests := []struct {
		name string
		info harness.ServerInfo
		want harness.EngineArgs // what differs from vLLM's defaults
	}{
		{"nothing is known: what was asked for", harness.ServerInfo{},
			harness.EngineArgs{MaxNumSeqs: 7, BlockSize: 8, MaxModelLen: 900}},
		{"the server states its cache: what was asked of the rest may not be in force",
			harness.ServerInfo{BlockSize: 32, MaxModelLen: 1024, EnablePrefixCaching: &off, GPUMemoryUtilization: 0.5,
				Args: harness.EngineArgs{BlockSize: 32, MaxModelLen: 1024, EnablePrefixCaching: &off, GPUMemoryUtilization: 0.5}},
			harness.EngineArgs{BlockSize: 32, MaxModelLen: 1024, EnablePrefixCaching: &off, GPUMemoryUtilization: 0.5}},
		{"it was launched: what is in force, and the server's word before it",
			harness.ServerInfo{BlockSize: 16, Args: harness.EngineArgs{MaxNumSeqs: 7, BlockSize: 8, MaxNumBatchedTokens: 512}},
			harness.EngineArgs{MaxNumSeqs: 7, BlockSize: 16, MaxNumBatchedTokens: 512}},
	}
	for _, tt := range tests {
		tt.info.NumGPUBlocks, tt.info.Version = 321, "0.26.0"
		res := &harness.Result{Config: harness.Config{C: 5, EngineArgs: asked},
			Conditions: harness.Conditions{Server: tt.info}}
		basis := workflow.BasisOf(res, model, device, nil)
		want := vllmflags.Resolve(tt.want, "0.26.0", workflow.DeviceOf(device))
		if !basis.Server.Args.Equal(want) {
			t.Errorf("%s: %+v, want %+v", tt.name, basis.Server.Args, want)
		}
		if basis.Server.NumGPUBlocks != 321 || basis.Server.Release != 26 || basis.Config.C != 5 ||
			basis.Info.Version != "0.26.0" {
			t.Errorf("%s: basis %+v", tt.name, basis)
		}
		if !reflect.DeepEqual(basis.Server.Cost, cost.Prior(device, model, want)) {
			t.Errorf("%s: without a cost model the prior stands", tt.name)
		}
	}
	fitted := cost.Prior(device, model, asked)
	if basis := workflow.BasisOf(&harness.Result{}, model, gpu(t, "CPU"), fitted); basis.Server.Cost != fitted ||
		basis.Server.GPU != nil {
		t.Errorf("on a CPU: %+v", basis.Server)
	}
}

func TestOnPaper(t *testing.T) {
	model, device := gpt2(t), gpu(t, "L4")
	cfg := small("paper", 64)
	cfg.EngineArgs = harness.EngineArgs{BlockSize: 8, MaxNumSeqs: 5}
	basis, err := workflow.OnPaper(cfg, model, device, nil)
	if err != nil {
		t.Fatal(err)
	}
	args, info := basis.Server.Args, basis.Info
	if args.BlockSize != 16 || args.MaxNumSeqs != 5 || args.MaxModelLen != 1024 || !info.Args.Equal(args) {
		t.Errorf("settings %+v, known %+v", args, info.Args)
	}
	if len(basis.Notes) != 1 || !strings.HasPrefix(basis.Notes[0], "block_size 8 replaced by 16") {
		t.Errorf("notes %q", basis.Notes)
	}
	mem, err := cost.Capacity(device, model, args)
	if err != nil || info.NumGPUBlocks != mem.Blocks || basis.Server.NumGPUBlocks != mem.Blocks || mem.Blocks == 0 {
		t.Errorf("%v: %d blocks, want %d", err, info.NumGPUBlocks, mem.Blocks)
	}
	if info.BlockSize != 16 || info.MaxModelLen != 1024 || !info.Simulated() || info.GPU != "L4" ||
		info.KVBytesPerToken == 0 {
		t.Errorf("server %+v", info)
	}
	cfg.NumGPUBlocksOverride = 99
	if basis, err = workflow.OnPaper(cfg, model, device, nil); err != nil || basis.Server.NumGPUBlocks != 99 {
		t.Errorf("%v, %d blocks, want those of the override", err, basis.Server.NumGPUBlocks)
	}
	cfg.SchedulingPolicy = "lottery"
	if _, err := workflow.OnPaper(cfg, model, device, nil); err == nil {
		t.Error("a policy that does not exist")
	}
	if _, err := workflow.OnPaper(small("large", 64), model70B(t), device, nil); err == nil ||
		!strings.Contains(err.Error(), "L4") {
		t.Errorf("a model that the GPU cannot hold: %v", err)
	}
}

func TestSimulateLaws(t *testing.T) {
	for _, kind := range []harness.ProfilingType{harness.Prefill, harness.Decode, harness.Mixed} {
		cfg := small("sim", 64)
		cfg.ProfilingType, cfg.BlockSize = kind, 8
		basis, err := workflow.OnPaper(cfg, gpt2(t), gpu(t, "L4"), nil)
		if err != nil {
			t.Fatal(err)
		}
		var before string
		for range 2 {
			run, err := basis.Simulate(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			res := run.Result
			if res.Origin != harness.OriginSimulated || res.Partial || res.Name != "sim" {
				t.Errorf("result %+v", res)
			}
			if ok, _ := res.Metrics.Value(harness.MetricRequests, harness.StatOK); ok != 4 {
				t.Errorf("%v requests succeeded", ok)
			}
			if hits := res.Counters["vllm:prefix_cache_hits_total"]; hits != 4*2*16 {
				t.Errorf("%v hit tokens", hits)
			}
			// The setting was replaced, and M counts other blocks than was asked for.
			if got := strings.Join(res.Warnings, "\n"); !strings.Contains(got, "block_size 8 replaced by 16") ||
				!strings.Contains(got, "M counts blocks of 16 tokens") {
				t.Errorf("warnings %q", got)
			}
			text, err := json.Marshal(run)
			if err != nil {
				t.Fatal(err)
			}
			if before != "" && before != string(text) {
				t.Error("the same simulation gives other bytes")
			}
			before = string(text)
		}
	}
}

// Block sizes that vLLM refuses become the nearest legal ones, once each.
func TestSweepCells(t *testing.T) {
	basis, err := workflow.OnPaper(small("sweep", 64), gpt2(t), gpu(t, "L4"), nil)
	if err != nil {
		t.Fatal(err)
	}
	cells := 0
	sweep, notes, err := basis.Sweep(t.Context(),
		workflow.PlanOptions{Strategies: []planner.Strategy{planner.Throughput}}, workflow.Grid{
			C: []int{16}, M: []int{0, 100}, B: []int{2}, BlockSize: []int{8, 16},
		}, func(done, total int) {
			if cells++; total != 2 || done != cells {
				t.Errorf("cell %d of %d", done, total)
			}
		})
	if err != nil {
		t.Fatal(err)
	}
	if len(sweep.Rows) != 2 || cells != 2 || len(notes) != 1 ||
		!strings.HasPrefix(notes[0], "block_size 8 replaced by 16") {
		t.Fatalf("%d rows, notes %q", len(sweep.Rows), notes)
	}
	if row := sweep.Rows[1]; row.M != 100 || row.BlockSize != 16 ||
		!strings.Contains(strings.Join(row.Notes, "\n"), "M scaled from 100") {
		t.Errorf("a cell that does not fit the context: %+v", row)
	}
}
