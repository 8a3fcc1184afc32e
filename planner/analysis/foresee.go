package analysis

import (
	"context"
	"fmt"
	"time"

	"kvtune/harness"
	"kvtune/harness/workload"
	"kvtune/planner/cost"
	"kvtune/planner/sim"
)

// TroubleKind names what will go wrong.
type TroubleKind string

const (
	// DoesNotFit: the weights and what a step needs leave no room for the KV cache; the server does not start.
	DoesNotFit TroubleKind = "the model does not fit"
	// OutOfMemory: the server is likely to run out of device memory when it starts or under load.
	OutOfMemory TroubleKind = "out of memory"
	// TooFewBlocks: the KV cache is too small for one request of the context, or of this workload.
	TooFewBlocks TroubleKind = "too few KV blocks"
	// PreemptionStorm: running requests lose their KV blocks to each other again and again.
	PreemptionStorm TroubleKind = "preemption storm"
	// WholePrompts: chunked prefill is off and prompts are long.
	WholePrompts TroubleKind = "chunked prefill off"
)

// Trouble is something that can be known before a run: what will happen, by which numbers, and what to do.
type Trouble struct {
	Kind TroubleKind `json:"kind"`
	Text string      `json:"text"`
	// Do says what to change.
	Do string `json:"do"`
	// Fatal: the server does not start.
	Fatal bool `json:"fatal,omitempty"`
}

// String is the trouble in a line.
func (t Trouble) String() string { return fmt.Sprintf("%s: %s; %s", t.Kind, t.Text, t.Do) }

const (
	// outside is device memory that vLLM needs beyond gpu_memory_utilization: the driver's context, the allocator's
	// fragments (bytes; an H200 with vLLM 0.26 had 0.6 GiB in use before a server began).
	outside = 1 << 30
	// doubtful is the share of the device by which an estimate of its free memory may be off.
	doubtful = 0.02
	// storm is the share of preempted requests from which on they are called a storm.
	storm = 0.1
	// stall is how long a step may keep the other requests from their tokens.
	stall = 250 * time.Millisecond
	// foreseen is how many requests are simulated to look ahead.
	foreseen = 2000
)

// Foresee says what will go wrong with a workload on a server, before anything is started or sent. An error is ctx's;
// what is not known of the server is left out.
func Foresee(ctx context.Context, s Server, w *workload.Workload) ([]Trouble, error) {
	var all []Trouble
	if t := s.memoryTrouble(); t != nil {
		all = append(all, *t)
	}
	blocks, err := s.blocks(s.Args)
	if err != nil {
		return all, nil // does not fit, or not known
	}
	cfg, err := sim.FromArgs(s.Args, blocks)
	need := 0
	if cfg.BlockSize > 0 {
		need = 1 + (cfg.MaxModelLen+cfg.BlockSize-1)/cfg.BlockSize
	}
	if err != nil {
		if cfg.NumGPUBlocks > 0 && cfg.NumGPUBlocks < need {
			all = append(all, Trouble{TooFewBlocks, fmt.Sprintf("vLLM refuses to start: %v", err),
				"raise num_gpu_blocks_override or gpu_memory_utilization, or lower max_model_len", true})
		} else if !cfg.EnableChunkedPrefill && cfg.MaxNumBatchedTokens > 0 && cfg.MaxNumBatchedTokens < cfg.MaxModelLen {
			all = append(all, Trouble{WholePrompts, fmt.Sprintf("vLLM refuses to start: %v", err), "enable chunked prefill",
				true})
		}
		return all, nil
	}
	cfg.Release = s.Release
	longest, final := lengths(w)
	if final == 0 {
		return all, nil
	}
	tokens := (cfg.NumGPUBlocks - 1) * cfg.BlockSize
	if fit := tokens / final; fit < 2 && cfg.MaxNumSeqs > 1 {
		all = append(all, Trouble{TooFewBlocks,
			fmt.Sprintf("the KV cache holds %d tokens, a request of this workload ends with %d: they run one after the other",
				tokens, final), "give the cache more memory (gpu_memory_utilization, kv_cache_dtype fp8, tensor_parallel_size)",
			false})
	}
	if t := s.wholePrompts(cfg, longest); t != nil {
		all = append(all, *t)
	}
	t, err := s.stormAhead(ctx, cfg, w, tokens, final)
	if t != nil {
		all = append(all, *t)
	}
	return all, err
}

