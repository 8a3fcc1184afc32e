package harness

import (
	"cmp"
	"math"
	"slices"
	"sort"
	"time"

	"kvtune/harness/stats"
	"kvtune/harness/workload"
)

// Measure computes the metrics of a run from its request records, measured or simulated; records outside the measured
// phase are left out. It is the only place where TTFT, ITL, TPOT, E2EL and throughput are computed; the definitions
// stand at the metrics' names ([MetricTTFT] and the others). The order of the metrics is fixed, and a metric that the
// records cannot give is there as "not observed".
//
// Intervals are 95 %: Student's t for means over requests, order statistics for percentiles, Wilson's for the error
// rate, the spread over ten parts of the run for throughput. Gaps within a request are not independent: intervals of
// ITL count requests, not gaps.
func Measure(records []workload.Record) Metrics {
	var ok []*workload.Record
	var ttft, ttftSend, e2el, e2elSend, tpot, lag []float64
	var gaps, gapSums, gapCounts []float64
	var prompt, cached, output, asked, cachedKnown, failed int
	for i := range records {
		r := &records[i]
		if r.Phase != workload.Measured {
			continue
		}
		if r.Due != nil {
			lag = append(lag, (r.Sent - *r.Due).Seconds())
		}
		if !r.OK() {
			failed++
			continue
		}
		ok = append(ok, r)
		first, last := r.Tokens[0].At, r.Tokens[len(r.Tokens)-1].At
		late := r.Sent - r.Start()
		ttft = append(ttft, (first + late).Seconds())
		ttftSend = append(ttftSend, first.Seconds())
		e2el = append(e2el, (last + late).Seconds())
		e2elSend = append(e2elSend, last.Seconds())
		if r.OutputTokens > 1 {
			tpot = append(tpot, tpotOf(r))
		}
		if len(r.Tokens) > 1 && !r.EndsOnly {
			gaps = append(gaps, gapsOf(r)...)
			gapSums = append(gapSums, (last - first).Seconds())
			gapCounts = append(gapCounts, float64(len(r.Tokens)-1))
		}
		prompt += r.PromptTokens
		output += r.OutputTokens
		asked += r.AskedTokens
		if r.CachedTokens != nil {
			cached += *r.CachedTokens
			cachedKnown++
		}
	}

	from, duration := window(records)
	ms := counts{ok: len(ok), failed: failed, prompt: prompt, cached: cached, cachedKnown: cachedKnown, output: output,
		asked: asked}.metrics(duration)

	const oneToken = "no finished request has more than one token"
	gapMean := func(stats.Sample) stats.Interval { return stats.RatioInterval(gapSums, gapCounts, level) }
	ms = append(ms, spread(MetricTTFT, ttft, tInterval, 0, noneFinished)...)
	ms = append(ms, spread(MetricTTFTFromSend, ttftSend, tInterval, 0, noneFinished)...)
	ms = append(ms, spread(MetricITL, gaps, gapMean, len(gapSums), oneToken)...)
	ms = append(ms, spread(MetricTPOT, tpot, tInterval, 0, oneToken)...)
	ms = append(ms, spread(MetricE2EL, e2el, tInterval, 0, noneFinished)...)
	ms = append(ms, spread(MetricE2ELFromSend, e2elSend, tInterval, 0, noneFinished)...)
	ms = append(ms, spread(MetricSendLag, lag, tInterval, 0, "no request had an intended moment (closed loop)")...)
	ms = append(ms, throughputs(ok, from, duration)...)
	ms = append(ms, spread(MetricPrefillLatency, ttftSend, tInterval, 0, noneFinished)...)
	return append(ms, decodeLatency(records)...)
}

// counts are sums over the measured requests.
type counts struct{ ok, failed, prompt, cached, cachedKnown, output, asked int }

