package harness

import (
	"math"

	"kvtune/harness/workload"
)

// mserBatch is the batch of MSER-5.
const mserBatch = 5

// SteadyFrom says where a run's warm-up ends, by the rule MSER-5 (White, Cobb and Spratt, "A comparison of five
// steady-state truncation heuristics for simulation", Winter Simulation Conference 2000): of all ways to leave out the
// first batches of five values it takes the one after which the mean's standard error is smallest. values are in the
// order in which the system produced them; the result is how many of the first ones are warm-up. ok is false where the
// rule would leave out more than half: no steady state has been reached, and nothing should be left out.
func SteadyFrom(values []float64) (first int, ok bool) {
	n := len(values) / mserBatch
	if n < 4 {
		return 0, false
	}
	means := make([]float64, n)
	for i := range means {
		for _, v := range values[i*mserBatch : (i+1)*mserBatch] {
			means[i] += v / mserBatch
		}
	}
	// From the end: sum and sum of squares, about a value of the middle so that large equal values do not cancel.
	about := means[n/2]
	best, sum, squares := math.Inf(1), 0.0, 0.0
	for d := n - 1; d >= 0; d-- {
		v := means[d] - about
		sum, squares = sum+v, squares+v*v
		k := float64(n - d)
		if k < 4 { // too few to have a spread
			continue
		}
		if se := max(0, squares-sum*sum/k) / (k * k); se <= best { // of equal ones the earliest
			best, first = se, d
		}
	}
	if first > n/2 {
		return 0, false
	}
	return first * mserBatch, true
}

// ExcludeWarmup marks the first measured requests of a run as warm-up, up to its steady state ([SteadyFrom] of the
// end-to-end latencies of requests that succeeded, in order of their start), and returns how many it marked; requests
// that failed before the first steady one are marked too. ok is false when there is no steady state: then none is.
func ExcludeWarmup(records []workload.Record) (marked int, ok bool) {
	order := make([]int, 0, len(records))
	var e2el []float64
	for i := range records { // records are in order of index, which is that of the start
		if r := &records[i]; r.Phase == workload.Measured && r.OK() {
			order, e2el = append(order, i), append(e2el, (r.End()-r.Start()).Seconds())
		}
	}
	first, ok := SteadyFrom(e2el)
	if !ok || first == 0 {
		return 0, ok
	}
	for i := range records[:order[first]] {
		if r := &records[i]; r.Phase == workload.Measured {
			r.Phase = workload.Warmup
			marked++
		}
	}
	return marked, true
}