// lengths are the longest prompt and the mean length at the end, in tokens, of the measured requests.
func lengths(w *workload.Workload) (longest, final int) {
	n := 0
	for i := range w.Requests {
		r := &w.Requests[i]
		if r.Phase != workload.Measured {
			continue
		}
		longest = max(longest, r.PromptTokens())
		final += r.PromptTokens() + r.OutputTokens
		n++
	}
	return longest, final / max(1, n)
}

// memoryTrouble looks at where the device's memory goes.
func (s Server) memoryTrouble() *Trouble {
	if s.GPU == nil || s.Model == nil || s.GPU.CPU {
		return nil
	}
	const giB = 1 << 30
	m, err := cost.Capacity(*s.GPU, *s.Model, s.Args)
	switch spare := m.Total - m.Requested; {
	case m.KV < m.BytesPerBlock && s.Args.NumGPUBlocksOverride == 0:
		return &Trouble{DoesNotFit, err.Error(), "nothing was started", true}
	case spare < outside:
		return &Trouble{OutOfMemory, fmt.Sprintf("gpu_memory_utilization %.3g leaves %.1f GiB of %s's %.0f GiB for the "+
			"driver's context and the allocator's fragments, about %.1f GiB are needed", s.Args.GPUMemoryUtilization,
			float64(spare)/giB, s.GPU.Name, float64(m.Total)/giB, float64(outside)/giB),
			fmt.Sprintf("set gpu_memory_utilization to %.2f or less",
				float64(int(100*(1-float64(outside)/float64(m.Total))))/100), false}
	case float64(m.KV) < doubtful*float64(m.Total) && s.Args.NumGPUBlocksOverride == 0:
		return &Trouble{OutOfMemory, fmt.Sprintf("%.1f GiB of weights and %.1f GiB of activations and CUDA graphs leave "+
			"about %.1f GiB of the %.1f GiB requested for the KV cache, less than the estimate may be off by",
			float64(m.Weights)/giB, float64(m.Activations+m.CUDAGraphs)/giB, float64(m.KV)/giB, float64(m.Requested)/giB),
			"lower max_num_batched_tokens or max_num_seqs, or use a larger tensor_parallel_size or fp8 weights", false}
	}
	return nil
}

// wholePrompts looks at prompts that must be computed in one step.
func (s Server) wholePrompts(cfg sim.Config, longest int) *Trouble {
	if cfg.EnableChunkedPrefill || s.Cost == nil {
		return nil
	}
	step := s.Cost.StepTime(cost.Step{PrefillSeqs: 1, PrefillTokens: longest, MaxChunk: longest,
		PrefillAttention: float64(longest) * float64(longest) / 2})
	if step < stall {
		return nil
	}
	return &Trouble{WholePrompts, fmt.Sprintf("a prompt of %d tokens is computed in one step of about %.0f ms, in which "+
		"no other request gets a token, and waits until a step has room for all of it", longest, 1e3*step.Seconds()),
		"enable chunked prefill", false}
}

// stormAhead simulates the workload's first requests and counts those that are preempted.
func (s Server) stormAhead(ctx context.Context, cfg sim.Config, w *workload.Workload,
	tokens, final int) (*Trouble, error) {
	if s.Cost == nil {
		return nil, nil
	}
	ahead := *w
	ahead.Requests = w.Requests[:min(len(w.Requests), foreseen)]
	out, err := sim.Run(ctx, cfg, s.Cost.For(s.Args), &ahead, sim.Options{})
	if err != nil {
		return nil, ctx.Err() // a workload that cannot be simulated shows nothing
	}
	n, lost := float64(len(ahead.Requests)), out.Counters[harness.CounterPreemptions]
	if lost < storm*n {
		return nil, nil
	}
	fit := max(1, tokens/final)
	text := fmt.Sprintf("%.0f preemptions are expected for %.0f requests (SIMULATED): the KV cache holds %d tokens, %d "+
		"requests of %d tokens at their end, and max_num_seqs admits %d", lost, n, tokens, fit, final, cfg.MaxNumSeqs)
	return &Trouble{PreemptionStorm, text, fmt.Sprintf("set max_num_seqs to %d, or give the cache more memory", fit),
		false}, nil
}
