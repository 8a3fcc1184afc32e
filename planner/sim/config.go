package sim

import (
	"cmp"
	"errors"
	"fmt"

	"kvtune/harness"
)

// newest is the minor number of the newest vLLM 0.x whose scheduler has been read.
const newest = 33

func (c Config) release() int {
	if c.Release == 0 {
		return newest
	}
	return c.Release
}

// budget is how many tokens a step may compute, active how many requests may run.
func (c Config) budget() int {
	return min(cmp.Or(c.MaxNumScheduledTokens, c.MaxNumBatchedTokens), c.MaxNumBatchedTokens)
}
func (c Config) active() int { return cmp.Or(c.MaxNumActiveSeqs, c.MaxNumSeqs) }

// Validate says what vLLM would refuse at start: a token budget below the number of sequences, a prompt of
// max_model_len that no step may hold (chunked prefill off), or a KV cache too small for one request of max_model_len.
func (c Config) Validate() error {
	for _, f := range []struct {
		name string
		v    int
	}{
		{"max_num_batched_tokens", c.MaxNumBatchedTokens}, {"max_num_seqs", c.MaxNumSeqs},
		{"block_size", c.BlockSize}, {"max_model_len", c.MaxModelLen}, {"stream_interval", c.StreamInterval},
	} {
		if f.v < 1 {
			return fmt.Errorf("%s is %d: it must be at least 1", f.name, f.v)
		}
	}
	need := 1 + (c.MaxModelLen+c.BlockSize-1)/c.BlockSize
	switch {
	case c.MaxNumBatchedTokens < c.MaxNumSeqs:
		return fmt.Errorf("max_num_batched_tokens %d is below max_num_seqs %d: raise the first or lower the second",
			c.MaxNumBatchedTokens, c.MaxNumSeqs)
	case c.MaxNumActiveSeqs < 0 || c.MaxNumActiveSeqs > c.MaxNumSeqs:
		return fmt.Errorf("max_num_active_seqs is %d: it must be between 0 (off) and max_num_seqs %d", c.MaxNumActiveSeqs,
			c.MaxNumSeqs)
	case c.MaxNumScheduledTokens < 0:
		return fmt.Errorf("max_num_scheduled_tokens is %d: it must be at least 1, or 0 for max_num_batched_tokens",
			c.MaxNumScheduledTokens)
	case c.MaxNumQueuedReqs < 0 || c.MaxNumQueuedTokens < 0:
		return errors.New("max_num_queued_reqs and max_num_queued_tokens must not be negative; 0 is no limit")
	case !c.EnableChunkedPrefill && c.budget() < c.MaxModelLen && c.budget() < c.MaxNumBatchedTokens:
		return fmt.Errorf("max_num_scheduled_tokens %d is below max_model_len %d with chunked prefill off: a longer prompt "+
			"would wait for ever; raise it or enable chunked prefill", c.MaxNumScheduledTokens, c.MaxModelLen)
	case !c.EnableChunkedPrefill && c.MaxNumBatchedTokens < c.MaxModelLen:
		return fmt.Errorf("max_num_batched_tokens %d is below max_model_len %d with chunked prefill off: "+
			"raise the first, lower the second or enable chunked prefill", c.MaxNumBatchedTokens, c.MaxModelLen)
	case c.LongPrefillTokenThreshold < 0 || c.LongPrefillTokenThreshold > c.MaxModelLen:
		return fmt.Errorf("long_prefill_token_threshold is %d: it must be between 0 (off) and max_model_len %d",
			c.LongPrefillTokenThreshold, c.MaxModelLen)
	case c.Watermark < 0 || c.Watermark >= 1:
		return fmt.Errorf("watermark is %g: it must be in [0, 1)", c.Watermark)
	case c.NumGPUBlocks < need:
		return fmt.Errorf("num_gpu_blocks %d is too small: one request of max_model_len %d needs %d blocks of %d tokens"+
			" (the null block included); lower max_model_len to %d or give the cache more memory",
			c.NumGPUBlocks, c.MaxModelLen, need, c.BlockSize, max(0, c.NumGPUBlocks-1)*c.BlockSize)
	case c.release() < 18 || c.release() > newest:
		return fmt.Errorf("release is %d: the rules of vLLM 0.18 to 0.%d are known", c.Release, newest)
	case min(c.FrontEnd.Handle, c.FrontEnd.PromptToken, c.FrontEnd.Token, c.FrontEnd.Event) < 0 ||
		c.FrontEnd.Request < c.FrontEnd.Handle:
		return errors.New("the front end's times must not be negative, nor its request time below the part to handle one")
	}
	return nil
}

