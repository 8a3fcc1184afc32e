package timing

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"kvtune/harness"
	"kvtune/harness/telemetry"
)

// fake is a clock in virtual time: a launch takes truth seconds, a sample has noise from the launches and the clock's
// own cost on top.
type fake struct {
	truth, cost float64
	noise       func(sample int) float64 // of the whole sample, relative to truth
	taken       int                      // samples so far, warm-up included
	now         time.Time
	raw         []float64 // every sample that was handed out with more than one asked for, or after the warm-up
	fail        int       // the series from which on it fails; 0 never
	series      int
	hz          func(sample int) float64 // the device's clock; nil: it does not count cycles
}

func (f *fake) Series(samples, launches int) ([]Reading, error) {
	if f.series++; f.fail > 0 && f.series >= f.fail {
		return nil, errors.New("the device is gone")
	}
	out := make([]Reading, samples)
	for i := range out {
		seconds := f.cost + float64(launches)*f.truth
		if f.noise != nil {
			seconds += float64(launches) * f.truth * f.noise(f.taken)
		}
		out[i].Seconds = seconds
		if f.hz != nil {
			out[i].SMClock = new(f.hz(f.taken))
		}
		f.taken++
		f.now = f.now.Add(time.Duration(seconds * 1e9))
		f.raw = append(f.raw, seconds)
	}
	return out, nil
}

func (f *fake) Empty(samples int) ([]float64, error) {
	f.raw = nil // the warm-up is over
	return slices.Repeat([]float64{f.cost}, samples), nil
}

// options measure in the fake's own time.
func (f *fake) options() Options {
	return Options{Now: func() time.Time { return f.now }, WarmUp: time.Millisecond}
}

