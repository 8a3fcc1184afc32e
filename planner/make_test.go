package planner

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"kvtune/harness"
	"kvtune/harness/vllmflags"
	"kvtune/harness/workload"
	"kvtune/planner/analysis"
	"kvtune/planner/cost"
	"kvtune/planner/spec"
)

// load is n requests with prompts and outputs drawn around the means, a shared prefix, and gaps of an open loop (every
// > 0) or a closed loop of inFlight.
func load(n, shared, prompt, output int, every time.Duration, inFlight int) func(uint64) (*workload.Workload, error) {
	return func(seed uint64) (*workload.Workload, error) {
		rng := rand.New(rand.NewPCG(seed, 1))
		w := &workload.Workload{BlockSize: 16, Concurrency: inFlight}
		var at time.Duration
		for i := range n {
			around := func(mean int) int { return max(1, mean/2+rng.IntN(max(1, mean))) }
			r := workload.Request{Index: i, After: -1, Due: at, SharedTokens: shared, OutputTokens: around(output)}
			if shared > 0 {
				r.Prompt = append(r.Prompt, workload.Segment{ID: 1, Tokens: shared})
			}
			r.Prompt = append(r.Prompt, workload.Segment{ID: uint64(1000 + i), Tokens: around(prompt)})
			w.Requests = append(w.Requests, r)
			at += time.Duration(rng.ExpFloat64() * float64(every))
		}
		return w, nil
	}
}

func server(t testing.TB) analysis.Server {
	t.Helper()
	gpu, err := spec.FindGPU("H200")
	if err != nil {
		t.Fatal(err)
	}
	model := spec.Default()
	args := vllmflags.Resolve(harness.EngineArgs{MaxModelLen: 16384}, "0.26.0", vllmflags.Device{Name: gpu.Name,
		Memory: gpu.Memory})
	return analysis.Server{Args: args, NumGPUBlocks: 57489, GPU: &gpu, Model: &model, Cost: cost.Prior(gpu, model, args)}
}

// small keeps the search small enough for a test.
var small = Options{Requests: 60, Replicas: 4, Axes: []Axis{
	{"max_num_batched_tokens", []string{"1024", "4096", "16384"}}, {"max_num_seqs", []string{"16", "64"}}, {"block_size",
		[]string{"32"}},
}}

func request(t testing.TB, work func(uint64) (*workload.Workload, error)) Request {
	return Request{Server: server(t), Version: "0.26.0", Model: "some/model", Workload: work, Seed: 1, Options: small}
}

