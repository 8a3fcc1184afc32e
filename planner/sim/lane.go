package sim

import (
	"cmp"
	"math/bits"
	"slices"
)

// lane holds the running requests that do nothing but decode. Every batch has one token for each of them, without an
// Item and without an Event: what a member has is its state when it joined and the number of batches since. A member is
// looked at only when something happens to it, every block_size tokens or so: it needs a block, it fills a block that
// others can hit, or its last token is scheduled. So a step costs what happens in it, not what runs in it.
//
// Members stand in front of all other running requests, in order of seq, so the budget always reaches them and blocks
// are taken in vLLM's order. Where a step would not be so simple (it must preempt, or the budget is below the number of
// members) the lane disbands, the step is decided request by request, and who only decodes joins again.
//
// With asynchronous scheduling the lane relies on [Run]'s order of calls: exactly one batch is in flight at Schedule.
type lane struct {
	on      bool
	members int
	context int // sum over the members of the context of their next token
	tick    int // batches so far that had tokens of members
	// wheel has the members by the tick at which something happens, at least one and at most block_size from now.
	wheel [][]int32
	// retired are requests whose last token is in a batch that has not been updated: they run, but not in running.
	retired []int32
	seqs    uint64
	gone    []exit // the latest, in order; dropped more were before them
	dropped int
	flight  *Batch // the last batch with tokens of members, until its update
	lag     int    // tokens by which the known ones are behind the computed ones after Schedule: 1 with async scheduling
	scratch []int32
}

// Where a running request is.
const (
	inList int8 = iota // in Scheduler.running, or it waits
	inLane
	retired
)

// departure is a request that left the lane, and how many tokens it got there in the steps that have landed.
type departure struct {
	slot   int32
	tokens int
	joined int
	standing
}

// standing tells how many members stand before a request.
type standing struct {
	seq    uint64 // order in the lane
	before int32  // when it joined
	gone   int    // Scheduler.lane.gone that are accounted for
}

// exit is a member that was last in the batch of a tick.
type exit struct {
	tick int
	seq  uint64
}

// place is how many members stood before a request in the batch of a tick. It is asked in order of ticks.
func (l *lane) place(s *standing, tick int) int32 {
	for ; s.gone < l.dropped+len(l.gone); s.gone++ {
		x := l.gone[s.gone-l.dropped]
		if x.tick >= tick {
			break
		}
		if x.seq < s.seq {
			s.before--
		}
	}
	return s.before
}

// exits notes that a member has its last token there in this tick's batch. No request looks back further than
// max_model_len ticks.
func (l *lane) exits(seq uint64, maxModelLen int) {
	if n := len(l.gone); n > 1024 && l.gone[n/2].tick < l.tick-maxModelLen {
		l.dropped += n / 2
		l.gone = l.gone[:copy(l.gone, l.gone[n/2:])]
	}
	l.gone = append(l.gone, exit{l.tick, seq})
}

func (l *lane) reset(cfg Config) {
	n := 1 << bits.Len(uint(cfg.BlockSize)) // above block_size
	for i := range l.wheel {
		l.wheel[i] = l.wheel[i][:0]
	}
	if len(l.wheel) < n {
		l.wheel = slices.Grow(l.wheel, n-len(l.wheel))
	}
	*l = lane{on: l.on, wheel: l.wheel[:n], retired: l.retired[:0], gone: l.gone[:0], scratch: l.scratch[:0]}
	if cfg.AsyncScheduling {
		l.lag = 1
	}
}

func (l *lane) at(tick int) *[]int32 { return &l.wheel[tick&(len(l.wheel)-1)] }

// next is how many ticks from now something happens to a member that has computed c positions.
func (s *Scheduler) next(r *request, c int) int {
	n := min(r.capacity, r.limit-2) - c
	if s.sharesOn(r) {
		n = min(n, r.nextFull-1+s.lane.lag-c)
	}
	return n
}

// sharesOn reports whether blocks that the request still has to fill will be registered.
func (s *Scheduler) sharesOn(r *request) bool {
	return s.cfg.EnablePrefixCaching && (r.preemptions > 0 || r.registered < len(r.hashes))
}

// recruit lets the running requests that only decode from now on join: those in front of the list, in order. fresh are
// the items of this batch for the list.
func (s *Scheduler) recruit(fresh []Item) {
	n := 0
	for n < len(s.running) && n < len(fresh) && s.running[n] == fresh[n].slot && fresh[n].Samples {
		r := &s.requests[s.running[n]]
		if r.stale > 0 {
			break
		}
		if r.computed+2 <= r.limit {
			s.join(s.running[n])
		} else { // it has been given its last token
			s.retire(s.running[n])
		}
		n++
	}
	if n > 0 {
		s.running = s.running[:copy(s.running, s.running[n:])]
	}
}

