package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"

	"kvtune/bench"
	"kvtune/cuda"
	"kvtune/harness/archive"
	"kvtune/harness/timing"
	"kvtune/kernels"
)

func benchCommand() *cli.Command {
	return &cli.Command{
		Name:  "bench",
		Usage: "what block sizes and layouts of the KV cache cost on this machine, measured",
		Description: "Every case is checked against a reference before it is timed. Axes: layout, block_size, dtype, " +
			"heads,\n" +
			"kv_heads, head_size, batch, context, new, lengths, table, seed.\n\nExamples:\n" +
			"   kvtune bench --op decode --axis block_size=1,8,16,32 --axis layout=NHD,HND\n" +
			"   kvtune bench --op decode --op append --axis dtype=bf16,fp8 --warm --format csv",
		Flags: join(in("Kernels",
			&cli.StringSliceFlag{Name: "op", Usage: "`operation`: decode, prefill, append, gather, copy_blocks, swap_out, " +
				"swap_in, quantize, copy, read (repeat; default decode)"},
			&cli.StringSliceFlag{Name: "axis",
				Usage: "`name=value,value` (repeat; default block_size=1,2,4,8,16,32,64,128,256)"},
			&cli.PathFlag{Name: "cases", Usage: "a `file` with an operation and its axes on every line, instead of --op " +
				"and --axis"},
			oneOf([]string{"auto", "cuda", "host", "vllm"}, &cli.StringFlag{Name: "backend", Value: "auto",
				Usage: "`where` the kernels run; vllm: those that a vLLM server runs (FlashAttention, reshape_and_cache_flash)"}),
			&cli.PathFlag{Name: "python", Usage: "for --backend vllm: a `program` that imports vllm", Value: "python3"},
		), in("Timing",
			&cli.BoolFlag{Name: "cold", Usage: "the data of a launch is in no cache when it begins (default)"},
			&cli.BoolFlag{Name: "warm", Usage: "launches find in the caches what fits"},
			&cli.DurationFlag{Name: "time", Usage: "at most so `long` per case and round"},
			&cli.Float64Flag{Name: "precision", Usage: "stop at this relative half `width` of the median's 95 % interval",
				Value: 0.005},
			&cli.IntFlag{Name: "rounds", Usage: "`passes` over all cases, forwards and backwards by turns", Value: 2},
			&cli.BoolFlag{Name: "no-ceilings", Usage: "do not measure what the machine does at most"},
			&cli.PathFlag{Name: "tuning", Usage: "a `file` of which kernels were the fastest, by architecture and case: " +
				"they are taken; with --tune, written"},
			&cli.DurationFlag{Name: "tune", Usage: "time every choice of a case that the file does not have for so `long` " +
				"first, and take the fastest"},
		), in(catOutput,
			formatFlag("csv", "bench"),
			outputDirFlag("results"),
			&cli.StringFlag{Name: "name", Usage: "`name` of the files", Value: "kernels"},
		), shardFlags()),
		Action: benchAction,
	}
}

