package sim

import (
	"fmt"
	"math"
	"time"

	"kvtune/planner/cost"
)

// Request is what the scheduler must know of a request.
type Request struct {
	// ID names the request while it lives; any number not in use.
	ID           int
	PromptTokens int
	// MaxTokens is the number of tokens to generate (ignore_eos), at least 1.
	MaxTokens int
	// Priority is vLLM's: lower is sooner. Only the priority policy reads it.
	Priority int
	// Arrival is when the API server got the request: the priority policy's tie-break.
	Arrival time.Duration
	// Hashes are chained content hashes of the leading full blocks of prompt and output: equal hash, equal content up to
	// there. Blocks behind the last hash are private: no other request can hit them. nil: nothing is shared. The slice is
	// kept, not copied.
	Hashes []uint64
}

// Item is one request's share of a batch.
type Item struct {
	ID int
	// Tokens is how many tokens are computed, Start how many were before.
	Tokens, Start int
	// Samples is set when the step yields a token for the request: every step but a prompt's non-final chunks.
	Samples bool
	// Prefill is set when prompt tokens are computed, or more than one token of a preempted request.
	Prefill bool

	slot int32
	gen  uint32
	// member is set for a request of the lane, whose place in the batch is place.
	member bool
	place  int32
}

// Admission is a request that a batch took from the waiting queue.
type Admission struct {
	ID int
	// CachedTokens is how many tokens the prefix cache had.
	CachedTokens int
	// Resumed is set for a request that had been preempted.
	Resumed bool

	slot int32
}

// Batch is one scheduling decision: the work of one engine step. It belongs to the scheduler again after Update.
type Batch struct {
	Step cost.Step
	// Items in the order of scheduling; empty when nothing is to be computed.
	Items []Item
	// Decoding counts further requests that generate one token each, and have no Item and no Event for it: those in the
	// lane. It is 0 but in [Run].
	Decoding int
	// Preempted requests, by ID, and Admitted ones, in order.
	Preempted []int
	Admitted  []Admission

	departed []departure
}

// empty reports whether nothing is to be computed.
func (b *Batch) empty() bool { return len(b.Items) == 0 && b.Decoding == 0 }

// Event is a request's progress: one token.
type Event struct {
	ID int
	// Token is the number of tokens, 1; Output counts the request's tokens up to and with this one.
	Token, Output int
	// First and Finished mark the first and the last token.
	First, Finished bool
	// CachedTokens is how many prompt tokens the prefix cache had when the request was first admitted.
	CachedTokens int

	slot  int32
	place int32 // in the order in which a step's tokens are handed on
}

// Stats are the scheduler's counters.
type Stats struct {
	// PrefixQueries and PrefixHits are in tokens. Requests that resume after a preemption do not count.
	PrefixQueries, PrefixHits int64
	// Preemptions counts victims, ComputedTokens the tokens of all batches.
	Preemptions, ComputedTokens int64
}

// request is the scheduler's state of one request. A request lives in a slot, which is used again after its end.
type request struct {
	// Read and written at every token: kept together.
	id           int
	prompt       int
	limit        int // prompt + tokens to generate
	known        int // prompt + tokens that have arrived
	computed     int // KV positions scheduled
	placeholders int // async: sampled tokens that have not arrived
	capacity     int // KV positions in the blocks held
	nextFull     int // known tokens at which the next block is full and can be registered
	cached       int
	inFlight     int32 // items in batches that have not been updated
	stale        int32 // of those, items from before a preemption
	gen          uint32
	running      bool
	where        int8 // of a running request
	joined       int  // in the lane: the tick of its first token there
	standing          // in the lane

	registered  int // leading blocks that are hashed
	preemptions int
	priority    int
	arrival     time.Duration
	uid         uint64
	hashes      []uint64
	nodes       []int32 // the leading blocks held that can be found by their content
}

