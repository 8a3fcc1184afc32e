// Package analysis says what binds a run: compute, memory bandwidth, memory capacity, scheduling or the prefix cache,
// or nothing (light load);
// with the evidence, how the resources were used over time, and which flags to change for what simulated gain.
//
// The measured window is cut into engine steps (taken from the step records, or rebuilt from the arrival times of
// tokens where a server gives none). Every moment of the window is given to exactly one cause, so the shares of the
// five bottlenecks, of light load and of idle time add up to 1, and the largest one binds. What makes a step belong to
// a cause is a comparison of two of the run's own quantities (compute time against memory time, free blocks against
// what the next prompt needs, fixed against growing cost of a step); there is no tuned constant. See [Analyze].
//
// Read [Input], then [Report].
package analysis

import (
	"fmt"

	"kvtune/harness"
)

// Schema is the schema of performance_analysis.json that this version writes.
const Schema = "kvtune.analysis/1"

// Kind names what binds.
type Kind string

const (
	// Compute: steps take as long as the arithmetic takes.
	Compute Kind = "compute"
	// Bandwidth: steps take as long as reading weights and KV from device memory takes.
	Bandwidth Kind = "memory bandwidth"
	// Capacity: requests wait for KV blocks, or lose them.
	Capacity Kind = "memory capacity"
	// Scheduling: requests wait beside free KV blocks because max_num_seqs or max_num_batched_tokens is used up while a
	// larger batch would have cost little more, or the host takes the time, launching steps or in the API server.
	Scheduling Kind = "scheduling"
	// Cache: prompt tokens are computed again that a prefix cache without limits would have held.
	Cache Kind = "cache"
	// LightLoad: none of them binds; the throughput is what was asked for.
	LightLoad Kind = "light load"
	// NotObserved: the run does not hold the evidence.
	NotObserved Kind = "not observed"
)

// Binds says what binds and by which limit, where that says more.
func Binds(kind Kind, limit string) string {
	if limit == "" || limit == string(kind) {
		return string(kind)
	}
	return fmt.Sprintf("%s (%s)", kind, limit)
}

// The limits that a bottleneck may name.
const (
	LimitArithmetic  = "arithmetic"
	LimitBandwidth   = "memory bandwidth"
	LimitKVCapacity  = "KV capacity"
	LimitMaxNumSeqs  = "max_num_seqs"
	LimitTokenBudget = "max_num_batched_tokens"
	LimitLaunch      = "launch overhead"
	LimitFrontEnd    = "API server"
	LimitPrefixCache = "prefix cache"
)

// Report is performance_analysis.json.
type Report struct {
	Schema string `json:"schema"`
	// Result is the name of the run that was analysed, Origin where it comes from.
	Result string         `json:"result"`
	Origin harness.Origin `json:"origin"`
	// Binding is what binds, Limit the limit behind it ("" under light load), Verdict the sentence that says so.
	Binding Kind   `json:"binding"`
	Limit   string `json:"limit,omitempty"`
	Verdict string `json:"verdict"`
	// Focus is the time that the verdict is about, nil where that is the whole window.
	Focus *Focus `json:"focus,omitempty"`
	// Basis says what the steps were taken from.
	Basis string `json:"basis"`
	// Bottlenecks are compute, memory bandwidth, memory capacity, scheduling and cache, in this order.
	Bottlenecks []Bottleneck `json:"bottlenecks"`
	// Light is the share of the window in which nothing bound, Idle the share in which no request was in flight. nil is
	// "not observed"; Light without a cost model, which tells whether the device could have done more.
	Light *float64 `json:"light_load_share"`
	Idle  *float64 `json:"idle_share"`

	// Use is how far the window used what there is, in metrics that [harness.Definition] defines.
	Use harness.Metrics `json:"use"`
	// StepTime says what the time of the steps went to, by the cost model; empty without one.
	StepTime        []StepPart       `json:"step_time,omitempty"`
	Utilization     Utilization      `json:"utilization"`
	Roofline        *Roofline        `json:"roofline,omitempty"`
	Counterfactuals []Counterfactual `json:"counterfactuals,omitempty"`
	// Recommendations are ranked by gain, the largest first. Each has a simulated gain whose interval lies above 0.
	Recommendations []Recommendation `json:"recommendations"`
	// Args are the settings that were in force, Config the workload: what a recommendation is verified with.
	Args   harness.EngineArgs `json:"args,omitzero"`
	Config harness.Config     `json:"config,omitzero"`
	// Notes say what was not observed and why.
	Notes []string `json:"notes,omitempty"`
}

// StepPart is one part of the steps' time: a term of the cost model, or what no term explains.
type StepPart struct {
	// Name is the part's, Meaning what it is in words.
	Name    string `json:"name"`
	Meaning string `json:"meaning"`
	// Share is of the time in steps and between them while requests are served, 0..1 (the part that the model does not
	// explain may be negative); the shares add up to 1. Seconds is per step, in the mean.
	Share   float64 `json:"share"`
	Seconds float64 `json:"seconds"`
}

