package engine

import (
	"math"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvtune/harness"
	"kvtune/planner/sim"
)

// metrics are the families of vLLM 0.32's /metrics (vllm/v1/metrics/loggers.py) that a scheduler without a device can
// honestly fill, under the same names, labels, help texts and buckets; what the engine cannot have (external caches,
// multi-modal inputs) stands there at 0, as it does in a vLLM that does not use it. One family is the engine's own:
// kvtune:engine_lag_seconds_total. The _created gauges of the Python client are left out.
type metrics struct {
	reg *prometheus.Registry
	// seen are the scheduler's counters as last exposed.
	seen sim.Stats

	running, waiting, capacity, usage            prometheus.Gauge
	queries, hits, preemptions, prompt           prometheus.Counter
	computed, cacheHit, cached, device           prometheus.Counter
	generation, length, rejected, lagged         prometheus.Counter
	iteration, ttft, itl, tpot, e2e, queue       prometheus.Histogram
	prefill, decode, inference, preempted        prometheus.Histogram
	promptTokens, outputTokens, maxTokens, asked prometheus.Histogram
	n, kvComputed                                prometheus.Histogram
}

// Bucket bounds of vllm/v1/metrics/buckets.py, in seconds where the quantity is a time.
func latencyBuckets() []float64 {
	return []float64{.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680}
}

func firstTokenBuckets() []float64 {
	return []float64{.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560}
}

func tokenGapBuckets() []float64 {
	return []float64{.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80}
}

// tokenBuckets is the series 1, 2, 5, 10, ... up to limit.
func tokenBuckets(limit int) []float64 {
	var buckets []float64
	for scale := 1; ; scale *= 10 {
		for _, m := range []int{1, 2, 5} {
			if m*scale > limit {
				return buckets
			}
			buckets = append(buckets, float64(m*scale))
		}
	}
}

