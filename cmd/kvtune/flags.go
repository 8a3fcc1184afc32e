package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"kvtune/harness"
	"kvtune/harness/vllm"
)

// Flag groups, the same in every command that has them.

const (
	catWorkload = "Workload"
	catServer   = "Server settings under test (vLLM's names)"
	catEndpoint = "Endpoint (none given: the embedded engine, a simulated server)"
	catInput    = "Input"
	catOutput   = "Output"
	catProgram  = "kvtune itself"
)

// in puts flags into a group.
func in(category string, flags ...cli.Flag) []cli.Flag {
	for _, f := range flags {
		switch f := f.(type) {
		case *cli.BoolFlag:
			f.Category = category
		case *cli.IntFlag:
			f.Category = category
		case *cli.Uint64Flag:
			f.Category = category
		case *cli.Float64Flag:
			f.Category = category
		case *cli.DurationFlag:
			f.Category = category
		case *cli.StringFlag:
			f.Category = category
		case *cli.PathFlag:
			f.Category = category
		case *cli.StringSliceFlag:
			f.Category = category
		case choice:
			f.Category = category
		default:
			panic(fmt.Sprintf("flag %v: no group for a %T", f.Names(), f))
		}
	}
	return flags
}

// choice is a flag whose value is one of a list: what help says, what a shell completes and what is accepted.
type choice struct {
	*cli.StringFlag
	values []string
}

func oneOf[T ~string](values []T, f *cli.StringFlag) choice {
	names := make([]string, len(values))
	for i, v := range values {
		names[i] = string(v)
	}
	return choice{f, names}
}

// checkChoices refuses a value that its flag does not have.
func checkChoices(c *cli.Context, flags []cli.Flag) error {
	for _, f := range flags {
		f, ok := f.(choice)
		if !ok || !c.IsSet(f.Name) {
			continue
		}
		if v := c.String(f.Name); !slices.Contains(f.values, v) {
			last := len(f.values) - 1
			return usagef("--%s %s: expected %s or %s", f.Name, v, strings.Join(f.values[:last], ", "), f.values[last])
		}
	}
	return nil
}

func workloadFlags() []cli.Flag {
	d := harness.DefaultConfig()
	return in(catWorkload,
		&cli.IntFlag{Name: "C", DefaultText: strconv.Itoa(d.C), Usage: "new input `tokens` per prompt"},
		&cli.IntFlag{Name: "M", DefaultText: strconv.Itoa(d.M), Usage: "KV `blocks` already computed per request"},
		&cli.IntFlag{Name: "B", DefaultText: strconv.Itoa(d.B), Usage: "batch size: `requests` in flight"},
		&cli.StringFlag{Name: "prefix",
			Usage: "the M blocks are one for all, one each or one per group: `shared|own|groups=G`"},
		&cli.StringFlag{Name: "output-len",
			Usage: "output tokens: `N|min:max|dist` (normal:mean:sd, lognormal:median:sigma, exp:mean)"},
		oneOf([]harness.ProfilingType{harness.Prefill, harness.Decode, harness.Mixed},
			&cli.StringFlag{Name: "profiling-type", DefaultText: string(d.ProfilingType),
				Usage: "batches of B whose `phase` is measured: prompts, steps with all B decoding, or both"}),
		&cli.IntFlag{Name: "num-warmup", DefaultText: strconv.Itoa(d.NumWarmup), Usage: "unmeasured `batches` first"},
		&cli.IntFlag{Name: "num-measurements", DefaultText: strconv.Itoa(d.NumMeasurements),
			Usage: "measured `batches` of B requests"},
		&cli.IntFlag{Name: "num-requests", Usage: "measured `requests` of an open loop, closed loop or trace"},
		&cli.StringFlag{Name: "rate", Usage: "open loop: `requests/s`, Poisson; fixed:R for even gaps, R..R2 for a ramp, " +
			"or for a range: what plan plans for, where profile --slo looks for the highest"},
		&cli.Float64Flag{Name: "burstiness", Usage: "gamma `shape` of the arrivals; 1 is Poisson, below 1 is burstier"},
		&cli.Float64Flag{Name: "cv",
			Usage: "the same by the gaps' coefficient of `variation`: burstiness is 1/cv^2"},
		&cli.IntFlag{Name: "concurrency", Usage: "closed loop: `requests` in flight"},
		&cli.IntFlag{Name: "clients", Usage: "independent closed `loops` that share --concurrency"},
		&cli.IntFlag{Name: "users", Usage: "conversations: `users` at once"},
		&cli.IntFlag{Name: "turns", Usage: "conversations: `turns` each"},
		&cli.DurationFlag{Name: "think-time",
			Usage: "`pause` between a user's turns (2s), or before a slot of --concurrency is filled again"},
		&cli.DurationFlag{Name: "duration", Usage: "send for a `time` (60s) and let what is in flight end"},
		&cli.BoolFlag{Name: "steady-state", Usage: "leave out as warm-up what comes before the steady state (MSER-5)"},
		&cli.Float64Flag{Name: "speed", Usage: "replay a trace `N` times as fast"},
		&cli.StringFlag{Name: "classes",
			Usage: "service classes with vLLM's priority and a LoRA adapter: `NAME=SHARE[/PRIORITY[/LORA]],...`"},
		&cli.PathFlag{Name: "trace", Usage: "replay `FILE`: Azure CSV, Mooncake JSONL, vidur CSV, a requests file, an " +
			"access log (CSV), or what vllm bench serve, guidellm or aiperf wrote"},
		oneOf(harness.PresetNames(), &cli.StringFlag{Name: "preset",
			Usage: "a `name` for C, M, B and server settings; other flags override it"}),
		&cli.StringFlag{Name: "model",
			Usage: "`name` of a known model or path of a config.json (default: Llama-3.1-8B's shape, context 16384)"},
		&cli.Uint64Flag{Name: "seed", Usage: "`seed` of everything random", Value: 1},
	)
}

