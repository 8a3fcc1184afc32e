package workflow

import (
	"context"
	"fmt"
	"slices"

	"kvtune/harness"
	"kvtune/harness/profile"
	"kvtune/harness/vllmflags"
	"kvtune/harness/workload"
	"kvtune/planner"
	"kvtune/planner/analysis"
	"kvtune/planner/cost"
	"kvtune/planner/report"
	"kvtune/planner/sim"
	"kvtune/planner/spec"
)

// Basis is what a simulation or a plan rests on: a workload, the server as it is observed or assumed, and a model of
// what its steps cost.
type Basis struct {
	Config harness.Config
	Info   harness.ServerInfo
	// Server has every setting resolved.
	Server analysis.Server
	Device vllmflags.Device
	// SLOs are the workload's objectives, for an analysis.
	SLOs []harness.SLO
	// Kernels is a benchmark of kernels whose ceilings hold for the server's device, nil where there is none.
	Kernels *harness.Bench
	// File is where an analysis will lie, for the commands in it; "" is [AnalysisFile].
	File string
	// Notes say what was replaced, one sentence each.
	Notes []string
}

// BasisOf takes the server from a result: the settings known to be in force, then what the server states of its cache,
// then vLLM's defaults. What was merely asked for counts where nothing is known of the server. Without a cost model it
// takes the prior.
func BasisOf(res *harness.Result, model spec.Model, gpu spec.GPU, m *cost.Model) *Basis {
	info := res.Conditions.Server
	args := info.Args
	if args.Equal(harness.EngineArgs{}) {
		args = res.Config.EngineArgs
	}
	args.SwapSpace = 0 // no vLLM that kvtune knows has it
	args = args.Merge(harness.EngineArgs{
		BlockSize: info.BlockSize, MaxModelLen: info.MaxModelLen, EnablePrefixCaching: info.EnablePrefixCaching,
		GPUMemoryUtilization: info.GPUMemoryUtilization,
	})
	server := analysis.Server{
		Args: vllmflags.Resolve(args, info.Version, DeviceOf(gpu)), NumGPUBlocks: info.NumGPUBlocks, GPU: &gpu, Model: &model,
		Cost: m,
	}
	if m == nil {
		server.Cost = cost.Prior(gpu, model, server.Args)
	}
	if gpu.CPU { // its KV space is set apart from everything else
		server.GPU = nil
	}
	server.Release, _ = vllmflags.Release(info.Version)
	return &Basis{Config: res.Config, Info: info, Device: DeviceOf(gpu), Server: server}
}

// OnPaper assumes a server of that model on that GPU with the configuration's settings, vLLM's defaults for the rest.
// Without a cost model it takes the prior.
func OnPaper(cfg harness.Config, model spec.Model, gpu spec.GPU, m *cost.Model) (*Basis, error) {
	args := cfg.EngineArgs
	if args.MaxModelLen == 0 {
		args.MaxModelLen = model.MaxPosition
	}
	args, notes, err := Legal(args, EngineVersion, gpu)
	if err != nil {
		return nil, err
	}
	blocks := args.NumGPUBlocksOverride
	if blocks == 0 {
		mem, err := cost.Capacity(gpu, model, args)
		if err != nil {
			return nil, err
		}
		blocks = mem.Blocks
	}
	if m == nil {
		m = cost.Prior(gpu, model, args)
	}
	return &Basis{
		Config: cfg,
		Info: harness.ServerInfo{
			Kind: harness.KindSimulator, Version: EngineVersion, Model: model.Name, Root: model.Name,
			MaxModelLen: args.MaxModelLen, BlockSize: args.BlockSize, NumGPUBlocks: blocks,
			EnablePrefixCaching:  args.EnablePrefixCaching,
			GPUMemoryUtilization: args.GPUMemoryUtilization, Args: args, GPU: gpu.Name,
			KVBytesPerToken: model.KVBytesPerToken(args.KVCacheDType, max(1, args.TensorParallelSize)),
		},
		Server: analysis.Server{Args: args, NumGPUBlocks: blocks, GPU: &gpu, Model: &model, Cost: m},
		Device: DeviceOf(gpu),
		Notes:  notes,
	}, nil
}

