// Package sim is vLLM's V1 scheduler in virtual time.
//
// Read [Config], [Scheduler] (the rules, shared with the embedded engine), [Run] (virtual time) and [Runner] (many
// runs, and streams of requests). The lane (lane.go) is why a step costs what happens in it and not what runs in it.
package sim

import (
	"time"

	"kvtune/harness"
	"kvtune/harness/workload"
	"kvtune/planner/cost"
)

// Config are the scheduler's settings with nothing left open: every field holds.
type Config struct {
	MaxNumBatchedTokens int
	MaxNumSeqs          int
	// MaxNumScheduledTokens and MaxNumActiveSeqs lower the token budget of a step and the number of running requests below
	// the two settings above, which size the server's buffers; 0 does not.
	MaxNumScheduledTokens, MaxNumActiveSeqs int
	BlockSize                               int
	// NumGPUBlocks is the size of the KV cache in blocks, the null block included.
	NumGPUBlocks              int
	MaxModelLen               int
	EnableChunkedPrefill      bool
	EnablePrefixCaching       bool
	Priority                  bool // scheduling_policy priority; else fcfs
	LongPrefillTokenThreshold int  // 0 is off
	// LongPrefillTokenThresholdAdaptive raises the threshold to max_num_batched_tokens / requests. (V1's limits on the
	// number of partial prefills were never more than the value 1, and left with vLLM 0.27; nothing is to be simulated.)
	LongPrefillTokenThresholdAdaptive bool
	AsyncScheduling                   bool
	Watermark                         float64
	ReserveFullISL                    bool
	StreamInterval                    int // tokens per streamed event, at least 1
	// MaxNumQueuedReqs and MaxNumQueuedTokens are the API server's limits on requests that have not ended and on the
	// prompt tokens of those that have no token yet: what comes beyond gets status 503. 0 is no limit.
	MaxNumQueuedReqs, MaxNumQueuedTokens int
	// Release is the minor number of the vLLM 0.x whose rules hold, 18 to 33; 0 is the newest. Behind it: the order of the
	// free queue (24), how prefix queries are counted (27), the threshold of a lone request (31), outputs that leave
	// max_model_len (32), a request that preempts itself under the priority policy (33).
	Release int
	// FrontEnd is the API server's part: when a request reaches the scheduler, and its tokens the client.
	FrontEnd cost.FrontEnd
}

// Outcome is what a simulated run gave.
type Outcome struct {
	// Records has one line per request in order of Index, priming and warm-up included.
	Records []workload.Record
	// Steps and Series are empty unless asked for.
	Steps  []harness.StepRecord
	Series []harness.Sample
	// Counters are vLLM's counters at the end, by metric name without labels ("vllm:prefix_cache_hits_total").
	Counters map[string]float64
	// KVUsageMean and KVUsagePeak are time-weighted shares of the KV blocks in use, 0..1.
	KVUsageMean, KVUsagePeak float64
	// Busy is the virtual time during which a step ran; End is when the last request ended.
	Busy, End time.Duration
}
