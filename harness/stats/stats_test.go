package stats

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func near(t *testing.T, what string, got, want float64) {
	t.Helper()
	if math.Abs(got-want) > 1e-9*max(1, math.Abs(want)) {
		t.Errorf("%s = %.12g, want %.12g", what, got, want)
	}
}

// Expected values in this file are numpy 2's and scipy 1.17's, where not said otherwise.
func TestPercentile(t *testing.T) {
	values := []float64{3.1, 0.2, 9.7, 4.4, 4.4, 1.0, 7.3}
	before := slices.Clone(values)
	s := New(values)
	for _, c := range []struct{ p, want float64 }{{0, 0.2}, {10, 0.68}, {50, 4.4}, {90, 8.26}, {99, 9.556}, {100, 9.7}} {
		near(t, "percentile", s.Percentile(c.p), c.want)
	}
	near(t, "mean", s.Mean(), 4.3)
	near(t, "max", s.Max(), 9.7)
	iv := s.MeanInterval(0.95)
	near(t, "t low", iv.Low, 1.202111854052566)
	near(t, "t high", iv.High, 7.397888145947434)
	if !slices.Equal(values, before) {
		t.Errorf("the caller's samples were reordered: %v", values)
	}
}

func TestTooLittleDataIsNaN(t *testing.T) {
	empty, one := New(nil), New([]float64{5})
	for name, v := range map[string]float64{
		"mean of none": empty.Mean(), "max of none": empty.Max(), "median of none": empty.Median(),
		"p101": one.Percentile(101), "p-1": one.Percentile(-1), "pNaN": one.Percentile(math.NaN()),
		"t of one": one.MeanInterval(0.95).Low, "ratio of one": RatioInterval([]float64{1}, []float64{1}, 0.95).Low,
		"share of none": ShareInterval(0, 0, 0.95).Low, "interval of none": empty.PercentileInterval(50, 0.95, 0).Low,
	} {
		if !math.IsNaN(v) {
			t.Errorf("%s = %v, want NaN", name, v)
		}
	}
	near(t, "median of one", one.Median(), 5)
}

func TestPercentileInterval(t *testing.T) {
	count := func(n int) Sample {
		v := make([]float64, n)
		for i := range v {
			v[i] = float64(n - i)
		}
		return New(v)
	}
	inf := math.Inf(1)
	for _, c := range []struct {
		n           int
		p, low, top float64
	}{
		{100, 50, 40, 61},
		{100, 90, 84, 96},
		{400, 99, 392, 400},
		{300, 99, 293, inf}, // too few for an upper end
		{6, 50, 1, 6},
		{5, 50, -inf, inf}, // too few for either
	} {
		iv := count(c.n).PercentileInterval(c.p, 0.95, 0)
		if iv.Low != c.low || iv.High != c.top {
			t.Errorf("n = %d, p%v: [%v, %v], want [%v, %v]", c.n, c.p, iv.Low, iv.High, c.low, c.top)
		}
	}
	// Ten thousand values, of which only 100 are independent: the ranks of n = 100, spread over all.
	iv := count(10000).PercentileInterval(50, 0.95, 100)
	if iv.Low < 3900 || iv.Low > 3990 || iv.High < 6050 || iv.High > 6110 {
		t.Errorf("100 independent of 10000: [%v, %v], want about [3940, 6061]", iv.Low, iv.High)
	}
}

// TestCoverage: an interval at 90 % contains the truth in about 90 % of 2000 seeded repetitions.
func TestCoverage(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 11))
	const runs = 2000
	hits := map[string]int{}
	for range runs {
		v := make([]float64, 80)
		num, den := make([]float64, 30), make([]float64, 30)
		for i := range v {
			v[i] = rng.NormFloat64()
		}
		for i := range num {
			// A cluster: its own level, shared by all its members.
			den[i] = float64(1 + rng.IntN(20))
			num[i] = den[i] * (2 + rng.NormFloat64()/4)
		}
		s := New(v)
		for name, iv := range map[string]Interval{
			"mean": s.MeanInterval(0.9), "median": s.PercentileInterval(50, 0.9, 0),
		} {
			if iv.Low <= 0 && 0 <= iv.High {
				hits[name]++
			}
		}
		if iv := RatioInterval(num, den, 0.9); iv.Low <= 2 && 2 <= iv.High {
			hits["ratio"]++
		}
	}
	for _, name := range []string{"mean", "median", "ratio"} {
		// The order-statistic interval is discrete: it covers more than asked.
		if share := float64(hits[name]) / runs; share < 0.87 || share > 0.95 {
			t.Errorf("%s: covered in %.3f of the runs, want about 0.90", name, share)
		}
	}
}

func TestShareInterval(t *testing.T) {
	iv := ShareInterval(3, 50, 0.95)
	near(t, "low", iv.Low, 0.020614970348973957)
	near(t, "high", iv.High, 0.1621709168883817)
	iv = ShareInterval(0, 20, 0.95)
	near(t, "low of none", iv.Low, 0)
	near(t, "high of none", iv.High, 0.16112515805281935)
}

