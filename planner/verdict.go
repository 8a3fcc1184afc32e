package planner

import (
	"fmt"
	"slices"
	"strings"

	"kvtune/harness"
)

// verdict is the sentence that a command prints first; it speaks of the first plan.
func (ps *Plans) verdict() string {
	if ps.Infeasible != nil {
		return "NO FEASIBLE PLAN: " + ps.Infeasible.Why
	}
	plan := &ps.Plans[0]
	text := plan.Why
	if ps.Range != nil {
		c, rates := &ps.Range.Choices[0], ps.Range.Rates
		text = fmt.Sprintf("at most %s behind the best in %s from %.4g to %.4g request/s", harness.Percent(c.WorstRegret, false),
			describeGoal(plan.Strategy), rates[0], rates[len(rates)-1])
	}
	if plan.Keep {
		return "KEEP your settings: " + text + "; SIMULATED"
	}
	if ps.Range == nil {
		text = ""
		if g := plan.Gain; g != nil {
			text = g.String()
		}
		if missed := ps.mends(plan); missed != "" {
			text = strings.TrimSuffix(fmt.Sprintf("it meets %s, which your settings miss; %s", missed, text), "; ")
		}
	}
	return strings.TrimSuffix("CHANGE "+changed(plan.Changed)+": "+text, ": ") + "; SIMULATED"
}

// mends is an objective that a plan is predicted to meet and the baseline to miss, "" where there is none.
func (ps *Plans) mends(plan *Plan) string {
	for i, c := range plan.SLOs {
		if c.Met && i < len(ps.Baseline.SLOs) && !ps.Baseline.SLOs[i].Met {
			return c.SLO
		}
	}
	return ""
}

// changed are the flags that a verdict has room for; the command has them all.
func changed(changes []Change) string {
	const room = 3
	var flags []string
	for _, c := range changes[:min(room, len(changes))] {
		flags = append(flags, c.Flag+"="+c.To)
	}
	text := strings.Join(flags, " ")
	if more := len(changes) - room; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// describeGoal is what a strategy is after, in words.
func describeGoal(s Strategy) string {
	return map[Strategy]string{
		Throughput: "total throughput", Latency: "mean end-to-end latency", Memory: "KV cache size at that throughput",
		CacheHits: "prefix-cache hit rate", Balanced: "throughput or p99 latency",
	}[s]
}

// Missed reports whether a measurement of the plan missed an SLO.
func (p *Plan) Missed() bool {
	return slices.ContainsFunc(p.SLOs, func(c SLOCheck) bool { return c.MeasuredMet != nil && !*c.MeasuredMet })
}
