package workload

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
)

// Validate reports the first thing for which w cannot be scheduled: an index out of place, a prompt or output without
// tokens, a request that waits for a later one or for one of a higher wave.
func (w *Workload) Validate() error {
	if len(w.Requests) == 0 {
		return errors.New("workload has no requests: expected at least one")
	}
	if w.Think < 0 || w.Duration < 0 {
		return fmt.Errorf("workload has think time %v and duration %v: expected at least 0", w.Think, w.Duration)
	}
	if w.Concurrency < 0 || w.Clients < 0 || w.Clients > max(1, w.Concurrency) {
		return fmt.Errorf("workload has concurrency %d and %d clients: expected at least one request in flight per client",
			w.Concurrency, w.Clients)
	}
	for i := range w.Requests {
		r := &w.Requests[i]
		switch {
		case r.Index != i:
			return fmt.Errorf("request %d has index %d: expected its position", i, r.Index)
		case slices.ContainsFunc(r.Prompt, func(s Segment) bool { return s.Tokens < 1 }):
			return fmt.Errorf("request %d has an empty prompt segment: expected at least 1 token in each", i)
		case len(r.Prompt) == 0 || r.OutputTokens < 1:
			return fmt.Errorf("request %d has %d prompt and %d output tokens: expected at least 1 each", i, r.PromptTokens(),
				r.OutputTokens)
		case r.SharedTokens < 0 || r.SharedTokens > r.PromptTokens():
			return fmt.Errorf("request %d shares %d of %d prompt tokens: expected at most all", i, r.SharedTokens,
				r.PromptTokens())
		case r.After >= i || r.After < -1:
			return fmt.Errorf("request %d waits for request %d: expected an earlier one, or -1", i, r.After)
		case r.After >= 0 && w.Requests[r.After].Wave > r.Wave:
			return fmt.Errorf("request %d of wave %d waits for request %d of wave %d: it would wait for ever", i, r.Wave,
				r.After, w.Requests[r.After].Wave)
		case r.Due < 0 || r.Think < 0:
			return fmt.Errorf("request %d is due at %v with think time %v: expected at least 0", i, r.Due, r.Think)
		}
	}
	return nil
}

// Schedule decides which request may be sent when. It is a state machine without a clock: its caller tells it what was
// sent ([Schedule.Pop]) and what has ended ([Schedule.Done]).
//
// The rules: waves follow one another, each beginning when the last request of the one before has ended. Within a wave,
// a request with a predecessor in the same wave is due Think after that one's end. The others are due at Due from the
// wave's beginning in an open loop. In a closed loop they follow one another in order of Index as slots get free: a
// slot is held by a request and everything that waits for it (a conversation), until the last of them has ended; the
// next is due Think after that. The k-th conversation, a lone request being one, belongs to client k mod Clients, and
// each client has its own slots. What would be due after the workload's Duration is dropped: it counts as ended and is
// never given out.
//
// In an open loop nothing is allocated per call; every call takes logarithmic time at worst. It is not safe for
// concurrent use.
type Schedule struct {
	w *Workload

	// order holds the requests without predecessor by (wave, due) in an open loop, by wave in a closed one; ties by index.
	// It is nil when that is every request in order of index.
	order []int32
	next  int // the first of order that was not sent (open loop) or was not given to its client (closed loop)
	roots int // requests without predecessor

	wave  int
	begin time.Duration // of the wave
	last  time.Duration // latest end so far
	left  int           // requests of the wave that have not ended

	measured time.Duration // when the first wave with measured requests began; never before
	deadline time.Duration // of the measured requests
	dropped  []bool        // by request; nil where no duration is set
	cutShort []bool        // by root: the conversation was cut short
	over     bool          // something was dropped: so are the waves that follow
	// In an open loop the requests order[cut:resume] of this wave were dropped.
	cut, resume int

	ended int
	ready heap // released: dependents, and in a closed loop those that have a slot

	// Conversations; nil when no request has a predecessor within its wave.
	first, sibling []int32 // the first dependent of a request, the next dependent of the same request; -1 is none
	root           []int32 // the request that began the conversation
	size           []int32 // by root: requests of the conversation that have not ended

	// Closed loop.
	client  []int32   // by root: whose it is
	waiting [][]int32 // by client: its requests of this wave that have no slot yet, in order
	free    []int     // by client: free slots
	slots   []int     // by client: slots that may be filled again
}

// never is a moment that does not come.
const never = time.Duration(math.MaxInt64)

// NewSchedule makes the schedule of a workload, which must be valid ([Workload.Validate]) and must not change.
func NewSchedule(w *Workload) *Schedule {
	s := &Schedule{w: w, cut: -1, measured: never, deadline: never}
	if w.Duration > 0 {
		s.dropped, s.cutShort = make([]bool, len(w.Requests)), make([]bool, len(w.Requests))
	}
	s.link()
	sorted, previous := true, int32(-1)
	for i := range w.Requests {
		if s.dependent(i) {
			continue
		}
		s.roots++
		sorted = sorted && (previous < 0 || s.compare(previous, int32(i)) < 0)
		previous = int32(i)
	}
	if !sorted || s.roots < len(w.Requests) {
		s.order = make([]int32, 0, s.roots)
		for i := range w.Requests {
			if !s.dependent(i) {
				s.order = append(s.order, int32(i))
			}
		}
	}
	if w.Concurrency > 0 {
		s.deal() // in order of index, so before sorting
	}
	if !sorted {
		slices.SortFunc(s.order, s.compare)
	}
	if s.roots > 0 {
		s.startWave(0)
	}
	return s
}