func serverFlags() []cli.Flag {
	onOff := func(name, usage string) []cli.Flag {
		return []cli.Flag{&cli.BoolFlag{Name: name, Usage: usage}, &cli.BoolFlag{Name: "no-" + name, Usage: "the opposite"}}
	}
	return in(catServer, join([]cli.Flag{
		&cli.IntFlag{Name: "block-size", Usage: "`tokens` per KV block"},
		&cli.IntFlag{Name: "max-num-batched-tokens", Usage: "`token` budget of one step"},
		&cli.IntFlag{Name: "max-num-seqs", Usage: "running `requests` at most"},
		&cli.IntFlag{Name: "max-model-len", Usage: "context limit in `tokens`"},
		oneOf([]string{"fcfs", "priority"}, &cli.StringFlag{Name: "scheduling-policy", Usage: "`order` of waiting requests"}),
		&cli.Float64Flag{Name: "gpu-memory-utilization", Usage: "`share` of the device memory, 0..1"},
		&cli.StringFlag{Name: "kv-cache-dtype", Usage: "`dtype` of the KV cache: auto, fp8, ..."},
		&cli.IntFlag{Name: "long-prefill-token-threshold", Usage: "`tokens` of one prompt per step; 0 is off"},
		&cli.IntFlag{Name: "max-num-scheduled-tokens", Usage: "a step's `token` budget below --max-num-batched-tokens"},
		&cli.IntFlag{Name: "max-num-active-seqs", Usage: "running `requests` below --max-num-seqs"},
		&cli.IntFlag{Name: "max-num-queued-reqs", Usage: "refuse requests while so many `requests` have not ended"},
		&cli.IntFlag{Name: "max-num-queued-tokens", Usage: "refuse requests while so many prompt `tokens` wait"},
		&cli.Float64Flag{Name: "watermark", Usage: "`share` of the KV blocks kept free at admission, below 1"},
		&cli.IntFlag{Name: "stream-interval", Usage: "`tokens` per streamed event"},
		&cli.IntFlag{Name: "num-gpu-blocks-override", Aliases: []string{"num-gpu-blocks"},
			Usage: "KV cache size in `blocks`"},
		&cli.Float64Flag{Name: "swap-space", Usage: "`GiB`; vLLM 0.18 and newer have --kv-offloading-size instead"},
		&cli.IntFlag{Name: "tensor-parallel-size", Usage: "`GPUs` that share the model"},
	},
		onOff("enable-chunked-prefill", "split long prompts over steps"),
		onOff("enable-prefix-caching", "reuse computed blocks"),
		onOff("long-prefill-token-threshold-adaptive", "at least a fair share of the budget"),
		onOff("scheduler-reserve-full-isl", "admit a request when all of its tokens fit"),
		onOff("enforce-eager", "no CUDA graphs"),
		onOff("async-scheduling", "schedule the next step while one runs"),
	)...)
}

