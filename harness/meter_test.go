package harness

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"kvtune/harness/workload"
)

// A Meter gives what Measure gives: the same metrics, sums and means exactly, percentiles to 3 digits.
func TestMeterIsMeasure(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var records []workload.Record
	at := time.Second
	for i := range 4000 {
		at += time.Duration(rng.ExpFloat64() * 2e7)
		due, cached := at, rng.IntN(3)
		r := workload.Record{Index: i, Due: &due, Sent: due + time.Duration(rng.IntN(1e6)), PromptTokens: 1 + rng.IntN(900),
			CachedTokens: &cached, AskedTokens: 100, FinishReason: "length"}
		when := time.Duration(5e7 + rng.ExpFloat64()*1e8)
		for range 1 + rng.IntN(100) {
			r.Tokens = append(r.Tokens, workload.TokenEvent{At: when, Tokens: 1})
			when += time.Duration(1e7 + rng.ExpFloat64()*5e6)
			r.OutputTokens++
		}
		switch {
		case i < 50:
			r.Phase = workload.Warmup
		case i%97 == 0:
			r.Error = "status 503"
		case i%89 == 0:
			r.OutputTokens += 3 // more than its events carry
		}
		records = append(records, r)
	}
	m := NewMeter()
	for _, i := range rng.Perm(len(records)) {
		m.Add(&records[i])
	}
	want, got := Measure(records), m.Metrics()
	if len(got) != len(want) {
		t.Fatalf("%d metrics, want %d", len(got), len(want))
	}
	for i, w := range want {
		g := got[i]
		if g.Name != w.Name || g.Stat != w.Stat || g.Unit != w.Unit {
			t.Fatalf("metric %d is %s %s, want %s %s", i, g.Name, g.Stat, w.Name, w.Stat)
		}
		if w.Name == MetricDecodeLatency {
			if g.Value != nil || g.Note == "" {
				t.Errorf("%v: expected not observed, with the reason", g)
			}
			continue
		}
		if g.N != w.N || g.Note != w.Note {
			t.Errorf("%v (n %d, %q), want %v (n %d, %q)", g, g.N, g.Note, w, w.N, w.Note)
		}
		exact := w.Stat == "" || w.Stat == StatMean || w.Stat == StatTotal || w.Stat == StatOK || w.Stat == StatFail
		for k, pair := range [][2]*float64{{g.Value, w.Value}, {g.Low, w.Low}, {g.High, w.High}} {
			tolerance := 2e-3
			if exact && k == 0 {
				tolerance = 1e-9
			}
			if (pair[0] == nil) != (pair[1] == nil) || pair[0] != nil &&
				math.Abs(*pair[0]-*pair[1]) > tolerance*math.Abs(*pair[1]) {
				t.Errorf("%v, want %v", g, w)
				break
			}
		}
	}
}

// What is longer than the histogram holds is not observed rather than the histogram's end.
func TestMeterBeyondTheHistogram(t *testing.T) {
	m := NewMeter()
	for i := range 100 {
		at := time.Second
		if i >= 80 {
			at = 2 * time.Hour
		}
		m.Add(&workload.Record{PromptTokens: 1, OutputTokens: 1, Tokens: []workload.TokenEvent{{At: at, Tokens: 1}}})
	}
	ms := m.Metrics()
	if v, ok := ms.Value(MetricTTFT, StatP50); !ok || math.Abs(v-1) > 1e-3 {
		t.Errorf("p50 is %v (%v), want 1", v, ok)
	}
	if p99 := ms.Get(MetricTTFT, StatP99); p99.Value != nil ||
		p99.Note != "above 1h0m0s, the longest that the histogram holds" {
		t.Errorf("p99 is %v", p99)
	}
	if v, _ := ms.Value(MetricTTFT, StatMean); math.Abs(v-(80+20*7200)/100.0) > 1e-9 {
		t.Errorf("mean is %v", v)
	}
}

// Records of which only the ends are known have no gaps.
func TestEndsOnlyHasNoITL(t *testing.T) {
	r := workload.Record{PromptTokens: 1, OutputTokens: 9, EndsOnly: true,
		Tokens: []workload.TokenEvent{{At: time.Second, Tokens: 1}, {At: 3 * time.Second, Tokens: 8}}}
	m := NewMeter()
	m.Add(&r)
	for _, ms := range []Metrics{Measure([]workload.Record{r}), m.Metrics()} {
		if _, ok := ms.Value(MetricITL, StatMean); ok {
			t.Error("a gap between tokens whose moments are not known")
		}
		if v, _ := ms.Value(MetricTPOT, StatMean); v != 0.25 {
			t.Errorf("TPOT is %g, want 2 s / 8", v)
		}
	}
}