// hash is the content hash of a request's i-th block.
func (r *request) hash(i int) uint64 {
	if i < len(r.hashes) {
		return r.hashes[i]
	}
	x := r.uid<<24 + uint64(i) + 0x9e3779b97f4a7c15 // splitmix64
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Scheduler is vLLM's V1 scheduler as a state machine without time: [Scheduler.Schedule] decides a step,
// [Scheduler.Update] applies its result. With async scheduling a second batch may be scheduled before the first is
// updated; updates come in the order of scheduling. It is not safe for concurrent use.
//
// Source: vllm/v1/core/sched/{scheduler,async_scheduler,request_queue}.py and kv_cache_manager.py, vLLM 0.18 to 0.33.
// Not modelled: speculative decoding, several KV cache groups (sliding window, Mamba), LoRA limits, KV connectors.
type Scheduler struct {
	cfg       Config
	watermark int // blocks
	// Rules that changed between releases.
	countLookups, loneThreshold, passOver bool

	pool     pool
	requests []request
	spare    []int32 // free slots
	slots    map[int]int32
	running  []int32
	waiting  queue
	aside    []int32 // scratch: moved aside in this step
	hits     []int32 // scratch: the last lookup's blocks
	uids     uint64
	batches  []*Batch // not in use
	events   []Event
	stats    Stats
	lane     lane
}

// New makes an idle scheduler. The error is Validate's.
func New(cfg Config) (*Scheduler, error) {
	s := &Scheduler{slots: make(map[int]int32)}
	return s, s.reset(cfg)
}

// reset makes the scheduler what New makes, in the memory that it has.
func (s *Scheduler) reset(cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	release := cfg.release()
	s.cfg = cfg
	s.watermark = int(cfg.Watermark * float64(cfg.NumGPUBlocks))
	s.countLookups, s.loneThreshold, s.passOver = release <= 26, release <= 30, release >= 33
	s.pool.reset(cfg.NumGPUBlocks, release <= 23)
	s.lane.reset(cfg)
	clear(s.slots)
	s.spare = s.spare[:0]
	for slot := len(s.requests) - 1; slot >= 0; slot-- {
		s.spare = append(s.spare, int32(slot))
	}
	s.running, s.waiting.n, s.waiting.head = s.running[:0], 0, 0
	s.uids, s.stats = 0, Stats{}
	s.waiting.less = nil
	if cfg.Priority {
		s.waiting.less = func(a, b int32) bool {
			x, y := &s.requests[a], &s.requests[b]
			if x.priority != y.priority {
				return x.priority < y.priority
			}
			if x.arrival != y.arrival {
				return x.arrival < y.arrival
			}
			return x.id < y.id
		}
	}
	return nil
}

// Add puts a request at the end of the waiting queue (under the priority policy, at its rank). A request that the API
// server would refuse gives a *RefusedError, an ID in use another error.
func (s *Scheduler) Add(r Request) error {
	_, err := s.add(r)
	return err
}

// add gives the request's slot.
func (s *Scheduler) add(r Request) (int32, error) {
	tokens, err := s.cfg.Admit(r.PromptTokens, r.MaxTokens)
	if err != nil {
		return 0, err
	}
	if _, ok := s.slots[r.ID]; ok {
		return 0, fmt.Errorf("request %d is already there: give every living request its own ID", r.ID)
	}
	var slot int32
	if n := len(s.spare); n > 0 {
		slot, s.spare = s.spare[n-1], s.spare[:n-1]
	} else {
		slot = int32(len(s.requests))
		s.requests = append(s.requests, request{})
	}
	x := &s.requests[slot]
	s.uids++
	*x = request{
		id: r.ID, prompt: r.PromptTokens, limit: r.PromptTokens + tokens, known: r.PromptTokens,
		priority: r.Priority, arrival: r.Arrival, hashes: r.Hashes,
		uid: s.uids, gen: x.gen, nodes: x.nodes[:0],
	}
	s.slots[r.ID] = slot
	s.waiting.push(slot)
	return slot, nil
}

// Abort ends a request at once and frees its blocks; its share of batches in flight is dropped. An unknown ID is
// ignored: the request may have ended by itself.
func (s *Scheduler) Abort(id int) {
	slot, ok := s.slots[id]
	if !ok {
		return
	}
	if s.requests[slot].running {
		if s.requests[slot].where != inList {
			panic("sim: Abort does not know the lane")
		}
		for i, x := range s.running {
			if x == slot {
				s.removeRunning(i)
				break
			}
		}
	} else {
		s.waiting.remove(slot)
	}
	s.end(slot)
}

// end frees what a request holds, and its slot. The request is in no list any more.
func (s *Scheduler) end(slot int32) {
	r := &s.requests[slot]
	s.release(r)
	delete(s.slots, r.id)
	r.gen++
	r.running = false
	r.hashes = nil
	s.spare = append(s.spare, slot)
}

func (s *Scheduler) release(r *request) {
	s.pool.release(r.nodes, r.registered-len(r.nodes), s.held(r)-r.registered)
	r.nodes = r.nodes[:0]
	r.capacity, r.registered = 0, 0
}

// held is the number of blocks that a request holds.
func (s *Scheduler) held(r *request) int { return r.capacity / s.cfg.BlockSize }

func (s *Scheduler) removeRunning(i int) {
	s.running = append(s.running[:i], s.running[i+1:]...)
}

// Running and Waiting count requests; a preempted request waits.
func (s *Scheduler) Running() int { return len(s.running) + s.lane.members + len(s.lane.retired) }

// Waiting counts the requests that wait, preempted ones included.
func (s *Scheduler) Waiting() int { return s.waiting.n }

// Usage is the share of KV blocks that requests hold, 0..1: vllm:kv_cache_usage_perc.
func (s *Scheduler) Usage() float64 {
	return 1 - float64(s.pool.free)/float64(s.cfg.NumGPUBlocks-1)
}

// Stats gives the counters so far.
func (s *Scheduler) Stats() Stats { return s.stats }

// register hashes the blocks that tokens known tokens have filled, so that others find them.
func (s *Scheduler) register(r *request, tokens int) {
	full := tokens / s.cfg.BlockSize
	// A private hash is of no use to others, and to its owner only after a preemption.
	end := full
	if r.preemptions == 0 {
		end = min(end, len(r.hashes))
	}
	for i := r.registered; i < end; i++ {
		r.nodes = append(r.nodes, s.pool.register(r.hash(i)))
	}
	r.registered = full
	r.nextFull = (full + 1) * s.cfg.BlockSize
}

// never is a number of tokens that no request reaches.
const never = math.MaxInt
