package harness

import "reflect"

// EngineArgs are the vLLM settings that kvtune plans, sets or simulates, under vLLM's own names. A zero or nil field is
// "not set": the server's default holds. Source of names and defaults: vLLM 0.18 to 0.33, vllm/engine/arg_utils.py.
type EngineArgs struct {
	// MaxNumBatchedTokens is the token budget of one step, at least MaxNumSeqs.
	MaxNumBatchedTokens int `json:"max_num_batched_tokens,omitempty"`
	// MaxNumSeqs is the largest number of running requests.
	MaxNumSeqs int `json:"max_num_seqs,omitempty"`
	// BlockSize is the number of tokens in a KV block.
	BlockSize            int     `json:"block_size,omitempty"`
	EnableChunkedPrefill *bool   `json:"enable_chunked_prefill,omitempty"`
	EnablePrefixCaching  *bool   `json:"enable_prefix_caching,omitempty"`
	SchedulingPolicy     string  `json:"scheduling_policy,omitempty"` // fcfs or priority
	GPUMemoryUtilization float64 `json:"gpu_memory_utilization,omitempty"`
	// SwapSpace is in GiB. No vLLM from 0.18 on has it; it is replaced (see harness/vllmflags).
	SwapSpace                 float64 `json:"swap_space,omitempty"`
	KVOffloadingSize          float64 `json:"kv_offloading_size,omitempty"` // GiB
	MaxModelLen               int     `json:"max_model_len,omitempty"`
	NumGPUBlocksOverride      int     `json:"num_gpu_blocks_override,omitempty"`
	KVCacheDType              string  `json:"kv_cache_dtype,omitempty"`
	LongPrefillTokenThreshold int     `json:"long_prefill_token_threshold,omitempty"`
	// LongPrefillTokenThresholdAdaptive raises the threshold to a fair share of the token budget (vLLM 0.31 and later).
	LongPrefillTokenThresholdAdaptive *bool `json:"long_prefill_token_threshold_adaptive,omitempty"`
	// MaxNumScheduledTokens lowers the token budget below MaxNumBatchedTokens (0.26 and later), MaxNumActiveSeqs the
	// number of running requests below MaxNumSeqs (0.31 and later).
	MaxNumScheduledTokens int `json:"max_num_scheduled_tokens,omitempty"`
	MaxNumActiveSeqs      int `json:"max_num_active_seqs,omitempty"`
	// MaxNumQueuedReqs and MaxNumQueuedTokens are the API server's admission limits (0.29 and later): requests that have
	// not ended, prompt tokens of those without a first token.
	MaxNumQueuedReqs   int `json:"max_num_queued_reqs,omitempty"`
	MaxNumQueuedTokens int `json:"max_num_queued_tokens,omitempty"`
	// SchedulerReserveFullISL admits a request only when the cache holds all of its known tokens (0.19 and later).
	SchedulerReserveFullISL *bool   `json:"scheduler_reserve_full_isl,omitempty"`
	AsyncScheduling         *bool   `json:"async_scheduling,omitempty"`
	Watermark               float64 `json:"watermark,omitempty"`
	StreamInterval          int     `json:"stream_interval,omitempty"`
	EnforceEager            *bool   `json:"enforce_eager,omitempty"`
	TensorParallelSize      int     `json:"tensor_parallel_size,omitempty"`
}

// ProfilingType is the kind of profile.
type ProfilingType string

const (
	// Prefill: B prompts at once, one output token each.
	Prefill ProfilingType = "prefill"
	// Decode: B requests generate together; only steps with all B decoding count.
	Decode ProfilingType = "decode"
	// Mixed: prompts arrive while others decode.
	Mixed ProfilingType = "mixed"
)

// Config describes one run: the workload under the field's names, and the server settings.
// A request is a prefix of M x block_size tokens, then C fresh tokens never repeated within a run, then OutputLen
// tokens.
type Config struct {
	Name  string `json:"name,omitempty"`
	Model string `json:"model,omitempty"`
	// C is the number of new input tokens per prompt, at least 1.
	C int `json:"C,omitempty"`
	// M is the number of KV blocks already computed per request, at least 0.
	M int `json:"M"`
	// B is the batch size: requests in flight, at least 1.
	B int `json:"B,omitempty"`
	EngineArgs
	// ProfilingType is prefill, decode or mixed; "" is mixed.
	ProfilingType ProfilingType `json:"profiling_type,omitempty"`
	// Prefix is shared (one prefix for all B), own (one each) or groups=G. "" is shared.
	Prefix string `json:"prefix,omitempty"`
	// OutputLen is N, min:max or a distribution; "" is the profiling type's default.
	OutputLen string `json:"output_len,omitempty"`
	// NumWarmup and NumMeasurements count batches of B.
	NumWarmup       int `json:"num_warmup,omitempty"`
	NumMeasurements int `json:"num_measurements,omitempty"`
	// Rate is requests per second of an open loop ("8", "4..24", "fixed:8"); "" is the closed loop of B.
	Rate string `json:"rate,omitempty"`
	// Burstiness is the gamma shape of the arrivals, 1 is Poisson; 0 means 1.
	Burstiness float64 `json:"burstiness,omitempty"`
	// Concurrency is the number of requests in flight of a closed loop, 0 is none; Clients share it evenly, 0 means 1.
	Concurrency int `json:"concurrency,omitempty"`
	Clients     int `json:"clients,omitempty"`
	// Users, Turns and ThinkTime (seconds) describe conversations; with Concurrency ThinkTime is the pause before a slot's
	// next request.
	Users     int     `json:"users,omitempty"`
	Turns     int     `json:"turns,omitempty"`
	ThinkTime float64 `json:"think_time_s,omitempty"`
	// Classes deal requests to service classes, priorities and adapters; see [workload.ParseClasses].
	Classes string `json:"classes,omitempty"`
	// Trace is a trace file; NumRequests cuts it.
	Trace       string `json:"trace,omitempty"`
	NumRequests int    `json:"num_requests,omitempty"`
	// Speed divides a trace's times; 0 is 1.
	Speed float64 `json:"speed,omitempty"`
	// Duration (seconds) ends sending; 0 is no limit.
	Duration float64 `json:"duration_s,omitempty"`
	// SteadyState leaves the requests before the steady state out of the metrics ([ExcludeWarmup]).
	SteadyState bool   `json:"steady_state,omitempty"`
	Seed        uint64 `json:"seed,omitempty"`
}

// Merge returns the settings with those that over sets laid over them.
func (a EngineArgs) Merge(over EngineArgs) EngineArgs {
	to, from := reflect.ValueOf(&a).Elem(), reflect.ValueOf(over)
	for i := range from.NumField() {
		if !from.Field(i).IsZero() {
			to.Field(i).Set(from.Field(i))
		}
	}
	return a
}

// Equal reports whether both set the same fields to the same values.
func (a EngineArgs) Equal(b EngineArgs) bool { return reflect.DeepEqual(a, b) }
