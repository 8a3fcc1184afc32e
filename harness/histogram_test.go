package harness

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func TestHistogramPercentile(t *testing.T) {
	h := Histogram{Upper: []float64{1, 2, 4}, AtMost: []float64{0, 10, 30}, Sum: 90, Count: 40}
	for _, c := range []struct {
		p, value, low, high float64
		ok                  bool
	}{
		{0, 1, 1, 2, true}, {12.5, 1.5, 1, 2, true}, {25, 2, 1, 2, true}, {50, 3, 2, 4, true}, {75, 4, 2, 4, true},
		{76, 0, 4, 0, false},
	} {
		value, low, high, ok := h.Percentile(c.p)
		if value != c.value || low != c.low || high != c.high || ok != c.ok {
			t.Errorf("p%g: %g in %g to %g, %v; want %+v", c.p, value, low, high, ok, c)
		}
	}
	if _, _, _, ok := (Histogram{}).Percentile(50); ok {
		t.Error("a percentile of nothing")
	}
}

// The bucket that Percentile names holds the sample of that rank, whatever the samples.
func TestHistogramPercentileHoldsTheSample(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		h := Histogram{Upper: []float64{0.1, 0.2, 0.5, 1}, AtMost: make([]float64, 4)}
		samples := make([]float64, 1+rng.IntN(50))
		for i := range samples {
			samples[i] = rng.Float64()
			h.Count, h.Sum = h.Count+1, h.Sum+samples[i]
			for k, le := range h.Upper {
				if samples[i] <= le {
					h.AtMost[k]++
				}
			}
		}
		slices.Sort(samples)
		rank := 1 + rng.IntN(len(samples))
		p := 100 * (float64(rank) - 0.5) / float64(len(samples)) // clear of the ranks beside it
		value, low, high, ok := h.Percentile(p)
		if s := samples[rank-1]; !ok || s < low || s > high || value < low || value > high {
			t.Fatalf("p%g of %v: %g in %g to %g, %v; the sample is %g", p, samples, value, low, high, ok, s)
		}
	}
}

func TestHistogramSince(t *testing.T) {
	before := Histogram{Upper: []float64{1, 2}, AtMost: []float64{1, 2}, Sum: 3, Count: 2}
	after := Histogram{Upper: []float64{1, 2}, AtMost: []float64{1, 5}, Sum: 9, Count: 6}
	d := after.Since(before)
	if !slices.Equal(d.AtMost, []float64{0, 3}) || d.Sum != 6 || d.Count != 4 {
		t.Errorf("%+v", d)
	}
	for _, other := range []Histogram{{}, {Upper: []float64{1, 3}, AtMost: []float64{1, 1}, Count: 1}} {
		if d := after.Since(other); d.Count != after.Count {
			t.Errorf("since one with other bounds: %+v", d)
		}
	}
	if d := before.Since(after); d.Count != before.Count {
		t.Errorf("after a restart: %+v", d)
	}
}

func TestObserveEngine(t *testing.T) {
	ms := ObserveEngine(map[string]Histogram{
		HistogramTTFT: {Upper: []float64{0.1, 0.25}, AtMost: []float64{2, 4}, Sum: 0.6, Count: 4},
		HistogramITL:  {Upper: []float64{0.01}, AtMost: []float64{0}, Sum: 1, Count: 5},
	})
	if m := ms.Get(MetricEngineTTFT, StatMean); m == nil || *m.Value != 0.15 || m.N != 4 {
		t.Errorf("mean %+v", m)
	}
	if m := ms.Get(MetricEngineTTFT, StatP99); m == nil || *m.Low != 0.1 || *m.High != 0.25 {
		t.Errorf("p99 %+v", m)
	}
	if m := ms.Get(MetricEngineITL, StatP50); m == nil || m.Value != nil || *m.Low != 0.01 {
		t.Errorf("above the last bound: %+v", m)
	}
	if m := ms.Get(MetricEngineE2EL, StatP50); m == nil || m.Value != nil || m.Note == "" {
		t.Errorf("not exported: %+v", m)
	}
}
