package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/workflow"
	"kvtune/planner/cost"
	"kvtune/planner/report"
	"kvtune/planner/spec"
)

func fitCommand() *cli.Command {
	return &cli.Command{
		Name:  "fit",
		Usage: "a step-time model from measurements, with its errors",
		Description: "Examples:\n" +
			"   kvtune fit --profiling-results results --output-file kvtune_cost.json\n" +
			"   kvtune fit --profiling-results probes_requests.jsonl.zst --steps steps.csv --model meta-llama/Llama-3.1-8B " +
			"--gpu H200\n" +
			"   kvtune fit --profiling-results results --kernels bench/kernels_bench.json",
		Flags: join(in(catInput,
			&cli.StringSliceFlag{Name: "profiling-results", Usage: "result `FILE`, requests file or archive folder (repeat)"},
			&cli.StringSliceFlag{Name: "steps", Usage: "engine steps without asynchronous scheduling: `FILE` (CSV), or a " +
				"launched server's folder (repeat)"},
			kernelsFlag(),
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
	if len(results)+len(steps)+len(c.StringSlice("kernels")) == 0 {
		return usagef("nothing to fit from: give --profiling-results, --steps or --kernels")
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
	m := cost.Prior(gpu, model, harness.EngineArgs{})
	var args harness.EngineArgs
	if len(from) > 0 {
		args = from[0].Args
		if m, err = workflow.Fit(c.Context, model, gpu, from); err != nil {
			return err
		}
	}
	if m, err = withKernels(c, m, model, args); err != nil {
		return err
	}
	if err := archive.WriteJSON(c.Path("output-file"), m); err != nil {
		return err
	}
	scr.close()
	in := report.Input{Verdict: report.CostVerdict(m), Files: []string{c.Path("output-file")}}
	out := outputOf(in)
	out.Cost = m
	return showReport(c, in, out, report.CostTable(m))
}

func kernelsFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "kernels",
		Usage: "what block sizes cost in attention kernels: `FILE` written by bench (repeat)"}
}

// withKernels adds --kernels to a cost model of a server with these settings.
func withKernels(c *cli.Context, m *cost.Model, model spec.Model, args harness.EngineArgs) (*cost.Model, error) {
	for _, file := range c.StringSlice("kernels") {
		bench, _, err := archive.ReadBench(file)
		if err == nil {
			m, err = m.WithKernels(bench, model, args)
		}
		if err != nil {
			return nil, usageError{fmt.Errorf("--kernels %s: %w", file, err)}
		}
	}
	return m, nil
}
