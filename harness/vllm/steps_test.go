package vllm

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kvtune/harness"
)

// Lines as vLLM 0.18, 0.26 and 0.32 write them, between others.
const stepsLog = `(EngineCore pid=9) INFO 11-24 02:06:07 [core.py:99] Iteration(0): 1 context requests, 2048 context tokens, 0 generation requests, 0 generation tokens, iteration elapsed time: 507.28 ms
(APIServer pid=7) INFO 11-24 02:06:07 [loggers.py:199] Engine 000: Iteration(1): 0 context requests, 0 context tokens, 16 generation requests, 16 generation tokens, iteration elapsed time: 7.04 ms, GPU KV cache usage: 0.2%
(APIServer pid=7) INFO 11-24 02:06:07 [loggers.py:199] Engine 000: Avg prompt throughput: 12.0 tokens/s, Running: 1 reqs, Waiting: 0 reqs
(APIServer pid=7) INFO 11-24 02:06:07 [loggers.py:199] Engine 001: Iteration(2): 0 context requests, 0 context tokens, 0 generation requests, 0 generation tokens, iteration elapsed time: 1.00 ms (dummy), GPU KV cache usage: 0.0%
(APIServer pid=7) INFO 11-24 02:06:08 [loggers.py:199] Engine 000: Iteration(3): 2 context requests, 300 context tokens, 5 generation requests, 5 generation tokens, iteration elapsed time: 12.5 ms, CPU KV cache usage: 41.5%, encoder 3
`

func wantSteps() []harness.StepRecord {
	unknown := harness.StepRecord{T: -1, KVUsage: -1, Running: -1, Waiting: -1, Preemptions: -1}
	a, b, c := unknown, unknown, unknown
	a.ContextRequests, a.ContextTokens, a.Elapsed = 1, 2048, 507280*time.Microsecond
	b.GenerationRequests, b.GenerationTokens, b.Elapsed, b.KVUsage = 16, 16, 7040*time.Microsecond, 0.002
	c.ContextRequests, c.ContextTokens, c.GenerationRequests, c.GenerationTokens = 2, 300, 5, 5
	c.Elapsed, c.KVUsage = 12500*time.Microsecond, 0.415
	return []harness.StepRecord{a, b, c}
}

func TestParseSteps(t *testing.T) {
	got, err := ParseSteps(strings.NewReader(stepsLog))
	if err != nil || !slices.Equal(got, wantSteps()) {
		t.Errorf("%v, %+v, want %+v", err, got, wantSteps())
	}
}

// Steps gives every step once, and a line that is still being written when it is whole.
func TestStepsOfAProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	p := &Process{log: path}
	var got []harness.StepRecord
	for cut := 0; cut <= len(stepsLog); cut += 97 {
		end := min(len(stepsLog), cut+97)
		if err := os.WriteFile(path, []byte(stepsLog[:end]), 0o600); err != nil {
			t.Fatal(err)
		}
		steps, err := p.Steps()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, steps...)
	}
	if !slices.Equal(got, wantSteps()) {
		t.Errorf("%+v, want %+v", got, wantSteps())
	}
}

func FuzzParseSteps(f *testing.F) {
	f.Add([]byte(stepsLog))
	f.Fuzz(func(t *testing.T, data []byte) {
		steps, err := ParseSteps(strings.NewReader(string(data)))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range steps {
			if s.ContextTokens < 0 || s.GenerationTokens < 0 || s.Elapsed < 0 || s.KVUsage > 1 {
				t.Fatalf("%+v", s)
			}
		}
	})
}
