package sim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"kvtune/harness"
	"kvtune/harness/workload"
	"kvtune/planner/cost"
)

// tick is a step of one millisecond, whatever it does.
type tick struct{}

func (tick) StepTime(cost.Step) time.Duration                   { return time.Millisecond }
func (tick) HostTime(cost.Step) (prepare, launch time.Duration) { return 0, 0 }

// small is a server on which single blocks matter.
var small = Config{
	MaxNumBatchedTokens: 16, MaxNumSeqs: 4, BlockSize: 4, NumGPUBlocks: 41, MaxModelLen: 160,
	EnableChunkedPrefill: true, EnablePrefixCaching: true, ReserveFullISL: true, StreamInterval: 1,
}

func with(c Config, change func(*Config)) Config {
	change(&c)
	return c
}

// ask is a request due at a millisecond; its prompt is private behind shared tokens of segment 1.
type ask struct{ ms, shared, prompt, output, priority int }

func requests(asks ...ask) *workload.Workload {
	w := &workload.Workload{}
	for i, a := range asks {
		r := workload.Request{Index: i, After: -1, Due: time.Duration(a.ms) * time.Millisecond, OutputTokens: a.output,
			SharedTokens: a.shared, Priority: a.priority}
		if a.shared > 0 {
			r.Prompt = append(r.Prompt, workload.Segment{ID: 1, Tokens: a.shared})
		}
		if a.prompt > a.shared {
			r.Prompt = append(r.Prompt, workload.Segment{ID: uint64(100 + i), Tokens: a.prompt - a.shared})
		}
		w.Requests = append(w.Requests, r)
	}
	return w
}

