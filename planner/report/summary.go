package report

import (
	"bufio"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"kvtune/harness"
	"kvtune/planner"
	"kvtune/planner/analysis"
)

// chosen is the plan that the verdict speaks of, or what comes closest to the objectives.
func chosen(ps *planner.Plans) *planner.Plan {
	switch {
	case len(ps.Plans) > 0:
		return &ps.Plans[0]
	case ps.Infeasible != nil:
		return &ps.Infeasible.Closest
	}
	return nil
}

// PlanSummary is the present settings, the chosen ones and vLLM's defaults on five metrics, measured beside predicted
// where the chosen ones were verified; the command that starts them; what binds, the objectives and the replicas; and a
// line for each other plan.
func PlanSummary(ps *planner.Plans) Section {
	return func(b *bufio.Writer) {
		plan := chosen(ps)
		if plan == nil {
			fmt.Fprintln(b, "no plan")
			return
		}
		summaryTable(b, ps, plan)
		if len(plan.Launch) > 0 {
			fmt.Fprintf(b, "\n  $ %s\n\n", clean(ShellLine(plan.Launch), 1<<20))
		}
		for _, line := range answers(ps, plan) {
			wrap(b, "", "  ", clean(line, 1000))
		}
		for i := 1; i < len(ps.Plans); i++ {
			wrap(b, "", "  ", clean(string(ps.Plans[i].Strategy)+": "+InBrief(&ps.Plans[i]), 1000))
		}
	}
}

// summaryTable has a column per plan, and one for what was measured of the chosen one.
func summaryTable(b *bufio.Writer, ps *planner.Plans, plan *planner.Plan) {
	const column, wide = 10, 22
	current, other := &ps.Baseline, ps.Default
	line := func(label, unit, current, chosen, change, interval, measured, other string) string {
		s := pad(label, 12) + " " + pad(unit, 9) + " " + padLeft(current, column) + " " + padLeft(chosen, column) + " " +
			padLeft(change, 7) + " " + padLeft(interval, wide)
		if len(plan.Measured) > 0 {
			s += " " + padLeft(measured, column)
		}
		if ps.Default != nil {
			s += " " + padLeft(other, column)
		}
		return s
	}
	name := func(p *planner.Plan) string { return clean(string(p.Strategy), column) }
	otherName, otherPredicted := "", harness.Metrics(nil)
	if other != nil {
		otherName, otherPredicted = name(other), other.Predicted
	}
	head := line("PREDICTED", "unit", name(current), name(plan), "change", "95 % range", "measured", otherName)
	fmt.Fprintf(b, "%s\n%s\n", head, strings.Repeat("-", utf8.RuneCountInString(head)))
	scales := planScales(allPlans(ps))
	for _, i := range summarised(plan) {
		s, c := scales[i], planned[i]
		cell := func(ms harness.Metrics) string {
			if m := ms.Get(c.name, c.stat); m != nil && m.Value != nil {
				return s.number(*m)
			}
			return "-"
		}
		interval := "-"
		if m := plan.Predicted.Get(c.name, c.stat); m != nil && s.interval(*m) != "" {
			interval = s.interval(*m)
		}
		fmt.Fprintln(b, line(c.label, s.unit, cell(current.Predicted), cell(plan.Predicted), relative(current, plan, i),
			interval, cell(plan.Measured), cell(otherPredicted)))
	}
	at := ""
	if r := ps.Range; r != nil && len(r.Rates) > 0 {
		at = fmt.Sprintf(" at %.4g request/s", r.Rates[len(r.Rates)-1])
	}
	note := fmt.Sprintf("SIMULATED in virtual time%s; change against %s; range of %s", at, current.Strategy, plan.Strategy)
	if len(plan.Measured) > 0 && plan.MeasuredOrigin != harness.OriginMeasured {
		note += "; measured on a SIMULATED server"
	}
	wrap(b, "", "", "("+note+")")
}

// answers are the lines below the command: what binds, the objectives, what the rate takes, how good the prediction
// was.
func answers(ps *planner.Plans, plan *planner.Plan) []string {
	lines := []string{"binds: " + analysis.Binds(plan.Binding, plan.Limit)}
	for _, c := range plan.SLOs {
		lines = append(lines, "SLO "+sloText(c))
	}
	lines = append(lines, capacityTexts(plan)...)
	if ps.Range != nil && len(ps.Range.Choices) > 0 {
		c := &ps.Range.Choices[0]
		lines = append(lines, rangeFact(ps, c))
		for _, s := range c.Switches {
			lines = append(lines, switchFact(ps, s))
		}
	}
	if len(plan.Compared) > 0 {
		lines = append(lines, "verified: "+VerifiedVerdict(plan))
	}
	if plan.Extrapolated != "" {
		lines = append(lines, "EXTRAPOLATED: "+plan.Extrapolated)
	}
	return lines
}

// capacityTexts are the rate that a plan bears and what a target rate takes.
func capacityTexts(p *planner.Plan) (texts []string) {
	if p.MaxRequestRate != nil {
		held := "served within the SLOs: up to "
		if len(p.SLOs) == 0 {
			held = "serves up to "
		}
		texts = append(texts, held+p.MaxRequestRate.String())
	}
	if p.Deployment != nil {
		texts = append(texts, "needs "+p.Deployment.String())
	}
	return texts
}

