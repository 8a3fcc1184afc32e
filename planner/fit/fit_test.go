package fit

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"kvtune/harness"
	"kvtune/harness/workload"
	"kvtune/planner/cost"
)

// served is what server gave: the records and every step as it really was.
type served struct {
	records []workload.Record
	steps   []cost.Step
}

// bare is a model of the device alone, that does not heat.
func bare(t *testing.T) *cost.Model {
	t.Helper()
	m := h200(t)
	var values []float64
	for _, c := range m.Coefficients {
		if c.Name == "prepare" || strings.HasPrefix(c.Name, "launch_") || isThrottle(c) {
			c.Value = 0
		}
		values = append(values, c.Value)
	}
	m, err := m.With(values)
	if err != nil {
		t.Fatal(err)
	}
	m.FrontEnd = cost.FrontEnd{}
	return m
}

func isThrottle(c cost.Coefficient) bool { return c.Name == "throttled" || c.Name == "hot_step" }

// arrival is a request of a test's workload.
type arrival struct {
	at             time.Duration
	prompt, output int
}

// server runs arrivals through a first-come-first-served batch under a token budget, step after step, and streams every
// token within spread of its step's end. It knows nothing of the reconstruction.
func server(timer *cost.Model, arrivals []arrival, budget int, spread time.Duration, seed uint64) served {
	rng := rand.New(rand.NewPCG(seed, 0))
	type live struct{ done, tokens int }
	state := make([]live, len(arrivals))
	out := served{records: make([]workload.Record, len(arrivals))}
	for i, a := range arrivals {
		out.records[i] = workload.Record{
			Index: i, Sent: a.at - timer.FrontEnd.Arrival(a.prompt), PromptTokens: a.prompt, AskedTokens: a.output,
			FinishReason: "length",
		}
	}
	var now time.Duration
	var heat cost.Heat
	idle := true
	for finished := 0; finished < len(arrivals); {
		var step cost.Step
		var emits []int
		left := budget
		for pass := range 2 { // decodes first, then prompts in order
			for i, a := range arrivals {
				s := &state[i]
				decoding := s.done >= a.prompt
				if a.at > now || s.tokens == a.output || decoding != (pass == 0) || left == 0 {
					continue
				}
				if decoding {
					step.DecodeSeqs++
					step.DecodeContext += a.prompt + s.tokens
					left--
					emits = append(emits, i)
					continue
				}
				n := min(left, a.prompt-s.done)
				step.PrefillSeqs++
				step.PrefillTokens += n
				step.MaxChunk = max(step.MaxChunk, n)
				step.PrefillAttention += float64(n) * (float64(s.done) + float64(n)/2)
				left -= n
				if s.done += n; s.done == a.prompt {
					emits = append(emits, i)
				}
			}
		}
		if step.Tokens() == 0 { // idle: on to the next arrival
			next := time.Duration(math.MaxInt64)
			for _, a := range arrivals {
				if a.at > now {
					next = min(next, a.at)
				}
			}
			now, idle = next, true
			continue
		}
		took := heat.StepTime(timer, step, now)
		if idle {
			prepare, launch := timer.HostTime(step)
			took = prepare + max(launch, took)
		}
		now, idle = now+took, false
		out.steps = append(out.steps, step)
		for k, i := range emits {
			late := time.Duration(0)
			if k > 0 && spread > 0 {
				late = time.Duration(rng.Int64N(int64(spread)))
			}
			r := &out.records[i]
			r.Tokens = append(r.Tokens, workload.TokenEvent{At: now + late - r.Sent, Tokens: 1})
			r.Tokens[len(r.Tokens)-1].At += timer.FrontEnd.Token
			r.OutputTokens++
			if state[i].tokens++; state[i].tokens == arrivals[i].output {
				finished++
			}
		}
	}
	return out
}

func hundredths(m *cost.Model, o cost.Observation) float64 {
	var d time.Duration
	for _, s := range o.Steps {
		d += m.StepTime(s)
	}
	return 100 * (float64(d)/float64(o.Time) - 1)
}

const ms = time.Millisecond

var workloads = map[string][]arrival{
	"decode":          {{0, 100, 40}, {0, 200, 40}, {0, 300, 50}, {0, 64, 30}},
	"prefill":         {{0, 500, 1}, {time.Second, 4000, 1}, {2 * time.Second, 20000, 1}, {3 * time.Second, 30, 1}},
	"prompt dropped":  {{0, 100, 200}, {0, 100, 200}, {300 * ms, 3000, 1}, {600 * ms, 700, 20}},
	"chunked":         {{0, 100, 300}, {0, 100, 300}, {300 * ms, 20000, 5}, {301 * ms, 9000, 5}},
	"bursts of three": {{0, 900, 60}, {0, 900, 60}, {400 * ms, 5000, 60}, {400 * ms, 5000, 60}, {400 * ms, 5000, 60}},
}

