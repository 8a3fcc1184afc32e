package analysis

import (
	"context"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"kvtune/harness"
	"kvtune/harness/vllmflags"
	"kvtune/harness/workload"
	"kvtune/planner/cost"
	"kvtune/planner/sim"
	"kvtune/planner/spec"
)

func prior(t testing.TB) *cost.Model {
	t.Helper()
	gpu, err := spec.FindGPU("H200")
	if err != nil {
		t.Fatal(err)
	}
	return cost.Prior(gpu, spec.Default(), harness.EngineArgs{})
}

// requests builds n measured requests: a prefix of shared tokens (the same for every one of groups groups, in turn),
// fresh tokens of their own, and output tokens, spaced every apart.
func requests(n, groups, shared, fresh, output int, every time.Duration) *workload.Workload {
	w := &workload.Workload{BlockSize: 16}
	for i := range n {
		r := workload.Request{Index: i, After: -1, Due: time.Duration(i) * every, SharedTokens: shared, OutputTokens: output}
		if shared > 0 {
			r.Prompt = append(r.Prompt, workload.Segment{ID: uint64(1 + i%groups), Tokens: shared})
		}
		r.Prompt = append(r.Prompt, workload.Segment{ID: uint64(1_000_000 + i), Tokens: fresh})
		w.Requests = append(w.Requests, r)
	}
	return w
}

func closed(w *workload.Workload, concurrency int) *workload.Workload {
	w.Concurrency = concurrency
	return w
}

// settings are a roomy server, edited.
func settings(edit func(*harness.EngineArgs)) harness.EngineArgs {
	on := true
	a := harness.EngineArgs{MaxNumBatchedTokens: 8192, MaxNumSeqs: 256, BlockSize: 16, MaxModelLen: 16384,
		NumGPUBlocksOverride: 50_000,
		EnableChunkedPrefill: &on, EnablePrefixCaching: &on, AsyncScheduling: &on, StreamInterval: 1,
		SchedulingPolicy: "fcfs"}
	edit(&a)
	return a
}

func simulate(t testing.TB, model *cost.Model, args harness.EngineArgs, w *workload.Workload) Input {
	t.Helper()
	server := Server{Args: args, NumGPUBlocks: args.NumGPUBlocksOverride, Cost: model}
	cfg, err := server.Config(args)
	if err != nil {
		t.Fatal(err)
	}
	out, err := sim.Run(context.Background(), cfg, model, w, sim.Options{Steps: true, Series: true})
	if err != nil {
		t.Fatal(err)
	}
	return Input{
		Result:  &harness.Result{Name: t.Name(), Origin: harness.OriginSimulated, Counters: out.Counters},
		Records: out.Records, Steps: out.Steps, Series: out.Series, Server: server, Workload: w,
	}
}

// Workloads that one limit was planted in.
var planted = []struct {
	name  string
	kind  Kind
	limit string
	args  harness.EngineArgs
	work  *workload.Workload
}{
	{"long prompts, one token out", Compute, LimitArithmetic, settings(func(*harness.EngineArgs) {}),
		closed(requests(64, 1, 0, 4096, 1, 0), 16)},
	{"long contexts, many decodes", Bandwidth, LimitBandwidth, settings(func(*harness.EngineArgs) {}),
		closed(requests(64, 1, 0, 1024, 1000, 0), 64)},
	{"a KV cache for a few requests", Capacity, LimitKVCapacity,
		settings(func(a *harness.EngineArgs) { a.NumGPUBlocksOverride = 1100 }),
		closed(requests(96, 1, 0, 512, 512, 0), 64)},
	{"four sequences for 64 clients", Scheduling, LimitMaxNumSeqs,
		settings(func(a *harness.EngineArgs) { a.MaxNumSeqs = 4 }),
		closed(requests(128, 1, 0, 128, 128, 0), 64)},
	{"a token budget of 64", Scheduling, LimitTokenBudget,
		settings(func(a *harness.EngineArgs) { a.MaxNumSeqs, a.MaxNumBatchedTokens = 64, 64 }),
		closed(requests(128, 1, 0, 512, 4, 0), 64)},
	{"prefix caching off", Cache, LimitPrefixCache,
		settings(func(a *harness.EngineArgs) { off := false; a.EnablePrefixCaching = &off }),
		closed(requests(128, 4, 8192, 16, 1, 0), 16)},
	{"prefixes evicted before their reuse", Cache, LimitPrefixCache,
		settings(func(a *harness.EngineArgs) { a.NumGPUBlocksOverride, a.MaxNumSeqs = 3000, 4 }),
		closed(requests(128, 16, 8192, 16, 1, 0), 4)},
	{"one short request a second", LightLoad, "", settings(func(*harness.EngineArgs) {}), requests(20, 1, 0, 64, 8,
		time.Second)},
}

