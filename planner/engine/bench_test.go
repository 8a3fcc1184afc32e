package engine

import (
	"testing"
	"time"

	"kvtune/harness/workload"
)

// BenchmarkVirtual is a run of 500 requests on a new engine, as a ranking of settings makes many.
func BenchmarkVirtual(b *testing.B) {
	w := &workload.Workload{}
	for i := range 500 {
		w.Requests = append(w.Requests, workload.Request{Index: i, After: -1, Due: time.Duration(i) * 80 * time.Millisecond,
			Prompt: []workload.Segment{{ID: uint64(i) + 1, Tokens: 800}}, OutputTokens: 200})
	}
	for b.Loop() {
		e, err := New(options(b))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := e.Virtual(b.Context(), w); err != nil {
			b.Fatal(err)
		}
		if err := e.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(500*b.N)/b.Elapsed().Seconds(), "requests/s")
}
