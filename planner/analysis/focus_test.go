package analysis

import (
	"math"
	"strings"
	"testing"
	"time"

	"kvtune/harness"
	"kvtune/harness/workload"
)

// bursts are n bursts of size requests each, every apart; each request has fresh prompt tokens and output tokens.
func bursts(n, size, fresh, output int, every time.Duration) *workload.Workload {
	w := requests(n*size, 1, 0, fresh, output, 0)
	for i := range w.Requests {
		w.Requests[i].Due = time.Duration(i/size) * every
	}
	return w
}

// interrupted are eight long decodes, into which a prompt of its own is dropped every 400 ms.
func interrupted() *workload.Workload {
	w := requests(8+20, 1, 0, 7000, 2, 0)
	for i := range w.Requests {
		r := &w.Requests[i]
		if i < 8 {
			r.Prompt[0].Tokens, r.OutputTokens = 64, 1500
		} else {
			r.Due = time.Duration(i-7) * 400 * time.Millisecond
		}
	}
	return w
}

// What binds where most of the run is idle or light: in bursts, and for the requests that miss an objective.
func TestFocus(t *testing.T) {
	model := prior(t)
	roomy := settings(func(*harness.EngineArgs) {})
	few := settings(func(a *harness.EngineArgs) { a.MaxNumSeqs = 4 })
	tests := []struct {
		name  string
		args  harness.EngineArgs
		work  *workload.Workload
		slo   string
		kind  Kind
		limit string
		name2 string // the focus', "" for none
	}{
		{"bursts of 64 on four sequences", few, bursts(5, 64, 128, 16, 20*time.Second), "", Scheduling, LimitMaxNumSeqs,
			"in bursts"},
		{"the same, an objective missed in them", few, bursts(5, 64, 128, 16, 20*time.Second), "p99 TTFT <= 200ms",
			Scheduling, LimitMaxNumSeqs, "SLO missed"},
		{"the same, an objective kept", few, bursts(5, 64, 128, 16, 20*time.Second), "p99 TTFT <= 100s", Scheduling,
			LimitMaxNumSeqs, "in bursts"},
		{"bursts on a KV cache for a few requests",
			settings(func(a *harness.EngineArgs) { a.NumGPUBlocksOverride, a.MaxModelLen = 200, 2048 }),
			bursts(5, 64, 512, 64, 60*time.Second), "p99 TTFT <= 200ms", Capacity, LimitKVCapacity, "SLO missed"},
		{"one long prompt at a time, too slow alone", roomy, requests(20, 1, 0, 8000, 2, 5*time.Second), "p50 TTFT <= 1ms",
			Compute, LimitArithmetic, "SLO missed"},
		{"one decode at a time, too slow alone", roomy, requests(5, 1, 0, 64, 200, 20*time.Second), "mean TPOT <= 1ms",
			Bandwidth, LimitBandwidth, "SLO missed"},
		{"decodes that long prompts interrupt: the mean gap is the decodes'", roomy, interrupted(), "mean ITL <= 1ms",
			Bandwidth, LimitBandwidth, "SLO missed"},
		{"the same: the longest gaps are the prompts'", roomy, interrupted(), "p99 ITL <= 50ms", Compute, LimitArithmetic,
			"SLO missed"},
		{"one short request a second, fast enough", roomy, requests(20, 1, 0, 64, 8, time.Second), "p99 TTFT <= 1s",
			LightLoad, "", ""},
		{"throughput is of the whole run", roomy, requests(20, 1, 0, 64, 8, time.Second), "throughput >= 1000 token/s",
			LightLoad, "", ""},
		{"a closed loop that misses is bound by what binds it", few, closed(requests(128, 1, 0, 128, 128, 0), 64),
			"p99 TTFT <= 200ms", Scheduling, LimitMaxNumSeqs, "SLO missed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := simulate(t, model, tt.args, tt.work)
			in.Result.Metrics = harness.Measure(in.Records)
			if tt.slo != "" {
				slo, err := harness.ParseSLO(tt.slo)
				if err != nil {
					t.Fatal(err)
				}
				in.SLOs = []harness.SLO{slo}
			}
			for _, steps := range []bool{true, false} {
				if !steps { // a real server gives no steps
					in.Steps = nil
				}
				r := Analyze(t.Context(), in)
				name := ""
				if r.Focus != nil {
					name = r.Focus.Name()
					focusAddsUp(t, r)
				}
				if r.Binding != tt.kind || r.Limit != tt.limit || name != tt.name2 {
					t.Errorf("steps %v: %s (%s) binds %q, planted %s (%s) %q: %s", steps, r.Binding, r.Limit, name, tt.kind, tt.limit,
						tt.name2, r.Verdict)
				}
				if name == "SLO missed" && !strings.Contains(r.Verdict, in.SLOs[0].String()) {
					t.Errorf("the verdict does not name the objective: %s", r.Verdict)
				}
				t.Log(r.Verdict)
				for _, b := range r.Bottlenecks {
					t.Logf("  %s: %s", b.Kind, b.Why)
				}
			}
		})
	}
}

