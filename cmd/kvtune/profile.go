package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/load"
	"kvtune/harness/profile"
	"kvtune/harness/vllmflags"
	"kvtune/harness/workflow"
	"kvtune/planner/analysis"
	"kvtune/planner/spec"
)

func profileCommand() *cli.Command {
	return &cli.Command{
		Name:  "profile",
		Usage: "measure a workload on a server",
		Description: "Without --endpoint or --launch the embedded engine serves, and everything says " +
			"SIMULATED.\n\nExamples:\n" +
			"   kvtune profile --C 512 --M 32 --B 32 --profiling-type mixed\n" +
			"   kvtune profile --endpoint http://127.0.0.1:8000 --trace mine.csv --rate 8\n" +
			"   kvtune profile --endpoint http://127.0.0.1:8000 --rate 1..64 --duration 60s --slo 'p99 TTFT <= 200ms'\n" +
			"   kvtune profile --launch --model ./my-model --C 1024 --B 64 --max-num-batched-tokens 4096 -- --load-format dummy",
		Flags: join(endpointFlags(), workloadFlags(), in(catWorkload,
			&cli.PathFlag{Name: "configs", Usage: "measure every configuration in `FILE` (JSON)"},
			&cli.BoolFlag{Name: "probes", Usage: "measure first, on the same server, the probes that fit wants"},
			&cli.BoolFlag{Name: "dry-run", Usage: "say what would be measured (with --probes every probe), and measure nothing"},
		), in(catObjective,
			&cli.StringSliceFlag{Name: "slo", Usage: "`limit` such as 'p99 TTFT <= 200ms' (repeat); with --rate R..R2 the " +
				"highest rate that keeps it is searched"},
		), serverFlags(), []cli.Flag{outputDirFlag("results"), resumeFlag()}, shardFlags()),
		Action: profileAction,
	}
}

func profileAction(c *cli.Context) error {
	configs, err := configsOf(c, "profiling")
	if err != nil {
		return err
	}
	defer load.Quiet()()
	s, err := setupOf(c, configs[0].Model)
	if err != nil {
		return err
	}
	defer s.screen.close()
	if err := check(s.GPU, configs...); err != nil {
		return err
	}
	if c.Bool("dry-run") {
		return dryRun(c, s, configs)
	}
	slos, search, err := searched(c, configs[0])
	if err != nil {
		return err
	}
	shard, err := shardOf(c)
	if err != nil {
		return err
	}
	if !shard.Whole() && len(configs) > 1 {
		return s.profileShard(c, configs, slos, shard, c.Bool("probes"), false)
	}
	start, err := startAtOf(c)
	if err != nil {
		return err
	}
	if len(configs) == 1 && !search {
		s.StartAt = start
	} else if err := waitUntil(c.Context, start, s.screen.stage); err != nil {
		return err
	}
	if !shard.Whole() {
		if err := s.divideLoad(c, configs[0], shard, search); err != nil {
			return err
		}
	}
	ctx, done, err := s.Begin(c.Context, workflow.Work{Configs: configs, Probes: c.Bool("probes")})
	if err != nil {
		return err
	}
	defer done()
	if shard.Whole() {
		err = s.open(c.Path("output-dir"))
	} else {
		var folder *archive.Folder
		if folder, err = workflow.ShardLoad(c.Path("output-dir"), &s.Setup, configs[0]); err == nil {
			s.use(folder)
		}
	}
	if err != nil {
		return err
	}
	if search {
		return s.searchRate(ctx, c, configs[0], slos)
	}
	return s.measure(c, configs, slos, func(i int) (*profile.Output, error) {
		return s.measureOne(ctx, configs[i], i == 0 && c.Bool("probes"), false)
	})
}

// measure measures configurations in order, up to one that is cut short, and prints them. one measures the i-th.
func (s *setup) measure(c *cli.Context, configs []harness.Config, slos []harness.SLO,
	one func(i int) (*profile.Output, error)) error {
	var runs []*profile.Output
	for i, cfg := range configs {
		run, err := one(i)
		if err != nil {
			return fmt.Errorf("%s: %w", cfg.Name, err)
		}
		if runs = append(runs, run); run.Result.Partial {
			break
		}
	}
	s.screen.close()
	return printRuns(c, reportRuns(runs...), judged(runs, slos), s.files())
}

