package engine

import (
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kvtune/harness/workload"
	"kvtune/planner/cost"
	"kvtune/planner/sim"
)

// poisson is an open loop of requests of uneven lengths, some with a shared prefix.
func poisson(n int, every time.Duration) *workload.Workload {
	rng := rand.New(rand.NewPCG(5, 5))
	w := &workload.Workload{}
	due := time.Duration(0)
	for i := range n {
		due += time.Duration(rng.ExpFloat64()*float64(every)) + time.Microsecond
		r := workload.Request{Index: i, Due: due, After: -1, OutputTokens: 1 + rng.IntN(120), Priority: rng.IntN(3)}
		if rng.IntN(2) == 0 {
			r.Prompt = []workload.Segment{{ID: 1, Tokens: 160}}
			r.SharedTokens = 160
		}
		r.Prompt = append(r.Prompt, workload.Segment{ID: uint64(100 + i), Tokens: 1 + rng.IntN(900)})
		w.Requests = append(w.Requests, r)
	}
	return w
}

// serve sends a workload over the HTTP handler and gives the records that a client would write.
func serve(t *testing.T, e *Engine, w *workload.Workload) []workload.Record {
	start := time.Now()
	records := make([]workload.Record, len(w.Requests))
	var wait sync.WaitGroup
	for i := range w.Requests {
		q, rec := &w.Requests[i], &records[i]
		*rec = workload.NewRecord(q)
		wait.Go(func() {
			time.Sleep(time.Until(start.Add(q.Due)))
			var prompt []int32
			for _, s := range q.Prompt {
				prompt = workload.Tokens(s, 0, e.opt.Model.Vocab, prompt)
			}
			body, err := json.Marshal(map[string]any{"prompt": prompt, "max_tokens": q.OutputTokens, "stream": true,
				"return_token_ids": true, "ignore_eos": true, "priority": q.Priority,
				"stream_options": map[string]bool{"include_usage": true}})
			if err != nil {
				t.Error(err)
				return
			}
			rec.Sent = time.Since(start)
			rep := post(t.Context(), e, "/v1/completions", string(body))
			if rep.status != http.StatusOK {
				t.Errorf("request %d: %s", i, rep.body)
				return
			}
			for _, ev := range rep.events {
				if ev.data == "[DONE]" {
					continue
				}
				c := decode(t, ev.data)
				if c.Usage != nil && c.Usage.Details != nil {
					rec.CachedTokens = &c.Usage.Details.CachedTokens
				}
				if len(c.Choices) > 0 {
					n := len(c.Choices[0].TokenIDs)
					rec.OutputTokens += n
					rec.FinishReason = c.Choices[0].FinishReason
					rec.Tokens = append(rec.Tokens, workload.TokenEvent{At: ev.at.Sub(start) - rec.Sent, Tokens: n})
				}
			}
		})
	}
	wait.Wait()
	return records
}

// TestRealTimeIsVirtualTime: what the server does in real time is, to the nanosecond, what the simulator says: the same
// decisions, the same step times, the same latencies.
func TestRealTimeIsVirtualTime(t *testing.T) {
	off := false
	for name, change := range map[string]func(*Options){
		"async":           func(*Options) {},
		"sync":            func(o *Options) { o.Args.AsyncScheduling = &off },
		"no cache":        func(o *Options) { o.Args.EnablePrefixCaching = &off },
		"preemption":      func(o *Options) { o.NumGPUBlocks = 270 },
		"priority":        func(o *Options) { o.Args.SchedulingPolicy = "priority"; o.Args.MaxNumSeqs = 4 },
		"stream interval": func(o *Options) { o.Args.StreamInterval = 4 },
		"hidden model":    func(o *Options) { o.Cost = nil },
		"small budget":    func(o *Options) { o.Args.MaxNumBatchedTokens = 64 },
	} {
		t.Run(name, func(t *testing.T) {
			opt := given(t)
			opt.EnablePromptTokensDetails = true
			change(&opt)
			work := poisson(60, 30*time.Millisecond)
			inBubble(t, opt, func(t *testing.T, e *Engine) {
				e.front.Handle, e.front.PromptToken, e.front.Event = 0, 0, 0 // here the streams are threads of their own
				want, err := e.Virtual(t.Context(), work)
				if err != nil {
					t.Fatal(err)
				}
				got := serve(t, e, work)
				for i := range got {
					rec := want.Records[i]
					rec.Due = nil
					if diff := cmp.Diff(rec, got[i]); diff != "" {
						t.Fatalf("request %d (-virtual +real):\n%s", i, diff)
					}
				}
				after := samples(t, e)
				for name, v := range want.Counters {
					if real, ok := after[name]; ok && real != v && !strings.Contains(name, "seconds") {
						t.Errorf("%s: virtual %g, real %g", name, v, real)
					}
				}
				if name == "preemption" && after["vllm:num_preemptions_total"] == 0 {
					t.Error("nothing was preempted: the case does not test preemption")
				}
			})
		})
	}
}

