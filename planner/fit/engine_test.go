package fit_test

import (
	"math"
	"testing"

	"kvtune/harness"
	"kvtune/harness/profile"
	"kvtune/harness/workload"
	"kvtune/planner/cost"
	"kvtune/planner/engine"
	"kvtune/planner/fit"
	"kvtune/planner/sim"
	"kvtune/planner/spec"
)

// The embedded engine's device is hidden and has terms that the cost model lacks. What it does with other traffic is
// predicted from its requests alone.
func TestPredictsAnEngineFromItsRequests(t *testing.T) {
	gpu, err := spec.FindGPU("H200")
	if err != nil {
		t.Fatal(err)
	}
	model, yes := spec.Default(), true
	args := harness.EngineArgs{
		MaxNumBatchedTokens: 8192, MaxNumSeqs: 256, BlockSize: 16, MaxModelLen: 16384, GPUMemoryUtilization: 0.92,
		AsyncScheduling: &yes,
	}
	prior := cost.Prior(gpu, model, args)
	profiles := []*workload.Workload{
		build(t, workload.Spec{C: 1024, B: 8, Type: "prefill", NumMeasurements: 3}),
		build(t, workload.Spec{C: 1024, B: 32, Type: "decode", OutputLen: "48", NumMeasurements: 2}),
		build(t, workload.Spec{C: 512, B: 16, Type: "mixed", NumMeasurements: 3}),
	}
	for seed := range uint64(4) {
		e, err := engine.New(engine.Options{Model: model, GPU: gpu, Args: args, NumGPUBlocks: 57489, Seed: seed})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = e.Close() })
		var runs []fit.Run
		for _, w := range profiles {
			out, err := e.Virtual(t.Context(), w)
			if err != nil {
				t.Fatal(err)
			}
			runs = append(runs, fit.Run{Name: "profile", Records: out.Records, Args: args, NumGPUBlocks: 57489})
		}
		m, err := fit.FromRuns(t.Context(), prior, runs, fit.Options{Seed: seed})
		if err != nil {
			t.Fatal(err)
		}
		before, after := 0.0, 0.0
		cells := []workload.Spec{
			{C: 700, Rate: "8", NumRequests: 100, OutputLen: "20:300", Type: "mixed", B: 1},
			{C: 2000, Concurrency: 24, NumRequests: 100, OutputLen: "20:200", Type: "mixed", B: 1},
		}
		for _, s := range cells {
			w := build(t, s)
			truth, err := e.Virtual(t.Context(), w)
			if err != nil {
				t.Fatal(err)
			}
			before += off(t, args, prior, w, truth)
			after += off(t, args, m, w, truth)
		}
		before, after = before/float64(len(cells)), after/float64(len(cells))
		t.Logf("seed %d: end to end off by %.1f %%, by the prior %.1f %%; steps held out %.1f %% of %d",
			seed, 100*after, 100*before, 100*m.Errors.Mean, m.Errors.Observations)
		if after > 0.06 || after >= before && before > 0.03 {
			t.Errorf("seed %d: end to end off by %.1f %%, by the prior %.1f %%", seed, 100*after, 100*before)
		}
	}
}

