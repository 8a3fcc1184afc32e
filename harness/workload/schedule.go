package workload

import (
	"container/heap"
	"slices"
	"time"
)

// Schedule decides when each request of a workload is due, for real and for virtual time alike. Its caller supplies the
// times: it pops the request that Next names once it has sent it, and reports with Done when a request has ended.
//
// The rules: a request of wave k waits for all requests of lower waves to have ended. In an open loop it is then due at
// its wave's release plus Due. In a closed loop (Workload.Concurrency > 0) the measured wave's requests are dealt
// round-robin to the clients, and each client has its share of the concurrency in flight; a request is due when a slot of
// its client is free. A request with a predecessor (After) is due Think after the predecessor's end; in a closed loop it
// inherits the slot, so that concurrency counts conversations.
type Schedule struct {
	w *Workload
	// order lists the requests without predecessor, by wave, then due time (open loop) or index.
	order []int32
	next  int // in order, the next one to enter
	// follower[i] is the request that request i releases, -1 for none.
	follower []int32
	pending  dueHeap // due and not yet popped, earliest first
	intended []bool
	wave     int           // the present wave
	left     int           // requests of the present wave that have not ended
	release  time.Duration // when the present wave was released
	counts   map[int]int   // requests per wave
	ended    int
	// closed loop: free slots per client, and per client the requests that wait for one.
	free  []int
	queue [][]int32
}

type dueEntry struct {
	due   time.Duration
	index int32
}

type dueHeap []dueEntry

func (h dueHeap) Len() int { return len(h) }
func (h dueHeap) Less(i, j int) bool {
	return h[i].due < h[j].due || (h[i].due == h[j].due && h[i].index < h[j].index)
}
func (h dueHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *dueHeap) Push(x any)   { *h = append(*h, x.(dueEntry)) }
func (h *dueHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

// NewSchedule starts at time 0 with the lowest wave released.
func NewSchedule(w *Workload) *Schedule {
	n := len(w.Requests)
	s := &Schedule{w: w, follower: make([]int32, n), intended: make([]bool, n), counts: map[int]int{}}
	for i := range s.follower {
		s.follower[i] = -1
	}
	for i := range w.Requests {
		r := &w.Requests[i]
		s.counts[r.Wave]++
		if r.After >= 0 {
			s.follower[r.After] = int32(i)
		} else {
			s.order = append(s.order, int32(i))
		}
	}
	slices.SortStableFunc(s.order, func(a, b int32) int {
		x, y := &w.Requests[a], &w.Requests[b]
		switch {
		case x.Wave != y.Wave:
			return x.Wave - y.Wave
		case w.Concurrency == 0 && x.Due != y.Due:
			if x.Due < y.Due {
				return -1
			}
			return 1
		}
		return int(a - b)
	})
	s.enterWave(0)
	return s
}

// enterWave releases the next wave that has requests.
func (s *Schedule) enterWave(at time.Duration) {
	if s.next >= len(s.order) {
		return
	}
	s.wave = s.w.Requests[s.order[s.next]].Wave
	s.left, s.release = s.counts[s.wave], at
	closed := s.w.Concurrency > 0 && s.measuredWave()
	if closed {
		clients := max(1, s.w.Clients)
		s.free, s.queue = make([]int, clients), make([][]int32, clients)
		for c := range s.free {
			s.free[c] = s.w.Concurrency / clients
			if c < s.w.Concurrency%clients {
				s.free[c]++
			}
		}
	} else {
		s.free, s.queue = nil, nil
	}
	for ; s.next < len(s.order) && s.w.Requests[s.order[s.next]].Wave == s.wave; s.next++ {
		i := s.order[s.next]
		if closed {
			c := s.client(&s.w.Requests[i])
			s.queue[c] = append(s.queue[c], i)
			continue
		}
		s.intended[i] = true
		s.pending = append(s.pending, dueEntry{at + s.w.Requests[i].Due, i})
	}
	heap.Init(&s.pending)
	for c := range s.queue {
		s.fill(c, at)
	}
}

// measuredWave reports whether the present wave is under the closed loop: priming is not.
func (s *Schedule) measuredWave() bool {
	return s.w.Requests[s.order[s.next]].Phase != Prime
}

// fill gives the free slots of a client to its next requests.
func (s *Schedule) fill(c int, at time.Duration) {
	for s.free[c] > 0 && len(s.queue[c]) > 0 {
		heap.Push(&s.pending, dueEntry{at, s.queue[c][0]})
		s.queue[c] = s.queue[c][1:]
		s.free[c]--
	}
}

// Next is the earliest request that may be sent, and when it is due; ok is false when nothing can be due until a request
// ends, or when all have been popped.
func (s *Schedule) Next() (index int, due time.Duration, ok bool) {
	if len(s.pending) == 0 {
		return 0, 0, false
	}
	return int(s.pending[0].index), s.pending[0].due, true
}

// Pop says that the request of Next was sent.
func (s *Schedule) Pop() { heap.Pop(&s.pending) }

// Intended reports whether the request's due time is an intended moment (open loop, think time) and not merely the moment
// at which a slot was free: only then is waiting beyond it charged to the server.
func (s *Schedule) Intended(index int) bool { return s.intended[index] }

// Done says that a popped request ended at a time, well or not: what waits for it goes on either way.
func (s *Schedule) Done(index int, at time.Duration) {
	r := &s.w.Requests[index]
	s.ended++
	s.left--
	if f := s.follower[index]; f >= 0 {
		s.intended[f] = s.w.Requests[f].Think > 0 || s.queue == nil
		heap.Push(&s.pending, dueEntry{at + s.w.Requests[f].Think, f})
	} else if s.queue != nil {
		c := s.client(r)
		s.free[c]++
		s.fill(c, at)
	}
	if s.left == 0 {
		s.enterWave(at)
	}
}

// client is the client that a request's slot belongs to.
func (s *Schedule) client(r *Request) int {
	for r.After >= 0 {
		r = &s.w.Requests[r.After]
	}
	return r.Index % len(s.queue)
}

// Finished reports whether every request has ended.
func (s *Schedule) Finished() bool { return s.ended == len(s.w.Requests) }
