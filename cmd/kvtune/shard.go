package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/profile"
	"kvtune/harness/workflow"
)

const catShard = "Shards: one of several processes that divide the work"

// shardFlag is all that a command needs whose work cannot be divided, to say so.
func shardFlag() cli.Flag {
	return &cli.StringFlag{Name: "shard", Category: catShard,
		Usage: "do share `i/n` (0/3, 1/3, 2/3) of the work; kvtune merge unites them. In a Slurm array and, as /n, in a " +
			"Kubernetes indexed Job i is known; 0/1 is the whole"}
}

func shardFlags() []cli.Flag {
	return []cli.Flag{shardFlag(),
		&cli.StringFlag{Name: "start-at", Category: catShard,
			Usage: "measure from `TIME` on, which shards have in common: 2026-01-31T12:00:00Z (date -Iseconds -d '+2 min') or " +
				"@UNIX_SECONDS"},
	}
}

func resumeFlag() cli.Flag {
	return &cli.BoolFlag{Name: "resume", Usage: "go on where an earlier run of this --shard ended", Category: catShard}
}

// shardOf is the share that the flag or the environment asks for.
func shardOf(c *cli.Context) (harness.Shard, error) {
	s, from, err := harness.FindShard(c.String("shard"), os.Getenv)
	if err != nil {
		return s, usageError{fmt.Errorf("--shard: %w", err)}
	}
	if from != "" && !s.Whole() {
		fmt.Fprintf(c.App.ErrWriter, "kvtune: shard %v, from %s (--shard 0/1 does the whole)\n", s, from)
	}
	if c.Bool("resume") && s.Whole() && c.Command.Name != "workflow" {
		return s, usagef("--resume goes on with a shard: it needs --shard i/n")
	}
	return s, nil
}

// refuseShard is for what cannot be divided. The environment of an array job is not meant for it: there each task runs
// another one.
func refuseShard(c *cli.Context, why string) error {
	s, _, err := harness.FindShard(c.String("shard"), func(string) string { return "" })
	if c.IsSet("shard") && (err != nil || !s.Whole()) {
		return usagef("--shard %s: %s", c.String("shard"), why)
	}
	return nil
}

// startAtOf reads --start-at; zero where it is not given.
func startAtOf(c *cli.Context) (time.Time, error) {
	text := c.String("start-at")
	if text == "" {
		return time.Time{}, nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if digits, ok := strings.CutPrefix(text, "@"); ok {
		var s float64
		if s, err = strconv.ParseFloat(digits, 64); err == nil && s > 0 && s < 1e11 {
			at = time.UnixMicro(int64(s * 1e6))
		} else {
			err = fmt.Errorf("expected seconds since 1970")
		}
	}
	if err != nil {
		return at, usagef("--start-at %s: expected a time such as 2026-01-31T12:00:00Z (date -Iseconds) or @1769860800 "+
			"(date +@%%s)", text)
	}
	if late := time.Since(at); late > 0 {
		return at, usagef("--start-at %s was %v ago: shards that begin later would not be one load; give a time that all "+
			"of them reach", text, late.Round(time.Millisecond))
	}
	return at, nil
}

// waitUntil waits for a moment; zero is now.
func waitUntil(ctx context.Context, at time.Time, say func(string)) error {
	left := time.Until(at)
	if at.IsZero() || left <= 0 {
		return nil
	}
	say(fmt.Sprintf("waiting until %s", at.Format(time.RFC3339)))
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(left):
		return nil
	}
}

// command is the command line of the whole: what merged files hold, as one process would have written them.
func (s *setup) command(c *cli.Context) []string { return wholeCommand(words(c, "command")) }

func wholeCommand(args []string) []string {
	var out []string
	for i := 0; i < len(args); i++ {
		name, _, joined := strings.Cut(strings.TrimLeft(args[i], "-"), "=")
		switch {
		case args[i] == "--":
			return append(out, args[i:]...)
		case !strings.HasPrefix(args[i], "-") || name != "shard" && name != "resume":
			out = append(out, args[i])
		case name == "shard" && !joined:
			i++
		}
	}
	return out
}

