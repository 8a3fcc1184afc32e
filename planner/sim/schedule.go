package sim

import (
	"slices"

	"kvtune/planner/cost"
)

// Schedule decides the next step: running requests first, in order of admission, then waiting ones. The batch has no
// items when nothing can be computed now. Every batch must be given to Update, in order.
func (s *Scheduler) Schedule() *Batch {
	var b *Batch
	if n := len(s.batches); n > 0 {
		b, s.batches = s.batches[n-1], s.batches[:n-1]
		*b = Batch{Items: b.Items[:0], Preempted: b.Preempted[:0], Admitted: b.Admitted[:0], departed: b.departed[:0]}
	} else {
		b = new(Batch)
	}
	threshold, budget := s.threshold(), s.cfg.budget()
	if s.lane.members+len(s.lane.retired) > 0 {
		if s.coasts(budget, threshold) {
			s.coast(b)
		} else {
			s.disband(b)
		}
		budget -= b.Step.DecodeSeqs
	}
	listed := len(b.Items)
	budget = s.scheduleRunning(b, budget, threshold)
	if len(b.Preempted) == 0 {
		s.scheduleWaiting(b, budget, threshold)
	}
	if s.lane.on {
		s.recruit(b.Items[listed:])
	}
	b.Step.SharedContext = min(s.pool.again*s.cfg.BlockSize, b.Step.DecodeContext)
	return b
}

// threshold is how many tokens of one prompt a step may compute.
func (s *Scheduler) threshold() int {
	threshold, requests := s.cfg.LongPrefillTokenThreshold, s.Running()+s.Waiting()
	if threshold == 0 || !s.loneThreshold && requests <= 1 {
		return never
	}
	if s.cfg.LongPrefillTokenThresholdAdaptive {
		return max(threshold, s.cfg.MaxNumBatchedTokens/max(1, requests))
	}
	return threshold
}

// scheduleRunning is the first phase; it returns the token budget that is left.
func (s *Scheduler) scheduleRunning(b *Batch, budget, threshold int) int {
	for i := 0; i < len(s.running) && budget > 0; {
		slot := s.running[i]
		r := &s.requests[slot]
		if r.placeholders > 0 && r.computed+2-r.placeholders >= r.limit {
			i++ // its last token is in flight
			continue
		}
		want := min(r.known+r.placeholders-r.computed, s.cfg.MaxModelLen-r.computed-1)
		if want > 1 {
			want = min(want, threshold, budget)
		}
		if want <= 0 {
			i++
			continue
		}
		if r.computed+want > r.capacity {
			need := s.blocksFor(r.computed+want) - s.held(r)
			fits := true
			for fits && s.pool.free < need {
				v := s.victim()
				fits = s.running[v] != slot
				if v < i {
					i--
					budget += s.drop(b, s.running[v])
				}
				s.preempt(b, v)
			}
			if !fits {
				if s.cfg.Priority && s.passOver {
					continue
				}
				break
			}
			s.allocate(r, need)
		}
		s.include(b, slot, want)
		budget -= want
		i++
	}
	return budget
}

// scheduleWaiting is the second phase: it admits from the head of the queue until something does not fit.
func (s *Scheduler) scheduleWaiting(b *Batch, budget, threshold int) {
	s.aside = s.aside[:0]
	for budget > 0 && s.waiting.n > 0 && s.Running() < s.cfg.active() {
		slot := s.waiting.peek()
		r := &s.requests[slot]
		if r.stale > 0 {
			// Output from before its preemption is still to come.
			s.aside = append(s.aside, s.waiting.pop())
			continue
		}
		hits, idle := s.lookup(r)
		cached := hits * s.cfg.BlockSize
		if s.countLookups {
			s.countPrefix(r, cached)
		}
		want := min(r.known-cached, threshold)
		if want > budget {
			if !s.cfg.EnableChunkedPrefill {
				break
			}
			want = budget
		}
		held := hits - idle // blocks that cost nothing: others hold them
		spare := s.pool.free
		if s.Running() > 0 {
			spare -= s.watermark
		}
		if s.cfg.ReserveFullISL && s.blocksFor(r.known)-held > spare || s.blocksFor(cached+want)-held > spare {
			break
		}
		s.waiting.pop()
		s.running = append(s.running, slot)
		r.running = true
		for _, x := range s.hits {
			s.pool.touch(x)
		}
		r.nodes = append(r.nodes, s.hits...)
		r.computed, r.registered, r.capacity = cached, hits, cached
		r.nextFull = never
		if s.cfg.EnablePrefixCaching {
			r.nextFull = cached + s.cfg.BlockSize
		}
		if !s.countLookups {
			s.countPrefix(r, cached)
		}
		if r.preemptions == 0 {
			r.cached = cached
		}
		b.Admitted = append(b.Admitted, Admission{r.id, cached, r.preemptions > 0, slot})
		s.allocate(r, s.blocksFor(cached+want)-hits)
		s.include(b, slot, want)
		budget -= want
	}
	for _, slot := range slices.Backward(s.aside) {
		s.waiting.prepend(slot)
	}
}

