// Package planner finds the vLLM settings that meet a target: it simulates candidate settings on the user's own
// workload and returns, per strategy, the plan with what it is predicted to do, how sure that is, what binds under it
// and the command that starts the server.
//
// Read [Request], then [Make], then [Plan]. [Sweep] does the same over a grid of workloads, [Export] writes a plan as
// flags or files for a deployment, and [Plan.SetMeasured] puts a measurement beside the prediction.
package planner

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"kvtune/harness"
	"kvtune/harness/vllmflags"
)

// Make searches the settings for every strategy. The result depends on the request alone: the same request and seed
// give the same plans, whatever the number of workers. When no candidate meets the SLOs, Plans.Infeasible says which
// one fails and by how much, and there is no error. Errors: a request that cannot be planned for, or ctx's.
func Make(ctx context.Context, req Request) (*Plans, error) {
	p, err := newPlanning(req)
	if err != nil {
		return nil, err
	}
	out, chosen, err := p.make(ctx)
	if err != nil {
		return nil, err
	}
	if err := p.sensitivities(ctx, out.Search.Axes, out.Plans, chosen); err != nil {
		return nil, err
	}
	out.Search.Simulated = p.simulated.Load()
	return out, nil
}

// make is Make without the sensitivities; chosen are the plans' candidates.
func (p *planning) make(ctx context.Context) (out *Plans, chosen []*candidate, err error) {
	g, err := p.gather(ctx)
	if err != nil {
		return nil, nil, err
	}
	base, final := g.keep[0], p.finalists(g.able, g.keep)
	if err := p.replicate(ctx, final); err != nil {
		return nil, nil, err
	}
	var smaller []*candidate
	if slices.Contains(p.req.Strategies, Memory) {
		if smaller, err = p.shrink(ctx, final, base); err != nil {
			return nil, nil, err
		}
		if err := p.replicate(ctx, smaller); err != nil {
			return nil, nil, err
		}
	}
	out = p.newPlans()
	out.Search = g.search
	if chosen, err = p.finish(ctx, out, base, g.keep, final, smaller, g.able); err != nil {
		return nil, nil, err
	}
	out.Notes = p.notes
	out.Verdict = out.verdict()
	return out, chosen, nil
}

// newPlans is what is known before the search.
func (p *planning) newPlans() *Plans {
	out := &Plans{Schema: Schema, Origin: harness.OriginSimulated, Model: p.req.Model, Version: p.req.Version,
		Seed: p.req.Seed, Workload: describe(p.work[0]), Plans: []Plan{}, Widened: p.widened}
	for _, slo := range p.req.SLOs {
		out.SLOs = append(out.SLOs, slo.String())
	}
	return out
}

// gathered is what a search left.
type gathered struct {
	search Search
	// able are the candidates that were simulated on the whole workload and have every pinned value; keep the baseline,
	// and vLLM's defaults where that is something else.
	able, keep []*candidate
}

// SettingsError is of settings to plan from with which vLLM would not start.
type SettingsError struct {
	Strategy Strategy
	Err      error
}

func (e *SettingsError) Error() string {
	return fmt.Sprintf("a server with the %s settings would not start: %v", e.Strategy, e.Err)
}

func (e *SettingsError) Unwrap() error { return e.Err }

// gather searches the axes.
func (p *planning) gather(ctx context.Context) (*gathered, error) {
	g := &gathered{search: Search{Axes: p.axes(), Replicas: len(p.work)}}
	base := p.candidate(p.base)
	if base == nil {
		_, err := p.req.Server.Config(p.base)
		return nil, &SettingsError{p.strategy, err}
	}
	g.keep = []*candidate{base}
	if p.strategy == Current {
		if c := p.candidate(p.defaults()); c != nil {
			g.keep = append(g.keep, c)
		} else {
			p.note("vLLM's defaults are not shown: this server could not start with them")
		}
	}
	all := p.candidates(g.search.Axes)
	for i, k := range g.keep { // a baseline that lies on the grid is that candidate
		if at := slices.IndexFunc(all, func(c *candidate) bool { return c.cfg == k.cfg && c.changes == k.changes }); at >= 0 {
			g.keep[i] = all[at]
		} else if p.obeys(k) {
			k.order = len(all)
			all = append(all, k)
		} else if _, err := p.evaluate(ctx, g.keep[i:i+1], p.req.Options.Requests); err != nil {
			return nil, err
		}
	}
	if len(all) == 0 {
		return nil, errors.New("no candidate is left: the pinned settings exclude each other or do not fit the GPU")
	}
	left, err := p.search(ctx, all, g.keep, &g.search)
	if err != nil {
		return nil, err
	}
	g.able = slices.DeleteFunc(left, func(c *candidate) bool { return !p.obeys(c) })
	if len(g.able) == 0 {
		return nil, errors.New("no candidate is left: the server cannot have the pinned settings")
	}
	return g, nil
}

