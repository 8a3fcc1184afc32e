package spec

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// family is how a model type spends its weights beyond the matrices that all share.
type family struct {
	// gpt2: learned positions, two-matrix feed-forward, biases everywhere, layer norms with bias.
	gpt2 bool
	// qkvBias: biases on the q, k and v projections (Qwen2). qkNorm: a norm over head_dim for q and for k (Qwen3).
	qkvBias, qkNorm bool
}

// count fills Params and ActiveParams from the shape.
func (f family) count(m Model) Model {
	h, layers := int64(m.Hidden), int64(m.Layers)
	q, kv := int64(m.Heads*m.HeadDim), int64(m.KVHeads*m.HeadDim)
	if f.gpt2 {
		// c_attn 3h^2+3h, c_proj h^2+h, c_fc h*i+i, c_proj i*h+h, two layer norms of 2h.
		i := int64(m.Intermediate)
		m.Params = layers*(4*h*h+2*h*i+i+9*h) + int64(m.MaxPosition)*h + 2*h + m.embeddings()
		m.ActiveParams = m.Params
		return m
	}
	attention := h*(q+2*kv) + q*h
	if f.qkvBias {
		attention += q + 2*kv
	}
	if f.qkNorm {
		attention += 2 * int64(m.HeadDim)
	}
	expert := 3 * h * int64(m.Intermediate)
	all, active := expert, expert
	if m.Experts > 0 {
		router := h * int64(m.Experts)
		all, active = router+int64(m.Experts)*expert, router+int64(m.ExpertsPerToken)*expert
	}
	fixed := layers*(attention+2*h) + h + m.embeddings()
	m.Params, m.ActiveParams = fixed+layers*all, fixed+layers*active
	return m
}

// dense is a row of the table for the Llama-like families; heads are of width headDim.
func dense(
	f family, name string, layers, hidden, inter, heads, kvHeads, headDim, vocab, position int, tied bool,
) Model {
	return f.count(Model{
		Name: name, Layers: layers, Hidden: hidden, Intermediate: inter, Heads: heads, KVHeads: kvHeads,
		HeadDim: headDim, Vocab: vocab, MaxPosition: position, TiedEmbeddings: tied, DTypeBytes: 2,
		Source: "config.json of " + name,
	})
}

func experts(f family, m Model, n, perToken int) Model {
	m.Experts, m.ExpertsPerToken = n, perToken
	return f.count(m)
}

func gpt2(name string, layers, hidden, heads int) Model {
	return dense(family{gpt2: true}, name, layers, hidden, 4*hidden, heads, heads, hidden/heads, 50257, 1024, true)
}

