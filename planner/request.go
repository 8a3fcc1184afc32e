package planner

import (
	"kvtune/harness"
	"kvtune/harness/vllmflags"
	"kvtune/harness/workload"
	"kvtune/planner/analysis"
)

// Strategy is a target. Every strategy looks only at candidates that meet the SLOs, and prefers, among candidates that
// cannot be told from the best (the paired difference over the draws is within [Options].MinGain, the cost model's
// error or its own interval), the one with the fewest changed flags: the baseline, if it is among them.
type Strategy string

const (
	// Throughput: highest total throughput (prompt and output tokens per second), then lowest mean end-to-end latency.
	Throughput Strategy = "throughput"
	// Latency: lowest mean end-to-end latency, then lowest p99 time to first token.
	Latency Strategy = "latency"
	// Memory: fewest KV blocks' bytes whose total throughput is within [Options].MemorySlack of the best candidate's; the
	// lowest gpu_memory_utilization that still does is found by bisection.
	Memory Strategy = "memory"
	// CacheHits: highest share of prompt tokens taken from the prefix cache, then highest total throughput.
	CacheHits Strategy = "cache"
	// Balanced: the knee of the Pareto front of total throughput against p99 end-to-end latency: the point farthest from
	// the chord between the front's ends, both axes scaled to 0..1.
	Balanced Strategy = "balanced"

	// Current and Default name the baselines in [Plans], Closest the candidate nearest to SLOs that nothing meets.
	Current Strategy = "current"
	Default Strategy = "default"
	Closest Strategy = "closest"
)

// Strategies are all targets, in the order in which plans are listed.
func Strategies() []Strategy { return []Strategy{Throughput, Latency, Memory, CacheHits, Balanced} }

// Request is what to plan for.
type Request struct {
	// Server is the machine and its present settings; Server.Cost must be set.
	Server analysis.Server
	// Device is what flags and defaults depend on; the zero value takes Server.GPU.
	Device vllmflags.Device
	// Version is the vLLM version that flags are emitted for, "" for the newest known.
	Version string
	// Model is the name or path for the launch command, Extra the user's own flags, which stand behind the planned ones.
	Model string
	Extra []string
	// Current are the settings in use (--current); they are the baseline. The zero value: vLLM's defaults are.
	Current harness.EngineArgs
	// Workload builds the requests for a seed; another seed must give other arrivals and lengths where they are random.
	Workload func(seed uint64) (*workload.Workload, error)
	// Recorded says that the workload is a recording, the same for every seed: the draws resample its arrivals.
	Recorded bool
	// Features are what the server does; those that are not modelled widen the prediction or refuse it
	// (*NotCoveredError).
	Features []harness.Feature
	SLOs     []harness.SLO
	// Strategies, nil for all of them.
	Strategies []Strategy
	// TargetRate, in request/s, asks how many replicas serve it; GPUPrice, in any currency per GPU and hour, what that
	// costs. 0 asks for neither.
	TargetRate, GPUPrice float64
	// Fixed pins settings: every field that is set keeps its value.
	Fixed   harness.EngineArgs
	Seed    uint64
	Options Options
}

// Options bound the search. The zero value is right for most uses.
type Options struct {
	// Budget is the number of requests to simulate while searching, over all candidates; 0 is 1,000,000. A request counts
	// once more for every 128 output tokens. Beyond it the search halves the candidates on growing parts of the workload,
	// and says so.
	Budget int
	// Requests cuts the workload to its first requests, which a note says; 0 is 4,000. It is more where those would not
	// hold twice as many conversations, or requests of a closed loop or batch, as are in flight at once, or half of them
	// whole.
	Requests int
	// Replicas is the number of draws behind the intervals of the finalists, at least 2; 0 is 12.
	Replicas int
	// MemorySlack is the throughput that the memory strategy may give up, as a share; 0 is 0.05.
	MemorySlack float64
	// MinGain is the smallest gain that is worth a restart, as a share; 0 is 0.01.
	MinGain float64
	// Workers is the number of simulations at once; 0 is one per processor. The result does not depend on it.
	Workers int
	// Axes replaces the values searched, by flag; nil takes those of the package.
	Axes []Axis
}
