package profile

import (
	"math"
	"time"

	"kvtune/harness"
	"kvtune/harness/workload"
)

const (
	// CapacityProbe names the requests of [Capacity].
	CapacityProbe = "capacity"

	// A capacity probe's prompts take capacityFrom of the KV cache, and with their outputs they would take capacityTo.
	capacityFrom, capacityTo = 0.94, 1.06
	// capacityBatch is how many requests it has at most: the more, the fewer steps they need to overflow the cache.
	capacityBatch = 256
)

// Capacity is the workload that fills the KV cache until vLLM preempts: requests sent at once, whose prompts nearly
// fill it and whose outputs overflow it. It tells how many tokens the cache holds and at which usage the first request
// is preempted, and what decoding costs up to a full cache. It is nil where the server does not state its cache, or its
// context and max_num_seqs do not let requests fill it. It is a run of its own: its prompts all come at one moment.
func Capacity(info harness.ServerInfo, seed uint64) *workload.Workload {
	bs, blocks := info.BlockSize, info.NumGPUBlocks-1 // block 0 is vLLM's null block
	n := capacityBatch
	if s := info.Args.MaxNumSeqs; s > 0 {
		n = min(n, s)
	}
	if bs == 0 || blocks < 1 {
		return nil
	}
	if n = min(n, blocks/32); n < 2 { // enough blocks each that whole ones come near the shares
		return nil
	}
	each := float64(blocks) / float64(n)
	before, after := int(capacityFrom*each), int(math.Ceil(capacityTo*each)) // whole blocks
	prompt, output := before*bs, (after-before)*bs+1
	if info.MaxModelLen > 0 && prompt+output > info.MaxModelLen {
		return nil
	}
	p := prober{info: info, next: (seed + 1) << 33, w: &workload.Workload{BlockSize: bs}}
	for range n {
		p.join(workload.Request{Probe: CapacityProbe, OutputTokens: output}, p.fresh(prompt))
	}
	return p.w
}

// ObserveCapacity computes from a capacity probe how many tokens the KV cache holds (tokens of the requests in it / its
// usage, at the fullest reading before anything was preempted) and its usage at that reading, which is where preemption
// set in where any did.
func ObserveCapacity(records []workload.Record, series []harness.Sample, blockSize int) harness.Metrics {
	// The counter as it stood at first, and when it first moved; a reading's samples have one moment.
	before, onsetAt := math.NaN(), time.Duration(math.MaxInt64)
	for _, s := range series {
		if s.Metric != harness.CounterPreemptions {
			continue
		}
		if math.IsNaN(before) {
			before = s.Value
		}
		if s.Value > before {
			onsetAt = min(onsetAt, s.T)
		}
	}
	preempts := onsetAt < math.MaxInt64
	fullest, tokens := 0.0, 0
	for _, s := range series {
		if s.Metric != harness.SeriesKVUsage || s.T >= onsetAt || s.Value <= fullest {
			continue
		}
		if held, whole := heldAt(records, s.T, blockSize); whole {
			fullest, tokens = s.Value, held
		}
	}
	const why = "no reading of vllm:kv_cache_usage_perc while all prompts were computed and none preempted"
	if fullest == 0 {
		return harness.Metrics{{Name: harness.MetricKVCapacity, Unit: "token", Note: why},
			{Name: harness.MetricPreemptionOnset, Unit: "ratio", Note: why}}
	}
	capacity := float64(tokens) / fullest
	ms := harness.Metrics{{Name: harness.MetricKVCapacity, Unit: "token", Value: &capacity}}
	onset := harness.Metric{Name: harness.MetricPreemptionOnset, Unit: "ratio", Value: &fullest,
		Note: "the fullest reading before the first preemption"}
	if !preempts {
		onset.Value, onset.Note = nil, "nothing was preempted"
	}
	return append(ms, onset)
}

// heldAt is how many tokens' blocks are held at a moment, in tokens, and whether every request that was sent by then is
// past its prompt, so that nothing is half computed.
func heldAt(records []workload.Record, at time.Duration, blockSize int) (tokens int, whole bool) {
	for i := range records {
		r := &records[i]
		if len(r.Tokens) == 0 || r.Sent > at || r.Sent+r.Tokens[0].At > at {
			return 0, false
		}
		if r.End() <= at {
			continue
		}
		n := r.PromptTokens
		for _, e := range r.Tokens {
			if r.Sent+e.At <= at {
				n += e.Tokens
			}
		}
		tokens += (n + blockSize - 1) / blockSize * blockSize
	}
	return tokens, tokens > 0
}