func mustMake(t testing.TB, req Request) *Plans {
	t.Helper()
	plans, err := Make(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	return plans
}

// improves is the plan's own metric against the baseline's.
func improves(p *Plan) bool { return p.Keep || p.Gain != nil && p.Gain.Change >= 0 }

func TestNoPlanIsWorseThanTheBaseline(t *testing.T) {
	for _, current := range []harness.EngineArgs{{}, {MaxNumSeqs: 4, MaxNumBatchedTokens: 512}} {
		for name, work := range map[string]func(uint64) (*workload.Workload, error){
			"closed": load(60, 512, 400, 60, 0, 32), "open": load(60, 0, 300, 80, 20*time.Millisecond, 0),
		} {
			req := request(t, work)
			req.Current = current
			plans := mustMake(t, req)
			if len(plans.Plans) != len(Strategies()) {
				t.Fatalf("%d plans", len(plans.Plans))
			}
			for i := range plans.Plans {
				p := &plans.Plans[i]
				if !improves(p) && p.Strategy != Balanced {
					t.Errorf("%s, current %+v, %s: gain %+v", name, current.MaxNumSeqs, p.Strategy, p.Gain)
				}
				if p.Keep != (len(p.Changed) == 0) {
					t.Errorf("%s %s: keep %v with changes %+v", name, p.Strategy, p.Keep, p.Changed)
				}
				if p.Binding == "" || p.Why == "" || p.Launch[2] != "some/model" {
					t.Errorf("%s %s: %+v", name, p.Strategy, p)
				}
			}
			if (plans.Default != nil) != (current != harness.EngineArgs{}) {
				t.Errorf("%s: vLLM's defaults beside %s: %v", name, plans.Baseline.Strategy, plans.Default != nil)
			}
		}
	}
}

// Four sequences for 32 clients: every strategy that speed serves must raise the limit, and surely.
func TestRaisesALimitThatBinds(t *testing.T) {
	req := request(t, load(60, 0, 200, 60, 0, 32))
	req.Current = harness.EngineArgs{MaxNumSeqs: 4, MaxNumBatchedTokens: 1024}
	req.Strategies = []Strategy{Throughput, Latency, Balanced}
	plans := mustMake(t, req)
	if plans.Baseline.Binding != analysis.Scheduling || plans.Baseline.Limit != analysis.LimitMaxNumSeqs {
		t.Errorf("baseline: %s", plans.Baseline.BindingWhy)
	}
	for _, p := range plans.Plans {
		if p.Args.MaxNumSeqs <= 4 || !p.Gain.Sure() {
			t.Errorf("%s: max_num_seqs %d, gain %+v", p.Strategy, p.Args.MaxNumSeqs, p.Gain)
		}
		raised := func(c Change) bool { return c.Flag == "max_num_seqs" && c.From == "4" && c.Modelled }
		if !slices.ContainsFunc(p.Changed, raised) {
			t.Errorf("%s: changed %+v", p.Strategy, p.Changed)
		}
	}
	if !strings.HasPrefix(plans.Verdict, "CHANGE ") || !strings.Contains(plans.Verdict, "SIMULATED") {
		t.Errorf("verdict %q", plans.Verdict)
	}
}

func TestKeepsSettingsThatNothingBeats(t *testing.T) {
	req := request(t, load(30, 0, 64, 16, 500*time.Millisecond, 0))
	req.Strategies = []Strategy{Throughput}
	plans := mustMake(t, req)
	if p := plans.Plans[0]; !p.Keep || !strings.HasPrefix(plans.Verdict, "KEEP your settings") {
		t.Errorf("%s; gain %+v", plans.Verdict, p.Gain)
	}
	if plans.Plans[0].Binding != analysis.LightLoad {
		t.Errorf("binds: %s", plans.Plans[0].BindingWhy)
	}
}

func TestObeysSLOs(t *testing.T) {
	req := request(t, load(60, 0, 2000, 60, 0, 24))
	free := mustMake(t, req)
	itl, ok := free.Baseline.Predicted.Value(harness.MetricITL, harness.StatP99)
	if !ok {
		t.Fatal("no ITL predicted")
	}
	slo := harness.SLO{Metric: harness.MetricITL, Stat: harness.StatP99, Limit: itl / 2}
	req.SLOs = []harness.SLO{slo}
	plans := mustMake(t, req)
	if plans.Infeasible != nil {
		t.Fatal(plans.Verdict)
	}
	for _, p := range plans.Plans {
		if met, known := slo.Met(p.Predicted); !met || !known || !p.SLOs[0].Met {
			t.Errorf("%s misses %s: %+v", p.Strategy, slo, p.SLOs)
		}
	}

	slo.Limit = 1e-6
	req.SLOs = []harness.SLO{slo, {Metric: harness.MetricTTFT, Stat: harness.StatP99, Limit: 100}}
	plans = mustMake(t, req)
	in := plans.Infeasible
	if in == nil || in.SLO != slo.String() || len(plans.Plans) != 0 || *in.By < 1 || !strings.Contains(plans.Verdict,
		"NO FEASIBLE PLAN") {
		t.Fatalf("infeasible %+v, verdict %s", in, plans.Verdict)
	}
	if v, _ := in.Closest.Predicted.Value(slo.Metric, slo.Stat); v != *in.Best || in.Limit != slo.Limit {
		t.Errorf("closest has %g, said %g", v, *in.Best)
	}
}

func TestMaxRateIsWhereTheSLOEnds(t *testing.T) {
	req := request(t, load(60, 0, 1000, 40, 100*time.Millisecond, 0))
	req.SLOs = []harness.SLO{{Metric: harness.MetricTTFT, Stat: harness.StatP99, Limit: 0.5}}
	req.Strategies = []Strategy{Throughput}
	p := mustMake(t, req).Plans[0]
	if p.MaxRequestRate == nil || p.MaxRequestRate.Low > p.MaxRequestRate.Rate ||
		p.MaxRequestRate.High < p.MaxRequestRate.Rate {
		t.Fatalf("max rate %+v", p.MaxRequestRate)
	}
	pl, err := newPlanning(req)
	if err != nil {
		t.Fatal(err)
	}
	c := pl.candidate(p.Args)
	factor := p.MaxRequestRate.Rate / own(pl.work[0])
	for factor, want := range map[float64]bool{factor * 0.999: true, factor * 1.05: false} {
		o, err := pl.simulate(t.Context(), c, 0, faster(pl.work[0], factor), false)
		if err != nil {
			t.Fatal(err)
		}
		if (o.miss == 0) != want {
			t.Errorf("at %.3g times the rate the SLO is met: %v (%+v)", factor, o.miss == 0, o.slos)
		}
	}
	// Twice the capacity takes two replicas, a little more takes three; the price goes with the replicas.
	req.TargetRate, req.GPUPrice = 2*p.MaxRequestRate.Rate, 3
	d := mustMake(t, req).Plans[0].Deployment
	if d == nil || d.Replicas != 2 || d.ReplicasHigh < 2 || *d.PerHour != 6 || *d.PerMillion >= *d.PerMillionOutput {
		t.Errorf("deployment %+v", d)
	}
	req.TargetRate *= 1.01
	if d = mustMake(t, req).Plans[0].Deployment; d.Replicas != 3 || *d.PerHour != 9 {
		t.Errorf("deployment %+v", d)
	}
}

// An objective that does not see requests wait holds at any rate: the rate is what is served, then.
func TestMaxRateIsServed(t *testing.T) {
	req := request(t, load(60, 0, 1000, 40, 100*time.Millisecond, 0))
	req.Strategies = []Strategy{Throughput}
	req.TargetRate = 1
	served := mustMake(t, req).Baseline.MaxRequestRate
	req.SLOs = []harness.SLO{{Metric: harness.MetricTPOT, Stat: harness.StatP99, Limit: 10}}
	if got := mustMake(t, req).Baseline.MaxRequestRate; got == nil || *got != *served {
		t.Errorf("the objective holds up to %v request/s, served are %v", got, served)
	}
}

func TestPinnedSettingsAreLegal(t *testing.T) {
	req := request(t, load(60, 0, 200, 60, 0, 32))
	req.Strategies = []Strategy{Throughput}
	req.Fixed = harness.EngineArgs{MaxNumSeqs: 10_000, BlockSize: 17}
	plans := mustMake(t, req)
	if p := plans.Plans[0]; p.Args.BlockSize != 16 || p.Args.MaxNumSeqs != 10_000 || p.Args.MaxNumBatchedTokens < 10_000 {
		t.Errorf("%+v", p.Args)
	}
	if !strings.Contains(strings.Join(plans.Notes, "\n"), "block_size 17 replaced by 16") {
		t.Errorf("notes %q", plans.Notes)
	}
	for _, a := range plans.Search.Axes { // what a pinned flag needs of another is not pinned
		if a.Flag == "max_num_batched_tokens" && len(a.Values) < 2 {
			t.Errorf("searched %+v", a)
		}
	}
}

// The verdict of a plan that is worse says what it is for.
func TestVerdictOfUnsureObjectives(t *testing.T) {
	check := func(met bool, share float64) []SLOCheck {
		return []SLOCheck{{SLO: "p99 ITL <= 60ms", Met: met, Probability: &share}}
	}
	for want, base := range map[string][]SLOCheck{
		"in 100 % of the draws, your settings in 75 %": check(true, 0.75),
		"which your settings miss":                     check(false, 0.5),
		"":                                             check(true, 0.96),
	} {
		better := Plan{SLOs: check(true, 1), Changed: []Change{{Flag: "max_num_seqs", To: "16"}}}
		ps := Plans{Baseline: Plan{SLOs: base}, Plans: []Plan{better}}
		if v := ps.verdict(); !strings.Contains(v, want) || strings.Contains(v, "it meets") != (want != "") {
			t.Errorf("%q lacks %q", v, want)
		}
	}
}

func TestPinnedSettingsStay(t *testing.T) {
	req := request(t, load(60, 0, 200, 60, 0, 32))
	req.Fixed = harness.EngineArgs{MaxNumSeqs: 8, BlockSize: 64}
	plans := mustMake(t, req)
	for _, p := range plans.Plans {
		if p.Args.MaxNumSeqs != 8 || p.Args.BlockSize != 64 {
			t.Errorf("%s: %+v", p.Strategy, p.Args)
		}
	}
	for _, a := range plans.Search.Axes {
		if a.Flag == "max_num_seqs" && !slices.Equal(a.Values, []string{"8"}) {
			t.Errorf("searched %+v", a)
		}
	}
}

// More KV cache never lowers the throughput beyond what the order of requests does.
func TestMoreKVNeverHurts(t *testing.T) {
	req := request(t, load(80, 1024, 600, 120, 0, 64))
	p, err := newPlanning(req)
	if err != nil {
		t.Fatal(err)
	}
	before := 0.0
	for _, blocks := range []int{1200, 1800, 2700, 4000, 8000, 16000, 50000} {
		args := p.base
		args.NumGPUBlocksOverride = blocks
		args.MaxModelLen = 8192
		c := p.candidate(args)
		if c == nil {
			t.Fatalf("%d blocks: no server", blocks)
		}
		o, err := p.simulate(t.Context(), c, 0, p.work[0], false)
		if err != nil {
			t.Fatal(err)
		}
		v, _ := o.metrics.Value(harness.MetricTotalThroughput, "")
		if v < 0.97*before {
			t.Errorf("%d blocks: %.0f token/s, with fewer %.0f", blocks, v, before)
		}
		before = max(before, v)
	}
}

func TestMemoryPlanGivesUpNoMoreThanTheSlack(t *testing.T) {
	req := request(t, load(60, 0, 400, 60, 0, 16))
	req.Options.MemorySlack = 0.02
	plans := mustMake(t, req)
	throughput := func(s Strategy) float64 {
		v, _ := plans.Plan(s).Predicted.Value(harness.MetricTotalThroughput, "")
		return v
	}
	if m, best := throughput(Memory), throughput(Throughput); m < 0.98*best*0.999 {
		t.Errorf("memory plan serves %.0f token/s of %.0f", m, best)
	}
	m, base := plans.Plan(Memory), plans.Baseline
	if m.KVBytes >= base.KVBytes/2 || m.Args.GPUMemoryUtilization >= base.Args.GPUMemoryUtilization {
		t.Errorf("memory plan keeps %d of %d bytes, utilization %g", m.KVBytes, base.KVBytes, m.Args.GPUMemoryUtilization)
	}
}

func TestFrontAndKnee(t *testing.T) {
	req := request(t, load(60, 0, 1500, 60, 0, 48))
	plans := mustMake(t, req)
	knees := 0
	for i, f := range plans.Front {
		if i > 0 && (f.Throughput <= plans.Front[i-1].Throughput || f.Latency <= plans.Front[i-1].Latency) {
			t.Errorf("point %d is dominated: %+v", i, plans.Front)
		}
		if f.Knee {
			knees++
		}
	}
	if knees != 1 {
		t.Errorf("%d knees on a front of %d", knees, len(plans.Front))
	}
}

func TestSameSeedSameBytes(t *testing.T) {
	var first []byte
	for _, workers := range []int{1, 4, 1} {
		req := request(t, load(60, 256, 300, 60, 10*time.Millisecond, 0))
		req.SLOs = []harness.SLO{{Metric: harness.MetricTTFT, Stat: harness.StatP99, Limit: 1}}
		req.Options.Workers = workers
		data, err := json.Marshal(mustMake(t, req))
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = data
		} else if !bytes.Equal(data, first) {
			t.Fatalf("%d workers give other bytes", workers)
		}
	}
	read, err := ReadPlans(bytes.NewReader(first))
	if err != nil {
		t.Fatal(err)
	}
	if again, err := json.Marshal(read); err != nil || !bytes.Equal(again, first) {
		t.Errorf("plans change when they are read back: %v", err)
	}
}

