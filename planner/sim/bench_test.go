package sim

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"kvtune/harness/workload"
	"kvtune/planner/cost"
)

// linear is a step-time model: seconds per step, per token of prefill and decode, per token of decoded context.
type linear struct{ step, prefill, decode, context float64 }

func (linear) HostTime(cost.Step) (prepare, launch time.Duration) { return 0, 0 }

func (l linear) StepTime(s cost.Step) time.Duration {
	t := l.step + l.prefill*float64(s.PrefillTokens) + l.decode*float64(s.DecodeSeqs) + l.context*float64(s.DecodeContext)
	return time.Duration(t * 1e9)
}

// h100ish is about an 8B model on a large GPU.
var h100ish = linear{4e-3, 25e-6, 20e-6, 4e-8}

// poisson is n requests at a rate per second, each of its own content.
func poisson(n int, rate float64, prompt, output int, seed uint64) *workload.Workload {
	rng := rand.New(rand.NewPCG(seed, 1))
	w := &workload.Workload{BlockSize: 16}
	at := 0.0
	for i := range n {
		at += rng.ExpFloat64() / rate
		w.Requests = append(w.Requests, workload.Request{
			Index: i, After: -1, Due: time.Duration(math.Round(at * 1e9)), OutputTokens: output,
			Prompt: []workload.Segment{{ID: uint64(i) + 1, Tokens: prompt}},
		})
	}
	return w
}

// h200 is what vLLM chooses on an H200 for an 8B model of 16k context.
var h200 = Config{
	MaxNumBatchedTokens: 8192, MaxNumSeqs: 1024, BlockSize: 16, NumGPUBlocks: 57489, MaxModelLen: 16384,
	EnableChunkedPrefill: true, EnablePrefixCaching: true, AsyncScheduling: true, ReserveFullISL: true, StreamInterval: 1,
}

func BenchmarkRun(b *testing.B) {
	for _, c := range []struct {
		name string
		cfg  func(*Config)
	}{
		{"async", func(*Config) {}},
		{"sync", func(c *Config) { c.AsyncScheduling = false }},
	} {
		b.Run(c.name, func(b *testing.B) {
			cfg := h200
			c.cfg(&cfg)
			w := poisson(2000, 20, 1000, 200, 1)
			b.ReportAllocs()
			n := 0
			var m Runner
			for b.Loop() {
				if _, err := m.Run(b.Context(), cfg, h100ish, w, Options{}); err != nil {
					b.Fatal(err)
				}
				n += len(w.Requests)
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "requests/s")
		})
	}
}
