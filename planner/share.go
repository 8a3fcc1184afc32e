package planner

import (
	"cmp"
	"context"
	"math"
	"slices"
	"time"

	"kvtune/harness/workload"
	"kvtune/planner/cost"
	"kvtune/planner/sim"
)

// Two settings that differ only in limits which neither of them reaches make the same decisions in every step, so one
// simulation stands for both, exactly. That is most of a search: of the values of an axis usually few bind.

// usage is how far a simulation went into its limits.
type usage struct {
	peak   int // requests in flight
	tokens int // of the largest step
	blocks int // KV blocks held at once
	// sizes has a bit for each size of a step in tokens up to largestGraph.
	sizes [largestGraph/64 + 1]uint64
}

// largestGraph is no smaller than any CUDA graph that vLLM captures.
const largestGraph = 512

// between reports whether a step had more than low and up to high tokens.
func (u *usage) between(low, high int) bool {
	for n := low + 1; n <= min(high, largestGraph); n++ {
		if u.sizes[n/64]>>(n%64)&1 != 0 {
			return true
		}
	}
	return false
}

// sameGraphs reports whether every step has the same CUDA graph where the largest ones are of a and of b tokens: sizes
// up to the smaller one, when that is a capture size of its own, are padded alike, and those above the larger one have
// none.
func (u *usage) sameGraphs(a, b int) bool {
	low, high := min(a, b), max(a, b)
	captured := low <= 2 || low == 4 || low <= 256 && low%8 == 0 || low%16 == 0
	return low == high || captured && !u.between(low, high)
}

// demand is what a workload can ask of a KV cache, in blocks of one size.
type demand struct {
	request int // of the largest request
	total   int // of all requests together, nothing shared
	private bool
}

// demandOf counts blocks as the scheduler does; private says that no request can hit what another one computed.
func demandOf(w *workload.Workload, blockSize int, prefixCaching bool) demand {
	d := demand{private: true}
	for i := range w.Requests {
		r := &w.Requests[i]
		n := (r.PromptTokens() + r.OutputTokens + blockSize - 1) / blockSize
		d.request, d.total = max(d.request, n), d.total+n
		d.private = d.private && (r.SharedTokens == 0 || !prefixCaching)
	}
	return d
}

// roomy reports whether a KV cache never limits a run that held so many blocks: every request would be let in at the
// peak, and where prefixes are shared no cached block is ever evicted.
func (d demand) roomy(cfg sim.Config, u usage) bool {
	blocks := cfg.NumGPUBlocks - 1
	spare := blocks - int(math.Ceil(cfg.Watermark*float64(cfg.NumGPUBlocks)))
	return u.blocks+d.request+1 <= spare && (d.private || d.total <= blocks)
}

// same reports whether a simulation of x that used u is one of y, too. They differ in nothing but max_num_seqs,
// max_num_batched_tokens and the number of blocks.
func (d demand) same(x, y *candidate, u *usage) bool {
	a, b := x.cfg, y.cfg
	return u.sameGraphs(cost.MaxGraph(x.args), cost.MaxGraph(y.args)) &&
		(a.MaxNumSeqs == b.MaxNumSeqs || u.peak <= min(a.MaxNumSeqs, b.MaxNumSeqs)) &&
		(a.MaxNumBatchedTokens == b.MaxNumBatchedTokens || !a.LongPrefillTokenThresholdAdaptive &&
			u.tokens < min(a.MaxNumBatchedTokens, b.MaxNumBatchedTokens)) &&
		(a.NumGPUBlocks == b.NumGPUBlocks || d.roomy(a, *u) && d.roomy(b, *u))
}

// apart is a configuration without the limits that [demand.same] compares.
func apart(cfg sim.Config) sim.Config {
	cfg.MaxNumSeqs, cfg.MaxNumBatchedTokens, cfg.NumGPUBlocks = 0, 0, 0
	return cfg
}

// largest is a timer that notes the sizes of the steps.
type largest struct {
	cost.Timer
	usage usage
}

func (l *largest) StepTime(s cost.Step) time.Duration {
	n := s.Tokens()
	l.usage.tokens = max(l.usage.tokens, n)
	if n <= largestGraph {
		l.usage.sizes[n/64] |= 1 << (n % 64)
	}
	return l.Timer.StepTime(s)
}

// evaluate simulates candidates on the first n measured requests and returns how many simulations that took. Candidates
// whose simulation would be that of another one share it.
func (p *planning) evaluate(ctx context.Context, all []*candidate, n int) (simulations int, err error) {
	w := first(p.work[0], n)
	groups := map[sim.Config][]*candidate{}
	var keys []sim.Config
	for _, c := range all {
		key := apart(c.cfg)
		if groups[key] == nil {
			keys = append(keys, key)
		}
		groups[key] = append(groups[key], c)
	}
	counts := make([]int, len(keys))
	err = p.each(ctx, len(keys), func(ctx context.Context, i int) error {
		group := slices.Clone(groups[keys[i]])
		// The widest limits first: their simulations stand for the most others.
		slices.SortStableFunc(group, func(a, b *candidate) int {
			return cmp.Or(b.cfg.MaxNumSeqs-a.cfg.MaxNumSeqs, b.cfg.MaxNumBatchedTokens-a.cfg.MaxNumBatchedTokens,
				b.cfg.NumGPUBlocks-a.cfg.NumGPUBlocks)
		})
		d := demandOf(w, keys[i].BlockSize, keys[i].EnablePrefixCaching)
		var done []*candidate
		for _, c := range group {
			at := slices.IndexFunc(done, func(o *candidate) bool { return d.same(o, c, &o.runs[0].usage) })
			if at >= 0 {
				c.runs = done[at].runs
				continue
			}
			o, err := p.simulate(ctx, c, 0, w, false)
			if err != nil {
				return err
			}
			c.runs = []outcome{o}
			done = append(done, c)
		}
		counts[i] = len(done)
		return nil
	})
	for _, n := range counts {
		simulations += n
	}
	return simulations, err
}
