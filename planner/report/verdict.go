package report

import (
	"fmt"
	"math"
	"strings"

	"kvtune/harness"
	"kvtune/planner"
	"kvtune/planner/cost"
)

// RunVerdict is what a run showed, in one sentence.
func RunVerdict(r *Run) string {
	ms := r.Result.Metrics
	ok, _ := ms.Value(harness.MetricRequests, harness.StatOK)
	failed, _ := ms.Value(harness.MetricRequests, harness.StatFail)
	if ok == 0 {
		why := r.Result.Why
		if errs := r.errors(); len(errs) > 0 {
			why = errs[0]
		}
		return fmt.Sprintf("%s: no request succeeded: %s", r.Result.Name, why)
	}
	text := fmt.Sprintf("%s: %.0f of %.0f requests", r.Result.Name, ok, ok+failed)
	for _, m := range [...]struct{ label, name, stat string }{
		{"TTFT p50", harness.MetricTTFT, harness.StatP50}, {"TPOT mean", harness.MetricTPOT, harness.StatMean},
		{"E2EL p50", harness.MetricE2EL, harness.StatP50}, {"", harness.MetricTotalThroughput, ""},
	} {
		if metric := ms.Get(m.name, m.stat); metric != nil && metric.Value != nil {
			s := scaleFor(metric.Unit, *metric.Value)
			text += ", " + strings.TrimSpace(m.label+" "+s.number(*metric)+" "+s.unit)
		}
	}
	if r.Result.Conditions.GeneratorLimited != "" {
		text += "; GENERATOR-LIMITED"
	}
	if r.Analysis != nil && r.Analysis.Verdict != "" {
		text += "; " + r.Analysis.Verdict
	}
	return text
}

// VerifiedVerdict says how near a plan's prediction came to its measurement, in the metrics that people ask for.
func VerifiedVerdict(p *planner.Plan) string {
	var parts []string
	for _, m := range planned {
		for _, c := range p.Compared {
			if c.Metric == m.name && c.Stat == m.stat && c.Error != nil && len(parts) < 4 {
				parts = append(parts, m.label+" off by "+harness.Percent(math.Abs(*c.Error), false))
			}
		}
	}
	if g := p.MeasuredGain; g != nil {
		text := fmt.Sprintf("measured gain over %s %s", p.MeasuredOver, gainShare(*g))
		if p.Gain != nil && p.Gain.Metric == g.Metric {
			text += " (predicted " + harness.Percent(p.Gain.Change, true) + ")"
		}
		if p.GainVerdict != "" {
			text += ": " + string(p.GainVerdict)
		}
		parts = append([]string{text}, parts...)
	}
	for _, missed := range missedSLOs(p) {
		parts = append([]string{"SLO " + missed}, parts...)
	}
	if len(parts) == 0 {
		return "verified: nothing could be compared"
	}
	return "verified: " + strings.Join(parts, ", ")
}

// CostVerdict says what a cost model rests on and how far it is off.
func CostVerdict(m *cost.Model) string {
	of := fmt.Sprintf("cost model of %s on %s", m.Model, m.GPU)
	if m.Errors == nil {
		return of + ": the prior alone, nothing measured"
	}
	return fmt.Sprintf("%s from %d observations: step times off by %.1f %% (median) and %.1f %% (mean), cross-validated; "+
		"the prior alone by %.1f %%", of, m.Errors.Observations, m.Errors.Median*100, m.Errors.Mean*100, m.Errors.Prior*100)
}
