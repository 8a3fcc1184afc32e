package spec

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The counts are those that the model cards and the checkpoints' safetensors headers state.
func TestParamsMatchPublishedCounts(t *testing.T) {
	for name, want := range map[string]int64{
		"meta-llama/Llama-3.1-8B":      8_030_261_248,
		"meta-llama/Llama-3.1-70B":     70_553_706_496,
		"meta-llama/Llama-3.2-1B":      1_235_814_400,
		"meta-llama/Llama-3.2-3B":      3_212_749_824,
		"Qwen/Qwen2.5-0.5B":            494_032_768,
		"Qwen/Qwen2.5-1.5B":            1_543_714_304,
		"Qwen/Qwen2.5-3B":              3_085_938_688,
		"Qwen/Qwen2.5-7B":              7_615_616_512,
		"Qwen/Qwen2.5-14B":             14_770_033_664,
		"Qwen/Qwen2.5-32B":             32_763_876_352,
		"Qwen/Qwen2.5-72B":             72_706_203_648,
		"Qwen/Qwen3-0.6B":              596_049_920,
		"Qwen/Qwen3-1.7B":              1_720_574_976,
		"Qwen/Qwen3-4B":                4_022_468_096,
		"Qwen/Qwen3-8B":                8_190_735_360,
		"Qwen/Qwen3-14B":               14_768_307_200,
		"Qwen/Qwen3-32B":               32_762_123_264,
		"Qwen/Qwen3-30B-A3B":           30_532_122_624,
		"Qwen/Qwen3-235B-A22B":         235_093_634_560,
		"mistralai/Mistral-7B-v0.1":    7_241_732_096,
		"mistralai/Mistral-7B-v0.3":    7_248_023_552,
		"mistralai/Mixtral-8x7B-v0.1":  46_702_792_704,
		"openai-community/gpt2":        124_439_808,
		"openai-community/gpt2-medium": 354_823_168,
		"openai-community/gpt2-large":  774_030_080,
		"openai-community/gpt2-xl":     1_557_611_200,
		"microsoft/DialoGPT-medium":    354_823_168,
	} {
		m, err := FindModel(name)
		if err != nil {
			t.Error(err)
			continue
		}
		if m.Params != want {
			t.Errorf("%s: %d params, published %d", name, m.Params, want)
		}
	}
}

// Model cards give the active weights of a mixture of experts in billions only.
func TestActiveParamsMatchPublishedCounts(t *testing.T) {
	for name, billions := range map[string]float64{
		"Qwen/Qwen3-30B-A3B": 3.3, "Qwen/Qwen3-235B-A22B": 22, "mistralai/Mixtral-8x7B-v0.1": 12.9,
	} {
		m, err := FindModel(name)
		if err != nil {
			t.Error(err)
			continue
		}
		if got := float64(m.ActiveParams) / 1e9; math.Abs(got-billions) > 0.02*billions {
			t.Errorf("%s: %.2fe9 active, published %ge9", name, got, billions)
		}
	}
}

func TestKVBytesPerToken(t *testing.T) {
	for _, c := range []struct {
		model, dtype string
		tp           int
		want         int64
	}{
		{"Llama-3.1-8B", "", 1, 131072},                  // 32 layers x 8 heads x 2 x 128 x 2 B
		{"Llama-3.1-8B", "auto", 0, 131072},              //
		{"Llama-3.1-8B", "fp8", 1, 65536},                //
		{"Llama-3.1-8B", "fp8_e4m3", 2, 32768},           //
		{"Llama-3.1-8B", "fp8_per_token_head", 1, 67584}, // 32 x 8 x 2 x (128 + 4)
		{"Llama-3.1-70B", "bfloat16", 4, 81920},          // 80 x 2 x 2 x 128 x 2
		{"Llama-3.1-70B", "", 16, 40960},                 // heads are repeated beyond 8 ranks
		{"Llama-3.2-1B", "", 1, 32768},                   // 16 x 8 x 2 x 64 x 2
		{"Llama-3.2-3B", "", 1, 114688},                  // 28 x 8 x 2 x 128 x 2
		{"Qwen2.5-7B-Instruct", "", 1, 57344},            // 28 x 4 x 2 x 128 x 2
		{"Qwen3-0.6B", "", 1, 114688},                    // 28 x 8 x 2 x 128 x 2
		{"Qwen3-30B-A3B", "", 1, 98304},                  // 48 x 4 x 2 x 128 x 2
		{"Mistral-7B-v0.3", "", 1, 131072},               //
		{"Mixtral-8x7B-Instruct-v0.1", "", 1, 131072},    //
		{"gpt2", "", 1, 36864},                           // 12 x 12 x 2 x 64 x 2
		{"gpt2-xl", "", 1, 307200},                       // 48 x 25 x 2 x 64 x 2
		{"microsoft/DialoGPT-medium", "", 1, 98304},      // 24 x 16 x 2 x 64 x 2
	} {
		m, err := FindModel(c.model)
		if err != nil {
			t.Error(err)
			continue
		}
		if got := m.KVBytesPerToken(c.dtype, c.tp); got != c.want {
			t.Errorf("%s %q tp %d: %d B per token, want %d", c.model, c.dtype, c.tp, got, c.want)
		}
	}
}

