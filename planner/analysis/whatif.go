package analysis

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"kvtune/harness"
	"kvtune/harness/stats"
	"kvtune/harness/vllmflags"
	"kvtune/planner/cost"
	"kvtune/planner/sim"
)

// faster is a server whose arithmetic and memory are faster by a factor, or whose steps take a part less of what is
// fixed in them; what else a step takes stays.
type faster struct {
	model           *cost.Model
	compute, memory float64
	overhead        time.Duration // taken off every step; the host's time is halved with it
}

func (f faster) StepTime(s cost.Step) time.Duration {
	t := f.model.StepTime(s)
	compute, memory := f.model.Roofline(s)
	then := max(time.Duration(float64(compute)/f.compute), time.Duration(float64(memory)/f.memory))
	return max(t/1000, t-(max(compute, memory)-then)-f.overhead)
}

func (f faster) HostTime(s cost.Step) (prepare, launch time.Duration) {
	prepare, launch = f.model.HostTime(s)
	if f.overhead > 0 {
		return prepare / 2, launch / 2
	}
	return prepare, launch
}

// goal is the metric that gains are stated in: that of an objective that was missed, else throughput where the server
// sets the pace and latency where arrivals do.
func (s *study) goal() (name, stat string) {
	slo, m := s.missed()
	switch {
	case m == nil || slo.Metric == harness.MetricGoodput || slo.Metric == harness.MetricQueueTime:
		// No simulation measures these.
	default:
		return slo.Metric, slo.Stat
	}
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

// minGain is the smallest simulated gain that is worth a restart, as a share.
const minGain = 0.01

// effectMetrics are what users watch.
var effectMetrics = [...]struct{ name, stat string }{
	{harness.MetricTotalThroughput, ""}, {harness.MetricOutputThroughput, ""}, {harness.MetricTTFT, harness.StatP50},
	{harness.MetricTTFT, harness.StatP99}, {harness.MetricITL, harness.StatP99}, {harness.MetricTPOT, harness.StatMean},
	{harness.MetricE2EL, harness.StatMean}, {harness.MetricE2EL, harness.StatP99}, {harness.MetricCacheHitRate, ""},
	{harness.MetricKVUsage, harness.StatPeak}, {harness.MetricPreemptions, ""},
}

// trial is a server to simulate.
type trial struct {
	args  harness.EngineArgs
	edit  func(*sim.Config)            // nil: args say it all
	timer func(*cost.Model) cost.Timer // nil: the model
}

// simulate runs the workload under a trial, once per model.
func (s *study) simulate(ctx context.Context, models []*cost.Model, t trial) ([]harness.Metrics, error) {
	cfg, err := s.Server.Config(t.args)
	if err != nil {
		return nil, &refusedError{err}
	}
	if t.edit != nil {
		t.edit(&cfg)
	}
	all := make([]harness.Metrics, len(models))
	for i, m := range models {
		m = m.For(t.args)
		timer := cost.Timer(m)
		if t.timer != nil {
			timer = t.timer(m)
		}
		out, err := sim.Run(ctx, cfg, timer, s.Workload, sim.Options{})
		if err != nil {
			return nil, err
		}
		hits, queries := out.Counters[harness.CounterPrefixHits], out.Counters[harness.CounterPrefixQueries]
		all[i] = append(harness.Measure(out.Records),
			known(queries > 0, harness.MetricCacheHitRate, "", "ratio", hits/max(queries, 1), "no token was looked up"),
			metric(harness.MetricKVUsage, harness.StatPeak, "ratio", out.KVUsagePeak),
			metric(harness.MetricPreemptions, "", "request", out.Counters[harness.CounterPreemptions]))
	}
	return all, nil
}

// refusedError is of settings with which vLLM would not start.
type refusedError struct{ error }

// whatIfRequests is how many requests are simulated: those of a long run would take longer than the run did.
const whatIfRequests = 4000

// whatIf adds counterfactuals and simulated recommendations.
func (s *study) whatIf(ctx context.Context, r *Report) error {
	if all := len(s.Workload.Requests); all > whatIfRequests { // none of them waits for a later one
		first := *s.Workload
		first.Requests = first.Requests[:whatIfRequests]
		s.Workload = &first
		r.Notes = append(r.Notes,
			fmt.Sprintf("what is simulated are the first %d of the run's %d requests", whatIfRequests, all))
	}
	models := []*cost.Model{s.model}
	rng := rand.New(rand.NewPCG(s.Result.Conditions.Seed, 0x616e616c79736973))
	for range s.Draws - 1 {
		models = append(models, s.model.Sample(rng))
	}
	before, err := s.simulate(ctx, models, trial{args: s.args})
	if err != nil {
		return err
	}
	name, stat := s.goal()
	other, otherStat := harness.MetricTotalThroughput, ""
	if name == other {
		other, otherStat = harness.MetricE2EL, harness.StatMean
	}
	for _, c := range s.counterfactuals() {
		after, err := s.simulate(ctx, models, c.trial)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		cf := Counterfactual{Name: c.name, Kind: c.limit.kind(), Limit: c.limit.limit(), Gains: []Gain{}}
		for _, m := range []struct{ name, stat string }{{name, stat}, {other, otherStat}} {
			if g := NewGain(before, after, m.name, m.stat); g != nil {
				cf.Gains = append(cf.Gains, *g)
			}
		}
		r.Counterfactuals = append(r.Counterfactuals, cf)
	}
	for _, p := range s.proposals(r) {
		if err := s.try(ctx, r, p, models, before); err != nil {
			return err
		}
	}
	slices.SortStableFunc(r.Recommendations, func(a, b Recommendation) int {
		return cmp.Compare(b.Gain.Change, a.Gain.Change)
	})
	for i := range r.Recommendations {
		r.Recommendations[i].Verify = s.verification(i + 1)
	}
	s.conclude(r)
	return nil
}

// conclude adds to the verdict what lifting the limit that binds would give, and what gives far more: the limit that
// takes most of the time is not always the one that is worth most.
func (s *study) conclude(r *Report) {
	var binding, best *Counterfactual
	for i := range r.Counterfactuals {
		c := &r.Counterfactuals[i]
		if len(c.Gains) == 0 {
			continue
		}
		if c.Kind == r.Binding && c.Limit == r.Limit {
			binding = c
		}
		if c.Gains[0].Sure() && (best == nil || c.Gains[0].Change > best.Gains[0].Change) {
			best = c
		}
	}
	if binding == nil {
		return
	}
	r.Verdict += "; simulated: " + binding.Name + binding.Gains[0].text()
	if best != nil && best.Gains[0].Change > 2*max(minGain, binding.Gains[0].Change) {
		r.Verdict += ", but " + best.Name + best.Gains[0].text()
	}
}

// text is the change in words: " +38 % total throughput", ", TTFT p99 better by 84 %".
func (g *Gain) text() string {
	if !harness.HigherIsBetter(g.Metric) {
		how := "better"
		if g.Change < 0 {
			how = "worse"
		}
		return fmt.Sprintf(", %s %s by %s", harness.Words(g.Metric, g.Stat), how, harness.Percent(math.Abs(g.Change), false))
	}
	return " " + harness.Percent(g.Change, true) + " " + harness.Words(g.Metric, g.Stat)
}

// try simulates a proposal's settings and recommends the best of them where it is surely worth a restart. A setting
// that gains nothing under the model itself is not simulated in the other draws.
func (s *study) try(ctx context.Context, r *Report, p proposal, models []*cost.Model, before []harness.Metrics) error {
	name, stat := s.goal()
	var best *Recommendation
	for _, args := range p.settings {
		legal, _, err := vllmflags.Legalize(args, s.version(), s.device())
		if err != nil || vllmflags.Get(legal, p.flag) != vllmflags.Get(args, p.flag) {
			continue // vLLM would not run it on this device
		}
		var refused *refusedError
		after, err := s.simulate(ctx, models[:1], trial{args: args})
		if errors.As(err, &refused) {
			continue
		}
		if err != nil {
			return err
		}
		g := NewGain(before[:1], after, name, stat)
		if g == nil || g.Change < minGain || best != nil && g.Change <= best.Gain.Change {
			continue
		}
		rest, err := s.simulate(ctx, models[1:], trial{args: args})
		if err != nil {
			return err
		}
		after = append(after, rest...)
		if g = NewGain(before, after, name, stat); !g.Sure() {
			continue
		}
		rec := s.recommendation(p, args)
		rec.Gain = g
		for _, m := range effectMetrics {
			if e := NewGain(before, after, m.name, m.stat); e != nil {
				rec.Effects = append(rec.Effects, *e)
			}
		}
		best = &rec
	}
	if best != nil {
		r.Recommendations = append(r.Recommendations, *best)
	}
	return nil
}

type counterfactual struct {
	name  string
	limit cause
	trial
}

func (s *study) counterfactuals() []counterfactual {
	as := func(edit func(*sim.Config)) trial { return trial{args: s.args, edit: edit} }
	seqs, budget := s.args, s.args
	seqs.MaxNumSeqs *= 2
	seqs.MaxNumBatchedTokens = max(seqs.MaxNumBatchedTokens, seqs.MaxNumSeqs)
	budget.MaxNumBatchedTokens *= 2
	timed := func(timer func(*cost.Model) cost.Timer) trial { return trial{args: s.args, timer: timer} }
	all := []counterfactual{
		{"twice the arithmetic rate", causeArithmetic, timed(func(m *cost.Model) cost.Timer { return faster{m, 2, 1, 0} })},
		{"twice the memory bandwidth", causeBandwidth, timed(func(m *cost.Model) cost.Timer { return faster{m, 1, 2, 0} })},
		{"twice the KV cache", causeKV, as(func(c *sim.Config) { c.NumGPUBlocks = 2*(c.NumGPUBlocks-1) + 1 })},
		{"twice max_num_seqs", causeSeqs, s.atSameCache(seqs)},
		{"twice max_num_batched_tokens", causeBudget, s.atSameCache(budget)},
		{"half the overhead of a step", causeLaunch,
			timed(func(m *cost.Model) cost.Timer { return faster{m, 1, 1, s.launch / 2} })},
	}
	if s.limitOf(Scheduling) == LimitFrontEnd {
		all = append(all, counterfactual{"half the time in the API server", causeFrontEnd, as(func(c *sim.Config) {
			f := &c.FrontEnd
			f.Request, f.Handle, f.PromptToken, f.Token, f.Event = f.Request/2, f.Handle/2, f.PromptToken/2, f.Token/2, f.Event/2
		})})
	}
	if s.prefix.recomputed > 0 { // else there is nothing to hit, and the gain would be the larger KV cache's
		all = append(all, counterfactual{"a prefix cache without limits", causeCache, as(func(c *sim.Config) {
			c.EnablePrefixCaching, c.NumGPUBlocks = true, max(c.NumGPUBlocks, s.everyBlock(c.BlockSize))
		})})
	}
	return all
}

// atSameCache are other settings with the KV cache of those in force: what a larger batch takes from it is another
// matter.
func (s *study) atSameCache(args harness.EngineArgs) trial {
	return trial{args: args, edit: func(c *sim.Config) {
		if now, err := s.Server.Config(s.args); err == nil {
			c.NumGPUBlocks = now.NumGPUBlocks
		}
	}}
}

// everyBlock is a cache that holds every token of the workload at once.
func (s *study) everyBlock(blockSize int) int {
	blocks := 1
	for i := range s.Workload.Requests {
		r := &s.Workload.Requests[i]
		blocks += (r.PromptTokens()+r.OutputTokens)/blockSize + 1
	}
	return blocks
}
