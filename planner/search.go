package planner

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gonum.org/v1/gonum/stat/distuv"

	"kvtune/harness"
	"kvtune/harness/vllmflags"
	"kvtune/harness/workload"
	"kvtune/planner/cost"
	"kvtune/planner/sim"
)

// planning is one call of Make under way.
type planning struct {
	req    Request
	device vllmflags.Device
	flags  []vllmflags.Flag
	// base are the baseline's settings; strategy names it.
	base     harness.EngineArgs
	strategy Strategy
	// work and models are one per draw; the first is the prediction itself.
	work   []*workload.Workload
	models []scaled
	open   bool
	gaps   bool // an objective looks at the gaps between tokens

	simulated  atomic.Int64
	capacities sync.Map // *Capacity by key
	runners    sync.Pool
	notes      []string
	widened    []string // what is not modelled
}

func (p *planning) note(text string) {
	if !slices.Contains(p.notes, text) {
		p.notes = append(p.notes, text)
	}
}

// candidate is one configuration and what is predicted for it.
type candidate struct {
	args    harness.EngineArgs
	cfg     sim.Config
	changes int // flags that differ from the baseline
	order   int // position in the grid, the last tie-break
	// runs are the outcomes of the draws; only the first one is there before the candidate is a finalist.
	runs []outcome
}

// outcome is one simulation in figures.
type outcome struct {
	metrics harness.Metrics
	slos    []SLOCheck
	// miss is the largest excess over an objective's limit as a share of it; 0 when all are met.
	miss float64
	// worst is the objective with that excess.
	worst int
	usage usage
}

func (c *candidate) feasible() bool { return c.runs[0].miss == 0 }

// key is all that a simulation of the candidate depends on.
type key struct {
	cfg   sim.Config
	graph int // the largest CUDA graph
}

func (c *candidate) key() key { return key{c.cfg, cost.MaxGraph(c.args)} }

// kvTokens is the size of the KV cache in tokens.
func (c *candidate) kvTokens() int { return (c.cfg.NumGPUBlocks - 1) * c.cfg.BlockSize }

// scaled is a model whose every step takes longer by a factor, and by another one beyond what it was fitted on.
type scaled struct {
	model           *cost.Model
	factor, outside float64
}

func (s scaled) StepTime(step cost.Step) time.Duration {
	f := s.factor
	if !s.model.InRange(step) {
		f = s.outside
	}
	return time.Duration(f * float64(s.model.StepTime(step)))
}

func (s scaled) HostTime(step cost.Step) (prepare, launch time.Duration) {
	return s.model.HostTime(step)
}

// timer is the model of draw i for a server with a candidate's settings.
func (p *planning) timer(i int, c *candidate) scaled {
	m := p.models[i]
	m.model = m.model.For(c.args)
	return m
}

// least is the smallest standard deviation (of the logarithm of step times) beyond the fitted range.
const least = 0.1

// draw prepares the draws: the cost model within its coefficients' uncertainty, all steps scaled by a common factor
// within the model's cross-validated error (an error in a composition of work is common to all its steps), other
// arrivals and lengths. Beyond what it was fitted on the model is taken to be as good as its prior is within. wider is
// the variance of what the model does not cover.
func (p *planning) draw(n int, wider float64) error {
	model := p.req.Server.Cost
	rng := rand.New(rand.NewPCG(p.req.Seed, 0x706c616e6e6572))
	spread, beyond := math.Sqrt(wider), math.Sqrt(wider)
	if e := model.Errors; e != nil {
		spread = math.Hypot(spread, 1.4826*e.Median)
		// Of a normal error the mean of the absolute is 0.8 standard deviations.
		beyond = math.Hypot(spread, max(least, 1.2533*e.Prior))
	}
	order := rng.Perm(n - 1)
	for i := range n {
		w, err := p.req.Workload(p.req.Seed + uint64(i))
		if err != nil {
			return fmt.Errorf("workload: %w", err)
		}
		if i == 0 {
			p.req.Options.Requests = telling(w, p.req.Options.Requests, w.InFlight())
		}
		whole := len(w.Requests)
		w = first(w, p.req.Options.Requests)
		if i == 0 {
			if n := len(w.Requests); n < whole {
				p.note(fmt.Sprintf("planned for the first %d of %d requests", n, whole))
			}
			p.work, p.models = append(p.work, w), append(p.models, scaled{model, 1, 1})
			continue
		}
		if p.req.Recorded {
			w = resample(w, rng)
		}
		// Quantiles in a random order, so that a few draws are centred.
		z := distuv.UnitNormal.Quantile((float64(order[i-1]) + 0.5) / float64(n-1))
		p.work = append(p.work, w)
		p.models = append(p.models, scaled{model.Sample(rng), math.Exp(spread * z), math.Exp(beyond * z)})
	}
	return nil
}

