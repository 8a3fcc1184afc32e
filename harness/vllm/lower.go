package vllm

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"

	"kvtune/harness"
)

var (
	freeOfTotal  = regexp.MustCompile(`Free memory on device .*?\(([\d.]+)/([\d.]+) GiB\)`)
	longestModel = regexp.MustCompile(`estimated maximum model length is (\d+)`)
	wantedModel  = regexp.MustCompile(`max seq len \((\d+)\)`)
	neededOfHad  = regexp.MustCompile(`\(([\d.]+) GiB KV cache is needed.*?\(([\d.]+) GiB\)`)
)

// Floors below which Lower does not go: a server that needs less than that has another problem.
const (
	lowestUtilization = 0.3
	fewestTokens      = 512
	fewestSeqs        = 8
	shortestModelLen  = 512
)

// Lower is the next setting to try on a server whose memory did not suffice: the one that its log names, moved as far
// as the log says or else by one step down. inForce are all its settings, defaults included; set holds what to change,
// and what says it in words ("gpu_memory_utilization 0.92 -> 0.87"). It is false where the end had another cause, or
// where there is nothing left to lower.
func (e *DiedError) Lower(inForce harness.EngineArgs) (set harness.EngineArgs, what string, ok bool) {
	log := strings.Join(e.Lines, "\n")
	utilization := func(to float64) bool {
		to = math.Floor(to*100+1e-9) / 100
		if !(to >= lowestUtilization && to < inForce.GPUMemoryUtilization) {
			return false
		}
		set.GPUMemoryUtilization = to
		what = fmt.Sprintf("gpu_memory_utilization %g -> %g", inForce.GPUMemoryUtilization, to)
		return true
	}
	count := func(name string, from, to, floor int, at *int) bool {
		if to >= from || to < floor {
			return false
		}
		*at = to
		what = fmt.Sprintf("%s %d -> %d", name, from, to)
		return true
	}
	tokens := func() bool {
		return count("max_num_batched_tokens", inForce.MaxNumBatchedTokens,
			max(inForce.MaxNumBatchedTokens/2, inForce.MaxNumSeqs), fewestTokens, &set.MaxNumBatchedTokens)
	}
	seqs := func() bool {
		return count("max_num_seqs", inForce.MaxNumSeqs, inForce.MaxNumSeqs/2, fewestSeqs, &set.MaxNumSeqs)
	}
	switch e.Cause {
	case CauseKVCache:
		if strings.Contains(log, "No available memory") { // weights and one step's activations take it all
			ok = tokens() || seqs()
			break
		}
		from := inForce.MaxModelLen
		if m := wantedModel.FindStringSubmatch(log); m != nil { // also where it is the model's own
			from, _ = strconv.Atoi(m[1])
		}
		to := from / 2
		if m := longestModel.FindStringSubmatch(log); m != nil {
			to, _ = strconv.Atoi(m[1])
		} else if m := neededOfHad.FindStringSubmatch(log); m != nil {
			needed, _ := strconv.ParseFloat(m[1], 64)
			had, _ := strconv.ParseFloat(m[2], 64)
			to = int(float64(from) * min(1, had/needed) * 0.98) // the log rounds
		}
		ok = count("max_model_len", from, to, shortestModelLen, &set.MaxModelLen)
	case CauseMemory:
		if m := freeOfTotal.FindStringSubmatch(log); m != nil { // others use the device
			free, _ := strconv.ParseFloat(m[1], 64)
			total, _ := strconv.ParseFloat(m[2], 64)
			ok = utilization(free/total - 0.01)
			break
		}
		if strings.Contains(log, "warming up sampler") { // one row of logits per sequence
			ok = seqs() || utilization(inForce.GPUMemoryUtilization-0.05)
			break
		}
		ok = utilization(inForce.GPUMemoryUtilization-0.05) || tokens() || seqs()
	}
	return set, what, ok
}