// FromArgs makes a Config from resolved engine arguments (harness/vllmflags.Resolve) and the size of the KV cache in
// blocks, the null block included; num_gpu_blocks_override wins over it. A boolean that is not set is vLLM's default:
// chunked prefill, prefix caching and async scheduling are on.
func FromArgs(args harness.EngineArgs, numGPUBlocks int) (Config, error) {
	c := Config{
		MaxNumBatchedTokens:       args.MaxNumBatchedTokens,
		MaxNumSeqs:                args.MaxNumSeqs,
		BlockSize:                 args.BlockSize,
		NumGPUBlocks:              numGPUBlocks,
		MaxModelLen:               args.MaxModelLen,
		EnableChunkedPrefill:      args.EnableChunkedPrefill == nil || *args.EnableChunkedPrefill,
		EnablePrefixCaching:       args.EnablePrefixCaching == nil || *args.EnablePrefixCaching,
		LongPrefillTokenThreshold: args.LongPrefillTokenThreshold,
		AsyncScheduling:           args.AsyncScheduling == nil || *args.AsyncScheduling,
		Watermark:                 args.Watermark,
		ReserveFullISL:            args.SchedulerReserveFullISL == nil || *args.SchedulerReserveFullISL,
		StreamInterval:            max(1, args.StreamInterval),
		MaxNumScheduledTokens:     args.MaxNumScheduledTokens,
		MaxNumActiveSeqs:          args.MaxNumActiveSeqs,
		MaxNumQueuedReqs:          args.MaxNumQueuedReqs,
		MaxNumQueuedTokens:        args.MaxNumQueuedTokens,

		LongPrefillTokenThresholdAdaptive: args.LongPrefillTokenThresholdAdaptive != nil &&
			*args.LongPrefillTokenThresholdAdaptive,
	}
	if args.NumGPUBlocksOverride > 0 {
		c.NumGPUBlocks = args.NumGPUBlocksOverride
	}
	switch args.SchedulingPolicy {
	case "", "fcfs":
	case "priority":
		c.Priority = true
	default:
		return Config{}, fmt.Errorf("scheduling_policy is %q: it must be fcfs or priority", args.SchedulingPolicy)
	}
	return c, c.Validate()
}

// A RefusedError is a request that the API server answers with status 400: it never reaches the scheduler.
type RefusedError struct {
	// Param is the request's field at fault, in the server's words.
	Param   string
	Message string
}

// Error is the server's message.
func (e *RefusedError) Error() string { return e.Message }

// Admit is the API server's check of a request's lengths. It gives the number of tokens that the request will generate:
// vLLM from 0.32 on shortens an output that leaves max_model_len, earlier ones refuse it. The error is a *RefusedError.
//
// Source: vllm/renderers/params.py and get_max_tokens; texts seen on vLLM 0.32.
func (c Config) Admit(promptTokens, maxTokens int) (int, error) {
	limit := c.MaxModelLen
	switch {
	case promptTokens < 1:
		return 0, &RefusedError{"prompt", "The decoder prompt cannot be empty"}
	case maxTokens < 1:
		return 0, &RefusedError{"max_tokens", fmt.Sprintf("max_tokens must be at least 1, got %d.", maxTokens)}
	case promptTokens > limit:
		return 0, &RefusedError{"input_tokens", fmt.Sprintf("This model's maximum context length is %d tokens. However, "+
			"your prompt contains %d input tokens, which exceeds this limit even without any output tokens.",
			limit, promptTokens)}
	case promptTokens == limit:
		return 0, &RefusedError{"max_tokens", "max_tokens must be at least 1, got 0."}
	case maxTokens > limit:
		return 0, &RefusedError{"max_tokens", fmt.Sprintf("max_tokens=%d cannot be greater than max_model_len=%d.",
			maxTokens, limit)}
	case promptTokens+maxTokens > limit && c.release() < 32:
		return 0, &RefusedError{"input_tokens", fmt.Sprintf("This model's maximum context length is %d tokens. However, "+
			"you requested %d output tokens and your prompt contains %d input tokens.", limit, maxTokens, promptTokens)}
	}
	return min(maxTokens, limit-promptTokens), nil
}

// Stream is how many tokens the API server sends when a request's n-th token is there: 0 while stream_interval holds
// them back. The first token and the last are never held back.
//
// Source: vllm/v1/engine/output_processor.py.
func (c Config) Stream(n int, finished bool) int {
	k := c.StreamInterval
	switch {
	case n == 1 || k == 1:
		return 1
	case (n-1)%k == 0:
		return k
	case finished:
		return (n - 1) % k
	}
	return 0
}
