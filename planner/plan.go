package planner

import (
	"kvtune/harness"
	"kvtune/planner/analysis"
)

// Schema is the schema of custom_schedule_plans.json that this version writes. [ReadPlans] refuses a newer major
// version.
const Schema = "kvtune.plans/1"

// Plans is custom_schedule_plans.json: one plan per strategy, what they were compared with and how they were found.
type Plans struct {
	Schema string `json:"schema"`
	// Verdict is the sentence that a command prints first.
	Verdict string `json:"verdict"`
	// Origin is always simulated: plans are predictions until they are verified.
	Origin harness.Origin `json:"origin"`
	Model  string         `json:"model,omitempty"`
	// Version is the vLLM version that the flags are for.
	Version string `json:"vllm_version,omitempty"`
	Seed    uint64 `json:"seed"`
	// Config describes the workload that was planned for, so that a verification can send it again.
	Config harness.Config `json:"config,omitzero"`
	// Workload are sentences about the requests that were simulated.
	Workload []string `json:"workload,omitempty"`
	SLOs     []string `json:"slos,omitempty"`
	// Baseline is what gains are relative to: the current settings, or vLLM's defaults (Strategy says which). Default is
	// vLLM's defaults where Baseline is something else.
	Baseline Plan  `json:"baseline"`
	Default  *Plan `json:"default,omitempty"`
	// Plans has one plan per strategy asked for, in the order asked. It is empty when no candidate meets the SLOs.
	Plans []Plan `json:"plans"`
	// Infeasible is set when no candidate meets the SLOs.
	Infeasible *Infeasible `json:"infeasible,omitempty"`
	Search     Search      `json:"search"`
	// Range is set by [MakeRange].
	Range *RateRange `json:"range,omitempty"`
	// Front is the Pareto front of total throughput against p99 end-to-end latency over the candidates that meet the
	// SLOs, from the lowest latency up.
	Front []FrontPoint `json:"front,omitempty"`
	// Foreseen is what will go wrong under the baseline's settings.
	Foreseen []analysis.Trouble `json:"foreseen,omitempty"`
	// Widened says what is not modelled, for which every interval was widened by a guess.
	Widened []string `json:"widened,omitempty"`
	// Notes say what was left out of the search and why.
	Notes []string `json:"notes,omitempty"`
}

// Plan is one configuration with what it is predicted to do.
type Plan struct {
	// Strategy is the target that it was chosen for; "current" and "default" for the baselines, "closest" for what comes
	// nearest to SLOs that nothing meets.
	Strategy Strategy `json:"strategy"`
	// Args are all settings in force under the plan.
	Args harness.EngineArgs `json:"args"`
	// NumGPUBlocks is the size of the KV cache in blocks under Args, KVBytes in bytes (0 where bytes per token are
	// unknown).
	NumGPUBlocks int   `json:"num_gpu_blocks"`
	KVBytes      int64 `json:"kv_bytes,omitempty"`
	// Changed are the flags that differ from the baseline.
	Changed []Change `json:"changed"`
	// Keep says that the gain is within noise: keep the baseline's settings. Changed is empty then.
	Keep bool `json:"keep"`
	// Predicted has an interval on every metric that varied: where a measured value is expected with 95 %.
	Predicted harness.Metrics `json:"predicted"`
	SLOs      []SLOCheck      `json:"slos,omitempty"`
	// MaxRequestRate is the highest arrival rate at which the SLOs hold (open loops with SLOs), or what is served at most
	// (without SLOs, where a target rate asks for it); nil where they hold at no rate. Deployment is what serves the
	// target rate.
	MaxRequestRate *Capacity   `json:"max_request_rate,omitempty"`
	Deployment     *Deployment `json:"deployment,omitempty"`
	// Binding is what binds under the plan, Limit which limit, BindingWhy the evidence in a sentence.
	Binding    analysis.Kind `json:"binding"`
	Limit      string        `json:"limit,omitempty"`
	BindingWhy string        `json:"binding_why,omitempty"`
	// Extrapolated says how far the prediction goes beyond what the cost model was fitted on, "" where it does not.
	Extrapolated string `json:"extrapolated,omitempty"`
	// Why says in a sentence why this configuration was chosen.
	Why string `json:"why"`
	// Gain is over the baseline in the strategy's own metric; nil when the plan is the baseline.
	Gain *analysis.Gain `json:"gain,omitempty"`
	// Effects are what the plan does to the metrics that users watch, for better or worse.
	Effects []analysis.Gain `json:"effects,omitempty"`
	// DefaultRegret is what vLLM's defaults would lose against the plan, in the strategy's own metric: 0 where the plan is
	// the defaults, nil where they are not among the candidates.
	DefaultRegret *analysis.Gain `json:"default_regret,omitempty"`
	// Sensitivity is what each searched flag alone would change at its neighbouring values.
	Sensitivity []Sensitivity `json:"sensitivity,omitempty"`
	// Launch is the command line that starts the server, one word per element.
	Launch []string `json:"launch"`
	// Replaced are values that the vLLM version refuses, and what stands in their place.
	Replaced []string `json:"replaced,omitempty"`
	// Measured are the metrics of the run that verified the plan, Compared each of them beside its prediction.
	Measured       harness.Metrics `json:"measured,omitempty"`
	MeasuredOrigin harness.Origin  `json:"measured_origin,omitempty"`
	Compared       []Comparison    `json:"compared,omitempty"`
	// MeasuredGain is the gain in paired runs of the baseline MeasuredOver and the plan, GainVerdict what it says of the
	// predicted one; "" where one round cannot tell.
	MeasuredGain *analysis.Gain `json:"measured_gain,omitempty"`
	MeasuredOver Strategy       `json:"measured_over,omitempty"`
	GainVerdict  GainVerdict    `json:"gain_verdict,omitempty"`
}