func (s *Scheduler) retire(slot int32) {
	r := &s.requests[slot]
	s.lane.seqs++
	r.seq, r.where = s.lane.seqs, retired
	s.lane.retired = append(s.lane.retired, slot)
}

func (s *Scheduler) join(slot int32) {
	l, r := &s.lane, &s.requests[slot]
	l.seqs++
	r.joined, r.where = l.tick, inLane
	r.standing = standing{l.seqs, int32(l.members), l.dropped + len(l.gone)}
	l.members++
	l.context += r.computed + 1
	to := l.at(l.tick + s.next(r, r.computed))
	*to = append(*to, slot)
}

// leave brings a member's state up to date and gives it Items again, also in the batch in flight.
func (s *Scheduler) leave(b *Batch, slot int32) {
	l, r := &s.lane, &s.requests[slot]
	n := l.tick - r.joined
	r.computed += n
	r.known += n
	r.where = inList
	l.members--
	l.context -= r.computed + 1
	if n > 0 {
		if full := r.computed - l.lag; full >= r.nextFull {
			s.register(r, full)
		}
	}
	landed, flying := n, n > 0 && l.flight != nil
	if flying {
		landed--
	}
	if landed > 0 {
		b.departed = append(b.departed, departure{slot, landed, r.joined, r.standing})
	}
	if !flying {
		return
	}
	r.known--
	r.placeholders += l.lag
	r.inFlight++
	l.flight.Decoding--
	it := extend(&l.flight.Items)
	*it = Item{ID: r.id, Tokens: 1, Start: r.computed - 1, Samples: true, slot: slot, gen: r.gen,
		member: true, place: l.place(&r.standing, l.tick-1)}
}

// coasts reports whether a step can serve the members and the others without preemption.
func (s *Scheduler) coasts(budget, threshold int) bool {
	l := &s.lane
	if l.members > budget {
		return false
	}
	need := len(*l.at(l.tick))
	for _, slot := range s.running {
		r := &s.requests[slot]
		want := min(r.known+r.placeholders-r.computed, threshold, budget)
		need += max(0, s.blocksFor(r.computed+want)-s.held(r))
	}
	return need <= s.pool.free
}

// coast gives every member its token.
func (s *Scheduler) coast(b *Batch) {
	l := &s.lane
	now := l.at(l.tick)
	due := *now
	for i := 1; i < len(due); i++ { // nearly sorted
		for j := i; j > 0 && s.requests[due[j-1]].seq > s.requests[due[j]].seq; j-- {
			due[j-1], due[j] = due[j], due[j-1]
		}
	}
	for _, slot := range due {
		r := &s.requests[slot]
		c := r.computed + l.tick - r.joined
		if c+2 >= r.limit {
			s.leave(b, slot)
			if r.computed == r.capacity {
				s.allocate(r, 1)
			}
			it := s.include(b, slot, 1)
			it.member, it.place = true, l.place(&r.standing, l.tick)
			l.exits(r.seq, s.cfg.MaxModelLen)
			r.where = retired
			l.retired = append(l.retired, slot)
			continue
		}
		if c == r.capacity {
			s.allocate(r, 1)
		}
		if full := c + 1 - l.lag; full >= r.nextFull && s.sharesOn(r) {
			s.register(r, full)
		}
		to := l.at(l.tick + 1 + s.next(r, c+1))
		*to = append(*to, slot)
	}
	*now = due[:0]
	if l.members == 0 {
		return
	}
	b.Decoding = l.members
	b.Step.DecodeSeqs += l.members
	b.Step.DecodeContext += l.context
	s.stats.ComputedTokens += int64(l.members)
	l.context += l.members
	l.tick++
	l.flight = b
}

// disband puts all members back into the list of running requests.
func (s *Scheduler) disband(b *Batch) {
	l := &s.lane
	all := append(l.scratch[:0], l.retired...)
	for i := range l.wheel {
		all = append(all, l.wheel[i]...)
		l.wheel[i] = l.wheel[i][:0]
	}
	slices.SortFunc(all, func(x, y int32) int { return cmp.Compare(s.requests[x].seq, s.requests[y].seq) })
	for _, slot := range all {
		if s.requests[slot].where == inLane {
			s.leave(b, slot)
		}
		s.requests[slot].where = inList
	}
	l.retired = l.retired[:0]
	all = append(all, s.running...)
	s.running, l.scratch = all, s.running
}