// InBrief is a plan in half a sentence: what it changes and what that gains.
func InBrief(p *planner.Plan) string {
	text := changesText(p.Changed)
	if p.Keep {
		text = "keep your settings"
	}
	if p.Gain != nil {
		text += "; " + p.Gain.String()
	}
	return text
}

// PlanDetails is all there is to say of plans: their details, predicted beside measured of each that was verified, the
// front, the range of rates, and how they were found.
func PlanDetails(ps *planner.Plans) Section {
	return func(b *bufio.Writer) {
		for _, p := range allPlans(ps) {
			details := planDetails(p)
			if len(details) == 0 && len(p.Launch) == 0 {
				continue
			}
			fmt.Fprintln(b, clean(string(p.Strategy), 20))
			for _, detail := range details {
				wrap(b, "  ", "    ", detail)
			}
			if len(p.Launch) > 0 {
				fmt.Fprintln(b, "  $ "+clean(ShellLine(p.Launch), 1<<20))
			}
		}
		for _, p := range allPlans(ps) {
			if len(p.Compared) > 0 {
				fmt.Fprintln(b)
				predictedMeasured(b, p)
			}
		}
		frontTable(b, ps)
		rangeTable(b, ps)
		planNotes(b, ps)
	}
}

// VerifiedTable is what was measured of plans beside what was predicted, on five metrics, a column for all plans with
// the same settings; then the command that starts the one that the verdict speaks of, and what the figures say of each.
func VerifiedTable(plans []*planner.Plan) Section {
	return func(b *bufio.Writer) {
		if len(plans) == 0 {
			fmt.Fprintln(b, "nothing was verified")
			return
		}
		var facts []string
		launch := told(plans).Launch
		plans := slices.CompactFunc(slices.Clone(plans), func(next, first *planner.Plan) bool {
			same := first.Args.Equal(next.Args)
			if same {
				facts = append(facts, fmt.Sprintf("%s: the settings of %s", next.Strategy, first.Strategy))
			}
			return same
		})
		const column = 11
		line := func(label, unit string, cell func(p *planner.Plan) string) string {
			s := pad(label, 12) + " " + pad(unit, 9)
			for _, p := range plans {
				s += " " + padLeft(clean(cell(p), column), column)
			}
			return s
		}
		head := line("", "unit", func(p *planner.Plan) string { return string(p.Strategy) })
		fmt.Fprintf(b, "%s\n%s\n", head, strings.Repeat("-", utf8.RuneCountInString(head)))
		scales, legend := planScales(plans), ""
		for _, i := range summarised(plans[len(plans)-1]) {
			s, c := scales[i], planned[i]
			number := func(ms harness.Metrics) string {
				if m := ms.Get(c.name, c.stat); m != nil && m.Value != nil {
					return s.number(*m)
				}
				return "-"
			}
			fmt.Fprintln(b, line(c.label, s.unit, func(p *planner.Plan) string { return number(p.Measured) }))
			fmt.Fprintln(b, line("  predicted", "", func(p *planner.Plan) string { return number(p.Predicted) }))
			off := line("  off by", "", func(p *planner.Plan) string { return errorOf(p, c.name, c.stat) })
			if strings.Contains(off, "!") {
				legend = "; ! is outside the predicted 95 % range"
			}
			fmt.Fprintln(b, off)
		}
		fmt.Fprintf(b, "(measured on %s%s)\n", measuredOn(plans[len(plans)-1]), legend)
		if len(launch) > 0 {
			fmt.Fprintf(b, "\n  $ %s\n\n", clean(ShellLine(launch), 1<<20))
		}
		for _, p := range plans {
			facts = append(facts, string(p.Strategy)+": "+VerifiedVerdict(p))
		}
		Lines(facts...)(b)
	}
}

// errorOf is how far a plan's prediction of a metric was off, marked where the measurement is outside the range.
func errorOf(p *planner.Plan, name, stat string) string {
	for _, c := range p.Compared {
		if c.Metric == name && c.Stat == stat && c.Error != nil {
			if c.Inside != nil && !*c.Inside {
				return harness.Percent(*c.Error, true) + " !"
			}
			return harness.Percent(*c.Error, true)
		}
	}
	return "-"
}

// summarised are five of planned: the fifth is the hit rate where that is the target, else the KV cache's peak.
func summarised(p *planner.Plan) []int {
	if p.Strategy == planner.CacheHits {
		return []int{0, 1, 2, 3, 4}
	}
	return []int{0, 1, 2, 3, 5}
}

// relative is how a metric changes from one plan to another, as a share of the first.
func relative(from, to *planner.Plan, i int) string {
	a, okA := from.Predicted.Value(planned[i].name, planned[i].stat)
	z, okZ := to.Predicted.Value(planned[i].name, planned[i].stat)
	switch {
	case !okA || !okZ || a == 0:
		return "-"
	case a == z:
		return "same"
	}
	return harness.Percent((z-a)/a, true)
}

// planNotes writes what was left out of the search, and how it was made.
func planNotes(b *bufio.Writer, ps *planner.Plans) {
	if len(ps.Notes) > 0 || ps.Search.Statement != "" {
		fmt.Fprintln(b)
	}
	for _, note := range ps.Notes {
		wrap(b, "note: ", "  ", clean(note, 1000))
	}
	if ps.Search.Statement != "" {
		wrap(b, "search: ", "  ", clean(ps.Search.Statement, 1000))
	}
}
