package analysis

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"

	"kvtune/harness"
	"kvtune/harness/workload"
	"kvtune/planner/cost"
)

// use are the metrics of [Report].Use.
func (s *study) use() harness.Metrics {
	f := &s.facts
	mean := f.usage / max(f.usageTime.Seconds(), 1e-12)
	return harness.Metrics{
		s.batchEfficiency(), s.hitRate(), s.bestHitRate(),
		known(f.usageSeen, harness.MetricKVUsage, harness.StatMean, "ratio", mean, noGauge),
		known(f.usageSeen, harness.MetricKVUsage, harness.StatPeak, "ratio", f.usagePeak, noGauge),
		s.ofResult(harness.MetricMemoryDevice, harness.StatPeak, "B"),
		s.computeUse(), s.bandwidthUse(), s.budgetUse(), s.partialBatches(),
	}
}

// ofResult is a metric that the run's result holds.
func (s *study) ofResult(name, stat, unit string) harness.Metric {
	if m := s.Result.Metrics.Get(name, stat); m != nil {
		return *m
	}
	return missing(name, stat, unit, "the run's result does not hold it")
}

// batchEfficiency is the result's, or under the max_num_seqs that the server did not state.
func (s *study) batchEfficiency() harness.Metric {
	if s.Result.Conditions.Server.Args.MaxNumSeqs == 0 && s.args.MaxNumSeqs > 0 && len(s.Series) > 0 {
		inside := slices.DeleteFunc(slices.Clone(s.Series),
			func(x harness.Sample) bool { return x.T < s.win.from || x.T > s.win.to })
		return harness.BatchEfficiency(s.args.MaxNumSeqs, inside)
	}
	return s.ofResult(harness.MetricBatchEfficiency, "", "ratio")
}

// hitRate is the result's, or that of the requests.
func (s *study) hitRate() harness.Metric {
	if m := s.Result.Metrics.Get(harness.MetricCacheHitRate, ""); m != nil && m.Value != nil {
		return *m
	}
	return known(s.prefix.seen && s.prefix.prompts > 0, harness.MetricCacheHitRate, "", "ratio",
		float64(s.prefix.hit)/float64(max(1, s.prefix.prompts)), "the server reports no cached tokens")
}

func (s *study) bestHitRate() harness.Metric {
	return known(s.prefix.prompts > 0, harness.MetricBestHitRate, "", "ratio",
		float64(s.prefix.attainable)/float64(max(1, s.prefix.prompts)), "no measured request succeeded")
}

// computeUse and bandwidthUse are over the window, idle time included.
func (s *study) computeUse() harness.Metric {
	return s.rooflineUse(harness.MetricComputeUse, s.facts.compute)
}

func (s *study) bandwidthUse() harness.Metric {
	return s.rooflineUse(harness.MetricBandwidthUse, s.facts.memory)
}

func (s *study) rooflineUse(name string, least time.Duration) harness.Metric {
	switch {
	case s.model == nil:
		return missing(name, "", "ratio", noModel)
	case s.win.length() <= 0 || s.facts.compute == 0 && s.facts.memory == 0:
		return missing(name, "", "ratio", "no step in the window, or no ceiling is known")
	}
	return metric(name, "", "ratio", least.Seconds()/s.win.length().Seconds())
}

func (s *study) budgetUse() harness.Metric {
	f, budget := &s.facts, s.args.MaxNumBatchedTokens
	return known(f.steps > 0 && budget > 0, harness.MetricBudgetUse, "", "ratio",
		f.tokens/(max(f.steps, 1)*float64(max(budget, 1))), "no step in the window, or max_num_batched_tokens is not known")
}

func (s *study) partialBatches() harness.Metric {
	busy := s.busy()
	return known(s.facts.waitSeen && busy > 0 && s.args.MaxNumSeqs > 0, harness.MetricPartialBatches, "", "ratio",
		s.facts.partial.Seconds()/max(busy.Seconds(), 1e-12), noGauge+", or max_num_seqs is not known")
}

