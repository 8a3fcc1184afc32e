package harness

import (
	"fmt"
	"math"
	"time"

	"kvtune/harness/hist"
	"kvtune/harness/stats"
	"kvtune/harness/workload"
)

// Meter is [Measure] for records that come one after the other, in any order, and are not kept: the same metrics with
// the same intervals. Percentiles are those of a histogram, exact to 3 digits; the interval of a throughput rests on a
// count of at least 2,048 moments of the run. [MetricDecodeLatency], which looks at all requests at once, is not
// observed. The memory does not grow with the number of records. Create it with [NewMeter].
type Meter struct {
	ttft, ttftSend, itl, tpot, e2el, e2elSend, lag latencies

	gaps                       stats.RatioMoments // sum and number of a request's gaps
	ok, failed, cachedKnown    int
	prompt, cached, out, asked int
	seen                       bool
	from, to                   time.Duration // of all measured requests
	end                        time.Duration // of those that succeeded
	flow                       flow
}

// NewMeter is a Meter without records.
func NewMeter() *Meter {
	m := &Meter{flow: flow{width: time.Millisecond}}
	for _, l := range []*latencies{&m.ttft, &m.ttftSend, &m.itl, &m.tpot, &m.e2el, &m.e2elSend, &m.lag} {
		l.h = hist.New()
	}
	return m
}

// latencies are durations of which mean and distribution are wanted.
type latencies struct {
	stats.Moments
	h *hist.Recorder
}

func (l *latencies) add(d time.Duration) {
	l.Moments.Add(d.Seconds())
	l.h.Record(d)
}

// Add takes a record. Nothing of it is kept.
func (m *Meter) Add(r *workload.Record) {
	if r.Phase != workload.Measured {
		return
	}
	if m.from, m.to = min(m.from, r.Sent), max(m.to, r.End()); !m.seen {
		m.seen, m.from, m.to = true, r.Sent, r.End()
	}
	if r.Due != nil {
		m.lag.add(r.Sent - *r.Due)
	}
	if !r.OK() {
		m.failed++
		return
	}
	m.ok++
	first, last := r.Tokens[0].At, r.Tokens[len(r.Tokens)-1].At
	late := r.Sent - r.Start()
	m.ttft.add(first + late)
	m.ttftSend.add(first)
	m.e2el.add(last + late)
	m.e2elSend.add(last)
	if r.OutputTokens > 1 {
		m.tpot.Moments.Add(tpotOf(r))
		m.tpot.h.Record((last - first) / time.Duration(r.OutputTokens-1))
	}
	if len(r.Tokens) > 1 && !r.EndsOnly {
		for i := 1; i < len(r.Tokens); i++ {
			m.itl.add(r.Tokens[i].At - r.Tokens[i-1].At)
		}
		m.gaps.Add((last - first).Seconds(), float64(len(r.Tokens)-1))
	}
	m.prompt, m.out, m.asked = m.prompt+r.PromptTokens, m.out+r.OutputTokens, m.asked+r.AskedTokens
	if r.CachedTokens != nil {
		m.cached += *r.CachedTokens
		m.cachedKnown++
	}
	m.end = max(m.end, r.End())
	m.flow.add(r)
}

// Metrics are those of the records so far.
func (m *Meter) Metrics() Metrics {
	duration := time.Duration(0)
	if m.seen {
		duration = m.to - m.from
	}
	ms := m.counts(duration)
	const oneToken = "no finished request has more than one token"
	ms = append(ms, m.ttft.metrics(MetricTTFT, m.ttft.MeanInterval(level), 0, noneFinished)...)
	ms = append(ms, m.ttftSend.metrics(MetricTTFTFromSend, m.ttftSend.MeanInterval(level), 0, noneFinished)...)
	ms = append(ms, m.itl.metrics(MetricITL, m.gaps.Interval(level), m.gaps.N(), oneToken)...)
	ms = append(ms, m.tpot.metrics(MetricTPOT, m.tpot.MeanInterval(level), 0, oneToken)...)
	ms = append(ms, m.e2el.metrics(MetricE2EL, m.e2el.MeanInterval(level), 0, noneFinished)...)
	ms = append(ms, m.e2elSend.metrics(MetricE2ELFromSend, m.e2elSend.MeanInterval(level), 0, noneFinished)...)
	ms = append(ms, m.lag.metrics(MetricSendLag, m.lag.MeanInterval(level), 0,
		"no request had an intended moment (closed loop)")...)
	if duration <= 0 || m.ok == 0 {
		ms = append(ms, noThroughputs()...)
	} else {
		ms = append(ms, rates(m.flow.parts(m.from, duration), m.ok, m.out, m.prompt, duration)...)
	}
	ms = append(ms, m.ttftSend.metrics(MetricPrefillLatency, m.ttftSend.MeanInterval(level), 0, noneFinished)...)
	var none latencies
	return append(ms, none.metrics(MetricDecodeLatency, stats.Interval{}, 0,
		"not computed where requests are not kept: it looks at all of them at once")...)
}

