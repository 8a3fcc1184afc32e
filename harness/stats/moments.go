package stats

import "math"

// Moments is the mean of values that are not kept, with its interval. The zero value is empty.
type Moments struct {
	n        int
	mean, m2 float64 // m2 is the sum of squared deviations (Welford 1962)
}

// Add takes a value.
func (m *Moments) Add(v float64) {
	m.n++
	d := v - m.mean
	m.mean += d / float64(m.n)
	m.m2 += d * (v - m.mean)
}

// N is the number of values.
func (m *Moments) N() int { return m.n }

// Mean is the arithmetic mean, NaN for none.
func (m *Moments) Mean() float64 {
	if m.n == 0 {
		return math.NaN()
	}
	return m.mean
}

// MeanInterval is [Sample.MeanInterval].
func (m *Moments) MeanInterval(level float64) Interval {
	return meanInterval(m.n, m.mean, math.Sqrt(m.m2/float64(m.n-1)), level)
}

// RatioMoments is sum(num)/sum(den) over pairs that are not kept, with its interval. The zero value is empty.
type RatioMoments struct {
	n                    int
	num, den             float64
	numNum, numDen, den2 float64
}

// Add takes a pair.
func (r *RatioMoments) Add(num, den float64) {
	r.n++
	r.num, r.den = r.num+num, r.den+den
	r.numNum, r.numDen, r.den2 = r.numNum+num*num, r.numDen+num*den, r.den2+den*den
}

// N is the number of pairs.
func (r *RatioMoments) N() int { return r.n }

// Ratio is NaN where the sum of den is 0.
func (r *RatioMoments) Ratio() float64 { return r.num / r.den }

// Interval is that of [RatioInterval].
func (r *RatioMoments) Interval(level float64) Interval {
	ratio := r.Ratio()
	return r.interval(max(0, r.numNum-2*ratio*r.numDen+ratio*ratio*r.den2), level)
}

// interval is that of squared residuals that sum to ss.
func (r *RatioMoments) interval(ss, level float64) Interval {
	if r.n < 2 || !(r.den > 0) || !(level > 0 && level < 1) {
		return none()
	}
	half := tQuantile(level, r.n-1) * math.Sqrt(ss*float64(r.n)/float64(r.n-1)) / r.den
	return Interval{r.Ratio() - half, r.Ratio() + half}
}
