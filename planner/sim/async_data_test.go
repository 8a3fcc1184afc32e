package sim_test

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/workload"
	"kvtune/planner/cost"
	"kvtune/planner/fit"
	"kvtune/planner/sim"
	"kvtune/planner/spec"
)

// recorded opens a file of a server with asynchronous scheduling (vLLM 0.26 on an H200).
func recorded(t *testing.T, name string) *os.File {
	t.Helper()
	root := os.Getenv("KVTUNE_DATA")
	if root == "" {
		root = filepath.Join("..", "..", "..", "shared", "data")
	}
	f, err := os.Open(filepath.Join(root, "vllm_h200", name))
	if err != nil {
		t.Skip("skipped: no data")
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// stepsToFirst is how many engine steps ended between the send of a request and its first token, that step included,
// on average over the requests that came while others were served. Tokens that arrive within 2 ms are of one step.
func stepsToFirst(records []workload.Record) float64 {
	var ends []time.Duration
	for i := range records {
		for _, e := range records[i].Tokens {
			ends = append(ends, records[i].Sent+e.At)
		}
	}
	slices.Sort(ends)
	starts := ends[:0]
	last := time.Duration(math.MinInt64 / 2)
	for _, at := range ends {
		if at-last > 2*time.Millisecond {
			starts = append(starts, at)
		}
		last = at
	}
	sum, n := 0, 0
	for i := range records {
		r := &records[i]
		if len(r.Tokens) == 0 || r.PromptTokens > 2000 {
			continue // a long prompt takes more steps of its own
		}
		from, _ := slices.BinarySearch(starts, r.Sent)
		to, _ := slices.BinarySearch(starts, r.Sent+r.Tokens[0].At+1)
		if from > 0 && r.Sent-starts[from-1] < 20*time.Millisecond { // the server was busy
			sum += to - from
			n++
		}
	}
	return float64(sum) / float64(n)
}

// A real server with asynchronous scheduling: a request that comes while a step runs is in the second batch from then
// on, since the next one is scheduled already. That is seen without any model of step times.
func TestAsyncSchedulingOnH200(t *testing.T) {
	probes, _, err := archive.ReadRequests(recorded(t, "probes_default_requests.jsonl.zst"))
	if err != nil {
		t.Fatal(err)
	}
	gpu, err := spec.FindGPU("H200")
	if err != nil {
		t.Fatal(err)
	}
	args := harness.EngineArgs{MaxNumBatchedTokens: 8192, MaxNumSeqs: 1024, BlockSize: 16, MaxModelLen: 16384}
	m, err := fit.FromRuns(t.Context(), cost.Prior(gpu, spec.Default(), args),
		[]fit.Run{{Name: "probes", Records: probes, Args: args}}, fit.Options{})
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := sim.FromArgs(args, 57489)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Release, cfg.FrontEnd = 26, m.FrontEnd
	for name, opt := range map[string]workload.TraceOptions{
		"rate10": {}, "rate20": {}, "conc64": {Concurrency: 60, Clients: 6},
	} {
		measured, _, err := archive.ReadRequests(recorded(t, "default_"+name+"_requests.jsonl.zst"))
		if err != nil {
			t.Fatal(err)
		}
		w, err := workload.ReadTrace(name, recorded(t, "default_"+name+"_requests.jsonl.zst"), opt)
		if err != nil {
			t.Fatal(err)
		}
		var off, steps [2]float64
		for k, async := range []bool{true, false} {
			cfg.AsyncScheduling = async
			out, err := sim.Run(t.Context(), cfg, m, w, sim.Options{})
			if err != nil {
				t.Fatal(err)
			}
			a, b := harness.Measure(measured), harness.Measure(out.Records)
			for _, metric := range []string{harness.MetricTTFT, harness.MetricTPOT, harness.MetricE2EL} {
				x, _ := a.Value(metric, "mean")
				y, _ := b.Value(metric, "mean")
				off[k] += math.Abs(y/x-1) / 3
			}
			steps[k] = stepsToFirst(out.Records)
		}
		want := stepsToFirst(measured)
		t.Logf("%s: off by %.1f %% (sync %.1f %%); steps to the first token: measured %.2f, simulated %.2f (sync %.2f)", name,
			100*off[0], 100*off[1], want, steps[0], steps[1])
		if off[0] > 0.12 || off[0] > off[1]/2 {
			t.Errorf("%s: TTFT, TPOT and E2EL are off by %.1f %% with asynchronous scheduling, %.1f %% without", name,
				100*off[0], 100*off[1])
		}
		if math.Abs(steps[0]-want) > 0.5 || math.Abs(steps[0]-want) > 0.6*math.Abs(steps[1]-want) {
			t.Errorf("%s: %.2f steps to the first token, measured %.2f; synchronous scheduling has %.2f", name, steps[0], want,
				steps[1])
		}
	}
}
