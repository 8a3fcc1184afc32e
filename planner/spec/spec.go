// Package spec holds facts about GPUs and models, each with its source, and reads a model's config.json.
//
// Bandwidth is in B/s and flop rates in flop/s (decimal), memory in bytes. Read [GPU] and [Model] first; [FindGPU] and
// [FindModel] look them up, [ParseConfig] reads a shape from a config.json.
package spec

import "strings"

// GPU is a device's datasheet.
type GPU struct {
	// Name is the key: "H200", "H100-SXM", "H100-PCIe", "A100-40GB", "A100-80GB", "L40S", "L4", "RTX-4090",
	// "RTX-PRO-6000".
	Name string
	// Memory is the total device memory in bytes as the CUDA driver reports it to a program (cudaMemGetInfo), which is
	// what gpu_memory_utilization is a share of. It is a few percent below the datasheet's figure.
	Memory int64
	// CPU marks vLLM's CPU platform: no device memory to divide, another block size, no async scheduling.
	CPU bool
	// SMs is the number of streaming multiprocessors.
	SMs int
	// Bandwidth is the peak memory bandwidth in B/s.
	Bandwidth float64
	// BF16 and FP8 are dense tensor-core peaks in flop/s; FP8 is 0 where the part has none.
	BF16, FP8 float64
	// Link is the bandwidth to a neighbouring GPU in B/s, one direction: NVLink where the part has it, else PCIe.
	Link float64
	// Source is where the figures are published.
	Source string

	// aliases are further spellings, normalised as by key.
	aliases []string
}

// Model is the shape of a decoder-only transformer.
type Model struct {
	// Name is the repository name, e.g. "meta-llama/Llama-3.1-8B".
	Name string
	// Layers, Hidden, Intermediate, Heads, KVHeads, HeadDim and Vocab are the config.json fields under vLLM's reading.
	// Intermediate is one expert's width in a mixture of experts.
	Layers, Hidden, Intermediate, Heads, KVHeads, HeadDim, Vocab int
	// MaxPosition is the model's context in tokens.
	MaxPosition int
	// Params is the number of weights; ActiveParams the number that one token uses (the same unless mixture of
	// experts).
	Params, ActiveParams int64
	// TiedEmbeddings is set when the output projection is the input embedding: its weights count once.
	TiedEmbeddings bool
	// Experts and ExpertsPerToken are 0 for a dense model.
	Experts, ExpertsPerToken int
	// DTypeBytes is the bytes of one weight: 2 for bf16, 1 for fp8.
	DTypeBytes float64
	// SlidingWindow is the attention window in tokens, 0 for full attention.
	SlidingWindow int
	// Source is where the shape is published.
	Source string
}

// WeightBytes is the memory that the weights of the whole model take.
func (m Model) WeightBytes() int64 { return int64(float64(m.Params) * m.DTypeBytes) }

// HeadParams is the number of weights in the output projection, which is computed for sampled positions only.
func (m Model) HeadParams() int64 { return int64(m.Vocab) * int64(m.Hidden) }

// LayerParams is the number of weights outside the input embedding and the output projection: those that every token
// passes in a dense model.
func (m Model) LayerParams() int64 { return m.Params - m.embeddings() }

// ActiveLayerParams is the part of LayerParams that one token uses.
func (m Model) ActiveLayerParams() int64 { return m.ActiveParams - m.embeddings() }

func (m Model) embeddings() int64 {
	if m.TiedEmbeddings {
		return m.HeadParams()
	}
	return 2 * m.HeadParams()
}

// KVBytesPerToken is the KV cache of one token over all layers, in bytes on one of tp ranks. kvDType is vLLM's
// kv_cache_dtype: "", "auto", "float16" and "bfloat16" are 2 bytes an element; the fp8 and int8 kinds 1, those per
// token and head with a 4-byte scale for K and for V. KV heads are shared out over the ranks and repeated when there
// are more ranks than heads (vllm/v1/kv_cache_interface.py: page size = heads x block_size x 2 x head_dim x bytes). A
// tp of 0 is 1.
func (m Model) KVBytesPerToken(kvDType string, tp int) int64 {
	heads := max(1, m.KVHeads/max(tp, 1))
	perHead := 2 * m.HeadDim * 2
	switch {
	case strings.HasSuffix(kvDType, "_per_token_head"):
		perHead = 2 * (m.HeadDim + 4)
	case strings.HasPrefix(kvDType, "fp8"), strings.HasPrefix(kvDType, "int8"):
		perHead = 2 * m.HeadDim
	}
	return int64(m.Layers) * int64(heads) * int64(perHead)
}