func (m *Meter) counts(duration time.Duration) Metrics {
	return counts{ok: m.ok, failed: m.failed, prompt: m.prompt, cached: m.cached, cachedKnown: m.cachedKnown,
		output: m.out, asked: m.asked}.metrics(duration)
}

// Histograms are the latencies that a histogram log holds, from the run's start to the last token.
func (m *Meter) Histograms() []hist.Interval {
	out := []hist.Interval{{Tag: hist.TTFT, Hist: m.ttft.h}, {Tag: hist.ITL, Hist: m.itl.h},
		{Tag: hist.TPOT, Hist: m.tpot.h}, {Tag: hist.E2E, Hist: m.e2el.h}}
	for i := range out {
		out[i].Length = m.end
	}
	return out
}

// metrics are what spread gives of the values themselves.
func (l *latencies) metrics(name string, mean stats.Interval, independent int, why string) Metrics {
	if l.N() == 0 {
		return spread(name, nil, nil, 0, why)
	}
	ms := Metrics{observed(name, StatMean, "s", l.Mean(), l.N()).within(mean)}
	held := int(l.h.Count())
	at := func(i int) float64 {
		if i >= held { // what the histogram cannot hold is longer
			return math.Inf(1)
		}
		return l.h.Ordered(int64(i)).Seconds()
	}
	for _, p := range percentiles {
		v := stats.PercentileAt(l.N(), p.p, at)
		if math.IsInf(v, 0) || math.IsNaN(v) {
			ms = append(ms, absent(name, p.stat, "s", fmt.Sprintf("above %v, the longest that the histogram holds",
				hist.Highest)))
			continue
		}
		m := observed(name, p.stat, "s", v, l.N()).within(stats.PercentileInterval(l.N(), p.p, level, independent, at))
		ms = append(ms, m.fewAbove(p.p))
	}
	return ms
}

// flow counts what happens when, by moments of equal width that grows with the run.
type flow struct {
	width time.Duration
	at    []moment
}

// moment counts requests that end, output tokens that arrive, prompt tokens whose first token arrives, and whether a
// request was sent.
type moment struct {
	ends, output, prompt float64
	begun                bool
}

// moments is the largest number of moments kept; when more are needed, two become one.
const moments = 4096

func (f *flow) of(at time.Duration) *moment {
	for at/f.width >= moments {
		f.width *= 2
		for i := 0; i < len(f.at); i += 2 {
			a := f.at[i]
			if i+1 < len(f.at) {
				b := f.at[i+1]
				a = moment{a.ends + b.ends, a.output + b.output, a.prompt + b.prompt, a.begun || b.begun}
			}
			f.at[i/2] = a
		}
		f.at = f.at[:(len(f.at)+1)/2]
	}
	i := int(max(0, at) / f.width)
	for len(f.at) <= i {
		f.at = append(f.at, moment{})
	}
	return &f.at[i]
}

// add takes a request that succeeded. Tokens that its events do not carry count where it ends.
func (f *flow) add(r *workload.Record) {
	f.of(r.End()).ends++
	f.of(r.Sent).begun = true
	f.of(r.Sent + r.Tokens[0].At).prompt += float64(r.PromptTokens)
	rest := r.OutputTokens
	for _, e := range r.Tokens {
		n := min(e.Tokens, rest)
		f.of(r.Sent + e.At).output += float64(n)
		rest -= n
	}
	f.of(r.End()).output += float64(rest)
}

// parts are the equal parts of a run; a moment that lies in two counts in both by its share of them.
func (f *flow) parts(from, duration time.Duration) shares {
	var s shares
	length := float64(duration) / parts
	for i, m := range f.at {
		low := max(0, float64(time.Duration(i)*f.width-from)/length)
		high := min(parts, float64(time.Duration(i+1)*f.width-from)/length)
		if high <= low {
			continue
		}
		for k := int(low); k < parts && float64(k) < high; k++ {
			share := (min(high, float64(k+1)) - max(low, float64(k))) / (high - low)
			s.amount[0][k] += m.ends * share
			s.amount[1][k] += m.output * share
			s.amount[2][k] += m.prompt * share
			s.begun[k] = s.begun[k] || m.begun && share > 0
		}
	}
	return s
}
