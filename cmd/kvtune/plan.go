package main

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/vllmflags"
	"kvtune/harness/workflow"
	"kvtune/harness/workload"
	"kvtune/planner"
	"kvtune/planner/cost"
	"kvtune/planner/report"
	"kvtune/planner/spec"
)

const catObjective = "Objective"

// planFlags are what a plan is for, the same in plan, verify and workflow.
func planFlags() []cli.Flag {
	return in(catObjective,
		sloFlag(),
		&cli.StringFlag{Name: "current",
			Usage: "the settings in use, as the `command` that starts the server: the baseline of every gain"},
		&cli.StringSliceFlag{Name: "fix", Usage: "a setting that may not change: `flag=value` (repeat)"},
	)
}

// objective is what planFlags say.
type objective struct {
	slos           []harness.SLO
	current, fixed harness.EngineArgs
	// model is the one that --current names, rest the flags in it that are not planned.
	model string
	rest  []string
}

func objectiveOf(c *cli.Context) (objective, error) {
	slos, err := slosOf(c)
	o := objective{slos: slos}
	if err != nil {
		return o, err
	}
	if command := c.String("current"); command != "" {
		model, args, rest, err := vllmflags.ParseServeCommand(command)
		if err != nil {
			return o, usageError{fmt.Errorf("--current: %w", err)}
		}
		o.model, o.current, o.rest = model, args, rest
	}
	fixed, err := vllmflags.ParseFix(c.StringSlice("fix")...)
	if err != nil {
		return o, usageError{fmt.Errorf("--fix: %w", err)}
	}
	o.fixed = fixed
	return o, nil
}

func planCommand() *cli.Command {
	return &cli.Command{
		Name:  "plan",
		Usage: "plan a server's settings for a workload: simulate candidates, choose per strategy",
		Description: "The workload is that of the profile, or the workload flags'. The cost model is --cost, or is fitted " +
			"from the profile\n" +
			"and what lies beside it; with neither it is the prior of --gpu and --model, and the intervals are " +
			"wide.\n\nExamples:\n" +
			"   kvtune plan --profiling-results results/profiling_results.json --generate-parameter-sweep\n" +
			"   kvtune plan --trace mine.csv --rate 8 --slo 'p99 TTFT <= 500ms' --target-optimization throughput --gpu H200\n" +
			"   kvtune plan --C 1000 --rate 4..24 --slo 'p99 TTFT <= 200ms' --target-optimization latency --target-rate 100 " +
			"--gpu-price 2.5",
		Flags: join(in("Size",
			&cli.BoolFlag{Name: "quick-test", Usage: "a small search"},
		), in(catInput,
			&cli.PathFlag{Name: "profiling-results", Usage: "result `FILE` or archive folder"},
			&cli.PathFlag{Name: "cost", Usage: "cost model `FILE` written by fit or workflow"},
			kernelsFlag(),
			&cli.StringFlag{Name: "gpu", Usage: "`device` of the server", Value: "H200"},
		), workloadFlags(), planFlags(), in(catObjective,
			oneOf(planner.Strategies(), &cli.StringFlag{Name: "target-optimization",
				Usage: "the `strategy` to plan for; default: all of them"}),
			&cli.Float64Flag{Name: "target-rate", Usage: "say how many replicas serve `R` requests/s"},
			&cli.Float64Flag{Name: "gpu-price", Usage: "and what they cost: `price` of one GPU for an hour"},
		), serverFlags(), in(catServer,
			&cli.StringFlag{Name: "vllm-version",
				Usage: "flags and rules of this `version` of vLLM, 0.18 to 0.33 (default: the server's, or 0.32)"},
		), in("Parameter sweep",
			&cli.BoolFlag{Name: "generate-parameter-sweep", Usage: "best settings for every cell of C, M, B and block size"},
			&cli.StringFlag{Name: "C-range", Usage: "`values`: 256,512,1024 or 256:2048:x2", Value: "256,512,1024,2048"},
			&cli.StringFlag{Name: "M-range", Usage: "`values` of M", Value: "16,32,64,128"},
			&cli.StringFlag{Name: "B-range", Usage: "`values` of B", Value: "16,32,64,128"},
			&cli.StringFlag{Name: "block-size-range", Usage: "`values` of block_size", Value: "8,16,32"},
			&cli.PathFlag{Name: "sweep-file", Value: "parameter_sweep.csv",
				Usage: "write the sweep to `FILE` (CSV), and its heat maps beside it (PNG)"},
		), in(catOutput,
			oneOf(planner.ExportFormats(), &cli.StringFlag{Name: "export", Usage: "print the first plan in this `form`"}),
			detailsFlag(),
			&cli.PathFlag{Name: "output-file", Usage: "write the plans to `FILE`", Value: workflow.PlansFile},
			&cli.PathFlag{Name: "html", Usage: "also write plans and sweep as a page to `FILE`"},
		), []cli.Flag{shardFlag(), resumeFlag()}),
		Action: plan,
	}
}

