package harness

import (
	"fmt"
	"math"
	"time"

	"kvtune/harness/stats"
)

// The names of metrics. Each comment is the metric's definition. "Requests" are the measured ones (Phase ""),
// "finished" those of them that succeeded; latencies are over finished requests only, as in `vllm bench serve` (vLLM
// 0.26, vllm/benchmarks/serve.py).
//
// Computed by [Measure] from request records.
const (
	// MetricRequests (request) counts requests; stats "ok" (finished) and "failed".
	MetricRequests = "requests"
	// MetricErrorRate (ratio) is failed / (ok + failed).
	MetricErrorRate = "error_rate"
	// MetricDuration (s) is from the first send to the last token of any request, failed ones included: what
	// throughputs are divided by.
	MetricDuration = "duration"
	// MetricPromptTokens, MetricCachedTokens, MetricOutputTokens and MetricAskedTokens (token, stat "total") are sums over
	// finished requests: prompt length, what the server says it took from its prefix cache, tokens that arrived, tokens
	// that were asked for.
	MetricPromptTokens = "prompt_tokens"
	MetricCachedTokens = "cached_tokens"
	MetricOutputTokens = "output_tokens"
	MetricAskedTokens  = "asked_tokens"

	// MetricTTFT (s) is the time to first token: first event minus the moment from which the user waits ([workload.Record]
	// Start: due in an open loop, sent in a closed one).
	MetricTTFT = "ttft"
	// MetricTTFTFromSend (s) is the same from the send: what `vllm bench serve` calls TTFT.
	MetricTTFTFromSend = "ttft_from_send"
	// MetricITL (s) is the inter-token latency: every gap between consecutive events of a request, all requests pooled. An
	// event that carries several tokens is one gap.
	MetricITL = "itl"
	// MetricTPOT (s) is the time per output token after the first: (last - first event) / (output tokens - 1), one value
	// per request with more than one token.
	MetricTPOT = "tpot"
	// MetricE2EL (s) is the end-to-end latency: last event minus Start.
	MetricE2EL = "e2el"
	// MetricE2ELFromSend (s) is the same from the send: what `vllm bench serve` calls E2EL.
	MetricE2ELFromSend = "e2el_from_send"
	// MetricSendLag (s) is sent minus due: the generator's own lateness. Not observed where nothing was due (closed loop).
	MetricSendLag = "send_lag"

	// MetricRequestThroughput (request/s) is finished requests / duration.
	MetricRequestThroughput = "request_throughput"
	// MetricOutputThroughput (token/s) is output tokens of finished requests / duration.
	MetricOutputThroughput = "output_throughput"
	// MetricTotalThroughput (token/s) is prompt and output tokens of finished requests / duration. Prompt tokens count
	// whether cached or not.
	MetricTotalThroughput = "total_throughput"
	// MetricGoodput (request/s) is requests that met every per-request objective / duration; see [Goodput].
	MetricGoodput = "goodput"

	// MetricPrefillLatency (s) is the time to first token from the send, of requests: queueing at the server, prefill and
	// the first token's way back. In a prefill profile nothing else runs.
	MetricPrefillLatency = "prefill_latency"
	// MetricDecodeLatency (s) is the time of one decode step: the gaps between a request's events that lie wholly where
	// as many requests decode together as ever do in the run (all B in a decode profile).
	MetricDecodeLatency = "decode_latency"
)

