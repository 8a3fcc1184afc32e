package profile

import (
	"slices"
	"testing"
	"time"

	"kvtune/harness"
	"kvtune/harness/workload"
)

// Gauges count from the first measured request that is sent to the last token; a host's samples always do.
func TestGaugesOfTheMeasuredWindow(t *testing.T) {
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	records := []workload.Record{
		{Phase: workload.Prime, Sent: 0, Tokens: []workload.TokenEvent{{At: ms(100), Tokens: 1}}},
		{Sent: ms(200), Tokens: []workload.TokenEvent{{At: ms(50), Tokens: 1}}},
		{Sent: ms(210), Tokens: []workload.TokenEvent{{At: ms(90), Tokens: 1}}},
		{Phase: workload.Warmup, Sent: ms(150), Tokens: []workload.TokenEvent{{At: ms(500), Tokens: 1}}},
	}
	series := []harness.Sample{
		{T: -ms(1), Metric: "vllm:num_requests_running"}, {T: ms(100), Metric: "vllm:num_requests_running"},
		{T: ms(100), Metric: harness.SeriesHostMemory}, {T: ms(200), Metric: "vllm:num_requests_running"},
		{T: ms(300), Metric: "vllm:num_requests_running"}, {T: ms(301), Metric: "vllm:num_requests_running"},
	}
	want := []harness.Sample{series[2], series[3], series[4]}
	if got := measured(series, records); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := measured(series, records[:1]); !slices.Equal(got, series[2:3]) {
		t.Errorf("without a measured request: %v", got)
	}
}