func TestPlantedBottlenecks(t *testing.T) {
	model := prior(t)
	for _, c := range planted {
		t.Run(c.name, func(t *testing.T) {
			in := simulate(t, model, c.args, c.work)
			for _, steps := range []bool{true, false} {
				if !steps { // a real server gives no steps
					in.Steps = nil
				}
				r := Analyze(t.Context(), in)
				if r.Binding != c.kind || r.Limit != c.limit {
					t.Errorf("steps %v: %s (%s) binds, planted %s (%s): %s", steps, r.Binding, r.Limit, c.kind, c.limit, r.Verdict)
					for _, b := range r.Bottlenecks {
						t.Logf("%s %.3f: %s", b.Kind, *b.Share, b.Why)
					}
				}
				sharesAddUp(t, r)
			}
		})
	}
}

func sharesAddUp(t *testing.T, r *Report) {
	t.Helper()
	sum, binds := *r.Light+*r.Idle, 0
	for _, b := range r.Bottlenecks {
		sum += *b.Share
		if *b.Share < 0 || *b.Share > 1 {
			t.Errorf("%s: share %g", b.Kind, *b.Share)
		}
		if b.Binds {
			binds++
			if *b.Share <= *b.Threshold {
				t.Errorf("%s binds with a share of %g, not above its threshold %g", b.Kind, *b.Share, *b.Threshold)
			}
		}
	}
	if math.Abs(sum-1) > 0.02 {
		t.Errorf("shares sum to %g", sum)
	}
	if light := r.Binding == LightLoad; light == (binds > 0) || binds > 1 {
		t.Errorf("%d bottlenecks bind, binding %q", binds, r.Binding)
	}
}

// Without a cost model the queue and the counters still speak; arithmetic does not.
func TestWithoutAModel(t *testing.T) {
	model := prior(t)
	for _, c := range planted[2:4] {
		in := simulate(t, model, c.args, c.work)
		in.Server.Cost, in.Steps = nil, nil
		r := Analyze(t.Context(), in)
		if r.Binding != c.kind || r.Limit != c.limit {
			t.Errorf("%s: %s (%s) binds: %s", c.name, r.Binding, r.Limit, r.Verdict)
		}
		if b := r.Bottleneck(Compute); b.Share != nil || b.Evidence.Get("balance_tokens", "").Value != nil {
			t.Errorf("%s: compute was observed without a model", c.name)
		}
		if len(r.Recommendations) > 0 {
			t.Errorf("%s: recommended without a simulation: %+v", c.name, r.Recommendations)
		}
	}
	in := simulate(t, model, planted[0].args, planted[0].work)
	in.Server.Cost, in.Steps, in.Series = nil, nil, nil
	for _, in := range []Input{in, {Result: &harness.Result{Name: "empty"}}} {
		if r := Analyze(t.Context(), in); r.Binding != NotObserved || len(r.Notes) == 0 {
			t.Errorf("%s binds without any evidence: %s", r.Binding, r.Verdict)
		}
	}
}

// Time that no term of the model explains, such as a slow API server's, does not make bandwidth out of a host that
// takes longer to launch a step than the device takes for it; and lifting what is said to bind gains.
func TestUnexplainedTimeIsNobodys(t *testing.T) {
	model := prior(t)
	model.FrontEnd.Request = 20 * time.Millisecond
	in := simulate(t, model, settings(func(*harness.EngineArgs) {}), closed(requests(20, 1, 0, 64, 1, 0), 1))
	in.Server.Cost, in.Draws = model, 2
	for _, steps := range []bool{true, false} {
		if !steps {
			in.Steps = nil
		}
		r := Analyze(t.Context(), in)
		limit := LimitLaunch // it is in the steps that are rebuilt
		if steps {
			limit = LimitFrontEnd
		}
		if r.Binding != Scheduling || r.Limit != limit {
			t.Errorf("steps %v: %s", steps, r.Verdict)
		}
		for _, c := range r.Counterfactuals {
			if c.Limit == r.Limit && c.Gains[0].Change < 0.2 {
				t.Errorf("steps %v: %s gains %.3g", steps, c.Name, c.Gains[0].Change)
			}
		}
	}
}

