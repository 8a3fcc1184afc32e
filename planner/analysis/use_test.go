package analysis

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"kvtune/harness"
)

// The parts of the steps' time add up, and the largest is what the cause was planted in.
func TestStepTime(t *testing.T) {
	model := prior(t)
	for i, largest := range map[int]string{0: "tokens", 1: "weights", 3: "weights"} {
		c := planted[i]
		r := Analyze(t.Context(), simulate(t, model, c.args, c.work))
		sum, best := 0.0, StepPart{}
		for _, p := range r.StepTime {
			sum += p.Share
			if p.Share > best.Share {
				best = p
			}
			if p.Name == "unexplained" && math.Abs(p.Share) > 0.05 {
				t.Errorf("%s: %.3f of the time is not explained by the very model that made it", c.name, p.Share)
			}
		}
		if math.Abs(sum-1) > 1e-9 || best.Name != largest {
			t.Errorf("%s: shares sum to %g; %s is the largest of %+v, expected %s", c.name, sum, best.Name, r.StepTime, largest)
		}
	}
}

// Every metric of Use has a definition and lies within 0..1, and the points of the utilization average to it.
func TestUse(t *testing.T) {
	model := prior(t)
	for _, c := range planted {
		in := simulate(t, model, c.args, c.work)
		in.Result.Metrics = harness.Observe(harness.ServerInfo{Args: c.args}, in.Result.Counters, in.Series)
		r := Analyze(t.Context(), in)
		for _, m := range r.Use {
			if harness.Definition(m.Name) == "" {
				t.Errorf("%s has no definition", m.Name)
			}
			if m.Value == nil && m.Note == "" || m.Value != nil && m.Unit == "ratio" && (*m.Value < 0 || *m.Value > 1.001) {
				t.Errorf("%s: %s", c.name, m)
			}
		}
		want, _ := r.Use.Value(harness.MetricComputeUse, "")
		sum := 0.0
		for _, p := range r.Utilization.Points {
			if p.Compute != nil {
				sum += *p.Compute / points
			}
			if p.StepTokens != nil && *p.StepTokens > *p.StepTokensPeak {
				t.Errorf("%s: a mean of %g tokens above the peak of %g", c.name, *p.StepTokens, *p.StepTokensPeak)
			}
		}
		if math.Abs(sum-want) > 0.01*want {
			t.Errorf("%s: the points' compute use averages to %g, the window's is %g", c.name, sum, want)
		}
		hit, _ := r.Use.Value(harness.MetricCacheHitRate, "")
		best, _ := r.Use.Value(harness.MetricBestHitRate, "")
		if hit > best+1e-9 && c.limit != LimitKVCapacity { // a preempted request finds its own blocks again
			t.Errorf("%s: hit rate %g above the best possible %g", c.name, hit, best)
		}
	}
}