func mustRun(t *testing.T, cfg Config, timer cost.Timer, w *workload.Workload) *Outcome {
	t.Helper()
	out, err := Run(t.Context(), cfg, timer, w, Options{Steps: true, Series: true})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// steps prints a run as its steps: prefill requests/tokens + decode tokens (! preempted).
func steps(out *Outcome) string {
	s := ""
	for i, x := range out.Steps {
		if i > 0 {
			s += " "
		}
		if x.ContextRequests > 0 {
			s += fmt.Sprintf("%d/%d", x.ContextRequests, x.ContextTokens)
		}
		if x.GenerationRequests > 0 {
			s += fmt.Sprintf("+%d", x.GenerationRequests)
		}
		for range x.Preemptions {
			s += "!"
		}
	}
	return s
}

// The sequences are computed by hand from the rules.
func TestStepSequences(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  Config
		w    *workload.Workload
		want string
	}{
		{"one request", small, requests(ask{prompt: 10, output: 3}), "1/10 +1 +1"},
		{"one output token is the prefill's", small, requests(ask{prompt: 10, output: 1}), "1/10"},
		{"a prompt above the budget is cut", small, requests(ask{prompt: 40, output: 2}), "1/16 1/16 1/8 +1"},
		{"a prompt takes what is left of the budget", small, requests(ask{prompt: 10, output: 1}, ask{prompt: 10, output: 1}),
			"2/16 1/4"},
		{"decodes come before new prompts", small, requests(ask{prompt: 4, output: 4}, ask{ms: 1, prompt: 20, output: 2}),
			"1/4 1/15+1 1/5+1 +2"},
		{"chunked prefill off: the head of the line blocks",
			with(small, func(c *Config) { c.EnableChunkedPrefill, c.MaxModelLen = false, 16 }),
			requests(ask{prompt: 4, output: 4}, ask{ms: 1, prompt: 14, output: 1}, ask{ms: 1, prompt: 13, output: 1},
				ask{ms: 2, prompt: 1, output: 1}), "1/4 1/14+1 2/14+1 +1"},
		{"chunked prefill off: a small one does not pass",
			with(small, func(c *Config) { c.EnableChunkedPrefill, c.MaxModelLen = false, 16 }),
			requests(ask{prompt: 3, output: 1}, ask{prompt: 14, output: 1}, ask{prompt: 1, output: 1}), "1/3 2/15"},
		{"max_num_seqs", with(small, func(c *Config) { c.MaxNumSeqs = 2 }),
			requests(ask{prompt: 2, output: 2}, ask{prompt: 2, output: 3}, ask{prompt: 2, output: 1}), "2/4 +2 1/2+1"},
		{"a threshold lets prompts share steps", with(small, func(c *Config) { c.LongPrefillTokenThreshold = 5 }),
			requests(ask{prompt: 12, output: 1}, ask{prompt: 7, output: 2}), "2/10 2/7 1/2+1"},
		{"a lone request ignores the threshold", with(small, func(c *Config) { c.LongPrefillTokenThreshold = 5 }),
			requests(ask{prompt: 12, output: 1}), "1/12"},
		{"it did not up to 0.30", with(small, func(c *Config) { c.LongPrefillTokenThreshold, c.Release = 5, 30 }),
			requests(ask{prompt: 12, output: 1}), "1/5 1/5 1/2"},
		{"a cached prefix costs nothing", small,
			requests(ask{shared: 8, prompt: 9, output: 1}, ask{ms: 5, shared: 8, prompt: 12, output: 1}), "1/9 1/4"},
		{"hit within the step that computes it", small,
			requests(ask{shared: 8, prompt: 9, output: 1}, ask{shared: 8, prompt: 12, output: 1}), "2/13"},
		{"prefix caching off", with(small, func(c *Config) { c.EnablePrefixCaching = false }),
			requests(ask{shared: 8, prompt: 9, output: 1}, ask{ms: 5, shared: 8, prompt: 12, output: 1}), "1/9 1/12"},
		// 5 usable blocks of 4. Each prompt takes 2; the fifth goes to the first request at its 9th position. The second
		// gives way when it needs a sixth, and resumes when the first has ended: its 2 full blocks are still there.
		{"preemption", with(small, func(c *Config) { c.NumGPUBlocks, c.MaxModelLen = 6, 20 }),
			requests(ask{prompt: 8, output: 4}, ask{prompt: 7, output: 5}), "2/15 +2 +1! +1 +1 +1 +1"},
		{"preemption without prefix caching: all is computed again",
			with(small, func(c *Config) { c.NumGPUBlocks, c.MaxModelLen, c.EnablePrefixCaching = 6, 20, false }),
			requests(ask{prompt: 8, output: 4}, ask{prompt: 7, output: 5}), "2/15 +2 +1! +1 1/9 +1 +1"},
		{"without the full-ISL gate a prompt starts that must give way",
			with(small, func(c *Config) { c.NumGPUBlocks, c.MaxModelLen, c.ReserveFullISL = 8, 28, false }),
			requests(ask{prompt: 14, output: 2}, ask{prompt: 20, output: 1}), "2/16 +1! 1/16 1/4"},
		{"with it the prompt waits",
			with(small, func(c *Config) { c.NumGPUBlocks, c.MaxModelLen = 8, 28 }),
			requests(ask{prompt: 14, output: 2}, ask{prompt: 20, output: 1}), "1/14 +1 1/16 1/4"},
		{"a watermark keeps blocks free while something runs",
			with(small, func(c *Config) { c.NumGPUBlocks, c.MaxModelLen, c.Watermark = 8, 28, 0.5 }),
			requests(ask{prompt: 4, output: 2}, ask{prompt: 16, output: 1}), "1/4 +1 1/16"},
		{"async: the second batch goes ahead of the first's result",
			with(small, func(c *Config) { c.AsyncScheduling = true }),
			requests(ask{prompt: 20, output: 3}), "1/16 1/4 +1 +1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := mustRun(t, c.cfg, tick{}, c.w)
			if got := steps(out); got != c.want {
				t.Errorf("steps %q, want %q", got, c.want)
			}
			for _, r := range out.Records {
				if !r.OK() || r.OutputTokens != r.AskedTokens || r.FinishReason != "length" {
					t.Errorf("record %+v", r)
				}
			}
		})
	}
}