func endpointFlags() []cli.Flag {
	return in(catEndpoint,
		&cli.StringFlag{Name: "endpoint", Usage: "`URL` of a running vLLM server"},
		&cli.BoolFlag{Name: "launch", Usage: "start a vLLM server per configuration and stop it after"},
		&cli.StringSliceFlag{Name: "launch-arg",
			Usage: "one `word` of the command that starts it (repeat; default: vllm serve)"},
		&cli.StringSliceFlag{Name: "stop-arg",
			Usage: "one `word` of the command that stops it, where a signal does not (repeat)"},
		&cli.DurationFlag{Name: "budget",
			Usage: "`time` that starts and requests may take in all (30m): nothing is begun that would take longer"},
		&cli.BoolFlag{Name: "shared-server", Usage: "probe a running server although others use it"},
		&cli.StringFlag{Name: "gpu", Value: "H200",
			Usage: "`device` that the embedded engine simulates, or that the server has"},
		oneOf([]vllm.API{vllm.Completions, vllm.Chat}, &cli.StringFlag{Name: "api", Value: string(vllm.Completions),
			Usage: "vLLM's `API` to send to; a chat's prompts are text"}),
		&cli.BoolFlag{Name: "text",
			Usage: "prompts of words in place of token ids, about one token each; the server counts them"},
		&cli.DurationFlag{Name: "connect-timeout", Usage: "`time` that a connection may take (30s)"},
		&cli.DurationFlag{Name: "first-token-timeout",
			Usage: "`time` from the send to the first token after which a request has failed (10m)"},
		&cli.DurationFlag{Name: "token-timeout", Usage: "`time` between tokens after which a request has failed (10m)"},
		&cli.DurationFlag{Name: "request-timeout", Usage: "`time` after which a request has failed"},
		&cli.IntFlag{Name: "retries", Usage: "send a request again, up to `N` times and counted, where no connection " +
			"is found or the server asks for it"},
		&cli.IntFlag{Name: "vocab", Usage: "token ids of prompts stay below `N`", Value: 4000},
	)
}

// formatFlag is in every command; more are the forms that it has beside text and JSON.
func formatFlag(more ...string) cli.Flag {
	return in(catOutput, oneOf(append([]string{"text", "json"}, more...), &cli.StringFlag{Name: "format", Value: "text",
		Usage: "the `form` of what is printed"}))[0]
}

func outputDirFlag(value string) cli.Flag {
	return &cli.PathFlag{Name: "output-dir", Usage: "`folder` for the files of the run", Value: value,
		Category: catOutput}
}

// configOf reads the run's configuration from the flags: the preset first, then what was given beside it.
func configOf(c *cli.Context) (harness.Config, error) {
	cfg := harness.DefaultConfig()
	if name := c.String("preset"); name != "" {
		preset, err := harness.Preset(name)
		if err != nil {
			return cfg, err
		}
		cfg = preset
	}
	setInt := func(flag string, to *int) {
		if c.IsSet(flag) {
			*to = c.Int(flag)
		}
	}
	setString := func(flag string, to *string) {
		if c.IsSet(flag) {
			*to = c.String(flag)
		}
	}
	setFloat := func(flag string, to *float64) {
		if c.IsSet(flag) {
			*to = c.Float64(flag)
		}
	}
	setInt("C", &cfg.C)
	setInt("M", &cfg.M)
	setInt("B", &cfg.B)
	setInt("num-warmup", &cfg.NumWarmup)
	setInt("num-measurements", &cfg.NumMeasurements)
	setInt("num-requests", &cfg.NumRequests)
	setInt("concurrency", &cfg.Concurrency)
	setInt("clients", &cfg.Clients)
	setInt("users", &cfg.Users)
	setInt("turns", &cfg.Turns)
	setString("prefix", &cfg.Prefix)
	setString("output-len", &cfg.OutputLen)
	setString("rate", &cfg.Rate)
	setString("trace", &cfg.Trace)
	setString("classes", &cfg.Classes)
	setString("model", &cfg.Model)
	setFloat("burstiness", &cfg.Burstiness)
	setFloat("speed", &cfg.Speed)
	if c.IsSet("cv") {
		cv := c.Float64("cv")
		if !(cv > 0 && cv <= 100) || c.IsSet("burstiness") {
			return cfg, usagef("--cv %g: expected above 0 and up to 100, without --burstiness, which says the same "+
				"(fixed gaps: --rate fixed:R)", cv)
		}
		cfg.Burstiness = 1 / (cv * cv)
	}
	if c.IsSet("duration") {
		if c.Duration("duration") <= 0 {
			return cfg, usagef("--duration %v: expected a time above 0, such as 60s", c.Duration("duration"))
		}
		cfg.Duration = c.Duration("duration").Seconds()
	}
	cfg.SteadyState = cfg.SteadyState || c.Bool("steady-state")
	if c.IsSet("think-time") {
		cfg.ThinkTime = c.Duration("think-time").Seconds()
	}
	if c.IsSet("profiling-type") {
		cfg.ProfilingType = harness.ProfilingType(c.String("profiling-type"))
	}
	cfg.Seed = c.Uint64("seed")
	args, err := argsOf(c)
	if err != nil {
		return cfg, err
	}
	cfg.EngineArgs = cfg.EngineArgs.Merge(args)
	if err := explicitZero(c); err != nil {
		return cfg, err
	}
	return cfg, cfg.Validate()
}

