package cost

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kvtune/harness"
	"kvtune/planner/spec"
)

func h200Prior(t testing.TB) *Model {
	t.Helper()
	return Prior(mustGPU(t, "H200"), spec.Default(), harness.EngineArgs{})
}

// randomStep is a step that a scheduler could make: decodes with contexts, and prompts.
func randomStep(rng *rand.Rand) Step {
	s := Step{DecodeSeqs: rng.IntN(400)}
	for range s.DecodeSeqs {
		n := 1 + rng.IntN(4000)
		s.DecodeContext += n
		s.SharedContext += rng.IntN(n)
	}
	for range rng.IntN(4) {
		chunk, history := 1+rng.IntN(3000), rng.IntN(6000)
		s.PrefillSeqs++
		s.PrefillTokens += chunk
		s.MaxChunk = max(s.MaxChunk, chunk)
		s.PrefillAttention += float64(chunk) * (float64(history) + float64(chunk)/2)
	}
	return s
}

// formula is the step time written out term by term, in seconds.
func formula(m *Model, s Step) float64 {
	f := make([]float64, len(m.Coefficients))
	m.terms(f, s)
	return dot(f, m.values())
}

func TestStepTimeIsTheFormula(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	m := h200Prior(t)
	for range 1000 {
		values := m.values()
		for i := range values {
			values[i] = (values[i] + 1e-6) * rng.Float64()
		}
		m.Tile = []int{1, 64, 128}[rng.IntN(3)]
		with, err := m.With(values)
		if err != nil {
			t.Fatal(err)
		}
		s := randomStep(rng)
		if s.Tokens() == 0 {
			continue
		}
		if got, want := with.StepTime(s).Seconds(), formula(with, s); math.Abs(got-want) > 2e-9 {
			t.Fatalf("%+v: %g s, the formula gives %g s", s, got, want)
		}
		p := with.Parts(s)
		if sum := p.Fixed + p.Seqs + p.Tokens + p.Attention + p.KV + p.Heat; math.Abs(sum-with.StepTime(s).Seconds()) > 2e-9 {
			t.Fatalf("%+v: parts %+v sum to %g s", s, p, sum)
		}
	}
	if got := m.StepTime(Step{}); got != 0 {
		t.Errorf("a step without work takes %v", got)
	}
}

// More work never takes less time, whatever the coefficients.
func TestStepTimeIsMonotone(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	prior := h200Prior(t)
	for range 500 {
		m, s := prior.Sample(rng), randomStep(rng)
		s.DecodeSeqs++ // so that no step has prompts alone, which have their own constant
		more := s
		switch rng.IntN(4) {
		case 0:
			more.DecodeSeqs++
			more.DecodeContext += 100
		case 1:
			more.DecodeContext += 1000
		case 2:
			more.PrefillSeqs++
			more.PrefillTokens += 7
			more.PrefillAttention += 24.5
		case 3:
			more.PrefillAttention *= 2
		}
		if a, b := m.StepTime(s), m.StepTime(more); b < a {
			t.Fatalf("%+v takes %v, %+v takes %v", s, a, more, b)
		}
	}
}

var mixed = Step{
	PrefillSeqs: 1, PrefillTokens: 512, PrefillAttention: 131072, DecodeSeqs: 64, DecodeContext: 65536,
}

func TestStepTimeDoesNotAllocate(t *testing.T) {
	m, s := h200Prior(t), mixed
	if n := testing.AllocsPerRun(100, func() { m.StepTime(s) }); n != 0 {
		t.Errorf("%g allocations per step", n)
	}
}

func BenchmarkStepTime(b *testing.B) {
	m, s := h200Prior(b), mixed
	for b.Loop() {
		s.DecodeContext++
		m.StepTime(s)
	}
}

