package analysis

import (
	"cmp"
	"math"
	"slices"
	"sort"
	"time"

	"kvtune/harness"
	"kvtune/harness/workload"
	"kvtune/planner/cost"
)

// span is a stretch of the run in which count equal steps ran one after the other.
type span struct {
	start, length time.Duration
	count         float64
	// step is the work of one of the steps.
	step cost.Step
	// kvUsage, running and waiting are negative where unknown.
	kvUsage          float64
	running, waiting int
	preemptions      int
}

// window is the measured stretch of the run: from the first measured request's start to the last one's end.
type window struct{ from, to time.Duration }

func (w window) length() time.Duration { return w.to - w.from }

// measuredWindow spans the measured requests, or all steps where there are none.
func measuredWindow(records []workload.Record, steps []harness.StepRecord) window {
	w := window{from: math.MaxInt64}
	for i := range records {
		if r := &records[i]; r.Phase == workload.Measured {
			w.from, w.to = min(w.from, r.Start()), max(w.to, r.End())
		}
	}
	if w.from != math.MaxInt64 {
		return w
	}
	w = window{}
	for _, s := range steps {
		w.to = max(w.to, s.T+s.Elapsed)
	}
	return w
}

// clip cuts spans to the window. A span that is cut stands for the part of its steps that lies inside.
func clip(spans []span, w window) []span {
	var in []span
	for _, s := range spans {
		from, to := max(s.start, w.from), min(s.start+s.length, w.to)
		if to <= from {
			continue
		}
		s.count *= float64(to-from) / float64(s.length)
		s.start, s.length = from, to-from
		in = append(in, s)
	}
	return in
}

// placed reports whether every step has its moment. Steps of a server's log have none: what they took is known, not
// when.
func placed(steps []harness.StepRecord) bool {
	return len(steps) > 0 && !slices.ContainsFunc(steps, func(s harness.StepRecord) bool { return s.T < 0 })
}

// gap is a stretch without a step in which requests are being served: the host prepares the next one.
type gap struct {
	start, length time.Duration
	after         span // the step before
}

// gapsBetween finds the gaps between spans in which some request has had a token and will get another, or one waits.
func gapsBetween(spans []span, records []workload.Record) []gap {
	type edge struct {
		at time.Duration
		n  int
	}
	var edges []edge
	for i := range records {
		if r := &records[i]; len(r.Tokens) > 1 {
			edges = append(edges, edge{r.Sent + r.Tokens[0].At, 1}, edge{r.End(), -1})
		}
	}
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Compare(a.at, b.at) })
	var gaps []gap
	next, decoding := 0, 0
	for i := 1; i < len(spans); i++ {
		end := spans[i-1].start + spans[i-1].length
		length := spans[i].start - end
		if length <= 0 {
			continue
		}
		for ; next < len(edges) && edges[next].at <= end+length/2; next++ {
			decoding += edges[next].n
		}
		if decoding > 0 || spans[i-1].waiting > 0 {
			gaps = append(gaps, gap{end, length, spans[i-1]})
		}
	}
	return gaps
}

// fromSteps takes the spans from step records. Context lengths, which step records lack, come from the requests.
func fromSteps(steps []harness.StepRecord, records []workload.Record) []span {
	contexts := newContexts(records)
	attention := attentionPerToken(records)
	spans := make([]span, 0, len(steps))
	for _, s := range steps {
		if s.Elapsed <= 0 {
			continue
		}
		spans = append(spans, span{
			start: s.T, length: s.Elapsed, count: 1,
			step: cost.Step{
				PrefillSeqs: s.ContextRequests, PrefillTokens: s.ContextTokens,
				PrefillAttention: float64(s.ContextTokens) * attention,
				MaxChunk:         perRequest(s.ContextTokens, s.ContextRequests),
				DecodeSeqs:       s.GenerationRequests,
				DecodeContext:    int(float64(s.GenerationRequests) * contexts.mean(s.T)),
			},
			kvUsage: s.KVUsage, running: s.Running, waiting: s.Waiting, preemptions: s.Preemptions,
		})
	}
	return spans
}

// perRequest is the mean chunk of a step's prompts, which stands for the longest.
func perRequest(tokens, requests int) int {
	if requests == 0 {
		return 0
	}
	return (tokens + requests - 1) / requests
}