func build(t *testing.T, s workload.Spec) *workload.Workload {
	t.Helper()
	w, err := s.Build()
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// off is the mean relative error of a model's end-to-end times, request by request.
func off(t *testing.T, args harness.EngineArgs, m *cost.Model, w *workload.Workload, truth *sim.Outcome) float64 {
	t.Helper()
	cfg, err := sim.FromArgs(args, 57489)
	if err != nil {
		t.Fatal(err)
	}
	cfg.FrontEnd = m.FrontEnd
	out, err := sim.Run(t.Context(), cfg, m, w, sim.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var sum float64
	for i := range truth.Records {
		real := truth.Records[i].End() - truth.Records[i].Sent
		sum += math.Abs(float64(out.Records[i].End()-out.Records[i].Sent)/float64(real) - 1)
	}
	return sum / float64(len(truth.Records))
}

// What the KV that several requests read costs comes out of the probes: a device that reads it at a third of the usual
// time is told from one that does not care.
func TestSharedContextFromTheProbes(t *testing.T) {
	gpu, err := spec.FindGPU("H200")
	if err != nil {
		t.Fatal(err)
	}
	args := harness.EngineArgs{MaxNumBatchedTokens: 8192, MaxNumSeqs: 256, BlockSize: 16, MaxModelLen: 16384}
	prior := cost.Prior(gpu, spec.Default(), args)
	info := harness.ServerInfo{MaxModelLen: 16384, BlockSize: 16, NumGPUBlocks: 57489, Args: args}
	cfg, err := sim.FromArgs(args, info.NumGPUBlocks)
	if err != nil {
		t.Fatal(err)
	}
	cfg.FrontEnd = prior.FrontEnd
	for _, share := range []float64{0.33, 1} {
		values := make([]float64, len(prior.Coefficients))
		at, own := 0, 0.0
		for i, c := range prior.Coefficients {
			values[i] = c.Value
			switch c.Name {
			case "decode_context":
				own = c.Value
			case "shared_context":
				at = i
			}
		}
		values[at] = share * own
		truth, err := prior.With(values)
		if err != nil {
			t.Fatal(err)
		}
		w := profile.Probes(info, 1, false)
		out, err := sim.Run(t.Context(), cfg, truth, w, sim.Options{})
		if err != nil {
			t.Fatal(err)
		}
		m, err := fit.FromRuns(t.Context(), prior,
			[]fit.Run{{Name: "probes", Records: out.Records, Args: args, NumGPUBlocks: info.NumGPUBlocks}}, fit.Options{})
		if err != nil {
			t.Fatal(err)
		}
		c := m.Coefficients[at]
		if math.Abs(c.Value/(share*own)-1) > 0.1 || c.Low > share*own || c.High < share*own {
			t.Errorf("shared context costs %.3g (%.3g to %.3g) s a token, want %.3g", c.Value, c.Low, c.High, share*own)
		}
	}
}

// Requests that fill the KV cache until some are preempted tell what decoding costs up to there: the steps that run
// again what a preempted request had are told from those of pure decode, and prompts are left out.
func TestDecodesOfAFullCache(t *testing.T) {
	gpu, err := spec.FindGPU("H200")
	if err != nil {
		t.Fatal(err)
	}
	args := harness.EngineArgs{MaxNumBatchedTokens: 8192, MaxNumSeqs: 256, BlockSize: 16, MaxModelLen: 16384}
	model := spec.Default()
	prior := cost.Prior(gpu, model, args)
	info := harness.ServerInfo{MaxModelLen: 16384, BlockSize: 16, NumGPUBlocks: 20000, Args: args}
	cfg, err := sim.FromArgs(args, info.NumGPUBlocks)
	if err != nil {
		t.Fatal(err)
	}
	cfg.FrontEnd = prior.FrontEnd
	values := make([]float64, len(prior.Coefficients))
	for i, c := range prior.Coefficients {
		if values[i] = c.Value; c.Name == "decode_context" {
			values[i] *= 1.3
		}
	}
	truth, err := prior.With(values)
	if err != nil {
		t.Fatal(err)
	}
	out, err := sim.Run(t.Context(), cfg, truth, profile.Capacity(info, 1), sim.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if out.Counters[harness.CounterPreemptions] == 0 {
		t.Fatal("nothing was preempted")
	}
	run := fit.Run{Name: "capacity", Records: out.Records, Args: args, NumGPUBlocks: info.NumGPUBlocks, DecodesOnly: true}
	m, err := fit.FromRuns(t.Context(), prior, []fit.Run{run}, fit.Options{})
	if err != nil {
		t.Fatal(err)
	}
	full := (info.NumGPUBlocks - 1) * info.BlockSize
	if r := m.Range; r.Prefill || r.Mixed || float64(r.DecodeContext) < 0.98*float64(full) || r.DecodeContext > full {
		t.Errorf("fitted on %+v, the cache holds %d tokens", r, full)
	}
	step := cost.Step{DecodeSeqs: 256, DecodeContext: full * 97 / 100}
	if got, want := m.StepTime(step).Seconds(), truth.StepTime(step).Seconds(); math.Abs(got/want-1) > 0.01 {
		t.Errorf("a step at 97 %% of the cache takes %.4g s, want %.4g; the prior says %.4g", got, want,
			prior.StepTime(step).Seconds())
	}
}