// ForVersion makes the basis that of another vLLM version: its scheduler's rules, its flags, its defaults where the
// settings in force are the old version's defaults. The error is of a version whose rules are not known, or of a
// setting without a legal value in that version.
func (b *Basis) ForVersion(version string) error {
	if _, assumed := vllmflags.Release(version); assumed != "" {
		return fmt.Errorf("expected a release from 0.%d to 0.%d, such as 0.%d.0: no other one's rules are known",
			vllmflags.Oldest, vllmflags.Newest, vllmflags.Newest)
	}
	var own harness.EngineArgs
	defaults := vllmflags.Resolve(harness.EngineArgs{MaxModelLen: b.Server.Args.MaxModelLen}, b.Info.Version, b.Device)
	for _, f := range vllmflags.Known(b.Info.Version, b.Device) {
		if v := vllmflags.Get(b.Server.Args, f.Name); v != "" && v != vllmflags.Get(defaults, f.Name) {
			if err := vllmflags.Set(&own, f.Name, v); err != nil {
				return err
			}
		}
	}
	own.MaxModelLen = b.Server.Args.MaxModelLen
	legal, reps, err := vllmflags.Legalize(own, version, b.Device)
	if err != nil {
		return err
	}
	b.Notes = append(b.Notes, replacementNotes(reps)...)
	b.Info.Version = version
	b.Server.Args = vllmflags.Resolve(legal, version, b.Device)
	b.Server.Release, _ = vllmflags.Release(version)
	if b.Info.Kind == harness.KindSimulator && b.Server.Args.NumGPUBlocksOverride == 0 {
		mem, err := cost.Capacity(*b.Server.GPU, *b.Server.Model, b.Server.Args)
		if err != nil {
			return err
		}
		b.Server.NumGPUBlocks = mem.Blocks
		b.Info.NumGPUBlocks, b.Info.BlockSize, b.Info.Args = mem.Blocks, b.Server.Args.BlockSize, b.Server.Args
	}
	return nil
}

// features are what the server is known to do, and what its flags and its model turn on.
func (b *Basis) features(opt PlanOptions) []harness.Feature {
	all := slices.Concat(b.Info.Features, planner.FeaturesOf(b.Server.Args.Merge(opt.Current).Merge(opt.Fixed), opt.Extra))
	if m := b.Server.Model; m != nil && m.SlidingWindow > 0 && m.SlidingWindow < b.Server.Args.MaxModelLen &&
		!slices.ContainsFunc(all, func(f harness.Feature) bool { return f.Name == "sliding window" }) {
		all = append(all, harness.Feature{Name: "sliding window", Support: "measured only",
			Note: fmt.Sprintf("%d tokens; every layer is simulated with full attention", m.SlidingWindow)})
	}
	return all
}

// PlanOptions are what to plan for.
type PlanOptions struct {
	// Current is the baseline; zero: the basis's own settings.
	Current, Fixed harness.EngineArgs
	SLOs           []harness.SLO
	// Strategies, nil for all.
	Strategies []planner.Strategy
	// Extra are the user's own server flags beside those that are planned, kept in every command line.
	Extra []string
	// TargetRate and GPUPrice are [planner.Request]'s.
	TargetRate, GPUPrice float64
	Quick                bool
}

// Plan makes plans for the basis's workload; where its rate is a range, for the whole range ([planner.MakeRange]). An
// open loop that does not say how many requests it has is planned with 2,000.
func (b *Basis) Plan(ctx context.Context, opt PlanOptions) (*planner.Plans, error) {
	planned := *b
	var rate workload.Rate
	implied := b.Config.Rate != "" && b.Config.NumRequests == 0 && b.Config.Trace == "" && b.Config.Duration == 0
	if implied {
		planned.Config.NumRequests = 2000
	}
	if b.Config.Rate != "" {
		var err error
		if rate, err = workload.ParseRate(b.Config.Rate); err != nil {
			return nil, err
		}
	}
	var plans *planner.Plans
	var err error
	if rate.From == rate.To {
		plans, err = planner.Make(ctx, planned.request(opt))
	} else {
		even := ""
		if rate.Even {
			even = "fixed:"
		}
		// The highest rate is what the plans are described and verified at.
		planned.Config.Rate = fmt.Sprintf("%s%g", even, max(rate.From, rate.To))
		plans, err = planner.MakeRange(ctx, planned.request(opt), min(rate.From, rate.To), max(rate.From, rate.To))
	}
	if err != nil {
		return nil, err
	}
	current := planned
	current.Server.Args = plans.Baseline.Args
	if plans.Foreseen, err = current.Foresee(ctx); err != nil {
		return nil, err
	}
	plans.Config = b.Config
	plans.Config.Rate = planned.Config.Rate
	if implied { // what is measured is to be what was predicted
		plans.Config.NumRequests = plans.Search.Requests
	}
	plans.Notes = slices.Concat(b.Notes, plans.Notes)
	return plans, nil
}

