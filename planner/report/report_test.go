package report

import (
	"context"
	"testing"

	"kvtune/harness"
	"kvtune/harness/vllmflags"
	"kvtune/harness/workload"
	"kvtune/planner"
	"kvtune/planner/analysis"
	"kvtune/planner/cost"
	"kvtune/planner/sim"
	"kvtune/planner/spec"
)

// demo is a report on simulated runs of an L4: what `kvtune workflow` would hand over.
func demo(t testing.TB) Input {
	t.Helper()
	ctx := context.Background()
	gpu, err := spec.FindGPU("L4")
	if err != nil {
		t.Fatal(err)
	}
	model, err := spec.FindModel("meta-llama/Llama-3.2-3B")
	if err != nil {
		t.Fatal(err)
	}
	in := Input{
		Title: "meta-llama/Llama-3.2-3B on L4", Verdict: "KEEP your settings (balanced): the gain is within noise",
		Files: []string{"results/report.html"}, Commands: []string{"kvtune workflow --quick-test --output-dir results"},
	}
	for i, c := range []struct {
		name    string
		c, m, b int
		rate    string
	}{{"low-latency", 256, 16, 16, "6"}, {"high-throughput", 1024, 64, 96, ""}, {"memory-efficient", 512, 32, 32, ""}} {
		args := vllmflags.Resolve(harness.EngineArgs{MaxModelLen: 4096, NumGPUBlocksOverride: 4000 - 1200*i}, "0.32.0",
			vllmflags.Device{Name: gpu.Name, Memory: gpu.Memory})
		in.Cost = cost.Prior(gpu, model, args)
		cfg, err := sim.FromArgs(args, 0)
		if err != nil {
			t.Fatal(err)
		}
		w, err := workload.Spec{C: c.c, M: c.m, B: c.b, BlockSize: args.BlockSize, Type: "mixed", NumMeasurements: 2, Rate: c.rate,
			MaxModelLen: 4096, Seed: 1}.Build()
		if err != nil {
			t.Fatal(err)
		}
		out, err := sim.Run(ctx, cfg, in.Cost, w, sim.Options{Steps: true, Series: true})
		if err != nil {
			t.Fatal(err)
		}
		info := harness.ServerInfo{Kind: harness.KindEmbedded, Version: "0.32.0", Model: model.Name, BlockSize: args.BlockSize,
			NumGPUBlocks: cfg.NumGPUBlocks, KVBytesPerToken: model.KVBytesPerToken("auto", 1), Args: args, GPU: gpu.Name}
		res := &harness.Result{
			Schema: harness.ResultSchema, Name: c.name, Origin: harness.OriginSimulated,
			Config:     harness.Config{C: c.c, M: c.m, B: c.b, EngineArgs: args, ProfilingType: harness.Mixed, Rate: c.rate},
			Conditions: harness.Conditions{Server: info, Seed: 1, Tool: "kvtune test"},
			Metrics:    append(harness.Measure(out.Records), harness.Observe(info, out.Counters, out.Series)...),
			Counters:   out.Counters,
		}
		run := Run{Result: res, Records: out.Records, Steps: out.Steps, Series: out.Series}
		run.Analysis = analysis.Analyze(ctx, analysis.Input{Result: res, Records: out.Records, Steps: out.Steps, Series: out.Series,
			Workload: w, Server: analysis.Server{Args: args, NumGPUBlocks: cfg.NumGPUBlocks, GPU: &gpu, Model: &model, Cost: in.Cost}})
		in.Runs = append(in.Runs, run)
		if i > 0 {
			continue
		}
		in.Plans, err = planner.Make(ctx, planner.Request{
			Server: analysis.Server{Args: args, NumGPUBlocks: cfg.NumGPUBlocks, GPU: &gpu, Model: &model, Cost: in.Cost},
			Model:  model.Name, Version: "0.32.0", Seed: 1,
			Workload: func(uint64) (*workload.Workload, error) { return w, nil },
			Options: planner.Options{Budget: 200, Requests: 20, Replicas: 2, Axes: []planner.Axis{
				{Flag: "max_num_seqs", Values: []string{"8", "256"}}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		in.Plans.Plans[0].SetMeasured(res)
	}
	return in
}
