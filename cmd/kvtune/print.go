package main

import (
	"bufio"
	"fmt"
	"io"
	"slices"

	"github.com/urfave/cli/v2"

	"kvtune/harness/profile"
	"kvtune/harness/workflow"
	"kvtune/planner"
	"kvtune/planner/report"
)

// What commands print on stdout: the verdict first, then tables, then the files that were written. What was measured
// has been saved by then; the error returned is the command's status.

// showReport prints a report with its sections.
func showReport(c *cli.Context, in report.Input, out output, sections ...report.Section) error {
	return show(c, out, func(w io.Writer) error { return report.Text(w, in, sections...) })
}

// lines are a section of lines, no section where there is none.
func lines(texts []string) []report.Section {
	if len(texts) == 0 {
		return nil
	}
	return []report.Section{report.Lines(texts...)}
}

func detailsFlag() cli.Flag {
	return &cli.BoolFlag{Name: "details", Usage: "print what else is known of plans and runs, which a page and JSON " +
		"hold, too"}
}

// printRuns ends a command that measured or simulated runs.
func printRuns(c *cli.Context, runs []report.Run, slos []sloOutput, files []string) error {
	in := report.Input{Verdict: report.RunsVerdict(runs), Runs: runs, Files: files}
	if missed := missedOnes(slos); len(missed) > 0 {
		in.Verdict = missed[0]
	}
	out := outputOf(in)
	out.SLOs = slos
	sections := append([]report.Section{report.RunTable(runs, false)}, lines(sloLines(slos))...)
	if err := showReport(c, in, out, sections...); err != nil {
		return err
	}
	limited(c, runs)
	if err := partial(c, runs); err != nil {
		return err
	}
	return missed(slos)
}

// sloLines are a line per run and objective.
func sloLines(slos []sloOutput) (lines []string) {
	for _, s := range slos {
		state := string(s.State)
		if s.State == sloMissed {
			state = "MISSED"
		}
		if s.Why != "" {
			s.SLO += ": " + s.Why
		}
		lines = append(lines, fmt.Sprintf("SLO %s: %s: %s", state, s.Run, s.SLO))
	}
	return lines
}

// missedOnes are the lines of the objectives that were missed.
func missedOnes(slos []sloOutput) []string {
	return sloLines(slices.DeleteFunc(slices.Clone(slos), func(s sloOutput) bool { return s.State != sloMissed }))
}

// missed is the status of a command whose runs had objectives.
func missed(slos []sloOutput) error {
	if slices.ContainsFunc(slos, func(s sloOutput) bool { return s.State == sloMissed }) {
		return errNegative
	}
	return nil
}

// limited says on stderr, at the end, which runs measured this machine.
func limited(c *cli.Context, runs []report.Run) {
	for i := range runs {
		if why := runs[i].Result.Conditions.GeneratorLimited; why != "" {
			fmt.Fprintf(c.App.ErrWriter, "kvtune: %s is generator-limited: %s; do not read it as the server's: ask for less, "+
				"or run kvtune on a machine of its own\n", runs[i].Result.Name, why)
		}
	}
}

func reportRuns(outs ...*profile.Output) []report.Run {
	runs := make([]report.Run, len(outs))
	for i, o := range outs {
		runs[i] = report.Run{Result: o.Result, Records: o.Records, Series: o.Series}
	}
	return runs
}

// partial is the error of a command whose runs were cut short.
func partial(c *cli.Context, runs []report.Run) error {
	for i := range runs {
		if r := runs[i].Result; r.Partial {
			return fmt.Errorf("%s is partial: %s", r.Name, r.Why)
		}
	}
	return c.Context.Err()
}

// printAnalysis ends analyze.
func printAnalysis(c *cli.Context, in report.Input) error {
	return showReport(c, in, outputOf(in), report.BottleneckTable(in.Runs[0].Analysis), report.RunTable(in.Runs, true))
}

// printPlans ends plan.
func printPlans(c *cli.Context, plans *planner.Plans, sweep *planner.SweepResult, files []string) error {
	in := report.Input{Verdict: plans.Verdict, Plans: plans, Files: files}
	out := outputOf(in)
	sections := []report.Section{report.PlanSummary(plans)}
	if c.Bool("details") {
		sections = append(sections, report.PlanDetails(plans))
	} else {
		sections = append(sections, report.Lines("more: --details, --html FILE"))
	}
	if sweep != nil {
		out.Sweep = sweep
		sections = append(sections, report.SweepTable(sweep))
	}
	if format := c.String("export"); format != "" && len(plans.Plans) > 0 {
		text, err := planner.Export(&plans.Plans[0], format, plans.Version)
		if err != nil {
			return err
		}
		out.Export = text
		sections = append(sections, func(b *bufio.Writer) { b.WriteString(text) })
	}
	if err := showReport(c, in, out, sections...); err != nil {
		return err
	}
	if plans.Infeasible != nil {
		return errNegative
	}
	return nil
}