// candidates are all legal configurations over the axes. Those that the server cannot have are left out.
func (p *planning) candidates(axes []Axis) []*candidate {
	var all []*candidate
	at := make([]int, len(axes))
	for {
		args := p.base.Merge(p.req.Fixed)
		for i, a := range axes {
			if len(a.Values) > 0 {
				// Every value of an axis was legal on its own.
				_ = vllmflags.Set(&args, a.Flag, a.Values[at[i]])
			}
		}
		if c := p.candidate(args); c != nil {
			c.order = len(all)
			all = append(all, c)
		}
		i := len(axes) - 1
		for ; i >= 0; i-- {
			if at[i]++; at[i] < len(axes[i].Values) {
				break
			}
			at[i] = 0
		}
		if i < 0 {
			return all
		}
	}
}

// candidate is a configuration that the server can have; nil for others.
func (p *planning) candidate(args harness.EngineArgs) *candidate {
	cfg, err := p.req.Server.Config(args)
	if err != nil || cfg.Validate() != nil {
		return nil
	}
	return &candidate{args: args, cfg: cfg, changes: len(p.changesBetween(p.base, args))}
}

// simulate predicts a candidate in draw i on a workload.
func (p *planning) simulate(ctx context.Context, c *candidate, i int, w *workload.Workload, all bool) (outcome, error) {
	timer := &largest{Timer: p.timer(i, c)}
	runner, ok := p.runners.Get().(*sim.Runner)
	if !ok {
		runner = new(sim.Runner)
	}
	defer p.runners.Put(runner) // what is kept of the outcome below is copied
	cfg := c.cfg
	cfg.FrontEnd = p.models[i].model.FrontEnd // the draw's
	out, err := runner.Run(ctx, cfg, timer, w, sim.Options{Series: all, Ends: !all && !p.gaps})
	if err != nil {
		return outcome{}, err
	}
	p.simulated.Add(int64(len(w.Requests)))
	o := p.judge(out, c.cfg, all)
	o.usage = timer.usage
	o.usage.peak = peakInFlight(out.Records)
	o.usage.blocks = int(math.Round(out.KVUsagePeak * float64(c.cfg.NumGPUBlocks-1)))
	return o, nil
}

// judge computes metrics and objectives. Unless all is set, the gaps between tokens are left out where no objective
// needs them: they are most of the work.
func (p *planning) judge(out *sim.Outcome, cfg sim.Config, all bool) outcome {
	var o outcome
	records := out.Records
	info := harness.ServerInfo{Kind: harness.KindEmbedded, BlockSize: cfg.BlockSize, NumGPUBlocks: cfg.NumGPUBlocks,
		Args: harness.EngineArgs{MaxNumSeqs: cfg.MaxNumSeqs}}
	o.metrics = append(harness.Measure(records), harness.Observe(info, out.Counters, out.Series)...)
	perRequest := harness.Goodput(records, p.req.SLOs)
	if perRequest.Value != nil {
		o.metrics = append(o.metrics, perRequest)
	}
	for i, slo := range p.req.SLOs {
		metrics := o.metrics
		if slo.Class != "" {
			own := slo.Of(records)
			metrics = append(harness.Measure(own), harness.Goodput(own, p.req.SLOs))
		}
		check := SLOCheck{SLO: slo.String()}
		miss := math.Inf(1)
		if v, ok := metrics.Value(slo.Metric, slo.Stat); ok {
			check.Value = &v
			check.Met, _ = slo.Met(metrics)
			switch {
			case check.Met:
				miss = 0
			case slo.Limit > 0 && slo.AtLeast():
				miss = (slo.Limit - v) / slo.Limit
			case slo.Limit > 0:
				miss = (v - slo.Limit) / slo.Limit
			}
		}
		if miss > o.miss {
			o.miss, o.worst = miss, i
		}
		o.slos = append(o.slos, check)
	}
	return o
}