// stepTime takes the time of the window's steps apart by the cost model.
func (s *study) stepTime() []StepPart {
	busy := s.busy().Seconds()
	for _, g := range s.gaps {
		busy += g.length.Seconds()
	}
	if s.model == nil || busy <= 0 {
		return nil
	}
	f := &s.facts
	weights := 0.0
	if l := s.model.Limits; l.Bandwidth > 0 {
		weights = min(f.parts.Fixed, f.steps*l.WeightBytes/l.Bandwidth)
	}
	parts := []StepPart{
		{Name: "weights", Meaning: "reading the weights once per step, at the ceiling of the memory", Seconds: weights},
		{Name: "overhead", Meaning: "the rest of a step's fixed time: kernel boundaries, kernels outside CUDA graphs",
			Seconds: f.parts.Fixed - weights},
		{Name: "tokens", Meaning: "matrix products of new tokens", Seconds: f.parts.Tokens},
		{Name: "attention", Meaning: "attention of prompt tokens", Seconds: f.parts.Attention},
		{Name: "KV", Meaning: "reading the KV cache of requests that decode", Seconds: f.parts.KV},
		{Name: "sequences", Meaning: "what grows with the requests in a step: sampling, bookkeeping", Seconds: f.parts.Seqs},
		{Name: "heat", Meaning: "lower clocks after arithmetic without pause", Seconds: f.parts.Heat},
		{Name: "host", Meaning: "the device waits for the host to prepare or launch a step", Seconds: f.host},
	}
	explained := 0.0
	for _, p := range parts {
		explained += p.Seconds
	}
	parts = append(parts, StepPart{Name: "unexplained",
		Meaning: "measured and not in the model; below 0 the model expects more", Seconds: busy - explained})
	for i := range parts {
		parts[i].Share = parts[i].Seconds / busy
		parts[i].Seconds /= max(f.steps, 1e-9)
	}
	return parts
}

// points is how many points utilisation and roofline keep.
const points = 240

// bin collects an interval of the window.
type bin struct {
	kv, running, waiting, tokens, peak, steps, gauged float64
	compute, memory                                   time.Duration
	sampled                                           map[string]*mean
}

type mean struct{ sum, n float64 }

// utilization thins the spans and the machine's samples to points: means weighted by time, the largest KV usage and
// number of tokens.
func (s *study) utilization() Utilization {
	u := Utilization{MaxNumBatchedTokens: s.args.MaxNumBatchedTokens, MaxNumSeqs: s.args.MaxNumSeqs}
	if s.blocks > 0 {
		u.NumGPUBlocks = s.blocks + 1
	}
	width := s.win.length() / points
	if width <= 0 {
		return u
	}
	u.Interval = width.Seconds()
	bins := make([]bin, points)
	for i := range bins {
		bins[i].kv = -1
	}
	at := func(t time.Duration) int { return min(points-1, int((t-s.win.from)/width)) }
	for i := range s.spans {
		sp := &s.spans[i]
		b := &bins[at(sp.start)]
		b.kv = max(b.kv, sp.kvUsage)
		if sp.running >= 0 {
			d := sp.length.Seconds()
			b.running += d * float64(sp.running)
			b.waiting += d * float64(max(0, sp.waiting))
			b.gauged += d
		}
		b.tokens += sp.count * float64(sp.step.Tokens())
		b.peak = max(b.peak, float64(sp.step.Tokens()))
		b.steps += sp.count
		if s.model != nil {
			s.spread(bins, sp, width)
		}
	}
	for _, x := range s.Series {
		if x.T < s.win.from || x.T > s.win.to {
			continue
		}
		b := &bins[at(x.T)]
		if b.sampled == nil {
			b.sampled = map[string]*mean{}
		}
		if b.sampled[x.Metric] == nil {
			b.sampled[x.Metric] = new(mean)
		}
		m := b.sampled[x.Metric]
		m.sum, m.n = m.sum+x.Value, m.n+1
	}
	for i := range bins {
		if p, any := bins[i].point(s, width); any {
			p.T = (s.win.from + time.Duration(i)*width).Seconds()
			u.Points = append(u.Points, p)
		}
	}
	u.Events = s.events(width)
	return u
}

// spread gives a span's roofline times to the bins that it covers: a step may be longer than a bin.
func (s *study) spread(bins []bin, sp *span, width time.Duration) {
	compute, memory := s.model.Roofline(sp.step)
	for t, end := sp.start, sp.start+sp.length; t < end; {
		i := min(points-1, int((t-s.win.from)/width))
		next := end
		if i < points-1 {
			next = min(end, s.win.from+time.Duration(i+1)*width)
		}
		share := float64(next-t) / float64(sp.length) * sp.count
		bins[i].compute += time.Duration(float64(compute) * share)
		bins[i].memory += time.Duration(float64(memory) * share)
		t = next
	}
}

// point is what the bin shows; any is false where it shows nothing.
func (b *bin) point(s *study, width time.Duration) (p UsagePoint, any bool) {
	if b.steps > 0 {
		any = true
		tokens := b.tokens / b.steps
		p.StepTokens, p.StepTokensPeak = &tokens, &b.peak
		if b.kv >= 0 {
			p.KVUsage = &b.kv
		}
		if b.gauged > 0 {
			running, waiting := b.running/b.gauged, b.waiting/b.gauged
			p.Running, p.Waiting = &running, &waiting
		}
	}
	if s.model != nil && (b.compute > 0 || b.memory > 0) {
		any = true
		compute, memory := b.compute.Seconds()/width.Seconds(), b.memory.Seconds()/width.Seconds()
		p.Compute, p.Bandwidth = &compute, &memory
	}
	for _, q := range []struct {
		series string
		to     **float64
	}{
		{harness.SeriesGPUBusy, &p.SMActive}, {harness.SeriesGPUMemoryBusy, &p.MemoryActive},
		{harness.SeriesGPUPower, &p.Power}, {harness.SeriesHostCPU, &p.HostCPU}, {harness.SeriesHostMemory, &p.HostMemory},
	} {
		if m := b.sampled[q.series]; m != nil {
			any = true
			v := m.sum / m.n
			*q.to = &v
		}
	}
	return p, any
}

