package planner

import (
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"kvtune/harness"
	"kvtune/harness/workload"
)

// Every candidate that shares a simulation has, record by record, the outcome of its own: the search by shared
// simulations is the exhaustive one. Caches from far too small to roomy, limits from binding to never reached.
func TestSharedSimulationsAreExact(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	candidates, simulations := 0, 0
	for range 6 {
		shared, every, inFlight := rng.IntN(3)*512, time.Duration(rng.IntN(30))*time.Millisecond, 0
		if every == 0 {
			inFlight = 4 + rng.IntN(40)
		}
		req := request(t, load(50, shared, 50+rng.IntN(900), 5+rng.IntN(80), every, inFlight))
		req.Fixed.MaxModelLen = 4096
		req.Options = Options{Requests: 50, Replicas: 2}
		p, err := newPlanning(req)
		if err != nil {
			t.Fatal(err)
		}
		var all []*candidate
		for _, blocks := range []int{300, 900, 3000, 8000} {
			for _, tokens := range []int{256, 1024, 4096, 16384} {
				for _, seqs := range []int{4, 16, 64} {
					for _, chunked := range []bool{true, false} {
						args := p.base.Merge(req.Fixed)
						args.NumGPUBlocksOverride, args.MaxNumBatchedTokens, args.MaxNumSeqs = blocks, tokens, seqs
						args.EnableChunkedPrefill = &chunked
						if c := p.candidate(args); c != nil {
							all = append(all, c)
						}
					}
				}
			}
		}
		n, err := p.evaluate(t.Context(), all, 50)
		if err != nil {
			t.Fatal(err)
		}
		candidates, simulations = candidates+len(all), simulations+n
		for _, c := range all {
			alone, err := p.simulate(t.Context(), c, 0, p.work[0], false)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(alone.metrics, c.runs[0].metrics) {
				t.Fatalf("%+v: shared\n%+v\nalone\n%+v", c.cfg, c.runs[0], alone)
			}
		}
	}
	if 4*simulations > 3*candidates {
		t.Errorf("%d simulations for %d candidates: nothing is shared", simulations, candidates)
	}
}

// chat is a trace with the lengths of conversations and two classes of priorities.
func chat(n int, rate float64) func(uint64) (*workload.Workload, error) {
	return func(seed uint64) (*workload.Workload, error) {
		rng := rand.New(rand.NewPCG(seed, 7))
		w := &workload.Workload{BlockSize: 16}
		at := 0.0
		for i := range n {
			w.Requests = append(w.Requests, workload.Request{
				Index: i, After: -1, Due: time.Duration(at * 1e9), Priority: i % 2, Class: []string{"chat", "batch"}[i%2],
				Prompt:       []workload.Segment{{ID: uint64(i) + 1, Tokens: 32 + int(min(12e3, 900*rng.ExpFloat64()))}},
				OutputTokens: 8 + int(min(1500, 200*rng.ExpFloat64())),
			})
			at += rng.ExpFloat64() / rate
		}
		return w, nil
	}
}

// BenchmarkSweep is the search of 2,304 settings over 2,000 requests at a high load: every legal setting's outcome is
// known at the end (Search.Exhaustive), no winner can be missed.
func BenchmarkSweep(b *testing.B) {
	req := request(b, chat(2000, 24))
	req.Strategies = []Strategy{Latency}
	req.SLOs = []harness.SLO{{Metric: harness.MetricTTFT, Stat: harness.StatP99, Limit: 1}}
	req.Options = Options{Requests: 2000, Budget: 1 << 40, Replicas: 2, Axes: []Axis{
		{"max_num_batched_tokens", doublings(512, 65536)}, {"max_num_seqs", doublings(32, 1024)},
		{"block_size", doublings(16, 128)}, {"enable_chunked_prefill", []string{"true", "false"}},
		{"gpu_memory_utilization", []string{"0.8", "0.9", "0.95"}}, {"scheduling_policy", []string{"fcfs", "priority"}},
	}}
	req.Current = harness.EngineArgs{GPUMemoryUtilization: 0.9}
	settings, grid := 0, 0
	for b.Loop() {
		plans := mustMake(b, req)
		if !plans.Search.Exhaustive {
			b.Fatal(plans.Search.Statement)
		}
		settings, grid = settings+plans.Search.Candidates, 1
		for _, a := range plans.Search.Axes {
			grid *= len(a.Values)
		}
		b.Log(plans.Search.Statement, plans.Verdict)
	}
	b.ReportMetric(float64(grid), "settings")
	b.ReportMetric(float64(settings)/b.Elapsed().Seconds(), "legal-settings/s")
}
