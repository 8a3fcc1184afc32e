package analysis

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"kvtune/harness"
	"kvtune/harness/workload"
	"kvtune/planner/cost"
)

func bySent(records []workload.Record) []int {
	order := make([]int, len(records))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(records[a].Sent, records[b].Sent) })
	return order
}

var kinds = [...]Kind{Compute, Bandwidth, Capacity, Scheduling, Cache}

func (s *study) report() *Report {
	r := &Report{Schema: Schema, Result: s.Result.Name, Origin: s.Result.Origin, Args: s.args, Config: s.Result.Config}
	r.Basis = "engine steps"
	if len(s.Steps) == 0 {
		r.Basis = "steps rebuilt from the arrival times of tokens"
		if len(s.Series) > 0 {
			r.Basis += ", with the server's gauges"
		}
	}
	total := s.win.length()
	share := func(d time.Duration) float64 {
		if total <= 0 {
			return 0
		}
		return float64(d) / float64(total)
	}
	byKind := map[Kind]time.Duration{}
	for c := range numCauses {
		byKind[c.kind()] += s.time[c]
	}
	light, idle := share(s.time[causeLight]), share(s.time[causeIdle])
	r.Idle = &idle
	if s.model != nil || light > 0 {
		r.Light = &light
	}

	r.Binding = NotObserved
	best := byKind[NotObserved]
	for _, k := range append(kinds[:], LightLoad) {
		if byKind[k] > best {
			r.Binding, best = k, byKind[k]
		}
	}
	for _, k := range kinds {
		b := Bottleneck{Kind: k, Binds: k == r.Binding, Limit: s.limitOf(k), Evidence: s.evidence(k)}
		if s.observed(k) {
			v := share(byKind[k])
			b.Share = &v
			var other time.Duration
			for o, d := range byKind {
				if o != k {
					other = max(other, d)
				}
			}
			t := share(other)
			b.Threshold = &t
		}
		b.Why = s.why(&b, r.Binding, nil)
		if b.Binds {
			r.Limit = b.Limit
		}
		r.Bottlenecks = append(r.Bottlenecks, b)
	}
	r.Verdict = s.verdict(r, share(best))
	if f := s.focusOf(r.Binding); f != nil {
		s.focused(r, f)
	}
	s.notes(r)
	r.Use, r.StepTime = s.use(), s.stepTime()
	r.Utilization = s.utilization()
	r.Roofline = s.roofline()
	r.Recommendations = []Recommendation{}
	return r
}

// observed reports whether the run holds what the share of a kind rests on.
func (s *study) observed(k Kind) bool {
	switch k {
	case Compute, Bandwidth:
		return s.model != nil
	case Cache:
		return s.model != nil && s.prefix.seen
	}
	return s.model != nil || s.facts.waitSeen
}

// limitOf is the limit that took most of a kind's time, "" when none took any.
func (s *study) limitOf(k Kind) string {
	limit, best := "", time.Duration(0)
	for c := range numCauses {
		if c.kind() == k && s.time[c] > best {
			limit, best = c.limit(), s.time[c]
		}
	}
	return limit
}

func metric(name, stat, unit string, v float64) harness.Metric {
	return harness.Metric{Name: name, Stat: stat, Unit: unit, Value: &v}
}

func missing(name, stat, unit, why string) harness.Metric {
	return harness.Metric{Name: name, Stat: stat, Unit: unit, Note: why}
}

// known is a metric, or "not observed" with the reason.
func known(ok bool, name, stat, unit string, v float64, why string) harness.Metric {
	if !ok {
		return missing(name, stat, unit, why)
	}
	return metric(name, stat, unit, v)
}

const (
	noModel = "needs a cost model"
	noGauge = "the run has neither engine steps nor samples of the server's gauges"
)