// Events are at the moment of their cause: preemptions from the steps or the counter's rate, throttling from the
// samples, errors from the requests.
func TestEvents(t *testing.T) {
	model := prior(t)
	c := planted[2]
	in := simulate(t, model, c.args, c.work)
	count := func(r *Report, kind EventKind) (n int, text string) {
		for _, e := range r.Utilization.Events {
			if e.Kind == kind {
				n, text = n+e.Count, e.Text
			}
		}
		if !slices.IsSortedFunc(r.Utilization.Events, func(a, b Event) int { return int(math.Copysign(1, a.T-b.T)) }) {
			t.Error("events are not in order of time")
		}
		return n, text
	}
	last := in.Records[len(in.Records)-1]
	in.Series = append(in.Series,
		harness.Sample{T: time.Second, Metric: harness.SeriesGPUThrottled + harness.PowerCap, Value: 1},
		harness.Sample{T: time.Second, Metric: harness.SeriesGPUThrottled + "hardware slowdown", Value: 1},
		harness.Sample{T: time.Second, Metric: harness.SeriesGPUPower, Value: 650},
		harness.Sample{T: time.Second, Metric: harness.SeriesHostCPU, Value: 0.25})
	in.Records[len(in.Records)-1].Error = "connection reset"
	r := Analyze(t.Context(), in)
	if n, _ := count(r, EventPreemption); n == 0 || float64(n) != in.Result.Counters[harness.CounterPreemptions] {
		t.Errorf("%d preemptions, the counter has %g", n, in.Result.Counters[harness.CounterPreemptions])
	}
	if n, _ := count(r, EventPowerCap); n != 1 {
		t.Errorf("%d samples at the power limit", n)
	}
	if n, text := count(r, EventThrottle); n != 1 || !strings.Contains(text, "hardware slowdown") {
		t.Errorf("%d throttled samples: %q", n, text)
	}
	if n, text := count(r, EventError); n != 1 || !strings.Contains(text, "connection reset") {
		t.Errorf("%d errors: %q", n, text)
	}
	if e := r.Utilization.Events[len(r.Utilization.Events)-1]; e.T > last.End().Seconds() {
		t.Errorf("an event at %g s, after the end", e.T)
	}
	power, cpu := 0, 0
	for _, p := range r.Utilization.Points {
		if p.Power != nil && *p.Power == 650 {
			power++
		}
		if p.HostCPU != nil && *p.HostCPU == 0.25 {
			cpu++
		}
	}
	if power != 1 || cpu != 1 {
		t.Errorf("%d points with power, %d with the host's processors, expected 1 each", power, cpu)
	}
	// A server without a log of steps: the counter's rate.
	in.Steps = nil
	in.Series = append(in.Series, harness.Sample{T: time.Second, Metric: harness.SeriesPreemptionRate, Value: 0},
		harness.Sample{T: 3 * time.Second, Metric: harness.SeriesPreemptionRate, Value: 2.5})
	if n, _ := count(Analyze(t.Context(), in), EventPreemption); n != 5 {
		t.Errorf("%d preemptions, expected 2.5/s x 2 s", n)
	}
}

// A measured ceiling takes the datasheet's place, and moves what binds.
func TestMeasuredCeilings(t *testing.T) {
	model := prior(t)
	c := planted[1]
	in := simulate(t, model, c.args, c.work)
	paper := Analyze(t.Context(), in)
	in.Bandwidth = model.Limits.Bandwidth * 0.9
	measured := Analyze(t.Context(), in)
	if measured.Roofline.Bandwidth != in.Bandwidth || measured.Roofline.Flops != model.Limits.Flops {
		t.Errorf("ceilings %g and %g", measured.Roofline.Bandwidth, measured.Roofline.Flops)
	}
	a, _ := paper.Use.Value(harness.MetricBandwidthUse, "")
	b, _ := measured.Use.Value(harness.MetricBandwidthUse, "")
	if math.Abs(b/a-1/0.9) > 0.001 {
		t.Errorf("bandwidth use %g under the datasheet, %g under 0.9 of it", a, b)
	}
	if cs := measured.Roofline.Ceilings; cs[0].Source != "measured" || cs[0].Name != "memory bandwidth" || len(cs) != 3 {
		t.Errorf("ceilings %+v", cs)
	}
	in.Flops = model.Limits.Flops / 50 // a device whose arithmetic is that slow
	if r := Analyze(t.Context(), in); r.Binding != Compute {
		t.Errorf("%s binds", r.Binding)
	}
}

// A sample taken during a long step tells of the end of the step before it, and each step takes the sample nearest to
// its end.
func TestGaugesTellOfTheStepBefore(t *testing.T) {
	ends := []time.Duration{time.Second, 3 * time.Second, 4 * time.Second} // the second step takes 2 s
	sample := func(at time.Duration, v float64) harness.Sample {
		return harness.Sample{T: at, Metric: harness.SeriesKVUsage, Value: v}
	}
	g := newGauges([]harness.Sample{sample(2900*time.Millisecond, 0), sample(3500*time.Millisecond, 0.9),
		sample(5*time.Second, 0.95)}, ends)
	for i, want := range []float64{0, 0.9, 0.95} {
		if kv, running, _ := g.at(ends[i]); kv != want || running >= 0 {
			t.Errorf("step %d: usage %g and %d running, want %g and none observed", i, kv, running, want)
		}
	}
}
