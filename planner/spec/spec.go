// Package spec holds facts about GPUs and models, each with its source, and reads a model's config.json.
//
// Bandwidth is in B/s and flop rates in flop/s (decimal), memory in bytes. Read [GPU] and [Model] first.
package spec

// GPU is a device's datasheet.
type GPU struct {
	// Name is the key: "H200", "H100-SXM", "H100-PCIe", "A100-40GB", "A100-80GB", "L40S", "L4", "RTX-4090",
	// "RTX-PRO-6000".
	Name string
	// Memory is the device memory in bytes that the driver reports as total.
	Memory int64
	// Bandwidth is the peak memory bandwidth in B/s.
	Bandwidth float64
	// BF16 and FP8 are dense tensor-core peaks in flop/s; FP8 is 0 where the part has none.
	BF16, FP8 float64
	// Source is where the figures are published.
	Source string
}

// Model is the shape of a decoder-only transformer.
type Model struct {
	// Name is the repository name, e.g. "meta-llama/Llama-3.1-8B".
	Name string
	// Layers, Hidden, Intermediate, Heads, KVHeads, HeadDim and Vocab are the config.json fields under vLLM's reading.
	Layers, Hidden, Intermediate, Heads, KVHeads, HeadDim, Vocab int
	// MaxPosition is the model's context in tokens.
	MaxPosition int
	// Params is the number of weights; ActiveParams the number that one token uses (the same unless mixture of experts).
	Params, ActiveParams int64
	// Experts and ExpertsPerToken are 0 for a dense model.
	Experts, ExpertsPerToken int
	// DTypeBytes is the bytes of one weight: 2 for bf16, 1 for fp8.
	DTypeBytes float64
	// SlidingWindow is the attention window in tokens, 0 for full attention.
	SlidingWindow int
	// Source is where the shape is published.
	Source string
}
