package vllm

import (
	"os"
	"path/filepath"
	"testing"

	"kvtune/harness"
)

// Log lines as vLLM 0.26 to 0.33 and PyTorch write them.
func TestLower(t *testing.T) {
	has := harness.EngineArgs{GPUMemoryUtilization: 0.92, MaxModelLen: 131072, MaxNumSeqs: 256, MaxNumBatchedTokens: 8192}
	for _, c := range []struct {
		name, log string
		inForce   harness.EngineArgs
		set       harness.EngineArgs
		what      string
	}{
		{"others use the device", "ValueError: Free memory on device cuda:0 (63.1/79.2 GiB) on startup is less than " +
			"desired GPU memory utilization (0.92, 72.9 GiB). Decrease GPU memory utilization or reduce GPU memory used by " +
			"other processes.", has, harness.EngineArgs{GPUMemoryUtilization: 0.78}, "gpu_memory_utilization 0.92 -> 0.78"},
		{"nearly all of it", "ValueError: Free memory on device cuda:0 (3.1/79.2 GiB) on startup is less than desired " +
			"GPU memory utilization (0.92, 72.9 GiB).", has, harness.EngineArgs{}, ""},
		{"the model's context does not fit", "ValueError: To serve at least one request with the model's max seq len " +
			"(131072), (16.0 GiB KV cache is needed, which is larger than the available KV cache memory (5.1 GiB). Based on " +
			"the available memory, the estimated maximum model length is 41760. Try increasing `gpu_memory_utilization`",
			harness.EngineArgs{}, harness.EngineArgs{MaxModelLen: 41760}, "max_model_len 131072 -> 41760"},
		{"without an estimate", "ValueError: To serve at least one request with the models's max seq len (8192), (16.0 GiB " +
			"KV cache is needed, which is larger than the available KV cache memory (8.0 GiB).", has,
			harness.EngineArgs{MaxModelLen: 4014}, "max_model_len 8192 -> 4014"},
		{"no cache at all", "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
			has, harness.EngineArgs{MaxNumBatchedTokens: 4096}, "max_num_batched_tokens 8192 -> 4096"},
		{"sampler", "RuntimeError: CUDA out of memory occurred when warming up sampler with 256 dummy requests. Please try " +
			"lowering `max_num_seqs`", has, harness.EngineArgs{MaxNumSeqs: 128}, "max_num_seqs 256 -> 128"},
		{"anywhere", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", has,
			harness.EngineArgs{GPUMemoryUtilization: 0.87}, "gpu_memory_utilization 0.92 -> 0.87"},
		{"at the lowest utilization", "torch.OutOfMemoryError: CUDA out of memory.",
			harness.EngineArgs{GPUMemoryUtilization: lowestUtilization, MaxNumSeqs: 256, MaxNumBatchedTokens: 8192},
			harness.EngineArgs{MaxNumBatchedTokens: 4096}, "max_num_batched_tokens 8192 -> 4096"},
		{"tokens stay above sequences", "torch.OutOfMemoryError: CUDA out of memory.",
			harness.EngineArgs{MaxNumSeqs: 600, MaxNumBatchedTokens: 600}, harness.EngineArgs{MaxNumSeqs: 300},
			"max_num_seqs 600 -> 300"},
		{"nothing left", "torch.OutOfMemoryError: CUDA out of memory.",
			harness.EngineArgs{MaxNumSeqs: 8, MaxNumBatchedTokens: 512}, harness.EngineArgs{}, ""},
		{"another reason", "ValueError: something new", has, harness.EngineArgs{}, ""},
		// The line that every start writes is no reason (vLLM 0.26 and newer).
		{"a figure in passing", "INFO 11-24 02:06:07 [gpu_worker.py:99] Free memory on device (78.0/79.2 GiB) on startup. " +
			"Desired GPU memory utilization is (0.92, 72.9 GiB).\nImportError: libfoo.so", has, harness.EngineArgs{}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			log := filepath.Join(t.TempDir(), "log")
			if err := os.WriteFile(log, []byte(c.log+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			set, what, ok := diagnose(log).Lower(c.inForce)
			if !set.Equal(c.set) || what != c.what || ok != (c.what != "") {
				t.Errorf("%+v, %q, %v; want %+v, %q", set, what, ok, c.set, c.what)
			}
		})
	}
}