func focusAddsUp(t *testing.T, r *Report) {
	t.Helper()
	sum := 0.0
	for _, v := range r.Focus.shares {
		if v < 0 {
			t.Errorf("a share of %g", v)
		}
		sum += v
	}
	if math.Abs(sum-1) > 1e-6 || r.Focus.Share < 0 || r.Focus.Share > 1 || r.Focus.Requests > r.Focus.Of {
		t.Errorf("the shares add up to %g: %+v", sum, r.Focus)
	}
	for _, b := range r.Bottlenecks {
		if b.Binds != (b.Kind == r.Binding) || b.Binds && *b.FocusShare <= *b.Threshold {
			t.Errorf("%s binds %v with %g of at least %g", b.Kind, b.Binds, *b.FocusShare, *b.Threshold)
		}
	}
}

// Where an objective is missed, gains are in its metric.
func TestGainsInTheMissedMetric(t *testing.T) {
	args := settings(func(a *harness.EngineArgs) { a.MaxNumSeqs = 4 })
	in := simulate(t, prior(t), args, bursts(3, 32, 128, 16, 20*time.Second))
	in.Result.Metrics, in.Draws = harness.Measure(in.Records), 2
	slo, err := harness.ParseSLO("p99 TTFT <= 100ms")
	if err != nil {
		t.Fatal(err)
	}
	in.SLOs = []harness.SLO{slo}
	r := Analyze(t.Context(), in)
	if len(r.Recommendations) == 0 || r.Recommendations[0].Flag != "max_num_seqs" {
		t.Fatalf("recommendations %+v", r.Recommendations)
	}
	if g := r.Recommendations[0].Gain; g.Metric != harness.MetricTTFT || g.Stat != harness.StatP99 || g.Change < 0.3 {
		t.Errorf("gain %+v", g)
	}
	if !strings.Contains(r.Verdict, "; simulated: twice max_num_seqs, TTFT p99 better by ") {
		t.Errorf("verdict %q", r.Verdict)
	}
}

// The integral of how many stretches are under way, against counting it tick by tick.
func TestLevels(t *testing.T) {
	stretches := []stretch{{2, 5}, {3, 9}, {3, 4}, {9, 12}, {20, 21}}
	l := counts(stretches)
	covered := time.Duration(0)
	for from := range time.Duration(25) {
		n := time.Duration(0)
		for _, s := range stretches {
			if from >= s.from && from < s.to {
				n++
			}
		}
		if got := l.within(from, from+1); got != n {
			t.Errorf("%d stretches at %d, counted %d", got, from, n)
		}
		covered += min(n, 1)
	}
	if l.covered() != covered || l.within(0, 25) != 3+6+1+3+1 {
		t.Errorf("covered %d of %d, total %d", l.covered(), covered, l.within(0, 25))
	}
}
