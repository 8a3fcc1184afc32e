package cost

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"kvtune/harness"
)

// Against the definition: x is optimal iff it is at least 0, the gradient is at least 0 where x is 0, and 0 elsewhere
// (Karush, Kuhn and Tucker).
func TestNNLSIsOptimal(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for trial := range 300 {
		n := 1 + rng.IntN(12)
		g := newGram(n)
		for range n + rng.IntN(20) {
			row := make([]float64, n)
			for j := range row {
				row[j] = rng.NormFloat64()
			}
			g.add(row, rng.NormFloat64(), 1)
		}
		for j := range n {
			g.diagonal(j, 0, 1e-3)
		}
		x, err := g.solve()
		if err != nil {
			t.Fatal(err)
		}
		for j := range n {
			gradient := dot(g.a[j*n:(j+1)*n], x) - g.b[j]
			if x[j] < 0 || x[j] == 0 && gradient < -1e-6 || x[j] > 0 && math.Abs(gradient) > 1e-6 {
				t.Fatalf("trial %d: x[%d] = %g, gradient %g", trial, j, x[j], gradient)
			}
		}
	}
}

// grid is a profile: decodes at batch sizes and contexts, prompts, and prompts beside decodes.
func grid() []Step {
	var steps []Step
	for _, b := range []int{1, 8, 16, 32, 64, 128, 256} {
		for _, c := range []int{64, 1024, 4096} {
			steps = append(steps, Step{DecodeSeqs: b, DecodeContext: b * c})
		}
	}
	for _, n := range []int{64, 256, 512, 1024, 4096, 8192} {
		s := Step{PrefillSeqs: 1, PrefillTokens: n, PrefillAttention: float64(n) * float64(n) / 2}
		steps = append(steps, s)
		for _, b := range []int{32, 96} {
			s.DecodeSeqs, s.DecodeContext = b, b*2000
			steps = append(steps, s)
		}
	}
	return steps
}