func (s *study) evidence(k Kind) harness.Metrics {
	f := &s.facts
	perStep := func(d time.Duration) float64 { return d.Seconds() / max(f.steps, 1) }
	stepTokens := known(f.steps > 0, "step_tokens", harness.StatMean, "token", f.tokens/max(f.steps, 1),
		"no step in the window")
	switch k {
	case Compute:
		return harness.Metrics{
			stepTokens,
			known(s.model != nil, "balance_tokens", "", "token", s.balance(), noModel),
			known(s.model != nil, "roofline_compute", harness.StatMean, "s", perStep(f.compute), noModel),
			known(s.model != nil, "roofline_memory", harness.StatMean, "s", perStep(f.memory), noModel),
			known(f.steps > 0, "step_time", harness.StatMean, "s", perStep(s.busy()), "no step in the window"),
			s.computeUse(),
		}
	case Bandwidth:
		return harness.Metrics{
			known(s.model != nil, "roofline_memory", harness.StatMean, "s", perStep(f.memory), noModel),
			known(s.model != nil, "roofline_compute", harness.StatMean, "s", perStep(f.compute), noModel),
			known(f.steps > 0, "step_time", harness.StatMean, "s", perStep(s.busy()), "no step in the window"),
			s.bandwidthUse(),
		}
	case Capacity:
		usage := f.usage / max(f.usageTime.Seconds(), 1e-12)
		return harness.Metrics{
			known(f.usageSeen, harness.MetricKVUsage, harness.StatMean, "ratio", usage, noGauge),
			known(f.usageSeen, harness.MetricKVUsage, harness.StatPeak, "ratio", f.usagePeak, noGauge),
			known(s.blocks > 0 && s.need > 0, "kv_usage_full", "", "ratio", 1-float64(s.need)/float64(max(s.blocks, 1)),
				"the number of KV blocks is not known"),
			known(f.waitSeen, "waiting_kv_full", "", "s", f.waitFull.Seconds(), noGauge),
			s.preemptions(),
		}
	case Scheduling:
		ms := harness.Metrics{
			known(f.waitSeen, "waiting_kv_free", "", "s", f.waitFree.Seconds(), noGauge),
			known(f.runningPeak > 0, harness.MetricRunning, harness.StatPeak, "request", float64(f.runningPeak), noGauge),
			known(s.args.MaxNumSeqs > 0, "max_num_seqs", "", "request", float64(s.args.MaxNumSeqs), "the setting is not known"),
			known(f.steps > 0, "step_tokens", harness.StatPeak, "token", float64(f.tokensPeak), "no step in the window"),
			known(s.args.MaxNumBatchedTokens > 0, "max_num_batched_tokens", "", "token", float64(s.args.MaxNumBatchedTokens),
				"the setting is not known"),
			known(s.model != nil, "launch_overhead", "", "s", s.launch.Seconds(), noModel),
			known(s.model != nil, "host_wait", harness.StatMean, "s", f.host/max(f.steps, 1), noModel),
			s.budgetUse(), s.partialBatches(), s.batchEfficiency(),
		}
		if m := s.Result.Metrics.Get(harness.MetricQueueTime, harness.StatMean); m != nil {
			ms = append(ms, *m)
		}
		return ms
	}
	why := "the server reports no cached tokens"
	ms := harness.Metrics{
		s.hitRate(), s.bestHitRate(),
		metric("attainable_hit_tokens", harness.StatTotal, "token", float64(s.prefix.attainable)),
		known(s.prefix.seen, "hit_tokens", harness.StatTotal, "token", float64(s.prefix.hit), why),
		known(s.prefix.seen, "recomputed_tokens", harness.StatTotal, "token", float64(s.prefix.recomputed), why),
		known(s.prefix.seen, "computed_prompt_tokens", harness.StatTotal, "token", float64(s.prefix.computed), why),
	}
	return ms
}

func (s *study) preemptions() harness.Metric {
	if v, ok := s.Result.Counters[harness.CounterPreemptions]; ok {
		return metric(harness.MetricPreemptions, "", "request", v)
	}
	return known(len(s.Steps) > 0, harness.MetricPreemptions, "", "request", float64(s.facts.preemptions),
		"the server's counters were not read")
}

func (s *study) busy() time.Duration {
	var d time.Duration
	for i := range s.spans {
		d += s.spans[i].length
	}
	return d
}

// balance is the number of new prompt tokens in a step at which the roofline's compute time reaches its memory time,
// found by bisection; 0 without a model.
func (s *study) balance() float64 {
	if s.model == nil {
		return 0
	}
	bound := func(n int) bool {
		compute, memory := s.model.Roofline(cost.Step{PrefillSeqs: 1, PrefillTokens: n,
			PrefillAttention: float64(n) * float64(n) / 2})
		return compute >= memory
	}
	low, high := 0, 1<<20
	if !bound(high) {
		return math.Inf(1)
	}
	for high-low > 1 {
		if mid := (low + high) / 2; bound(mid) {
			high = mid
		} else {
			low = mid
		}
	}
	return float64(high)
}

func percent(v float64) string { return harness.Percent(v, false) }