// link builds the conversations.
func (s *Schedule) link() {
	rs := s.w.Requests
	if !slices.ContainsFunc(rs, func(r Request) bool { return s.dependent(r.Index) }) {
		return
	}
	s.first, s.sibling = make([]int32, len(rs)), make([]int32, len(rs))
	s.root, s.size = make([]int32, len(rs)), make([]int32, len(rs))
	for i := range rs {
		s.first[i], s.sibling[i], s.root[i] = -1, -1, int32(i)
		if s.dependent(i) {
			after := rs[i].After
			s.root[i] = s.root[after]
			s.sibling[i], s.first[after] = s.first[after], int32(i)
		}
		s.size[s.root[i]]++
	}
}

// dependent reports whether request i waits for another one of its wave. A predecessor in a lower wave has ended when
// the wave begins.
func (s *Schedule) dependent(i int) bool {
	r := &s.w.Requests[i]
	return r.After >= 0 && s.w.Requests[r.After].Wave == r.Wave
}

func (s *Schedule) compare(a, b int32) int {
	c := cmp.Compare(s.w.Requests[a].Wave, s.w.Requests[b].Wave)
	if c == 0 && s.w.Concurrency == 0 {
		c = cmp.Compare(s.dueIn(a), s.dueIn(b))
	}
	return cmp.Or(c, cmp.Compare(a, b))
}

// dueIn is when a request without predecessor in its wave is due, from the wave's beginning.
func (s *Schedule) dueIn(i int32) time.Duration {
	r := &s.w.Requests[i]
	if r.After >= 0 {
		return r.Think // its predecessor is in a lower wave
	}
	return r.Due
}

// deal gives the conversations to the clients.
func (s *Schedule) deal() {
	clients := max(1, s.w.Clients)
	s.waiting, s.free, s.slots = make([][]int32, clients), make([]int, clients), make([]int, clients)
	for c := range clients {
		s.free[c] = s.w.Concurrency / clients
		if c < s.w.Concurrency%clients {
			s.free[c]++
		}
		s.slots[c] = s.free[c]
	}
	s.client = make([]int32, len(s.w.Requests))
	for k := range s.roots {
		s.client[s.at(k)] = int32(k % clients)
	}
}

// at is the k-th request without predecessor.
func (s *Schedule) at(k int) int32 {
	if s.order == nil {
		return int32(k)
	}
	return s.order[k]
}

// startWave begins the wave of the next request that has no predecessor.
func (s *Schedule) startWave(at time.Duration) {
	s.wave, s.left, s.cut = s.w.Requests[s.at(s.next)].Wave, 0, -1
	if s.measured == never && s.measures() {
		at = max(at, s.w.Hold)
		s.measured = at
	}
	s.begin = at
	if s.over {
		s.deadline = min(s.deadline, at)
	}
	k := s.next
	for ; k < s.roots && s.w.Requests[s.at(k)].Wave == s.wave; k++ {
		i := s.at(k)
		if s.dropped != nil && s.deadline == never && s.w.Requests[i].Phase == Measured {
			s.deadline = at + s.w.Duration
		}
		if s.size == nil {
			s.left++
		} else {
			s.left += int(s.size[i])
		}
		if s.w.Concurrency > 0 {
			s.waiting[s.client[i]] = append(s.waiting[s.client[i]], i)
		}
	}
	if s.w.Concurrency > 0 {
		s.next = k
		for c := range s.waiting {
			for s.free[c] > 0 && len(s.waiting[c]) > 0 {
				s.free[c]--
				s.fill(c, at)
			}
		}
	} else if s.deadline < never {
		for late := s.next; late < k; late++ { // in order of time: what follows the first late one is late too
			if s.late(at + s.dueIn(s.at(late))) {
				s.cut, s.resume = late, k
				break
			}
		}
		for late := s.cut; late >= 0 && late < k; late++ {
			s.drop(s.at(late))
		}
		s.skip()
	}
	if s.left == 0 && s.next < s.roots {
		s.startWave(at) // all of it was dropped
	}
}

// measures reports whether the wave that begins has measured requests.
func (s *Schedule) measures() bool {
	for k := s.next; k < s.roots && s.w.Requests[s.at(k)].Wave == s.wave; k++ {
		if s.w.Requests[s.at(k)].Phase == Measured {
			return true
		}
	}
	return false
}

// Begin is when the first wave with measured requests began, from the run's start; ok is false before that.
func (s *Schedule) Begin() (at time.Duration, ok bool) { return s.measured, s.measured != never }

