package cost

import (
	"math"
	"strings"
	"testing"

	"kvtune/harness"
	"kvtune/planner/spec"
)

func mustGPU(t testing.TB, name string) spec.GPU {
	t.Helper()
	g, err := spec.FindGPU(name)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func mustModel(t testing.TB, name string) spec.Model {
	t.Helper()
	m, err := spec.FindModel(name)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// vLLM 0.26.0 allocated 57,489 blocks for this case on a real H200.
func TestCapacityOfAKnownServer(t *testing.T) {
	m, err := Capacity(mustGPU(t, "H200"), spec.Default(), harness.EngineArgs{
		GPUMemoryUtilization: 0.92, MaxNumBatchedTokens: 8192, MaxNumSeqs: 1024, BlockSize: 16,
	})
	if err != nil {
		t.Fatal(err)
	}
	off := float64(m.Blocks)/57489 - 1
	t.Logf("%d blocks, %+.2f %% of 57489; %+v", m.Blocks, 100*off, m)
	if math.Abs(off) > 0.03 {
		t.Errorf("%d blocks, %+.1f %% off a real server's", m.Blocks, 100*off)
	}
	if m.BytesPerBlock != 2<<20 {
		t.Errorf("%d B per block, expected 2 MiB", m.BytesPerBlock)
	}
	if sum := m.Weights + m.Activations + m.CUDAGraphs + m.KV; sum != m.Requested {
		t.Errorf("parts sum to %d, requested %d", sum, m.Requested)
	}
}

func TestCapacityMoves(t *testing.T) {
	gpu, model := mustGPU(t, "A100-80GB"), mustModel(t, "Qwen2.5-7B")
	blocks := func(edit func(*harness.EngineArgs)) int {
		args := harness.EngineArgs{GPUMemoryUtilization: 0.9, MaxNumBatchedTokens: 8192, MaxNumSeqs: 256, BlockSize: 16}
		edit(&args)
		m, err := Capacity(gpu, model, args)
		if err != nil {
			t.Fatal(err)
		}
		return m.Blocks
	}
	base := blocks(func(*harness.EngineArgs) {})
	for name, more := range map[string]func(*harness.EngineArgs){
		"utilization":          func(a *harness.EngineArgs) { a.GPUMemoryUtilization = 0.95 },
		"fewer batched tokens": func(a *harness.EngineArgs) { a.MaxNumBatchedTokens = 2048 },
		"fp8":                  func(a *harness.EngineArgs) { a.KVCacheDType = "fp8" },
		"tensor":               func(a *harness.EngineArgs) { a.TensorParallelSize = 2 },
		"eager":                func(a *harness.EngineArgs) { yes := true; a.EnforceEager = &yes },
		"block_size":           func(a *harness.EngineArgs) { a.BlockSize = 8 },
	} {
		if got := blocks(more); got <= base {
			t.Errorf("%s: %d blocks, not above %d", name, got, base)
		}
	}
	if got := blocks(func(a *harness.EngineArgs) { a.NumGPUBlocksOverride = 77 }); got != 77 {
		t.Errorf("override: %d blocks", got)
	}
}

func TestCapacityRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		gpu, model string
		args       harness.EngineArgs
		want       []string
	}{
		"weights": {"L4", "Llama-3.1-70B", harness.EngineArgs{}, []string{"does not fit", "tensor_parallel_size"}},
		"length": {"L4", "Llama-3.1-8B",
			harness.EngineArgs{MaxNumBatchedTokens: 2048, MaxNumSeqs: 64, MaxModelLen: 131072},
			[]string{"max_model_len 131072", "at most"}},
	} {
		_, err := Capacity(mustGPU(t, c.gpu), mustModel(t, c.model), c.args)
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: error %v should say %q", name, err, want)
			}
		}
	}
}