func TestWeightsAddUp(t *testing.T) {
	for _, m := range Models() {
		if m.LayerParams() <= 0 || m.ActiveLayerParams() > m.LayerParams() {
			t.Errorf("%s: layers %d, active %d", m.Name, m.LayerParams(), m.ActiveLayerParams())
		}
		if dense := m.Experts == 0; dense != (m.Params == m.ActiveParams) {
			t.Errorf("%s: %d experts, params %d, active %d", m.Name, m.Experts, m.Params, m.ActiveParams)
		}
		if m.WeightBytes() != 2*m.Params {
			t.Errorf("%s: %d B of bf16 weights for %d params", m.Name, m.WeightBytes(), m.Params)
		}
	}
}

func TestDefaultModel(t *testing.T) {
	m, err := FindModel("")
	if err != nil || m.MaxPosition != 16384 || m.Layers != 32 || m.Hidden != 4096 || m.KVHeads != 8 {
		t.Errorf("default model %+v, %v", m, err)
	}
}

func TestFindGPU(t *testing.T) {
	for name, want := range map[string]string{
		"h200": "H200", "NVIDIA H200": "H200", "H100": "H100-SXM", "NVIDIA H100 80GB HBM3": "H100-SXM",
		"nvidia h100 pcie": "H100-PCIe", "NVIDIA A100-SXM4-80GB": "A100-80GB", "NVIDIA A100-SXM4-40GB": "A100-40GB",
		"a100_80gb": "A100-80GB", "NVIDIA L40S": "L40S", "l4": "L4", "NVIDIA GeForce RTX 4090": "RTX-4090",
		"rtx pro 6000": "RTX-PRO-6000", "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "RTX-PRO-6000",
	} {
		if g, err := FindGPU(name); err != nil || g.Name != want {
			t.Errorf("%q: %q, %v; want %s", name, g.Name, err, want)
		}
	}
	for name, near := range map[string]string{"H20O": "H200", "": "", "B200": "H200", "rtx 4080": "RTX-4090"} {
		_, err := FindGPU(name)
		if err == nil || !strings.Contains(err.Error(), near) {
			t.Errorf("%q: error %v should name %s", name, err, near)
		}
	}
}

// A byte holds at most peak bandwidth x time, and faster parts have faster datasheets: a slipped digit shows here.
func TestGPUsAreConsistent(t *testing.T) {
	for _, g := range GPUs() {
		if g.CPU { // no datasheet
			continue
		}
		if ratio := g.BF16 / g.Bandwidth; ratio < 100 || ratio > 500 {
			t.Errorf("%s: %g flop per byte", g.Name, ratio)
		}
		if g.FP8 != 0 && (g.FP8 < 1.9*g.BF16 || g.FP8 > 2.1*g.BF16) {
			t.Errorf("%s: fp8 %g, bf16 %g", g.Name, g.FP8, g.BF16)
		}
		if g.Memory < 20<<30 || g.Memory > 150<<30 || g.Source == "" || g.Link >= g.Bandwidth {
			t.Errorf("%+v", g)
		}
	}
}

func TestFindModelUnknown(t *testing.T) {
	_, err := FindModel("meta-llama/Llama-3.1-9B")
	for _, want := range []string{"meta-llama/Llama-3.1-8B", "config.json"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v should say %q", err, want)
		}
	}
	for _, name := range []string{"llama-3.1-8b-instruct", "Qwen3-8B", "LLAMA-3.1-8B", "meta-llama/Meta-Llama-3.1-8B"} {
		if _, err := FindModel(name); err != nil {
			t.Error(err)
		}
	}
}

const llama = `{"model_type":"llama","num_hidden_layers":32,"hidden_size":4096,"intermediate_size":14336,
 "num_attention_heads":32,"num_key_value_heads":8,"vocab_size":128256,"max_position_embeddings":131072`