// skip passes over what was dropped of an open loop.
func (s *Schedule) skip() {
	if s.next == s.cut {
		s.next = s.resume
	}
}

// drop gives up a request and everything that waits for it in its wave.
func (s *Schedule) drop(i int32) {
	s.dropped[i], s.over = true, true
	s.ended++
	s.left--
	if s.first == nil {
		return
	}
	s.size[s.root[i]]--
	for j := s.first[i]; j >= 0; j = s.sibling[j] {
		s.drop(j)
	}
}

// late reports whether what would be due at a moment is due too late.
func (s *Schedule) late(due time.Duration) bool { return due >= s.deadline }

// fill gives a slot to a client's next request at a moment; all of the client's requests are dropped when that is late.
func (s *Schedule) fill(c int, at time.Duration) {
	if s.late(at) {
		s.dropClient(c)
		s.free[c]++
		return
	}
	s.ready.push(entry{at, s.waiting[c][0]})
	s.waiting[c] = s.waiting[c][1:]
}

func (s *Schedule) dropClient(c int) {
	for _, i := range s.waiting[c] {
		s.drop(i)
	}
	s.waiting[c] = s.waiting[c][:0]
}

// Next is the earliest request that may be sent and when it is due, from the run's start. The due moment may have
// passed. ok is false when none can be sent before some request has ended, or all were sent. Next changes nothing.
func (s *Schedule) Next() (index int, due time.Duration, ok bool) {
	e, _, ok := s.earliest()
	return int(e.index), e.due, ok
}

// earliest is what Next tells, and whether it is from ready.
func (s *Schedule) earliest() (e entry, released, ok bool) {
	if s.w.Concurrency == 0 && s.next < s.roots {
		if i := s.at(s.next); s.w.Requests[i].Wave == s.wave {
			e, ok = entry{s.begin + s.dueIn(i), i}, true
		}
	}
	if len(s.ready) > 0 && (!ok || s.ready[0].before(e)) {
		return s.ready[0], true, true
	}
	return e, false, ok
}

// Pop says that the request of Next was sent. No Done may lie between the two.
func (s *Schedule) Pop() {
	if _, released, ok := s.earliest(); released {
		s.ready.pop()
	} else if ok {
		s.next++
		s.skip()
	}
}

// Done says that a sent request has ended, well or not, at a moment from the run's start. It is called once per
// request.
func (s *Schedule) Done(index int, at time.Duration) {
	s.ended++
	s.left--
	s.last = max(s.last, at)
	root := int32(index)
	if s.first != nil {
		root = s.root[index]
		s.size[root]--
		for i := s.first[index]; i >= 0; i = s.sibling[i] {
			if due := at + s.w.Requests[i].Think; s.late(due) {
				s.drop(i)
				s.cutShort[root] = true
			} else {
				s.ready.push(entry{due, i})
			}
		}
	}
	if s.w.Concurrency > 0 && (s.size == nil || s.size[root] == 0) {
		// A conversation that was cut short goes on when all is over: its slot is not filled before.
		if c := s.client[root]; s.dropped != nil && s.cutShort[root] {
			s.free[c]++
			if s.slots[c]--; s.slots[c] == 0 {
				s.dropClient(int(c))
			}
		} else if len(s.waiting[c]) > 0 {
			s.fill(int(c), at+s.w.Think)
		} else {
			s.free[c]++
		}
	}
	if s.left == 0 && s.next < s.roots {
		s.startWave(s.last)
	}
}

// Intended reports whether the moment at which a request is due is one that somebody intends: a time of arrival, the
// beginning of a batch, the end of a pause. It is false where a request is due because a slot of a closed loop got
// free.
func (s *Schedule) Intended(index int) bool {
	return s.w.Concurrency == 0 || s.w.Think > 0 || s.dependent(index)
}

// Dropped reports whether a request was given up because the workload's Duration was over.
func (s *Schedule) Dropped(index int) bool { return s.dropped != nil && s.dropped[index] }

// Finished reports whether every request has ended or was dropped.
func (s *Schedule) Finished() bool { return s.ended == len(s.w.Requests) }

// entry is a released request.
type entry struct {
	due   time.Duration
	index int32
}

func (e entry) before(f entry) bool { return e.due < f.due || e.due == f.due && e.index < f.index }

// heap is a binary heap, the earliest entry first. container/heap would allocate on every push.
type heap []entry

func (h *heap) push(e entry) {
	q := append(*h, e)
	i := len(q) - 1
	for i > 0 {
		up := (i - 1) / 2
		if !e.before(q[up]) {
			break
		}
		q[i] = q[up]
		i = up
	}
	q[i] = e
	*h = q
}

func (h *heap) pop() {
	q := *h
	n := len(q) - 1
	e := q[n]
	q = q[:n]
	for i := 0; n > 0; {
		down := 2*i + 1
		if down+1 < n && q[down+1].before(q[down]) {
			down++
		}
		if down >= n || !q[down].before(e) {
			q[i] = e
			break
		}
		q[i] = q[down]
		i = down
	}
	*h = q
}
