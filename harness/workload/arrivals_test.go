package workload

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// process measures arrivals: mean gap, the gaps' coefficient of variation and lag-1 autocorrelation, and the Fano
// factor (variance over mean) of the counts in windows of 20 mean gaps.
func process(at []time.Duration, rate float64) (mean, cv, auto, fano float64) {
	gaps := make([]float64, len(at))
	last := time.Duration(0)
	for i, t := range at {
		gaps[i], last = (t - last).Seconds(), t
		mean += gaps[i] / float64(len(at))
	}
	var variance, lagged float64
	for i, g := range gaps {
		variance += (g - mean) * (g - mean)
		if i > 0 {
			lagged += (g - mean) * (gaps[i-1] - mean)
		}
	}
	window := 20 / rate
	counts := make([]float64, int(last.Seconds()/window))
	for _, t := range at {
		if k := int(t.Seconds() / window); k < len(counts) {
			counts[k]++
		}
	}
	var sum, squares float64
	for _, c := range counts {
		sum, squares = sum+c, squares+c*c
	}
	n := float64(len(counts))
	return mean, math.Sqrt(variance/float64(len(gaps))) / mean, lagged / variance, (squares/n - sum*sum/n/n) / (sum / n)
}

func TestArrivalProcesses(t *testing.T) {
	for _, c := range []struct {
		burstiness       float64
		cv, fano, within float64
	}{
		{0, 1, 1, 0.1},
		{1.0001, 1, 1, 0.1}, // gamma gaps of that shape are exponential
		{0.25, 2, 4, 0.8},   // a renewal process: Fano tends to cv^2
		{4, 0.5, 0.25, 0.05},
	} {
		at := slices.Collect(Rate{From: 50, To: 50}.Arrivals(c.burstiness, 100_000, 0, rand.New(rand.NewPCG(3, 4))))
		mean, cv, auto, fano := process(at, 50)
		if math.Abs(mean*50-1) > 0.02 || math.Abs(cv-c.cv) > c.cv*0.03 || math.Abs(auto) > 0.01 ||
			math.Abs(fano-c.fano) > c.within {
			t.Errorf("burstiness %g: mean gap %.4f s, cv %.3f, lag-1 autocorrelation %.4f, Fano factor %.3f: want 0.02, "+
				"%g, 0, %g", c.burstiness, mean, cv, auto, fano, c.cv, c.fano)
		}
	}
	for i, at := range slices.Collect((Rate{From: 8, To: 8, Even: true}).Arrivals(0, 5, 0, nil)) {
		if at != time.Duration(i)*125*time.Millisecond {
			t.Errorf("fixed arrival %d at %v", i, at)
		}
	}
}

func TestRateRamp(t *testing.T) {
	r, err := ParseRate("5..20")
	if err != nil {
		t.Fatal(err)
	}
	at := slices.Collect(r.Arrivals(0, 50_000, 0, rand.New(rand.NewPCG(5, 6))))
	total := 50_000 / 12.5 // s
	counts := make([]float64, 4)
	for i, a := range at {
		if i > 0 && a < at[i-1] {
			t.Fatalf("arrival %d at %v after one at %v", i, a, at[i-1])
		}
		counts[min(3, int(4*a.Seconds()/total))]++
	}
	for k, n := range counts {
		want := 5 + 15*(float64(k)+0.5)/4 // the rate in the middle of the quarter
		if rate := n / (total / 4); math.Abs(rate-want) > 0.05*want {
			t.Errorf("quarter %d has %.2f requests/s, want %.2f", k, rate, want)
		}
	}
	down, err := ParseRate("fixed:20..0.001")
	if err != nil {
		t.Fatal(err)
	}
	for i, a := range slices.Collect(down.Arrivals(0, 100, 0, nil)) {
		if a < 0 || a.Seconds() > 10.1 { // 100 requests at 10/s on average
			t.Errorf("arrival %d of a ramp that falls to nothing is at %v", i, a)
		}
	}
}

// Over a duration, the number of arrivals is the process's: Poisson counts have the variance of their mean.
func TestArrivalsOverADuration(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	sum, squares, late := 0.0, 0.0, 0.0
	const runs, over = 2000, 10 * time.Second
	for range runs {
		at := slices.Collect(Rate{From: 2, To: 8}.Arrivals(0, 0, over, rng))
		for _, a := range at {
			if a >= over {
				t.Fatalf("an arrival at %v of %v", a, over)
			}
			if a >= over/2 {
				late++
			}
		}
		n := float64(len(at))
		sum, squares = sum+n, squares+n*n
	}
	mean := sum / runs
	if variance := squares/runs - mean*mean; math.Abs(mean-50) > 0.6 || math.Abs(variance-50) > 6 {
		t.Errorf("counts have mean %.2f and variance %.2f, want 50 and 50", mean, variance)
	}
	if share := late / sum; math.Abs(share-0.65) > 0.01 { // the second half of 2..8 is 5..8: 32.5 of 50
		t.Errorf("%.3f of the arrivals are in the second half, want 0.65", share)
	}
	if at := slices.Collect((Rate{From: 4, To: 4, Even: true}).Arrivals(0, 0, time.Second, nil)); len(at) != 4 {
		t.Errorf("%d arrivals at 4/s in 1 s: %v", len(at), at)
	}
	if at := slices.Collect((Rate{From: 4, To: 4, Even: true}).Arrivals(0, 3, time.Second, nil)); len(at) != 3 {
		t.Errorf("%d arrivals, want 3 at most", len(at))
	}
}