func TestParseConfig(t *testing.T) {
	want, err := FindModel("Llama-3.1-8B")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		text string
		edit func(*Model)
	}{
		"llama":  {llama + `}`, func(*Model) {}},
		"nested": {`{"model_type":"llava","text_config":` + llama + `}}`, func(*Model) {}},
		"fp8":    {llama + `,"quantization_config":{"quant_method":"fp8"}}`, func(m *Model) { m.DTypeBytes = 1 }},
		"tied": {llama + `,"tie_word_embeddings":true}`, func(m *Model) {
			m.TiedEmbeddings = true
			m.Params -= 128256 * 4096
			m.ActiveParams = m.Params
		}},
		"window":      {llama + `,"sliding_window":4096}`, func(m *Model) { m.SlidingWindow = 4096 }},
		"window off":  {llama + `,"sliding_window":4096,"use_sliding_window":false}`, func(*Model) {}},
		"window null": {llama + `,"sliding_window":null,"head_dim":128}`, func(*Model) {}},
		"compressed": {llama + `,"quantization_config":{"quant_method":"compressed-tensors","config_groups":{"group_0":
			{"weights":{"type":"float","num_bits":8}}}}}`, func(m *Model) { m.DTypeBytes = 1 }},
	} {
		got, err := ParseConfig([]byte(c.text))
		want := want
		want.Name, want.Source = "", ""
		c.edit(&want)
		if err != nil || got != want {
			t.Errorf("%s:\n got %+v, %v\nwant %+v", name, got, err, want)
		}
	}
}

func TestParseConfigFamilies(t *testing.T) {
	for _, c := range []struct{ name, text string }{
		{"openai-community/gpt2", `{"model_type":"gpt2","n_layer":12,"n_embd":768,"n_head":12,
			"n_positions":1024,"vocab_size":50257}`},
		{"Qwen/Qwen2.5-7B", `{"model_type":"qwen2","num_hidden_layers":28,"hidden_size":3584,"intermediate_size":18944,
			"num_attention_heads":28,"num_key_value_heads":4,"vocab_size":152064,"max_position_embeddings":32768}`},
		{"Qwen/Qwen3-30B-A3B", `{"model_type":"qwen3_moe","num_hidden_layers":48,"hidden_size":2048,"intermediate_size":6144,
			"moe_intermediate_size":768,"num_experts":128,"num_experts_per_tok":8,"head_dim":128,"num_attention_heads":32,
			"num_key_value_heads":4,"vocab_size":151936,"max_position_embeddings":40960}`},
		{"mistralai/Mixtral-8x7B-v0.1", `{"model_type":"mixtral","num_hidden_layers":32,"hidden_size":4096,
			"intermediate_size":14336,"num_local_experts":8,"num_experts_per_tok":2,"num_attention_heads":32,
			"num_key_value_heads":8,"vocab_size":32000,"max_position_embeddings":32768}`},
	} {
		want, err := FindModel(c.name)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseConfig([]byte(c.text))
		want.Name, want.Source = "", ""
		if err != nil || got != want {
			t.Errorf("%s:\n got %+v, %v\nwant %+v", c.name, got, err, want)
		}
	}
}

func TestParseConfigRefuses(t *testing.T) {
	for text, want := range map[string]string{
		`[]`:                            "config.json",
		`{"model_type":"llama"}`:        "num_hidden_layers is 0",
		llama + `,"kv_lora_rank":512}`:  "kv_lora_rank",
		llama + `,"mamba_d_state":128}`: "hybrid",
		llama + `,"layer_types":["linear_attention","full_attention"]}`:  "linear_attention",
		llama + `,"layer_types":["full_attention","sliding_attention"]}`: "layer_types[1]",
		llama + `,"quantization_config":{"quant_method":"awq"}}`:         "awq",
		`{"model_type":"bert"}`:     "bert",
		llama + `,"num_experts":8}`: "num_experts_per_tok",
		llama + `,"head_dim":-1}`:   "head_dim",
	} {
		if m, err := ParseConfig([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, error %v should say %q", text, m, err, want)
		}
	}
}

func TestFindModelPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tiny")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := FindModel(dir); err == nil || !strings.Contains(err.Error(), "config.json") {
		t.Errorf("folder without a config.json: %v", err)
	}
	file := filepath.Join(dir, "config.json")
	if err := os.WriteFile(file, []byte(llama+`}`), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, file} {
		if m, err := FindModel(path); err != nil || m.Name != "tiny" || m.Source != file {
			t.Errorf("%s: %+v, %v", path, m, err)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(llama + `}`))
	f.Add([]byte(`{"model_type":"gpt2","n_layer":1,"n_embd":8,"n_head":2,"n_positions":16,"vocab_size":32}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ParseConfig(data)
		if err == nil && (m.Layers <= 0 || m.KVHeads <= 0 || m.HeadDim <= 0 || m.KVBytesPerToken("", 1) <= 0) {
			t.Errorf("%s: accepted %+v", data, m)
		}
	})
}