// printVerified ends verify. What was not verified stands beside what was.
func printVerified(c *cli.Context, plans *planner.Plans, trials *workflow.Trials, files []string) error {
	verified := trials.Verified()
	slos, worse := judgedPlans(verified)
	in := report.Input{Verdict: report.VerifiedPlansVerdict(verified), Runs: trials.Report(), Files: files}
	out := outputOf(in)
	out.Plans, out.SLOs, out.NotVerified = plans, slos, trials.NotVerified
	sections := append([]report.Section{report.VerifiedTable(verified)},
		lines(append(notVerified(trials.NotVerified...), sloLines(slos)...))...)
	if c.Bool("details") {
		sections = append(sections, report.PlanDetails(plans), report.RunTable(in.Runs, false))
	} else {
		sections = append(sections, report.Lines("more: --details, kvtune report"))
	}
	if err := showReport(c, in, out, sections...); err != nil {
		return err
	}
	limited(c, in.Runs)
	if err := partial(c, in.Runs); err != nil {
		return err
	}
	if worse {
		return errNegative
	}
	return missed(slos)
}

func notVerified(whys ...string) (lines []string) {
	for _, why := range whys {
		if why != "" {
			lines = append(lines, "not verified: "+why)
		}
	}
	return lines
}

// judgedPlans says which objectives the verified plans kept, and whether one was worse than its baseline. A baseline
// itself is there to be compared with.
func judgedPlans(verified []*planner.Plan) (slos []sloOutput, worse bool) {
	for _, p := range verified {
		if !slices.Contains(planner.Strategies(), p.Strategy) {
			continue
		}
		worse = worse || p.GainVerdict == planner.GainWorse
		for _, check := range p.SLOs {
			s := sloOutput{Run: string(p.Strategy), SLO: check.SLO, State: sloNotObserved}
			if check.MeasuredMet != nil {
				s.State = sloKept
				if !*check.MeasuredMet {
					s.State = sloMissed
				}
				s.Why = report.SLOMeasured(check)
			}
			slos = append(slos, s)
		}
	}
	return slos, worse
}

// printOutcome ends workflow: the page, the picture and the gist of them on the terminal.
func (s *setup) printOutcome(c *cli.Context, done *workflow.Outcome) error {
	in := done.Report(s.Command)
	if done.Cost != nil {
		if err := workflow.WriteReport(s.Folder, in); err != nil {
			return err
		}
		in.Page = s.Folder.Path(workflow.ReportFile)
	}
	in.Files = s.files()
	out := outputOf(in)
	if done.NotVerified != "" {
		out.NotVerified = []string{done.NotVerified}
	}
	out.SLOs = judgedOutcome(done)
	sections := gist(in)
	more := append(done.Others(), notVerified(done.NotVerified)...)
	if in.Kernels != nil {
		more = append(more, report.BenchVerdict(in.Kernels))
	}
	sections = append(sections, lines(more)...)
	if c.Bool("details") {
		if in.Plans != nil {
			sections = append(sections, report.PlanDetails(in.Plans))
		}
		sections = append(sections, report.RunTable(in.Runs, false))
		if in.Kernels != nil {
			sections = append(sections, report.KernelTable(in.Kernels))
		}
	}
	if err := showReport(c, in, out, sections...); err != nil {
		return err
	}
	limited(c, in.Runs)
	if done.Partial {
		return fmt.Errorf("the workflow is partial: %s; the same command with --resume goes on", done.Why)
	}
	if done.Chosen < 0 || slices.ContainsFunc(done.Plans, func(p *planner.Plans) bool { return p.Infeasible != nil }) {
		return errNegative
	}
	if err := missed(out.SLOs); err != nil {
		return err
	}
	return c.Context.Err()
}

// gist is what a terminal gets of what a page shows: plans on five metrics, or the runs.
func gist(in report.Input) []report.Section {
	switch {
	case in.Plans == nil && len(in.Runs) == 0:
		return nil
	case in.Plans == nil:
		return []report.Section{report.RunTable(in.Runs, true)}
	}
	if verified := report.Verified(in.Plans); len(verified) > 1 {
		return []report.Section{report.VerifiedTable(verified)}
	}
	return []report.Section{report.PlanSummary(in.Plans)}
}

// judgedOutcome says which objectives the verified plans of a workflow kept, by configuration.
func judgedOutcome(done *workflow.Outcome) (slos []sloOutput) {
	for i, p := range done.Plans {
		if len(p.Plans) == 0 || len(p.Plans[0].Measured) == 0 {
			continue
		}
		judged, _ := judgedPlans([]*planner.Plan{&p.Plans[0]})
		for k := range judged {
			judged[k].Run = done.Runs[i].Result.Name
		}
		slos = append(slos, judged...)
	}
	return slos
}