// Every recommendation stands on a simulated gain, the largest first, and says all that it takes to try it.
func TestRecommendations(t *testing.T) {
	model := prior(t)
	flags := map[string]string{
		LimitMaxNumSeqs: "max_num_seqs", LimitTokenBudget: "max_num_batched_tokens",
		LimitPrefixCache: "enable_prefix_caching", LimitKVCapacity: "num_gpu_blocks_override",
	}
	for _, c := range planted[2:6] {
		in := simulate(t, model, c.args, c.work)
		in.Draws = 4
		r := Analyze(t.Context(), in)
		if len(r.Recommendations) == 0 || r.Recommendations[0].Flag != flags[c.limit] {
			t.Errorf("%s: recommendations %+v, expected %s first", c.name, r.Recommendations, flags[c.limit])
			continue
		}
		for i, rec := range r.Recommendations {
			if !rec.Gain.Sure() || *rec.Gain.Low > rec.Gain.Change || *rec.Gain.High < rec.Gain.Change ||
				rec.Gain.Change < minGain {
				t.Errorf("%s: gain %+v", rec.Flag, rec.Gain)
			}
			if i > 0 && rec.Gain.Change > r.Recommendations[i-1].Gain.Change {
				t.Errorf("%s: recommendation %d gains more than the one before it", c.name, i+1)
			}
			if len(rec.Effects) < 5 || rec.Risk == "" || rec.Value == rec.From || rec.Args.Equal(r.Args) {
				t.Errorf("%s: %+v", c.name, rec)
			}
			if verify := strings.Join(rec.Verify, " "); !strings.HasSuffix(verify, "--recommendation "+strconv.Itoa(i+1)) {
				t.Errorf("%s: verify with %q", c.name, verify)
			}
			flag := "--" + strings.ReplaceAll(rec.Flag, "_", "-")
			if !slices.Contains(rec.Command, flag) && rec.Flag != "enable_prefix_caching" { // which is vLLM's default
				t.Errorf("%s: the command %v lacks %s", c.name, rec.Command, flag)
			}
		}
	}
}

// A setting that vLLM replaces on the device is not recommended, whatever its simulation gains: asynchronous scheduling
// on a CPU.
func TestRecommendationsOfDevice(t *testing.T) {
	off := false
	args := settings(func(a *harness.EngineArgs) { a.AsyncScheduling = &off })
	for _, cpu := range []bool{false, true} {
		in := simulate(t, prior(t), args, closed(requests(40, 1, 0, 64, 64, 0), 2))
		in.Draws, in.Device = 2, vllmflags.Device{CPU: cpu, Memory: 64 << 30}
		r := Analyze(t.Context(), in)
		found := slices.ContainsFunc(r.Recommendations,
			func(rec Recommendation) bool { return rec.Flag == "async_scheduling" })
		if found == cpu {
			t.Errorf("CPU %v: asynchronous scheduling recommended: %v; %v", cpu, found, r.Notes)
		}
	}
}

// Of a long run the first requests are simulated, and that is said.
func TestWhatIfOfALongRun(t *testing.T) {
	w := closed(requests(whatIfRequests+1, 1, 0, 32, 2, 0), 64)
	in := simulate(t, prior(t), settings(func(a *harness.EngineArgs) { a.MaxNumSeqs = 4 }), w)
	in.Draws = 1
	r := Analyze(t.Context(), in)
	if len(r.Counterfactuals) == 0 || len(r.Recommendations) == 0 || len(w.Requests) != whatIfRequests+1 {
		t.Errorf("%d counterfactuals, %d recommendations", len(r.Counterfactuals), len(r.Recommendations))
	}
	if said := strings.Join(r.Notes, "; "); !strings.Contains(said, "the first 4000 of the run's 4001 requests") {
		t.Errorf("notes %q", said)
	}
}