func (c counts) metrics(duration time.Duration) Metrics {
	ms := Metrics{
		observed(MetricRequests, StatOK, "request", float64(c.ok), 0),
		observed(MetricRequests, StatFail, "request", float64(c.failed), 0),
	}
	n := c.ok + c.failed
	if n == 0 {
		ms = append(ms, absent(MetricErrorRate, "", "ratio", "no measured request"))
	} else {
		ms = append(ms, observed(MetricErrorRate, "", "ratio", float64(c.failed)/float64(n), n).
			within(stats.ShareInterval(c.failed, n, level)))
	}
	if duration > 0 {
		ms = append(ms, observed(MetricDuration, "", "s", duration.Seconds(), 0))
	} else {
		ms = append(ms, absent(MetricDuration, "", "s", noneFinished))
	}
	ms = append(ms, observed(MetricPromptTokens, StatTotal, "token", float64(c.prompt), c.ok))
	if c.cachedKnown == c.ok && c.cachedKnown > 0 {
		ms = append(ms, observed(MetricCachedTokens, StatTotal, "token", float64(c.cached), c.cachedKnown))
	} else {
		ms = append(ms, absent(MetricCachedTokens, StatTotal, "token", "the server does not report it per request"))
	}
	return append(ms,
		observed(MetricOutputTokens, StatTotal, "token", float64(c.output), c.ok),
		observed(MetricAskedTokens, StatTotal, "token", float64(c.asked), c.ok))
}

const noneFinished = "no measured request finished"

// tpotOf is a request's time per output token in seconds; 0 for a single token.
func tpotOf(r *workload.Record) float64 {
	if r.OutputTokens < 2 {
		return 0
	}
	return (r.Tokens[len(r.Tokens)-1].At - r.Tokens[0].At).Seconds() / float64(r.OutputTokens-1)
}

// gapsOf are the gaps between a request's events in seconds; none where not all events are known.
func gapsOf(r *workload.Record) []float64 {
	if r.EndsOnly {
		return nil
	}
	gaps := make([]float64, 0, len(r.Tokens))
	for i := 1; i < len(r.Tokens); i++ {
		gaps = append(gaps, (r.Tokens[i].At - r.Tokens[i-1].At).Seconds())
	}
	return gaps
}

// window is the measured window: from the first send to the last token of a measured request, failed ones included.
func window(records []workload.Record) (from, length time.Duration) {
	from, to := time.Duration(math.MaxInt64), time.Duration(math.MinInt64)
	for i := range records {
		if r := &records[i]; r.Phase == workload.Measured {
			from, to = min(from, r.Sent), max(to, r.End())
		}
	}
	if to <= from {
		return 0, 0
	}
	return from, to - from
}

// throughputs are what finished requests amount to per second. The interval is Student's t over ten equal parts of the
// run (the method of batch means): a request counts where it ends, output tokens where they arrive, prompt tokens where
// the first token arrives. The mean over equal parts is the throughput itself, so the interval is centred on it;
// ramp-up and the tail of a closed batch widen it.
func throughputs(ok []*workload.Record, from, duration time.Duration) Metrics {
	if duration <= 0 || len(ok) == 0 {
		return noThroughputs()
	}
	var s shares
	part := func(at time.Duration) int {
		return min(int(float64(at-from)/float64(duration)*parts), parts-1)
	}
	output, prompt := 0, 0
	for _, r := range ok {
		// A server that does not stream exact counts may report more tokens than its events carry: the rest is put where
		// the request ends, so that the parts add up to the total.
		rest := r.OutputTokens
		for _, e := range r.Tokens {
			n := min(e.Tokens, rest)
			s.amount[1][part(r.Sent+e.At)] += float64(n)
			rest -= n
		}
		s.amount[1][part(r.End())] += float64(rest)
		s.amount[2][part(r.Sent+r.Tokens[0].At)] += float64(r.PromptTokens)
		s.begun[part(r.Sent)] = true
		s.amount[0][part(r.End())]++
		output, prompt = output+r.OutputTokens, prompt+r.PromptTokens
	}
	return rates(s, len(ok), output, prompt, duration)
}

// throughputNames are the metrics of throughput with their units.
var throughputNames = [...][2]string{{MetricRequestThroughput, "request/s"}, {MetricOutputThroughput, "token/s"},
	{MetricTotalThroughput, "token/s"}}

func noThroughputs() (ms Metrics) {
	for _, n := range throughputNames {
		ms = append(ms, absent(n[0], "", n[1], noneFinished))
	}
	return ms
}

// parts is how many equal parts of a run the interval of a throughput rests on.
const parts = 10