func plan(c *cli.Context) error {
	objective, err := objectiveOf(c)
	if err != nil {
		return err
	}
	var strategies []planner.Strategy
	if name := c.String("target-optimization"); name != "" {
		strategies = []planner.Strategy{planner.Strategy(name)}
	}
	for _, name := range []string{"target-rate", "gpu-price"} {
		if c.IsSet(name) && !(c.Float64(name) > 0) {
			return usagef("--%s %g: expected a number above 0", name, c.Float64(name))
		}
	}
	if c.IsSet("gpu-price") && !c.IsSet("target-rate") {
		return usagef("--gpu-price needs --target-rate: the requests/s that the replicas serve")
	}
	grid, err := gridOf(c)
	if err != nil {
		return err
	}
	if objective.model != "" && !c.IsSet("model") {
		if err := c.Set("model", objective.model); err != nil {
			return err
		}
	}
	var shard harness.Shard
	if c.Bool("generate-parameter-sweep") {
		if shard, err = shardOf(c); err != nil {
			return err
		}
	} else if err := refuseShard(c, "one plan is not divisible, a sweep is: --generate-parameter-sweep"); err != nil {
		return err
	}
	basis, err := basisOf(c)
	if err != nil {
		return err
	}
	if version := c.String("vllm-version"); version != "" {
		if err := basis.ForVersion(version); err != nil {
			return usageError{fmt.Errorf("--vllm-version %s: %w", version, err)}
		}
	}
	scr := newScreen(c.App.ErrWriter)
	defer scr.close()
	scr.stage("planning")
	opt := workflow.PlanOptions{
		Current: objective.current, Fixed: objective.fixed, SLOs: objective.slos, Strategies: strategies,
		Extra: objective.rest, TargetRate: c.Float64("target-rate"), GPUPrice: c.Float64("gpu-price"),
		Quick: c.Bool("quick-test"),
	}
	if !shard.Whole() {
		work := workflow.SweepWork{Basis: basis, Options: opt, Grid: grid, PlansFile: c.Path("output-file"),
			SweepFile: c.Path("sweep-file"), Tool: "kvtune " + version()}
		folder, taken, err := work.Shard(c.Context, shard, c.Bool("resume"), scr.count)
		if err != nil {
			return err
		}
		scr.close()
		cells := len(folder.Shard().Parts)
		fmt.Fprintf(c.App.Writer, "shard %v of a sweep: %d of %d cells", shard, shard.Share(cells), cells)
		if taken > 0 {
			fmt.Fprintf(c.App.Writer, " (%d taken over from the interrupted run)", taken)
		}
		fmt.Fprintf(c.App.Writer, ", in %s; kvtune merge %s makes the table of all of them\n", folder.Dir(),
			filepath.Dir(folder.Dir()))
		return nil
	}
	plans, err := basis.Plan(c.Context, opt)
	if err != nil {
		return err
	}
	files := []string{c.Path("output-file")}
	var sweep *planner.SweepResult
	if c.Bool("generate-parameter-sweep") {
		scr.stage("sweeping")
		var notes []string
		sweep, notes, err = basis.Sweep(c.Context, opt, grid, scr.count)
		if err != nil {
			return err
		}
		plans.Notes = append(plans.Notes, notes...)
		written, err := workflow.WriteSweep(sweep, c.Path("sweep-file"))
		if err != nil {
			return err
		}
		files = append(files, written...)
	}
	if err := archive.WriteJSON(files[0], plans); err != nil {
		return err
	}
	if file := c.Path("html"); file != "" {
		files = append(files, file)
		in := report.Input{Title: "kvtune plan", Verdict: plans.Verdict, Plans: plans, Sweep: sweep, Cost: basis.Server.Cost,
			Files: files, Commands: []string{report.ShellLine(c.App.Metadata["command"].([]string))}}
		if err := archive.WriteFile(file, func(w io.Writer) error { return report.HTML(w, in) }); err != nil {
			return err
		}
	}
	scr.close()
	return printPlans(c, plans, sweep, files)
}

