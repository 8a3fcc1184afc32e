package planner

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"kvtune/harness/workload"
)

// resample draws another run from a recorded one: a circular block bootstrap of its arrivals. Runs of consecutive
// arrivals, about the square root of their number long so that bursts survive, are drawn with replacement; a
// conversation comes with all of its turns, every arrival with the gap before it. Content that only one conversation
// has is new in every copy, so that no copy finds the blocks of another in the prefix cache; what several share stays
// shared. Priming and warm-up requests stay. A workload whose measured requests lie in several waves (batches) is not a
// recording and comes back as it is.
func resample(w *workload.Workload, rng *rand.Rand) *workload.Workload {
	unit := make([]int, len(w.Requests)) // the conversation of each request; -1 is not drawn
	var roots []int
	turns := map[int][]int{}
	users := map[uint64]int{} // the conversation that has a segment; -1: several
	wave := -1
	for i := range w.Requests {
		r := &w.Requests[i]
		unit[i] = -1
		if r.Phase != workload.Measured {
			continue
		}
		switch {
		case wave >= 0 && r.Wave != wave:
			return w
		case r.After >= 0:
			if r.After >= i || unit[r.After] < 0 {
				return w
			}
			unit[i] = unit[r.After]
		default:
			unit[i] = len(roots)
			roots = append(roots, i)
		}
		wave = r.Wave
		turns[unit[i]] = append(turns[unit[i]], i)
	}
	if len(roots) < 2 {
		return w
	}
	for i := range w.Requests {
		for _, s := range w.Requests[i].Prompt {
			if u, seen := users[s.ID]; !seen {
				users[s.ID] = unit[i]
			} else if u != unit[i] {
				users[s.ID] = -1
			}
		}
	}
	out := *w
	out.Requests = nil
	for i := range w.Requests {
		if unit[i] < 0 {
			out.Requests = append(out.Requests, w.Requests[i])
		}
	}
	n := len(roots)
	length := max(1, int(math.Round(math.Sqrt(float64(n)))))
	gap := func(u int) time.Duration {
		if u == 0 { // of the first arrival nothing is known
			return (w.Requests[roots[n-1]].Due - w.Requests[roots[0]].Due) / time.Duration(n-1)
		}
		return max(0, w.Requests[roots[u]].Due-w.Requests[roots[u-1]].Due)
	}
	at, copies, start := w.Requests[roots[0]].Due, make([]int, n), 0
	for drawn := range n {
		if drawn%length == 0 {
			start = rng.IntN(n)
		}
		u := (start + drawn%length) % n
		if drawn > 0 {
			at += gap(u)
		}
		mark := uint64(0)
		if copies[u] > 0 {
			mark = rng.Uint64() | 1
		}
		moved := map[int]int{}
		for _, i := range turns[u] {
			r := w.Requests[i]
			moved[i] = len(out.Requests)
			r.Index = len(out.Requests)
			if r.After < 0 {
				r.Due = at
			} else {
				r.After = moved[r.After]
			}
			if mark != 0 {
				r.Prompt = append([]workload.Segment(nil), r.Prompt...)
				for k := range r.Prompt {
					if own, seen := users[r.Prompt[k].ID]; seen && own == u {
						r.Prompt[k].ID ^= mark
					}
				}
				if own, seen := users[r.OutputID]; r.OutputID != 0 && (!seen || own == u) {
					r.OutputID ^= mark
				}
				if r.Session != "" {
					r.Session = fmt.Sprintf("%s#%d", r.Session, copies[u])
				}
			}
			out.Requests = append(out.Requests, r)
		}
		copies[u]++
	}
	return &out
}
