package planner

import (
	"testing"
	"time"

	"kvtune/harness"
	"kvtune/harness/workload"
	"kvtune/planner/analysis"
)

// throughputs are runs that measured some token/s.
func throughputs(values ...float64) (runs []Measured) {
	for i := range values {
		runs = append(runs, Measured{Metrics: harness.Metrics{
			{Name: harness.MetricTotalThroughput, Unit: "token/s", Value: &values[i]}}})
	}
	return runs
}

// A verdict follows from where the measured interval lies, and from whether it meets the predicted one.
func TestMeasuredGain(t *testing.T) {
	between := func(low, high float64) *analysis.Gain {
		return &analysis.Gain{Metric: harness.MetricTotalThroughput, Change: (low + high) / 2, Low: &low, High: &high}
	}
	for name, test := range map[string]struct {
		predicted     *analysis.Gain
		before, after []float64
		change        float64
		want          GainVerdict
	}{
		"holds":             {between(0.15, 0.25), []float64{100, 100, 100}, []float64{120, 121, 119}, 0.2, GainHolds},
		"nothing predicted": {nil, []float64{100, 100, 100}, []float64{120, 121, 119}, 0.2, GainHolds},
		"less than said":    {between(0.5, 0.6), []float64{100, 100, 100}, []float64{120, 121, 119}, 0.2, GainDiffers},
		"more than said":    {between(0.01, 0.02), []float64{100, 100, 100}, []float64{120, 121, 119}, 0.2, GainDiffers},
		"unsure":            {between(0.01, 0.02), []float64{100, 100, 100}, []float64{90, 120, 99}, 0.03, GainUnsure},
		"worse":             {between(0.15, 0.25), []float64{100, 100, 100}, []float64{80, 81, 79}, -0.2, GainWorse},
		"in pairs":          {between(0.15, 0.25), []float64{100, 200, 50}, []float64{120, 242, 59.5}, 0.2, GainHolds},
		"one round":         {between(0.15, 0.25), []float64{100}, []float64{120}, 0.2, ""},
	} {
		p := &Plan{Strategy: Throughput, Gain: test.predicted}
		p.SetMeasuredGain(Current, throughputs(test.before...), throughputs(test.after...))
		if g := p.MeasuredGain; g == nil || g.Change < test.change-1e-9 || g.Change > test.change+1e-9 ||
			p.GainVerdict != test.want || p.MeasuredOver != Current {
			t.Errorf("%s: %v, %q, want %v, %q", name, g, p.GainVerdict, test.change, test.want)
		}
	}
}

// Latencies are compared request by request: what sets requests apart is no doubt about the gain.
func TestMeasuredGainInPairs(t *testing.T) {
	run := func(share float64) Measured {
		m := Measured{}
		total := 0.0
		for i := range 40 {
			due := time.Duration(i) * time.Second
			took := time.Duration(share * float64(time.Second) * float64(1+i%7))
			total += took.Seconds() / 40
			m.Records = append(m.Records, workload.Record{Index: i, Phase: workload.Measured, Due: &due, Sent: due,
				PromptTokens: 1, AskedTokens: 1, OutputTokens: 1, FinishReason: "length",
				Tokens: []workload.TokenEvent{{At: took, Tokens: 1}}})
		}
		m.Metrics = harness.Metrics{{Name: harness.MetricE2EL, Stat: harness.StatMean, Unit: "s", Value: &total}}
		return m
	}
	p := &Plan{Strategy: Latency}
	p.SetMeasuredGain(Current, []Measured{run(1)}, []Measured{run(0.9)})
	if g := p.MeasuredGain; g == nil || g.Low == nil || *g.Low < 0.05 || *g.High > 0.15 || p.GainVerdict != GainHolds {
		t.Errorf("%v, %q", g, p.GainVerdict)
	}
}