// On a server whose steps are known, every observation is exactly the sum of the steps that ran, in kind and in time.
func TestObservationsAreTheStepsThatRan(t *testing.T) {
	m := bare(t)
	for name, arrivals := range workloads {
		for _, spread := range []time.Duration{0, 500 * time.Microsecond} {
			run := server(m, arrivals, 8192, spread, 1)
			observations := mustObserve(t, Run{Name: name, Records: run.records, Args: defaults})
			seen := 0
			for _, o := range observations {
				seen += len(o.Steps)
				if e := hundredths(m, o); math.Abs(e) > 1e-3 {
					t.Errorf("%s: %v for %+v is %.2f %% off what these steps take", name, o.Time, o.Steps, e)
				}
			}
			if 10*seen < 8*len(run.steps) {
				t.Errorf("%s: %d of %d steps observed", name, seen, len(run.steps))
			}
		}
	}
}

// Under random traffic many moments are ambiguous; what is claimed must still be right, and tokens are never invented.
func TestObservationsUnderRandomTraffic(t *testing.T) {
	m := h200(t)
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 5))
		var arrivals []arrival
		var at time.Duration
		prompts := 0
		for range 60 {
			at += time.Duration(rng.ExpFloat64() * float64(120*time.Millisecond))
			a := arrival{at, 1 + rng.IntN(6000), 1 + rng.IntN(100)}
			arrivals = append(arrivals, a)
			prompts += a.prompt
		}
		run := server(m, arrivals, 8192, 300*time.Microsecond, seed)
		wrong, n, tokens := 0, 0, 0
		for _, o := range mustObserve(t, Run{Name: "random", Records: run.records, Args: defaults}) {
			n++
			if math.Abs(hundredths(m, o)) > 2 {
				wrong++
			}
			for _, s := range o.Steps {
				tokens += s.PrefillTokens
			}
		}
		if n < 100 || 20*wrong > n {
			t.Errorf("seed %d: %d of %d observations are off by more than 2 %%", seed, wrong, n)
		}
		if tokens > prompts {
			t.Errorf("seed %d: %d prompt tokens observed, %d sent", seed, tokens, prompts)
		}
	}
}

// What the records cannot tell is left out, not guessed.
func TestObservationsLeaveOutWhatIsNotKnown(t *testing.T) {
	m := h200(t)
	prompts := func(records []workload.Record, args harness.EngineArgs) (n int) {
		for _, o := range mustObserve(t, Run{Records: records, Args: args}) {
			for _, s := range o.Steps {
				n += s.PrefillTokens
			}
		}
		return n
	}
	for name, edit := range map[string]func(*workload.Record, *harness.EngineArgs){
		"prefix hits":    func(r *workload.Record, _ *harness.EngineArgs) { r.SharedPrefixTokens = 64 },
		"other chunking": func(_ *workload.Record, a *harness.EngineArgs) { a.LongPrefillTokenThreshold = 256 },
		"failed":         func(r *workload.Record, _ *harness.EngineArgs) { r.Error = "connection reset" },
	} {
		run := server(m, []arrival{{0, 100, 100}, {200 * time.Millisecond, 3000, 1}}, 8192, 0, 1)
		args := defaults
		if n := prompts(run.records, args); n < 3000 {
			t.Fatalf("%s: only %d prompt tokens observed before", name, n)
		}
		edit(&run.records[1], &args)
		if n := prompts(run.records, args); n >= 3000 {
			t.Errorf("%s: %d prompt tokens observed", name, n)
		}
	}
	// A prefix that the server counted is known.
	run := server(bare(t), []arrival{{0, 1000, 50}}, 8192, 0, 1)
	cached := 512
	run.records[0].CachedTokens, run.records[0].SharedPrefixTokens = &cached, 512
	o := mustObserve(t, Run{Records: run.records, Args: defaults})
	want := cost.Step{PrefillSeqs: 1, PrefillTokens: 488, PrefillAttention: 488 * (512 + 244), MaxChunk: 488}
	if len(o) > 0 {
		o[0].Steps[0].Heat = 0
	}
	if len(o) == 0 || o[0].Steps[0] != want {
		t.Errorf("first observation %+v, expected a step %+v", o, want)
	}
}

// Events of several tokens hide how many steps passed.
func TestObservationsSkipMergedTokens(t *testing.T) {
	run := server(h200(t), []arrival{{0, 100, 64}}, 8192, 0, 1)
	r := &run.records[0]
	for i := 0; i+1 < len(r.Tokens); i++ { // every two tokens in one event
		r.Tokens[i].Tokens, r.Tokens[i].At = 2, r.Tokens[i+1].At
		r.Tokens = append(r.Tokens[:i+1], r.Tokens[i+2:]...)
	}
	if o := mustObserve(t, Run{Records: run.records, Args: defaults}); len(o) != 0 {
		t.Errorf("%d observations from merged events, first %+v", len(o), o[0])
	}
}

