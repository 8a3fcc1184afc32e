package harness

import (
	"math"
	"strconv"
	"strings"
)

// Words is a metric's name for people, with its statistic: "total throughput", "TTFT p99", "KV usage peak".
func Words(metric, stat string) string {
	switch metric {
	case MetricMemoryDevice:
		metric = "kv_memory"
	case MetricMemoryHost:
		metric = "host_memory"
	case MetricPower:
		metric = "throughput_over_p99_latency"
	}
	words := strings.Fields(strings.ReplaceAll(metric, "_", " ") + " " + stat)
	for i, w := range words {
		switch w {
		case "ttft", "itl", "tpot", "e2el", "kv":
			words[i] = strings.ToUpper(w)
		}
	}
	return strings.Join(words, " ")
}

// Percent writes a share: one decimal below a tenth, none above; with a plus where signed and above 0.
func Percent(share float64, signed bool) string {
	decimals := 1
	if math.Abs(share) >= 0.1 {
		decimals = 0
	}
	text := strconv.FormatFloat(100*share, 'f', decimals, 64)
	if strings.Trim(text, "-0.") == "" {
		return strings.TrimPrefix(text, "-") + " %" // no sign before nothing
	}
	if signed && share > 0 {
		text = "+" + text
	}
	return text + " %"
}

// Definition says what a metric is, in words for a footnote; "" for a metric that has none. Tables, page and help take
// their words from here, so that a metric means the same everywhere.
func Definition(metric string) string {
	switch metric {
	case MetricTTFT:
		return "time to first token: from the moment a request was due (open loop) or sent (closed loop) to its first token"
	case MetricITL:
		return "inter-token latency: the gaps between consecutive token events, all requests pooled"
	case MetricTPOT:
		return "time per output token after the first: (last - first token) / (output tokens - 1), one value per request"
	case MetricE2EL:
		return "end-to-end latency: from the moment a request was due (open loop) or sent (closed loop) to its last token"
	case MetricRequestThroughput:
		return "finished requests / duration"
	case MetricOutputThroughput:
		return "output tokens of finished requests / duration"
	case MetricTotalThroughput:
		return "prompt and output tokens of finished requests / duration; prompt tokens count whether cached or not"
	case MetricGoodput:
		return "requests that met every objective / duration"
	case MetricBatchEfficiency:
		return "requests running / requests that could have run (the smaller of max_num_seqs and running + " +
			"waiting), over the run; below 100 % the token budget or KV memory kept requests out of the batch"
	case MetricCacheHitRate:
		return "prompt tokens found in the prefix cache / prompt tokens looked up"
	case MetricBestHitRate:
		return "what a prefix cache without limits would have hit: prompt tokens in full blocks that an earlier " +
			"request had computed / prompt tokens"
	case MetricKVUsage:
		return "KV blocks that requests hold / all blocks; cached blocks that nobody holds do not count"
	case MetricMemoryDevice:
		return "device memory that requests' KV blocks hold (KV usage x size of the KV cache); weights and " +
			"activations are not in it"
	case MetricMemoryHost:
		return "memory in use on the machine that kvtune runs on"
	case MetricComputeUse:
		return "the least time that the arithmetic of the steps takes at the device's ceiling / the time " +
			"that passed (MFU)"
	case MetricBandwidthUse:
		return "the least time that reading weights and KV takes at the device's ceiling / the time " +
			"that passed (MBU)"
	case MetricBudgetUse:
		return "new tokens of the steps / (steps x max_num_batched_tokens)"
	case MetricPartialBatches:
		return "share of the time in steps in which requests wait although fewer than max_num_seqs run"
	case MetricPreemptions:
		return "how often a running request lost its KV blocks and began again"
	case MetricQueueTime:
		return "from arrival in the scheduler to first scheduled"
	}
	return ""
}
