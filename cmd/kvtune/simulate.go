package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"kvtune/harness/profile"
	"kvtune/harness/workflow"
	"kvtune/planner/report"
)

func simulateCommand() *cli.Command {
	return &cli.Command{
		Name:  "simulate",
		Usage: "run one configuration in virtual time: no server, no GPU, the same files as a profile",
		Description: "Step times come from a fitted cost model (--cost), or from the prior of --gpu and --model.\n\nExamples:\n" +
			"   kvtune simulate --gpu H200 --model meta-llama/Llama-3.1-8B --C 1024 --M 16 --B 64 --rate 12 --num-requests 1000\n" +
			"   kvtune simulate --cost kvtune_cost.json --trace AzureLLMInferenceTrace_conv.csv --max-num-batched-tokens 4096",
		Flags: join(in(catInput,
			&cli.PathFlag{Name: "cost", Usage: "cost model `FILE` written by fit or workflow"},
			kernelsFlag(),
			&cli.StringFlag{Name: "gpu", Usage: "`device` to simulate", Value: "H200"},
			&cli.StringFlag{Name: "vllm-version", Usage: "rules of vLLM `0.18 to 0.33` (default: the newest)"},
		), workloadFlags(), []cli.Flag{sloFlag()}, serverFlags(), []cli.Flag{outputDirFlag("results"), shardFlag()}),
		Action: simulate,
	}
}

func simulate(c *cli.Context) error {
	if err := refuseShard(c, "one simulation is not divisible; several are divided by the array's index in their flags"); err != nil {
		return err
	}
	basis, err := basisOf(c)
	if err != nil {
		return err
	}
	if basis.SLOs, err = slosOf(c); err != nil {
		return err
	}
	if version := c.String("vllm-version"); version != "" {
		if err := basis.ForVersion(version); err != nil {
			return usageError{fmt.Errorf("--vllm-version %s: %w", version, err)}
		}
	}
	basis.Config.Name = "simulation"
	if _, err := basis.Server.Config(basis.Server.Args); err != nil { // settings with which vLLM would not start
		return usageError{err}
	}
	run, err := basis.Simulate(c.Context)
	if err != nil {
		return err
	}
	run.Result.Conditions.Command, run.Result.Conditions.Tool = words(c, "command"), "kvtune "+version()
	s := &setup{}
	if err := s.open(c.Path("output-dir")); err != nil {
		return err
	}
	if err := workflow.WriteRun(s.Folder, run); err != nil {
		return err
	}
	run.Analysis = basis.Analyze(c.Context, run)
	out := &profile.Output{Result: run.Result, Records: run.Records}
	return printRuns(c, []report.Run{*run}, judged([]*profile.Output{out}, basis.SLOs), s.files())
}
