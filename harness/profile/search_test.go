package profile_test

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"kvtune/harness"
	"kvtune/harness/profile"
	"kvtune/harness/workload"
)

// queue is a server with one place that takes service per request, in virtual time: an open loop at a rate, evenly.
func queue(rate float64, n int, service time.Duration) *profile.Output {
	var free time.Duration
	var records []workload.Record
	for i := range n {
		due := time.Duration(float64(i) / rate * 1e9)
		free = max(free, due) + service
		records = append(records, workload.Record{Index: i, Due: &due, Sent: due, PromptTokens: 1, OutputTokens: 1,
			Tokens: []workload.TokenEvent{{At: free - due, Tokens: 1}}})
	}
	return &profile.Output{Records: records, Result: &harness.Result{Metrics: harness.Measure(records)}}
}

func objective(t *testing.T, text string) []harness.SLO {
	t.Helper()
	slo, err := harness.ParseSLO(text)
	if err != nil {
		t.Fatal(err)
	}
	return []harness.SLO{slo}
}

func TestSearchRateFindsTheKnee(t *testing.T) {
	for _, c := range []struct {
		name     string
		from, to float64
		service  time.Duration
		best     float64 // -1: none keeps it; the bound: all do
		bound    bool
	}{
		{"a knee at 40/s", 1, 1000, 25 * time.Millisecond, 40, false},
		{"everything is kept", 1, 8, 25 * time.Millisecond, 8, true},
		{"nothing is", 100, 200, 25 * time.Millisecond, -1, false},
		{"at the lower bound", 40, 200, 25 * time.Millisecond, 40, false},
	} {
		var rates []float64
		s, err := profile.SearchRate(t.Context(), profile.SearchOptions{
			From: c.from, To: c.to, SLOs: objective(t, "p99 TTFT <= 60ms"),
			Measure: func(_ context.Context, rate float64) (*profile.Output, error) {
				rates = append(rates, rate)
				return queue(rate, 400, c.service), nil
			},
		})
		if err != nil || s.Ended != "" {
			t.Fatalf("%s: %v %s", c.name, err, s.Ended)
		}
		if c.best < 0 {
			if s.Best != -1 || len(rates) != 1 || s.Steps[0].Why == "" {
				t.Errorf("%s: best %d after %v", c.name, s.Best, rates)
			}
			continue
		}
		best := s.Steps[s.Best].Rate
		if math.Abs(best-c.best) > 0.06*c.best || (s.Missed == -1) != c.bound || len(rates) > 14 {
			t.Errorf("%s: best %.2f/s after %v, want %.0f", c.name, best, rates, c.best)
		}
		if !c.bound && s.Steps[s.Missed].Rate > best*1.05 {
			t.Errorf("%s: the bracket is %g to %g", c.name, best, s.Steps[s.Missed].Rate)
		}
		for _, r := range rates {
			if r > 2*c.best+1e-9 {
				t.Errorf("%s: asked for %g/s, more than twice what it can do", c.name, r)
			}
		}
	}
}

// Short runs keep a latency objective although the server cannot follow: the pile shows it.
func TestFallsBehind(t *testing.T) {
	if _, more := profile.FallsBehind(queue(38, 400, 25*time.Millisecond).Records); more {
		t.Error("a server at 95 % falls behind")
	}
	if n, more := profile.FallsBehind(queue(60, 400, 25*time.Millisecond).Records); !more || n != 200 {
		t.Errorf("a server at 150 %% does not fall behind (%d)", n)
	}
	s, err := profile.SearchRate(t.Context(),
		profile.SearchOptions{From: 60, To: 60, SLOs: objective(t, "p99 TTFT <= 900s"),
			Measure: func(_ context.Context, rate float64) (*profile.Output, error) {
				return queue(rate, 400, 25*time.Millisecond), nil
			}})
	if err != nil || s.Best != -1 || !strings.Contains(s.Steps[0].Why, "falls behind") {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestSearchRateEnds(t *testing.T) {
	slos := objective(t, "p99 TTFT <= 60ms")
	limited := func(_ context.Context, rate float64) (*profile.Output, error) {
		out := queue(rate, 100, time.Millisecond)
		if rate > 5 {
			out = queue(rate, 100, time.Second)
			out.Result.Conditions.GeneratorLimited = "late"
		}
		return out, nil
	}
	s, err := profile.SearchRate(t.Context(), profile.SearchOptions{From: 1, To: 100, SLOs: slos, Measure: limited})
	if err != nil || !strings.Contains(s.Ended, "generator") || s.Steps[s.Best].Rate != 4 {
		t.Errorf("%+v, %v", s, err)
	}
	broken := errors.New("disk full")
	if _, err := profile.SearchRate(t.Context(), profile.SearchOptions{From: 1, To: 2, SLOs: slos,
		Measure: func(context.Context, float64) (*profile.Output, error) { return nil, broken }}); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	for _, opt := range []profile.SearchOptions{{From: 0, To: 1, SLOs: slos}, {From: 2, To: 1, SLOs: slos},
		{From: 1, To: 2}} {
		if _, err := profile.SearchRate(t.Context(), opt); err == nil {
			t.Errorf("%+v is accepted", opt)
		}
	}
}