func benchAction(c *cli.Context) error {
	if c.Bool("cold") && c.Bool("warm") {
		return usagef("--cold and --warm exclude each other")
	}
	if c.Int("rounds") < 1 {
		return usagef("--rounds %d: expected a whole number of at least 1", c.Int("rounds"))
	}
	if p := c.Float64("precision"); !(p > 0 && p < 1) {
		return usagef("--precision %v: expected a number above 0 and below 1", p)
	}
	if c.Duration("tune") < 0 || c.Duration("tune") > 0 && c.Path("tuning") == "" {
		return usagef("--tune %v: expected a time above 0, with --tuning FILE to write", c.Duration("tune"))
	}
	shard, err := shardOf(c)
	if err != nil {
		return err
	}
	start, err := startAtOf(c)
	if err != nil {
		return err
	}
	cases, err := benchCases(c)
	if err != nil {
		return usageError{err}
	}
	if _, err := cases(false); err != nil { // before anything is opened
		return usageError{err}
	}
	cold := !c.Bool("warm")
	open := func() (*bench.Machine, error) { return bench.Open(c.String("backend"), cold) }
	if c.String("backend") == "vllm" {
		if !shard.Whole() { // a shard has every case of its share
			return usagef("--shard is not for --backend vllm, which leaves out cases that vLLM's kernels do not take")
		}
		open = func() (*bench.Machine, error) { return bench.OpenVLLM(c.Path("python"), cold) }
	} else if c.IsSet("python") {
		return usagef("--python is for --backend vllm")
	}
	machine, err := open()
	if errors.Is(err, cuda.ErrUnavailable) {
		return usageError{fmt.Errorf("%w; --backend host measures the processor", err)}
	}
	if err != nil {
		return usageError{err}
	}
	defer machine.Close()
	list, err := cases(machine.Large)
	if err != nil {
		return usageError{err}
	}
	scr := newScreen(c.App.ErrWriter)
	defer scr.close()
	o := bench.Options{
		Name: c.String("name"), Backend: machine.Backend, Limits: machine.Limits, Device: machine.Device,
		Ceiling: machine.Ceiling, Cases: list, NoCeilings: c.Bool("no-ceilings"), Cold: cold, Rounds: c.Int("rounds"),
		Timing: timing.Options{MaxTime: c.Duration("time"), Precision: c.Float64("precision"), Probe: machine.Probe},
		Progress: func(done, of int, what string) {
			scr.stage(fmt.Sprintf("%d/%d %s", done+1, of, what))
		},
	}
	if len(o.Cases) < shard.Count {
		return usagef("--shard %v: %d cases do not divide into %d shards; use at most %d", shard, len(o.Cases), shard.Count,
			len(o.Cases))
	}
	if file := c.Path("tuning"); file != "" {
		if o.Tuning, err = bench.ReadTuning(file); err != nil {
			return usageError{fmt.Errorf("--tuning: %w", err)}
		}
		o.Tune = c.Duration("tune")
	}
	var folder *archive.Folder
	command := words(c, "command")
	if shard.Whole() {
		folder, err = archive.Create(c.Path("output-dir"))
	} else {
		command = wholeCommand(command)
		folder, o.Cases, err = bench.CreateShard(c.Path("output-dir"), shard, &o, version())
	}
	if err != nil {
		return usageError{fmt.Errorf("--output-dir: %w", err)}
	}
	if err := waitUntil(c.Context, start, scr.stage); err != nil {
		return err
	}
	out, err := bench.Run(c.Context, o)
	failed := err
	if o.Tune > 0 { // what was tuned is kept, whatever came after
		if err := bench.WriteTuning(c.Path("tuning"), o.Tuning); err != nil {
			return errors.Join(failed, err)
		}
	}
	if out == nil {
		return failed
	}
	scr.close()
	if machine.Note != "" {
		out.Bench.Warnings = append(out.Bench.Warnings, machine.Note)
	}
	out.Bench.Conditions.Tool, out.Bench.Conditions.Command = version(), command
	if err := out.Save(folder); err != nil {
		return err
	}
	if err := printBench(c, out, folder); err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	return c.Context.Err()
}

func printBench(c *cli.Context, done *bench.Outcome, folder *archive.Folder) error {
	switch c.String("format") {
	case "csv":
		return done.CSV(c.App.Writer)
	case "bench":
		return done.GoBench(c.App.Writer)
	}
	out := output{Verdict: done.Verdict(), Warnings: done.Bench.Warnings, Kernels: done.Bench}
	for _, file := range folder.Files() {
		out.Files = append(out.Files, folder.Path(file))
	}
	return show(c, out, func(w io.Writer) error {
		if err := done.Text(w); err != nil {
			return err
		}
		fmt.Fprintln(w, "\nfiles")
		for _, file := range out.Files {
			fmt.Fprintf(w, "  %s\n", file)
		}
		return nil
	})
}

// benchCases gives the cases that the flags ask for, once it is known whether the device wants large ones.
func benchCases(c *cli.Context) (func(large bool) ([]kernels.Case, error), error) {
	ops, axes, file := c.StringSlice("op"), c.StringSlice("axis"), c.Path("cases")
	if file != "" {
		if len(ops)+len(axes) > 0 {
			return nil, errors.New("--cases excludes --op and --axis: put them into the file")
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		return func(large bool) ([]kernels.Case, error) {
			list, err := bench.ReadCases(bytes.NewReader(text), large)
			if err != nil {
				err = fmt.Errorf("%s: %w", file, err)
			}
			return list, err
		}, nil
	}
	if len(ops) == 0 {
		ops = []string{"decode"}
	}
	if len(axes) == 0 {
		axes = []string{"block_size=1,2,4,8,16,32,64,128,256"}
	}
	return func(large bool) ([]kernels.Case, error) { return bench.Cases(ops, axes, large) }, nil
}