func newPlanning(req Request) (*planning, error) {
	switch {
	case req.Server.Cost == nil:
		return nil, errors.New("no cost model: fit one, or take the prior of a GPU and model")
	case req.Workload == nil:
		return nil, errors.New("no workload to plan for")
	}
	o := &req.Options
	o.Budget = orElse(o.Budget, 1_000_000)
	o.Requests = orElse(o.Requests, 4_000)
	o.Replicas = max(2, orElse(o.Replicas, 12))
	if o.MemorySlack <= 0 {
		o.MemorySlack = 0.05
	}
	if o.MinGain <= 0 {
		o.MinGain = 0.01
	}
	if len(req.Strategies) == 0 {
		req.Strategies = Strategies()
	}
	for _, s := range req.Strategies {
		if !slices.Contains(Strategies(), s) {
			return nil, fmt.Errorf("strategy %q is not known: expected one of %v", s, Strategies())
		}
	}
	p := &planning{req: req}
	if gpu := req.Server.GPU; gpu != nil {
		p.device = vllmflags.Device{Name: gpu.Name, Memory: gpu.Memory}
	}
	if req.Device != (vllmflags.Device{}) {
		p.device = req.Device
	}
	p.flags = vllmflags.Known(req.Version, p.device)
	release, warning := vllmflags.Release(req.Version)
	if warning != "" {
		p.note(warning)
	}
	p.req.Server.Release = orElse(req.Server.Release, release)
	p.strategy, p.base = Default, p.defaults()
	if req.Current != (harness.EngineArgs{}) {
		legal, replaced, err := vllmflags.Legalize(req.Current, req.Version, p.device)
		if err != nil {
			return nil, fmt.Errorf("current settings: %w", err)
		}
		for _, r := range replaced {
			p.note("current settings: " + r.String())
		}
		p.strategy, p.base = Current, p.resolve(legal)
	}
	fixed, replaced, err := vllmflags.Legalize(req.Fixed, req.Version, p.device)
	if err != nil {
		return nil, fmt.Errorf("pinned settings: %w", err)
	}
	for _, r := range replaced {
		if r.Asked != "" {
			p.note("pinned settings: " + r.String())
		}
	}
	if req.Fixed.MaxNumBatchedTokens == 0 { // what a pinned max_num_seqs needs at least is no pin
		fixed.MaxNumBatchedTokens = 0
	}
	p.req.Fixed = fixed
	for _, f := range p.flags {
		if v := vllmflags.Get(p.req.Fixed, f.Name); v != "" && !f.Modelled {
			p.note(fmt.Sprintf("%s is pinned to %s: %s", f.Name, v, p.caveat(f, v)))
		}
	}
	p.gaps = slices.ContainsFunc(req.SLOs, func(s harness.SLO) bool {
		return s.Metric == harness.MetricITL || s.Metric == harness.MetricGoodput
	})
	wider, widened, err := coverage(req.Features)
	if err != nil {
		return nil, err
	}
	p.widened = widened
	if err := p.draw(o.Replicas, wider); err != nil {
		return nil, err
	}
	for _, n := range p.work[0].Notes {
		p.note(n)
	}
	p.open = p.work[0].Open()
	return p, nil
}

func orElse(v, otherwise int) int {
	if v > 0 {
		return v
	}
	return otherwise
}

// resolve lays settings over what the server cannot change and fills the rest with vLLM's defaults.
func (p *planning) resolve(args harness.EngineArgs) harness.EngineArgs {
	s := p.req.Server.Args
	kept := harness.EngineArgs{MaxModelLen: s.MaxModelLen, KVCacheDType: s.KVCacheDType,
		TensorParallelSize:   s.TensorParallelSize,
		NumGPUBlocksOverride: s.NumGPUBlocksOverride}
	return vllmflags.Resolve(kept.Merge(args), p.req.Version, p.device)
}

// defaults are vLLM's own settings on this server.
func (p *planning) defaults() harness.EngineArgs { return p.resolve(harness.EngineArgs{}) }

// obeys reports whether a candidate has every pinned value.
func (p *planning) obeys(c *candidate) bool {
	return len(p.changesBetween(c.args, c.args.Merge(p.req.Fixed))) == 0
}

// replicate simulates the finalists in every draw on the whole workload; the first draw is simulated again with every
// metric.
func (p *planning) replicate(ctx context.Context, final []*candidate) error {
	n := len(p.work)
	runs := make([][]outcome, len(final))
	for i := range runs {
		runs[i] = make([]outcome, n)
	}
	err := p.each(ctx, len(final)*n, func(ctx context.Context, k int) error {
		i, draw := k/n, k%n
		o, err := p.simulate(ctx, final[i], draw, p.work[draw], true)
		runs[i][draw] = o
		return err
	})
	if err != nil {
		return err
	}
	for i, c := range final {
		c.runs = runs[i]
	}
	return nil
}

