package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"kvtune/bench"
	"kvtune/harness"
	"kvtune/harness/workflow"
	"kvtune/planner"
)

func workflowCommand() *cli.Command {
	return &cli.Command{
		Name:  "workflow",
		Usage: "profile, analyse, fit, plan, verify and report, over one or several configurations",
		Description: "Without --trace, --configs or workload flags it runs the three presets. Without --endpoint or " +
			"--launch the\n" +
			"embedded engine serves, and everything says SIMULATED.\n\nExamples:\n" +
			"   kvtune workflow --quick-test --target-optimization balanced --output-dir results\n" +
			"   kvtune workflow --endpoint http://HOST:8000 --trace mine.csv --slo 'p99 TTFT <= 500ms'\n" +
			"   kvtune workflow --launch --model ./my-model --configs configs.json -- --load-format dummy\n\n" +
			"A --shard measures its share of the configurations; after kvtune merge the same command with --resume goes on\n" +
			"from them.",
		Flags: join(in("Size",
			&cli.BoolFlag{Name: "quick-test", Usage: "small probes and a small search: minutes become seconds"},
			&cli.BoolFlag{Name: "bench", Usage: "measure first what block sizes cost in kernels on this machine (10 seconds)"},
		), endpointFlags(), workloadFlags(), in(catWorkload,
			&cli.PathFlag{Name: "configs", Usage: "the configurations in `FILE` (JSON)"},
		), planFlags(), in(catObjective,
			oneOf(planner.Strategies(), &cli.StringFlag{Name: "target-optimization", Value: string(planner.Balanced),
				Usage: "the `strategy` to plan for"}),
		), serverFlags(), in(catOutput,
			&cli.BoolFlag{Name: "resume", Usage: "take over what an interrupted workflow left in --output-dir"},
			detailsFlag(),
			outputDirFlag("results"),
		), shardFlags()),
		Action: workflowAction,
	}
}

func workflowAction(c *cli.Context) error {
	objective, err := objectiveOf(c)
	if err != nil {
		return err
	}
	configs, err := suiteOf(c)
	if err != nil {
		return err
	}
	s, err := setupOf(c, c.String("model"))
	if err != nil {
		return err
	}
	defer s.screen.close()
	if err := check(s.GPU, configs...); err != nil {
		return err
	}
	shard, err := shardOf(c)
	if err != nil {
		return err
	}
	if !shard.Whole() {
		return s.profileShard(c, configs, nil, shard, true, c.Bool("quick-test"))
	}
	start, err := startAtOf(c)
	if err != nil {
		return err
	}
	if err := waitUntil(c.Context, start, s.screen.stage); err != nil {
		return err
	}
	opt := workflow.Options{
		Setup: s.Setup, Configs: configs, Target: planner.Strategy(c.String("target-optimization")), SLOs: objective.slos,
		Current: objective.current, Fixed: objective.fixed, Extra: words(c, "extra"), Quick: c.Bool("quick-test"),
		Resume: c.Bool("resume"),
	}
	if !opt.Resume { // what is left to do is known from the folder, which is there already
		if err := opt.Check(c.Context); err != nil {
			return err
		}
	}
	if err := s.open(c.Path("output-dir")); err != nil {
		return err
	}
	opt.Setup = s.Setup
	var measured *harness.Bench
	if c.Bool("bench") {
		if measured, err = bench.BlockSizes(c.Context, s.Folder, opt.Resume, s.Tool, s.Command, s.screen.stage); err != nil {
			return err
		}
	}
	opt.Kernels = measured
	out, err := workflow.Run(c.Context, opt)
	if err != nil {
		return err
	}
	out.Kernels = measured
	s.screen.close()
	return s.printOutcome(c, out)
}

// suiteOf is what a workflow runs over: --configs, the workload that the flags describe, or the three presets.
func suiteOf(c *cli.Context) ([]harness.Config, error) {
	if describesWorkload(c) || c.Path("configs") != "" {
		return configsOf(c, "workload")
	}
	var configs []harness.Config
	for _, name := range harness.PresetNames() {
		cfg, err := harness.Preset(name)
		if err != nil {
			return nil, err
		}
		flags, err := configOf(c)
		if err != nil {
			return nil, err
		}
		cfg.Model, cfg.Seed = flags.Model, flags.Seed
		cfg.EngineArgs = cfg.EngineArgs.Merge(flags.EngineArgs)
		if c.Bool("quick-test") {
			cfg.NumWarmup, cfg.NumMeasurements = 0, 1
		}
		if c.IsSet("num-warmup") {
			cfg.NumWarmup = flags.NumWarmup
		}
		if c.IsSet("num-measurements") {
			cfg.NumMeasurements = flags.NumMeasurements
		}
		if err := cfg.Validate(); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		configs = append(configs, cfg)
	}
	return configs, nil
}

// describesWorkload reports whether the flags say what to send, and not only how often or to which model.
func describesWorkload(c *cli.Context) bool {
	for _, f := range workloadFlags() {
		switch name := f.Names()[0]; name {
		case "model", "seed", "num-measurements", "num-warmup":
		default:
			if c.IsSet(name) {
				return true
			}
		}
	}
	return false
}