func measure(t *testing.T, f *fake, o Options) *Result {
	t.Helper()
	o.Now = f.options().Now
	r, err := Measure(t.Context(), f, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func normal(seed uint64, sd float64) func(int) float64 {
	rng := rand.New(rand.NewPCG(seed, 2))
	return func(int) float64 { return sd * rng.NormFloat64() }
}

// TestOverhead: the clock's cost is subtracted, and launches are batched until it hardly matters.
func TestOverhead(t *testing.T) {
	f := &fake{truth: 2e-6, cost: 5e-6, noise: normal(1, 0.02)}
	r := measure(t, f, f.options())
	if math.Abs(r.Median/2e-6-1) > 0.005 {
		t.Errorf("median %v, want 2e-6", r.Median)
	}
	if r.Overhead != 5e-6 || r.Launches != 1000 {
		t.Errorf("overhead %v, %d launches in a sample; want 5e-6 and the most, 1000", r.Overhead, r.Launches)
	}
	if got := launchesFor(1e-3, 5e-6); got != 5 {
		t.Errorf("%d launches of 1 ms against a cost of 5 us, want 5", got)
	}
	if got := launchesFor(1, 5e-6); got != 1 {
		t.Errorf("%d launches of 1 s", got)
	}
	o := f.options()
	o.Launches = 7
	if r := measure(t, f, o); r.Launches != 7 {
		t.Errorf("%d launches, 7 were asked for", r.Launches)
	}
}

// TestCycles: work that is bound by the processors takes the same cycles whatever the clock's rate is.
func TestCycles(t *testing.T) {
	slow := func(sample int) float64 { return 1 - 0.1*float64(sample%2) } // of the full clock, by turns
	f := &fake{truth: 1e-3, noise: func(sample int) float64 { return 1/slow(sample) - 1 },
		hz: func(sample int) float64 { return 2e9 * slow(sample) }}
	r := measure(t, f, f.options())
	if r.Cycles == nil || math.Abs(*r.Cycles/2e6-1) > 1e-9 || !r.Samples[0].Counted {
		t.Errorf("cycles %v, want 2e6", r.Cycles)
	}
	f.hz = nil
	if r := measure(t, f, f.options()); r.Cycles != nil || r.Samples[0].Counted {
		t.Errorf("cycles %v of a clock that does not count them", *r.Cycles)
	}
}

// TestPowerCap: what a device does at its power limit counts, and is said.
func TestPowerCap(t *testing.T) {
	f := &fake{truth: 1e-3, noise: normal(1, 0.001)}
	o := f.options()
	o.Probe = func() (telemetry.GPU, error) { return telemetry.GPU{Throttle: []string{harness.PowerCap}}, nil }
	r := measure(t, f, o)
	if r.Gated != 0 || r.Capped != len(r.Samples) || !strings.Contains(strings.Join(r.Warnings, " "), "power limit") {
		t.Errorf("%d gated, %d of %d capped, %q", r.Gated, r.Capped, len(r.Samples), r.Warnings)
	}
}

// TestTurns: samples are whole turns where that is possible.
func TestTurns(t *testing.T) {
	for _, c := range [][3]int{{5, 0, 5}, {5, 1, 5}, {5, 4, 8}, {8, 4, 8}, {1000, 7, 994}, {999, 7, 994}, {3, 2000, 3}} {
		if got := whole(c[0], c[1]); got != c[2] {
			t.Errorf("%d launches in turns of %d: %d, want %d", c[0], c[1], got, c[2])
		}
	}
}

// TestStop: with little noise the rule stops as soon as it may, with more it takes what it needs, and where that is too
// much it says that the time was up and how far it came.
func TestStop(t *testing.T) {
	quiet := &fake{truth: 1e-3, noise: normal(1, 0.001)}
	r := measure(t, quiet, quiet.options())
	if r.Stop != Precise || len(r.Samples) < 30 || len(r.Samples) > 80 || r.Precision() > 0.005 {
		t.Errorf("quiet: %s after %d samples, known to %v", r.Stop, len(r.Samples), r.Precision())
	}
	some := &fake{truth: 1e-3, noise: normal(1, 0.05)}
	r = measure(t, some, some.options())
	if r.Stop != Precise || len(r.Samples) < 300 || len(r.Samples) > 1500 || len(r.Warnings) > 0 {
		t.Errorf("5 %% noise: %s after %d samples %q", r.Stop, len(r.Samples), r.Warnings)
	}
	wild := &fake{truth: 1e-3, noise: normal(1, 0.5)}
	o := wild.options()
	o.MaxTime = time.Second
	r = measure(t, wild, o)
	if r.Stop != TimeUp || r.Precision() < 0.005 || !strings.Contains(strings.Join(r.Warnings, " "), "time up") {
		t.Errorf("50 %% noise: %s, known to %v, %q", r.Stop, r.Precision(), r.Warnings)
	}
	o.MaxTime, o.MaxSamples = time.Hour, 200
	if r = measure(t, wild, o); r.Stop != Full || len(r.Samples) != 200 {
		t.Errorf("room for 200: %s after %d", r.Stop, len(r.Samples))
	}
	slow := &fake{truth: 10}
	o = slow.options()
	if r = measure(t, slow, o); r.Stop != TimeUp || len(r.Samples) != 1 {
		t.Errorf("a launch of 10 s: %s after %d samples", r.Stop, len(r.Samples))
	}
}

// TestCoverage: the 95 % interval holds the true median in about 95 % of runs, although the rule looks at it again and
// again, and also where samples know of their neighbours.
func TestCoverage(t *testing.T) {
	if testing.Short() {
		t.Skip("statistics over many runs: without -short")
	}
	for _, rho := range []float64{0, 0.7} {
		const runs = 400
		hits := 0
		for seed := range uint64(runs) {
			rng := rand.New(rand.NewPCG(seed, 3))
			v := rng.NormFloat64()
			f := &fake{truth: 1e-3, noise: func(int) float64 {
				v = rho*v + math.Sqrt(1-rho*rho)*rng.NormFloat64()
				return 0.03 * math.Abs(v)
			}}
			r := measure(t, f, f.options())
			want := 1e-3 * (1 + 0.03*0.67449) // the median of |N(0,1)|
			if r.Interval.Low <= want && want <= r.Interval.High {
				hits++
			}
		}
		if share := float64(hits) / runs; share < 0.90 {
			t.Errorf("samples that keep %v of the one before: the interval holds the median in %.3f of the runs", rho, share)
		}
	}
}

// TestNothingIsDropped: what the clock gave is what is in the result, in order, outliers flagged.
func TestNothingIsDropped(t *testing.T) {
	few := normal(4, 0.01)
	f := &fake{truth: 1e-3, cost: 1e-6, noise: func(i int) float64 {
		if i%50 == 49 {
			return 3
		}
		return few(i)
	}}
	o := f.options()
	o.Launches = 1
	r := measure(t, f, o)
	if len(r.Samples) != len(f.raw) {
		t.Fatalf("%d samples of %d", len(r.Samples), len(f.raw))
	}
	outliers := 0
	for i, s := range r.Samples {
		if math.Abs(s.Seconds-(f.raw[i]-1e-6)) > 1e-15 {
			t.Fatalf("sample %d is %v, the clock gave %v", i, s.Seconds, f.raw[i])
		}
		if s.Outlier != (s.Seconds > 3e-3) {
			t.Errorf("sample %d of %v: outlier %v", i, s.Seconds, s.Outlier)
		}
		if s.Outlier {
			outliers++
		}
	}
	if outliers == 0 || outliers != r.Outliers {
		t.Errorf("%d outliers, %d counted", outliers, r.Outliers)
	}
}

func TestDrift(t *testing.T) {
	steady := normal(5, 0.01)
	f := &fake{truth: 1e-3, noise: func(i int) float64 { return steady(i) + 2e-5*float64(i) }}
	o := f.options()
	o.MinSamples = 1000
	r := measure(t, f, o)
	if r.Drift < 0.05 || r.Drift > 0.08 || r.DriftP > 1e-6 || !strings.Contains(strings.Join(r.Warnings, " "), "drift") {
		t.Errorf("a drift of about 1.3 %% over the run: %v, p = %v, %q", r.Drift, r.DriftP, r.Warnings)
	}
	f = &fake{truth: 1e-3, noise: normal(6, 0.01)}
	if r = measure(t, f, o); r.DriftP < 0.01 || len(r.Warnings) > 0 {
		t.Errorf("no drift: p = %v, %q", r.DriftP, r.Warnings)
	}
}

func TestAutocorrelationIsReported(t *testing.T) {
	rng, v := rand.New(rand.NewPCG(1, 1)), 0.0
	f := &fake{truth: 1e-3, noise: func(int) float64 { v = 0.9*v + 0.01*rng.NormFloat64(); return v }}
	o := f.options()
	o.MinSamples = 1000
	r := measure(t, f, o)
	if r.Autocorrelation < 0.8 || r.Effective > len(r.Samples)/8 {
		t.Errorf("autocorrelation %v, %d of %d samples are independent", r.Autocorrelation, r.Effective, len(r.Samples))
	}
}

// TestCoarseClock: a clock of half a microsecond cannot give an interval of nothing.
func TestCoarseClock(t *testing.T) {
	f := &fake{truth: 10e-6, noise: func(i int) float64 { return 0.05 * float64(i%10/9) }}
	o := f.options()
	o.Launches = 1
	r := measure(t, f, o)
	if math.Abs(r.Resolution-0.5e-6) > 1e-12 || r.Interval.High-r.Interval.Low < 0.49e-6 {
		t.Errorf("resolution %v, interval %v", r.Resolution, r.Interval)
	}
}

// TestGate: samples of a throttled device are kept and flagged, and the median is that of the others.
func TestGate(t *testing.T) {
	f := &fake{truth: 1e-3}
	hot := func() bool { return f.taken > 100 && f.taken < 400 }
	f.noise = func(i int) float64 {
		if hot() {
			return 0.3
		}
		return 0.0001 * float64(i%7)
	}
	o := f.options()
	o.MinSamples = 500
	o.Probe = func() (telemetry.GPU, error) {
		g := telemetry.GPU{SMClock: new(1.98e9)}
		if hot() {
			g.SMClock, g.Throttle = new(1.4e9), []string{"hardware slowdown"}
		}
		return g, nil
	}
	r := measure(t, f, o)
	if r.Median > 1.001e-3 || r.Gated < 300 || len(r.Samples)-r.Gated < 500 {
		t.Errorf("median %v, %d of %d samples gated", r.Median, r.Gated, len(r.Samples))
	}
	for i, s := range r.Samples {
		if s.Seconds > 1.2e-3 && s.Gate != "hardware slowdown" {
			t.Fatalf("sample %d of %v while throttled: gate %q", i, s.Seconds, s.Gate)
		}
	}
	if r.Before == nil || r.After == nil || *r.Samples[0].SMClock != 1.98e9 {
		t.Error("the device's state is not kept")
	}
	o.MinSamples = 30
	o.Probe = func() (telemetry.GPU, error) { return telemetry.GPU{Throttle: []string{"hardware slowdown"}}, nil }
	o.MaxTime = 300 * time.Millisecond
	r = measure(t, f, o)
	if math.IsNaN(r.Median) || r.Gated != len(r.Samples) || !strings.Contains(r.Warnings[0], "throughout") {
		t.Errorf("throttled throughout: median %v, %d of %d gated, %q", r.Median, r.Gated, len(r.Samples), r.Warnings)
	}
}

func TestErrors(t *testing.T) {
	f := &fake{truth: 1e-3, noise: normal(1, 0.5), fail: 10}
	r, err := Measure(t.Context(), f, f.options())
	if err == nil || !strings.Contains(err.Error(), "the device is gone") || r == nil || len(r.Samples) == 0 {
		t.Errorf("a clock that fails later: %v, %v", r, err)
	}
	f = &fake{truth: 1e-3, fail: 1}
	if r, err := Measure(t.Context(), f, f.options()); err == nil || r != nil {
		t.Errorf("a clock that fails at once: %v, %v", r, err)
	}
	o := f.options()
	o.MinSamples = 3
	if _, err := Measure(t.Context(), &fake{truth: 1e-3}, o); err == nil || !strings.Contains(err.Error(), "from 6") {
		t.Errorf("3 samples: %v", err)
	}
	// Cancelled: what was measured is there.
	ctx, cancel := context.WithCancel(t.Context())
	f = &fake{truth: 1e-3, noise: func(i int) float64 {
		if i == 200 {
			cancel()
		}
		return float64(i%7) / 7
	}}
	if r, err := Measure(ctx, f, f.options()); err != nil || r.Stop != Cancelled || len(r.Samples) < 100 {
		t.Errorf("cancelled: %s, %d samples, %v", r.Stop, len(r.Samples), err)
	}
	// No GPU to look at is no error, a device that is lost is.
	f = &fake{truth: 1e-3}
	o = f.options()
	o.Probe = func() (telemetry.GPU, error) { return telemetry.GPU{}, telemetry.ErrNoGPU }
	if r := measure(t, f, o); r.Before != nil {
		t.Error("a state without a GPU")
	}
	o.Probe = func() (telemetry.GPU, error) { return telemetry.GPU{}, errors.New("lost") }
	if _, err := Measure(t.Context(), f, o); err == nil || !strings.Contains(err.Error(), "lost") {
		t.Errorf("a probe that fails: %v", err)
	}
}

// TestCPU measures a real piece of work on the host: sleeping is longer than it says, never shorter.
func TestCPU(t *testing.T) {
	prepared, launched := 0, 0
	clock := CPU(func(n int) error { launched += n; time.Sleep(time.Duration(n) * time.Millisecond); return nil },
		func() error { prepared++; return nil })
	r, err := Measure(t.Context(), clock, Options{Launches: 1, WarmUp: -1, MaxTime: 100 * time.Millisecond, MinSamples: 6})
	if err != nil {
		t.Fatal(err)
	}
	if r.Median < 0.99e-3 || r.Median > 20e-3 || prepared != launched {
		t.Errorf("median of a sleep of 1 ms: %v; prepared %d times for %d launches", r.Median, prepared, launched)
	}
	if r.Overhead < 0 || r.Overhead > 1e-4 {
		t.Errorf("the clock's cost is %v", r.Overhead)
	}
}