func (s *Scheduler) blocksFor(tokens int) int {
	return (tokens + s.cfg.BlockSize - 1) / s.cfg.BlockSize
}

// lookup puts the leading cached blocks into s.hits and says how many they are and how many of them nobody holds.
// The last known token is always computed anew, and with it its block.
func (s *Scheduler) lookup(r *request) (hits, idle int) {
	s.hits = s.hits[:0]
	if !s.cfg.EnablePrefixCaching {
		return 0, 0
	}
	n := (r.known - 1) / s.cfg.BlockSize
	if r.preemptions == 0 {
		n = min(n, len(r.hashes))
	}
	for i := range n {
		x := s.pool.find(r.hash(i))
		if x == 0 {
			break
		}
		s.hits = append(s.hits, x)
		if s.pool.nodes[x].ref == 0 {
			idle++
		}
	}
	return len(s.hits), idle
}

func (s *Scheduler) countPrefix(r *request, cached int) {
	if r.preemptions == 0 && s.cfg.EnablePrefixCaching {
		s.stats.PrefixQueries += int64(r.known)
		s.stats.PrefixHits += int64(cached)
	}
}

// allocate gives r n free blocks.
func (s *Scheduler) allocate(r *request, n int) {
	s.pool.take(n)
	r.capacity += n * s.cfg.BlockSize
}

// include adds want tokens of a request to the batch. They count as computed from now on, and the blocks they fill can
// be hit: the step writes them before a later request of the same step reads them.
func (s *Scheduler) include(b *Batch, slot int32, want int) *Item {
	r := &s.requests[slot]
	start := r.computed
	r.computed = start + want
	r.inFlight++
	if full := min(r.computed, r.known); full >= r.nextFull {
		s.register(r, full)
	}
	samples := r.computed >= r.known+r.placeholders
	if samples && s.cfg.AsyncScheduling {
		r.placeholders++
	}
	it := extend(&b.Items)
	it.ID, it.Tokens, it.Start = r.id, want, start
	it.Samples, it.Prefill = samples, want > 1 || start < r.prompt
	it.slot, it.gen, it.member = slot, r.gen, false
	it.addTo(&b.Step, 1)
	s.stats.ComputedTokens += int64(want)
	return it
}

// extend makes room for one more element, to be filled in place: building and copying it took half of a run's time.
func extend[T any](list *[]T) *T {
	n := len(*list)
	if n == cap(*list) {
		*list = slices.Grow(*list, 1)
	}
	*list = (*list)[:n+1]
	return &(*list)[n]
}

// addTo adds sign times the item's work to a step.
func (it *Item) addTo(step *cost.Step, sign int) {
	if !it.Prefill {
		step.DecodeSeqs += sign
		step.DecodeContext += sign * (it.Start + 1)
		return
	}
	step.PrefillSeqs += sign
	step.PrefillTokens += sign * it.Tokens
	step.MaxChunk = max(step.MaxChunk, it.Tokens)
	step.PrefillAttention += float64(sign*it.Tokens) * (float64(it.Start) + float64(it.Tokens)/2)
}

func longestChunk(items []Item) int {
	n := 0
	for i := range items {
		if items[i].Prefill {
			n = max(n, items[i].Tokens)
		}
	}
	return n
}

// victim is the place in running of the request to preempt: the last one, or under the priority policy the first of
// those with the largest (priority, arrival).
func (s *Scheduler) victim() int {
	worst := len(s.running) - 1
	if !s.cfg.Priority {
		return worst
	}
	worst = 0
	for i := range s.running {
		x, y := &s.requests[s.running[i]], &s.requests[s.running[worst]]
		if x.priority > y.priority || x.priority == y.priority && x.arrival > y.arrival {
			worst = i
		}
	}
	return worst
}

// drop takes a request's work out of the batch again, if it has any, and returns its tokens to the budget.
func (s *Scheduler) drop(b *Batch, slot int32) (refund int) {
	for i := range b.Items {
		if it := b.Items[i]; it.slot == slot {
			it.addTo(&b.Step, -1)
			b.Items = slices.Delete(b.Items, i, i+1)
			b.Step.MaxChunk = longestChunk(b.Items)
			s.stats.ComputedTokens -= int64(it.Tokens)
			s.requests[slot].inFlight--
			return it.Tokens
		}
	}
	return 0
}

// preempt sends the v-th running request back to the waiting queue without its blocks: it will be computed again.
func (s *Scheduler) preempt(b *Batch, v int) {
	slot := s.running[v]
	s.removeRunning(v)
	r := &s.requests[slot]
	if r.preemptions == 0 && s.cfg.EnablePrefixCaching {
		for i := len(r.nodes); i < r.registered; i++ {
			r.nodes = append(r.nodes, s.pool.register(r.hash(i)))
		}
	}
	s.release(r)
	r.running = false
	r.computed, r.placeholders = 0, 0
	r.stale = r.inFlight
	r.preemptions++
	s.stats.Preemptions++
	b.Preempted = append(b.Preempted, r.id)
	s.waiting.prepend(slot)
}