func TestParseRate(t *testing.T) {
	for text, want := range map[string]Rate{"8": {8, 8, false}, "4..24": {4, 24, false}, "fixed:0.5": {0.5, 0.5, true}} {
		if got, err := ParseRate(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "0", "-1", "x", "1..", "..2", "NaN", "Inf", "1e9", "fixed:", "8/s"} {
		if got, err := ParseRate(text); err == nil || !strings.HasPrefix(err.Error(), "rate is ") {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func FuzzParseRate(f *testing.F) {
	for _, text := range []string{"8", "4..24", "fixed:0.5", "fixed:20..0.001", "1e6..1e-300"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseRate(text)
		if err != nil {
			return
		}
		last := time.Duration(0)
		for _, at := range slices.Collect(r.Arrivals(0.5, 20, 0, rand.New(rand.NewPCG(1, 2)))) {
			if at < last {
				t.Fatalf("%q: an arrival at %v after one at %v", text, at, last)
			}
			last = at
		}
		for _, at := range slices.Collect(r.Arrivals(0, 100, time.Second, rand.New(rand.NewPCG(1, 2)))) {
			if at >= time.Second {
				t.Fatalf("%q: an arrival at %v of 1 s", text, at)
			}
		}
	})
}

func TestDist(t *testing.T) {
	for text, want := range map[string]struct {
		min, max int
		mean     float64
	}{
		"128":                      {128, 128, 128},
		"64:256":                   {64, 256, 160},
		"uniform:1:3":              {1, 3, 2},
		"normal:100:10":            {1, math.MaxInt, 100},
		"normal:100:30:90:110":     {90, 110, 100},
		"normal:1:0":               {1, math.MaxInt, 1},
		"lognormal:200:1":          {1, math.MaxInt, 200 * math.Exp(0.5)},
		"lognormal:200:1.5:1:1000": {1, 1000, -1},
		"exp:300":                  {1, math.MaxInt, 300},
		"exp:300:100:2000":         {100, 2000, -1},
		"lognormal:1000000000:10":  {1, math.MaxInt, -1},
	} {
		d, err := ParseDist(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if d.Max() != want.max || want.mean >= 0 && math.Abs(d.Mean()-want.mean) > 0.005*want.mean {
			t.Errorf("%s: mean %g, max %d, want %g, %d", text, d.Mean(), d.Max(), want.mean, want.max)
		}
		rng := rand.New(rand.NewPCG(1, 1))
		sum, squares := 0.0, 0.0
		const n = 40_000
		for range n {
			x := d.Draw(rng)
			if x < want.min || x > want.max {
				t.Fatalf("%s: drew %d", text, x)
			}
			sum, squares = sum+float64(x), squares+float64(x)*float64(x)
		}
		mean := sum / n
		if deviation := math.Sqrt(squares/n-mean*mean) / math.Sqrt(n); text != "lognormal:1000000000:10" &&
			math.Abs(mean-d.Mean()) > 5*deviation+1e-9 {
			t.Errorf("%s: drew a mean of %g +- %g, Mean says %g", text, mean, deviation, d.Mean())
		}
	}
	for _, text := range []string{"", "0", "-5", "1.5", "256:64", "0:5", "uniform", "uniform:1", "normal:5",
		"normal:5:1:2", "lognormal:0:1", "lognormal:5:11", "exp:0", "exp:5:1", "exp:1:2:3:4", "zipf:2", "x:y", "NaN", "1e300",
		":", "normal:1:2:0:5"} {
		if d, err := ParseDist(text); err == nil || !strings.Contains(err.Error(), "lognormal:median:sigma") {
			t.Errorf("%q: %+v, error %v", text, d, err)
		}
	}
}

func FuzzParseDist(f *testing.F) {
	for _, text := range []string{"128", "64:256", "normal:5:1:2:9", "normal:5:1:6:6", "lognormal:200:1",
		"exp:300:100:2000", "uniform:1:3", "1e2"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := ParseDist(text)
		if err != nil {
			return
		}
		rng := rand.New(rand.NewPCG(1, 2))
		for range 100 {
			if x := d.Draw(rng); x < 1 || x > d.Max() {
				t.Fatalf("%q drew %d of at most %d", text, x, d.Max())
			}
		}
		if !(d.Mean() >= 1 && d.Mean() <= float64(d.Max())) {
			t.Fatalf("%q has mean %g of at most %d", text, d.Mean(), d.Max())
		}
	})
}
