package planner

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"kvtune/harness"
	"kvtune/harness/vllmflags"
	"kvtune/harness/workload"
	"kvtune/planner/analysis"
	"kvtune/planner/cost"
	"kvtune/planner/sim"
)

// plan describes a candidate.
func (p *planning) plan(ctx context.Context, s Strategy, c, base *candidate) (*Plan, error) {
	plan := &Plan{Strategy: s, Args: c.args, NumGPUBlocks: c.cfg.NumGPUBlocks, Changed: []Change{},
		Predicted: predicted(c)}
	if m := p.req.Server.Model; m != nil {
		plan.KVBytes = int64(c.cfg.NumGPUBlocks) * int64(c.cfg.BlockSize) *
			m.KVBytesPerToken(c.args.KVCacheDType, c.args.TensorParallelSize)
	}
	plan.SLOs = slices.Clone(c.runs[0].slos)
	for i := range plan.SLOs {
		met := 0
		for _, run := range c.runs {
			if run.slos[i].Met {
				met++
			}
		}
		share := float64(met) / float64(len(c.runs))
		plan.SLOs[i].Probability = &share
	}
	if s != Current && s != p.strategy {
		plan.Changed = p.changesBetween(base.args, c.args)
	}
	if c != base && slices.Contains(Strategies(), s) {
		plan.Gain = p.gain(s, c, base)
		plan.Effects = effects(c, base)
	}
	plan.Keep = slices.Contains(Strategies(), s) && c == base
	legal := vllmflags.Differing(c.args, p.defaults(), p.req.Version, p.device)
	legal.MaxModelLen = c.args.MaxModelLen
	argv, replaced, err := vllmflags.Argv(legal, p.req.Version, p.device)
	if err != nil {
		return nil, err
	}
	for _, r := range replaced {
		plan.Replaced = append(plan.Replaced, r.String())
	}
	model := p.req.Model
	if model == "" {
		model = "MODEL"
	}
	plan.Launch = slices.Concat([]string{"vllm", "serve", model}, without(argv, p.req.Extra), p.req.Extra)
	if err := p.bind(ctx, plan, c); err != nil {
		return nil, err
	}
	if p.open && len(p.req.SLOs) > 0 || p.req.TargetRate > 0 {
		plan.MaxRequestRate, err = p.capacity(ctx, c)
		plan.Deployment = p.deploy(plan)
	}
	return plan, err
}

// bind finds what binds under a plan.
func (p *planning) bind(ctx context.Context, plan *Plan, c *candidate) error {
	seen := &cost.Watched{Model: p.timer(0, c).model}
	out, err := sim.Run(ctx, c.cfg, seen, p.work[0], sim.Options{Steps: true})
	if err != nil {
		return err
	}
	plan.Extrapolated = seen.Extrapolated()
	server := p.req.Server
	server.Args, server.NumGPUBlocks = c.args, c.cfg.NumGPUBlocks
	r := analysis.Analyze(ctx, analysis.Input{
		Result: &harness.Result{Name: string(plan.Strategy), Origin: harness.OriginSimulated, Counters: out.Counters,
			Metrics: c.runs[0].metrics},
		Records: out.Records, Steps: out.Steps, Server: server, Workload: p.work[0], SLOs: p.req.SLOs,
	})
	plan.Binding, plan.Limit, plan.BindingWhy = r.Binding, r.Limit, r.Why()
	return nil
}

// predicted are the metrics of the prediction itself, each with the interval in which 95 % of the draws are expected.
func predicted(c *candidate) harness.Metrics {
	ms := slices.Clone(c.runs[0].metrics)
	for i := range ms {
		m := &ms[i]
		m.Low, m.High = nil, nil
		if m.Value == nil {
			continue
		}
		var values []float64
		for _, run := range c.runs {
			if v, ok := run.metrics.Value(m.Name, m.Stat); ok {
				values = append(values, v)
			}
		}
		if len(values) < 2 {
			continue
		}
		iv := interval(values)
		low, high := min(iv.Low, *m.Value), max(iv.High, *m.Value)
		if slices.Min(values) >= 0 {
			low = max(0, low)
		}
		m.Low, m.High = &low, &high
	}
	return ms
}

// gain is the improvement over the baseline in the strategy's own metric.
func (p *planning) gain(s Strategy, c, base *candidate) *analysis.Gain {
	switch s {
	case Memory:
		before, after, unit := float64(base.kvTokens()), float64(c.kvTokens()), "token"
		if m := p.req.Server.Model; m != nil {
			per := float64(m.KVBytesPerToken(c.args.KVCacheDType, c.args.TensorParallelSize))
			before, after, unit = before*per, after*per, "B"
		}
		change := (before - after) / before
		return &analysis.Gain{Metric: harness.MetricKVCacheSize, Unit: unit, Before: before, After: after,
			Change: change, Low: &change, High: &change}
	case Balanced:
		power := func(c *candidate) []harness.Metrics {
			all := make([]harness.Metrics, len(c.runs))
			for i := range c.runs {
				v := goal(Balanced, c, i)
				all[i] = harness.Metrics{{Name: harness.MetricPower, Unit: "token/s^2", Value: &v}}
			}
			return all
		}
		return analysis.NewGain(power(base), power(c), harness.MetricPower, "")
	}
	return gainIn(c, base, aimOf(s).metric, aimOf(s).stat)
}