// moved is a prior whose every coefficient is off by up to a factor.
func moved(t testing.TB, m *Model, rng *rand.Rand, factor float64) *Model {
	t.Helper()
	values := m.values()
	for i := range values {
		values[i] *= math.Pow(factor, 2*rng.Float64()-1)
	}
	out, err := m.With(values)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func observe(truth *Model, steps []Step, repeats int, noise float64, rng *rand.Rand) []Observation {
	var out []Observation
	for _, s := range steps {
		for range repeats {
			d := float64(truth.StepTime(s)) * (1 + noise*rng.NormFloat64())
			out = append(out, Observation{Steps: []Step{s}, Time: time.Duration(d), Source: "grid"})
		}
	}
	return out
}

func TestFitFindsTheTruth(t *testing.T) {
	prior := h200Prior(t)
	for seed := range uint64(5) {
		rng := rand.New(rand.NewPCG(seed, 9))
		truth := moved(t, prior, rng, 1.3)
		observations := observe(truth, grid(), 8, 0.03, rng)
		m, err := Fit(prior, observations, FitOptions{Seed: seed})
		if err != nil {
			t.Fatal(err)
		}
		var worst, sum float64
		const n = 300
		for range n {
			s := randomStep(rng)
			if s.Tokens() == 0 {
				continue
			}
			e := math.Abs(float64(m.StepTime(s))/float64(truth.StepTime(s)) - 1)
			worst, sum = max(worst, e), sum+e
		}
		if sum/n > 0.03 || worst > 0.12 {
			t.Errorf("seed %d: unseen steps are off by %.1f %% on average, %.1f %% at worst", seed, 100*sum/n, 100*worst)
		}
		if m.Errors.Mean > 0.05 || m.Errors.Mean >= m.Errors.Prior {
			t.Errorf("seed %d: errors %+v", seed, *m.Errors)
		}
		if m.Kind != KindFitted || !slices.Equal(m.FittedOn, []string{"grid"}) || !m.InRange(grid()[3]) {
			t.Errorf("seed %d: %s fitted on %v, range %+v", seed, m.Kind, m.FittedOn, m.Range)
		}
	}
}

// Few observations correct what they show and leave the rest to physics.
func TestFitOnFewObservationsStaysPhysical(t *testing.T) {
	prior := h200Prior(t)
	rng := rand.New(rand.NewPCG(2, 2))
	truth := moved(t, prior, rng, 1.25)
	seen := Step{DecodeSeqs: 16, DecodeContext: 16 * 1024}
	m, err := Fit(prior, observe(truth, []Step{seen}, 10, 0.02, rng), FitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range grid() {
		if r := float64(m.StepTime(s)) / float64(prior.StepTime(s)); r < 0.5 || r > 2 {
			t.Errorf("%+v: %.2f of what the prior says", s, r)
		}
		if compute, memory := m.Roofline(s); float64(m.StepTime(s)) < 0.95*float64(max(compute, memory)) {
			t.Errorf("%+v: %v is below the roofline", s, m.StepTime(s))
		}
	}
	if e := float64(m.StepTime(seen))/float64(truth.StepTime(seen)) - 1; math.Abs(e) > 0.03 {
		t.Errorf("the step that was seen is off by %.1f %%", 100*e)
	}
	if m.InRange(Step{PrefillSeqs: 1, PrefillTokens: 64}) {
		t.Error("prompts were never seen, yet in range")
	}
}

// What is not part of a step is told apart: the way to the server, and a launch that the log leaves out.
func TestFitTellsLatenciesApart(t *testing.T) {
	prior := h200Prior(t)
	rng := rand.New(rand.NewPCG(3, 3))
	const request = 11 * time.Millisecond // of it the prior takes 3.5 ms for the host to prepare a step
	observations := observe(prior, grid(), 4, 0.005, rng)
	for _, o := range observe(prior, grid(), 4, 0.005, rng) {
		if s := o.Steps[0]; s.PrefillTokens > 1000 {
			_, launch := prior.HostTime(s)
			o.Time -= launch
			o.Logged = true
			observations = append(observations, o)
		} else if s.PrefillTokens > 0 && s.DecodeSeqs == 0 {
			_, launch := prior.HostTime(s)
			o.Time = request + max(o.Time, launch)
			o.Prompt = s.PrefillTokens
			observations = append(observations, o)
		}
	}
	m, err := Fit(prior, observations, FitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	prepare, _ := m.HostTime(Step{DecodeSeqs: 1})
	got := m.FrontEnd.Arrival(100) + m.FrontEnd.Token + prepare
	if math.Abs(float64(got-request)) > float64(time.Millisecond) {
		t.Errorf("request latency %v, truth %v", got, request)
	}
	for _, s := range grid() {
		if e := float64(m.StepTime(s))/float64(prior.StepTime(s)) - 1; math.Abs(e) > 0.05 {
			t.Errorf("%+v: off by %.1f %%", s, 100*e)
		}
	}
}

// A sum of steps says as much about the slopes as its parts.
func TestFitOnSums(t *testing.T) {
	prior := h200Prior(t)
	rng := rand.New(rand.NewPCG(4, 4))
	truth := moved(t, prior, rng, 1.2)
	var observations []Observation
	steps := grid()
	for range 120 {
		var o Observation
		for range 2 + rng.IntN(4) {
			s := steps[rng.IntN(len(steps))]
			o.Steps = append(o.Steps, s)
			o.Time += truth.StepTime(s)
		}
		observations = append(observations, o)
	}
	m, err := Fit(prior, observations, FitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var sum float64
	for _, s := range steps {
		sum += math.Abs(float64(m.StepTime(s))/float64(truth.StepTime(s)) - 1)
	}
	if got := sum / float64(len(steps)); got > 0.05 {
		t.Errorf("single steps are off by %.1f %% on average", 100*got)
	}
}

// A device that is nothing like the prior's still gets the form: here one that is 20 times slower.
func TestFitOnAnotherDevice(t *testing.T) {
	prior := h200Prior(t)
	values := prior.values()
	for i := range values {
		values[i] *= 20
	}
	truth, err := prior.With(values)
	if err != nil {
		t.Fatal(err)
	}
	m, err := Fit(prior, observe(truth, grid()[:12], 3, 0.02, rand.New(rand.NewPCG(5, 5))), FitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range grid() {
		if r := float64(m.StepTime(s)) / float64(truth.StepTime(s)); r < 0.7 || r > 1.4 {
			t.Errorf("%+v: %.2f of the truth", s, r)
		}
	}
}

// A processor faster than the table's entry is no mistake.
func TestFitOnAFasterCPU(t *testing.T) {
	prior := Prior(mustGPU(t, "CPU"), mustModel(t, "Llama-3.2-1B"), harness.EngineArgs{})
	values := prior.values()
	for i := range values {
		values[i] /= 10
	}
	truth, err := prior.With(values)
	if err != nil {
		t.Fatal(err)
	}
	m, err := Fit(prior, observe(truth, grid()[:12], 3, 0.02, rand.New(rand.NewPCG(5, 5))), FitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if m.Errors.Dropped > 0 || m.Errors.Mean > 0.05 {
		t.Errorf("errors %+v", *m.Errors)
	}
}

func TestFitDropsTheImpossible(t *testing.T) {
	prior := h200Prior(t)
	rng := rand.New(rand.NewPCG(6, 6))
	good := observe(prior, grid(), 3, 0.01, rng)
	bad := []Observation{
		{Steps: []Step{{DecodeSeqs: 1, DecodeContext: 64}}, Time: time.Millisecond}, // weights alone take 3.1 ms
		{Time: time.Second},
		{Steps: grid()[:1]},
	}
	m, err := Fit(prior, append(bad, good...), FitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if m.Errors.Dropped != len(bad) || m.Errors.Observations != len(good) {
		t.Errorf("errors %+v", *m.Errors)
	}
	if _, err := Fit(prior, bad, FitOptions{}); err == nil || !strings.Contains(err.Error(), "right GPU") {
		t.Errorf("nothing usable: %v", err)
	}
}

func TestFitSameSeedSameBytes(t *testing.T) {
	prior := h200Prior(t)
	rng := rand.New(rand.NewPCG(7, 7))
	observations := observe(prior, grid(), 3, 0.05, rng)
	write := func(o []Observation, seed uint64) string {
		m, err := Fit(prior, o, FitOptions{Seed: seed, Draws: 10})
		if err != nil {
			t.Fatal(err)
		}
		data, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	a := write(observations, 1)
	if b := write(observations, 1); a != b {
		t.Error("the same seed gave other bytes")
	}
	if b := write(observations, 2); a == b {
		t.Error("another seed gave the same draws")
	}
}

// The intervals hold the truth about as often as they claim.
func TestIntervalsHoldTheTruth(t *testing.T) {
	prior := h200Prior(t)
	held, n := 0, 0
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 8))
		truth := moved(t, prior, rng, 1.3)
		m, err := Fit(prior, observe(truth, grid(), 4, 0.03, rng), FitOptions{Seed: seed})
		if err != nil {
			t.Fatal(err)
		}
		for i, c := range m.Coefficients {
			if truth.Coefficients[i].Value == 0 {
				continue
			}
			n++
			if v := truth.Coefficients[i].Value; v >= c.Low && v <= c.High {
				held++
			}
		}
	}
	if share := float64(held) / float64(n); share < 0.75 {
		t.Errorf("only %.0f %% of the true coefficients lie in their 95 %% intervals", 100*share)
	}
}

// Draws of a fit move the front end about its fitted times; those of a prior as widely as its coefficients.
func TestSampleMovesTheFrontEnd(t *testing.T) {
	prior := h200Prior(t)
	var obs []Observation
	for _, n := range []int{64, 256, 1024, 2048, 4096} {
		s := Step{PrefillSeqs: 1, PrefillTokens: n, MaxChunk: n, PrefillAttention: float64(n) * float64(n) / 2}
		prepare, launch := prior.HostTime(s)
		whole := prior.FrontEnd.Arrival(n) + prior.FrontEnd.Token + prepare + max(launch, prior.StepTime(s))
		for range 4 {
			obs = append(obs, Observation{Steps: []Step{s}, Time: whole, Prompt: n})
		}
	}
	fitted, err := Fit(prior, obs, FitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range map[string]*Model{"prior": prior, "fitted": fitted} {
		rng := rand.New(rand.NewPCG(1, 2))
		lower, higher := 0, 0
		for range 200 {
			switch d := m.Sample(rng).FrontEnd.Arrival(1000); {
			case d < m.FrontEnd.Arrival(1000):
				lower++
			case d > m.FrontEnd.Arrival(1000):
				higher++
			}
		}
		if lower < 40 || higher < 40 {
			t.Errorf("%s: of 200 draws %d arrive sooner and %d later", name, lower, higher)
		}
	}
}
