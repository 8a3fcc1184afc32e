package stats

import (
	"cmp"
	"math"
	"slices"

	"gonum.org/v1/gonum/stat/distuv"
)

// Test is the outcome of a two-sample test.
type Test struct {
	// U is the number of pairs (x, y) with x > y, ties counting one half.
	U float64
	// P is the two-sided p-value; 1 where the samples cannot differ (one is empty, or all values are equal).
	P float64
	// Superiority is U / (n m): the chance that a random x exceeds a random y, ties counting one half; 0.5 is no
	// difference. It is NaN when a sample is empty.
	Superiority float64
	// Exact says whether P comes from the exact distribution.
	Exact bool
}

// MannWhitney tests the null hypothesis that x and y come from one distribution (Mann and Whitney 1947; also known as
// Wilcoxon's rank-sum test). It is exact when there are no ties and both samples have at most 50 values (the
// distribution then costs at most some millions of additions); otherwise it uses the normal approximation with
// continuity and tie corrections.
func MannWhitney(x, y []float64) Test {
	n, m := len(x), len(y)
	if n == 0 || m == 0 {
		return Test{P: 1, Superiority: math.NaN()}
	}
	type value struct {
		v     float64
		fromX bool
	}
	all := make([]value, 0, n+m)
	for _, v := range x {
		all = append(all, value{v, true})
	}
	for _, v := range y {
		all = append(all, value{v, false})
	}
	slices.SortFunc(all, func(a, b value) int { return cmp.Compare(a.v, b.v) })
	var ranks, ties float64 // sum of x's ranks; sum of t^3 - t over groups of t equal values
	for i := 0; i < len(all); {
		j := i
		for j < len(all) && all[j].v == all[i].v {
			j++
		}
		mid := float64(i+j+1) / 2 // mean of the ranks i+1 .. j
		for _, v := range all[i:j] {
			if v.fromX {
				ranks += mid
			}
		}
		t := float64(j - i)
		ties += t*t*t - t
		i = j
	}
	fn, fm := float64(n), float64(m)
	u := ranks - fn*(fn+1)/2
	t := Test{U: u, Superiority: u / (fn * fm)}
	if ties == 0 && n <= 50 && m <= 50 {
		t.Exact, t.P = true, exactP(n, m, int(min(u, fn*fm-u)))
		return t
	}
	total := fn + fm
	variance := fn * fm / 12 * (total + 1 - ties/(total*(total-1)))
	if !(variance > 0) {
		t.P = 1
		return t
	}
	z := max(0, math.Abs(u-fn*fm/2)-0.5) / math.Sqrt(variance)
	t.P = min(1, 2*distuv.UnitNormal.Survival(z))
	return t
}

// exactP is the two-sided p-value 2 P(U <= u) without ties. Arrangements are counted by the recurrence
// c(n, m, u) = c(n-1, m, u-m) + c(n, m-1, u): the largest value belongs to x and beats all m of y, or to y.
func exactP(n, m, u int) float64 {
	// row[j][k] holds c(i, j, k) as a share of all arrangements, for the current i.
	row := make([][]float64, m+1)
	for j := range row {
		row[j] = make([]float64, u+1)
		row[j][0] = 1
	}
	for i := 1; i <= n; i++ {
		next := make([][]float64, m+1)
		for j := range next {
			next[j] = make([]float64, u+1)
			if j == 0 {
				next[j][0] = 1
				continue
			}
			// Shares instead of counts keep the numbers near 1: the largest is from x with chance i/(i+j).
			px := float64(i) / float64(i+j)
			for k := range next[j] {
				if k >= j {
					next[j][k] = px * row[j][k-j]
				}
				next[j][k] += (1 - px) * next[j-1][k]
			}
		}
		row = next
	}
	var p float64
	for _, share := range row[m] {
		p += share
	}
	return min(1, 2*p)
}

// Holm adjusts p-values for several tests made at once so that the chance of any false alarm stays below the level at
// which they are read (Holm 1979). The result has the order of its argument.
func Holm(ps []float64) []float64 {
	order := make([]int, len(ps))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(ps[a], ps[b]) })
	adjusted := make([]float64, len(ps))
	worst := 0.0
	for i, at := range order {
		worst = max(worst, min(1, ps[at]*float64(len(ps)-i)))
		adjusted[at] = worst
	}
	return adjusted
}

// Ratio estimates by how much y is larger than x, all values positive: the median of all quotients y/x (Hodges and
// Lehmann 1963, on logarithms) with the interval that holds every factor which a Mann-Whitney test at 1 - level does
// not reject. The ranks of its ends are exact for samples of together at most 40 values without ties, by the normal
// approximation otherwise; an end that the data cannot bound is 0 or infinite. It is NaN where a sample is empty.
func Ratio(x, y []float64, level float64) (float64, Interval) {
	n, m := len(x), len(y)
	if n == 0 || m == 0 || !(level > 0 && level < 1) {
		return math.NaN(), none()
	}
	quotients := make([]float64, 0, n*m)
	for _, a := range x {
		for _, b := range y {
			quotients = append(quotients, b/a)
		}
	}
	s := New(quotients)
	alpha, pairs := 1-level, float64(n*m)
	var out int // how many quotients lie outside at each end
	if n+m <= 40 {
		for out <= n*m/2 && exactP(n, m, out) <= alpha {
			out++
		}
	} else {
		z := distuv.UnitNormal.Quantile(1 - alpha/2)
		out = max(0, int(pairs/2-z*math.Sqrt(pairs/12*float64(n+m+1))))
	}
	iv := Interval{0, math.Inf(1)}
	if out > 0 {
		iv = Interval{s.sorted[out-1], s.sorted[n*m-out]}
	}
	return s.Median(), iv
}
