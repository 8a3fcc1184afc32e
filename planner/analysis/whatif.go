package analysis

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"kvtune/harness"
	"kvtune/harness/stats"
	"kvtune/planner/cost"
	"kvtune/planner/sim"
)

// faster is a server whose arithmetic and memory are faster by a factor; what a step takes beyond the roofline stays.
type faster struct {
	model           *cost.Model
	compute, memory float64
}

func (f faster) StepTime(s cost.Step) time.Duration {
	t := f.model.StepTime(s)
	compute, memory := f.model.Roofline(s)
	then := max(time.Duration(float64(compute)/f.compute), time.Duration(float64(memory)/f.memory))
	return max(t/1000, t-(max(compute, memory)-then))
}

func (f faster) HostTime(s cost.Step) (prepare, launch time.Duration) { return f.model.HostTime(s) }

// goal is the metric that gains are stated in: throughput where the server sets the pace, latency where arrivals do.
func (s *study) goal() (name, stat string) {
	if s.open {
		return harness.MetricE2EL, harness.StatMean
	}
	return harness.MetricTotalThroughput, ""
}

// improvement is the change of a metric from before to after as a share of before, above 0 is better; ok is false where
// either was not observed or before is 0.
func improvement(before, after harness.Metrics, name, stat string) (change float64, ok bool) {
	b, okB := before.Value(name, stat)
	a, okA := after.Value(name, stat)
	if !okB || !okA || b == 0 {
		return 0, false
	}
	change = (a - b) / b
	if !harness.HigherIsBetter(name) {
		change = -change
	}
	return change, true
}

// NewGain states the change of a metric between paired runs: the first pair is the prediction itself, all pairs
// together give the interval of the mean. nil when the first pair does not have the metric.
func NewGain(before, after []harness.Metrics, name, stat string) *Gain {
	change, ok := improvement(before[0], after[0], name, stat)
	if !ok {
		return nil
	}
	m := before[0].Get(name, stat)
	a, _ := after[0].Value(name, stat)
	g := &Gain{Metric: name, Stat: stat, Unit: m.Unit, Before: *m.Value, After: a, Change: change}
	var changes []float64
	for i := range before {
		if c, ok := improvement(before[i], after[i], name, stat); ok {
			changes = append(changes, c)
		}
	}
	if len(changes) >= 2 {
		iv := stats.New(changes).MeanInterval(0.95)
		low, high := min(iv.Low, change), max(iv.High, change)
		g.Low, g.High = &low, &high
	}
	return g
}

// Sure reports whether the whole interval of the gain is an improvement.
func (g *Gain) Sure() bool {
	if g == nil {
		return false
	}
	if g.Low == nil {
		return g.Change > 0
	}
	return *g.Low > 0
}

// whatIf adds counterfactuals and simulated recommendations.
func (s *study) whatIf(ctx context.Context, r *Report) error {
	base, err := s.Server.Config(s.args)
	if err != nil {
		return err
	}
	models := []*cost.Model{s.model}
	rng := rand.New(rand.NewPCG(s.Result.Conditions.Seed, 0x616e616c79736973))
	for range s.Draws - 1 {
		models = append(models, s.model.Sample(rng))
	}
	run := func(args harness.EngineArgs, cfg sim.Config, timer func(*cost.Model) cost.Timer, n int) ([]harness.Metrics, error) {
		var all []harness.Metrics
		for _, m := range models[:n] {
			out, err := sim.Run(ctx, cfg, timer(m.For(args)), s.Workload, sim.Options{})
			if err != nil {
				return nil, err
			}
			all = append(all, harness.Measure(out.Records))
		}
		return all, nil
	}
	asIs := func(m *cost.Model) cost.Timer { return m }
	before, err := run(s.args, base, asIs, len(models))
	if err != nil {
		return err
	}
	for _, c := range s.counterfactuals(base) {
		after, err := run(c.args, c.cfg, c.timer, 1)
		if err != nil {
			return err
		}
		cf := Counterfactual{Name: c.name, Kind: c.kind}
		for _, m := range []struct{ name, stat string }{
			{harness.MetricE2EL, harness.StatMean}, {harness.MetricTotalThroughput, ""},
		} {
			if g := NewGain(before[:1], after, m.name, m.stat); g != nil {
				cf.Gains = append(cf.Gains, *g)
			}
		}
		r.Counterfactuals = append(r.Counterfactuals, cf)
	}
	name, stat := s.goal()
	for _, p := range s.proposals(r) {
		var best *Recommendation
		for _, args := range p.settings {
			cfg, err := s.Server.Config(args)
			if err != nil {
				continue // not a legal server
			}
			after, err := run(args, cfg, asIs, len(models))
			if err != nil {
				return err
			}
			g := NewGain(before, after, name, stat)
			if g.Sure() && (best == nil || g.Change > best.Gain.Change) {
				rec := s.recommendation(p, args)
				rec.Gain = g
				best = &rec
			}
		}
		if best != nil {
			r.Recommendations = append(r.Recommendations, *best)
		}
	}
	return nil
}

