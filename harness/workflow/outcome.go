package workflow

import (
	"context"
	"errors"
	"strings"

	"kvtune/harness"
	"kvtune/planner"
	"kvtune/planner/cost"
	"kvtune/planner/report"
)

// Outcome is what a workflow found.
type Outcome struct {
	// Runs has one entry per configuration that was begun, in order; then one per verified plan.
	Runs []report.Run
	Cost *cost.Model
	// Kernels is what block sizes cost in kernels on this machine; nil where that was not measured.
	Kernels *harness.Bench
	// Plans has one entry per configuration, in order; none when the workflow ended before.
	Plans []*planner.Plans
	// Chosen is the configuration whose plan gains most; -1 where nothing could be planned.
	Chosen int
	// NotVerified says which plans were not measured and why, "" when all that should be were.
	NotVerified string
	// Partial is set when something that was asked for is missing; Why says what.
	Partial bool
	Why     string
}

// note records what is missing.
func (o *Outcome) note(what, why string) {
	if o.Partial {
		o.Why += "; "
	}
	o.Partial = true
	o.Why += what + ": " + why
}

// cut marks an outcome that the end of ctx cut short. Nothing else went wrong.
func (o *Outcome) cut(ctx context.Context) {
	why := "interrupted"
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		why = cause.Error()
	}
	o.Partial, o.Why, o.NotVerified = true, why, "the run was cut short"
}

// ChosenPlan is the plan of the target strategy for the chosen configuration, nil where there is none.
func (o *Outcome) ChosenPlan() *planner.Plan {
	if o.Chosen < 0 || len(o.Plans[o.Chosen].Plans) == 0 {
		return nil
	}
	return &o.Plans[o.Chosen].Plans[0]
}

// Report is the outcome as a report shows it; command is the command line that repeats it.
func (o *Outcome) Report(command []string) report.Input {
	in := report.Input{Title: "kvtune workflow", Verdict: o.verdict(), Runs: o.Runs, Kernels: o.Kernels, Cost: o.Cost}
	if len(command) > 0 {
		in.Commands = append(in.Commands, report.ShellLine(command))
	}
	if o.Chosen >= 0 {
		in.Plans = o.Plans[o.Chosen]
	}
	return in
}

// verdict is the outcome in one sentence: an objective that a verified plan missed or that no plan meets, else the
// chosen plan.
func (o *Outcome) verdict() string {
	of := func(i int, verdict string) string {
		if len(o.Plans) == 1 {
			return verdict
		}
		return o.Runs[i].Result.Name + ": " + verdict
	}
	for i, p := range o.Plans {
		if len(p.Plans) > 0 && p.Plans[0].Missed() {
			return of(i, report.MissedVerdict(&p.Plans[0]))
		}
	}
	for i, p := range o.Plans {
		if p.Infeasible != nil {
			return of(i, p.Verdict)
		}
	}
	if o.Chosen >= 0 {
		return of(o.Chosen, o.Plans[o.Chosen].Verdict)
	}
	if o.Why != "" {
		return "nothing was planned: " + o.Why
	}
	return "nothing was planned"
}

// Others are the plans that the verdict does not speak of, a line each.
func (o *Outcome) Others() (lines []string) {
	verdict := o.verdict()
	for i, p := range o.Plans {
		name := o.Runs[i].Result.Name + ": "
		switch {
		case len(o.Plans) == 1 || strings.HasPrefix(verdict, name):
		case p.Infeasible != nil:
			lines = append(lines, name+p.Verdict)
		case len(p.Plans) > 0:
			lines = append(lines, name+report.InBrief(&p.Plans[0]))
		}
	}
	return lines
}