// events are preemptions (from the steps, else from the server's counter over time), throttling and failed requests, at
// most one of a kind and a text in an interval.
func (s *study) events(width time.Duration) []Event {
	type key struct {
		bin  int
		kind EventKind
		text string
	}
	found := map[key]*Event{}
	add := func(t time.Duration, kind EventKind, n int, text string) {
		if t < s.win.from || t > s.win.to {
			return
		}
		k := key{int((t - s.win.from) / width), kind, text}
		if e := found[k]; e != nil {
			e.Count, e.T = e.Count+n, min(e.T, t.Seconds())
			return
		}
		found[k] = &Event{T: t.Seconds(), Kind: kind, Count: n, Text: text}
	}
	const lost = "running requests lost their KV blocks and began again"
	seen := false
	for i := range s.spans {
		if n := s.spans[i].preemptions; n > 0 {
			seen = true
			add(s.spans[i].start, EventPreemption, n, lost)
		}
	}
	last := time.Duration(-1)
	for _, x := range s.Series {
		switch reason, throttled := strings.CutPrefix(x.Metric, harness.SeriesGPUThrottled); {
		case throttled && reason == harness.PowerCap:
			add(x.T, EventPowerCap, 1, "the GPU draws as much power as it may")
		case throttled:
			add(x.T, EventThrottle, 1, "the GPU's clocks are held down: "+reason)
		case x.Metric == harness.SeriesPreemptionRate && !seen:
			if n := int(math.Round(x.Value * (x.T - last).Seconds())); last >= 0 && n > 0 {
				add(x.T, EventPreemption, n, lost)
			}
			last = x.T
		}
	}
	for i := range s.Records {
		if r := &s.Records[i]; r.Error != "" && r.Phase == workload.Measured {
			add(r.End(), EventError, 1, "a request failed: "+r.Error)
		}
	}
	events := make([]Event, 0, len(found))
	for _, e := range found {
		events = append(events, *e)
	}
	slices.SortFunc(events, func(a, b Event) int {
		return cmp.Or(cmp.Compare(a.T, b.T), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Text, b.Text))
	})
	return events
}

func (s *study) roofline() *Roofline {
	if s.model == nil || len(s.spans) == 0 {
		return nil
	}
	l := s.model.Limits
	r := &Roofline{BalanceTokens: s.balance(), Flops: l.Flops, Bandwidth: l.Bandwidth, Ceilings: s.ceilings()}
	if math.IsInf(r.BalanceTokens, 0) {
		r.BalanceTokens = 0
	}
	stride := (len(s.spans) + points - 1) / points
	for i := 0; i < len(s.spans); i += stride {
		sp := &s.spans[i]
		compute, memory := s.model.Roofline(sp.step)
		elapsed := sp.length.Seconds() / max(sp.count, 1e-9)
		if elapsed < max(compute, memory).Seconds() {
			continue // rebuilt from arrivals that the client saw bunched: no device is that fast
		}
		r.Points = append(r.Points, RooflinePoint{Tokens: sp.step.Tokens(), Compute: compute.Seconds(),
			Memory: memory.Seconds(), Elapsed: elapsed})
	}
	return r
}

// ceilings are all that are known, the ones in force first.
func (s *study) ceilings() []Ceiling {
	const arithmetic, bandwidth = "arithmetic", "memory bandwidth"
	paper := s.Server.Cost.Limits
	source := "datasheet"
	if paper.Guess {
		source = "assumed"
	}
	reachedFlops, reachedBandwidth := 0.0, 0.0
	if s.model.Kind == cost.KindFitted {
		reachedFlops, reachedBandwidth = s.model.Reached()
	}
	var all []Ceiling
	for _, c := range []Ceiling{
		{arithmetic, "measured", s.Flops, "flop/s"}, {bandwidth, "measured", s.Bandwidth, "B/s"},
		{arithmetic, source, paper.Flops, "flop/s"}, {bandwidth, source, paper.Bandwidth, "B/s"},
		{arithmetic, "reached", reachedFlops, "flop/s"}, {bandwidth, "reached", reachedBandwidth, "B/s"},
	} {
		if c.Value > 0 {
			all = append(all, c)
		}
	}
	return all
}