// Whatever a file holds, reading it ends and gives positive times.
func TestObservationsOfNonsense(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 6))
		var records []workload.Record
		for range rng.IntN(8) {
			r := workload.Record{Sent: time.Duration(rng.IntN(5)) * ms, PromptTokens: rng.IntN(20000) - 100}
			var at time.Duration
			for range rng.IntN(6) {
				at += time.Duration(rng.IntN(3)) * ms
				r.Tokens = append(r.Tokens, workload.TokenEvent{At: at, Tokens: rng.IntN(3)})
			}
			records = append(records, r)
		}
		args := harness.EngineArgs{MaxNumBatchedTokens: 1 + rng.IntN(4)}
		if rng.IntN(2) == 0 {
			args.MaxNumBatchedTokens = 8192
		}
		for _, o := range mustObserve(t, Run{Records: records, Args: args}) {
			if o.Time < 0 || len(o.Steps) == 0 {
				t.Errorf("seed %d: %+v", seed, o)
			}
		}
	}
}

// Probes that each start at zero are told apart by name.
func TestObservationsOfProbes(t *testing.T) {
	m := bare(t)
	var records []workload.Record
	for _, probe := range []string{"decode_B4_c64", "decode_B2_c64"} {
		run := server(m, workloads["decode"], 8192, 0, 1)
		for _, r := range run.records {
			r.Probe = probe
			records = append(records, r)
		}
	}
	o := mustObserve(t, Run{Records: records, Args: defaults})
	if len(o) < 50 {
		t.Fatalf("%d observations", len(o))
	}
	for _, x := range o {
		if e := hundredths(m, x); math.Abs(e) > 1e-3 {
			t.Errorf("%+v is %.2f %% off", x, e)
		}
	}
}