// Facts seen on a vLLM 0.32 server (CPU, synchronous scheduling).
func TestPrefixHitsSeenOnAServer(t *testing.T) {
	for _, c := range []struct{ block, shared, prompt, hits int }{
		{128, 700, 700, 640}, {128, 512, 512, 384}, {128, 100, 100, 0}, {128, 200, 300, 128}, {32, 96, 96, 64},
		{64, 300, 300, 256},
	} {
		cfg := with(h200, func(c0 *Config) {
			c0.AsyncScheduling, c0.BlockSize, c0.MaxNumBatchedTokens, c0.MaxNumSeqs = false, c.block, 2048, 128
		})
		out := mustRun(t, cfg, tick{}, requests(ask{shared: c.shared, prompt: c.prompt, output: 4},
			ask{ms: 50, shared: c.shared, prompt: c.prompt, output: 4}))
		got := out.Counters["vllm:prefix_cache_hits_total"]
		if got != float64(c.hits) || *out.Records[1].CachedTokens != c.hits || *out.Records[0].CachedTokens != 0 {
			t.Errorf("%+v: hits %g, cached %d", c, got, *out.Records[1].CachedTokens)
		}
		if q := out.Counters["vllm:prefix_cache_queries_total"]; q != float64(2*c.prompt) {
			t.Errorf("%+v: queries %g", c, q)
		}
	}
}

func TestPreemptionsSeenOnAServer(t *testing.T) {
	cfg := with(h200, func(c *Config) {
		c.AsyncScheduling, c.BlockSize, c.NumGPUBlocks, c.MaxModelLen = false, 64, 80, 4096
		c.MaxNumBatchedTokens, c.MaxNumSeqs = 2048, 128
	})
	var asks []ask
	for range 16 {
		asks = append(asks, ask{prompt: 60, output: 400})
	}
	out := mustRun(t, cfg, tick{}, requests(asks...))
	for name, want := range map[string]float64{
		"vllm:num_preemptions_total": 7, "vllm:prompt_tokens_total": 960, "vllm:prefix_cache_queries_total": 960,
		"vllm:prefix_cache_hits_total": 0, "vllm:generation_tokens_total": 6400, "vllm:iteration_tokens_total_sum": 7360,
		"vllm:request_success_total": 16, "vllm:time_to_first_token_seconds_count": 16,
	} {
		if got := out.Counters[name]; got != want {
			t.Errorf("%s is %g, want %g", name, got, want)
		}
	}
}

func TestPrefixQueriesByRelease(t *testing.T) {
	// The second prompt's lookup is refused twice: it needs 5 of 7 blocks, and the first request holds 4.
	w := requests(ask{prompt: 14, output: 2}, ask{prompt: 20, output: 1})
	for release, want := range map[int]float64{26: 14 + 3*20, 27: 14 + 20, 0: 14 + 20} {
		cfg := with(small, func(c *Config) { c.NumGPUBlocks, c.MaxModelLen, c.Release = 8, 28, release })
		if got := mustRun(t, cfg, tick{}, w).Counters["vllm:prefix_cache_queries_total"]; got != want {
			t.Errorf("release %d: %g queries, want %g", release, got, want)
		}
	}
}

// Every measured request hits exactly the M x block_size tokens that were primed, and nothing else is hit.
func TestPrimedBlocksAreHitExactly(t *testing.T) {
	for _, prefix := range []string{"shared", "own", "groups=3"} {
		for _, kind := range []string{"prefill", "decode", "mixed"} {
			for _, async := range []bool{false, true} {
				spec := workload.Spec{C: 100, M: 9, B: 8, BlockSize: 16, Type: kind, Prefix: prefix, NumWarmup: 1,
					NumMeasurements: 2, OutputLen: "20", Seed: 1}
				w, err := spec.Build()
				if err != nil {
					t.Fatal(err)
				}
				out := mustRun(t, with(h200, func(c *Config) { c.AsyncScheduling = async }), h100ish, w)
				hits := 0
				for _, r := range out.Records {
					want := 9 * 16
					if r.Phase == workload.Prime {
						want = 0
					}
					if *r.CachedTokens != want {
						t.Fatalf("%s %s, async %v: request %d (%q) hit %d tokens, want %d", prefix, kind, async, r.Index, r.Phase,
							*r.CachedTokens, want)
					}
					hits += want
				}
				if got := out.Counters["vllm:prefix_cache_hits_total"]; got != float64(hits) {
					t.Errorf("%s %s, async %v: counted %g hits, want %d", prefix, kind, async, got, hits)
				}
			}
		}
	}
}

