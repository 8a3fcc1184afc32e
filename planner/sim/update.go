package sim

import "slices"

// Update applies the result of a batch: its requests get their tokens, and those that are done free their blocks. The
// events are in the order of the batch's items and hold until the next Update.
func (s *Scheduler) Update(b *Batch) []Event {
	s.events = s.events[:0]
	if b == s.lane.flight {
		s.lane.flight = nil
	}
	ended := false
	place := int32(b.Decoding) // members of the lane stand before all others
	for i := range b.Items {
		if b.Items[i].member {
			place++
		}
	}
	for i := range b.Items {
		it := &b.Items[i]
		r := &s.requests[it.slot]
		if r.gen != it.gen {
			continue // aborted since
		}
		r.inFlight--
		stale := r.stale > 0
		if stale {
			r.stale--
		}
		if !it.Samples {
			continue
		}
		r.known++
		if s.cfg.AsyncScheduling && !stale {
			r.placeholders--
		}
		finished := r.known >= r.limit
		e := extend(&s.events)
		e.ID, e.Token, e.Output, e.CachedTokens = r.id, 1, r.known-r.prompt, r.cached
		e.First, e.Finished, e.slot = r.known == r.prompt+1, finished, it.slot
		if e.place = it.place; !it.member {
			e.place = place
			place++
		}
		if r.running {
			// A block that an output token completed; with synchronous scheduling the next step registers it.
			if full := r.computed - r.placeholders; s.cfg.AsyncScheduling && full >= r.nextFull {
				s.register(r, full)
			}
		}
		if finished {
			if r.where == retired {
				s.lane.retired = slices.DeleteFunc(s.lane.retired, func(slot int32) bool { return slot == it.slot })
			} else if r.running {
				ended = true
			} else {
				s.waiting.remove(it.slot) // preempted while its last token was in flight
			}
			s.end(it.slot)
		}
	}
	if ended {
		s.running = slices.DeleteFunc(s.running, func(slot int32) bool { return !s.requests[slot].running })
	}
	s.batches = append(s.batches, b)
	return s.events
}
