package main

import (
	"fmt"
	"io"
	"slices"

	"github.com/urfave/cli/v2"

	"kvtune/harness"
	"kvtune/harness/profile"
	"kvtune/harness/workflow"
	"kvtune/planner"
	"kvtune/planner/report"
)

// What commands print on stdout: the verdict first, then tables, then the files that were written. What was measured has
// been saved by then; the error returned is the command's status.

// showReport prints a report, and behind it what more writes.
func showReport(c *cli.Context, in report.Input, out output, more ...func(w io.Writer) error) error {
	return show(c, out, func(w io.Writer) error {
		if err := report.Text(w, in); err != nil {
			return err
		}
		for _, write := range more {
			if err := write(w); err != nil {
				return err
			}
		}
		return nil
	})
}

// apart writes an empty line first.
func apart(write func(w io.Writer) error) func(w io.Writer) error {
	return func(w io.Writer) error {
		if _, err := fmt.Fprintln(w); err != nil {
			return err
		}
		return write(w)
	}
}

// printRuns ends a command that measured or simulated runs.
func printRuns(c *cli.Context, runs []report.Run, slos []sloOutput, files []string) error {
	in := report.Input{Runs: runs, Files: files}
	for i := range runs {
		if i > 0 {
			in.Verdict += "; "
		}
		in.Verdict += report.RunVerdict(&runs[i])
	}
	out := outputOf(in)
	out.SLOs = slos
	if err := showReport(c, in, out, func(w io.Writer) error { return printSLOs(w, slos) }); err != nil {
		return err
	}
	limited(c, runs)
	if err := partial(c, runs); err != nil {
		return err
	}
	return missed(slos)
}

// printSLOs writes a line per run and objective.
func printSLOs(w io.Writer, slos []sloOutput) error {
	for _, s := range slos {
		state := string(s.State)
		if s.State == sloMissed {
			state = "MISSED"
		}
		if s.Why != "" {
			s.SLO += ": " + s.Why
		}
		if _, err := fmt.Fprintf(w, "SLO %s: %s: %s\n", state, s.Run, s.SLO); err != nil {
			return err
		}
	}
	return nil
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
	return showReport(c, in, outputOf(in), apart(func(w io.Writer) error {
		return report.BottleneckTable(w, in.Runs[0].Analysis)
	}))
}

// printPlans ends plan.
func printPlans(c *cli.Context, plans *planner.Plans, sweep *planner.SweepResult, files []string) error {
	in := report.Input{Verdict: plans.Verdict, Plans: plans, Files: files}
	out := outputOf(in)
	var more []func(io.Writer) error
	if sweep != nil {
		out.Sweep = sweep
		more = append(more, apart(func(w io.Writer) error { return report.SweepTable(w, sweep) }))
	}
	if format := c.String("export"); format != "" && len(plans.Plans) > 0 {
		text, err := planner.Export(&plans.Plans[0], format, plans.Version)
		if err != nil {
			return err
		}
		out.Export = text
		more = append(more, apart(func(w io.Writer) error {
			_, err := io.WriteString(w, text)
			return err
		}))
	}
	if err := showReport(c, in, out, more...); err != nil {
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
	in := report.Input{Runs: trials.Report(), Files: files}
	for i, p := range verified {
		if i > 0 {
			in.Verdict += "; "
		}
		in.Verdict += string(p.Strategy) + " " + report.VerifiedVerdict(p)
	}
	slos, worse, err := judgedTrials(trials)
	if err != nil {
		return err
	}
	out := outputOf(in)
	out.Plans, out.SLOs, out.NotVerified = plans, slos, trials.NotVerified
	err = showReport(c, in, out, func(w io.Writer) error {
		for _, p := range verified {
			fmt.Fprintln(w)
			if err := report.PredictedMeasured(w, p); err != nil {
				return err
			}
		}
		for _, why := range trials.NotVerified {
			fmt.Fprintf(w, "\nnot verified: %s\n", why)
		}
		return printSLOs(w, slices.DeleteFunc(slices.Clone(slos), func(s sloOutput) bool { return s.State != sloMissed }))
	})
	if err != nil {
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

// judgedTrials says which objectives the verified plans kept, and whether one was worse than its baseline. A baseline
// itself is there to be compared with.
func judgedTrials(trials *workflow.Trials) (slos []sloOutput, worse bool, err error) {
	for _, trial := range trials.Trials {
		if len(trial.Runs) == 0 {
			continue
		}
		for _, p := range trial.Plans {
			if !slices.Contains(planner.Strategies(), p.Strategy) {
				continue
			}
			worse = worse || p.GainVerdict == planner.GainWorse
			for _, check := range p.SLOs {
				slo, err := harness.ParseSLO(check.SLO)
				if err != nil {
					return nil, false, err
				}
				s := sloOutput{Run: string(p.Strategy), SLO: check.SLO, State: sloKept, Why: trial.Missed(slo)}
				if s.Why != "" {
					s.State = sloMissed
				}
				slos = append(slos, s)
			}
		}
	}
	return slos, worse, nil
}

// printOutcome ends workflow: the page, the picture and the same on the terminal.
func (s *setup) printOutcome(c *cli.Context, done *workflow.Outcome) error {
	in := done.Report(s.Command)
	if done.Cost != nil {
		if err := workflow.WriteReport(s.Folder, in); err != nil {
			return err
		}
	}
	in.Files = s.files()
	out := outputOf(in)
	if done.NotVerified != "" {
		out.NotVerified = []string{done.NotVerified}
	}
	err := showReport(c, in, out, func(w io.Writer) error {
		for _, why := range out.NotVerified {
			fmt.Fprintf(w, "\nnot verified: %s\n", why)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if done.Partial {
		return fmt.Errorf("the workflow is partial: %s; the same command with --resume goes on", done.Why)
	}
	if done.Chosen < 0 {
		return errNegative
	}
	return c.Context.Err()
}