// use makes an open folder the one that a command writes to.
func (s *setup) use(folder *archive.Folder) {
	s.Folder = folder
	if l, ok := s.Source.(*workflow.Launched); ok {
		l.LogDir = folder.Dir()
	}
}

// dealt are a shard's configurations.
func dealt(configs []harness.Config, shard harness.Shard) []harness.Config {
	var own []harness.Config
	for k, cfg := range configs {
		if shard.Has(k) {
			own = append(own, cfg)
		}
	}
	return own
}

// profileShard measures one share of several configurations. The probes are measured before the first of all.
func (s *setup) profileShard(c *cli.Context, configs []harness.Config, slos []harness.SLO, shard harness.Shard,
	probes, quick bool) error {
	start, err := startAtOf(c)
	if err != nil {
		return err
	}
	own := dealt(configs, shard)
	if len(configs) < shard.Count {
		return usagef("--shard %v: %d configurations do not divide into %d shards; use at most %d", shard, len(configs),
			shard.Count, len(configs))
	}
	probes = probes && shard.Index == 0
	ctx, done, err := s.Begin(c.Context, workflow.Work{Configs: own, Probes: probes, Quick: quick})
	if err != nil {
		return err
	}
	defer done()
	s.Command = s.command(c)
	folder, err := workflow.ShardConfigs(c.Path("output-dir"), shard, configs, s.Tool, c.Bool("resume"))
	if err != nil {
		return usageError{fmt.Errorf("--output-dir: %w", err)}
	}
	s.use(folder)
	if err := waitUntil(ctx, start, s.screen.stage); err != nil {
		return err
	}
	return s.measure(c, own, slos, func(i int) (*profile.Output, error) {
		if part, _ := folder.Part(own[i].Name); part.State == archive.Done {
			s.screen.stage(own[i].Name + ": taken over from the interrupted run")
			return workflow.ReadRun(folder, own[i].Name)
		}
		return s.measureOne(ctx, own[i], probes && own[i].Name == configs[0].Name, quick)
	})
}

// measureOne measures a configuration, after the probes where they are wanted.
func (s *setup) measureOne(ctx context.Context, cfg harness.Config, probes, quick bool) (*profile.Output, error) {
	if !probes {
		return s.Profile(ctx, cfg)
	}
	measured, err := s.ProfileWithProbes(ctx, cfg, quick)
	if err != nil {
		return nil, err
	}
	return measured[len(measured)-1], nil
}

// divideLoad sets s up for one share of the load of a configuration, and refuses what is not divisible.
func (s *setup) divideLoad(c *cli.Context, cfg harness.Config, shard harness.Shard, search bool) error {
	_, running := s.Source.(workflow.Running)
	switch {
	case !running && c.Bool("launch"):
		return usagef("--shard %v: a load is divided among clients of one server, and every process would launch its own: "+
			"start it, and give --endpoint URL (several configurations, --configs, are divided with --launch)", shard)
	case !running:
		return usagef("--shard %v: one simulation is not divisible: give --endpoint URL to divide a load among clients of "+
			"a server, or --configs with several configurations (--shard 0/1 does the whole)", shard)
	case search:
		return usagef("--shard %v: a search for a rate is not divisible: every step depends on the one before; divide the "+
			"load at one --rate", shard)
	case c.Bool("probes"):
		return usagef("--shard %v: probes are not divisible: measure them first, in one process", shard)
	case c.Bool("resume"):
		return usagef("--resume: the shards of a load run together: run all of them again")
	}
	basis, err := s.basisFor(c.Context, cfg)
	if err != nil {
		return err
	}
	w, err := profile.Workload(cfg, basis.Info)
	if err != nil {
		return usageError{fmt.Errorf("%s: %w", cfg.Name, err)}
	}
	if _, err := w.Shard(shard.Index, shard.Count, s.StartAt.IsZero()); err != nil {
		return usageError{fmt.Errorf("--shard %v: %w", shard, err)}
	}
	s.Shard, s.Command = shard, s.command(c)
	return nil
}
