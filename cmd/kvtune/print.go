package main

import (
	"fmt"
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

// printRuns ends a command that measured or simulated runs.
func printRuns(c *cli.Context, runs []report.Run, files []string) error {
	in := report.Input{Runs: runs, Files: files}
	for i := range runs {
		if i > 0 {
			in.Verdict += "; "
		}
		in.Verdict += report.RunVerdict(&runs[i])
	}
	if err := report.Text(c.App.Writer, in); err != nil {
		return err
	}
	limited(c, runs)
	return partial(c, runs)
}

// limited says on stderr, at the end, which runs measured this machine.
func limited(c *cli.Context, runs []report.Run) {
	for i := range runs {
		if why := runs[i].Result.Conditions.GeneratorLimited; why != "" {
			fmt.Fprintf(c.App.ErrWriter, "kvtune: %s is generator-limited: %s; do not read it as the server's: ask for less, or run kvtune "+
				"on a machine of its own\n", runs[i].Result.Name, why)
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
	if err := report.Text(c.App.Writer, in); err != nil {
		return err
	}
	fmt.Fprintln(c.App.Writer)
	return report.BottleneckTable(c.App.Writer, in.Runs[0].Analysis)
}

// printPlans ends plan.
func printPlans(c *cli.Context, plans *planner.Plans, sweep *planner.SweepResult, files []string) error {
	w := c.App.Writer
	if err := report.Text(w, report.Input{Verdict: plans.Verdict, Plans: plans, Files: files}); err != nil {
		return err
	}
	if sweep != nil {
		fmt.Fprintln(w)
		if err := report.SweepTable(w, sweep); err != nil {
			return err
		}
	}
	if format := c.String("export"); format != "" && len(plans.Plans) > 0 {
		text, err := planner.Export(&plans.Plans[0], format, plans.Version)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "\n%s", text)
	}
	if plans.Infeasible != nil {
		return errNegative
	}
	return nil
}

// printVerified ends verify. What was not verified stands beside what was.
func printVerified(c *cli.Context, trials *workflow.Trials, files []string) error {
	w := c.App.Writer
	verified := trials.Verified()
	in := report.Input{Runs: trials.Report(), Files: files}
	for i, p := range verified {
		if i > 0 {
			in.Verdict += "; "
		}
		in.Verdict += string(p.Strategy) + " " + report.VerifiedVerdict(p)
	}
	if err := report.Text(w, in); err != nil {
		return err
	}
	for _, p := range verified {
		fmt.Fprintln(w)
		if err := report.PredictedMeasured(w, p); err != nil {
			return err
		}
	}
	for _, why := range trials.NotVerified {
		fmt.Fprintf(w, "\nnot verified: %s\n", why)
	}
	limited(c, in.Runs)
	if err := partial(c, in.Runs); err != nil {
		return err
	}
	negative := false
	for _, trial := range trials.Trials {
		if len(trial.Runs) == 0 {
			continue
		}
		for _, p := range trial.Plans {
			if !slices.Contains(planner.Strategies(), p.Strategy) {
				continue // a baseline is there to be compared with
			}
			negative = negative || p.GainVerdict == planner.GainWorse
			for _, check := range p.SLOs {
				slo, err := harness.ParseSLO(check.SLO)
				if err != nil {
					return err
				}
				if why := trial.Missed(slo); why != "" {
					fmt.Fprintf(w, "SLO MISSED: %s under %s: %s\n", check.SLO, p.Strategy, why)
					negative = true
				}
			}
		}
	}
	if negative {
		return errNegative
	}
	return nil
}

// printOutcome ends workflow: the page, the picture and the same on the terminal.
func (s *setup) printOutcome(c *cli.Context, out *workflow.Outcome) error {
	w := c.App.Writer
	in := out.Report(s.Command)
	if out.Cost != nil {
		if err := workflow.WriteReport(s.Folder, in); err != nil {
			return err
		}
	}
	in.Files = s.files()
	if err := report.Text(w, in); err != nil {
		return err
	}
	if out.NotVerified != "" {
		fmt.Fprintf(w, "\nnot verified: %s\n", out.NotVerified)
	}
	if out.Partial {
		return fmt.Errorf("the workflow is partial: %s; the same command with --resume goes on", out.Why)
	}
	if out.Chosen < 0 {
		return errNegative
	}
	return c.Context.Err()
}