// What binds is what gains most when it is lifted.
func TestCounterfactuals(t *testing.T) {
	model := prior(t)
	for _, c := range planted[:7] {
		in := simulate(t, model, c.args, c.work)
		in.Draws = 2
		r := Analyze(t.Context(), in)
		want := 6
		if c.kind == Cache { // elsewhere there is nothing to hit
			want++
		}
		if r.Bottleneck(Scheduling).Limit == LimitFrontEnd {
			want++
		}
		if len(r.Counterfactuals) != want {
			t.Fatalf("%s: %d counterfactuals: %v", c.name, len(r.Counterfactuals), r.Notes)
		}
		gains := map[Kind]float64{}
		for _, cf := range r.Counterfactuals {
			g := cf.Gains[0]
			if g.Low == nil || *g.Low > g.Change || *g.High < g.Change {
				t.Errorf("%s: %s: gain %+v", c.name, cf.Name, g)
			}
			t.Logf("%s: %s %s", c.name, cf.Name, g.text())
			gains[cf.Kind] = max(gains[cf.Kind], g.Change)
			if cf.Limit == r.Limit && (g.Change < 0.3 || !strings.Contains(r.Verdict, cf.Name)) {
				t.Errorf("%s: %s gains %.3g, the verdict is %s", c.name, cf.Name, g.Change, r.Verdict)
			}
		}
		for kind, gain := range gains {
			if gain > gains[c.kind] {
				t.Errorf("%s: lifting %s gains %.3g, lifting %s %.3g", c.name, c.kind, gains[c.kind], kind, gain)
			}
		}
	}
}

// The verdict tells what lifting the limit that binds gives, and what gives more than twice as much, surely.
func TestVerdictNamesTheLargerGain(t *testing.T) {
	gain := func(name string, kind Kind, change, low float64) Counterfactual {
		return Counterfactual{Name: name, Kind: kind, Limit: LimitArithmetic,
			Gains: []Gain{{Metric: harness.MetricTotalThroughput, Change: change, Low: &low}}}
	}
	for _, c := range []struct {
		change, low float64
		named       bool
	}{{0.89, 0.8, true}, {0.89, -0.1, false}, {0.4, 0.3, false}} {
		r := &Report{Binding: Compute, Limit: LimitArithmetic, Counterfactuals: []Counterfactual{
			gain("twice the arithmetic rate", Compute, 0.21, 0.2), gain("twice the KV cache", Capacity, c.change, c.low)}}
		new(study).conclude(r)
		if !strings.Contains(r.Verdict, "twice the arithmetic rate +21 %") ||
			strings.Contains(r.Verdict, ", but twice the KV cache") != c.named {
			t.Errorf("%+v: %q", c, r.Verdict)
		}
	}
}

// A server that says only by its counters what its cache had: the work of the run is the same as where each request
// tells, although lookups are counted again for every step in which a request is refused.
func TestHitsFromCounters(t *testing.T) {
	model := prior(t)
	in := simulate(t, model, settings(func(*harness.EngineArgs) {}), closed(requests(128, 4, 8192, 1024, 1, 0), 16))
	in.Steps = nil
	told := Analyze(t.Context(), in)
	cached, prompts := 0, 0
	in.Records = slices.Clone(in.Records)
	for i := range in.Records {
		r := &in.Records[i]
		cached, prompts = cached+*r.CachedTokens, prompts+r.PromptTokens
		r.CachedTokens = nil
	}
	counters := map[string]float64{harness.CounterPromptTokens: float64(prompts),
		harness.CounterCachedTokens: float64(cached), harness.CounterPrefixHits: 5 * float64(cached),
		harness.CounterPrefixQueries: 20 * float64(prompts)}
	result := *in.Result
	result.Counters, in.Result = counters, &result
	counted := Analyze(t.Context(), in)
	if counted.Binding != told.Binding || !strings.Contains(strings.Join(counted.Notes, " "), "prompt-tokens-details") {
		t.Errorf("%s binds by the counters, %s by the requests; notes %q", counted.Binding, told.Binding, counted.Notes)
	}
	a, _ := told.Use.Value(harness.MetricComputeUse, "")
	b, ok := counted.Use.Value(harness.MetricComputeUse, "")
	if !ok || math.Abs(b/a-1) > 0.1 {
		t.Errorf("compute use is %.3g by the counters, %.3g by the requests", b, a)
	}
}

// Rebuilt steps hold the work of the run: prompt tokens and decodes are conserved, time does not overlap.
func TestRebuiltStepsConserveWork(t *testing.T) {
	model := prior(t)
	for _, c := range planted {
		in := simulate(t, model, c.args, c.work)
		spans := fromArrivals(in.Records, in.Series, c.args.MaxNumBatchedTokens)
		var prefill, decode, wantPrefill, wantDecode float64
		for i, s := range spans {
			prefill += s.count * float64(s.step.PrefillTokens)
			decode += float64(s.step.DecodeSeqs)
			if i > 0 && s.start < spans[i-1].start+spans[i-1].length {
				t.Fatalf("%s: span %d overlaps", c.name, i)
			}
		}
		for i := range in.Records {
			r := &in.Records[i]
			wantPrefill += float64(r.PromptTokens - *r.CachedTokens)
			wantDecode += float64(len(r.Tokens) - 1)
		}
		if math.Abs(prefill-wantPrefill) > 0.02*wantPrefill+float64(len(spans)) {
			t.Errorf("%s: %g prompt tokens in the steps, %g in the requests", c.name, prefill, wantPrefill)
		}
		if math.Abs(decode-wantDecode) > 0.01*wantDecode {
			t.Errorf("%s: %g decodes in the steps, %g in the requests", c.name, decode, wantDecode)
		}
	}
}

