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
		text = fmt.Sprintf("at most %s behind the best in %s from %.4g to %.4g request/s",
			harness.Percent(c.WorstRegret, false), aimOf(plan.Strategy).words, rates[0], rates[len(rates)-1])
	}
	if plan.Keep {
		return "KEEP your settings: " + text + "; SIMULATED"
	}
	if ps.Range == nil {
		text = ""
		if g := plan.Gain; g != nil {
			text = g.String()
		}
		if mended := ps.mends(plan); mended != "" {
			text = strings.TrimSuffix(mended+"; "+text, "; ")
		}
	}
	return strings.TrimSuffix("CHANGE "+changed(plan.Changed)+": "+text, ": ") + "; SIMULATED"
}

// mends says which objective a plan is predicted to meet and the baseline to miss, or to meet in too few draws; ""
// where there is none.
func (ps *Plans) mends(plan *Plan) string {
	unsure := ""
	for i, c := range plan.SLOs {
		if !c.Met || i >= len(ps.Baseline.SLOs) {
			continue
		}
		b := ps.Baseline.SLOs[i]
		if !b.Met {
			return fmt.Sprintf("it meets %s, which your settings miss", c.SLO)
		}
		if p, q := c.Probability, b.Probability; unsure == "" && p != nil && q != nil && *q < min(surely, *p) {
			unsure = fmt.Sprintf("it meets %s in %.0f %% of the draws, your settings in %.0f %%", c.SLO, 100**p, 100**q)
		}
	}
	return unsure
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

// Missed reports whether a measurement of the plan missed an SLO.
func (p *Plan) Missed() bool {
	return slices.ContainsFunc(p.SLOs, func(c SLOCheck) bool { return c.MeasuredMet != nil && !*c.MeasuredMet })
}