// shares are what happened in each part: requests that ended, output tokens, prompt tokens; and whether a request was
// sent.
type shares struct {
	amount [len(throughputNames)][parts]float64
	begun  [parts]bool
}

// rates are the throughputs of n requests.
func rates(s shares, n, output, prompt int, duration time.Duration) (ms Metrics) {
	total := [...]float64{float64(n), float64(output), float64(output + prompt)}
	for i, name := range throughputNames {
		m := observed(name[0], "", name[1], total[i]/duration.Seconds(), n)
		switch {
		case n < 2*parts:
			m.Note = "too few requests for an interval"
		case slices.Contains(s.begun[:parts-2], false):
			// Parts of a burst differ because it is one, not by chance.
			m.Note = "no interval: requests came in bursts, not steadily"
		default:
			each := make([]float64, parts)
			for k := range each {
				amount := s.amount[i][k]
				if i == 2 {
					amount += s.amount[1][k]
				}
				each[k] = amount * parts / duration.Seconds()
			}
			iv := stats.New(each).MeanInterval(level)
			iv.Low = max(0, iv.Low)
			m = m.within(iv)
		}
		ms = append(ms, m)
	}
	return ms
}

// decodeWindow finds the steps in which the whole batch decodes. batch is the largest number of finished measured
// requests that are between their first and their last token at the same moment; gaps are the times in seconds between
// consecutive events of a request that lie wholly in such moments. In a decode profile batch is B and every gap is one
// step of B sequences. It is 0 and nil when no request has two events.
func decodeWindow(records []workload.Record) (batch int, gaps []float64) {
	type edge struct {
		at    time.Duration
		delta int
	}
	var edges []edge
	for i := range records {
		r := &records[i]
		if r.Phase != workload.Measured || !r.OK() || r.EndsOnly || len(r.Tokens) < 2 || r.Tokens[0].At == r.End()-r.Sent {
			continue
		}
		edges = append(edges, edge{r.Sent + r.Tokens[0].At, +1}, edge{r.End(), -1})
	}
	// At one moment, ends come before starts: a request that begins as another ends does not decode beside it.
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Or(cmp.Compare(a.at, b.at), a.delta-b.delta) })
	active := 0
	for _, e := range edges {
		active += e.delta
		batch = max(batch, active)
	}
	type span struct{ from, to time.Duration }
	var full []span
	active = 0
	for _, e := range edges {
		if active == batch && e.delta < 0 {
			full[len(full)-1].to = e.at
		}
		active += e.delta
		if active == batch && batch > 0 {
			if k := len(full); k > 0 && full[k-1].to == e.at {
				continue // one left and another came at the same moment: still full
			}
			full = append(full, span{from: e.at})
		}
	}
	for i := range records {
		r := &records[i]
		if r.Phase != workload.Measured || !r.OK() || r.EndsOnly {
			continue
		}
		for j := 1; j < len(r.Tokens); j++ {
			from, to := r.Sent+r.Tokens[j-1].At, r.Sent+r.Tokens[j].At
			k := sort.Search(len(full), func(k int) bool { return full[k].to > from })
			if k < len(full) && full[k].from <= from && to <= full[k].to && to > from {
				gaps = append(gaps, (to - from).Seconds())
			}
		}
	}
	return batch, gaps
}

// decodeLatency gives the gaps of the decode window. The batch shares its steps, so the number of independent values
// is the number of steps, not of gaps.
func decodeLatency(records []workload.Record) Metrics {
	batch, gaps := decodeWindow(records)
	steps := 0
	if batch > 0 {
		steps = len(gaps) / batch
	}
	mean := func(s stats.Sample) stats.Interval {
		// t interval of the mean with the steps as sample size: sd/sqrt(steps) instead of sd/sqrt(gaps).
		iv := s.MeanInterval(level)
		if steps < 2 {
			return stats.Interval{Low: math.NaN(), High: math.NaN()}
		}
		wider := math.Sqrt(float64(s.N()) / float64(steps))
		return stats.Interval{Low: s.Mean() - (s.Mean()-iv.Low)*wider, High: s.Mean() + (iv.High-s.Mean())*wider}
	}
	return spread(MetricDecodeLatency, gaps, mean, max(steps, 1), "no moment in which requests decode together")
}
