package stats

import (
	"math"
	"slices"

	"gonum.org/v1/gonum/stat"
)

// Autocorrelation is the correlation of values with themselves lag places later, -1..1: near 0 where neighbours know
// nothing of each other. It is 0 where there is nothing to correlate (lag is not from 1 to len-1, or all values are
// equal).
func Autocorrelation(values []float64, lag int) float64 {
	if lag < 1 || lag >= len(values) {
		return 0
	}
	centred := centre(values)
	own := product(centred, 0)
	if !(own > 0) {
		return 0
	}
	return product(centred, lag) / own
}

// centre is values less their mean.
func centre(values []float64) []float64 {
	mean := stat.Mean(values, nil)
	centred := make([]float64, len(values))
	for i, v := range values {
		centred[i] = v - mean
	}
	return centred
}

// product is the sum of values times themselves lag places later.
func product(values []float64, lag int) float64 {
	sum := 0.0
	for i, v := range values[lag:] {
		sum += v * values[i]
	}
	return sum
}

// Effective is how many independent values tell as much as these n, from 1 to n: n / (1 + 2 x the sum of the
// autocorrelations), summed in pairs for as long as a pair is positive (Geyer 1992, Practical Markov Chain Monte Carlo,
// section 3.3: the initial positive sequence). It is 0 for no values. A trend counts as values that know of each other.
//
// A few wild values hide how the others hang together, so the correlation is that of the ranks.
func Effective(values []float64) int {
	n := len(values)
	if n < 4 {
		return n
	}
	centred := centre(ranks(values))
	own := product(centred, 0)
	if !(own > 0) {
		return n
	}
	sum := 0.0
	// Fewer than 2 independent values are as good as 1: a long trend is not summed to its end.
	for lag := 1; lag+1 < n/2 && 1+2*sum < float64(n)/2; lag += 2 {
		pair := (product(centred, lag) + product(centred, lag+1)) / own
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
