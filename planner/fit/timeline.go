package fit

import (
	"cmp"
	"slices"
	"time"

	"kvtune/harness"
	"kvtune/harness/workload"
	"kvtune/planner/cost"
)

const (
	// manySteps is how many steps an observation must sum, and when a longer stretch is cut, if one of its ends lies
	// beside a step with prompts. Neighbouring steps trade time under asynchronous scheduling (the tokens of a step
	// come late by up to the next step when that one has prompts), so such an end may be off by one step; elsewhere
	// prompts are observed as sums from a step without any to a step without any.
	manySteps = 16
	// saturated is the share of a step during which its tokens arrive, beyond which the front end, not the engine, sets
	// the pace.
	saturated = 0.6
)

// request is what the reconstruction follows of a record.
type request struct {
	sent time.Duration
	// prompt is the prompt's length, left what is still to compute of it and history what lies before that; known tells
	// whether they can be trusted.
	prompt, left, history int
	known                 bool
	// first is the burst of the first token; events counts the record's token events, seen and tokens those so far.
	first, events, seen, tokens int
	// shared is the prefix that all requests of its probe have; of other requests it is not known with whom they share.
	shared int
}

// burst is the tokens of one engine step as they arrived.
type burst struct {
	// at is the arrival of the first token of a running request, or of the first token at all where none runs.
	at, first, end time.Duration
	// decodes counts the tokens of requests that were running, context sums their context lengths, expected is how many
	// were running, after how many are running behind the burst.
	decodes, context, expected, after int
	// shared sums the prefixes that the decoding requests share, longest is the longest of them.
	shared, longest int
	bad             bool
}

// timeline is a run as bursts of tokens.
type timeline struct {
	requests []request
	bursts   []burst
	// waiting are the requests in order of admission: by first token, then by sending. sent are the same in order of
	// sending, and latest[i] is the last burst in which one of sent[:i+1] got its first token.
	waiting, sent, latest []int
	budget                int
	heat                  cost.Heat
	threshold             int
}

type event struct {
	at      time.Duration
	request int
	tokens  int
}

func newTimeline(records []workload.Record, args harness.EngineArgs) *timeline {
	t := &timeline{budget: args.MaxNumBatchedTokens, threshold: args.LongPrefillTokenThreshold}
	var events []event
	var gaps []time.Duration
	for _, r := range records {
		if len(r.Tokens) == 0 {
			continue // refused, or cut before the first token
		}
		q := request{
			sent: r.Sent, prompt: r.PromptTokens, known: r.OK() && (r.CachedTokens != nil || r.SharedPrefixTokens == 0),
			first: -1, events: len(r.Tokens),
		}
		if r.CachedTokens != nil {
			q.history = *r.CachedTokens
		}
		if r.Probe != "" {
			q.shared = r.SharedPrefixTokens
		}
		q.left = q.prompt - q.history
		for i, e := range r.Tokens {
			events = append(events, event{r.Sent + e.At, len(t.requests), e.Tokens})
			if i > 0 {
				gaps = append(gaps, e.At-r.Tokens[i-1].At)
			}
		}
		t.requests = append(t.requests, q)
	}
	slices.SortStableFunc(events, func(a, b event) int { return cmp.Compare(a.at, b.at) })
	slices.Sort(gaps)
	typical := time.Millisecond
	if len(gaps) > 0 {
		typical = gaps[len(gaps)/2]
	}
	t.cluster(events, typical)
	t.order()
	return t
}

