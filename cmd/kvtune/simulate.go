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
		Description: "Step times come from a fitted cost model (--cost), or from the prior of --gpu and --model.\n" +
			"The requests of an open loop of 100,000 and more are made, served and written one by one: memory does not " +
			"grow with\n" +
			"their number, and of each the requests file has the first and the last token.\n\nExamples:\n" +
			"   kvtune simulate --gpu H200 --model meta-llama/Llama-3.1-8B --C 1024 --M 16 --B 64 --rate 12 " +
			"--num-requests 1000\n" +
			"   kvtune simulate --cost kvtune_cost.json --trace AzureLLMInferenceTrace_conv.csv --max-num-batched-tokens 4096",
		Flags: join(in(catInput,
			&cli.PathFlag{Name: "cost", Usage: "cost model `FILE` written by fit or workflow"},
			kernelsFlag(),
			&cli.StringFlag{Name: "gpu", Usage: "`device` to simulate", Value: "H200"},
			&cli.StringFlag{Name: "vllm-version", Usage: "rules of vLLM `0.18 to 0.33` (default: 0.32)"},
		), workloadFlags(), []cli.Flag{sloFlag()}, serverFlags(), []cli.Flag{outputDirFlag("results"), shardFlag()}),
		Action: simulate,
	}
}

// streamFrom is from how many requests on none of them is kept in memory.
const streamFrom = 100_000

func simulate(c *cli.Context) error {
	if err := refuseShard(c, "one simulation is not divisible; several are divided by the array's index in "+
		"their flags"); err != nil {
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
	stream, err := basis.Stream(streamFrom)
	if err != nil {
		return err
	}
	if stream != nil {
		return simulateStream(c, basis, stream)
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
	return printSimulated(c, s, basis, run)
}

// simulateStream simulates requests that are too many to keep.
func simulateStream(c *cli.Context, basis *workflow.Basis, stream *workflow.Stream) error {
	stream.Command, stream.Tool = words(c, "command"), "kvtune "+version()
	s := &setup{screen: newScreen(c.App.ErrWriter)}
	if err := s.open(c.Path("output-dir")); err != nil {
		return err
	}
	s.screen.stage("simulating")
	defer s.screen.close()
	run, err := stream.Run(c.Context, s.Folder, func(ended int) {
		if ended%1000 == 0 {
			s.screen.count(ended, stream.Expected())
		}
	})
	if err != nil {
		return err
	}
	s.screen.close()
	return printSimulated(c, s, basis, run)
}

func printSimulated(c *cli.Context, s *setup, basis *workflow.Basis, run *report.Run) error {
	out := &profile.Output{Result: run.Result, Records: run.Records}
	return printRuns(c, []report.Run{*run}, judged([]*profile.Output{out}, basis.SLOs), s.files())
}