// The whole way: a server whose step times are not the prior's is learnt from its requests alone.
func TestFromRunsLearnsAServer(t *testing.T) {
	prior := h200(t)
	rng := rand.New(rand.NewPCG(14, 0))
	var values []float64
	for _, c := range prior.Coefficients {
		values = append(values, c.Value*(0.75+0.5*rng.Float64()))
	}
	truth, err := prior.With(values)
	if err != nil {
		t.Fatal(err)
	}
	var runs []Run
	for i, arrivals := range []([]arrival){
		workloads["decode"], workloads["prefill"], workloads["prompt dropped"], workloads["chunked"],
		batch(32, 1024, 64), batch(128, 500, 48),
	} {
		run := server(truth, arrivals, 8192, 0, 3)
		runs = append(runs, Run{Name: string(rune('a' + i)), Args: defaults, Records: run.records})
	}
	m, err := FromRuns(t.Context(), prior, runs, Options{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	check := server(truth, batch(64, 2000, 30), 8192, 0, 4)
	var sum, before float64
	for _, s := range check.steps {
		want := float64(truth.StepTime(s))
		sum += math.Abs(float64(m.StepTime(s))/want - 1)
		before += math.Abs(float64(prior.StepTime(s))/want - 1)
	}
	n := float64(len(check.steps))
	t.Logf("unseen batch: fitted %.2f %%, prior %.2f %%, held out %.2f %%", 100*sum/n, 100*before/n, 100*m.Errors.Mean)
	if sum/n > 0.04 || sum >= before {
		t.Errorf("steps of an unseen batch are off by %.1f %%, by the prior %.1f %%", 100*sum/n, 100*before/n)
	}
	// The way to the server and what a lone prompt's step costs beyond its tokens show as a sum only.
	for _, n := range []int{200, 2000, 8000} {
		s := cost.Step{PrefillSeqs: 1, PrefillTokens: n, PrefillAttention: float64(n) * float64(n) / 2, MaxChunk: n}
		got := m.FrontEnd.Arrival(n) + m.FrontEnd.Token + firstStep(m, s)
		want := truth.FrontEnd.Arrival(n) + truth.FrontEnd.Token + firstStep(truth, s)
		if e := float64(got)/float64(want) - 1; math.Abs(e) > 0.05 {
			t.Errorf("first token of %d prompt tokens after %v, really %v", n, got, want)
		}
	}
}

// batch is n equal requests at once.
func batch(n, prompt, output int) []arrival {
	out := make([]arrival, n)
	for i := range out {
		out[i] = arrival{0, prompt, output}
	}
	return out
}

func TestFromSteps(t *testing.T) {
	rows := []harness.StepRecord{
		{T: -1, ContextRequests: 1, ContextTokens: 4096, Elapsed: 80 * time.Millisecond, KVUsage: 0.004},
		{T: -1, GenerationRequests: 1, GenerationTokens: 1, Elapsed: 5 * time.Millisecond, KVUsage: 0.004},
		{T: -1, ContextRequests: 2, ContextTokens: 100, GenerationRequests: 1, GenerationTokens: 1, Elapsed: ms,
			KVUsage: 0.004},
		{T: -1, ContextRequests: 1, ContextTokens: 50, GenerationRequests: 1, GenerationTokens: 1, Elapsed: ms,
			KVUsage: 0.004},
		{T: 7, GenerationRequests: 2, GenerationTokens: 2, Elapsed: 6 * time.Millisecond, KVUsage: -1},
		{T: 9, GenerationRequests: 2, GenerationTokens: 2, Elapsed: 6 * time.Millisecond, KVUsage: -1},
	}
	o := mustObserve(t, Run{Name: "s", Steps: rows, Args: defaults, NumGPUBlocks: 64001})
	// The third row's prompts may have histories, the fourth may continue one, the last has no context.
	want := []cost.Observation{
		{
			Steps: []cost.Step{{PrefillSeqs: 1, PrefillTokens: 4096, PrefillAttention: 4096 * 4096 / 2, MaxChunk: 4096}},
			Time:  rows[0].Elapsed, Logged: true,
		},
		{Steps: []cost.Step{{DecodeSeqs: 1, DecodeContext: 4096 - 8}}, Time: rows[1].Elapsed, Logged: true},
		{Steps: []cost.Step{{DecodeSeqs: 2, DecodeContext: 4096 - 16}}, Time: rows[4].Elapsed},
	}
	if len(o) != len(want) {
		t.Fatalf("%d observations: %+v", len(o), o)
	}
	for i := range want {
		o[i].Steps[0].Heat = 0
		if o[i].Steps[0] != want[i].Steps[0] || o[i].Time != want[i].Time || o[i].Logged != want[i].Logged {
			t.Errorf("%d: %+v, expected %+v", i, o[i], want[i])
		}
	}
}

// A log of steps under asynchronous scheduling has no step's time: the settings say so, or steps that no device could
// do.
func TestAsyncLogIsRefused(t *testing.T) {
	prior := h200(t)
	on, off := true, false
	log := func(elapsed func(cost.Step) time.Duration) (rows []harness.StepRecord) {
		for n := range 40 {
			s := harness.StepRecord{T: -1, GenerationRequests: 1 + n%8, GenerationTokens: 1 + n%8, KVUsage: 0.004}
			s.Elapsed = elapsed(cost.Step{DecodeSeqs: s.GenerationRequests, DecodeContext: 1000})
			rows = append(rows, s)
		}
		return rows
	}
	asTaken := log(prior.StepTime)
	lessOwnWork := log(func(s cost.Step) time.Duration { return prior.StepTime(s) / 2 })
	inTime := log(func(s cost.Step) time.Duration { return prior.StepTime(s) })
	for i := range inTime {
		inTime[i].T = time.Duration(i) * 10 * ms
	}
	for _, tt := range []struct {
		name  string
		steps []harness.StepRecord
		async *bool
		want  string
	}{
		{"synchronous", asTaken, &off, ""},
		{"settings not known", asTaken, nil, ""},
		{"asynchronous", asTaken, &on, "its server had asynchronous scheduling"},
		{"faster than the device", lessOwnWork, &off, "40 of its 40 steps took less than the device can"},
		{"a simulation's steps have their own times", inTime, &on, ""},
	} {
		args := defaults
		args.AsyncScheduling = tt.async
		_, err := FromRuns(t.Context(), prior, []Run{{Name: "log", Steps: tt.steps, Args: args, NumGPUBlocks: 64001}},
			Options{})
		var refused *AsyncLogError
		if tt.want == "" && err != nil || tt.want != "" &&
			(!errors.As(err, &refused) || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestFromRunsErrors(t *testing.T) {
	prior := h200(t)
	if _, err := FromRuns(t.Context(), prior, []Run{{Name: "x"}}, Options{}); err == nil ||
		!strings.Contains(err.Error(), "max_num_batched_tokens") {
		t.Errorf("no budget: %v", err)
	}
	if _, err := FromRuns(t.Context(), prior, []Run{{Name: "empty", Args: defaults}}, Options{}); err == nil ||
		!strings.Contains(err.Error(), "empty") {
		t.Errorf("no records: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := FromRuns(ctx, prior, []Run{{Args: defaults}}, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// firstStep is how long a step takes that finds host and device idle.
func firstStep(m *cost.Model, s cost.Step) time.Duration {
	prepare, launch := m.HostTime(s)
	return prepare + max(launch, m.StepTime(s))
}