// basisOf finds the workload, the server and the cost model that a plan rests on: the profile's, or the flags' on
// paper.
func basisOf(c *cli.Context) (*workflow.Basis, error) {
	rate, err := replayed(c)
	if err != nil {
		return nil, err
	}
	cfg, err := configOf(c)
	if err != nil {
		return nil, err
	}
	model, gpu, err := shapes(c)
	if err != nil {
		return nil, err
	}
	var m *cost.Model
	if file := c.Path("cost"); file != "" {
		if m, err = readCost(file); err != nil {
			return nil, usageError{fmt.Errorf("--cost: %w", err)}
		}
		if gpu, err = deviceOf(c, m, gpu, cfg); err != nil {
			return nil, err
		}
	}
	if err := check(gpu, cfg); err != nil {
		return nil, err
	}
	if rate != "" {
		cfg.Rate = rate
	}
	file := c.Path("profiling-results")
	if file == "" {
		if !c.IsSet("model") && cfg.MaxModelLen == 0 {
			cfg.MaxModelLen = defaultMaxModelLen
		}
		basis, err := workflow.OnPaper(cfg, model, gpu, m)
		if err != nil {
			return nil, usageError{err}
		}
		basis.Server.Cost, err = withKernels(c, basis.Server.Cost, model, basis.Server.Args)
		return basis, err
	}
	runs, err := workflow.ReadRuns(file)
	if err != nil {
		return nil, usageError{fmt.Errorf("--profiling-results: %w", err)}
	}
	if others := workflow.OtherRuns(file); len(others) > 0 {
		fmt.Fprintf(c.App.ErrWriter, "kvtune: of the runs in %s this is %s; the others by their files: %s\n", file,
			runs[0].Result.Name, strings.Join(others, ", "))
	}
	if name := runs[0].Result.Config.Model; name != "" && !c.IsSet("model") {
		if model, err = spec.FindModel(name); err != nil {
			return nil, usageError{fmt.Errorf("%s: %w", file, err)}
		}
	}
	if m == nil {
		if m, err = workflow.FitFrom(c.Context, model, gpu, runs); err != nil {
			return nil, fmt.Errorf("fit: %w", err)
		}
	}
	basis := workflow.BasisOf(runs[0].Result, model, gpu, m)
	if basis.Server.Cost, err = withKernels(c, basis.Server.Cost, model, basis.Server.Args); err != nil {
		return nil, err
	}
	switch {
	case !describesWorkload(c):
	case c.IsSet("rate") && onlyPace(c): // the profile's requests, at other moments
		basis.Config.Rate, basis.Config.Burstiness, basis.Config.Concurrency, basis.Config.Clients = cfg.Rate, cfg.Burstiness,
			0, 0
		if c.IsSet("num-requests") {
			basis.Config.NumRequests = cfg.NumRequests
		}
	default:
		basis.Config = cfg
	}
	return basis, nil
}

// replayed is the range of rates at which a trace is to be replayed, "" where --rate is none; its highest takes its
// place in the flags: one run goes through a trace at one rate.
func replayed(c *cli.Context) (string, error) {
	text := c.String("rate")
	rate, err := workload.ParseRate(text)
	if err != nil || !c.IsSet("trace") || rate.Even || rate.From == rate.To { // what is wrong is said where it is read
		return "", nil
	}
	return text, c.Set("rate", fmt.Sprint(max(rate.From, rate.To)))
}

// deviceOf is the device that a cost model is of. Settings that the model is not of are refused: its times would be of
// another server.
func deviceOf(c *cli.Context, m *cost.Model, flag spec.GPU, cfg harness.Config) (spec.GPU, error) {
	if tp := max(1, cfg.EngineArgs.TensorParallelSize); tp != m.Tensor && cfg.EngineArgs.TensorParallelSize > 0 {
		return flag, usagef("--cost is of tensor_parallel_size %d, and --tensor-parallel-size is %d: fit a model on such "+
			"a server", m.Tensor, tp)
	}
	gpu, err := spec.FindGPU(m.GPU)
	switch {
	case err != nil: // of no device that is known: the flag's memory has to do
		return flag, nil
	case c.IsSet("gpu") && gpu.Name != flag.Name:
		return flag, usagef("--cost is of %s, and --gpu is %s: fit a model on that, or leave --gpu out", gpu.Name, flag.Name)
	}
	return gpu, nil
}

// onlyPace reports whether the workload flags say no more than when requests are sent.
func onlyPace(c *cli.Context) bool {
	for _, f := range workloadFlags() {
		switch name := f.Names()[0]; name {
		case "model", "seed", "rate", "burstiness", "num-requests":
		default:
			if c.IsSet(name) {
				return false
			}
		}
	}
	return true
}

// gridOf reads the ranges of the parameter sweep.
func gridOf(c *cli.Context) (workflow.Grid, error) {
	var grid workflow.Grid
	for _, r := range []struct {
		flag string
		to   *[]int
	}{{"C-range", &grid.C}, {"M-range", &grid.M}, {"B-range", &grid.B}, {"block-size-range", &grid.BlockSize}} {
		values, err := planner.ParseRange(c.String(r.flag))
		if err != nil {
			return grid, usageError{fmt.Errorf("--%s: %w", r.flag, err)}
		}
		*r.to = values
	}
	return grid, nil
}