// Computed by [Observe] from the server's counters, gauges over time and KV cache figures.
const (
	// MetricCacheHitRate (ratio) is the change of vllm:prefix_cache_hits_total over that of
	// vllm:prefix_cache_queries_total: prompt tokens found in the prefix cache / prompt tokens looked up. vLLM before
	// 2026-07-21 counts a lookup again for every step in which a request is refused for lack of KV blocks, which lowers
	// the rate of a server short of KV.
	MetricCacheHitRate = "cache_hit_rate"
	// MetricKVUsage (ratio) is vllm:kv_cache_usage_perc: KV blocks that requests hold / all blocks (cached blocks that
	// nobody holds do not count); stats "mean" and "peak" over the samples, each of which holds until the next.
	MetricKVUsage = "kv_usage"
	// MetricPreemptions (request) is the change of vllm:num_preemptions_total.
	MetricPreemptions = "preemptions"
	// MetricQueueTime (s, "mean") is the change of vllm:request_queue_time_seconds_sum over that of its _count: from
	// arrival in the scheduler to first scheduled.
	MetricQueueTime = "queue_time"
	// MetricRunning and MetricWaiting (request) are vllm:num_requests_running and _waiting; stats "mean" and "peak",
	// as of kv_usage.
	MetricRunning = "running"
	MetricWaiting = "waiting"
	// MetricMemoryDevice (B) is device memory held by requests' KV: kv_usage x num_gpu_blocks x block_size x KV bytes per
	// token; stats "mean" and "peak". Weights and activations are not in it.
	MetricMemoryDevice = "memory_device"
	// MetricMemoryHost (B, "peak") is memory in use on the machine that kvtune runs on (series [SeriesHostMemory]): the
	// server's own machine under --launch and with the embedded engine.
	MetricMemoryHost = "memory_host"
	// MetricBatchEfficiency (ratio) is requests running / requests that could have run: the sum over samples of running
	// divided by the sum of min(max_num_seqs, running + waiting), each for as long as it holds. 1 means that nothing that
	// was there and allowed stayed out of the batch; below 1 the token budget or KV memory kept requests waiting beside
	// free sequence slots. It is defined on gauges that vLLM and the simulator both have (vllm:iteration_tokens_total is
	// no base for it: under chunked prefill it is not what a step scheduled). Where max_num_seqs is unknown, running +
	// waiting stands for it.
	MetricBatchEfficiency = "batch_efficiency"
)

// Computed by [ObserveEngine] from the server's own histograms. They count everything that was sent, priming and
// warm-up included, from the moment at which the request reaches the API server: what is between them and the client's
// figures is the network and the client.
const (
	// MetricEngineTTFT, MetricEngineITL and MetricEngineE2EL (s) are vllm:time_to_first_token_seconds,
	// vllm:inter_token_latency_seconds and vllm:e2e_request_latency_seconds.
	MetricEngineTTFT = "engine_ttft"
	MetricEngineITL  = "engine_itl"
	MetricEngineE2EL = "engine_e2el"
	// MetricPrefillTime and MetricDecodeTime (s, "mean") are vllm:request_prefill_time_seconds (first scheduled to first
	// token) and vllm:request_decode_time_seconds (first to last token); preemptions are inside.
	MetricPrefillTime = "prefill_time"
	MetricDecodeTime  = "decode_time"
)

// Computed by planner/analysis from engine steps and a cost model.
const (
	// MetricComputeUse (ratio) is the least time in which the ceiling of arithmetic lets the steps' work be done over the
	// time that passed (model flops utilisation, MFU); MetricBandwidthUse the same for reading weights and KV from device
	// memory (model bandwidth utilisation, MBU).
	MetricComputeUse   = "compute_use"
	MetricBandwidthUse = "bandwidth_use"
	// MetricBudgetUse (ratio) is new tokens of the steps / (steps x max_num_batched_tokens).
	MetricBudgetUse = "budget_use"
	// MetricPartialBatches (ratio) is the share of the time in steps in which requests wait although fewer than
	// max_num_seqs run.
	MetricPartialBatches = "partial_batches"
	// MetricBestHitRate (ratio) is the cache hit rate of a prefix cache without limits.
	MetricBestHitRate = "best_cache_hit_rate"
)

// Computed by harness/profile from a probe that fills the KV cache.
const (
	// MetricKVCapacity (token) is how many tokens the KV cache holds: tokens of the requests in it / its usage.
	MetricKVCapacity = "kv_capacity"
	// MetricPreemptionOnset (ratio) is the KV cache's usage at the last reading before a request was preempted.
	MetricPreemptionOnset = "preemption_onset"
)

// Computed by the planner, of plans.
const (
	// MetricPower (token/s^2) is total throughput over p99 end-to-end latency (Kleinrock's power): what a balanced choice
	// gains.
	MetricPower = "power"
	// MetricKVCacheSize (B, or token where bytes per token are unknown) is the memory that the KV cache is given.
	MetricKVCacheSize = "kv_cache_size"
)