// Grid are the workload cells of a sweep: every combination.
type Grid struct {
	C         []int `json:"C"`
	M         []int `json:"M"`
	B         []int `json:"B"`
	BlockSize []int `json:"block_size"`
}

// Sweep plans every cell of a grid for the settings that move a batch: the token budget and the number of sequences. A
// cell whose requests do not fit the server's context is scaled down and says so. Block sizes that the server's vLLM
// refuses become the nearest legal ones; the notes say which.
func (b *Basis) Sweep(ctx context.Context, opt PlanOptions, grid Grid, onCell func(done, total int)) (
	sweep *planner.SweepResult, notes []string, err error) {
	req, notes, err := b.sweepRequest(opt, grid)
	if err != nil {
		return nil, nil, err
	}
	req.OnCell = func(_ int, _ []planner.SweepRow, done, total int) error {
		if onCell != nil {
			onCell(done, total)
		}
		return nil
	}
	sweep, err = planner.Sweep(ctx, req)
	return sweep, notes, err
}

func (b *Basis) sweepRequest(opt PlanOptions, grid Grid) (req planner.SweepRequest, notes []string, err error) {
	var blockSizes []int
	for _, size := range grid.BlockSize {
		legal, reps, err := vllmflags.Legalize(harness.EngineArgs{BlockSize: size}, b.Info.Version, b.Device)
		if err != nil {
			return req, nil, err
		}
		notes = append(notes, replacementNotes(reps)...)
		if !slices.Contains(blockSizes, legal.BlockSize) {
			blockSizes = append(blockSizes, legal.BlockSize)
		}
	}
	base := b.request(opt)
	// A cell is a batch that repeats: two batches show all that a plan depends on.
	base.Options = planner.Options{Budget: 5_000, Requests: 256, Replicas: 3, Axes: []planner.Axis{
		{Flag: "max_num_batched_tokens", Values: []string{"1024", "2048", "4096", "8192", "16384"}},
		{Flag: "max_num_seqs", Values: []string{"16", "64", "256", "1024"}},
	}}
	return planner.SweepRequest{
		Request: base, C: grid.C, M: grid.M, B: grid.B, BlockSize: blockSizes,
		Cell: func(cell planner.Cell, seed uint64) (*workload.Workload, error) {
			cfg := b.Config
			cfg.C, cfg.M, cfg.B, cfg.BlockSize, cfg.Seed = cell.C, cell.M, cell.B, cell.BlockSize, seed
			cfg.Trace, cfg.Rate, cfg.Concurrency, cfg.Clients, cfg.Users, cfg.Turns, cfg.NumRequests = "", "", 0, 0, 0, 0, 0
			cfg.NumWarmup, cfg.NumMeasurements = 0, 2
			info := b.Info
			info.BlockSize = cell.BlockSize
			return profile.Workload(cfg, info)
		},
	}, notes, nil
}

func (b *Basis) request(opt PlanOptions) planner.Request {
	req := planner.Request{
		Server: b.Server, Device: b.Device, Version: b.Info.Version, Model: b.Info.Root,
		Current: b.Server.Args.Merge(opt.Current), Fixed: opt.Fixed, SLOs: opt.SLOs, Strategies: opt.Strategies,
		Extra: opt.Extra, Seed: max(b.Config.Seed, 1), Workload: b.workload, Recorded: b.Config.Trace != "",
		Features: b.features(opt), TargetRate: opt.TargetRate, GPUPrice: opt.GPUPrice,
	}
	if opt.Quick {
		req.Options = planner.Options{Budget: 60_000, Requests: 200, Replicas: 8}
	}
	return req
}

func (b *Basis) workload(seed uint64) (*workload.Workload, error) {
	cfg := b.Config
	cfg.Seed = seed
	return profile.Workload(cfg, b.Info)
}

// Simulate runs the basis's workload in virtual time. The result is what a profile would be, of origin simulated.
func (b *Basis) Simulate(ctx context.Context) (*report.Run, error) {
	w, err := b.workload(b.Config.Seed)
	if err != nil {
		return nil, err
	}
	return b.simulate(ctx, w)
}

