// Package harness is the vocabulary that every stage of kvtune speaks: the configuration of a run, what was measured
// and under which conditions, and where a number comes from.
//
// A number here always has a unit and an origin, and what was not observed is absent, never 0. TTFT, ITL, TPOT, E2EL
// and goodput are computed in one place, [Measure], with the definitions of `vllm bench serve`.
package harness

import "time"

// Origin says where a result comes from.
type Origin string

const (
	// OriginMeasured: a real server or a real kernel was timed.
	OriginMeasured Origin = "measured"
	// OriginSimulated: the embedded engine or the simulator produced it. Every table, file and picture says so.
	OriginSimulated Origin = "simulated"
)

// Metric is one number with its unit. Value nil means "not observed".
type Metric struct {
	// Name is the field's term, e.g. "ttft", "throughput_output"; see metrics.go for all of them.
	Name string `json:"name"`
	// Stat is the statistic: "mean", "p50", "p90", "p99", "total", ... "" where there is only one.
	Stat string `json:"stat,omitempty"`
	// Unit is the base unit: s, B, B/s, token/s, request/s, W, ratio, token, request.
	Unit string `json:"unit"`
	// Value is nil where the quantity was not observed.
	Value *float64 `json:"value"`
	// Low and High bound the 95 % interval, nil where none can be given.
	Low  *float64 `json:"low,omitempty"`
	High *float64 `json:"high,omitempty"`
	// N is how many samples stand behind the value.
	N int `json:"n,omitempty"`
	// Note says why a value is absent or what limits it.
	Note string `json:"note,omitempty"`
}

// Metrics is a list of metrics in a fixed order.
type Metrics []Metric

// Get finds a metric by name and statistic; nil when it is not in the list.
func (ms Metrics) Get(name, stat string) *Metric {
	for i := range ms {
		if ms[i].Name == name && ms[i].Stat == stat {
			return &ms[i]
		}
	}
	return nil
}

// Value is the value of a metric, ok false when it is absent or not observed.
func (ms Metrics) Value(name, stat string) (v float64, ok bool) {
	m := ms.Get(name, stat)
	if m == nil || m.Value == nil {
		return 0, false
	}
	return *m.Value, true
}

// Sample is one point of a time series.
type Sample struct {
	// T is from the run's start.
	T time.Duration
	// Metric is the name: a vLLM metric without its labels ([SeriesKVUsage]), or one of the host's ([SeriesHostCPU]).
	Metric string
	Value  float64
}

// StepRecord is one engine step: a row of `_steps.csv`.
type StepRecord struct {
	// T is the step's start from the run's start; negative when the source does not say.
	T time.Duration
	// ContextRequests and ContextTokens count requests in prefill and the new tokens scheduled for them.
	ContextRequests, ContextTokens int
	// GenerationRequests and GenerationTokens count requests in decode and their tokens.
	GenerationRequests, GenerationTokens int
	Elapsed                              time.Duration
	// KVUsage is the share of KV blocks in use after the step, 0..1; negative when unknown.
	KVUsage float64
	// Running and Waiting count requests after the step was scheduled; negative when unknown.
	Running, Waiting int
	// Preemptions counts the requests preempted in this step; negative when unknown.
	Preemptions int
}

// ServerInfo is what is known of the server under test. A zero field was not observed.
type ServerInfo struct {
	// Kind is "vllm", or "embedded engine" (a simulated server).
	Kind string `json:"kind"`
	// Version is the answer of /version.
	Version string `json:"version,omitempty"`
	// Model is the served model's name, Root the path or repository behind it.
	Model string `json:"model,omitempty"`
	Root  string `json:"root,omitempty"`
	// Adapters are the LoRA adapters that are served beside the model.
	Adapters []string `json:"adapters,omitempty"`
	// MaxModelLen is the context limit in tokens.
	MaxModelLen int `json:"max_model_len,omitempty"`
	// BlockSize and NumGPUBlocks are the KV cache's, as the server states them (vllm:cache_config_info).
	BlockSize    int `json:"block_size,omitempty"`
	NumGPUBlocks int `json:"num_gpu_blocks,omitempty"`
	// EnablePrefixCaching is nil when the server does not say.
	EnablePrefixCaching  *bool   `json:"enable_prefix_caching,omitempty"`
	CacheDType           string  `json:"cache_dtype,omitempty"`
	GPUMemoryUtilization float64 `json:"gpu_memory_utilization,omitempty"`
	// KVBytesPerToken is the KV cache's bytes per token over all layers. No vLLM states it: it comes from the model's
	// config.json or shape.
	KVBytesPerToken int64 `json:"kv_bytes_per_token,omitempty"`
	// Args are the scheduler settings known to be in force (from the launch, or asked of the embedded engine).
	Args EngineArgs `json:"args,omitzero"`
	// Features lists what the server has and how far kvtune's model covers it.
	Features []Feature `json:"features,omitempty"`
	// GPU is the device's name where it is known.
	GPU string `json:"gpu,omitempty"`
}

