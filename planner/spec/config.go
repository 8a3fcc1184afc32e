package spec

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// config is what kvtune reads of a config.json: Llama's names and GPT-2's.
type config struct {
	Name       string  `json:"_name_or_path"`
	ModelType  string  `json:"model_type"`
	TextConfig *config `json:"text_config"`

	Layers       int  `json:"num_hidden_layers"`
	Hidden       int  `json:"hidden_size"`
	Intermediate int  `json:"intermediate_size"`
	Heads        int  `json:"num_attention_heads"`
	KVHeads      int  `json:"num_key_value_heads"`
	HeadDim      int  `json:"head_dim"`
	Vocab        int  `json:"vocab_size"`
	MaxPosition  int  `json:"max_position_embeddings"`
	Tied         bool `json:"tie_word_embeddings"`

	LocalExperts    int   `json:"num_local_experts"`
	Experts         int   `json:"num_experts"`
	ExpertsPerToken int   `json:"num_experts_per_tok"`
	MoEIntermediate int   `json:"moe_intermediate_size"`
	AttentionBias   *bool `json:"attention_bias"`

	SlidingWindow    int   `json:"sliding_window"`
	UseSlidingWindow *bool `json:"use_sliding_window"`

	Quantization *struct {
		Method       string `json:"quant_method"`
		ConfigGroups map[string]struct {
			Weights struct {
				Type string `json:"type"`
				Bits int    `json:"num_bits"`
			} `json:"weights"`
		} `json:"config_groups"`
	} `json:"quantization_config"`

	// What kvtune has no cost model for.
	KVLoRARank  int             `json:"kv_lora_rank"`
	MambaState  int             `json:"mamba_d_state"`
	StateSize   int             `json:"state_size"`
	SSMState    int             `json:"ssm_state_size"`
	LinearHeads int             `json:"linear_num_value_heads"`
	Hybrid      json.RawMessage `json:"hybrid_override_pattern"`
	LayerTypes  []string        `json:"layer_types"`
	IsEncoder   bool            `json:"is_encoder_decoder"`
}

// gpt2Names are GPT-2's spellings; encoding/json matches tags only, so they are read apart from Llama's.
type gpt2Names struct {
	Layer     int `json:"n_layer"`
	Embd      int `json:"n_embd"`
	Head      int `json:"n_head"`
	Inner     int `json:"n_inner"`
	Positions int `json:"n_positions"`
}

// ParseConfig reads a model's shape from the bytes of its config.json, as vLLM reads it: Llama, Qwen2, Qwen3,
// Mistral, Mixtral and GPT-2 field names, the text_config of a multimodal model, head_dim and key-value heads with
// their defaults. Weights are 2 bytes unless quantization_config says fp8. A model whose cost the planner cannot
// express (MLA, state-space or hybrid layers, an encoder, other quantisation) is an error that says so.
func ParseConfig(data []byte) (Model, error) {
	var c config
	if err := json.Unmarshal(data, &c); err != nil {
		return Model{}, fmt.Errorf("not a model's config.json: %w", err)
	}
	if c.TextConfig != nil {
		text := *c.TextConfig
		if text.Quantization == nil {
			text.Quantization = c.Quantization
		}
		if c.Tied {
			text.Tied = true
		}
		c = text
	} else if c.ModelType == "gpt2" {
		var g gpt2Names
		if err := json.Unmarshal(data, &g); err != nil {
			return Model{}, fmt.Errorf("not a model's config.json: %w", err)
		}
		c.Layers, c.Hidden, c.Heads, c.MaxPosition, c.Intermediate = g.Layer, g.Embd, g.Head, g.Positions, g.Inner
		if c.Intermediate == 0 {
			c.Intermediate = 4 * c.Hidden
		}
		c.Tied = true
	}
	if why := c.unsupported(); why != "" {
		return Model{}, fmt.Errorf("%s: the planner has no cost model for it (it knows decoder-only transformers with "+
			"full attention over a plain KV cache, in bf16, fp16 or fp8)", why)
	}
	return c.model()
}

// knownTypes are the values of model_type whose weights [family] can count.
var knownTypes = []string{"gpt2", "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe"}

