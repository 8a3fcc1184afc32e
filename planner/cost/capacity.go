package cost

import (
	"fmt"

	"kvtune/harness"
	"kvtune/harness/vllmflags"
	"kvtune/planner/spec"
)

// Memory is where one rank's device memory goes, in bytes.
type Memory struct {
	// Total is the device's, Requested the share that gpu_memory_utilization asks for.
	Total, Requested int64
	Weights          int64
	// Activations is the peak of a step of max_num_batched_tokens and of the sampler; CUDAGraphs the captured graphs.
	Activations, CUDAGraphs int64
	// KV is what is left for the cache.
	KV int64
	// Blocks is num_gpu_blocks, the null block included; BytesPerBlock the size of one over all layers.
	Blocks        int
	BytesPerBlock int64
}

// graphBytesPerLayer is what captured graphs hold per layer (about 51 sizes up to 512 sequences).
const graphBytesPerLayer = 12 << 20

// Capacity estimates how many KV blocks vLLM allocates, the way it does (vllm/v1/worker/gpu_worker.py, 0.26:
// requested = total x utilization; minus weights, the profile run's peak and the graphs' estimate; divided by the
// block's bytes). What args leave open is the newest vLLM's default. A live server's own number is always better.
// num_gpu_blocks_override is obeyed. It fails when nothing, or not even one request of max_model_len, is left for the
// cache.
func Capacity(gpu spec.GPU, model spec.Model, args harness.EngineArgs) (Memory, error) {
	if args.MaxModelLen == 0 {
		args.MaxModelLen = model.MaxPosition
	}
	args = vllmflags.Resolve(args, "", vllmflags.Device{Name: gpu.Name, Memory: gpu.Memory, CPU: gpu.CPU})
	tp, blockSize, length := int64(args.TensorParallelSize), int64(args.BlockSize), int64(args.MaxModelLen)
	tokens, seqs := int64(args.MaxNumBatchedTokens), int64(args.MaxNumSeqs)
	utilization := args.GPUMemoryUtilization
	m := Memory{
		Total: gpu.Memory, Requested: int64(float64(gpu.Memory) * utilization), Weights: model.WeightBytes() / tp,
		BytesPerBlock: model.KVBytesPerToken(args.KVCacheDType, int(tp)) * blockSize,
	}
	// The feed-forward holds gate, up and their product beside the residual and the normed input, in 2 bytes; a mixture
	// of experts does so for every chosen expert. The sampler holds logits in 2 and in 4 bytes.
	width := int64(model.Intermediate) * int64(max(1, model.ExpertsPerToken)) / tp
	forward := tokens * 2 * (3*width + 3*int64(model.Hidden))
	m.Activations = max(forward, seqs*int64(model.Vocab)*6)
	if !*args.EnforceEager {
		m.CUDAGraphs = int64(model.Layers) * graphBytesPerLayer
	}
	m.KV = m.Requested - m.Weights - m.Activations - m.CUDAGraphs
	if args.NumGPUBlocksOverride > 0 {
		m.Blocks = args.NumGPUBlocksOverride
		return m, nil
	}
	const giB = 1 << 30
	if m.KV < m.BytesPerBlock {
		return m, fmt.Errorf("%s does not fit %d x %s: %.1f GiB of weights and %.1f GiB of activations and graphs per "+
			"GPU leave nothing of %.1f GiB (gpu_memory_utilization %.2g) for the KV cache; use a larger "+
			"tensor_parallel_size, a larger GPU, fp8 weights, or a smaller max_num_batched_tokens",
			model.Name, tp, gpu.Name,
			float64(m.Weights)/giB, float64(m.Activations+m.CUDAGraphs)/giB, float64(m.Requested)/giB, utilization)
	}
	m.Blocks = int(m.KV / m.BytesPerBlock)
	// vLLM refuses to start unless one request of max_model_len fits beside the null block.
	if need := (length + blockSize - 1) / blockSize; int64(m.Blocks-1) < need {
		return m, fmt.Errorf("max_model_len %d needs %d KV blocks of %d tokens, but %s on %s has room for %d; lower "+
			"max_model_len to at most %d, or use a larger tensor_parallel_size or kv_cache_dtype fp8",
			length, need, blockSize, model.Name, gpu.Name, m.Blocks-1, int64(m.Blocks-1)*blockSize)
	}
	return m, nil
}