// Bottleneck is the verdict on one kind.
type Bottleneck struct {
	Kind Kind `json:"kind"`
	// Binds is set on the one that binds.
	Binds bool `json:"binds"`
	// Limit is the limit that took most of Share.
	Limit string `json:"limit,omitempty"`
	// Share of the measured window that this cause took, 0..1; nil is "not observed".
	Share *float64 `json:"share"`
	// FocusShare is the share of the time of the requests in [Report.Focus], nil where there is none.
	FocusShare *float64 `json:"focus_share,omitempty"`
	// Threshold is the share (FocusShare where there is one) that it had to exceed to bind: the largest of any other
	// cause. nil is "not observed".
	Threshold *float64 `json:"threshold"`
	// Evidence are the quantities that were compared, with units. Values that are nil were not observed.
	Evidence harness.Metrics `json:"evidence"`
	Why      string          `json:"why"`
}

// Utilization is the use of resources over time, thinned to at most a few hundred points.
type Utilization struct {
	// MaxNumBatchedTokens, MaxNumSeqs and NumGPUBlocks are the limits that the points run into; 0 is unknown.
	MaxNumBatchedTokens int `json:"max_num_batched_tokens,omitempty"`
	MaxNumSeqs          int `json:"max_num_seqs,omitempty"`
	NumGPUBlocks        int `json:"num_gpu_blocks,omitempty"`
	// Interval is the length of a point in seconds. Intervals without a step and without a sample have no point.
	Interval float64      `json:"interval_s"`
	Points   []UsagePoint `json:"points,omitempty"`
	// Events are in order of time, equal ones within an interval counted as one.
	Events []Event `json:"events,omitempty"`
}

// UsagePoint is one interval of the run; nil is "not observed".
type UsagePoint struct {
	// T is the interval's start in seconds from the run's start.
	T float64 `json:"t_s"`
	// KVUsage is the largest share of KV blocks in use (0..1), Running and Waiting are means over the interval's steps in
	// requests.
	KVUsage *float64 `json:"kv_usage,omitempty"`
	Running *float64 `json:"running,omitempty"`
	Waiting *float64 `json:"waiting,omitempty"`
	// StepTokens is the mean and StepTokensPeak the largest number of new tokens of a step, to be seen against
	// MaxNumBatchedTokens.
	StepTokens     *float64 `json:"step_tokens,omitempty"`
	StepTokensPeak *float64 `json:"step_tokens_peak,omitempty"`
	// Compute and Bandwidth are [harness.MetricComputeUse] and [harness.MetricBandwidthUse] of the interval, 0..1:
	// modelled, there with every cost model.
	Compute   *float64 `json:"compute_use,omitempty"`
	Bandwidth *float64 `json:"bandwidth_use,omitempty"`
	// SMActive and MemoryActive are the shares of the time in which the GPU ran a kernel and moved device memory (0..1),
	// Power its draw in W: measured (NVML), where the server's GPU is in this machine.
	SMActive     *float64 `json:"sm_active,omitempty"`
	MemoryActive *float64 `json:"memory_active,omitempty"`
	Power        *float64 `json:"power_w,omitempty"`
	// HostCPU is the share of all cores in use (0..1), HostMemory the bytes in use on the machine that kvtune runs on.
	HostCPU    *float64 `json:"host_cpu,omitempty"`
	HostMemory *float64 `json:"host_memory_bytes,omitempty"`
}

// EventKind is what happened.
type EventKind string

const (
	// EventPreemption: requests lost their KV blocks. EventPowerCap: the GPU drew as much power as it may, EventThrottle:
	// its clocks were held down for another reason. EventError: requests failed.
	EventPreemption EventKind = "preemption"
	EventPowerCap   EventKind = "power-cap"
	EventThrottle   EventKind = "throttle"
	EventError      EventKind = "error"
)

// Event is something that happened at a moment of the run.
type Event struct {
	// T is in seconds from the run's start.
	T    float64   `json:"t_s"`
	Kind EventKind `json:"kind"`
	// Count is the number of requests concerned, of samples of the GPU.
	Count int `json:"count"`
	// Text says it in a sentence.
	Text string `json:"text"`
}

// Roofline places the run's steps against the device's limits.
type Roofline struct {
	// BalanceTokens is the number of new tokens in a step at which arithmetic takes as long as reading the weights: to
	// the left of it memory is the limit, to the right compute.
	BalanceTokens float64 `json:"balance_tokens"`
	// Flops (flop/s) and Bandwidth (B/s) are the ceilings that Points are against: the measured ones where there are, else
	// the datasheet's. Ceilings are all that are known.
	Flops     float64         `json:"flops"`
	Bandwidth float64         `json:"bandwidth"`
	Ceilings  []Ceiling       `json:"ceilings,omitempty"`
	Points    []RooflinePoint `json:"points"`
}