// The balance is where the roofline's two times meet.
func TestBalanceIsTheRooflinesOwn(t *testing.T) {
	model := prior(t)
	s := &study{model: model}
	n := int(s.balance())
	at := func(n int) (time.Duration, time.Duration) {
		return model.Roofline(cost.Step{PrefillSeqs: 1, PrefillTokens: n, PrefillAttention: float64(n) * float64(n) / 2})
	}
	if compute, memory := at(n); compute < memory {
		t.Errorf("at %d tokens arithmetic takes %v, memory %v", n, compute, memory)
	}
	if compute, memory := at(n - 1); compute >= memory {
		t.Errorf("at %d tokens arithmetic already takes %v, memory %v", n-1, compute, memory)
	}
}

// A stated number of blocks moves with the settings by the estimate's difference alone.
func TestBlocksStartFromTheServersNumber(t *testing.T) {
	gpu, err := spec.FindGPU("H200")
	if err != nil {
		t.Fatal(err)
	}
	model := spec.Default()
	args := settings(func(a *harness.EngineArgs) { a.NumGPUBlocksOverride, a.GPUMemoryUtilization = 0, 0.9 })
	s := Server{Args: args, NumGPUBlocks: 50_000, GPU: &gpu, Model: &model}
	blocks := func(edit func(*harness.EngineArgs)) int {
		a := args
		edit(&a)
		n, err := s.blocks(a)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := blocks(func(*harness.EngineArgs) {}); n != 50_000 {
		t.Errorf("%d blocks under the server's own settings", n)
	}
	if n := blocks(func(a *harness.EngineArgs) { a.BlockSize = 32 }); n != 25_000 {
		t.Errorf("%d blocks of twice the size", n)
	}
	more := blocks(func(a *harness.EngineArgs) { a.GPUMemoryUtilization = 0.95 }) - 50_000
	want := int(0.05 * float64(gpu.Memory) / float64(16*model.KVBytesPerToken("auto", 1)))
	if d := more - want; d < -2 || d > 2 {
		t.Errorf("%d more blocks for 5 %% more memory, expected %d", more, want)
	}
	if n := blocks(func(a *harness.EngineArgs) { a.NumGPUBlocksOverride = 7 }); n != 7 {
		t.Errorf("%d blocks under an override", n)
	}
	s.GPU = nil
	if n := blocks(func(a *harness.EngineArgs) { a.BlockSize = 32 }); n != 25_000 {
		t.Errorf("%d blocks of twice the size without a GPU", n)
	}
}

// A latency that gets better is not "+12 %".
func TestGainText(t *testing.T) {
	at := func(v float64) *float64 { return &v }
	for _, tt := range []struct {
		gain Gain
		want string
	}{
		{Gain{Metric: harness.MetricTotalThroughput, Change: 0.4, Low: at(0.35), High: at(0.44)},
			"total throughput +40 % (+35 % to +44 %)"},
		{Gain{Metric: harness.MetricTotalThroughput, Low: at(-0.01), High: at(0.02)},
			"total throughput unchanged (-1.0 % to +2.0 %)"},
		{Gain{Metric: harness.MetricTotalThroughput, Change: 0.0001, Low: at(0), High: at(0.0002)},
			"total throughput unchanged"},
		{Gain{Metric: harness.MetricTotalThroughput, Change: -0.03}, "total throughput -3.0 %"},
		{Gain{Metric: harness.MetricE2EL, Stat: harness.StatMean, Change: 0.12, Low: at(-0.01), High: at(0.15)},
			"E2EL mean better by 12 % (-1.0 % to 15 %)"},
		{Gain{Metric: harness.MetricTTFT, Stat: harness.StatP99, Change: -0.2, Low: at(-0.3), High: at(-0.1)},
			"TTFT p99 worse by 20 % (10 % to 30 %)"},
		{Gain{Metric: harness.MetricKVCacheSize, Change: 0.52, Low: at(0.52), High: at(0.52)},
			"KV cache size smaller by 52 %"},
	} {
		if got := tt.gain.String(); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}