func TestAConversationHitsItsHistory(t *testing.T) {
	w := requests(ask{prompt: 20, output: 13}, ask{prompt: 50, output: 4})
	w.Requests[0].OutputID = 7
	w.Requests[1].After = 0
	w.Requests[1].Prompt = []workload.Segment{{ID: 100, Tokens: 20}, {ID: 7, Tokens: 13}, {ID: 101, Tokens: 17}}
	for _, async := range []bool{false, true} {
		out := mustRun(t, with(small, func(c *Config) { c.AsyncScheduling = async }), tick{}, w)
		// 33 tokens of history, of which the last was sampled but never computed: 32 in 8 full blocks.
		if got := *out.Records[1].CachedTokens; got != 32 {
			t.Errorf("async %v: the second turn hit %d tokens, want 32", async, got)
		}
		if out.Records[1].Sent < out.Records[0].End() {
			t.Errorf("the second turn was sent at %v, before the first ended at %v", out.Records[1].Sent, out.Records[0].End())
		}
	}
}

func TestTimeline(t *testing.T) {
	ms := time.Millisecond
	asks := requests(ask{prompt: 4, output: 4}, ask{prompt: 4, output: 2})
	asks.Requests[1].Due = ms / 2
	for _, c := range []struct {
		name  string
		cfg   Config
		first []time.Duration // token times of request 0, then of request 1, from the run's start
		then  []time.Duration
	}{
		{"sync", small, []time.Duration{1 * ms, 2 * ms, 3 * ms, 4 * ms}, []time.Duration{2 * ms, 3 * ms}},
		// Batch 2 was launched with batch 1: the second request is in batch 3.
		{"async", with(small, func(c *Config) { c.AsyncScheduling = true }),
			[]time.Duration{1 * ms, 2 * ms, 3 * ms, 4 * ms}, []time.Duration{3 * ms, 4 * ms}},
		{"latencies", with(small, func(c *Config) { c.FrontEnd = cost.FrontEnd{Request: 10 * ms, Token: ms / 4} }),
			[]time.Duration{11*ms + ms/4, 12*ms + ms/4, 13*ms + ms/4, 14*ms + ms/4},
			[]time.Duration{12*ms + ms/4, 13*ms + ms/4}},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := mustRun(t, c.cfg, tick{}, asks)
			for i, want := range [][]time.Duration{c.first, c.then} {
				r := out.Records[i]
				if r.Due == nil || *r.Due != asks.Requests[i].Due || r.Sent != *r.Due {
					t.Errorf("request %d: due %v, sent %v", i, r.Due, r.Sent)
				}
				if len(r.Tokens) != len(want) {
					t.Fatalf("request %d: tokens %v", i, r.Tokens)
				}
				for k, e := range r.Tokens {
					if e.Tokens != 1 || r.Sent+e.At != want[k] {
						t.Errorf("request %d, token %d at %v, want %v", i, k, r.Sent+e.At, want[k])
					}
				}
			}
		})
	}
}

func TestStreamInterval(t *testing.T) {
	out := mustRun(t, with(small, func(c *Config) { c.StreamInterval = 4 }), tick{}, requests(ask{prompt: 4, output: 10}))
	got := ""
	for _, e := range out.Records[0].Tokens {
		got += fmt.Sprintf("%d@%v ", e.Tokens, e.At)
	}
	if want := "1@1ms 4@5ms 4@9ms 1@10ms "; got != want {
		t.Errorf("events %q, want %q", got, want)
	}
}

func TestPriorityGoesFirst(t *testing.T) {
	cfg := with(small, func(c *Config) { c.Priority, c.MaxNumSeqs = true, 1 })
	w := requests(ask{prompt: 4, output: 3}, ask{ms: 1, prompt: 4, output: 1, priority: 5},
		ask{ms: 1, prompt: 4, output: 1, priority: -5}, ask{ms: 2, prompt: 4, output: 1, priority: -5},
		ask{ms: 1, prompt: 4, output: 1})
	out := mustRun(t, cfg, tick{}, w)
	for i, want := range []int{2, 3, 4, 1} { // each is one step, from 3 ms on
		if got, at := out.Records[want].End(), time.Duration(4+i)*time.Millisecond; got != at {
			t.Errorf("request %d ended at %v, want %v", want, got, at)
		}
	}
}