// cluster groups token events into bursts, one per engine step: a step gives every running request one token, and steps
// are further apart than the tokens of one step. typical is the median time between two tokens of a request.
func (t *timeline) cluster(events []event, typical time.Duration) {
	within := max(typical/3, 200*time.Microsecond)
	seen := make([]int, len(t.requests)) // 1 + the burst of the last token
	running := 0
	for _, e := range events {
		q := &t.requests[e.request]
		n := len(t.bursts)
		fresh := n == 0 || seen[e.request] == n
		if !fresh {
			b := &t.bursts[n-1]
			gap := e.at - b.end
			fresh = gap > within && (b.decodes >= b.expected || gap > typical)
		}
		if fresh {
			if n > 0 {
				t.bursts[n-1].after = running
			}
			t.bursts = append(t.bursts, burst{at: e.at, first: e.at, expected: running})
			n++
		}
		b := &t.bursts[n-1]
		seen[e.request] = n
		b.end = e.at
		b.bad = b.bad || e.tokens != 1
		if q.seen == 0 {
			q.first = n - 1
			running++
		} else {
			if b.decodes == 0 {
				b.at = e.at
			}
			b.decodes++
			b.context += q.prompt + q.tokens
			b.shared, b.longest = b.shared+q.shared, max(b.longest, q.shared)
		}
		q.tokens += e.tokens
		if q.seen++; q.seen == q.events {
			running--
		}
	}
	for k := range t.bursts {
		b := &t.bursts[k]
		// A running request without a token was preempted, or the bursts are not the steps.
		b.bad = b.bad || b.decodes != b.expected
		if k > 0 && float64(b.end-b.first) > saturated*float64(b.first-t.bursts[k-1].first) {
			b.bad = true
		}
	}
}

// order fills waiting, sent and latest.
func (t *timeline) order() {
	for i := range t.requests {
		t.waiting = append(t.waiting, i)
	}
	t.sent = slices.Clone(t.waiting)
	slices.SortStableFunc(t.waiting, func(a, b int) int {
		p, q := t.requests[a], t.requests[b]
		return cmp.Or(cmp.Compare(p.first, q.first), cmp.Compare(p.sent, q.sent))
	})
	slices.SortStableFunc(t.sent, func(a, b int) int { return cmp.Compare(t.requests[a].sent, t.requests[b].sent) })
	reach := -1
	for _, i := range t.sent {
		reach = max(reach, t.requests[i].first)
		t.latest = append(t.latest, reach)
	}
}

// observations walks over the bursts. Where no request waits for its first token, the time between two bursts is a step
// of pure decode. From where one is sent to one burst after the last first token, times are observed as sums.
func (t *timeline) observations(source string) []cost.Observation {
	var out []cost.Observation
	next := 0 // in waiting: the first request whose first token lies ahead
	for k := 0; k < len(t.bursts); {
		b := &t.bursts[k]
		end := t.episode(k)
		if end < 0 { // nobody waits: pure decode
			if before := &t.bursts[max(0, k-1)]; k > 0 && !b.bad && !before.bad && b.decodes > 0 {
				step := decode(b)
				step.Heat = t.heat.During(step, before.at, b.at-before.at)
				out = append(out, cost.Observation{Steps: []cost.Step{step}, Time: b.at - before.at, Source: source})
			}
			k++
			continue
		}
		last := next
		for last < len(t.waiting) && t.requests[t.waiting[last]].first <= end {
			last++
		}
		out = append(out, t.replay(k, end, t.waiting[next:last], source)...)
		next, k = last, end+1
	}
	return out
}

// episode is the burst at which the prompts that wait while step k runs, and those that arrive until they are all
// computed, have their first tokens, and one more where requests run on: the launch of a prompt holds up the tokens of
// the step before, so only the sum up to there is well known. It is -1 when nobody waits.
func (t *timeline) episode(k int) int {
	for reach := k; ; {
		// The requests sent before this burst came.
		n, _ := slices.BinarySearchFunc(t.sent, t.bursts[reach].first, func(i int, at time.Duration) int {
			return cmp.Compare(t.requests[i].sent, at)
		})
		if n == 0 || t.latest[n-1] < k {
			return -1
		}
		end := t.latest[n-1]
		if t.bursts[end].after > 0 {
			end = min(end+1, len(t.bursts)-1)
		}
		if end <= reach {
			return reach
		}
		reach = end
	}
}