// why is the sentence of one bottleneck.
func (s *study) why(b *Bottleneck, binding Kind, focus *Focus) string {
	if b.Share == nil {
		switch b.Kind {
		case Compute, Bandwidth:
			return "not observed: without a cost model arithmetic and memory time of a step cannot be told apart"
		case Cache:
			if s.model == nil {
				return fmt.Sprintf("time not observed without a cost model; %d of %d computed prompt tokens "+
					"had been computed before",
					s.prefix.recomputed, s.prefix.computed)
			}
			return "not observed: the server does not report cached tokens"
		}
		return "not observed: " + noGauge + ", and there is no cost model"
	}
	lead, focused := percent(*b.Share)+" of the time", ""
	if b.FocusShare != nil && *b.FocusShare > 0 {
		focused = percent(*b.FocusShare) + " of " + focus.text()
	}
	if *b.Share == 0 && focused != "" {
		lead, focused = focused, ""
	} else if *b.Share == 0 {
		return map[Kind]string{
			Compute:   "no step is limited by arithmetic",
			Bandwidth: "no step is limited by memory bandwidth",
			Capacity:  "nobody waits for KV blocks or loses them",
			Scheduling: "nobody waits beside free KV blocks, no step is mostly launch overhead, and none waits for the " +
				"API server",
			Cache: "no prompt token is computed that an unlimited prefix cache would have held",
		}[b.Kind]
	}
	f := &s.facts
	text := lead + ": "
	switch b.Limit {
	case LimitArithmetic:
		text += fmt.Sprintf("steps of %.0f new tokens on average; arithmetic outlasts memory from %.0f on",
			f.tokens/max(f.steps, 1), s.balance())
	case LimitBandwidth:
		text += fmt.Sprintf("reading weights and KV takes longer than the arithmetic (%.3g ms against %.3g ms of a step)",
			1e3*f.memory.Seconds()/max(f.steps, 1), 1e3*f.compute.Seconds()/max(f.steps, 1))
	case LimitKVCapacity:
		text += fmt.Sprintf("requests wait for KV blocks or lose them (usage up to %s", percent(f.usagePeak))
		if m := s.preemptions(); m.Value != nil {
			text += fmt.Sprintf(", %.0f preemptions", *m.Value)
		}
		text += ")"
	case LimitMaxNumSeqs:
		text += fmt.Sprintf("requests wait beside free KV blocks because %d run, which is max_num_seqs", s.args.MaxNumSeqs)
	case LimitTokenBudget:
		text += fmt.Sprintf("prompts wait beside free KV blocks because steps hold max_num_batched_tokens (%d)",
			s.args.MaxNumBatchedTokens)
	case LimitLaunch:
		text += fmt.Sprintf("a step's fixed overhead (%.3g ms) and the wait for the host (%.3g ms) outlast its work",
			1e3*s.launch.Seconds(), 1e3*f.host/max(f.steps, 1))
	case LimitFrontEnd:
		text += "no step runs although requests are in flight: the API server has them"
	case LimitPrefixCache:
		text += fmt.Sprintf("%d prompt tokens were computed that an unlimited prefix cache would have held",
			s.prefix.recomputed)
		if on := s.args.EnablePrefixCaching; on != nil && !*on {
			text += "; prefix caching is off"
		}
	}
	if focused != "" {
		text += "; " + focused
	}
	if b.Kind != binding {
		text += "; does not bind, another cause takes " + percent(*b.Threshold)
	}
	return text
}

func (s *study) verdict(r *Report, share float64) string {
	switch r.Binding {
	case LightLoad:
		text := fmt.Sprintf("nothing binds: the load is too light (%s of the time", percent(share))
		if percent(*r.Idle) != percent(0) {
			text += fmt.Sprintf("; no request is in flight for %s", percent(*r.Idle))
		}
		return text + ")"
	case NotObserved:
		return "what binds was not observed: give a cost model, engine steps or the server's gauges"
	}
	return fmt.Sprintf("%s for %s of the time", bindsBy(r.Binding, r.Limit), percent(share))
}

// Why is the evidence for what binds, in a sentence.
func (r *Report) Why() string {
	if b := r.Bottleneck(r.Binding); b != nil {
		return b.Why
	}
	return r.Verdict
}

func (s *study) notes(r *Report) {
	if f := &s.facts; r.Binding == LightLoad && f.waitSeen && f.waitFull+f.waitFree > 0 {
		r.Notes = append(r.Notes, fmt.Sprintf("requests wait for %.3g s of %.3g s", (f.waitFull+f.waitFree).Seconds(),
			s.win.length().Seconds()))
	}
	if s.model == nil {
		r.Notes = append(r.Notes, "no cost model: compute, memory bandwidth and the cost of cache misses were not observed")
	}
	if !s.facts.waitSeen {
		r.Notes = append(r.Notes, "queue and KV usage over time were not observed: "+noGauge)
	}
	if s.hitShare > 0 {
		r.Notes = append(r.Notes, "the server does not say what its cache had of each request "+
			"(--enable-prompt-tokens-details does): each is taken to have hit "+harness.Percent(s.hitShare, false)+
			" of what it could, as its counters say of all")
	}
	if !s.prefix.seen {
		r.Notes = append(r.Notes, "prefix-cache hits were not observed: neither cached tokens per request "+
			"nor the server's counters")
	}
}