type counterfactual struct {
	name  string
	kind  Kind
	args  harness.EngineArgs // whose CUDA graphs the server has
	cfg   sim.Config
	timer func(*cost.Model) cost.Timer
}

func (s *study) counterfactuals(base sim.Config) []counterfactual {
	asIs := func(m *cost.Model) cost.Timer { return m }
	kv := base
	kv.NumGPUBlocks = 2*(base.NumGPUBlocks-1) + 1
	batch := base
	batch.MaxNumSeqs, batch.MaxNumBatchedTokens = 2*base.MaxNumSeqs, 2*base.MaxNumBatchedTokens
	batched := s.args
	batched.MaxNumSeqs, batched.MaxNumBatchedTokens = batch.MaxNumSeqs, batch.MaxNumBatchedTokens
	infinite := base
	infinite.EnablePrefixCaching = true
	infinite.NumGPUBlocks = s.everyBlock(base)
	return []counterfactual{
		{"twice the arithmetic rate", Compute, s.args, base, func(m *cost.Model) cost.Timer { return faster{m, 2, 1} }},
		{"twice the memory bandwidth", Memory, s.args, base, func(m *cost.Model) cost.Timer { return faster{m, 1, 2} }},
		{"twice the KV cache", Memory, s.args, kv, asIs},
		{"twice max_num_seqs and max_num_batched_tokens", Scheduling, batched, batch, asIs},
		{"a prefix cache without limits", Cache, s.args, infinite, asIs},
	}
}

// everyBlock is a cache that holds every token of the workload at once.
func (s *study) everyBlock(base sim.Config) int {
	blocks := 1
	for i := range s.Workload.Requests {
		r := &s.Workload.Requests[i]
		blocks += (r.PromptTokens()+r.OutputTokens)/base.BlockSize + 1
	}
	return max(base.NumGPUBlocks, blocks)
}

// proposal is a flag to try, with the settings that try it.
type proposal struct {
	flag      string
	why, risk string
	value     func(harness.EngineArgs) string
	settings  []harness.EngineArgs
}

// proposals are the flags that act on the limits that took time, the binding one first.
func (s *study) proposals(r *Report) []proposal {
	var ps []proposal
	have := map[string]bool{}
	add := func(limit string) {
		if limit == "" || have[limit] {
			return
		}
		have[limit] = true
		ps = append(ps, s.forLimit(limit)...)
	}
	add(r.Limit)
	for c := range causeLight {
		if s.time[c] > 0 {
			add(c.limit())
		}
	}
	return ps
}

