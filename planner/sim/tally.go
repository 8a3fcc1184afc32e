package sim

import (
	"time"

	"kvtune/harness"
)

// tally is vLLM's counters, in the front end's view (vllm/v1/metrics/{stats,loggers}.py).
type tally struct {
	firsts, finished, iterations, iterationTokens int
	promptTokens, cachedTokens, outputTokens      int
	ttft, queue, prefill, decode, inference, e2e  time.Duration
	tpot                                          float64
}

func (t *tally) first(ttft time.Duration, promptTokens, cachedTokens int) {
	t.firsts++
	t.ttft += ttft
	t.promptTokens += promptTokens
	t.cachedTokens += cachedTokens
}

func (t *tally) last(now, sent time.Duration, p *progress, output int) {
	t.finished++
	t.outputTokens += output
	t.queue += p.scheduled - p.queued
	t.prefill += p.first - p.scheduled
	t.decode += now - p.first
	t.inference += now - p.scheduled
	t.e2e += now - sent
	if output > 1 {
		t.tpot += (now - p.first).Seconds() / float64(output-1)
	}
}

// counters names the sums as /metrics does. Every request has ended.
func (t *tally) counters(s Stats) map[string]float64 {
	c := map[string]float64{
		harness.CounterPrefixQueries:      float64(s.PrefixQueries),
		harness.CounterPrefixHits:         float64(s.PrefixHits),
		harness.CounterPreemptions:        float64(s.Preemptions),
		harness.CounterPromptTokens:       float64(t.promptTokens),
		"vllm:prompt_tokens_cached_total": float64(t.cachedTokens),
		harness.CounterGenerationTokens:   float64(t.outputTokens),
		"vllm:request_success_total":      float64(t.finished),
	}
	histogram := func(name string, sum float64, count int) {
		c["vllm:"+name+"_sum"], c["vllm:"+name+"_count"] = sum, float64(count)
	}
	histogram("iteration_tokens_total", float64(t.iterationTokens), t.iterations)
	histogram("time_to_first_token_seconds", t.ttft.Seconds(), t.firsts)
	histogram("inter_token_latency_seconds", t.decode.Seconds(), t.outputTokens-t.firsts)
	histogram("request_time_per_output_token_seconds", t.tpot, t.finished)
	histogram("e2e_request_latency_seconds", t.e2e.Seconds(), t.finished)
	histogram("request_queue_time_seconds", t.queue.Seconds(), t.finished)
	histogram("request_prefill_time_seconds", t.prefill.Seconds(), t.finished)
	histogram("request_decode_time_seconds", t.decode.Seconds(), t.finished)
	histogram("request_inference_time_seconds", t.inference.Seconds(), t.finished)
	return c
}
