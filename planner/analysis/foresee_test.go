package analysis

import (
	"strings"
	"testing"

	"kvtune/harness"
	"kvtune/harness/workload"
	"kvtune/planner/spec"
)

// Each trouble is foreseen where it was planted, with its numbers, and none where all is well.
func TestForesee(t *testing.T) {
	model := prior(t)
	gpu, err := spec.FindGPU("H200")
	if err != nil {
		t.Fatal(err)
	}
	small, err := spec.FindGPU("L4")
	if err != nil {
		t.Fatal(err)
	}
	shape := spec.Default()
	off := false
	chat := closed(requests(128, 1, 0, 512, 512, 0), 64)
	for _, c := range []struct {
		name string
		gpu  *spec.GPU
		edit func(*harness.EngineArgs)
		work *workload.Workload
		kind TroubleKind
		says []string
	}{
		{"all is well", &gpu, func(*harness.EngineArgs) {}, chat, "", nil},
		{"a small device", &small, func(a *harness.EngineArgs) { a.NumGPUBlocksOverride, a.GPUMemoryUtilization = 0, 0.6 },
			chat, DoesNotFit, []string{"does not fit 1 x L4", "tensor_parallel_size"}},
		{"all of the memory", &gpu, func(a *harness.EngineArgs) { a.GPUMemoryUtilization = 0.998 }, chat, OutOfMemory,
			[]string{"leaves 0.3 GiB", "gpu_memory_utilization to 0.99"}},
		{"a context that no cache holds", &gpu, func(a *harness.EngineArgs) { a.NumGPUBlocksOverride = 64 },
			chat, TooFewBlocks, []string{"refuses to start", "max_model_len"}},
		{"a request that fills the cache", &gpu,
			func(a *harness.EngineArgs) { a.NumGPUBlocksOverride, a.MaxModelLen = 100, 1100 }, chat, TooFewBlocks,
			[]string{"1584 tokens", "ends with 1024"}},
		{"a cache for a few", &gpu, func(a *harness.EngineArgs) { a.NumGPUBlocksOverride, a.MaxModelLen = 1100, 2048 },
			chat, PreemptionStorm, []string{"for 128 requests (SIMULATED)", "17 requests of 1024", "max_num_seqs to 17"}},
		{"whole prompts", &gpu, func(a *harness.EngineArgs) { a.EnableChunkedPrefill, a.MaxNumBatchedTokens = &off, 16384 },
			closed(requests(16, 1, 0, 16000, 16, 0), 8), WholePrompts,
			[]string{"16000 tokens", "in one step of about", "enable chunked"}},
		{"whole prompts, no room", &gpu, func(a *harness.EngineArgs) { a.EnableChunkedPrefill = &off }, chat, WholePrompts,
			[]string{"refuses to start", "8192"}},
		{"whole prompts that are short", &gpu, func(a *harness.EngineArgs) {
			a.EnableChunkedPrefill, a.MaxNumBatchedTokens = &off, 16384
		}, chat, "", nil},
	} {
		s := Server{Args: settings(c.edit), GPU: c.gpu, Model: &shape, Cost: model}
		if s.Args.GPUMemoryUtilization == 0 {
			s.Args.GPUMemoryUtilization = 0.9
		}
		troubles, err := Foresee(t.Context(), s, c.work)
		if err != nil {
			t.Fatal(err)
		}
		if c.kind == "" {
			if len(troubles) > 0 {
				t.Errorf("%s: %v", c.name, troubles)
			}
			continue
		}
		found := ""
		for _, trouble := range troubles {
			if trouble.Kind == c.kind {
				found = trouble.String()
			}
		}
		for _, part := range c.says {
			if !strings.Contains(found, part) {
				t.Errorf("%s: %q lacks %q; all: %v", c.name, found, part, troubles)
			}
		}
	}
}
