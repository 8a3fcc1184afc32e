package fit

import (
	"slices"
	"time"

	"kvtune/planner/cost"
)

// What requests tell of the front end beyond the sum that a lone one shows.

// frontEnd corrects a fitted model's front end by the timelines of the runs.
func frontEnd(m *cost.Model, all []*timeline) *cost.Model {
	var windows []window
	var events, handles []time.Duration
	for _, t := range all {
		windows = append(windows, t.arrivals(m.FrontEnd.PromptToken)...)
		events = append(events, t.events()...)
		if d, ok := t.handle(m); ok {
			handles = append(handles, d)
		}
	}
	if request, ok := within(windows); ok {
		m = m.Arriving(request)
	}
	c := *m
	if d, ok := median(events); ok {
		c.FrontEnd.Event = d
	}
	if d, ok := median(handles); ok {
		c.FrontEnd.Handle = min(d, c.FrontEnd.Request)
	}
	return &c
}

func median(all []time.Duration) (time.Duration, bool) {
	if len(all) == 0 {
		return 0, false
	}
	slices.Sort(all)
	return all[len(all)/2], true
}

// window is what is known of the time from a request's send until the scheduler saw it.
type window struct{ after, before time.Duration }

// arrivals are the windows of requests that came alone into a running batch, less the time for their prompts' tokens.
// Under asynchronous scheduling the step that ends with a burst was scheduled when the burst two before was there, and
// the request had not come when the one before that was.
func (t *timeline) arrivals(promptToken time.Duration) []window {
	var out []window
	for n, i := range t.waiting {
		q := &t.requests[i]
		k := q.first
		alone := k >= 3 && t.bursts[k].expected > 0 && t.bursts[k-3].expected > 0 && q.known &&
			q.prompt-q.history <= t.budget-t.bursts[k].expected
		for j := max(0, k-3); alone && j <= k; j++ {
			alone = !t.bursts[j].bad
		}
		for _, other := range []int{n - 1, n + 1} {
			if other >= 0 && other < len(t.waiting) &&
				max(k-t.requests[t.waiting[other]].first, t.requests[t.waiting[other]].first-k) < 4 {
				alone = false
			}
		}
		if alone {
			own := q.sent + time.Duration(q.prompt)*promptToken
			out = append(out, window{t.bursts[k-3].at - own, t.bursts[k-2].at - own})
		}
	}
	return out
}

// within is the time that lies in most windows, the middle of all such times.
func within(windows []window) (time.Duration, bool) {
	const enough = 5
	if len(windows) < enough {
		return 0, false
	}
	var edges []time.Duration
	for _, w := range windows {
		edges = append(edges, max(0, w.after), max(0, w.before))
	}
	slices.Sort(edges)
	best, low, high := 0, time.Duration(0), time.Duration(0)
	for i := 1; i < len(edges); i++ {
		middle, n := (edges[i-1]+edges[i])/2, 0
		for _, w := range windows {
			if w.after <= middle && middle <= w.before {
				n++
			}
		}
		if n > best {
			best, low = n, edges[i-1]
		}
		if n == best {
			high = edges[i]
		}
	}
	return (low + high) / 2, best > len(windows)/2
}

// events are how far apart the tokens of one step come, from steps of many requests.
func (t *timeline) events() []time.Duration {
	const many = 16
	var out []time.Duration
	for k := range t.bursts {
		if b := &t.bursts[k]; !b.bad && b.decodes >= many && b.end > b.at {
			out = append(out, (b.end-b.at)/time.Duration(b.decodes-1))
		}
	}
	return out
}

// handle is how long the server is busy with each of many requests that are sent at once to an idle one: its thread
// reads them all before it sends the first token, and they hold up the first step.
func (t *timeline) handle(m *cost.Model) (time.Duration, bool) {
	const many, atOnce = 32, 20 * time.Millisecond
	if len(t.sent) < many || len(t.bursts) == 0 {
		return 0, false
	}
	first, n, tokens := &t.requests[t.sent[0]], 0, 0
	for _, i := range t.sent {
		if q := &t.requests[i]; q.sent-first.sent < atOnce {
			n, tokens = n+1, tokens+q.prompt
		}
	}
	if n < many {
		return 0, false
	}
	lone := cost.Step{PrefillSeqs: 1, PrefillTokens: first.prompt, MaxChunk: first.prompt,
		PrefillAttention: float64(first.prompt) * float64(first.prompt) / 2}
	prepare, launch := m.HostTime(lone)
	alone := m.FrontEnd.Request + prepare + max(m.StepTime(lone), launch) + m.FrontEnd.Token
	d := (t.bursts[0].first - first.sent - alone - time.Duration(tokens)*m.FrontEnd.PromptToken) / time.Duration(n)
	return d, d > 0
}