// contexts knows the mean context of the requests that decode at a moment. Moments must not decrease.
type contexts struct {
	changes []contextChange
	next    int
	tokens  int
	seqs    int
	typical float64
}

type contextChange struct {
	at           time.Duration
	tokens, seqs int
}

func newContexts(records []workload.Record) *contexts {
	c := &contexts{}
	prompts := 0
	for i := range records {
		r := &records[i]
		prompts += r.PromptTokens
		context := r.PromptTokens
		for j, e := range r.Tokens {
			ch := contextChange{at: r.Sent + e.At, tokens: e.Tokens}
			if j == 0 {
				ch.tokens, ch.seqs = ch.tokens+r.PromptTokens, 1
			}
			context += e.Tokens
			if j == len(r.Tokens)-1 {
				ch.tokens, ch.seqs = ch.tokens-context, ch.seqs-1
			}
			c.changes = append(c.changes, ch)
		}
	}
	if len(records) > 0 {
		c.typical = float64(prompts) / float64(len(records))
	}
	slices.SortStableFunc(c.changes, func(a, b contextChange) int { return cmp.Compare(a.at, b.at) })
	return c
}

// mean is the mean context at t in tokens; where nobody decodes, as seen by the client, the mean prompt.
func (c *contexts) mean(t time.Duration) float64 {
	for c.next < len(c.changes) && c.changes[c.next].at <= t {
		c.tokens += c.changes[c.next].tokens
		c.seqs += c.changes[c.next].seqs
		c.next++
	}
	if c.seqs == 0 {
		return c.typical
	}
	return float64(c.tokens) / float64(c.seqs)
}

// attentionPerToken is the mean over computed prompt tokens of the tokens that each attends to.
func attentionPerToken(records []workload.Record) float64 {
	var pairs, tokens float64
	for i := range records {
		r := &records[i]
		cached := 0
		if r.CachedTokens != nil {
			cached = *r.CachedTokens
		}
		fresh := float64(r.PromptTokens - cached)
		pairs += fresh * (float64(cached) + fresh/2)
		tokens += fresh
	}
	if tokens == 0 {
		return 0
	}
	return pairs / tokens
}

// fromArrivals rebuilds the steps from the arrival times of tokens. A step gives each of its requests one event, and
// serves nobody who was sent after its first event arrived: a second event of a request, or the first of a later one,
// opens the next step. Prompt tokens are put into the step of the request's first token, and what exceeds the budget of
// a step into the steps before it; where no decode marks the steps, the stretch is divided into as many as the budget
// demands. budget 0 is unknown.
func fromArrivals(records []workload.Record, series []harness.Sample, budget int) []span {
	clusters := clusterArrivals(records)
	if len(clusters) == 0 {
		return nil
	}
	var sent, ended []time.Duration
	for i := range records {
		if len(records[i].Tokens) > 0 {
			sent, ended = append(sent, records[i].Sent), append(ended, records[i].End())
		}
	}
	slices.Sort(sent)
	slices.Sort(ended)
	before := func(ts []time.Duration, t time.Duration) int {
		return sort.Search(len(ts), func(i int) bool { return ts[i] > t })
	}
	attention := attentionPerToken(records)
	contexts := newContexts(records)
	spans := make([]span, 0, len(clusters))
	var prev time.Duration
	for i, c := range clusters {
		start := prev
		if n := before(sent, prev); i == 0 || n == before(ended, prev) { // nobody in flight
			start = max(prev, sent[min(n, len(sent)-1)])
			if i == 0 {
				start = sent[0]
			}
		}
		prev = c.end
		if c.end <= start {
			continue
		}
		s := span{start: start, length: c.end - start, count: 1, kvUsage: -1, running: -1, waiting: -1}
		s.step.PrefillSeqs, s.step.PrefillTokens, s.step.DecodeSeqs = c.firsts, c.prompt, c.decodes
		spans = append(spans, s)
	}
	spreadPrefill(spans, budget)
	ends := make([]time.Duration, len(spans))
	for i := range spans {
		ends[i] = spans[i].start + spans[i].length
	}
	gauges := newGauges(series, ends)
	for i := range spans {
		s := &spans[i]
		s.step.PrefillAttention = float64(s.step.PrefillTokens) * attention
		s.step.MaxChunk = perRequest(s.step.PrefillTokens, s.step.PrefillSeqs)
		s.step.DecodeContext = int(float64(s.step.DecodeSeqs) * contexts.mean(s.start))
		s.kvUsage, s.running, s.waiting = gauges.at(s.start + s.length)
	}
	return spans
}