// explicitZero refuses a zero that was asked for where zero stands for "not given".
func explicitZero(c *cli.Context) error {
	for _, name := range []string{"block-size", "num-requests", "concurrency", "users", "turns", "max-model-len",
		"max-num-seqs", "max-num-batched-tokens", "max-num-scheduled-tokens", "max-num-active-seqs", "max-num-queued-reqs",
		"max-num-queued-tokens", "stream-interval"} {
		if c.IsSet(name) && c.Int(name) <= 0 {
			return usagef("--%s %d: expected a whole number of at least 1", name, c.Int(name))
		}
	}
	return nil
}

// argsOf reads the server settings given as flags; what was not given stays unset.
func argsOf(c *cli.Context) (harness.EngineArgs, error) {
	args := harness.EngineArgs{
		BlockSize:                 c.Int("block-size"),
		MaxNumBatchedTokens:       c.Int("max-num-batched-tokens"),
		MaxNumSeqs:                c.Int("max-num-seqs"),
		MaxModelLen:               c.Int("max-model-len"),
		SchedulingPolicy:          c.String("scheduling-policy"),
		GPUMemoryUtilization:      c.Float64("gpu-memory-utilization"),
		KVCacheDType:              c.String("kv-cache-dtype"),
		LongPrefillTokenThreshold: c.Int("long-prefill-token-threshold"),
		MaxNumScheduledTokens:     c.Int("max-num-scheduled-tokens"),
		MaxNumActiveSeqs:          c.Int("max-num-active-seqs"),
		MaxNumQueuedReqs:          c.Int("max-num-queued-reqs"),
		MaxNumQueuedTokens:        c.Int("max-num-queued-tokens"),
		Watermark:                 c.Float64("watermark"),
		StreamInterval:            c.Int("stream-interval"),
		NumGPUBlocksOverride:      c.Int("num-gpu-blocks-override"),
		SwapSpace:                 c.Float64("swap-space"),
		TensorParallelSize:        c.Int("tensor-parallel-size"),
	}
	for name, to := range map[string]**bool{
		"enable-chunked-prefill": &args.EnableChunkedPrefill,
		"enable-prefix-caching":  &args.EnablePrefixCaching,
		"async-scheduling":       &args.AsyncScheduling,

		"long-prefill-token-threshold-adaptive": &args.LongPrefillTokenThresholdAdaptive,
		"scheduler-reserve-full-isl":            &args.SchedulerReserveFullISL,
		"enforce-eager":                         &args.EnforceEager,
	} {
		on, off := c.IsSet(name), c.IsSet("no-"+name)
		switch {
		case on && off:
			return args, usagef("--%s and --no-%s exclude each other", name, name)
		case on:
			v := c.Bool(name)
			*to = &v
		case off:
			v := !c.Bool("no-" + name)
			*to = &v
		}
	}
	return args, nil
}

// join concatenates flag groups.
func join(groups ...[]cli.Flag) []cli.Flag {
	var all []cli.Flag
	for _, g := range groups {
		all = append(all, g...)
	}
	return all
}

// sloFlag is --slo.
func sloFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "slo", Category: catObjective, Usage: "`limit` such as 'p99 TTFT <= 200ms' (repeat)"}
}

// slosOf reads --slo.
func slosOf(c *cli.Context) (slos []harness.SLO, err error) {
	for _, text := range c.StringSlice("slo") {
		slo, err := harness.ParseSLO(text)
		if err != nil {
			return nil, usageError{fmt.Errorf("--slo: %w", err)}
		}
		slos = append(slos, slo)
	}
	return slos, nil
}