func TestReadPlansRefuses(t *testing.T) {
	for text, want := range map[string]string{
		`{"schema":"kvtune.plans/2","plans":[{}]}`: "newer kvtune",
		`{"schema":"kvtune.result/1"}`:             "expected kvtune.plans/1",
		`{"schema":"kvtune.plans/1","plans":[]}`:   "no plan",
		`[`:                                        "kvtune plan",
	} {
		if _, err := ReadPlans(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v should say %q", text, err, want)
		}
	}
}

// A search over the budget halves the candidates, says so, stays near the budget and keeps the baseline.
func TestHalving(t *testing.T) {
	req := request(t, load(300, 0, 300, 40, 0, 32))
	req.Options = Options{Requests: 300, Replicas: 2, Budget: 3_000, Axes: []Axis{
		{"max_num_batched_tokens", doublings(512, 32768)}, {"max_num_seqs", doublings(8, 1024)},
		{"gpu_memory_utilization", []string{"0.8", "0.95"}},
	}}
	req.Strategies = []Strategy{Throughput}
	plans := mustMake(t, req)
	s := plans.Search
	if s.Exhaustive || !strings.Contains(s.Statement, "not exhaustive") || s.Candidates < 100 {
		t.Errorf("%+v", s)
	}
	if s.Simulated > 3*int64(req.Options.Budget) {
		t.Errorf("%d requests simulated on a budget of %d", s.Simulated, req.Options.Budget)
	}
	req.Options.Budget = 1 << 40
	full := mustMake(t, req)
	if !full.Search.Exhaustive {
		t.Errorf("%s", full.Search.Statement)
	}
	a, _ := plans.Plans[0].Predicted.Value(harness.MetricTotalThroughput, "")
	b, _ := full.Plans[0].Predicted.Value(harness.MetricTotalThroughput, "")
	if a < 0.95*b {
		t.Errorf("halving finds %.0f token/s, the whole grid %.0f", a, b)
	}
}