// Change is one flag that a plan changes.
type Change struct {
	// Flag is vLLM's name with underscores. From and To are values, "" for unset.
	Flag string `json:"flag"`
	From string `json:"from"`
	To   string `json:"to"`
	// Modelled is false where the simulator or the cost model does not know the flag's effect; Note says which part.
	Modelled bool   `json:"modelled"`
	Note     string `json:"note,omitempty"`
}

// SLOCheck is one SLO under a plan.
type SLOCheck struct {
	SLO string `json:"slo"`
	// Value is the predicted figure in the SLO's unit; nil is "not observed".
	Value *float64 `json:"value"`
	Met   bool     `json:"met"`
	// Probability is the share of the draws (cost model within its uncertainty, other arrivals) in which it is met.
	Probability *float64 `json:"probability,omitempty"`
	// Measured is the figure of the run that verified the plan, of several runs the worst, and MeasuredMet whether it
	// meets the SLO; nil is "not observed".
	Measured    *float64 `json:"measured,omitempty"`
	MeasuredMet *bool    `json:"measured_met,omitempty"`
}

// Infeasible names the SLO that no candidate meets together with the others.
type Infeasible struct {
	SLO string `json:"slo"`
	// Best is the value at the candidate that comes closest, Limit the SLO's limit; By is how far beyond the limit it
	// lies, as a share of the limit.
	// nil: not observed.
	Best  *float64 `json:"best"`
	Limit float64  `json:"limit"`
	Unit  string   `json:"unit"`
	By    *float64 `json:"by"`
	// Closest is that candidate.
	Closest Plan   `json:"closest"`
	Why     string `json:"why"`
}

// Search says how the plans were found.
type Search struct {
	// Candidates is the number of different configurations, Requests the number of requests each was simulated on in
	// full; Simulated counts simulated requests over the whole search.
	Candidates int   `json:"candidates"`
	Requests   int   `json:"requests"`
	Simulated  int64 `json:"simulated_requests"`
	// Simulations is how many simulations on the whole workload stand for the candidates that were left at the end:
	// candidates that differ only in limits which neither reaches share one.
	Simulations int `json:"simulations"`
	// Exhaustive is set when every candidate was simulated on the whole workload.
	Exhaustive bool `json:"exhaustive"`
	// Replicas is how many draws stand behind the intervals of the finalists.
	Replicas int `json:"replicas"`
	// Statement says it in words.
	Statement string `json:"statement"`
	// Axes are the values searched, flag by flag.
	Axes []Axis `json:"axes"`
}

// Axis is one flag and the values that were searched.
type Axis struct {
	Flag   string   `json:"flag"`
	Values []string `json:"values"`
}

// FrontPoint is one candidate on the Pareto front.
type FrontPoint struct {
	Args harness.EngineArgs `json:"args"`
	// Throughput is total throughput in token/s, Latency p99 end-to-end latency in s.
	Throughput float64 `json:"total_throughput"`
	Latency    float64 `json:"e2el_p99_s"`
	// Knee marks the point that the balanced strategy takes.
	Knee bool `json:"knee,omitempty"`
}

// Comparison is a metric of a plan beside what a run measured.
type Comparison struct {
	Metric    string  `json:"metric"`
	Stat      string  `json:"stat,omitempty"`
	Unit      string  `json:"unit"`
	Predicted float64 `json:"predicted"`
	Measured  float64 `json:"measured"`
	// Error is (predicted - measured) / measured, nil where measured is 0.
	Error *float64 `json:"error"`
	// Inside says whether the measured value lies in the predicted interval; nil where there was none.
	Inside *bool `json:"inside"`
}
