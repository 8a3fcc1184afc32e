//go:build vllm

package vllm

import (
	"context"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"kvtune/harness"
	"kvtune/harness/workload"
)

const adapterName = "sql"

// adapter makes a LoRA adapter of the tiny model: rank 8, of the query projections, as PEFT writes one.
func adapter(t *testing.T, python string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	const script = `
import json, sys, torch
from safetensors.torch import save_file
weights = {}
for i in range(4):
    name = f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_"
    weights[name + "A.weight"], weights[name + "B.weight"] = torch.randn(8, 512), torch.randn(512, 8)
save_file(weights, sys.argv[1] + "/adapter_model.safetensors")
json.dump({"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "bias": "none",
  "target_modules": ["q_proj"], "base_model_name_or_path": "tiny-llama"},
  open(sys.argv[1] + "/adapter_config.json", "w"))`
	if out, err := exec.Command(python, "-c", script, dir).CombinedOutput(); err != nil {
		t.Fatalf("making an adapter: %v: %s", err, out)
	}
	return dir
}

// obeysPriorities: while every slot is taken, requests queue in the order 10, 5, none (0), -5, 11; once one slot is
// free they go through it by priority.
func obeysPriorities(t *testing.T, s *Server) {
	c := s.Client(ClientOptions{Salt: "priorities"})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var blockers sync.WaitGroup
	defer blockers.Wait()
	defer cancel()
	free, leave := context.WithCancel(ctx)
	defer leave()
	for i := range 16 {
		r := workload.Request{After: -1, OutputTokens: 3000, Priority: -100,
			Prompt: []workload.Segment{{ID: uint64(400_000 + i), Tokens: 8}}}
		until := ctx
		if i == 0 {
			until = free
		}
		blockers.Go(func() { _, _ = c.Prepare(&r)(until, func(time.Time) {}, func(time.Time, int) {}) })
	}
	gauge := func(name string, want float64) {
		t.Helper()
		for range 600 {
			if scrape(t, s)[name] == want {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Fatalf("%s never was %v", name, want)
	}
	gauge("vllm:num_requests_running", 16)
	var mu sync.Mutex
	var order []int
	var queue sync.WaitGroup
	for i, priority := range []int{10, 5, 0, -5, 11} {
		r := workload.Request{After: -1, OutputTokens: 1, Priority: priority,
			Prompt: []workload.Segment{{ID: uint64(410_000 + i), Tokens: 8}}}
		queue.Go(func() {
			_, err := c.Prepare(&r)(t.Context(), func(time.Time) {}, func(time.Time, int) {
				mu.Lock()
				defer mu.Unlock()
				order = append(order, priority)
			})
			if err != nil {
				t.Errorf("priority %d: %v", priority, err)
			}
		})
		gauge("vllm:num_requests_waiting", float64(i+1))
	}
	leave()
	queue.Wait()
	if want := []int{-5, 0, 5, 10, 11}; !slices.Equal(order, want) {
		t.Errorf("first tokens by priority %v, want %v", order, want)
	}
}

// servesAnAdapter: an adapter is asked for by its name and has prefixes of its own, and other tokens than the model.
func servesAnAdapter(t *testing.T, s *Server, block int) {
	c := s.Client(ClientOptions{Salt: "adapter"})
	for i, step := range []struct {
		lora string
		hits int
	}{{"", 0}, {adapterName, 0}, {adapterName, 2 * block}, {"", 2 * block}} {
		rs := batch(420_000, 1, 2, 1, block, 8)
		rs[0].LoRA = step.lora
		before := scrape(t, s)
		sendAll(t, c, rs)
		d := settled(t, s, before, promptTokens(rs))
		if d[harness.CounterPrefixHits] != float64(step.hits) {
			t.Errorf("request %d, of adapter %q: %v tokens hit, want %d", i+1, step.lora, d[harness.CounterPrefixHits],
				step.hits)
		}
	}
}