func TestSetMeasured(t *testing.T) {
	value := func(v float64) *float64 { return &v }
	p := &Plan{Predicted: harness.Metrics{
		{Name: "ttft", Stat: "p99", Unit: "s", Value: value(1.1), Low: value(1), High: value(1.2)},
		{Name: "e2el", Stat: "mean", Unit: "s", Value: value(2), Low: value(1.9), High: value(2.1)},
		{Name: "preemptions", Unit: "request", Value: value(3)},
		{Name: "itl", Stat: "mean", Unit: "s"},
	}}
	p.SetMeasured(Measured{Origin: harness.OriginMeasured, Metrics: harness.Metrics{
		{Name: "ttft", Stat: "p99", Unit: "s", Value: value(1)}, {Name: "e2el", Stat: "mean", Unit: "s", Value: value(4)},
		{Name: "preemptions", Unit: "request", Value: value(0)}, {Name: "itl", Stat: "mean", Unit: "s", Value: value(1)},
	}})
	got := ""
	for _, c := range p.Compared {
		got += c.Metric
		if c.Error != nil {
			got += fmt.Sprintf(" %+.2f", *c.Error)
		}
		if c.Inside != nil {
			got += fmt.Sprintf(" %v", *c.Inside)
		}
		got += "; "
	}
	if want := "ttft +0.10 true; e2el -0.50 false; preemptions; "; got != want {
		t.Errorf("compared %q, expected %q", got, want)
	}
}

func TestRequestsThatCannotBePlanned(t *testing.T) {
	good := request(t, load(10, 0, 100, 10, 0, 4))
	for want, edit := range map[string]func(*Request){
		"no cost model":   func(r *Request) { r.Server.Cost = nil },
		"no workload":     func(r *Request) { r.Workload = nil },
		"not known":       func(r *Request) { r.Strategies = []Strategy{"cheapest"} },
		"would not start": func(r *Request) { r.Current = harness.EngineArgs{GPUMemoryUtilization: 0.01} },
	} {
		req := good
		edit(&req)
		if _, err := Make(t.Context(), req); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v should say %q", err, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Make(ctx, good); err == nil {
		t.Error("a cancelled context makes plans")
	}
}
