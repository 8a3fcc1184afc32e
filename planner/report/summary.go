package report

import (
	"bufio"
	"fmt"
	"strings"
	"unicode/utf8"

	"kvtune/harness"
	"kvtune/planner"
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

// summary writes the present settings, the chosen ones and vLLM's defaults on five metrics, then the command that starts
// the chosen ones, then what there is to say of each.
func summary(b *bufio.Writer, ps *planner.Plans) {
	plan := chosen(ps)
	if plan == nil {
		return
	}
	if ps.Infeasible != nil {
		wrap(b, "! ", "  ", "NO FEASIBLE PLAN: "+clean(ps.Infeasible.Why, 1000))
	}
	current, other := &ps.Baseline, ps.Default
	cell := func(p *planner.Plan, s scale, i int) string {
		if p != nil {
			if m := p.Predicted.Get(planned[i].name, planned[i].stat); m != nil {
				return s.number(*m)
			}
		}
		return notObserved
	}
	name := func(s planner.Strategy, mark string) string { return clean(strings.TrimSpace(mark+" "+string(s)), 12) }
	columns := []string{pad("PREDICTED", 12) + " " + pad("unit", 9), padLeft(name(current.Strategy, ""), 12),
		padLeft(name(plan.Strategy, ""), 12), padLeft("change", 8), padLeft("95 % range", 22)}
	if other != nil {
		columns = append(columns, padLeft(name(other.Strategy, ""), 12))
	}
	head := strings.Join(columns, " ")
	fmt.Fprintf(b, "%s\n%s\n", head, strings.Repeat("-", utf8.RuneCountInString(head)))
	scales := planScales(allPlans(ps))
	for _, i := range summarised(plan) {
		s := scales[i]
		columns := []string{pad(planned[i].label, 12) + " " + pad(s.unit, 9), padLeft(cell(current, s, i), 12), padLeft(cell(plan, s, i), 12),
			padLeft(relative(current, plan, i), 8), padLeft("-", 22)}
		if m := plan.Predicted.Get(planned[i].name, planned[i].stat); m != nil {
			if text := s.interval(*m); text != "" {
				columns[4] = padLeft(text, 22)
			}
		}
		if other != nil {
			columns = append(columns, padLeft(cell(other, s, i), 12))
		}
		fmt.Fprintln(b, strings.Join(columns, " "))
	}
	fmt.Fprintf(b, "(SIMULATED in virtual time; change against %s, range of %s)\n", current.Strategy, plan.Strategy)
	if len(plan.Launch) > 0 {
		fmt.Fprintln(b, "\n  $ "+clean(ShellLine(plan.Launch), 1<<20))
	}
	for _, p := range []*planner.Plan{plan, current, other} {
		if p == nil {
			continue
		}
		if details := planDetails(p); len(details) > 0 {
			fmt.Fprintln(b, "\n"+clean(string(p.Strategy), 20))
			for _, detail := range details {
				wrap(b, "  ", "    ", detail)
			}
		}
	}
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

// otherPlans writes the plans beside the chosen one, a line each with what they change and the command.
func otherPlans(b *bufio.Writer, ps *planner.Plans) {
	if len(ps.Plans) < 2 {
		return
	}
	const names, column = 11, 12
	scales := planScales(allPlans(ps))
	head, units := pad("other plans", names), pad("", names)
	for i, c := range planned {
		head += " " + padLeft(c.label, column)
		units += " " + padLeft(scales[i].unit, column)
	}
	fmt.Fprintf(b, "\n%s\n%s\n%s\n", head, strings.TrimRight(units, " "), strings.Repeat("-", utf8.RuneCountInString(head)))
	for i := range ps.Plans[1:] {
		p := &ps.Plans[1+i]
		line := pad(clean(string(p.Strategy), names), names)
		for i, c := range planned {
			text := notObserved
			if m := p.Predicted.Get(c.name, c.stat); m != nil {
				text = scales[i].number(*m)
			}
			line += " " + padLeft(text, column)
		}
		fmt.Fprintln(b, line)
		for _, detail := range planDetails(p) {
			wrap(b, "  ", "    ", detail)
		}
		if len(p.Launch) > 0 {
			fmt.Fprintln(b, "  $ "+clean(ShellLine(p.Launch), 1<<20))
		}
	}
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
