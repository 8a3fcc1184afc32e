package report

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"kvtune/harness"
	"kvtune/planner"
	"kvtune/planner/cost"
)

// RunsVerdict is what runs showed, in one sentence: latencies and throughput, of several the throughput of each.
func RunsVerdict(runs []Run) string {
	if len(runs) == 1 {
		return runVerdict(&runs[0])
	}
	const room = 4
	var parts []string
	for i := range runs[:min(room, len(runs))] {
		r := &runs[i]
		text := "no throughput"
		if m := r.Result.Metrics.Get(harness.MetricTotalThroughput, ""); m != nil && m.Value != nil {
			s := scaleFor(m.Unit, *m.Value)
			text = s.number(*m) + " " + s.unit
		}
		parts = append(parts, r.Result.Name+" "+text)
	}
	if more := len(runs) - room; more > 0 {
		parts = append(parts, fmt.Sprintf("%d more", more))
	}
	return fmt.Sprintf("%d runs: %s", len(runs), strings.Join(parts, ", "))
}

func runVerdict(r *Run) string {
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
	return text + limited(r)
}

// AnalysisVerdict is what binds a run that was analysed.
func AnalysisVerdict(r *Run) string {
	return r.Result.Name + ": " + r.Analysis.Verdict + limited(r)
}

func limited(r *Run) string {
	if r.Result.Conditions.GeneratorLimited != "" {
		return "; GENERATOR-LIMITED"
	}
	return ""
}

// MissedVerdict is the first objective that the measurement of a plan missed, "" where there is none.
func MissedVerdict(p *planner.Plan) string {
	for _, c := range p.SLOs {
		if c.MeasuredMet != nil && !*c.MeasuredMet {
			return "SLO MISSED: " + c.SLO + ", " + SLOMeasured(c)
		}
	}
	return ""
}

// PlansVerdict is what plans come to, in one sentence: what was measured of them where they were verified against their
// baseline or missed an objective, else what is predicted.
func PlansVerdict(ps *planner.Plans) string {
	if verified := Verified(ps); len(verified) > 0 {
		if p := told(verified); p.Missed() || p.MeasuredGain != nil {
			return VerifiedPlansVerdict(verified)
		}
	}
	return ps.Verdict
}

// Verified are the plans that were measured, baselines first.
func Verified(ps *planner.Plans) []*planner.Plan {
	return slices.DeleteFunc(allPlans(ps), func(p *planner.Plan) bool { return len(p.Measured) == 0 })
}

// VerifiedPlansVerdict speaks of the first plan that missed an objective or is worse than its baseline, else of the
// first that is not a baseline.
func VerifiedPlansVerdict(verified []*planner.Plan) string {
	if len(verified) == 0 {
		return "nothing was verified"
	}
	speaks := told(verified)
	return string(speaks.Strategy) + ": " + VerifiedVerdict(speaks)
}

// told is the plan that [VerifiedPlansVerdict] speaks of.
func told(verified []*planner.Plan) *planner.Plan {
	plans := slices.DeleteFunc(slices.Clone(verified), func(p *planner.Plan) bool {
		return !slices.Contains(planner.Strategies(), p.Strategy)
	})
	if i := slices.IndexFunc(plans,
		func(p *planner.Plan) bool { return p.Missed() || p.GainVerdict == planner.GainWorse }); i >= 0 {
		return plans[i]
	}
	return append(plans, verified[0])[0]
}

// VerifiedVerdict says of a verified plan, in one sentence, which objective it missed and whether its gain holds; where
// neither was looked at, how near the prediction came in the metrics that people ask for.
func VerifiedVerdict(p *planner.Plan) string {
	missed := MissedVerdict(p)
	if g := p.MeasuredGain; g != nil {
		text := g.String() + " over " + string(p.MeasuredOver)
		if g.Low == nil {
			text += " (one run each)"
		}
		if p.Gain != nil && p.Gain.Metric == g.Metric {
			text += ", predicted " + harness.Percent(p.Gain.Change, harness.HigherIsBetter(g.Metric))
		}
		if p.GainVerdict != "" {
			text += ": " + string(p.GainVerdict)
		}
		return strings.TrimPrefix(missed+"; "+text, "; ")
	}
	if missed != "" {
		return missed
	}
	var parts []string
	for _, m := range planned {
		for _, c := range p.Compared {
			if c.Metric == m.name && c.Stat == m.stat && c.Error != nil && len(parts) < 4 {
				parts = append(parts, harness.Percent(math.Abs(*c.Error), false)+" in "+m.label)
			}
		}
	}
	if len(parts) == 0 {
		return "nothing could be compared"
	}
	return "the prediction was off by " + strings.Join(parts, ", ")
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