// The prior is at or above the roofline for every device, model and step: nothing is faster than its datasheet.
func TestPriorIsAboveTheRoofline(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for _, gpu := range spec.GPUs() {
		for _, model := range spec.Models() {
			m := Prior(gpu, model, harness.EngineArgs{})
			for range 20 {
				s := randomStep(rng)
				compute, memory := m.Roofline(s)
				if got := m.StepTime(s); got < max(compute, memory) {
					t.Fatalf("%s on %s: %+v takes %v, roofline %v and %v", model.Name, gpu.Name, s, got, compute, memory)
				}
			}
		}
	}
}

func TestPriorMoves(t *testing.T) {
	gpu, model := mustGPU(t, "H100-SXM"), mustModel(t, "Llama-3.1-70B")
	decode := Step{DecodeSeqs: 32, DecodeContext: 32 * 4096}
	prefill := Step{PrefillSeqs: 1, PrefillTokens: 4096, PrefillAttention: 4096 * 4096 / 2}
	base := Prior(gpu, model, harness.EngineArgs{})
	fp8 := model
	fp8.DTypeBytes = 1
	for name, m := range map[string]*Model{
		"tensor parallel": Prior(gpu, model, harness.EngineArgs{TensorParallelSize: 4}),
		"fp8 weights":     Prior(gpu, fp8, harness.EngineArgs{}),
	} {
		for _, s := range []Step{decode, prefill} {
			if a, b := base.StepTime(s), m.StepTime(s); b >= a {
				t.Errorf("%s: %+v takes %v, not less than %v", name, s, b, a)
			}
		}
	}
	kv8 := Prior(gpu, model, harness.EngineArgs{KVCacheDType: "fp8"})
	if a, b := base.StepTime(decode), kv8.StepTime(decode); b >= a {
		t.Errorf("fp8 KV: %v, not less than %v", b, a)
	}
	if base.InRange(decode) {
		t.Error("a prior has no measured range")
	}
}

// A decode at batch 1 moves bytes, a long prompt does arithmetic.
func TestRooflineBinds(t *testing.T) {
	m := h200Prior(t)
	if compute, memory := m.Roofline(Step{DecodeSeqs: 1, DecodeContext: 1024}); memory < 10*compute {
		t.Errorf("decode: compute %v, memory %v", compute, memory)
	}
	prompt := Step{PrefillSeqs: 1, PrefillTokens: 8192, PrefillAttention: 8192 * 4096}
	if compute, memory := m.Roofline(prompt); compute < 10*memory {
		t.Errorf("prefill: compute %v, memory %v", compute, memory)
	}
	// By hand: 2 x 6.98e9 x 1000 flop at 989.5e12 flop/s, 15.01e9 B at 4.8e12 B/s.
	compute, memory := m.Roofline(Step{PrefillSeqs: 1, PrefillTokens: 1000})
	if math.Abs(compute.Seconds()-14.11e-3) > 0.02e-3 || math.Abs(memory.Seconds()-3.127e-3) > 0.01e-3 {
		t.Errorf("1000 tokens: compute %v, memory %v", compute, memory)
	}
}

func TestSampleStaysInTheIntervals(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	m := h200Prior(t)
	outside, n := 0, 0
	for range 400 {
		for i, c := range m.Sample(rng).Coefficients {
			if m.Coefficients[i].Value == 0 {
				continue
			}
			n++
			if c.Value < m.Coefficients[i].Low || c.Value > m.Coefficients[i].High {
				outside++
			}
		}
	}
	if share := float64(outside) / float64(n); share < 0.03 || share > 0.07 {
		t.Errorf("%.1f %% of the draws lie outside the 95 %% intervals", 100*share)
	}
	m.Draws = [][]float64{m.values(), m.values()}
	m.Draws[1][0] = 1
	bases := map[float64]bool{}
	for range 50 {
		bases[m.Sample(rng).Coefficients[0].Value] = true
	}
	if len(bases) != 2 || !bases[1] {
		t.Errorf("draws give bases %v, expected the two rows of Draws", bases)
	}
}

