// Package stats holds the statistics that kvtune reports: percentiles, medians and means with intervals, the
// Mann-Whitney test and Holm's correction.
//
// Everything is pure. No function reorders or keeps its caller's slice: samples stay in the order in which they were
// taken, because drift shows there. Start with [New], which sorts a copy once and answers many questions.
package stats

import (
	"math"
	"slices"
	"sort"

	"gonum.org/v1/gonum/stat"
	"gonum.org/v1/gonum/stat/distuv"
)

// Interval is a confidence interval. An end that the data cannot bound is infinite; both ends are NaN where no interval
// can be given at all.
type Interval struct {
	Low, High float64
}

// none is the interval of too little data.
func none() Interval { return Interval{math.NaN(), math.NaN()} }

// Sample answers questions about one set of values. The zero Sample is empty.
type Sample struct {
	sorted []float64
	mean   float64
	sd     float64 // NaN for fewer than 2 values
}

// New takes a copy of values, which must not be NaN.
func New(values []float64) Sample {
	s := Sample{sorted: slices.Clone(values), mean: math.NaN(), sd: math.NaN()}
	if len(values) > 0 {
		// In the caller's order: the sum does not depend on how equal sets are sorted, and is what a reader recomputes.
		s.mean = stat.Mean(values, nil)
	}
	if len(values) > 1 {
		s.sd = stat.StdDev(values, nil)
	}
	slices.Sort(s.sorted)
	return s
}

// N is the number of values.
func (s Sample) N() int { return len(s.sorted) }

// Mean is the arithmetic mean, NaN for an empty sample.
func (s Sample) Mean() float64 {
	if s.N() == 0 {
		return math.NaN()
	}
	return s.mean
}

// Max is the largest value, NaN for an empty sample.
func (s Sample) Max() float64 {
	if s.N() == 0 {
		return math.NaN()
	}
	return s.sorted[s.N()-1]
}

// Percentile is the p-th percentile, p from 0 to 100, interpolated linearly between order statistics as
// numpy.percentile does by default (and so `vllm bench serve`). It is NaN for an empty sample or a p out of range.
func (s Sample) Percentile(p float64) float64 {
	return PercentileAt(s.N(), p, func(i int) float64 { return s.sorted[i] })
}

// Median is the 50th percentile.
func (s Sample) Median() float64 { return s.Percentile(50) }

// PercentileInterval is the distribution-free interval of the p-th percentile: the order statistics l and u with
// P(Bin(n, p/100) < l) <= (1-level)/2 and the same above (Conover, Practical Nonparametric Statistics, 3rd ed.,
// section 3.2). Where n is too small for an order statistic on one side (the upper end of a p99 needs about 370 values
// at 95 %), that end is infinite.
//
// independent is how many of the values are independent of each other; 0 means all. Gaps between the tokens of one
// request are not: with independent set to the number of requests, the ranks are chosen as if only so many values had
// been seen, which is on the safe side.
func (s Sample) PercentileInterval(p, level float64, independent int) Interval {
	return PercentileInterval(s.N(), p, level, independent, func(i int) float64 { return s.sorted[i] })
}

// PercentileAt is [Sample.Percentile] of n values of which at gives the i-th smallest, from 0.
func PercentileAt(n int, p float64, at func(i int) float64) float64 {
	if n == 0 || !(p >= 0 && p <= 100) {
		return math.NaN()
	}
	place := p / 100 * float64(n-1)
	i := int(place)
	if i+1 >= n {
		return at(n - 1)
	}
	low := at(i)
	return low + (place-float64(i))*(at(i+1)-low)
}

// PercentileInterval is [Sample.PercentileInterval] of n values of which at gives the i-th smallest, from 0.
func PercentileInterval(n int, p, level float64, independent int, at func(i int) float64) Interval {
	if independent <= 0 || independent > n {
		independent = n
	}
	if n == 0 || !(p > 0 && p < 100) || !(level > 0 && level < 1) {
		return none()
	}
	b := distuv.Binomial{N: float64(independent), P: p / 100}
	tail := (1 - level) / 2
	// low is the largest rank l (from 1) with P(X <= l-1) <= tail; high the smallest u with P(X >= u) <= tail.
	low := sort.Search(independent, func(l int) bool { return b.CDF(float64(l)) > tail })
	high := 1 + sort.Search(independent, func(u int) bool { return 1-b.CDF(float64(u)) <= tail })
	iv := Interval{math.Inf(-1), math.Inf(1)}
	// The interpolated percentile may lie between the largest values while the bound is the largest: keep it inside.
	if low >= 1 {
		iv.Low = min(at(rank(low, independent, n, math.Floor)), PercentileAt(n, p, at))
	}
	if high <= independent {
		iv.High = max(at(rank(high, independent, n, math.Ceil)), PercentileAt(n, p, at))
	}
	return iv
}

// rank maps rank r of m values (from 1) to an index into n values (from 0), rounded outwards.
func rank(r, m, n int, outwards func(float64) float64) int {
	if m == n {
		return r - 1
	}
	at := outwards(float64(r-1) / float64(max(m-1, 1)) * float64(n-1))
	return min(max(int(at), 0), n-1)
}

// MeanInterval is Student's t interval of the mean: right for independent values that are not wildly skewed. It is NaN
// for fewer than 2 values.
func (s Sample) MeanInterval(level float64) Interval { return meanInterval(s.N(), s.mean, s.sd, level) }

func meanInterval(n int, mean, sd, level float64) Interval {
	if n < 2 || !(level > 0 && level < 1) {
		return none()
	}
	half := tQuantile(level, n-1) * sd / math.Sqrt(float64(n))
	return Interval{mean - half, mean + half}
}

// tQuantile is the two-sided quantile of Student's t with nu degrees of freedom.
func tQuantile(level float64, nu int) float64 {
	return distuv.StudentsT{Mu: 0, Sigma: 1, Nu: float64(nu)}.Quantile((1 + level) / 2)
}

// RatioInterval is the interval of sum(num)/sum(den) where the pairs are independent but what lies within one is not:
// the mean gap between tokens, with one pair (sum of gaps, number of gaps) per request. Linearisation over clusters
// (Cochran, Sampling Techniques, 3rd ed., section 6.3) with Student's t. It is NaN for fewer than 2 pairs or a sum of
// den that is not positive. The slices have the same length.
func RatioInterval(num, den []float64, level float64) Interval {
	var r RatioMoments
	for i := range num {
		r.Add(num[i], den[i])
	}
	if !(r.den > 0) {
		return none()
	}
	ratio := r.num / r.den
	var ss float64
	for i := range num {
		d := num[i] - ratio*den[i]
		ss += d * d
	}
	return r.interval(ss, level)
}

// ShareInterval is Wilson's interval of a share of k successes in n trials (Wilson 1927), right also for k = 0 and
// k = n. It is NaN for n = 0.
func ShareInterval(k, n int, level float64) Interval {
	if n <= 0 || k < 0 || k > n || !(level > 0 && level < 1) {
		return none()
	}
	z := distuv.UnitNormal.Quantile((1 + level) / 2)
	p, m := float64(k)/float64(n), float64(n)
	centre := (p + z*z/(2*m)) / (1 + z*z/m)
	half := z / (1 + z*z/m) * math.Sqrt(p*(1-p)/m+z*z/(4*m*m))
	iv := Interval{max(0, centre-half), min(1, centre+half)}
	// Exactly so, whatever the rounding.
	if k == 0 {
		iv.Low = 0
	}
	if k == n {
		iv.High = 1
	}
	return iv
}