// dryRun says what a profile would measure. A running server is asked what it is; none is started.
func dryRun(c *cli.Context, s *setup, configs []harness.Config) error {
	defer s.screen.close()
	var out output
	var texts []func(io.Writer) error
	fatal := false
	for i, cfg := range configs {
		basis, err := s.basisFor(c.Context, cfg)
		if err != nil {
			return err
		}
		info := basis.Info
		work, err := profile.Workload(cfg, info)
		if err != nil {
			return usageError{fmt.Errorf("%s: %w", cfg.Name, err)}
		}
		dry := dryRunOutput{Name: cfg.Name, Requests: len(work.Requests), Notes: work.Notes}
		if dry.Foreseen, err = basis.Foresee(c.Context); err != nil {
			return err
		}
		fatal = fatal || slices.ContainsFunc(dry.Foreseen, func(t analysis.Trouble) bool { return t.Fatal })
		if i == 0 && c.Bool("probes") {
			plan, err := s.PlanProbes(c.Context, info, cfg, false)
			if err != nil {
				return err
			}
			requests, expected := workflow.ProbesTotal(plan)
			out.Verdict = fmt.Sprintf("%d probes, %d requests, about %v on %s; nothing was sent", len(plan), requests,
				expected.Round(time.Second), s.GPU.Name)
			for _, p := range plan {
				dry.Probes = append(dry.Probes, probeOutput{Name: p.Name, Requests: p.Requests, PromptTokens: p.PromptTokens,
					OutputTokens: p.OutputTokens, Expected: p.Expected.Seconds(), Isolates: p.Isolates})
			}
			texts = append(texts, func(w io.Writer) error { return printProbes(w, out.Verdict, dry.Probes) })
		}
		line := fmt.Sprintf("%s: %d requests on %s; nothing was sent", dry.Name, dry.Requests, s.GPU.Name)
		if out.Verdict == "" {
			out.Verdict = line
		}
		out.DryRun = append(out.DryRun, dry)
		texts = append(texts, func(w io.Writer) error {
			fmt.Fprintln(w, line)
			for _, t := range dry.Foreseen {
				fmt.Fprint(w, harness.Wrap("! ", "  ", t.String()))
			}
			return printNotes(w, dry.Notes)
		})
	}
	err := show(c, out, func(w io.Writer) error {
		for _, text := range texts {
			if err := text(w); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && fatal {
		err = errNegative
	}
	return err
}

func printProbes(w io.Writer, verdict string, probes []probeOutput) error {
	fmt.Fprintf(w, "%s\n\n", verdict)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "probe\trequests\tprompt tokens\toutput tokens\texpected s\t  isolates")
	for _, p := range probes {
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%.1f\t  %s\n", p.Name, p.Requests, p.PromptTokens, p.OutputTokens, p.Expected,
			p.Isolates)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w)
	return err
}

func printNotes(w io.Writer, notes []string) error {
	for _, note := range notes {
		if _, err := fmt.Fprint(w, harness.Wrap("! ", "  ", note)); err != nil {
			return err
		}
	}
	return nil
}

// basisFor is what is known of the server of a configuration without starting one.
func (s *setup) basisFor(ctx context.Context, cfg harness.Config) (*workflow.Basis, error) {
	if running, ok := s.Source.(workflow.Running); ok {
		ep, err := running.Start(ctx, cfg.EngineArgs)
		if err != nil {
			return nil, err
		}
		res := &harness.Result{Config: cfg, Conditions: harness.Conditions{Server: ep.Info()}}
		return workflow.BasisOf(res, s.Model, s.GPU, nil), ep.Close()
	}
	if embedded, ok := s.Source.(workflow.Embedded); ok {
		cfg.EngineArgs = embedded.Base.Merge(cfg.EngineArgs)
	}
	basis, err := workflow.OnPaper(cfg, s.Model, s.GPU, nil)
	if err != nil {
		return nil, usageError{err}
	}
	return basis, nil
}

// configsOf reads --configs, or the one configuration that the flags describe, under the given name.
func configsOf(c *cli.Context, name string) ([]harness.Config, error) {
	cfg, err := configOf(c)
	if err != nil {
		return nil, err
	}
	if file := c.Path("configs"); file != "" {
		return readConfigs(file, cfg)
	}
	if cfg.Name == "" || c.String("preset") == "" {
		cfg.Name = name
	}
	return []harness.Config{cfg}, nil
}

// check refuses, before anything is started or written, what can be known to be impossible: a workload that does not
// fit an explicit max_model_len, a trace that cannot be read. Where no block size is given it is the device's default.
func check(gpu spec.GPU, configs ...harness.Config) error {
	assumed := vllmflags.Defaults("", workflow.DeviceOf(gpu)).BlockSize
	for _, cfg := range configs {
		if cfg.MaxModelLen == 0 && cfg.Trace == "" {
			continue // scaled to the server's context
		}
		var info harness.ServerInfo
		if cfg.BlockSize == 0 {
			info.BlockSize = assumed
		}
		switch _, err := profile.Workload(cfg, info); {
		case err != nil && cfg.Name == "": // of a command that runs one
			return usageError{err}
		case err != nil:
			return usageError{fmt.Errorf("%s: %w", cfg.Name, err)}
		}
	}
	return nil
}