// cluster is the events of one step.
type cluster struct {
	begin, end              time.Duration
	firsts, prompt, decodes int
}

func clusterArrivals(records []workload.Record) []cluster {
	if slices.ContainsFunc(records, func(r workload.Record) bool { return r.EndsOnly }) {
		return nil // when most of the tokens came is not known
	}
	type event struct {
		at    time.Duration
		index int
		first bool
	}
	var events []event
	for i := range records {
		r := &records[i]
		for j, e := range r.Tokens {
			events = append(events, event{r.Sent + e.At, i, j == 0})
		}
	}
	slices.SortStableFunc(events, func(a, b event) int { return cmp.Compare(a.at, b.at) })
	var clusters []cluster
	last := make([]int, len(records)) // the cluster, from 1, in which a request was last seen
	for _, e := range events {
		r := &records[e.index]
		n := len(clusters)
		if n == 0 || last[e.index] == n || r.Sent > clusters[n-1].begin {
			clusters = append(clusters, cluster{begin: e.at})
			n++
		}
		c := &clusters[n-1]
		last[e.index] = n
		c.end = e.at
		if !e.first {
			c.decodes++
			continue
		}
		c.firsts++
		c.prompt += r.PromptTokens
		if r.CachedTokens != nil {
			c.prompt -= *r.CachedTokens
		}
	}
	return clusters
}

// spreadPrefill holds every step to the budget: the excess of a step moves to the ones before it, and a stretch without
// decodes becomes several steps.
func spreadPrefill(spans []span, budget int) {
	if budget <= 0 {
		return
	}
	carry := 0
	for i := len(spans) - 1; i >= 0; i-- {
		s := &spans[i]
		total := s.step.PrefillTokens + carry
		carry = 0
		if s.step.DecodeSeqs == 0 || i == 0 || spans[i-1].start+spans[i-1].length < s.start {
			s.count = max(1, math.Ceil(float64(total)/float64(budget)))
			s.step.PrefillTokens = int(float64(total) / s.count)
			s.step.PrefillSeqs = int(math.Ceil(float64(s.step.PrefillSeqs) / s.count))
			continue
		}
		room := max(0, budget-s.step.DecodeSeqs)
		s.step.PrefillTokens = min(total, room)
		carry = total - s.step.PrefillTokens
		if s.step.PrefillTokens > 0 {
			s.step.PrefillSeqs = max(1, s.step.PrefillSeqs)
		}
	}
}

// gauges reads the server's gauges at moments that do not decrease.
type gauges struct {
	kv, running, waiting series
}

type series struct {
	samples []harness.Sample
	next    int
}

// newGauges reads gauges of steps that end at those moments, in order. A server sets its gauges when a step has ended,
// so a sample that is taken during a long step tells of the end of the step before.
func newGauges(all []harness.Sample, ends []time.Duration) *gauges {
	pick := func(name string) series {
		var s series
		for _, x := range all {
			if x.Metric == name {
				if n := sort.Search(len(ends), func(i int) bool { return ends[i] > x.T }); n > 0 {
					x.T = ends[n-1]
				}
				s.samples = append(s.samples, x)
			}
		}
		slices.SortStableFunc(s.samples, func(a, b harness.Sample) int { return cmp.Compare(a.T, b.T) })
		return s
	}
	return &gauges{pick(harness.SeriesKVUsage), pick(harness.SeriesRunning), pick(harness.SeriesWaiting)}
}

// at gives the samples nearest to t, negative where there is none.
func (g *gauges) at(t time.Duration) (kv float64, running, waiting int) {
	return g.kv.at(t), int(g.running.at(t)), int(g.waiting.at(t))
}

func (s *series) at(t time.Duration) float64 {
	if len(s.samples) == 0 {
		return -1
	}
	for s.next+1 < len(s.samples) && (s.samples[s.next+1].T-t).Abs() <= (s.samples[s.next].T-t).Abs() {
		s.next++
	}
	return s.samples[s.next].Value
}