func newMetrics(model string, maxModelLen int, info prometheus.Labels) *metrics {
	m := &metrics{reg: prometheus.NewRegistry()}
	named := prometheus.WrapRegistererWith(prometheus.Labels{"model_name": model}, m.reg)
	engine := prometheus.WrapRegistererWith(prometheus.Labels{"engine": "0"}, named)

	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
		engine.MustRegister(g)
		return g
	}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		engine.MustRegister(c)
		return c
	}
	// counters gives one series per value of a label.
	counters := func(to prometheus.Registerer, name, help, label string, values ...string) []prometheus.Counter {
		vec := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
		to.MustRegister(vec)
		series := make([]prometheus.Counter, len(values))
		for i, v := range values {
			series[i] = vec.WithLabelValues(v)
		}
		return series
	}
	gauges := func(name, help, label string, values ...string) []prometheus.Gauge {
		vec := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{label})
		engine.MustRegister(vec)
		series := make([]prometheus.Gauge, len(values))
		for i, v := range values {
			series[i] = vec.WithLabelValues(v)
		}
		return series
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
		engine.MustRegister(h)
		return h
	}

	m.running = gauge("vllm:num_requests_running", "Number of requests in model execution batches.")
	m.waiting = gauge("vllm:num_requests_waiting", "Number of requests waiting to be processed.")
	m.capacity = gauges("vllm:num_requests_waiting_by_reason", "Number of waiting requests by reason. Reason labels: "+
		"'capacity' = waiting for scheduling capacity; 'deferred' = deferred by transient constraints (LoRA budget, KV "+
		"transfer, blocked status). Sum of all reasons equals vllm:num_requests_waiting.",
		"reason", "capacity", "deferred")[0]
	gauges("vllm:engine_sleep_state", "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is "+
		"awake; weights_offloaded = 1 means sleep level 1; discard_all = 1 means sleep level 2.",
		"sleep_state", "awake", "weights_offloaded", "discard_all")[0].Set(1)
	m.usage = gauge("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.")

	m.queries = counter("vllm:prefix_cache_queries_total",
		"Prefix cache queries, in terms of number of queried tokens.")
	m.hits = counter("vllm:prefix_cache_hits_total", "Prefix cache hits, in terms of number of cached tokens.")
	counter("vllm:external_prefix_cache_queries_total", "External prefix cache queries from KV connector cross-instance "+
		"cache sharing, in terms of number of queried tokens.")
	counter("vllm:external_prefix_cache_hits_total", "External prefix cache hits from KV connector cross-instance "+
		"cache sharing, in terms of number of cached tokens.")
	counter("vllm:mm_cache_queries_total", "Multi-modal cache queries, in terms of number of queried items.")
	counter("vllm:mm_cache_hits_total", "Multi-modal cache hits, in terms of number of cached items.")
	m.preemptions = counter("vllm:num_preemptions_total", "Cumulative number of preemption from the engine.")
	m.prompt = counter("vllm:prompt_tokens_total", "Number of prefill tokens processed.")
	sources := counters(engine, "vllm:prompt_tokens_by_source_total", "Number of prompt tokens by source.",
		"source", "local_compute", "local_cache_hit", "external_kv_transfer")
	m.computed, m.cacheHit = sources[0], sources[1]
	m.cached = counter("vllm:prompt_tokens_cached_total", "Number of cached prompt tokens (local + external).")
	m.device = counters(engine, "vllm:prompt_tokens_cached_by_source_total", "Prefix-cache hit tokens by the cache tier "+
		"that supplied them: device (local HBM), host (offloaded to DRAM), disk, p2p (transferred from another vLLM "+
		"instance) or external_unspecified. Counted at admission; sums to vllm:prefix_cache_hits + "+
		"vllm:external_prefix_cache_hits.", "source", "device", "host", "p2p", "disk", "external_unspecified")[0]
	m.generation = counter("vllm:generation_tokens_total", "Number of generation tokens processed.")
	m.length = counters(engine, "vllm:request_success_total", "Count of successfully processed requests.",
		"finished_reason", "length", "stop", "abort", "error", "repetition")[0]
	m.rejected = counters(named, "vllm:admission_rejections_total", "Number of admission attempts rejected by a queue "+
		"limit, by reason.", "reason", "max_num_queued_reqs", "max_num_queued_tokens")[0]
	m.lagged = counter("kvtune:engine_lag_seconds_total",
		"Time that the simulated device lost because this machine was too slow to keep up with it.")

	m.promptTokens = histogram("vllm:request_prompt_tokens", "Number of prefill tokens processed.",
		tokenBuckets(maxModelLen))
	m.outputTokens = histogram("vllm:request_generation_tokens", "Number of generation tokens processed.",
		tokenBuckets(maxModelLen))
	m.iteration = histogram("vllm:iteration_tokens_total", "Histogram of number of tokens per engine_step.",
		[]float64{1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384})
	m.asked = histogram("vllm:request_max_num_generation_tokens",
		"Histogram of maximum number of requested generation tokens.", tokenBuckets(maxModelLen))
	m.n = histogram("vllm:request_params_n", "Histogram of the n request parameter.", []float64{1, 2, 5, 10, 20})
	m.maxTokens = histogram("vllm:request_params_max_tokens", "Histogram of the max_tokens request parameter.",
		tokenBuckets(maxModelLen))
	m.ttft = histogram("vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.",
		firstTokenBuckets())
	m.itl = histogram("vllm:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.",
		tokenGapBuckets())
	m.tpot = histogram("vllm:request_time_per_output_token_seconds",
		"Histogram of time_per_output_token_seconds per request.", tokenGapBuckets())
	m.e2e = histogram("vllm:e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.",
		latencyBuckets())
	m.queue = histogram("vllm:request_queue_time_seconds", "Histogram of time spent in WAITING phase for request.",
		latencyBuckets())
	m.inference = histogram("vllm:request_inference_time_seconds",
		"Histogram of time spent in RUNNING phase for request.", latencyBuckets())
	m.prefill = histogram("vllm:request_prefill_time_seconds", "Histogram of time spent in PREFILL phase for request.",
		latencyBuckets())
	m.decode = histogram("vllm:request_decode_time_seconds", "Histogram of time spent in DECODE phase for request.",
		latencyBuckets())
	m.preempted = histogram("vllm:request_num_preemptions",
		"Histogram of the number of times a request was preempted.", []float64{1, 2, 3, 4, 5, 10, 20})
	m.kvComputed = histogram("vllm:request_prefill_kv_computed_tokens",
		"Histogram of new KV tokens computed during prefill (excluding cached tokens).", tokenBuckets(maxModelLen))

	config := prometheus.NewGauge(prometheus.GaugeOpts{Name: "vllm:cache_config_info",
		Help: "Information of the LLMEngine CacheConfig", ConstLabels: info})
	config.Set(1)
	m.reg.MustRegister(config)
	return m
}