func (s *study) forLimit(limit string) []proposal {
	number := func(v func(harness.EngineArgs) int) func(harness.EngineArgs) string {
		return func(a harness.EngineArgs) string { return strconv.Itoa(v(a)) }
	}
	grow := func(set func(*harness.EngineArgs, int)) []harness.EngineArgs {
		var all []harness.EngineArgs
		for _, factor := range []int{2, 4, 8} {
			a := s.args
			set(&a, factor)
			all = append(all, a)
		}
		return all
	}
	set := func(edits ...func(*harness.EngineArgs)) []harness.EngineArgs {
		var all []harness.EngineArgs
		for _, edit := range edits {
			a := s.args
			edit(&a)
			all = append(all, a)
		}
		return all
	}
	memory := proposal{
		flag: "gpu_memory_utilization",
		risk: "less memory is left for others on the device and for peaks; the server may fail to start",
		value: func(a harness.EngineArgs) string {
			return strconv.FormatFloat(a.GPUMemoryUtilization, 'g', 3, 64)
		},
	}
	if u := s.args.GPUMemoryUtilization; u > 0 && u < 0.95 && s.Server.GPU != nil {
		memory.settings = set(func(a *harness.EngineArgs) { a.GPUMemoryUtilization = 0.95 })
	}
	switch limit {
	case LimitMaxNumSeqs:
		if s.args.MaxNumSeqs == 0 {
			return nil
		}
		return []proposal{{
			flag:  "max_num_seqs",
			why:   "requests wait beside free KV blocks while max_num_seqs run, and a larger batch costs little more",
			risk:  "each request's tokens come slower in a larger batch",
			value: number(func(a harness.EngineArgs) int { return a.MaxNumSeqs }),
			settings: grow(func(a *harness.EngineArgs, f int) {
				a.MaxNumSeqs *= f
				a.MaxNumBatchedTokens = max(a.MaxNumBatchedTokens, a.MaxNumSeqs)
			}),
		}}
	case LimitTokenBudget:
		if s.args.MaxNumBatchedTokens == 0 {
			return nil
		}
		return []proposal{{
			flag: "max_num_batched_tokens", why: "prompts wait beside free KV blocks because each step is full",
			risk:     "longer steps delay the tokens of requests that decode; more memory for activations",
			value:    number(func(a harness.EngineArgs) int { return a.MaxNumBatchedTokens }),
			settings: grow(func(a *harness.EngineArgs, f int) { a.MaxNumBatchedTokens *= f }),
		}}
	case LimitKVCapacity:
		memory.why = "requests wait for KV blocks: more memory for the cache admits them"
		seqs := proposal{
			flag:  "max_num_seqs",
			why:   "running requests lose their KV blocks to each other and compute them again: run fewer at once",
			risk:  "fewer requests share a step",
			value: number(func(a harness.EngineArgs) int { return a.MaxNumSeqs }),
		}
		if peak := s.facts.runningPeak; s.facts.preemptions > 0 && peak > 3 {
			seqs.settings = set(
				func(a *harness.EngineArgs) { a.MaxNumSeqs = peak * 3 / 4 },
				func(a *harness.EngineArgs) { a.MaxNumSeqs = peak / 2 })
		}
		return keepSet(memory, seqs)
	case LimitPrefixCache:
		if on := s.args.EnablePrefixCaching; on != nil && !*on {
			yes := true
			return []proposal{{
				flag: "enable_prefix_caching", why: "prompt tokens are computed again that the prefix cache would hold",
				value:    func(harness.EngineArgs) string { return "true" },
				settings: set(func(a *harness.EngineArgs) { a.EnablePrefixCaching = &yes }),
			}}
		}
		memory.why = "shared prefixes are evicted before they are used again: a larger cache keeps them"
		smaller := proposal{
			flag: "block_size", why: "only full blocks are shared: smaller blocks share more of a prefix",
			risk:  "the kernels' speed at another block size is not modelled",
			value: number(func(a harness.EngineArgs) int { return a.BlockSize }),
		}
		if s.args.BlockSize > 16 {
			smaller.settings = set(func(a *harness.EngineArgs) { a.BlockSize = 16 })
		}
		return keepSet(memory, smaller)
	case LimitLaunch:
		if eager := s.args.EnforceEager; eager != nil && *eager {
			no := false
			return []proposal{{
				flag: "enforce_eager", why: "without CUDA graphs every step pays for its launches",
				risk:     "the start takes longer; the gain is not modelled",
				value:    func(harness.EngineArgs) string { return "false" },
				settings: set(func(a *harness.EngineArgs) { a.EnforceEager = &no }),
			}}
		}
	}
	return nil
}

// keepSet drops proposals without settings to try.
func keepSet(ps ...proposal) []proposal {
	var kept []proposal
	for _, p := range ps {
		if len(p.settings) > 0 {
			kept = append(kept, p)
		}
	}
	return kept
}

func (s *study) recommendation(p proposal, args harness.EngineArgs) Recommendation {
	return Recommendation{Flag: p.flag, Value: p.value(args), Why: p.why, Risk: p.risk, Command: s.command(p.flag,
		p.value(args))}
}

// command is `vllm serve MODEL --flag value`; what else the server was started with is not in it.
func (s *study) command(flag, value string) []string {
	info := s.Result.Conditions.Server
	model := info.Root
	if model == "" {
		model = info.Model
	}
	if model == "" {
		model = s.Result.Config.Model
	}
	if model == "" {
		model = "MODEL"
	}
	name := strings.ReplaceAll(flag, "_", "-")
	switch value {
	case "true":
		return []string{"vllm", "serve", model, "--" + name}
	case "false":
		return []string{"vllm", "serve", model, "--no-" + name}
	}
	return []string{"vllm", "serve", model, "--" + name, value}
}

// recommendUnsimulated names the first value to try for what binds; the gain is "not simulated".
func (s *study) recommendUnsimulated(r *Report) {
	for _, p := range s.forLimit(r.Limit) {
		rec := s.recommendation(p, p.settings[0])
		rec.Why += fmt.Sprintf(" (not simulated: %s)", s.whyNot())
		r.Recommendations = append(r.Recommendations, rec)
	}
}

func (s *study) whyNot() string {
	if s.model == nil {
		return "there is no cost model"
	}
	return "the workload to replay was not given"
}
