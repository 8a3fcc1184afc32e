package sim

import (
	"cmp"
	"slices"
	"time"

	"kvtune/harness"
)

// seriesLimit is the largest number of samples kept of a gauge; when it is reached, about half of them go.
const seriesLimit = 4096

// gauge is one metric over time: a sample at every change, no two closer than spacing.
type gauge struct {
	name    string
	samples []harness.Sample
	spacing time.Duration
}

// add notes a value; the last one is kept however close it is.
func (g *gauge) add(at time.Duration, v float64, last bool) {
	if n := len(g.samples); n > 0 && (g.samples[n-1].Value == v || at-g.samples[n-1].T < g.spacing && !last) {
		return
	}
	g.samples = append(g.samples, harness.Sample{T: at, Metric: g.name, Value: v})
	if len(g.samples) < seriesLimit || last {
		return
	}
	g.spacing = 2 * at / seriesLimit
	kept := g.samples[:1]
	for _, s := range g.samples[1:] {
		if s.T-kept[len(kept)-1].T >= g.spacing {
			kept = append(kept, s)
		}
	}
	g.samples = kept
}

// series are the gauges that vLLM sets after every step.
type series struct{ usage, running, waiting gauge }

func (s *series) add(at time.Duration, from *Scheduler, last bool) {
	s.usage.add(at, from.Usage(), last)
	s.running.add(at, float64(from.Running()), last)
	s.waiting.add(at, float64(from.Waiting()), last)
}

// samples are all gauges in order of time.
func (s *series) samples() []harness.Sample {
	all := slices.Concat(s.usage.samples, s.running.samples, s.waiting.samples)
	slices.SortStableFunc(all, func(a, b harness.Sample) int { return cmp.Compare(a.T, b.T) })
	return all
}