// HigherIsBetter reports whether a larger value of a metric is the better one: throughputs, goodput, power, cache hits
// and batch efficiency. Latencies, errors and use of resources are better when they are low.
func HigherIsBetter(metric string) bool {
	switch metric {
	case MetricRequestThroughput, MetricOutputThroughput, MetricTotalThroughput, MetricGoodput, MetricPower,
		MetricCacheHitRate, MetricBatchEfficiency:
		return true
	}
	return false
}

// Names in [Sample].Metric. The first three are vLLM's gauges under its own names (vllm/v1/metrics/loggers.py), the
// others the host's.
const (
	SeriesRunning = "vllm:num_requests_running" // request
	SeriesWaiting = "vllm:num_requests_waiting" // request
	SeriesKVUsage = "vllm:kv_cache_usage_perc"  // ratio, 0..1

	// Rates of the server's counters between two readings; one that began again counts from 0.
	SeriesPromptRate     = "prompt_rate"     // prompt tokens per second
	SeriesOutputRate     = "output_rate"     // generated tokens per second
	SeriesPreemptionRate = "preemption_rate" // requests per second

	SeriesHostCPU    = "host_cpu"    // ratio of all cores, 0..1
	SeriesHostMemory = "host_memory" // bytes in use

	SeriesGPUSMClock     = "gpu_sm_clock"     // Hz
	SeriesGPUMemoryClock = "gpu_memory_clock" // Hz
	SeriesGPUPower       = "gpu_power"        // W
	SeriesGPUTemperature = "gpu_temperature"  // degrees Celsius
	SeriesGPUBusy        = "gpu_busy"         // ratio of the time in which a kernel ran, 0..1
	SeriesGPUMemoryBusy  = "gpu_memory_busy"  // ratio of the time in which device memory was used, 0..1
	SeriesGPUThrottled   = "gpu_throttled:"   // a prefix of the reason; 1 while the clocks are held down for it
)

// PowerCap is the reason of a device that draws as much power as it may: so does every device that is busy enough, and
// what it does then counts.
const PowerCap = "power cap"

// Names of vLLM's counters that kvtune reads, in [Result].Counters and as /metrics has them (the same source).
const (
	CounterPromptTokens     = "vllm:prompt_tokens_total"
	CounterCachedTokens     = "vllm:prompt_tokens_cached_total" // of prompts, once each
	CounterGenerationTokens = "vllm:generation_tokens_total"
	CounterPrefixQueries    = "vllm:prefix_cache_queries_total" // prompt tokens looked up
	CounterPrefixHits       = "vllm:prefix_cache_hits_total"    // prompt tokens found
	CounterPreemptions      = "vllm:num_preemptions_total"
	CounterQueueTimeSum     = "vllm:request_queue_time_seconds_sum"
	CounterQueueTimeCount   = "vllm:request_queue_time_seconds_count"
)

// Names of vLLM's histograms that kvtune reads, in [Result].Histograms.
const (
	HistogramTTFT = "vllm:time_to_first_token_seconds"
	HistogramITL  = "vllm:inter_token_latency_seconds"
	HistogramE2EL = "vllm:e2e_request_latency_seconds"
)

// Statistics in [Metric].Stat.
const (
	StatMean  = "mean"
	StatP50   = "p50"
	StatP90   = "p90"
	StatP95   = "p95"
	StatP99   = "p99"
	StatTotal = "total"
	StatPeak  = "peak"
	StatOK    = "ok"
	StatFail  = "failed"
)

// level is the confidence level of every interval in a Metric.
const level = 0.95

// percentiles are the ones that latencies are reported at.
var percentiles = [...]struct {
	stat string
	p    float64
}{{StatP50, 50}, {StatP90, 90}, {StatP95, 95}, {StatP99, 99}}

// String is the metric for people: "ttft p99 0.183 s (0.171 to 0.204)", "cache_hit_rate not observed: ...".
func (m Metric) String() string {
	name := m.Name
	if m.Stat != "" {
		name += " " + m.Stat
	}
	if m.Value == nil {
		if m.Note == "" {
			return name + " not observed"
		}
		return name + " not observed: " + m.Note
	}
	s := fmt.Sprintf("%s %.4g %s", name, *m.Value, m.Unit)
	if m.Low != nil && m.High != nil {
		s += fmt.Sprintf(" (%.4g to %.4g)", *m.Low, *m.High)
	}
	return s
}

