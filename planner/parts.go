package planner

import (
	"context"
	"slices"

	"kvtune/harness/workload"
	"kvtune/planner/sim"
)

// fewest is the smallest part of the workload that candidates are compared on.
const fewest = 24

// first cuts a workload to its priming and warm-up requests and the first n measured ones.
func first(w *workload.Workload, n int) *workload.Workload {
	measured := 0
	for i := range w.Requests {
		if w.Requests[i].Phase == workload.Measured {
			if measured == n {
				cut := *w
				cut.Requests = w.Requests[:i:i]
				return &cut
			}
			measured++
		}
	}
	return w
}

// telling is the smallest number of measured requests, n at least, that shows what all of them do to a server: twice as
// many that wait for no other one (conversations) as are in flight at once, and the whole of most conversations that
// are begun, because contexts grow to the last turn. It is the number of all where there is no such part.
func telling(w *workload.Workload, n, inFlight int) int {
	last := map[int]int{} // turn of a conversation, by its first request
	root := make([]int, len(w.Requests))
	roots := 0
	for i := range w.Requests {
		r := &w.Requests[i]
		root[i] = i
		if r.After >= 0 && w.Requests[r.After].Phase == workload.Measured {
			root[i] = root[r.After]
		} else if r.Phase == workload.Measured {
			roots++
		}
		last[root[i]] = i
	}
	measured, begun, whole := 0, 0, 0
	for i := range w.Requests {
		if w.Requests[i].Phase != workload.Measured {
			continue
		}
		measured++
		if root[i] == i {
			begun++
		}
		if last[root[i]] == i {
			whole++
		}
		if measured >= n && begun >= min(2*inFlight, roots) && 2*whole >= begun {
			return measured
		}
	}
	return measured
}

// scale simulates the baseline on the whole workload: what it has in flight at once says how small a part candidates
// can be compared on, in measured requests, and how far it goes into its limits how many simulations all take.
func (p *planning) scale(ctx context.Context, base *candidate, all []*candidate) (smallest, simulations int,
	err error) {
	w := p.work[0]
	o, err := p.simulate(ctx, base, 0, w, false)
	if err != nil {
		return 0, 0, err
	}
	distinct, demands := map[sim.Config][]*candidate{}, map[sim.Config]demand{}
	for _, c := range all {
		key := apart(c.cfg)
		d, known := demands[key]
		if !known {
			d = demandOf(w, key.BlockSize, key.EnablePrefixCaching)
			demands[key] = d
		}
		if !slices.ContainsFunc(distinct[key], func(other *candidate) bool { return d.same(other, c, &o.usage) }) {
			distinct[key] = append(distinct[key], c)
			simulations++
		}
	}
	return telling(w, fewest, o.usage.peak), simulations, nil
}
