package analysis

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"kvtune/harness"
	"kvtune/harness/workload"
)

// Focus is the time that a verdict is about where that is not the whole window: what the requests spent that missed an
// objective, or, without a missed one, what all requests spent where the load is light for most of the window but not
// for most of their time. A moment counts as often as requests live through it.
type Focus struct {
	// SLO is the objective that was missed, Measured what was measured in its metric's base unit; "" and nil in bursts.
	SLO      string   `json:"slo,omitempty"`
	Measured *float64 `json:"measured,omitempty"`
	// Requests is how many requests it is about, of Of measured ones.
	Requests int `json:"requests"`
	Of       int `json:"of"`
	// Share is the part of the window in which at least one of them was being kept, 0..1; Mean how long it took each of
	// them in the mean: until the first token for TTFT and queue time, from then on for TPOT and the mean ITL, between two
	// tokens for every other limit on ITL, else from begin to end.
	Share float64 `json:"share"`
	Mean  float64 `json:"mean_s"`

	shares [numCauses]float64 // of the requests' time
}

// stretch is when a request is looked at.
type stretch struct{ from, to time.Duration }

// focusOf looks for an objective that was missed, the one by the largest factor, else for bursts; nil where the whole
// window says it all. binding is what the whole window says.
func (s *study) focusOf(binding Kind) *Focus {
	if slo, m := s.missed(); m != nil {
		own := slo.Of(s.Records)
		var stretches []stretch
		requests := 0
		if singleGaps(slo) {
			stretches, requests = gapsBeyond(own, slo.Limit)
		} else {
			stretches = stretchesOf(own, slo.Metric, func(r *workload.Record) bool { return slo.MissedBy(r, s.SLOs) })
			if len(stretches) == 0 { // the limit is on a statistic that no request has by itself
				stretches = stretchesOf(own, slo.Metric, func(*workload.Record) bool { return true })
			}
			requests = len(stretches)
		}
		f := s.focusOn(stretches, true)
		if f != nil {
			f.SLO, f.Measured, f.Requests, f.Of = slo.String(), m.Value, requests, measured(own)
		}
		return f
	}
	if binding != LightLoad {
		return nil
	}
	f := s.focusOn(stretchesOf(s.Records, harness.MetricE2EL, func(*workload.Record) bool { return true }), false)
	if f == nil {
		return nil
	}
	f.Of = measured(s.Records)
	if kind, _, _ := f.largest(); kind == LightLoad || kind == NotObserved {
		return nil
	}
	return f
}

// missed is the objective on single requests that was missed by the largest factor, nil where none was.
func (s *study) missed() (worst harness.SLO, m *harness.Metric) {
	by := 0.0
	for _, slo := range s.SLOs {
		switch slo.Metric {
		case harness.MetricTTFT, harness.MetricITL, harness.MetricTPOT, harness.MetricE2EL, harness.MetricQueueTime:
		case harness.MetricGoodput:
		default: // of the server as a whole: the whole window
			continue
		}
		got, met, known := slo.Judge(s.Result.Metrics, s.Records, s.SLOs)
		if !known || met {
			continue
		}
		factor := *got.Value / slo.Limit
		if slo.AtLeast() {
			factor = slo.Limit / *got.Value
		}
		if m == nil || factor > by {
			worst, m, by = slo, got, factor
		}
	}
	return worst, m
}

// singleGaps says that an objective is on gaps between tokens one by one, the longest of which decide.
func singleGaps(slo harness.SLO) bool {
	return slo.Metric == harness.MetricITL && slo.Stat != harness.StatMean
}

// gapsBeyond are the gaps between tokens that are longer than a limit in s, and how many requests have one.
func gapsBeyond(records []workload.Record, limit float64) (all []stretch, requests int) {
	for i := range records {
		r := &records[i]
		if r.Phase != workload.Measured || !r.OK() {
			continue
		}
		before := len(all)
		for k := 1; k < len(r.Tokens); k++ {
			if st := (stretch{r.Sent + r.Tokens[k-1].At, r.Sent + r.Tokens[k].At}); (st.to - st.from).Seconds() > limit {
				all = append(all, st)
			}
		}
		if len(all) > before {
			requests++
		}
	}
	return all, requests
}