// cacheInfo are the labels of vllm:cache_config_info: vLLM's CacheConfig with every value as Python prints it.
// kvBytes is the memory of the KV cache, 0 when it is not known.
func cacheInfo(args harness.EngineArgs, cfg sim.Config, kvBytes int64) prometheus.Labels {
	orNone := func(set bool, v string) string {
		if !set {
			return "None"
		}
		return v
	}
	truth := func(b bool) string {
		if b {
			return "True"
		}
		return "False"
	}
	size := strconv.Itoa(cfg.BlockSize)
	concurrency := float64(cfg.NumGPUBlocks) / math.Ceil(float64(cfg.MaxModelLen)/float64(cfg.BlockSize))
	dtype := args.KVCacheDType
	if dtype == "" {
		dtype = "auto"
	}
	return prometheus.Labels{
		"_block_size_resolved":           "True",
		"block_size":                     size,
		"cache_dtype":                    dtype,
		"effective_attention_block_size": size,
		"enable_prefix_caching":          truth(cfg.EnablePrefixCaching),
		"engine":                         "0",
		"gpu_memory_utilization":         pyFloat(args.GPUMemoryUtilization),
		"hash_block_size":                "None",
		"is_attention_free":              "False",
		"kv_cache_max_concurrency":       pyFloat(concurrency),
		"kv_cache_memory_bytes":          orNone(kvBytes > 0, strconv.FormatInt(kvBytes, 10)),
		"kv_cache_size_tokens":           strconv.Itoa(int(concurrency * float64(cfg.MaxModelLen))),
		"kv_offloading_size":             "None",
		"num_cpu_blocks":                 "None",
		"num_gpu_blocks":                 strconv.Itoa(cfg.NumGPUBlocks),
		"num_gpu_blocks_override":        orNone(args.NumGPUBlocksOverride > 0, strconv.Itoa(args.NumGPUBlocksOverride)),
		"prefix_caching_hash_algo":       "sha256",
		"sliding_window":                 "None",
		"user_specified_block_size":      truth(args.BlockSize > 0),
	}
}

// state exposes the scheduler's gauges and counters.
func (m *metrics) state(s *sim.Scheduler) {
	m.running.Set(float64(s.Running()))
	m.waiting.Set(float64(s.Waiting()))
	m.capacity.Set(float64(s.Waiting()))
	m.usage.Set(s.Usage())
	now, seen := s.Stats(), m.seen
	if now == seen {
		return
	}
	m.queries.Add(float64(now.PrefixQueries - seen.PrefixQueries))
	m.hits.Add(float64(now.PrefixHits - seen.PrefixHits))
	m.device.Add(float64(now.PrefixHits - seen.PrefixHits))
	m.preemptions.Add(float64(now.Preemptions - seen.Preemptions))
	m.seen = now
}

// stepStats is what one step's outputs add up to: vLLM's IterationStats.
type stepStats struct {
	tokens, prompt, cached int
}

// token counts one token of a request, which the front end sees now.
func (m *metrics) token(step *stepStats, j *job, ev sim.Event, now time.Time) {
	step.tokens++
	if ev.First {
		step.prompt += len(j.prompt)
		step.cached += ev.CachedTokens
		m.ttft.Observe(now.Sub(j.arrived).Seconds())
		j.first = now
	} else {
		m.itl.Observe(now.Sub(j.last).Seconds())
	}
	j.last, j.made = now, ev.Output
	if !ev.Finished {
		return
	}
	m.length.Inc()
	m.e2e.Observe(now.Sub(j.arrived).Seconds())
	m.queue.Observe(j.scheduled.Sub(j.queued).Seconds())
	m.prefill.Observe(j.first.Sub(j.scheduled).Seconds())
	m.decode.Observe(now.Sub(j.first).Seconds())
	m.inference.Observe(now.Sub(j.scheduled).Seconds())
	m.preempted.Observe(float64(j.preemptions))
	m.promptTokens.Observe(float64(len(j.prompt)))
	m.outputTokens.Observe(float64(j.made))
	m.asked.Observe(float64(j.made))
	m.maxTokens.Observe(float64(j.max))
	m.n.Observe(1)
	m.kvComputed.Observe(float64(len(j.prompt) - ev.CachedTokens))
	m.tpot.Observe(now.Sub(j.first).Seconds() / float64(max(1, j.made-1)))
}

// step counts a step that gave tokens.
func (m *metrics) step(s stepStats) {
	if s.tokens == 0 {
		return
	}
	m.prompt.Add(float64(s.prompt))
	m.computed.Add(float64(s.prompt - s.cached))
	m.cacheHit.Add(float64(s.cached))
	m.cached.Add(float64(s.cached))
	m.generation.Add(float64(s.tokens))
	m.iteration.Observe(float64(s.prompt - s.cached + s.tokens))
}

func (m *metrics) lag(d time.Duration) { m.lagged.Add(d.Seconds()) }
