package vllm

import (
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func parsed(t *testing.T, page string) Counters {
	t.Helper()
	f, err := parseMetrics([]byte(page))
	if err != nil {
		t.Fatal(err)
	}
	return f.counters()
}

func TestCountersSumLabels(t *testing.T) {
	got := parsed(t, metricsPage)
	want := Counters{
		"vllm:num_requests_running": 3, "vllm:num_requests_waiting_by_reason": 3, "vllm:kv_cache_usage_perc": 0.25,
		"vllm:prefix_cache_hits_total": 640, "vllm:time_to_first_token_seconds_count": 4,
		"vllm:time_to_first_token_seconds_sum": 0.5, "vllm:cache_config_info": 1,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("counters (-want +got):\n%s", diff)
	}
}

// Two engines: counts and queues add up, a share of each engine's own cache does not.
func TestCountersOfSeveralEngines(t *testing.T) {
	got := parsed(t, `# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0"} 100
vllm:generation_tokens_total{engine="1"} 50
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0"} 0.9
vllm:kv_cache_usage_perc{engine="1"} 0.1
`)
	if got["vllm:generation_tokens_total"] != 150 || got["vllm:kv_cache_usage_perc"] != 0.5 {
		t.Errorf("%v", got)
	}
}

func TestDelta(t *testing.T) {
	before := Counters{"a_total": 10, "b_sum": 1.5, "c_count": 4, "gauge": 7, "lost_total": 3}
	for _, c := range []struct {
		name               string
		before, now, moved Counters
	}{
		{"grows", before, Counters{"a_total": 12, "b_sum": 2, "c_count": 4, "gauge": 9, "new_total": 5},
			Counters{"a_total": 2, "b_sum": 0.5, "c_count": 0, "new_total": 5}},
		{"one counter began again", before, Counters{"a_total": 3, "b_sum": 2}, Counters{"a_total": 3, "b_sum": 0.5}},
		{"restarted, and already past the old value",
			Counters{"a_total": 10, startTime: 100}, Counters{"a_total": 25, startTime: 200}, Counters{"a_total": 25}},
		{"same process", Counters{"a_total": 10, startTime: 100}, Counters{"a_total": 25, startTime: 100},
			Counters{"a_total": 15}},
		{"nothing known before", nil, Counters{"a_total": 4}, Counters{"a_total": 4}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.moved, c.now.Delta(c.before)); diff != "" {
				t.Errorf("moved (-want +got):\n%s", diff)
			}
		})
	}
}

// Whatever a page holds, parsing ends, and no counter moves backwards against itself.
func FuzzMetrics(f *testing.F) {
	f.Add(metricsPage)
	f.Add("vllm:x_total 1e400\nvllm:y{a=\"b\\\"\"} NaN 123\n")
	f.Add("# TYPE vllm:h histogram\nvllm:h_bucket{le=\"1\"} 2\nvllm:h_sum -1\n")
	f.Add("# TYPE vllm:s summary\nvllm:s{quantile=\"0.5\"} 2\nvllm:s_count 3\n\xff")
	f.Fuzz(func(t *testing.T, page string) {
		families, err := parseMetrics([]byte(page))
		if err != nil {
			return
		}
		c := families.counters()
		for name := range c {
			if strings.HasSuffix(name, "_created") && families[name] != nil {
				t.Errorf("%s is a birth date, no figure", name)
			}
		}
		for name, v := range c.Delta(c) {
			if v != 0 && !math.IsNaN(v) {
				t.Errorf("%s moved by %v against itself", name, v)
			}
		}
		features(families, nil)
	})
}
