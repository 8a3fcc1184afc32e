// Package analysis says what binds a run: compute, memory, scheduling or the prefix cache, or nothing (light load);
// with the evidence, how the resources were used over time, and which flags to change for what simulated gain.
//
// The measured window is cut into engine steps (taken from the step records, or rebuilt from the arrival times of
// tokens where a server gives none). Every moment of the window is given to exactly one cause, so the shares of the
// four bottlenecks, of light load and of idle time add up to 1, and the largest one binds. What makes a step belong to
// a cause is a comparison of two of the run's own quantities (compute time against memory time, free blocks against
// what the next prompt needs, fixed against growing cost of a step); there is no tuned constant. See [Analyze].
//
// Read [Input], then [Report].
package analysis

import "kvtune/harness"

// Schema is the schema of performance_analysis.json that this version writes.
const Schema = "kvtune.analysis/1"

// Kind names what binds.
type Kind string

const (
	// Compute: steps take as long as the arithmetic takes.
	Compute Kind = "compute"
	// Memory: steps take as long as reading weights and KV takes (bandwidth), or requests wait for, or lose, KV blocks
	// (capacity).
	Memory Kind = "memory"
	// Scheduling: requests wait beside free KV blocks because max_num_seqs or max_num_batched_tokens is used up while a
	// larger batch would have cost little more, or steps are mostly launch overhead.
	Scheduling Kind = "scheduling"
	// Cache: prompt tokens are computed again that a prefix cache without limits would have held.
	Cache Kind = "cache"
	// LightLoad: none of the four binds; the throughput is what was asked for.
	LightLoad Kind = "light load"
	// NotObserved: the run does not hold the evidence.
	NotObserved Kind = "not observed"
)

// The limits that a bottleneck may name.
const (
	LimitArithmetic  = "arithmetic"
	LimitBandwidth   = "memory bandwidth"
	LimitKVCapacity  = "KV capacity"
	LimitMaxNumSeqs  = "max_num_seqs"
	LimitTokenBudget = "max_num_batched_tokens"
	LimitLaunch      = "launch overhead"
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
	// Basis says what the steps were taken from.
	Basis string `json:"basis"`
	// Bottlenecks are compute, memory, scheduling and cache, in this order.
	Bottlenecks []Bottleneck `json:"bottlenecks"`
	// Light is the share of the window in which nothing bound, Idle the share in which no request was in flight. nil is
	// "not observed".
	Light *float64 `json:"light_load_share"`
	Idle  *float64 `json:"idle_share"`

	Utilization     Utilization      `json:"utilization"`
	Roofline        *Roofline        `json:"roofline,omitempty"`
	Counterfactuals []Counterfactual `json:"counterfactuals,omitempty"`
	Recommendations []Recommendation `json:"recommendations"`
	// Notes say what was not observed and why.
	Notes []string `json:"notes,omitempty"`
}

// Bottleneck is the verdict on one of the four.
type Bottleneck struct {
	Kind Kind `json:"kind"`
	// Binds is set on the one that binds.
	Binds bool `json:"binds"`
	// Limit is the limit that took most of Share.
	Limit string `json:"limit,omitempty"`
	// Share of the measured window that this cause took, 0..1; nil is "not observed".
	Share *float64 `json:"share"`
	// Threshold is the share that it had to exceed to bind: the largest share of any other cause. nil is "not observed".
	Threshold *float64 `json:"threshold"`
	// Evidence are the quantities that were compared, with units. Values that are nil were not observed.
	Evidence harness.Metrics `json:"evidence"`
	Why      string          `json:"why"`
}

// Utilization is the use of resources over time, thinned to at most a few hundred points.
type Utilization struct {
	// MaxNumBatchedTokens, MaxNumSeqs and NumGPUBlocks are the limits that the points run into; 0 is unknown.
	MaxNumBatchedTokens int          `json:"max_num_batched_tokens,omitempty"`
	MaxNumSeqs          int          `json:"max_num_seqs,omitempty"`
	NumGPUBlocks        int          `json:"num_gpu_blocks,omitempty"`
	Points              []UsagePoint `json:"points,omitempty"`
}

// UsagePoint is one interval of the run; nil is "not observed".
type UsagePoint struct {
	// T is the interval's start in seconds from the run's start.
	T float64 `json:"t_s"`
	// KVUsage is the largest share of KV blocks in use (0..1), Running, Waiting and StepTokens are means over the
	// interval's steps; StepTokens is the new tokens of a step.
	KVUsage    *float64 `json:"kv_usage,omitempty"`
	Running    *float64 `json:"running,omitempty"`
	Waiting    *float64 `json:"waiting,omitempty"`
	StepTokens *float64 `json:"step_tokens,omitempty"`
}

// Roofline places the run's steps against the device's limits.
type Roofline struct {
	// BalanceTokens is the number of new tokens in a step at which arithmetic takes as long as reading the weights: to
	// the left of it memory is the limit, to the right compute.
	BalanceTokens float64         `json:"balance_tokens"`
	Points        []RooflinePoint `json:"points"`
}

// RooflinePoint is one step. Times are seconds: Compute and Memory are the datasheet's lower bounds, Elapsed what it
// took.
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

// Counterfactual is a simulated "what if a limit were lifted".
type Counterfactual struct {
	// Name says what was changed: "twice the KV cache".
	Name string `json:"name"`
	Kind Kind   `json:"kind"`
	// Gains are of mean end-to-end latency and of total throughput.
	Gains []Gain `json:"gains"`
}

// Recommendation is one flag to change.
type Recommendation struct {
	// Flag is vLLM's name with underscores, Value what to set.
	Flag  string `json:"flag"`
	Value string `json:"value"`
	Why   string `json:"why"`
	// Gain is simulated; nil means "not simulated" (no cost model was given).
	Gain *Gain  `json:"gain"`
	Risk string `json:"risk,omitempty"`
	// Command is the server's command line with the flag, one word per element.
	Command []string `json:"command,omitempty"`
}

// Bottleneck finds one of the four by kind; nil when it is not in the report.
func (r *Report) Bottleneck(kind Kind) *Bottleneck {
	for i := range r.Bottlenecks {
		if r.Bottlenecks[i].Kind == kind {
			return &r.Bottlenecks[i]
		}
	}
	return nil
}