func gainIn(c, base *candidate, name, stat string) *analysis.Gain {
	metrics := func(c *candidate) []harness.Metrics {
		all := make([]harness.Metrics, len(c.runs))
		for i := range c.runs {
			all[i] = c.runs[i].metrics
		}
		return all
	}
	return analysis.NewGain(metrics(base), metrics(c), name, stat)
}

// effects are what a plan does to the metrics that users watch, for better or worse.
func effects(c, base *candidate) []analysis.Gain {
	var all []analysis.Gain
	for _, m := range []struct{ name, stat string }{
		{harness.MetricTotalThroughput, ""}, {harness.MetricE2EL, harness.StatMean}, {harness.MetricE2EL, harness.StatP99},
		{harness.MetricTTFT, harness.StatP99}, {harness.MetricTPOT, harness.StatMean}, {harness.MetricCacheHitRate, ""},
	} {
		if g := gainIn(c, base, m.name, m.stat); g != nil {
			all = append(all, *g)
		}
	}
	return all
}

// infeasible describes the candidate that comes closest to the SLOs.
func (p *planning) infeasible(ctx context.Context, out *Plans, base *candidate, final []*candidate) error {
	closest := slices.MinFunc(final, func(a, b *candidate) int { return compare(Latency, a, b) })
	plan, err := p.plan(ctx, Closest, closest, base)
	if err != nil {
		return err
	}
	run := closest.runs[0]
	slo := p.req.SLOs[run.worst]
	in := &Infeasible{SLO: slo.String(), Limit: slo.Limit, Unit: unitOf(slo, run.metrics)}
	if v := run.slos[run.worst].Value; v != nil {
		best := *v
		in.Best = &best
	}
	if !math.IsInf(run.miss, 0) {
		by := run.miss
		in.By = &by
	}
	in.Why = fmt.Sprintf("no candidate meets %s: not observed in the simulation", slo)
	if in.Best != nil && in.By != nil {
		far := fmt.Sprintf("%.3g %% beyond", 100**in.By)
		if *in.By >= 9 {
			far = fmt.Sprintf("%.0f times", 1+*in.By)
		}
		in.Why = fmt.Sprintf("no candidate meets %s: the closest has %s, %s the limit", slo, inUnit(*in.Best, in.Unit), far)
	}
	plan.Why = "comes closest to the objectives"
	in.Closest = *plan
	out.Infeasible = in
	return nil
}

func unitOf(slo harness.SLO, ms harness.Metrics) string {
	if m := ms.Get(slo.Metric, slo.Stat); m != nil {
		return m.Unit
	}
	return ""
}

// inUnit writes a value; times in ms.
func inUnit(v float64, unit string) string {
	if unit == "s" {
		return fmt.Sprintf("%.4g ms", 1e3*v)
	}
	return strings.TrimSpace(fmt.Sprintf("%.4g %s", v, unit))
}

// why says why a strategy chose a candidate.
func (p *planning) why(s Strategy, c, base *candidate, plan *Plan) string {
	if plan.Keep {
		return fmt.Sprintf("no candidate is better in %s by more than noise (%.2g %%)", aimOf(s).words, 100*p.resolution())
	}
	text := aimOf(s).why
	if s == Memory {
		text = fmt.Sprintf("smallest KV cache whose total throughput stays within %.3g %% of the best; "+
			"more or longer requests than simulated would wait for blocks", 100*p.req.Options.MemorySlack)
	}
	if len(p.req.SLOs) > 0 {
		text += " among candidates that meet the objectives"
	}
	if !base.feasible() {
		text += fmt.Sprintf("; the %s settings miss %s", p.strategy, p.req.SLOs[base.runs[0].worst])
	}
	return text
}

// describe is the workload in sentences.
func describe(w *workload.Workload) []string {
	n, prompt, output, shared := 0, 0, 0, 0
	for i := range w.Requests {
		r := &w.Requests[i]
		if r.Phase == workload.Measured {
			n, prompt, output, shared = n+1, prompt+r.PromptTokens(), output+r.OutputTokens, shared+r.SharedTokens
		}
	}
	if n == 0 {
		return nil
	}
	pace := "in batches"
	switch {
	case w.Concurrency > 0:
		pace = fmt.Sprintf("in a closed loop of %d", w.Concurrency)
	case w.Open():
		pace = "in an open loop"
	}
	text := fmt.Sprintf("%d measured requests %s: %.0f prompt tokens (%.0f of them shared), "+
		"%.0f output tokens on average", n, pace,
		float64(prompt)/float64(n), float64(shared)/float64(n), float64(output)/float64(n))
	return append([]string{text}, w.Notes...)
}

// without leaves out the flags, with their values, that the user gives too.
func without(argv, extra []string) []string {
	var out []string
	for i := 0; i < len(argv); {
		n := i + 1
		for n < len(argv) && !strings.HasPrefix(argv[n], "--") {
			n++
		}
		if !slices.Contains(extra, argv[i]) {
			out = append(out, argv[i:n]...)
		}
		i = n
	}
	return out
}
