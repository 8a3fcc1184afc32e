package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"kvtune/harness/workflow"
	"kvtune/planner/engine"
)

func serveCommand() *cli.Command {
	return &cli.Command{
		Name:  "serve",
		Usage: "run the embedded engine: a simulated vLLM server with vLLM's API and metrics",
		Description: "Answers vLLM's paths with vLLM's scheduling; step times come from a hidden model of the GPU, or from " +
			"--cost.\n" +
			"It computes no model: tokens are pseudo-random.\n\nExamples:\n" +
			"   kvtune serve --model meta-llama/Llama-3.1-8B --gpu H200 --listen 127.0.0.1:8000",
		Flags: join(in("Simulated server",
			&cli.StringFlag{Name: "model", Usage: "`name` of a known model or path of a config.json", Value: defaultModel},
			&cli.StringFlag{Name: "gpu", Usage: "`device` to simulate", Value: "H200"},
			&cli.StringFlag{Name: "listen", Usage: "`address` to listen on", Value: "127.0.0.1:8000"},
			&cli.BoolFlag{Name: "allow-remote", Usage: "let --listen name an address that other machines reach"},
			&cli.PathFlag{Name: "cost", Usage: "step times from a fitted cost model `FILE` instead of the hidden model"},
			&cli.Float64Flag{Name: "speed", Usage: "run `N` times faster than real time", Value: 1},
			&cli.Uint64Flag{Name: "seed", Usage: "`seed` of the hidden model", Value: 1},
		), serverFlags()),
		Action: serve,
	}
}

func serve(c *cli.Context) error {
	model, gpu, err := shapes(c)
	if err != nil {
		return err
	}
	args, err := argsOf(c)
	if err != nil {
		return err
	}
	if args.MaxModelLen == 0 {
		args.MaxModelLen = model.MaxPosition
		if !c.IsSet("model") {
			args.MaxModelLen = defaultMaxModelLen
		}
	}
	if err := args.Validate(); err != nil {
		return usageError{err}
	}
	args, notes, err := workflow.Legal(args, workflow.EngineVersion, gpu)
	if err != nil {
		return usageError{err}
	}
	opt := engine.Options{Model: model, GPU: gpu, Args: args, Seed: c.Uint64("seed"), Speed: c.Float64("speed"),
		NumGPUBlocks: args.NumGPUBlocksOverride, EnablePromptTokensDetails: true, AllowRemote: c.Bool("allow-remote")}
	if file := c.Path("cost"); file != "" {
		if opt.Cost, err = readCost(file); err != nil {
			return usageError{fmt.Errorf("--cost: %w", err)}
		}
	}
	eng, err := engine.New(opt)
	if err != nil {
		return usageError{err}
	}
	url, err := eng.Listen(c.String("listen"))
	if err != nil {
		return usageError{fmt.Errorf("--listen %s: %w", c.String("listen"), err)}
	}
	settings, err := json.Marshal(args)
	if err != nil {
		return err
	}
	verdict := fmt.Sprintf("SIMULATED server at %s: %s on %s, vLLM %s's scheduler", url, model.Name, gpu.Name,
		workflow.EngineVersion)
	out := output{Verdict: verdict, Warnings: notes, Server: &serverOutput{URL: url, Model: model.Name, GPU: gpu.Name,
		Version: workflow.EngineVersion, Settings: args}}
	err = show(c, out, func(w io.Writer) error {
		fmt.Fprintln(w, verdict)
		for _, n := range notes {
			fmt.Fprintf(w, "note: %s\n", n)
		}
		_, err := fmt.Fprintf(w, "settings: %s\n", settings)
		return err
	})
	if err != nil {
		return errors.Join(err, eng.Close())
	}
	<-c.Context.Done()
	return eng.Close() // ^C is how a server ends
}