func peakInFlight(records []workload.Record) int {
	sent, ended := make([]time.Duration, len(records)), make([]time.Duration, len(records))
	for i := range records {
		sent[i], ended[i] = records[i].Sent, records[i].End()
	}
	slices.Sort(sent)
	slices.Sort(ended)
	peak, j := 0, 0
	for i := range sent {
		for ended[j] < sent[i] {
			j++
		}
		peak = max(peak, i+1-j)
	}
	return peak
}

// each calls do for 0..n-1 on all workers and returns the first error by index.
func (p *planning) each(ctx context.Context, n int, do func(context.Context, int) error) error {
	workers := p.req.Options.Workers
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, n)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(workers, n) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if errs[i] = do(ctx, i); errs[i] != nil {
					cancel()
				}
			}
		})
	}
	wg.Wait()
	var cancelled error
	for _, err := range errs {
		if err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
		if err != nil {
			cancelled = err
		}
	}
	return cancelled
}

// overrun is how many budgets a search may cost before it compares candidates on parts that do not tell all.
const overrun = 2.0

// search evaluates the candidates on the whole workload where the budget allows; else it halves them on growing parts
// of it, as far as there are parts that show what the whole does. keep, of which the first is the baseline, are never
// dropped.
func (p *planning) search(ctx context.Context, all []*candidate, keep []*candidate, s *Search) ([]*candidate, error) {
	measured, weight := 0, 0
	for i := range p.work[0].Requests {
		if r := &p.work[0].Requests[i]; r.Phase == workload.Measured {
			measured++
			weight += 1 + r.OutputTokens/128
		}
	}
	s.Candidates, s.Requests = len(all), measured
	simulations, smallest, few := len(all), measured, false
	if len(all)*weight > p.req.Options.Budget && measured > fewest {
		var err error
		if smallest, simulations, err = p.scale(ctx, keep[0], all); err != nil {
			return nil, err
		}
		// What is worth some budgets, and no more.
		most := int(overrun * float64(p.req.Options.Budget) / float64(simulations*weight) * float64(measured))
		if smallest > most {
			smallest, few = max(fewest, measured/16, most), true
		}
	}
	rounds := 1
	for cost := simulations * weight; cost > p.req.Options.Budget && measured>>(rounds-1) > smallest; rounds++ {
		// Round r of R has 1/2^r of the candidates on 2^(r-R+1) of the requests: every round costs the same.
		cost = (rounds + 1) * simulations * (weight >> rounds)
	}
	s.Exhaustive = rounds == 1
	left := all
	for r := range rounds {
		n := max(smallest, measured>>(rounds-1-r))
		simulations, err := p.evaluate(ctx, left, n)
		if err != nil {
			return nil, err
		}
		if r == rounds-1 {
			s.Simulations = simulations
			break
		}
		left = p.half(left, keep)
		if s.Statement != "" {
			s.Statement += ", "
		}
		s.Statement += fmt.Sprintf("%d on %d requests", len(all)>>r, n)
	}
	switch {
	case s.Exhaustive && s.Simulations < len(all):
		s.Statement = fmt.Sprintf("exhaustive: %d candidates on all %d requests in %d simulations; candidates that "+
			"differ only in limits which neither reaches share one, exactly", len(all), measured, s.Simulations)
	case s.Exhaustive:
		s.Statement = fmt.Sprintf("exhaustive: every one of %d candidates was simulated on all %d requests", len(all),
			measured)
	default:
		s.Statement = fmt.Sprintf("successive halving, not exhaustive, so a better candidate may have been dropped: %s, the "+
			"best %d on all %d", s.Statement, len(left), measured)
		if few {
			s.Statement += "; the first part holds fewer requests at once, or less of its conversations, than the whole"
		}
	}
	return left, nil
}

// half keeps the better half of those that have every pinned value, at least one, and the baselines: the strategies
// take turns in naming their best.
func (p *planning) half(all, keep []*candidate) []*candidate {
	able := slices.DeleteFunc(slices.Clone(all), func(c *candidate) bool { return !p.obeys(c) })
	var rankings [][]*candidate
	for _, s := range p.req.Strategies {
		r := slices.Clone(able)
		slices.SortStableFunc(r, func(a, b *candidate) int { return compare(s, a, b) })
		rankings = append(rankings, r)
	}
	chosen := map[*candidate]bool{}
	for i := 0; len(chosen) < (len(able)+1)/2; i++ {
		for _, r := range rankings {
			chosen[r[i]] = true
		}
	}
	for _, c := range keep {
		chosen[c] = true
	}
	return slices.DeleteFunc(slices.Clone(all), func(c *candidate) bool { return !chosen[c] })
}