// shrink finds, by bisection, the smallest KV cache that still serves the memory strategy's throughput, from the
// settings of the throughput strategy and from the baseline's.
func (p *planning) shrink(ctx context.Context, final []*candidate, base *candidate) ([]*candidate, error) {
	able := slices.DeleteFunc(slices.Clone(final), func(c *candidate) bool { return !c.feasible() || !p.obeys(c) })
	fast := p.choose(Throughput, able, base)
	if fast == nil {
		return nil, nil
	}
	enough := p.enough(able)
	starts := []*candidate{fast}
	if base != fast && slices.Contains(able, base) {
		starts = append(starts, base)
	}
	found := make([]*candidate, len(starts))
	err := p.each(ctx, len(starts), func(ctx context.Context, i int) error {
		c, err := p.shrinkFrom(ctx, starts[i], enough)
		found[i] = c
		return err
	})
	return slices.DeleteFunc(found, func(c *candidate) bool { return c == nil }), err
}

// enough is the throughput that the memory strategy must keep.
func (p *planning) enough(able []*candidate) float64 {
	best := 0.0
	for _, c := range able {
		best = max(best, goal(Throughput, c, 0))
	}
	return (1 - p.req.Options.MemorySlack) * best
}

func (p *planning) shrinkFrom(ctx context.Context, start *candidate, enough float64) (*candidate, error) {
	// Sizes are steps of 0.01 of gpu_memory_utilization, or of a hundredth of the cache where the device is not known.
	size := func(step int) harness.EngineArgs {
		args := start.args
		if p.req.Server.GPU != nil && p.req.Server.Model != nil && args.NumGPUBlocksOverride == 0 {
			args.GPUMemoryUtilization = float64(step) / 100
		} else {
			args.NumGPUBlocksOverride = start.cfg.NumGPUBlocks * step / 100
		}
		return args
	}
	if len(p.changesBetween(size(50), size(50).Merge(p.req.Fixed))) > 0 {
		return nil, nil // pinned
	}
	high := 100
	if p.req.Server.GPU != nil && p.req.Server.Model != nil && start.args.NumGPUBlocksOverride == 0 {
		high = int(math.Ceil(start.args.GPUMemoryUtilization * 100))
	}
	var best *candidate
	for low := 0; high-low > 1; {
		mid := (low + high) / 2
		c := p.candidate(size(mid))
		if c == nil {
			low = mid // the server would not start
			continue
		}
		c.order = start.order
		draws := len(p.work)
		if len(p.req.SLOs) == 0 {
			draws = 1 // nothing but the prediction itself is asked of it
		}
		for i := range draws {
			o, err := p.simulate(ctx, c, i, p.work[i], false)
			if err != nil {
				return nil, err
			}
			c.runs = append(c.runs, o)
		}
		if c.feasible() && metShare(c) >= min(surely, metShare(start)) && goal(Throughput, c, 0) >= enough {
			best, high = c, mid
		} else {
			low = mid
		}
	}
	return best, nil
}

// baselines describes what plans are compared with.
func (p *planning) baselines(ctx context.Context, out *Plans, base *candidate, keep []*candidate) error {
	plan, err := p.plan(ctx, p.strategy, base, base)
	if err != nil {
		return err
	}
	plan.Why = map[Strategy]string{Current: "the settings in use", Default: "vLLM's defaults"}[p.strategy]
	out.Baseline = *plan
	if len(keep) > 1 {
		if plan, err = p.plan(ctx, Default, keep[1], base); err != nil {
			return err
		}
		plan.Why = "vLLM's defaults"
		out.Default = plan
	}
	return nil
}

// finish writes the plans and gives the candidate of each. Candidates with a smaller cache are for the memory strategy
// alone: another one that took one would hold back requests by the size of the cache, where max_num_seqs is made for
// it.
func (p *planning) finish(ctx context.Context, out *Plans, base *candidate, keep, final, smaller, able []*candidate) (
	chosen []*candidate, err error) {
	if err := p.baselines(ctx, out, base, keep); err != nil {
		return nil, err
	}
	final = slices.DeleteFunc(slices.Clone(final), func(c *candidate) bool { return !p.obeys(c) })
	if !slices.ContainsFunc(final, (*candidate).feasible) {
		return nil, p.infeasible(ctx, out, base, final)
	}
	front := paretoFront(able)
	best := knee(front)
	for i, c := range front {
		out.Front = append(out.Front, FrontPoint{Args: c.args, Throughput: goal(Throughput, c, 0), Latency: tail(c, 0),
			Knee: i == best})
	}
	for _, s := range p.req.Strategies {
		from := final
		if s == Memory {
			from = append(slices.Clone(final), smaller...)
			enough := p.enough(slices.DeleteFunc(slices.Clone(from), func(c *candidate) bool { return !c.feasible() }))
			from = slices.DeleteFunc(from, func(c *candidate) bool { return goal(Throughput, c, 0) < enough })
		}
		c := p.choose(s, from, base)
		plan, err := p.plan(ctx, s, c, base)
		if err != nil {
			return nil, err
		}
		plan.Why = p.why(s, c, base, plan)
		plan.DefaultRegret = p.regret(s, c, keep)
		out.Plans, chosen = append(out.Plans, *plan), append(chosen, c)
	}
	return chosen, nil
}