// observed is a metric with a value.
func observed(name, stat, unit string, value float64, n int) Metric {
	return Metric{Name: name, Stat: stat, Unit: unit, Value: &value, N: n}
}

// absent is a metric that was not observed.
func absent(name, stat, unit, why string) Metric {
	return Metric{Name: name, Stat: stat, Unit: unit, Note: why}
}

// within sets the interval, leaving out ends that the data cannot bound.
func (m Metric) within(iv stats.Interval) Metric {
	if !math.IsInf(iv.Low, 0) && !math.IsNaN(iv.Low) {
		m.Low = &iv.Low
	}
	if !math.IsInf(iv.High, 0) && !math.IsNaN(iv.High) {
		m.High = &iv.High
	}
	return m
}

// spread gives mean and percentiles of latencies in seconds, or the same metrics as not observed. mean is the interval
// of the mean; independent as in [stats.Sample.PercentileInterval].
func spread(name string, values []float64, mean func(stats.Sample) stats.Interval, independent int,
	why string) Metrics {
	if len(values) == 0 {
		ms := Metrics{absent(name, StatMean, "s", why)}
		for _, p := range percentiles {
			ms = append(ms, absent(name, p.stat, "s", why))
		}
		return ms
	}
	s := stats.New(values)
	ms := Metrics{observed(name, StatMean, "s", s.Mean(), s.N()).within(mean(s))}
	for _, p := range percentiles {
		m := observed(name, p.stat, "s", s.Percentile(p.p), s.N())
		ms = append(ms, m.within(s.PercentileInterval(p.p, level, independent)).fewAbove(p.p))
	}
	return ms
}

// fewAbove notes that no sample is expected above a percentile.
func (m Metric) fewAbove(p float64) Metric {
	if float64(m.N)*(100-p) < 100 {
		m.Note = fmt.Sprintf("of only %d samples: close to the largest", m.N)
	}
	return m
}

func tInterval(s stats.Sample) stats.Interval { return s.MeanInterval(level) }

// Observe computes the metrics that the server's own figures give, from the changes of its counters over the measured
// window (by name without labels), the samples of its gauges in that window, and what is known of it. What the inputs
// do not hold is "not observed", with the reason.
func Observe(info ServerInfo, counters map[string]float64, series []Sample) Metrics {
	ms := Metrics{hitRate(counters)}
	ms = append(ms, gauge(MetricKVUsage, "ratio", 1, of(series, SeriesKVUsage))...)
	if v, ok := counters[CounterPreemptions]; ok {
		ms = append(ms, observed(MetricPreemptions, "", "request", v, 0))
	} else {
		ms = append(ms, absent(MetricPreemptions, "", "request", "the server does not export vllm:num_preemptions_total"))
	}
	sum, okSum := counters[CounterQueueTimeSum]
	count, okCount := counters[CounterQueueTimeCount]
	switch {
	case !okSum || !okCount:
		ms = append(ms, absent(MetricQueueTime, StatMean, "s", "the server does not export vllm:request_queue_time_seconds"))
	case count <= 0:
		ms = append(ms, absent(MetricQueueTime, StatMean, "s", "no request finished in the window"))
	default:
		ms = append(ms, observed(MetricQueueTime, StatMean, "s", sum/count, int(count)))
	}
	ms = append(ms, gauge(MetricRunning, "request", 1, of(series, SeriesRunning))...)
	ms = append(ms, gauge(MetricWaiting, "request", 1, of(series, SeriesWaiting))...)
	ms = append(ms, deviceMemory(info, of(series, SeriesKVUsage))...)
	if host := of(series, SeriesHostMemory); len(host) > 0 {
		ms = append(ms, gauge(MetricMemoryHost, "B", 1, host)[1])
	} else {
		ms = append(ms, absent(MetricMemoryHost, StatPeak, "B", "the host was not sampled"))
	}
	return append(ms, BatchEfficiency(info.Args.MaxNumSeqs, series))
}