// Models is the table of known shapes. Weights are bf16 (GPT-2's and DialoGPT's as vLLM loads them); parameter counts
// are computed from the shape.
func Models() []Model {
	llama, qwen2, qwen3 := family{}, family{qkvBias: true}, family{qkNorm: true}
	mistral1 := dense(llama, "mistralai/Mistral-7B-v0.1", 32, 4096, 14336, 32, 8, 128, 32000, 32768, false)
	mistral1.SlidingWindow = 4096
	return []Model{
		dense(llama, "meta-llama/Llama-3.1-8B", 32, 4096, 14336, 32, 8, 128, 128256, 131072, false),
		dense(llama, "meta-llama/Llama-3.1-70B", 80, 8192, 28672, 64, 8, 128, 128256, 131072, false),
		dense(llama, "meta-llama/Llama-3.2-1B", 16, 2048, 8192, 32, 8, 64, 128256, 131072, true),
		dense(llama, "meta-llama/Llama-3.2-3B", 28, 3072, 8192, 24, 8, 128, 128256, 131072, true),
		dense(llama, "meta-llama/Llama-3.3-70B", 80, 8192, 28672, 64, 8, 128, 128256, 131072, false),
		dense(llama, "meta-llama/Meta-Llama-3-8B", 32, 4096, 14336, 32, 8, 128, 128256, 8192, false),
		dense(llama, "meta-llama/Meta-Llama-3-70B", 80, 8192, 28672, 64, 8, 128, 128256, 8192, false),
		dense(qwen2, "Qwen/Qwen2.5-0.5B", 24, 896, 4864, 14, 2, 64, 151936, 32768, true),
		dense(qwen2, "Qwen/Qwen2.5-1.5B", 28, 1536, 8960, 12, 2, 128, 151936, 32768, true),
		dense(qwen2, "Qwen/Qwen2.5-3B", 36, 2048, 11008, 16, 2, 128, 151936, 32768, true),
		dense(qwen2, "Qwen/Qwen2.5-7B", 28, 3584, 18944, 28, 4, 128, 152064, 32768, false),
		dense(qwen2, "Qwen/Qwen2.5-14B", 48, 5120, 13824, 40, 8, 128, 152064, 32768, false),
		dense(qwen2, "Qwen/Qwen2.5-32B", 64, 5120, 27648, 40, 8, 128, 152064, 32768, false),
		dense(qwen2, "Qwen/Qwen2.5-72B", 80, 8192, 29568, 64, 8, 128, 152064, 32768, false),
		dense(qwen3, "Qwen/Qwen3-0.6B", 28, 1024, 3072, 16, 8, 128, 151936, 40960, true),
		dense(qwen3, "Qwen/Qwen3-1.7B", 28, 2048, 6144, 16, 8, 128, 151936, 40960, true),
		dense(qwen3, "Qwen/Qwen3-4B", 36, 2560, 9728, 32, 8, 128, 151936, 40960, true),
		dense(qwen3, "Qwen/Qwen3-8B", 36, 4096, 12288, 32, 8, 128, 151936, 40960, false),
		dense(qwen3, "Qwen/Qwen3-14B", 40, 5120, 17408, 40, 8, 128, 151936, 40960, false),
		dense(qwen3, "Qwen/Qwen3-32B", 64, 5120, 25600, 64, 8, 128, 151936, 40960, false),
		experts(qwen3, dense(qwen3, "Qwen/Qwen3-30B-A3B", 48, 2048, 768, 32, 4, 128, 151936, 40960, false), 128, 8),
		experts(qwen3, dense(qwen3, "Qwen/Qwen3-235B-A22B", 94, 4096, 1536, 64, 4, 128, 151936, 40960, false), 128, 8),
		mistral1,
		dense(llama, "mistralai/Mistral-7B-v0.3", 32, 4096, 14336, 32, 8, 128, 32768, 32768, false),
		experts(llama,
			dense(llama, "mistralai/Mixtral-8x7B-v0.1", 32, 4096, 14336, 32, 8, 128, 32000, 32768, false), 8, 2),
		gpt2("openai-community/gpt2", 12, 768, 12),
		gpt2("openai-community/gpt2-medium", 24, 1024, 16),
		gpt2("openai-community/gpt2-large", 36, 1280, 20),
		gpt2("openai-community/gpt2-xl", 48, 1600, 25),
		gpt2("microsoft/DialoGPT-small", 12, 768, 12),
		gpt2("microsoft/DialoGPT-medium", 24, 1024, 16),
		gpt2("microsoft/DialoGPT-large", 36, 1280, 20),
	}
}

// Default is the model that stands when none is named: Llama-3.1-8B's shape with a context of 16,384 tokens.
func Default() Model {
	m := Models()[0]
	m.MaxPosition = 16384
	return m
}

// FindModel finds a shape: "" is [Default]; a path to a config.json, or to the folder that holds one, is read with
// [ParseConfig]; else a name of the table, with or without its owner and "-Instruct", "-Chat" or "-it". The error for
// an unknown name lists the nearest ones.
func FindModel(nameOrPath string) (Model, error) {
	if nameOrPath == "" {
		return Default(), nil
	}
	if m, err := readConfig(nameOrPath); !errors.Is(err, fs.ErrNotExist) {
		return m, err
	}
	want := modelKey(nameOrPath)
	models := Models()
	i := slices.IndexFunc(models, func(m Model) bool { return modelKey(m.Name) == want })
	if i < 0 && !strings.Contains(nameOrPath, "/") {
		i = slices.IndexFunc(models, func(m Model) bool { return modelKey(filepath.Base(m.Name)) == want })
	}
	if i >= 0 {
		return models[i], nil
	}
	var names []string
	for _, m := range models {
		names = append(names, m.Name)
	}
	return Model{}, unknown("model", nameOrPath, names, "or give the path of a model folder or its config.json")
}

// modelKey is key without the tunings that leave the shape as it is. Llama 3.0 repositories are called Meta-Llama-3.
func modelKey(name string) string {
	k := strings.Replace(key(name), "metallamametallama3.", "metallamallama3.", 1)
	k = strings.Replace(k, "instruct", "", 1)
	for _, tuning := range []string{"chat", "it", "hf"} {
		k = strings.TrimSuffix(k, tuning)
	}
	return k
}

// readConfig reads path, or path/config.json when path is a folder. The error is fs.ErrNotExist when path is neither.
func readConfig(path string) (Model, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Model{}, fs.ErrNotExist
	}
	if info.IsDir() {
		path = filepath.Join(path, "config.json")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return Model{}, fmt.Errorf("reading the model's shape: %v; a model folder holds a config.json", err)
	}
	m, err := ParseConfig(data)
	if err != nil {
		return Model{}, fmt.Errorf("%s: %w", path, err)
	}
	m.Source = path
	if m.Name == "" {
		m.Name = filepath.Base(filepath.Dir(path))
	}
	return m, nil
}