func TestWithRefuses(t *testing.T) {
	m := h200Prior(t)
	for name, edit := range map[string]func([]float64) []float64{
		"short":    func(v []float64) []float64 { return v[1:] },
		"negative": func(v []float64) []float64 { v[2] = -1; return v },
		"nan":      func(v []float64) []float64 { v[0] = math.NaN(); return v },
		"infinite": func(v []float64) []float64 { v[0] = math.Inf(1); return v },
	} {
		if _, err := m.With(edit(m.values())); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// What a prediction says of going beyond the fit names what most of its time has too much of.
func TestExtrapolated(t *testing.T) {
	m := h200Prior(t)
	m.Kind = KindFitted
	m.Range = Range{Tokens: 1000, Seqs: 10, DecodeContext: 10000, Attention: 1e6, Decode: true, Prefill: true}
	within := Step{DecodeSeqs: 10, DecodeContext: 12500}
	for want, steps := range map[string][]Step{
		"":                                   {within},
		"3.0 times the tokens of context":    {within, {DecodeSeqs: 10, DecodeContext: 30000}},
		"2.0 times the sequences":            {{DecodeSeqs: 20, DecodeContext: 16000}},
		"saw no prefill and decode together": {{PrefillSeqs: 1, PrefillTokens: 9, DecodeSeqs: 1, DecodeContext: 9}},
		"4.0 times the pairs of tokens":      {{PrefillSeqs: 1, PrefillTokens: 1000, PrefillAttention: 4e6}},
		"1.5 times the tokens: the error may be larg": {{PrefillSeqs: 1, PrefillTokens: 1500, PrefillAttention: 1e6}},
	} {
		w := Watched{Model: m}
		for _, s := range steps {
			if got := w.StepTime(s); got != m.StepTime(s) {
				t.Errorf("%+v takes %v watched, %v else", s, got, m.StepTime(s))
			}
		}
		if got := w.Extrapolated(); !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%+v: %q, want %q", steps, got, want)
		}
	}
}

func TestJSONRoundTrip(t *testing.T) {
	m := h200Prior(t)
	m.Kind, m.FittedOn, m.Errors = KindFitted, []string{"a", "b"}, &Errors{Observations: 7, Median: 0.01}
	m.Range = Range{Tokens: 8192, Seqs: 256, DecodeContext: 1 << 20, Attention: 1e9}
	m.Range.Prefill, m.Range.Decode, m.Range.Mixed = true, true, true
	m.Draws = [][]float64{m.values()}
	m.FrontEnd.Request = 4321987 * time.Nanosecond
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var back Model
	if err := json.Unmarshal(data, &back); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(m, &back, cmp.AllowUnexported(Model{})); d != "" {
		t.Errorf("read back (-written +read):\n%s", d)
	}
	again, err := json.Marshal(&back)
	if err != nil || string(again) != string(data) {
		t.Errorf("written again, the bytes differ: %v", err)
	}
}

func TestJSONRefuses(t *testing.T) {
	good, err := json.Marshal(h200Prior(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ old, new, want string }{
		{`"kvtune.cost/1"`, `"kvtune.cost/2"`, "newer kvtune"},
		{`"kvtune.cost/1"`, `"kvtune.result/1"`, "expected kvtune.cost/1"},
		{`"prior"`, `"guess"`, "kind"},
		{`"decode_context"`, `"decode_kv"`, "expected, in order"},
		{`"knots_seqs":[0,8`, `"knots_seqs":[0,0`, "ascending"},
		{`"request_s":0.004`, `"request_s":-1`, "at least 0"},
		{`"value":`, `"value":-`, "at least 0"},
		{`"value":`, `"value":1e58,"was":`, "at most an hour"},
		{`"knee_tokens":`, `"knee_tokens":-`, "at least 1"},
		{`"schema"`, `"schema`, "not a cost model"},
	} {
		bad := strings.Replace(string(good), c.old, c.new, 1)
		if bad == string(good) {
			t.Fatalf("%s is not in the file", c.old)
		}
		if err := new(Model).UnmarshalJSON([]byte(bad)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v should say %q", c.new, err, c.want)
		}
	}
	extra := strings.Replace(string(good), `{"schema"`, `{"later":{"x":1},"schema"`, 1)
	if err := json.Unmarshal([]byte(extra), new(Model)); err != nil {
		t.Errorf("an unknown field: %v", err)
	}
}

func FuzzJSON(f *testing.F) {
	good, err := json.Marshal(h200Prior(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"schema":"kvtune.cost/1","kind":"prior","knee_tokens":1,"knots_seqs":[0]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var m Model
		if json.Unmarshal(data, &m) != nil {
			return
		}
		if d := m.StepTime(Step{DecodeSeqs: 1, DecodeContext: 1}); d < 0 || d > time.Hour {
			t.Errorf("a step of %v", d)
		}
		if _, err := json.Marshal(&m); err != nil {
			t.Errorf("read but not written: %v", err)
		}
	})
}

// The largest capture size under other settings, from vllm/config/vllm.py: the grid 1, 2, 4, then by 8 to 256, by 16 to
// 512, and max_num_batched_tokens where it is within.
func TestMaxGraph(t *testing.T) {
	yes := true
	for _, c := range []struct {
		args harness.EngineArgs
		want int
	}{
		{harness.EngineArgs{}, 512},
		{harness.EngineArgs{MaxNumSeqs: 1024, MaxNumBatchedTokens: 8192}, 512},
		{harness.EngineArgs{MaxNumSeqs: 64, MaxNumBatchedTokens: 8192}, 128},
		{harness.EngineArgs{MaxNumSeqs: 50, MaxNumBatchedTokens: 8192}, 96},
		{harness.EngineArgs{MaxNumSeqs: 150, MaxNumBatchedTokens: 2048}, 288},
		{harness.EngineArgs{MaxNumSeqs: 3, MaxNumBatchedTokens: 2048}, 4},
		{harness.EngineArgs{MaxNumSeqs: 1, MaxNumBatchedTokens: 2048}, 2},
		{harness.EngineArgs{MaxNumSeqs: 64, MaxNumBatchedTokens: 99}, 99},
		{harness.EngineArgs{MaxNumSeqs: 64, EnforceEager: &yes}, 0},
	} {
		if got := MaxGraph(c.args); got != c.want {
			t.Errorf("%+v: %d, want %d", c.args, got, c.want)
		}
	}
}

// A setting moves what its CUDA graphs cover and nothing else: a step within both is as before, one beyond the smaller
// graphs is launched eagerly and is not padded.
func TestForOtherSettings(t *testing.T) {
	m := h200Prior(t)
	small := m.For(harness.EngineArgs{MaxNumSeqs: 64})
	eager := m.For(harness.EngineArgs{EnforceEager: new(bool), MaxNumSeqs: 1024})
	if eager != m {
		t.Errorf("the same graphs are another model")
	}
	mixed := func(n int) Step {
		return Step{PrefillSeqs: 1, PrefillTokens: n - 10, MaxChunk: n - 10, DecodeSeqs: 10, DecodeContext: 1000}
	}
	for _, c := range []struct {
		step Step
		same bool
	}{
		{Step{DecodeSeqs: 60, DecodeContext: 6000}, true}, {mixed(100), true}, {mixed(128), true}, {mixed(129), false},
		{mixed(500), false}, {mixed(600), true},
	} {
		_, a := m.HostTime(c.step)
		_, b := small.HostTime(c.step)
		if (a == b) != c.same || a > b {
			t.Errorf("%+v: launch %v, with smaller graphs %v", c.step, a, b)
		}
		if a, b := m.StepTime(c.step), small.StepTime(c.step); (a != b) && c.same || a < b {
			t.Errorf("%+v: %v, with smaller graphs %v", c.step, a, b)
		}
	}
	yes := true
	if _, launch := m.For(harness.EngineArgs{EnforceEager: &yes}).HostTime(Step{DecodeSeqs: 1}); launch == 0 {
		t.Error("an eager decode step is launched in no time")
	}
}