// Simulated reports whether the server is anything but a real vLLM.
func (s ServerInfo) Simulated() bool { return s.Kind != KindVLLM }

const (
	// KindVLLM is a real vLLM server.
	KindVLLM = "vllm"
	// KindEmbedded is kvtune's embedded engine: a simulated server.
	KindEmbedded = "embedded engine"
	// KindSimulator is no server at all: the scheduler in virtual time.
	KindSimulator = "simulator"
)

// Feature is something that a server does, and what kvtune can say of it.
type Feature struct {
	Name string `json:"name"`
	// Support is "modelled", "measured only" or "not supported".
	Support string `json:"support"`
	Note    string `json:"note,omitempty"`
}

// Conditions are the circumstances of a result: enough to repeat it or to distrust it.
type Conditions struct {
	Started time.Time `json:"started,omitzero"`
	// Duration is the length of the measured window in seconds.
	Duration float64    `json:"duration_s"`
	Server   ServerInfo `json:"server,omitzero"`
	// Host names the machine's processor, cores, memory and system, without its name on the network.
	Host string `json:"host,omitempty"`
	// Tool is kvtune's version, Command the command line that was run (without secrets).
	Tool    string   `json:"tool,omitempty"`
	Command []string `json:"command,omitempty"`
	Seed    uint64   `json:"seed"`
	// Salt is the per-run cache salt that kept earlier runs' prefixes out; "" when a nonce or nothing was used.
	Salt string `json:"salt,omitempty"`
	// Shard is "i/n" where the run was one share of a load. Begin is when its measured requests began, from Started in
	// seconds; nil where none did.
	Shard string   `json:"shard,omitempty"`
	Begin *float64 `json:"measured_from_s,omitempty"`
	// SendLag99 is the generator's own lateness (p99 from due to sent, without waiting for a new connection) in seconds;
	// nil where nothing was due.
	SendLag99 *float64 `json:"send_lag_p99_s,omitempty"`
	// GeneratorCPU is the generator's processor time as a share of its processors', over its busiest five seconds, 0..1;
	// nil when it is not known.
	GeneratorCPU *float64 `json:"generator_cpu,omitempty"`
	// GeneratorLimited says why the numbers are the generator's and not the server's, "" where they are the server's.
	GeneratorLimited string `json:"generator_limited,omitempty"`
	// Retries is how often requests were sent again.
	Retries int `json:"retries,omitempty"`
}

// Result is what one run gave: `<name>_results.json`.
type Result struct {
	// Schema is "kvtune.result/1". A newer major version is refused by readers.
	Schema string `json:"schema"`
	Name   string `json:"name"`
	Origin Origin `json:"origin"`
	// Partial is set when the run ended early; Why says how.
	Partial    bool       `json:"partial,omitempty"`
	Why        string     `json:"why,omitempty"`
	Config     Config     `json:"config"`
	Conditions Conditions `json:"conditions"`
	Metrics    Metrics    `json:"metrics"`
	// Counters are the changes of the server's counters over the measured window, by metric name without labels.
	Counters map[string]float64 `json:"counters,omitempty"`
	// Histograms are what was added to the server's histograms of times ([EngineHistograms]) over the run.
	Histograms map[string]Histogram `json:"histograms,omitempty"`
	// Warnings are what a reader must know before believing the numbers.
	Warnings []string `json:"warnings,omitempty"`
}

// ResultSchema is the schema that this version writes.
const ResultSchema = "kvtune.result/1"
