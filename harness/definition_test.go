package harness

import "testing"

func TestWordsAndPercent(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{Words(MetricTotalThroughput, ""), "total throughput"},
		{Words(MetricTTFT, StatP99), "TTFT p99"},
		{Words(MetricKVUsage, StatPeak), "KV usage peak"},
		{Words(MetricMemoryDevice, StatPeak), "KV memory peak"},
		{Percent(0.0234, true), "+2.3 %"},
		{Percent(2.809, true), "+281 %"},
		{Percent(-0.25, false), "-25 %"},
		{Percent(0.0001, true), "0.0 %"}, // no sign before nothing
		{Percent(-0.0001, true), "0.0 %"},
	} {
		if c.got != c.want {
			t.Errorf("%q, want %q", c.got, c.want)
		}
	}
}
