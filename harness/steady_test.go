package harness

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"kvtune/harness/workload"
)

func TestSteadyFrom(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	series := func(n int, f func(i int) float64) []float64 {
		x := make([]float64, n)
		for i := range x {
			x[i] = f(i)
		}
		return x
	}
	for _, c := range []struct {
		name     string
		values   []float64
		low, top int // of what is left out
		ok       bool
	}{
		{"steady", series(1000, func(int) float64 { return 10 + rng.NormFloat64() }), 0, 150, true},
		{"constant", series(100, func(int) float64 { return 7 }), 0, 0, true},
		{"cold start", series(1000, func(i int) float64 { return 10 + rng.NormFloat64() + 50*math.Exp(-float64(i)/30) }), 60,
			250, true},
		{"slow at first", series(400, func(i int) float64 {
			return map[bool]float64{true: 100, false: 10}[i < 50] + rng.Float64()
		}), 50, 70, true},
		{"grows without end", series(1000, func(i int) float64 { return float64(i) }), 0, 0, false},
		{"too few", series(19, func(int) float64 { return 1 }), 0, 0, false},
	} {
		if got, ok := SteadyFrom(c.values); ok != c.ok || got < c.low || got > c.top {
			t.Errorf("%s: the first %d of %d are warm-up, ok %v; want %d to %d, %v", c.name, got, len(c.values), ok, c.low,
				c.top, c.ok)
		}
	}
}

// The rule by its definition, beside the one pass.
func TestSteadyFromIsTheSmallestStandardError(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		x := make([]float64, 20+rng.IntN(200))
		for i := range x {
			x[i] = 1e6 + rng.ExpFloat64()*100/(1+float64(i))
		}
		n := len(x) / 5
		mean := make([]float64, n)
		for i := range mean {
			mean[i] = (x[5*i] + x[5*i+1] + x[5*i+2] + x[5*i+3] + x[5*i+4]) / 5
		}
		best, want := math.Inf(1), 0
		for d := 0; d+4 <= n; d++ {
			m, se := 0.0, 0.0
			for _, v := range mean[d:] {
				m += v / float64(n-d)
			}
			for _, v := range mean[d:] {
				se += (v - m) * (v - m)
			}
			if se /= float64((n - d) * (n - d)); se < best {
				best, want = se, d
			}
		}
		got, ok := SteadyFrom(x)
		if ok != (want <= n/2) || ok && got != 5*want {
			t.Fatalf("%d values: %d, %v; want %d of %d batches", len(x), got, ok, want, n)
		}
	}
}

func TestExcludeWarmup(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	var records []workload.Record
	for i := range 300 {
		took := 20*ms + time.Duration(rng.IntN(int(ms)))
		if i < 40 {
			took = 500 * ms
		}
		records = append(records, request(time.Duration(i)*ms, 5*ms, took))
	}
	records[0].Phase, records[3].Error = workload.Prime, "lost"
	marked, ok := ExcludeWarmup(records)
	if !ok || marked < 39 || marked > 60 {
		t.Fatalf("%d are warm-up, %v; want about 39", marked, ok)
	}
	if records[0].Phase != workload.Prime || records[3].Phase != workload.Warmup ||
		records[200].Phase != workload.Measured {
		t.Error("the wrong requests were marked")
	}
	if p99, _ := Measure(records).Value(MetricE2EL, StatP99); p99 > 0.022 {
		t.Errorf("p99 E2EL is %v s with the warm-up left out, want 21 ms", p99)
	}
	if again, ok := ExcludeWarmup(records); !ok || again > 60 {
		t.Errorf("a second time it marks %d, %v", again, ok)
	}
}