// stretchesOf are the parts of requests' lives that a metric measures.
func stretchesOf(records []workload.Record, metric string, of func(*workload.Record) bool) (all []stretch) {
	for i := range records {
		r := &records[i]
		if r.Phase != workload.Measured || !r.OK() || !of(r) {
			continue
		}
		st, first := stretch{r.Start(), r.End()}, r.Sent+r.Tokens[0].At
		switch metric {
		case harness.MetricTTFT, harness.MetricQueueTime:
			st.to = first
		case harness.MetricITL, harness.MetricTPOT:
			st.from = first
		}
		if st.to > st.from {
			all = append(all, st)
		}
	}
	return all
}

func measured(records []workload.Record) (n int) {
	for i := range records {
		if records[i].Phase == workload.Measured {
			n++
		}
	}
	return n
}

// focusOn gives the time of stretches to causes. Where an objective is missed, load is not light: what a lone step
// takes is the hardware's, and time without a step the host's.
func (s *study) focusOn(stretches []stretch, missed bool) *Focus {
	count := counts(stretches)
	var total time.Duration
	f := &Focus{Requests: len(stretches)}
	for _, st := range stretches {
		total += st.to - st.from
	}
	if total <= 0 {
		return nil
	}
	f.Mean = total.Seconds() / float64(len(stretches))
	if length := s.win.length(); length > 0 {
		f.Share = min(1, float64(count.covered())/float64(length))
	}
	left := total // in which no step runs
	give := func(c cause, t time.Duration) {
		f.shares[c] += float64(t) / float64(total)
		left -= t
	}
	for i := range s.spans {
		sp := &s.spans[i]
		within := count.within(sp.start, sp.start+sp.length)
		if within == 0 {
			continue
		}
		if s.model != nil {
			again := time.Duration(float64(within) * float64(s.recomputed(sp)) / float64(sp.length))
			give(causeCache, again)
			within -= again
		}
		c := s.causeOf(sp)
		if missed && c == causeLight {
			c = causeUnknown
			if s.model != nil {
				c = s.hardware(sp)
			}
		}
		give(c, within)
	}
	for i := range s.gaps {
		g := &s.gaps[i]
		c := s.causeOfGap(g)
		if missed && c == causeLight {
			c = causeLaunch
		}
		give(c, count.within(g.start, g.start+g.length))
	}
	switch {
	case left <= 0:
	case missed && s.model != nil:
		give(causeFrontEnd, left)
	case missed:
		give(causeUnknown, left)
	default:
		give(causeIdle, left)
	}
	return f
}

// largest is the kind that takes most of the requests' time, and the limit that takes most of that.
func (f *Focus) largest() (kind Kind, limit string, share float64) {
	kind, share = NotObserved, f.share(NotObserved)
	for _, k := range append(kinds[:], LightLoad) {
		if v := f.share(k); v > share {
			kind, share = k, v
		}
	}
	return kind, f.limitOf(kind), share
}

// limitOf is the limit that takes most of a kind's part of the requests' time, "" when none takes any.
func (f *Focus) limitOf(k Kind) string {
	limit, best := "", 0.0
	for c := range numCauses {
		if c.kind() == k && f.shares[c] > best {
			limit, best = c.limit(), f.shares[c]
		}
	}
	return limit
}

// share is that of a kind in the requests' time.
func (f *Focus) share(k Kind) (sum float64) {
	for c := range numCauses {
		if c.kind() == k {
			sum += f.shares[c]
		}
	}
	return sum
}

// text says what the focus is.
func (f *Focus) text() string {
	if f.SLO == "" {
		return "the requests' time"
	}
	slo, _ := harness.ParseSLO(f.SLO) // which wrote it
	if singleGaps(slo) {
		return fmt.Sprintf("the gaps between tokens beyond it, in %d of %d requests", f.Requests, f.Of)
	}
	what := "time"
	switch slo.Metric {
	case harness.MetricTTFT, harness.MetricQueueTime:
		what = "wait"
	case harness.MetricITL, harness.MetricTPOT:
		what = "decoding"
	}
	return fmt.Sprintf("the %s of the %d of %d requests that miss it", what, f.Requests, f.Of)
}

// Name is a word or two for it: "SLO missed", "in bursts".
func (f *Focus) Name() string {
	if f.SLO == "" {
		return "in bursts"
	}
	return "SLO missed"
}