func TestLengthsBeyondTheContext(t *testing.T) {
	w := requests(ask{prompt: 200, output: 1}, ask{prompt: 160, output: 1}, ask{prompt: 159, output: 2},
		ask{prompt: 8, output: 2})
	for release, want := range map[int][4]int{0: {0, 0, 1, 2}, 31: {0, 0, 0, 2}} {
		out := mustRun(t, with(small, func(c *Config) { c.Release = release }), tick{}, w)
		for i, r := range out.Records {
			if r.OutputTokens != want[i] || r.OK() != (want[i] > 0) {
				t.Errorf("release %d, request %d: %d tokens, error %q", release, i, r.OutputTokens, r.Error)
			}
		}
	}
	s, err := New(small)
	if err != nil {
		t.Fatal(err)
	}
	var refused *RefusedError
	err = s.Add(Request{PromptTokens: 161, MaxTokens: 1})
	if !errors.As(err, &refused) || refused.Param != "input_tokens" {
		t.Errorf("a prompt above max_model_len: %v", err)
	}
}

func TestARequestWaitsForNothingThatCannotBe(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"num_gpu_blocks 40 is too small":            func(c *Config) { c.NumGPUBlocks = 40 },
		"max_num_batched_tokens 3 is below max_num": func(c *Config) { c.MaxNumBatchedTokens = 3 },
		"with chunked prefill off":                  func(c *Config) { c.EnableChunkedPrefill = false },
		"block_size is 0":                           func(c *Config) { c.BlockSize = 0 },
		"watermark is 1":                            func(c *Config) { c.Watermark = 1 },
		"release is 17":                             func(c *Config) { c.Release = 17 },
		"long_prefill_token_threshold is 161":       func(c *Config) { c.LongPrefillTokenThreshold = 161 },
	} {
		_, err := Run(t.Context(), with(small, change), tick{}, requests(ask{prompt: 4, output: 1}), Options{})
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFromArgs(t *testing.T) {
	off := false
	args := harness.EngineArgs{MaxNumBatchedTokens: 2048, MaxNumSeqs: 64, BlockSize: 32, MaxModelLen: 4096,
		AsyncScheduling: &off, SchedulingPolicy: "priority", NumGPUBlocksOverride: 200, LongPrefillTokenThreshold: 100}
	want := Config{MaxNumBatchedTokens: 2048, MaxNumSeqs: 64, BlockSize: 32, NumGPUBlocks: 200, MaxModelLen: 4096,
		EnableChunkedPrefill: true, EnablePrefixCaching: true, Priority: true, LongPrefillTokenThreshold: 100,
		ReserveFullISL: true, StreamInterval: 1}
	if got, err := FromArgs(args, 9999); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	args.SchedulingPolicy = "random"
	if _, err := FromArgs(args, 9999); err == nil || !strings.Contains(err.Error(), "fcfs or priority") {
		t.Errorf("an unknown policy: %v", err)
	}
	_, err := FromArgs(harness.EngineArgs{}, 100)
	if err == nil || !strings.Contains(err.Error(), "max_num_batched_tokens is 0") {
		t.Errorf("arguments that are not resolved: %v", err)
	}
}

// One server, fixed service time, Poisson arrivals: the mean wait is rho x service / (2 (1 - rho)).
func TestMD1(t *testing.T) {
	cfg := with(h200, func(c *Config) { c.MaxNumSeqs, c.AsyncScheduling = 1, false })
	const n = 100_000
	for _, rho := range []float64{0.5, 0.8} {
		out, err := Run(t.Context(), cfg, tick{}, poisson(n, rho*1000, 16, 1, 42), Options{})
		if err != nil {
			t.Fatal(err)
		}
		// Means of 50 batches are nearly independent.
		var means []float64
		for k := range 50 {
			sum := 0.0
			for _, r := range out.Records[k*n/50 : (k+1)*n/50] {
				sum += (r.Tokens[0].At - time.Millisecond).Seconds() * 1e3
			}
			means = append(means, sum/(n/50))
		}
		mean, ss := 0.0, 0.0
		for _, m := range means {
			mean += m / 50
		}
		for _, m := range means {
			ss += (m - mean) * (m - mean)
		}
		half := 3 * math.Sqrt(ss/49/50)
		theory := rho / (2 * (1 - rho))
		if math.Abs(mean-theory) > half || half > 0.2*theory {
			t.Errorf("rho %g: mean wait %.4f +- %.4f ms, theory %.4f", rho, mean, half, theory)
		}
	}
}

func TestConservation(t *testing.T) {
	for _, async := range []bool{false, true} {
		cfg := with(h200, func(c *Config) { c.AsyncScheduling, c.NumGPUBlocks, c.MaxModelLen = async, 900, 4096 })
		w := poisson(300, 40, 700, 150, 3)
		out := mustRun(t, cfg, h100ish, w)
		computed, busy := 0, time.Duration(0)
		for i, s := range out.Steps {
			if s.ContextTokens+s.GenerationTokens > cfg.MaxNumBatchedTokens {
				t.Fatalf("step %d is over the budget: %+v", i, s)
			}
			if i > 0 && s.T < out.Steps[i-1].T+out.Steps[i-1].Elapsed {
				t.Fatalf("step %d starts before step %d ends", i, i-1)
			}
			computed += s.ContextTokens + s.GenerationTokens
			busy += s.Elapsed
		}
		if out.Counters["vllm:num_preemptions_total"] == 0 {
			t.Error("no preemption: the case shows too little")
		}
		// Each request computes its prompt and all of its output but the last token at least once; what comes on top is
		// recomputation.
		if least := 300 * (700 + 149); computed < least {
			t.Errorf("%d tokens computed, at least %d are needed", computed, least)
		}
		if busy != out.Busy || out.KVUsagePeak > 1 || out.KVUsageMean <= 0 || out.KVUsageMean > out.KVUsagePeak {
			t.Errorf("busy %v, steps %v, usage mean %g, peak %g", out.Busy, busy, out.KVUsageMean, out.KVUsagePeak)
		}
		for _, r := range out.Records {
			if !r.OK() || r.OutputTokens != 150 || r.End() > out.End {
				t.Fatalf("record %+v", r)
			}
		}
		c := out.Counters
		inference := c["vllm:request_prefill_time_seconds_sum"] + c["vllm:request_decode_time_seconds_sum"]
		if math.Abs(inference-c["vllm:request_inference_time_seconds_sum"]) > 1e-6 {
			t.Errorf("prefill and decode sum to %g, inference is %g", inference, c["vllm:request_inference_time_seconds_sum"])
		}
		// A request that comes while a step runs is queued from the step's end only.
		if e2e := c["vllm:e2e_request_latency_seconds_sum"]; inference+c["vllm:request_queue_time_seconds_sum"] > e2e {
			t.Errorf("queue and inference sum to more than e2e %g", e2e)
		}
		if n := len(out.Series); n == 0 || n > 3*seriesLimit || out.Series[n-1].Value != 0 {
			t.Errorf("%d samples", n)
		}
	}
}

func TestClosedLoopKeepsItsConcurrency(t *testing.T) {
	w := poisson(200, 1, 50, 20, 5)
	w.Concurrency = 7
	out := mustRun(t, with(h200, func(c *Config) { c.FrontEnd.Token = time.Millisecond }), h100ish, w)
	peak := 0
	for _, s := range out.Steps {
		peak = max(peak, s.Running+s.Waiting)
	}
	if peak != 7 {
		t.Errorf("%d requests at once, want 7", peak)
	}
	for _, r := range out.Records {
		if r.Due != nil {
			t.Fatalf("request %d has a due moment in a closed loop", r.Index)
		}
	}
}

func TestSameArgumentsSameBytes(t *testing.T) {
	run := func() string {
		cfg := with(h200, func(c *Config) { c.NumGPUBlocks, c.MaxModelLen = 600, 4096 })
		out := mustRun(t, cfg, h100ish, poisson(200, 30, 500, 100, 9))
		b, err := json.Marshal(out)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if a, b := run(), run(); a != b {
		t.Error("two runs differ")
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Run(ctx, small, tick{}, requests(ask{prompt: 4, output: 4}), Options{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestSteadyStateAllocatesNothing(t *testing.T) {
	s, err := New(h200)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 64 {
		if err := s.Add(Request{ID: i, PromptTokens: 100, MaxTokens: 8000}); err != nil {
			t.Fatal(err)
		}
	}
	for range 20 {
		s.Update(s.Schedule())
	}
	// A block table that grows allocates now and then.
	if n := testing.AllocsPerRun(1000, func() { s.Update(s.Schedule()) }); n >= 1 {
		t.Errorf("%g allocations per step", n)
	}
}
