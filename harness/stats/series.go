package stats

import (
	"math"
	"slices"
)

// Autocorrelation is the correlation of values with themselves lag places later, -1..1: near 0 where neighbours know
// nothing of each other. It is 0 where there is nothing to correlate (lag is not from 1 to len-1, or all values are
// equal).
func Autocorrelation(values []float64, lag int) float64 {
	n := len(values)
	if lag < 1 || lag >= n {
		return 0
	}
	mean := New(values).Mean()
	var own, shifted float64
	for i, v := range values {
		own += (v - mean) * (v - mean)
		if i+lag < n {
			shifted += (v - mean) * (values[i+lag] - mean)
		}
	}
	if !(own > 0) {
		return 0
	}
	return shifted / own
}

// Effective is how many independent values tell as much as these n, from 1 to n: n / (1 + 2 x the sum of the
// autocorrelations), summed in pairs for as long as a pair is positive (Geyer 1992, Practical Markov Chain Monte Carlo,
// section 3.3: the initial positive sequence). 0 for no values.
//
// A few wild values hide how the others hang together, so the correlation is that of the ranks.
func Effective(values []float64) int {
	n := len(values)
	if n < 4 {
		return n
	}
	r := ranks(values)
	sum := 0.0
	for lag := 1; lag+1 < n/2; lag += 2 {
		pair := Autocorrelation(r, lag) + Autocorrelation(r, lag+1)
		// A pair within the noise of n independent values (2.6 of its standard deviations) is none.
		if pair < 2.6*math.Sqrt(2/float64(n)) {
			break
		}
		sum += pair
	}
	return min(n, max(1, int(float64(n)/(1+2*sum))))
}

// ranks are the places of values in their order, ties sharing the mean of theirs.
func ranks(values []float64) []float64 {
	sorted := slices.Clone(values)
	slices.Sort(sorted)
	r := make([]float64, len(values))
	for i, v := range values {
		first, _ := slices.BinarySearch(sorted, v)
		last, _ := slices.BinarySearch(sorted, math.Nextafter(v, math.Inf(1)))
		r[i] = float64(first+last-1) / 2
	}
	return r
}

// Blocks are the medians of at most n blocks of consecutive values, each block as long as the next within one: what
// stands for values that know of their neighbours, as tests want independent ones. With n of [Effective] or fewer the
// blocks are nearly so. n is at least 1; no more blocks than values are made.
func Blocks(values []float64, n int) []float64 {
	n = min(n, len(values))
	blocks := make([]float64, n)
	for i := range blocks {
		blocks[i] = New(values[i*len(values)/n : (i+1)*len(values)/n]).Median()
	}
	return blocks
}