// levels is how many stretches are under way over time: counts[i] from at[i] on.
type levels struct {
	at     []time.Duration
	counts []int
	before []time.Duration // the integral of counts up to at[i]
}

func counts(stretches []stretch) *levels {
	type edge struct {
		at time.Duration
		n  int
	}
	edges := make([]edge, 0, 2*len(stretches))
	for _, st := range stretches {
		edges = append(edges, edge{st.from, 1}, edge{st.to, -1})
	}
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Compare(a.at, b.at) })
	l := &levels{}
	n := 0
	var sum, at time.Duration
	for _, e := range edges {
		sum += time.Duration(n) * (e.at - at)
		n, at = n+e.n, e.at
		if last := len(l.at) - 1; last >= 0 && l.at[last] == at {
			l.counts[last] = n
			continue
		}
		l.at, l.counts, l.before = append(l.at, at), append(l.counts, n), append(l.before, sum)
	}
	return l
}

// until is the integral of the counts up to t.
func (l *levels) until(t time.Duration) time.Duration {
	i, found := slices.BinarySearch(l.at, t)
	if !found {
		i--
	}
	if i < 0 {
		return 0
	}
	return l.before[i] + time.Duration(l.counts[i])*(t-l.at[i])
}

func (l *levels) within(from, to time.Duration) time.Duration { return l.until(to) - l.until(from) }

// covered is how long at least one stretch is under way.
func (l *levels) covered() (d time.Duration) {
	for i := 0; i+1 < len(l.at); i++ {
		if l.counts[i] > 0 {
			d += l.at[i+1] - l.at[i]
		}
	}
	return d
}

// focused puts the focus' verdict in place of the whole window's.
func (s *study) focused(r *Report, f *Focus) {
	whole, wholeShare := r.Binding, 0.0
	for _, b := range r.Bottlenecks {
		if b.Binds && b.Share != nil {
			wholeShare = *b.Share
		}
	}
	if whole == LightLoad {
		wholeShare = *r.Light + *r.Idle
	}
	kind, limit, share := f.largest()
	r.Focus, r.Binding, r.Limit = f, kind, limit
	for i := range r.Bottlenecks {
		b := &r.Bottlenecks[i]
		b.Binds = b.Kind == kind
		if b.Share == nil {
			continue
		}
		own, other := f.share(b.Kind), f.share(NotObserved)
		for _, k := range append(kinds[:], LightLoad) {
			if k != b.Kind {
				other = max(other, f.share(k))
			}
		}
		b.FocusShare, b.Threshold = &own, &other
		if b.Binds || b.Limit == "" {
			b.Limit = f.limitOf(b.Kind)
		}
		b.Why = s.why(b, kind, f)
	}
	place := "in bursts"
	if f.SLO != "" {
		place = fmt.Sprintf("where %s is missed (%s)", f.SLO, quantity(*f.Measured, f.SLO))
	}
	if kind == NotObserved {
		r.Verdict = fmt.Sprintf("what binds %s was not observed: give a cost model, engine steps or the server's gauges",
			place)
	} else {
		r.Verdict = fmt.Sprintf("%s %s: %s of %s", bindsBy(kind, limit), place, harness.Percent(share, false), f.text())
	}
	switch whole {
	case kind, NotObserved:
	case LightLoad:
		r.Verdict += fmt.Sprintf("; the load is light for %s of the run", harness.Percent(wholeShare, false))
	default:
		r.Verdict += fmt.Sprintf("; over the whole run %s, %s of the time", whole, harness.Percent(wholeShare, false))
	}
}

// bindsBy is "scheduling binds (max_num_seqs)".
func bindsBy(kind Kind, limit string) string {
	if limit == "" || limit == string(kind) {
		return fmt.Sprintf("%s binds", kind)
	}
	return fmt.Sprintf("%s binds (%s)", kind, limit)
}

// quantity writes a value in the unit that its objective is written in.
func quantity(v float64, slo string) string {
	switch {
	case strings.HasSuffix(slo, "ms") && v < 1:
		return fmt.Sprintf("%.3g ms", 1e3*v)
	case strings.HasSuffix(slo, "ms"):
		return fmt.Sprintf("%.3g s", v)
	case strings.HasSuffix(slo, "request/s"):
		return fmt.Sprintf("%.3g request/s", v)
	}
	return fmt.Sprintf("%.3g", v)
}