func TestVirtualRepeats(t *testing.T) {
	work := poisson(40, 20*time.Millisecond)
	inBubble(t, options(t), func(t *testing.T, e *Engine) {
		var runs [2]*sim.Outcome
		for i := range runs {
			var err error
			if runs[i], err = e.Virtual(t.Context(), work); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(runs[0], runs[1]); diff != "" {
			t.Errorf("two runs differ:\n%s", diff)
		}
	})
}

// steps are kinds of steps over the range that a scheduler makes.
func steps() []cost.Step {
	var all []cost.Step
	for _, decodes := range []int{0, 1, 3, 8, 9, 31, 64, 200, 256, 500, 513, 1000} {
		for _, context := range []int{100, 2000, 16000} {
			for _, prompt := range []int{0, 1, 100, 2048, 16384} {
				s := cost.Step{DecodeSeqs: decodes, DecodeContext: decodes * context, PrefillTokens: prompt}
				if prompt > 0 {
					s.PrefillSeqs, s.PrefillAttention = 1, float64(prompt)*(float64(context)+float64(prompt)/2)
				}
				if s.Tokens() > 0 {
					all = append(all, s)
				}
			}
		}
	}
	return all
}

func TestHiddenModelIsPhysical(t *testing.T) {
	opt := options(t)
	prior := cost.Prior(opt.GPU, opt.Model, opt.Args)
	for seed := range uint64(200) {
		h, lat, err := newHidden(opt.GPU, opt.Model, opt.Args, seed)
		if err != nil {
			t.Fatal(err)
		}
		d := h.device(seed)
		for _, s := range steps() {
			compute, memory := prior.Roofline(s)
			if got := d.StepTime(s); got < compute || got < memory {
				t.Fatalf("seed %d, %+v: %v is faster than the datasheet allows (%v compute, %v memory)", seed, s, got,
					compute, memory)
			}
			ratio := float64(h.mean(s)) / float64(prior.StepTime(s))
			if ratio < 1-maxMove || ratio > 2.5 {
				t.Errorf("seed %d, %+v: %g times the prior", seed, s, ratio)
			}
			if s.DecodeSeqs == 0 {
				continue // the first decode beside a prompt hides some of the host's launches
			}
			more := s
			more.DecodeSeqs, more.DecodeContext = more.DecodeSeqs+1, more.DecodeContext+1000
			if h.mean(more) < h.mean(s) {
				t.Errorf("seed %d: %+v takes less than %+v", seed, more, s)
			}
		}
		for _, l := range [][2]time.Duration{{lat.Request, prior.FrontEnd.Request}, {lat.Token, prior.FrontEnd.Token}} {
			if r := float64(l[0]) / float64(l[1]); r < 1-maxMove || r > 1+maxMove {
				t.Errorf("seed %d: latency %v, prior %v", seed, l[0], l[1])
			}
		}
	}
	if got := newMust(t, opt, 1).mean(cost.Step{}); got != 0 {
		t.Errorf("an empty step takes %v", got)
	}
}

func newMust(t *testing.T, opt Options, seed uint64) *hidden {
	t.Helper()
	h, _, err := newHidden(opt.GPU, opt.Model, opt.Args, seed)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TestHiddenModelIsNotThePlannersForm: no choice of coefficients of the planner's form gives the hidden model's
// times: a staircase in the batch size, a rise with the context, a bend in long prompts.
func TestHiddenModelIsNotThePlannersForm(t *testing.T) {
	opt := options(t)
	h := newMust(t, opt, 3)
	decode := func(n, context int) time.Duration {
		return h.mean(cost.Step{DecodeSeqs: n, DecodeContext: n * context})
	}
	// 9 and 16 sequences run in the same graph: only their context differs.
	if a, b := decode(9, 1000), h.mean(cost.Step{DecodeSeqs: 16, DecodeContext: 9000}); a != b {
		t.Errorf("9 and 16 sequences of the same context differ: %v, %v", a, b)
	}
	near, far := decode(64, 2000)-decode(64, 1000), decode(64, 64000)-decode(64, 63000)
	if far <= near {
		t.Errorf("1000 tokens more of context cost %v near and %v far", near, far)
	}
	prompt := func(n int) time.Duration { return h.mean(cost.Step{PrefillSeqs: 1, PrefillTokens: n}) }
	if short, long := prompt(4096)-prompt(2048), prompt(16384)-prompt(14336); long <= short {
		t.Errorf("2048 prompt tokens more cost %v in a short and %v in a long step", short, long)
	}
}

func TestSeedsDiffer(t *testing.T) {
	opt := options(t)
	seen := map[time.Duration]uint64{}
	for seed := range uint64(20) {
		d := newMust(t, opt, seed).mean(cost.Step{DecodeSeqs: 8, DecodeContext: 8000})
		if other, ok := seen[d]; ok {
			t.Errorf("seeds %d and %d have the same step time", seed, other)
		}
		seen[d] = seed
	}
}

func TestNoiseIsTwoPercent(t *testing.T) {
	h := newMust(t, options(t), 1)
	d := h.device(1)
	s := cost.Step{DecodeSeqs: 8, DecodeContext: 8000}
	mean, n, sum, squares := h.mean(s).Seconds(), 4000, 0.0, 0.0
	for range n {
		r := d.StepTime(s).Seconds()/mean - 1
		sum, squares = sum+r, squares+r*r
		if r < -0.0601 || r > 0.0619 {
			t.Fatalf("a step %g off the mean", r)
		}
	}
	sd := squares/float64(n) - sum/float64(n)*sum/float64(n)
	if sd < 0.018*0.018 || sd > 0.022*0.022 || sum/float64(n) < -0.002 || sum/float64(n) > 0.002 {
		t.Errorf("noise has mean %g and variance %g", sum/float64(n), sd)
	}
}
