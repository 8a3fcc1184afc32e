// Package workload describes what is sent to a server and when: requests built from (C, M, B, block_size), a
// distribution or a trace, and the line that records what became of each of them.
//
// Everything is pure and seeded: the same description and seed give the same bytes. The package knows no network and
// no wall clock; [Schedule] decides who is due when from times that its caller supplies, so a load generator (real
// time) and a simulator (virtual time) release requests by the same rules.
//
// Read [Request] and [Workload] first, then [Record].
package workload

import (
	"slices"
	"time"
)

// Segment is a run of token ids that is the same wherever its ID appears in a run. Prompts that begin with equal
// segments share a prefix, token for token; this is how a shared system prompt, a conversation or a trace's hash blocks
// are expressed without storing token ids.
type Segment struct {
	// ID selects the content. Equal IDs have equal tokens at equal positions of the segment.
	ID uint64
	// Tokens is the length in tokens, above 0.
	Tokens int
}

// Phase says whether a request is measured.
type Phase string

const (
	// Measured requests count in every metric.
	Measured Phase = ""
	// Prime requests write the M blocks that later requests find computed. They are never measured.
	Prime Phase = "prime"
	// Warmup requests are sent like measured ones and left out of every metric.
	Warmup Phase = "warmup"
)

// Request is one request of a workload.
type Request struct {
	// Index is the position in [Workload.Requests], from 0.
	Index int
	// Due is when the request is to be sent, from the run's start. It holds in an open loop, for requests that wait for
	// nothing else (After < 0); a closed loop or a predecessor decides otherwise.
	Due time.Duration
	// After is the index of the request whose end releases this one (the turn before), or -1.
	After int
	// Think is how long after that end this request is due.
	Think time.Duration
	// Wave is a barrier: a request of wave k is released when every request of the waves below k has ended. Priming,
	// warm-up and the repetitions of a batch are waves. Due counts from the wave's release.
	Wave int
	// Phase says whether the request is primed, warm-up or measured.
	Phase Phase
	// Prompt is the prompt, in order. Its tokens are the sum over the segments.
	Prompt []Segment
	// SharedTokens is how many leading prompt tokens other requests of the run may share (M x block_size, a
	// conversation so far). What lies behind is private to this request.
	SharedTokens int
	// OutputTokens is how many tokens to generate, exactly (ignore_eos), at least 1.
	OutputTokens int
	// OutputID is the ID of the segment that the generated tokens form in the turns that follow; 0 when no turn follows.
	OutputID uint64

	// Probe names the probe that the request belongs to, "" outside probe runs.
	Probe string
	// Session names the conversation, "" for none; Turn is its turn from 0.
	Session string
	Turn    int
	// Class is the service class that an SLO may name, "" for none.
	Class string
	// Priority is vLLM's: lower is sooner; used under the priority scheduling policy only.
	Priority int
	// LoRA is the adapter to ask for, "" for none.
	LoRA string
}

// PromptTokens is the length of the prompt in tokens.
func (r *Request) PromptTokens() int {
	n := 0
	for _, s := range r.Prompt {
		n += s.Tokens
	}
	return n
}

// Workload is a finite sequence of requests and the rule by which they are released.
type Workload struct {
	// Requests in order of Index. Requests[i].Index == i.
	Requests []Request
	// Concurrency is the closed loop's number of requests in flight; 0 is an open loop, where Due holds.
	Concurrency int
	// Clients is the number of independent closed loops that share Concurrency evenly; requests are dealt to them
	// round-robin. 0 means 1.
	Clients int
	// Think is how long a slot of the closed loop stays empty before its next request is due.
	Think time.Duration
	// Duration ends the measured requests: those that would be due so long after the first wave with one of them has
	// begun, or later, are never sent. Those in flight then end as they would. 0 is no limit.
	Duration time.Duration
	// BlockSize is the KV block size in tokens for which M was meant; 0 when the workload has no M.
	BlockSize int
	// Hold is how long after the run's start the first wave with measured requests begins at the earliest.
	Hold time.Duration
	// Notes say what was changed to make the workload possible (M scaled to the context, ...), one sentence each.
	Notes []string

	// Of a shard: the workload that it is a share of, and where in that its requests are.
	whole   *Workload
	indices []int
}

// InFlight is how many requests are in flight at once at least, whatever the server: the closed loop's number, or those
// that are due at the same moment.
func (w *Workload) InFlight() int {
	type moment struct {
		wave int
		due  time.Duration
	}
	roots, together := 0, map[moment]int{}
	most := 0
	for i := range w.Requests {
		r := &w.Requests[i]
		if r.After >= 0 && w.Requests[r.After].Wave == r.Wave {
			continue
		}
		roots++
		at := moment{r.Wave, r.Due}
		together[at]++
		most = max(most, together[at])
	}
	if w.Concurrency > 0 {
		return min(w.Concurrency, roots)
	}
	return most
}

// Open reports whether arrivals set the pace of the measured requests, and not completions: an open loop in which some
// are due later than their wave's beginning or after a pause. Batches sent at once are not open.
func (w *Workload) Open() bool {
	if w.Concurrency > 0 {
		return false
	}
	return slices.ContainsFunc(w.Requests, func(r Request) bool {
		return r.Phase == Measured && (r.Due > 0 || r.Think > 0)
	})
}