func (b *Basis) simulate(ctx context.Context, w *workload.Workload) (*report.Run, error) {
	cfg, err := b.Server.Config(b.Server.Args)
	if err != nil {
		return nil, err
	}
	timer := &cost.Watched{Model: b.Server.Cost.For(b.Server.Args)}
	out, err := sim.Run(ctx, cfg, timer, w, sim.Options{Steps: true, Series: true})
	if err != nil {
		return nil, err
	}
	res := b.simulated(harness.Measure(out.Records), out, timer, w.Notes)
	return &report.Run{Result: res, Records: out.Records, Steps: out.Steps, Series: out.Series}, nil
}

// simulated is the result of a simulation with the metrics of its requests.
func (b *Basis) simulated(metrics harness.Metrics, out *sim.Outcome, timer *cost.Watched,
	notes []string) *harness.Result {
	warnings := slices.Concat(b.Notes, notes)
	if text := timer.Extrapolated(); text != "" {
		warnings = append(warnings, "EXTRAPOLATED: "+text)
	}
	res := &harness.Result{
		Schema: harness.ResultSchema, Name: b.Config.Name, Origin: harness.OriginSimulated, Config: b.Config,
		Conditions: harness.Conditions{Server: b.Info, Seed: b.Config.Seed},
		Metrics:    append(metrics, harness.Observe(b.Info, out.Counters, out.Series)...),
		Counters:   out.Counters,
		Warnings:   warnings,
	}
	if d, ok := res.Metrics.Value(harness.MetricDuration, ""); ok {
		res.Conditions.Duration = d
	}
	return res
}

// DeviceOf is what vLLM's defaults and legal values depend on.
func DeviceOf(gpu spec.GPU) vllmflags.Device {
	return vllmflags.Device{Name: gpu.Name, Memory: gpu.Memory, CPU: gpu.CPU}
}

// analysisDraws is how many draws of the cost model a simulated gain rests on.
const analysisDraws = 4

// Analyze says what binds a run of the basis's server, and simulates what lifting a limit or changing a flag would gain
// (a trace that is gone is replayed from the run's requests); see [analysis.Analyze].
func (b *Basis) Analyze(ctx context.Context, run *report.Run) *analysis.Report {
	in := analysis.Input{
		Result: run.Result, Records: run.Records, Steps: run.Steps, Series: run.Series, Server: b.Server,
		Draws: analysisDraws, SLOs: b.SLOs, Device: b.Device, File: b.File,
		Endpoint: b.endpointWords(run.Result.Conditions.Command),
	}
	in.Flops, in.Bandwidth = b.ceilings()
	w, err := b.workload(b.Config.Seed)
	if err != nil && b.Config.Trace != "" { // the trace is not here, the requests are
		w, err = workload.Replay(run.Records, workload.TraceOptions{MaxModelLen: b.Info.MaxModelLen,
			BlockSize: b.Info.BlockSize, Concurrency: b.Config.Concurrency, Clients: b.Config.Clients, Seed: b.Config.Seed})
	}
	if err == nil {
		in.Workload = w
	}
	return analysis.Analyze(ctx, in)
}

// Foresee says what will go wrong with the basis's workload on its server; see [analysis.Foresee].
func (b *Basis) Foresee(ctx context.Context) ([]analysis.Trouble, error) {
	w, err := b.workload(b.Config.Seed)
	if err != nil {
		return nil, err
	}
	server := b.Server
	if b.Info.Kind != harness.KindSimulator { // it has started: its memory suffices
		server.GPU = nil
	}
	return analysis.Foresee(ctx, server, w)
}

// ceilings are what the benchmark of kernels reached (flop/s, B/s), of all ranks together; 0 where the benchmark is of
// another device.
func (b *Basis) ceilings() (flops, bandwidth float64) {
	k := b.Kernels
	if k == nil {
		return 0, 0
	}
	if b.Device.CPU != (k.Backend == "host") {
		return 0, 0
	}
	if !b.Device.CPU {
		if gpu, err := spec.FindGPU(k.Device); err != nil || gpu.Name != b.Device.Name {
			return 0, 0
		}
	}
	ranks := float64(max(1, b.Server.Args.TensorParallelSize))
	if k.MatrixCeiling != nil {
		flops = *k.MatrixCeiling * ranks
	}
	if k.ReadCeiling != nil {
		bandwidth = *k.ReadCeiling * ranks
	}
	return flops, bandwidth
}