func TestMannWhitney(t *testing.T) {
	x := []float64{1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30}
	ties := []float64{0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29}
	noTies := []float64{0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.07, 3.14, 1.28}
	got := MannWhitney(x, ties)
	near(t, "U", got.U, 58)
	near(t, "p with ties", got.P, 0.13291945818531892)
	got = MannWhitney(x, noTies)
	near(t, "U", got.U, 58)
	near(t, "exact p", got.P, 0.13591114767585355)
	if !got.Exact {
		t.Error("small samples without ties were not tested exactly")
	}
	var a, b []float64
	for i := range 60 {
		a, b = append(a, float64(i)), append(b, float64(i)+7.5)
	}
	got = MannWhitney(a, b)
	near(t, "U of 60", got.U, 1378)
	near(t, "p of 60", got.P, 0.02694585619564296)
	if got := MannWhitney([]float64{2, 2}, []float64{2, 2, 2}); got.P != 1 || got.Superiority != 0.5 {
		t.Errorf("equal values: %+v, want P 1 and superiority 0.5", got)
	}
	if got := MannWhitney(nil, x); got.P != 1 || !math.IsNaN(got.Superiority) {
		t.Errorf("empty sample: %+v", got)
	}
}

// TestMannWhitneyExact compares with every arrangement of 4 and 5 values, counted one by one.
func TestMannWhitneyExact(t *testing.T) {
	const n, m = 4, 5
	counts := make([]int, n*m+1) // arrangements by U
	total := 0
	for mask := range 1 << (n + m) {
		u, ys, xs := 0, 0, 0
		for i := range n + m {
			if mask>>i&1 == 1 {
				u, xs = u+ys, xs+1
			} else {
				ys++
			}
		}
		if xs == n {
			counts[u]++
			total++
		}
	}
	for u, below := 0, 0; u <= n*m/2; u++ {
		below += counts[u]
		near(t, "exact p", exactP(n, m, u), min(1, 2*float64(below)/float64(total)))
	}
}

// TestMannWhitneySymmetry: exchanging the samples keeps P and mirrors U; a monotone map changes nothing.
func TestMannWhitneySymmetry(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	for range 50 {
		x, y := make([]float64, 3+rng.IntN(80)), make([]float64, 3+rng.IntN(80))
		for i := range x {
			x[i] = float64(rng.IntN(200))
		}
		for i := range y {
			y[i] = float64(rng.IntN(220))
		}
		a, b := MannWhitney(x, y), MannWhitney(y, x)
		near(t, "P exchanged", a.P, b.P)
		near(t, "U + U'", a.U+b.U, float64(len(x)*len(y)))
		for i := range x {
			x[i] = math.Exp(x[i] / 100)
		}
		for i := range y {
			y[i] = math.Exp(y[i] / 100)
		}
		near(t, "P mapped", MannWhitney(x, y).P, a.P)
	}
}

func TestHolm(t *testing.T) {
	got := Holm([]float64{0.04, 0.01, 0.03, 0.005})
	// By hand: sorted 0.005x4, 0.01x3, 0.03x2, 0.04x1 with the running maximum.
	for i, want := range []float64{0.06, 0.03, 0.06, 0.02} {
		near(t, "adjusted", got[i], want)
	}
	if got := Holm([]float64{0.6, 0.9}); got[0] != 1 || got[1] != 1 {
		t.Errorf("adjusted p-values above 1: %v", got)
	}
	if len(Holm(nil)) != 0 {
		t.Error("no tests, but adjusted p-values")
	}
}

// TestRatio: the interval covers the true factor as often as it says, and cannot be had from too little data.
func TestRatio(t *testing.T) {
	r, iv := Ratio([]float64{1, 2, 4}, []float64{2, 4, 8}, 0.95)
	near(t, "ratio", r, 2)
	if iv.Low != 0 || !math.IsInf(iv.High, 1) {
		t.Errorf("3 against 3 at 95 %%: %v, want no bounds", iv)
	}
	rng := rand.New(rand.NewPCG(9, 1))
	for _, n := range []int{8, 50} {
		const runs = 1000
		hits := 0
		for range runs {
			x, y := make([]float64, n), make([]float64, n)
			for i := range x {
				x[i], y[i] = math.Exp(0.1*rng.NormFloat64()), 1.3*math.Exp(0.1*rng.NormFloat64())
			}
			if _, iv := Ratio(x, y, 0.95); iv.Low <= 1.3 && 1.3 <= iv.High {
				hits++
			}
		}
		if share := float64(hits) / runs; share < 0.935 || share > 0.98 {
			t.Errorf("n = %d: covered in %.3f of the runs, want about 0.95", n, share)
		}
	}
	if r, _ := Ratio(nil, []float64{1}, 0.95); !math.IsNaN(r) {
		t.Errorf("ratio to nothing: %v", r)
	}
}
