package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"kvtune/harness"
	"kvtune/harness/profile"
	"kvtune/harness/workflow"
	"kvtune/harness/workload"
	"kvtune/planner"
	"kvtune/planner/report"
)

// searched reads the objectives of profile, and whether they ask for a search: with a range of rates they do.
func searched(c *cli.Context, cfg harness.Config) (slos []harness.SLO, search bool, err error) {
	if slos, err = slosOf(c); err != nil {
		return nil, false, err
	}
	if len(slos) == 0 || cfg.Rate == "" || !strings.Contains(cfg.Rate, "..") {
		return slos, false, nil
	}
	if c.IsSet("configs") || c.Bool("probes") || cfg.Trace != "" {
		return nil, false, usagef("--slo with a range of --rate searches the highest rate of one workload: without " +
			"--configs, --probes or --trace")
	}
	if rate, err := workload.ParseRate(cfg.Rate); err == nil && rate.From > rate.To {
		return nil, false, usagef("--rate %s: expected R..R2 with R below R2, to search in", cfg.Rate)
	}
	return slos, true, nil
}

// searchRate finds the highest rate that keeps the objectives, and prints every rate that was measured.
func (s *setup) searchRate(ctx context.Context, c *cli.Context, cfg harness.Config, slos []harness.SLO) error {
	found, err := s.SearchRate(ctx, cfg, slos)
	if err != nil {
		return fmt.Errorf("%s: %w", cfg.Name, err)
	}
	s.screen.close()
	outs := make([]*profile.Output, len(found.Steps))
	for i := range found.Steps {
		outs[i] = found.Steps[i].Output
	}
	runs := reportRuns(outs...)
	in := report.Input{Verdict: workflow.SearchVerdict(found), Runs: runs, Files: s.files()}
	out := outputOf(in)
	out.Search = &searchOutput{Ended: found.Ended}
	if found.Best >= 0 {
		out.Search.BestRate = &found.Steps[found.Best].Rate
	}
	if found.Missed >= 0 {
		out.Search.MissedRate = &found.Steps[found.Missed].Rate
	}
	if err := showReport(c, in, out, report.RunTable(runs, false)); err != nil {
		return err
	}
	limited(c, runs)
	if err := partial(c, runs); err != nil {
		return err
	}
	if found.Best < 0 {
		return errNegative
	}
	return nil
}

// judged says which objectives the runs of a profile kept.
func judged(runs []*profile.Output, slos []harness.SLO) (judged []sloOutput) {
	for _, run := range runs {
		for _, slo := range slos {
			m, met, known := slo.Judge(run.Result.Metrics, run.Records, slos)
			s := sloOutput{Run: run.Result.Name, SLO: slo.String(), State: sloNotObserved}
			if known {
				s.State = sloKept
				if !met {
					s.State = sloMissed
				}
				s.Why = report.SLOMeasured(planner.SLOCheck{SLO: s.SLO, Measured: m.Value})
			}
			judged = append(judged, s)
		}
	}
	return judged
}