func hitRate(counters map[string]float64) Metric {
	hits, okHits := counters[CounterPrefixHits]
	queries, okQueries := counters[CounterPrefixQueries]
	switch {
	case !okHits || !okQueries:
		return absent(MetricCacheHitRate, "", "ratio",
			"the server does not export vllm:prefix_cache_hits_total and _queries_total")
	case queries <= 0:
		return absent(MetricCacheHitRate, "", "ratio", "no token was looked up: prefix caching is off, or no request came")
	}
	return observed(MetricCacheHitRate, "", "ratio", hits/queries, int(queries))
}

// gauge gives mean and peak of scale x a gauge's samples, each of which counts for as long as it holds: a server is
// read at even moments, a simulation where something changes. The mean has no interval: consecutive samples are not
// independent.
func gauge(name, unit string, scale float64, samples []Sample) Metrics {
	if len(samples) == 0 {
		const why = "no sample of the gauge in the window"
		return Metrics{absent(name, StatMean, unit, why), absent(name, StatPeak, unit, why)}
	}
	peak, area, seconds := samples[0].Value, 0.0, 0.0
	for i, s := range samples {
		h := held(samples, i)
		peak, area, seconds = max(peak, s.Value), area+h*s.Value, seconds+h
	}
	mean, n := area/seconds, len(samples)
	return Metrics{observed(name, StatMean, unit, scale*mean, n), observed(name, StatPeak, unit, scale*peak, n)}
}

// held is for how many seconds a sample of one series holds: until the next one, the last as long as the others on
// average, and 1 where that says nothing.
func held(samples []Sample, i int) float64 {
	last := len(samples) - 1
	span := (samples[last].T - samples[0].T).Seconds()
	switch {
	case span <= 0:
		return 1
	case i == last:
		return span / float64(last)
	}
	return (samples[i+1].T - samples[i].T).Seconds()
}

func deviceMemory(info ServerInfo, usage []Sample) Metrics {
	capacity := float64(info.NumGPUBlocks) * float64(info.BlockSize) * float64(info.KVBytesPerToken)
	var why string
	switch {
	case len(usage) == 0:
		why = "no sample of vllm:kv_cache_usage_perc in the window"
	case info.NumGPUBlocks == 0 || info.BlockSize == 0:
		why = "the server does not state its KV blocks"
	case info.KVBytesPerToken == 0:
		why = "KV bytes per token are unknown without the model's shape"
	}
	if why != "" {
		return Metrics{absent(MetricMemoryDevice, StatMean, "B", why), absent(MetricMemoryDevice, StatPeak, "B", why)}
	}
	return gauge(MetricMemoryDevice, "B", capacity, usage)
}

// BatchEfficiency is [MetricBatchEfficiency] under a max_num_seqs, 0 unknown. It pairs running and waiting by their
// moment: one scrape gives both the same T.
func BatchEfficiency(maxNumSeqs int, series []Sample) Metric {
	waiting := make(map[time.Duration]float64)
	for _, s := range series {
		if s.Metric == SeriesWaiting {
			waiting[s.T] = s.Value
		}
	}
	var ran, could float64
	n := 0
	running := of(series, SeriesRunning)
	for i, s := range running {
		w, ok := waiting[s.T]
		if !ok {
			continue
		}
		seconds := held(running, i)
		demand := s.Value + w
		if maxNumSeqs > 0 {
			demand = max(s.Value, min(demand, float64(maxNumSeqs)))
		}
		ran, could, n = ran+seconds*s.Value, could+seconds*demand, n+1
	}
	if could <= 0 {
		return absent(MetricBatchEfficiency, "", "ratio", "no sample in the window shows a request running or waiting")
	}
	m := observed(MetricBatchEfficiency, "", "ratio", ran/could, n)
	if maxNumSeqs == 0 {
		m.Note = "max_num_seqs is not known: every waiting request counts as one that could have run"
	}
	return m
}

// of are the samples of one series, in order.
func of(series []Sample, metric string) []Sample {
	var all []Sample
	for _, s := range series {
		if s.Metric == metric {
			all = append(all, s)
		}
	}
	return all
}