// Ceiling is a rate that the device does not exceed, or that a model was fitted to.
type Ceiling struct {
	// Name is "arithmetic" or "memory bandwidth", Source "measured" (a kernel benchmark of this GPU), "datasheet",
	// "assumed" (no datasheet: a CPU) or "reached" (what the fitted step times come to at most).
	Name   string  `json:"name"`
	Source string  `json:"source"`
	Value  float64 `json:"value"`
	Unit   string  `json:"unit"`
}

// RooflinePoint is one step. Times are seconds: Compute and Memory are the least that the ceilings allow, Elapsed what
// it took. Compute x Flops / Elapsed is the rate it reached, (Compute x Flops) / (Memory x Bandwidth) its intensity in
// flop/B.
type RooflinePoint struct {
	Tokens  int     `json:"tokens"`
	Compute float64 `json:"compute_s"`
	Memory  float64 `json:"memory_s"`
	Elapsed float64 `json:"elapsed_s"`
}

// Gain is the change of one metric from one configuration to another.
type Gain struct {
	Metric string `json:"metric"`
	Stat   string `json:"stat,omitempty"`
	Unit   string `json:"unit"`
	// Before and After are the metric's values.
	Before float64 `json:"before"`
	After  float64 `json:"after"`
	// Change is the improvement as a share of Before, above 0 is better (higher throughput, lower latency). Low and High
	// bound its 95 % interval, nil where none can be given.
	Change float64  `json:"change"`
	Low    *float64 `json:"low,omitempty"`
	High   *float64 `json:"high,omitempty"`
}

// String is the change with its interval, e.g. "total throughput +40 % (+35 % to +44 %)"; of what is better when it is
// less, "E2EL mean better by 14 % (12 % to 16 %)".
func (g Gain) String() string {
	signed, sign, verb := harness.HigherIsBetter(g.Metric), 1.0, ""
	switch {
	case harness.Percent(g.Change, false) == harness.Percent(0, false):
		verb = "unchanged"
	case signed:
	case g.Change < 0:
		sign, verb = -1, "worse by "
	case g.Metric == harness.MetricKVCacheSize:
		verb = "smaller by "
	default:
		verb = "better by "
	}
	text := harness.Words(g.Metric, g.Stat) + " " + verb
	if verb != "unchanged" {
		text += harness.Percent(sign*g.Change, signed)
	}
	if g.Low != nil && g.High != nil {
		low, high := min(sign**g.Low, sign**g.High), max(sign**g.Low, sign**g.High)
		if a, b := harness.Percent(low, signed), harness.Percent(high, signed); a != b {
			text += " (" + a + " to " + b + ")"
		}
	}
	return text
}

// Counterfactual is a simulated "what if a limit were lifted".
type Counterfactual struct {
	// Name says what was changed: "twice the KV cache". Kind and Limit are what it lifts.
	Name  string `json:"name"`
	Kind  Kind   `json:"kind"`
	Limit string `json:"limit"`
	// Gains are of the metric that the run is about (total throughput in a closed loop, mean end-to-end latency in an open
	// one), then of the other one.
	Gains []Gain `json:"gains"`
}

// Recommendation is one flag to change, with those that vLLM wants changed with it.
type Recommendation struct {
	// Flag is vLLM's name with underscores, Value what to set, From what it is now ("" unset).
	Flag  string `json:"flag"`
	Value string `json:"value"`
	From  string `json:"from"`
	// Also are flags that have to follow.
	Also []Setting `json:"also,omitempty"`
	Why  string    `json:"why"`
	// Gain is simulated, in the metric that the run is about, with its 95 % interval over draws of the cost model.
	Gain *Gain `json:"gain"`
	// Effects are what it is expected to do to every metric that users watch, for better or worse.
	Effects []Gain `json:"effects"`
	Risk    string `json:"risk"`
	// Args are all settings with the change.
	Args harness.EngineArgs `json:"args"`
	// Command is the server's command line with the change, Verify the kvtune command that measures it beside the present
	// settings; one word per element.
	Command []string `json:"command"`
	Verify  []string `json:"verify"`
}

// Setting is one flag's change.
type Setting struct {
	Flag string `json:"flag"`
	From string `json:"from"`
	To   string `json:"to"`
}

// Bottleneck finds one by kind; nil when it is not in the report.
func (r *Report) Bottleneck(kind Kind) *Bottleneck {
	for i := range r.Bottlenecks {
		if r.Bottlenecks[i].Kind == kind {
			return &r.Bottlenecks[i]
		}
	}
	return nil
}
