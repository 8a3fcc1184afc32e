package planner

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"kvtune/harness"
	"kvtune/harness/stats"
)

// aim is what a strategy is after.
type aim struct {
	// metric and stat are its own metric, which it makes best and in which gains over other settings are given.
	metric, stat string
	// words name that, and why says what settings are that were chosen for it.
	words, why string
}

func aimOf(s Strategy) aim {
	switch s {
	case Throughput:
		return aim{harness.MetricTotalThroughput, "", "total throughput", "highest total throughput"}
	case Latency:
		return aim{harness.MetricE2EL, harness.StatMean, "mean end-to-end latency", "lowest mean end-to-end latency"}
	case Memory:
		return aim{metric: harness.MetricKVCacheSize, words: "KV cache size at that throughput"} // why has a figure
	case CacheHits:
		return aim{harness.MetricCacheHitRate, "", "prefix-cache hit rate", "highest prefix-cache hit rate"}
	case Balanced:
		return aim{harness.MetricPower, "", "throughput or p99 latency",
			"knee of total throughput against p99 end-to-end latency"}
	}
	return aim{metric: harness.MetricTotalThroughput} // baselines, and what is closest to objectives
}

// goal is what a strategy makes best, one number per outcome; higher is better.
func goal(s Strategy, c *candidate, run int) float64 {
	ms := c.runs[run].metrics
	value := func(name, stat string, otherwise float64) float64 {
		if v, ok := ms.Value(name, stat); ok {
			return v
		}
		return otherwise
	}
	never := math.Inf(1)
	switch s {
	case Memory:
		return -float64(c.kvTokens())
	case Balanced, power:
		return value(harness.MetricTotalThroughput, "", 0) / value(harness.MetricE2EL, harness.StatP99, never)
	}
	own := aimOf(s)
	if harness.HigherIsBetter(own.metric) {
		return value(own.metric, own.stat, 0)
	}
	return -value(own.metric, own.stat, never)
}

// second is what decides between candidates with the same goal; higher is better.
func second(s Strategy, c *candidate) float64 {
	switch s {
	case Latency:
		if v, ok := c.runs[0].metrics.Value(harness.MetricTTFT, harness.StatP99); ok {
			return -v
		}
		return 0
	case Throughput:
		return goal(Latency, c, 0)
	}
	return goal(Throughput, c, 0)
}

// compare orders candidates by the prediction itself: fewer missed objectives, the goal, the second goal, fewer changed
// flags, less memory, the order of the grid.
func compare(s Strategy, a, b *candidate) int {
	return cmp.Or(
		cmp.Compare(a.runs[0].miss, b.runs[0].miss),
		cmp.Compare(goal(s, b, 0), goal(s, a, 0)),
		cmp.Compare(second(s, b), second(s, a)),
		cmp.Compare(a.changes, b.changes),
		cmp.Compare(a.kvTokens(), b.kvTokens()),
		cmp.Compare(a.order, b.order),
	)
}

// distinct keeps, of candidates that are equal in every strategy's eyes but for their memory, the one with the fewest
// changes.
func distinct(all []*candidate) []*candidate {
	var eyes []Strategy
	for _, s := range Strategies() {
		if s != Memory {
			eyes = append(eyes, s)
		}
	}
	best := map[string]*candidate{}
	var order []string
	for _, c := range all {
		seen := []float64{c.runs[0].miss}
		for _, s := range eyes {
			seen = append(seen, goal(s, c, 0))
		}
		f := fmt.Sprint(seen)
		old := best[f]
		if old == nil {
			order = append(order, f)
		}
		if old == nil || cmp.Or(cmp.Compare(c.changes, old.changes), cmp.Compare(c.kvTokens(), old.kvTokens())) < 0 {
			best[f] = c
		}
	}
	out := make([]*candidate, len(order))
	for i, f := range order {
		out[i] = best[f]
	}
	return out
}

// perStrategy is how many of a strategy's best become finalists.
const perStrategy = 4

// finalists are the best of every strategy, the baselines first.
func (p *planning) finalists(all, keep []*candidate) []*candidate {
	chosen := slices.Clone(keep)
	add := func(cs []*candidate) {
		for _, c := range cs[:min(perStrategy, len(cs))] {
			if !slices.Contains(chosen, c) {
				chosen = append(chosen, c)
			}
		}
	}
	different := distinct(all)
	for _, s := range p.req.Strategies {
		if s == Memory {
			s = Throughput
		}
		slices.SortStableFunc(different, func(a, b *candidate) int { return compare(s, a, b) })
		add(different)
	}
	if slices.Contains(p.req.Strategies, Balanced) {
		front := paretoFront(all)
		if k := knee(front); k >= 0 {
			add(front[k : k+1])
		}
	}
	return chosen
}

