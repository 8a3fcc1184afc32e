package harness

import "slices"

// Histogram is a server's histogram as Prometheus has it: how many samples were at most each upper bound.
type Histogram struct {
	// Upper are the finite bounds in ascending order, in the metric's unit; AtMost counts the samples up to each.
	Upper  []float64 `json:"le"`
	AtMost []float64 `json:"at_most"`
	// Sum and Count are those of all samples, also above the last bound.
	Sum   float64 `json:"sum"`
	Count float64 `json:"count"`
}

// Since is what was added since before. A histogram that shrank, or has other bounds, began again: all of it is new.
func (h Histogram) Since(before Histogram) Histogram {
	if h.Count < before.Count || !slices.Equal(h.Upper, before.Upper) {
		return h
	}
	d := Histogram{Upper: h.Upper, AtMost: slices.Clone(h.AtMost), Sum: h.Sum - before.Sum, Count: h.Count - before.Count}
	for i := range d.AtMost {
		d.AtMost[i] -= before.AtMost[i]
	}
	return d
}

// Percentile places the p-th percentile, 0 to 100: low and high bound the bucket that holds it, and value assumes the
// bucket's samples to be spread evenly (Prometheus' histogram_quantile). It is false without samples, and where the
// percentile lies above the last bound: then low is that bound.
func (h Histogram) Percentile(p float64) (value, low, high float64, ok bool) {
	if h.Count <= 0 || len(h.Upper) == 0 {
		return 0, 0, 0, false
	}
	rank, below := p/100*h.Count, 0.0
	for i, n := range h.AtMost {
		if n >= rank && n > below {
			high = h.Upper[i]
			return min(high, low+(high-low)*max(0, rank-below)/(n-below)), low, high, true
		}
		low, below = h.Upper[i], n
	}
	return 0, low, 0, false
}

// engineTimes are the histograms that vLLM 0.18 to 0.33 keeps of requests' times (vllm/v1/metrics/loggers.py) and the
// metrics that they become.
var engineTimes = [...]struct {
	family, metric string
	percentiles    bool
}{
	{HistogramTTFT, MetricEngineTTFT, true},
	{HistogramITL, MetricEngineITL, true},
	{HistogramE2EL, MetricEngineE2EL, true},
	{"vllm:request_queue_time_seconds", MetricQueueTime, false}, // its mean is among the counters' metrics
	{"vllm:request_prefill_time_seconds", MetricPrefillTime, false},
	{"vllm:request_decode_time_seconds", MetricDecodeTime, false},
}

// EngineHistograms are the names of the histograms that [ObserveEngine] reads.
func EngineHistograms() []string {
	names := make([]string, len(engineTimes))
	for i, e := range engineTimes {
		names[i] = e.family
	}
	return names
}

// ObserveEngine computes the server's own latencies from its histograms over a run, priming and warm-up included:
// means, and percentiles whose interval is the bucket that holds them. What the server does not export is "not
// observed".
func ObserveEngine(histograms map[string]Histogram) Metrics {
	var ms Metrics
	for _, e := range engineTimes {
		if e.metric == MetricQueueTime {
			continue
		}
		h, ok := histograms[e.family]
		why := ""
		switch {
		case !ok:
			why = "the server does not export " + e.family
		case h.Count <= 0:
			why = "no sample in the run"
		}
		n := int(h.Count)
		if why != "" {
			ms = append(ms, absent(e.metric, StatMean, "s", why))
		} else {
			ms = append(ms, observed(e.metric, StatMean, "s", h.Sum/h.Count, n))
		}
		if !e.percentiles {
			continue
		}
		for _, p := range percentiles {
			if why != "" {
				ms = append(ms, absent(e.metric, p.stat, "s", why))
				continue
			}
			value, low, high, ok := h.Percentile(p.p)
			if !ok {
				m := absent(e.metric, p.stat, "s", "above the last bound of the server's histogram")
				m.Low, m.N = &low, n
				ms = append(ms, m)
				continue
			}
			m := observed(e.metric, p.stat, "s", value, n)
			m.Low, m.High = &low, &high
			ms = append(ms, m)
		}
	}
	return ms
}
