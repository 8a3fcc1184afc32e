package main

import (
	"io"

	"github.com/urfave/cli/v2"

	"kvtune/harness/archive"
	"kvtune/harness/workflow"
	"kvtune/planner/report"
)

func fitCommand() *cli.Command {
	return &cli.Command{
		Name:  "fit",
		Usage: "a step-time model from measurements, with its errors",
		Description: "Examples:\n" +
			"   kvtune fit --profiling-results results --output-file kvtune_cost.json\n" +
			"   kvtune fit --profiling-results probes_requests.jsonl.zst --steps steps.csv --model meta-llama/Llama-3.1-8B --gpu H200",
		Flags: join(in(catInput,
			&cli.StringSliceFlag{Name: "profiling-results", Usage: "result `FILE`, requests file or archive folder (repeat)"},
			&cli.StringSliceFlag{Name: "steps", Usage: "engine steps `FILE` (CSV; repeat)"},
			&cli.StringFlag{Name: "model", Usage: "`name` of a known model or path of a config.json"},
			&cli.StringFlag{Name: "gpu", Usage: "`device` of the server", Value: "H200"},
		), in(catOutput,
			&cli.PathFlag{Name: "output-file", Usage: "write the model to `FILE`", Value: workflow.CostFile},
		)),
		Action: fit,
	}
}

func fit(c *cli.Context) error {
	results, steps := c.StringSlice("profiling-results"), c.StringSlice("steps")
	if len(results)+len(steps) == 0 {
		return usagef("nothing to fit from: give --profiling-results or --steps")
	}
	model, gpu, err := shapes(c)
	if err != nil {
		return err
	}
	from, err := workflow.ReadFit(results, steps, model, gpu)
	if err != nil {
		return usageError{err}
	}
	scr := newScreen(c.App.ErrWriter)
	scr.stage("fitting")
	m, err := workflow.Fit(c.Context, model, gpu, from)
	if err != nil {
		return err
	}
	if err := archive.WriteJSON(c.Path("output-file"), m); err != nil {
		return err
	}
	scr.close()
	in := report.Input{Verdict: report.CostVerdict(m), Files: []string{c.Path("output-file")}}
	out := outputOf(in)
	out.Cost = m
	return showReport(c, in, out, apart(func(w io.Writer) error { return report.CostTable(w, m) }))
}