// choose picks a strategy's candidate: of those that meet the objectives in the most draws (95 % of them are enough),
// the best goal on average over the draws (balanced: the knee); then, of those that cannot be told from it, the one
// with the fewest changed flags, then the best second goal. A candidate that is not surely better than the baseline is
// no choice beside one that is.
func (p *planning) choose(s Strategy, finalists []*candidate, base *candidate) *candidate {
	able := slices.DeleteFunc(slices.Clone(finalists), func(c *candidate) bool { return !c.feasible() })
	if len(able) == 0 {
		return nil
	}
	most := 0.0
	for _, c := range able {
		most = max(most, min(surely, metShare(c)))
	}
	able = slices.DeleteFunc(able, func(c *candidate) bool { return metShare(c) < most })
	byGoal := func(a, b *candidate) int {
		return cmp.Or(cmp.Compare(meanGoal(s, a), meanGoal(s, b)), -compare(s, a, b))
	}
	best := slices.MaxFunc(able, byGoal)
	if front := paretoFront(able); s == Balanced && len(front) > 0 {
		best = front[knee(front)]
	}
	if s != Balanced && slices.Contains(able, base) {
		sure := slices.DeleteFunc(slices.Clone(able), func(c *candidate) bool { return !p.worse(s, c, base) })
		if len(sure) == 0 { // what the draws do not show is no reason for a change
			return base
		}
		able, best = sure, slices.MaxFunc(sure, byGoal)
	}
	must := slices.Contains(able, base) && p.worse(s, best, base)
	able = slices.DeleteFunc(able, func(c *candidate) bool {
		return c != best && (p.worse(s, best, c) || must && !p.worse(s, c, base))
	})
	return slices.MinFunc(able, func(a, b *candidate) int {
		return cmp.Or(cmp.Compare(a.changes, b.changes), -cmp.Compare(second(s, a), second(s, b)), compare(s, a, b))
	})
}

// surely is the share of the draws in which an objective is to be met.
const surely = 0.95

// worse reports whether c is surely worse than best in the strategy's goal: the prediction's difference is one that it
// can resolve, and the 95 % interval of the mean paired difference over the draws lies above 0. Under the balanced
// strategy either axis of the front counts.
func (p *planning) worse(s Strategy, best, c *candidate) bool {
	if c == best {
		return false
	}
	if s == Balanced {
		return p.surelyAbove(best, c, func(c *candidate, i int) float64 { return goal(Throughput, c, i) }) ||
			p.surelyAbove(best, c, func(c *candidate, i int) float64 { return -tail(c, i) })
	}
	return p.surelyAbove(best, c, func(c *candidate, i int) float64 { return goal(s, c, i) })
}

// surelyAbove compares best and c draw by draw; differences are shares of c's value.
func (p *planning) surelyAbove(best, c *candidate, of func(*candidate, int) float64) bool {
	diffs := make([]float64, min(len(best.runs), len(c.runs)))
	for i := range diffs {
		diffs[i] = of(best, i) - of(c, i)
		if v := math.Abs(of(c, i)); v > 0 && diffs[i] != 0 {
			diffs[i] /= v
		}
	}
	if !(diffs[0] > p.resolution()) {
		return false
	}
	if slices.Min(diffs) == slices.Max(diffs) {
		return true
	}
	return stats.New(diffs).MeanInterval(0.95).Low > 0
}

// resolution is the smallest difference between two configurations that a prediction can tell, as a share: the cost
// model's cross-validated error, which the draws do not show because both share it, and at least [Options].MinGain.
func (p *planning) resolution() float64 {
	if e := p.req.Server.Cost.Errors; e != nil {
		return max(p.req.Options.MinGain, e.Median)
	}
	return p.req.Options.MinGain
}

func meanGoal(s Strategy, c *candidate) float64 {
	sum := 0.0
	for i := range c.runs {
		sum += goal(s, c, i)
	}
	return sum / float64(len(c.runs))
}

func metShare(c *candidate) float64 {
	met := 0
	for i := range c.runs {
		if c.runs[i].miss == 0 {
			met++
		}
	}
	return float64(met) / float64(len(c.runs))
}

// paretoFront are the candidates that meet the objectives and that no other beats in both total throughput and p99
// end-to-end latency, from the lowest latency up.
func paretoFront(all []*candidate) []*candidate {
	able := slices.DeleteFunc(distinct(all), func(c *candidate) bool {
		_, known := c.runs[0].metrics.Value(harness.MetricE2EL, harness.StatP99)
		return !c.feasible() || !known
	})
	slices.SortStableFunc(able, func(a, b *candidate) int {
		la, lb := tail(a, 0), tail(b, 0)
		return cmp.Or(cmp.Compare(la, lb), cmp.Compare(goal(Throughput, b, 0), goal(Throughput, a, 0)),
			cmp.Compare(a.changes, b.changes), cmp.Compare(a.order, b.order))
	})
	var front []*candidate
	best := math.Inf(-1)
	for _, c := range able {
		if t := goal(Throughput, c, 0); t > best {
			front, best = append(front, c), t
		}
	}
	return front
}

// tail is the p99 end-to-end latency.
func tail(c *candidate, run int) float64 {
	v, _ := c.runs[run].metrics.Value(harness.MetricE2EL, harness.StatP99)
	return v
}

// knee is the index of the front's point farthest above the chord between its ends, both axes scaled to 0..1; the
// lowest latency where none is above it, -1 for an empty front.
func knee(front []*candidate) int {
	if len(front) == 0 {
		return -1
	}
	a, b := front[0], front[len(front)-1]
	dt, dl := goal(Throughput, b, 0)-goal(Throughput, a, 0), tail(b, 0)-tail(a, 0)
	best, at := 0.0, 0
	if dt <= 0 || dl <= 0 {
		return 0
	}
	for i, c := range front {
		if d := (goal(Throughput, c, 0)-goal(Throughput, a, 0))/dt - (tail(c, 0)-tail(a, 0))/dl; d > best {
			best, at = d, i
		}
	}
	return at
}