// unsupported says which property of the model has no cost model here, "" for none.
func (c *config) unsupported() string {
	switch {
	case c.KVLoRARank > 0:
		return "multi-head latent attention (kv_lora_rank)"
	case c.MambaState > 0, c.SSMState > 0, c.StateSize > 0, c.LinearHeads > 0, len(c.Hybrid) > 0:
		return "state-space or hybrid layers"
	case c.IsEncoder:
		return "an encoder-decoder model"
	case !slices.Contains(knownTypes, c.ModelType):
		return fmt.Sprintf("model_type %q (known: %s; write \"llama\" there if its layers have Llama's shape)",
			c.ModelType, strings.Join(knownTypes, ", "))
	}
	for i, t := range c.LayerTypes {
		if t != c.LayerTypes[0] || t != "full_attention" && t != "sliding_attention" {
			return fmt.Sprintf("layers of several kinds (layer_types[%d] is %q)", i, t)
		}
	}
	if c.Quantization != nil && c.weightBytes() == 0 {
		return fmt.Sprintf("quantisation method %q", c.Quantization.Method)
	}
	return ""
}

// weightBytes is the bytes of one weight, 0 when the quantisation is not one that the planner knows.
func (c *config) weightBytes() float64 {
	q := c.Quantization
	if q == nil {
		return 2 // vLLM's dtype "auto" loads fp32 checkpoints as fp16 or bf16 too
	}
	switch q.Method {
	case "fp8", "fbgemm_fp8":
		return 1
	case "compressed-tensors":
		for _, g := range q.ConfigGroups {
			if g.Weights.Type != "float" || g.Weights.Bits != 8 {
				return 0
			}
		}
		if len(q.ConfigGroups) > 0 {
			return 1
		}
	}
	return 0
}

// model checks the fields and counts the weights.
func (c *config) model() (Model, error) {
	m := Model{
		Name: c.Name, Layers: c.Layers, Hidden: c.Hidden, Intermediate: c.Intermediate, Heads: c.Heads,
		KVHeads: c.KVHeads,
		HeadDim: c.HeadDim, Vocab: c.Vocab, MaxPosition: c.MaxPosition, TiedEmbeddings: c.Tied,
		Experts: max(c.Experts, c.LocalExperts), ExpertsPerToken: c.ExpertsPerToken, DTypeBytes: c.weightBytes(),
	}
	if m.Experts > 0 && c.MoEIntermediate > 0 {
		m.Intermediate = c.MoEIntermediate
	}
	if c.UseSlidingWindow == nil || *c.UseSlidingWindow {
		m.SlidingWindow = c.SlidingWindow
	}
	for _, f := range []struct {
		name  string
		value int
	}{
		{"num_hidden_layers", m.Layers}, {"hidden_size", m.Hidden}, {"intermediate_size", m.Intermediate},
		{"num_attention_heads", m.Heads}, {"vocab_size", m.Vocab}, {"max_position_embeddings", m.MaxPosition},
	} {
		if f.value <= 0 || f.value > 1<<24 {
			return Model{}, fmt.Errorf("config.json (model_type %q): %s is %d, expected a positive number; is this the "+
				"config.json of a language model?", c.ModelType, f.name, f.value)
		}
	}
	if m.KVHeads == 0 {
		m.KVHeads = m.Heads
	}
	if m.HeadDim == 0 {
		m.HeadDim = m.Hidden / m.Heads
	}
	if m.KVHeads < 0 || m.KVHeads > m.Heads || m.HeadDim <= 0 || m.HeadDim > 1<<16 {
		return Model{}, fmt.Errorf("config.json: num_key_value_heads %d and head_dim %d do not fit %d attention heads",
			m.KVHeads, m.HeadDim, m.Heads)
	}
	if m.Experts < 0 || m.Experts > 1<<16 || m.Experts > 0 && (m.ExpertsPerToken < 1 || m.ExpertsPerToken > m.Experts) {
		return Model{}, fmt.Errorf("config.json: num_experts_per_tok is %d, expected 1 to num_experts (%d)",
			m.ExpertsPerToken, m.Experts)
	}
	f := family{gpt2: c.ModelType == "gpt2"}
	switch kind := c.ModelType; {
	case strings.HasPrefix(kind, "qwen2"):
		f.qkvBias = true
	case strings.HasPrefix(kind, "qwen3"):
		f.qkNorm = true
	}
	if c.AttentionBias != nil && *c.AttentionBias {
		f.qkvBias = true
	}
	return f.count(m), nil
}