func decode(b *burst) cost.Step {
	return cost.Step{DecodeSeqs: b.decodes, DecodeContext: b.context, SharedContext: b.shared - b.longest}
}

// replay cuts the prompts of queue into the steps of bursts k to end as the token budget does, first come first
// served, and sums the steps in pieces. It leaves out the pieces around a burst that is not a step, and gives nothing
// more where the bursts contradict the budget or a prompt's part is not known.
func (t *timeline) replay(k, end int, queue []int, source string) []cost.Observation {
	for _, i := range queue {
		if q := t.requests[i]; !q.known || q.left <= 0 || t.threshold > 0 && q.left > t.threshold {
			return nil
		}
	}
	var out []cost.Observation
	piece := cost.Observation{Source: source}
	var start time.Duration
	usable := true
	if k > 0 {
		start, usable = t.bursts[k-1].at, !t.bursts[k-1].bad
	}
	calm := true // whether start lies beside no step with prompts
	if t.bursts[k].expected == 0 {
		// The engine was idle: time runs from the send of a lone prompt. Of several, the server reads one after the
		// other, so that the first step's moment is not known; nor is it that of a prompt sent before the engine fell
		// idle. Time runs from the first token then.
		alone, sent := 0, t.requests[queue[0]].sent
		for _, i := range queue {
			if t.requests[i].sent < t.bursts[k].first {
				alone++
			}
		}
		start, usable = sent, alone == 1 && (k == 0 || sent > start)
		if usable {
			piece.Prompt = t.requests[queue[0]].prompt
		}
	}
	previous := start
	for j := k; j <= end; j++ {
		b := &t.bursts[j]
		usable = usable && !b.bad
		step, first := decode(b), len(piece.Steps)
		budget := t.budget - b.decodes
		for len(queue) > 0 && t.requests[queue[0]].first == j {
			q := &t.requests[queue[0]]
			if q.left > budget && step.Tokens() == 0 {
				// Nobody decodes, so the steps of the earlier chunks left no trace.
				var chunk cost.Step
				take(&chunk, q, budget)
				piece.Steps = append(piece.Steps, chunk)
				continue
			}
			if q.left > budget {
				return out
			}
			budget -= q.left
			take(&step, q, q.left)
			queue = queue[1:]
		}
		// The next prompt gets what is left, if it had arrived. Had it fitted whole, its first token would be here.
		if len(queue) > 0 && budget > 0 {
			if q := &t.requests[queue[0]]; q.sent < previous && q.left > budget {
				take(&step, q, budget)
			}
		}
		piece.Steps = append(piece.Steps, step)
		t.warm(piece.Steps[first:], previous, b.at)
		previous = b.at
		if j == end || !usable || len(piece.Steps) >= manySteps && end-j >= manySteps {
			if piece.Time = b.at - start; usable && (calm && j == end || len(piece.Steps) >= manySteps) {
				out = append(out, piece)
			}
			piece, start, usable, calm = cost.Observation{Source: source}, b.at, !b.bad, false
		}
	}
	return out
}

// warm tells steps that ran one after the other between two moments how hot the device was. Each is given its share of
// the time by its tokens, those of the weights' reading included.
func (t *timeline) warm(steps []cost.Step, from, to time.Duration) {
	const weights = 256 // tokens that take about as long as reading the weights
	all := 0
	for _, s := range steps {
		all += s.Tokens() + weights
	}
	for i := range steps {
		d := time.Duration(float64(to-from) * float64(steps[i].Tokens()+weights) / float64(all))
		steps[i].Heat = t.heat.During(steps[i], from, d)
		from += d
		all -= steps[i].Tokens() + weights
	}
}

// take computes n tokens of a prompt in a step.
func take(s *cost.Step, q *request, n int) {
	s.PrefillSeqs++
	s.PrefillTokens += n
	s.MaxChunk = max(s.MaxChunk, n)
	s.PrefillAttention += float64(n) * (float64(q.history) + float64(n)/2)
	q.left -= n
	q.history += n
}
