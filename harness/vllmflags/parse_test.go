package vllmflags

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kvtune/harness"
)

func TestParseServeCommand(t *testing.T) {
	for _, c := range []struct {
		name, command, model string
		args                 harness.EngineArgs
		rest                 []string
	}{
		{"plain", "vllm serve org/Model-8B --max-num-seqs 64 --max-num-batched-tokens=8k", "org/Model-8B",
			harness.EngineArgs{MaxNumSeqs: 64, MaxNumBatchedTokens: 8000}, nil},
		{"binary suffix, underscores", "vllm serve m --max_num_batched_tokens 8K --max_model_len 25.6k", "m",
			harness.EngineArgs{MaxNumBatchedTokens: 8192, MaxModelLen: 25600}, nil},
		{"switches", "vllm serve --no-enable-chunked-prefill --enable_prefix_caching m --no-async-scheduling", "m",
			harness.EngineArgs{EnableChunkedPrefill: no(), EnablePrefixCaching: yes(), AsyncScheduling: no()}, nil},
		{"last counts", "vllm serve m --block-size 16 --block-size 32 --enforce-eager --no-enforce-eager", "m",
			harness.EngineArgs{BlockSize: 32, EnforceEager: no()}, nil},
		{"unknown flags are kept", "vllm serve m --port 8000 --trust-remote-code --enable-lora --max-num-seqs 4 -O3 -tp 2",
			"m", harness.EngineArgs{MaxNumSeqs: 4, TensorParallelSize: 2},
			[]string{"--port", "8000", "--trust-remote-code", "--enable-lora", "-O3"}},
		{"lists", "vllm serve m --served-model-name a b --cudagraph-capture-sizes 1 2 4 --block-size 32", "m",
			harness.EngineArgs{BlockSize: 32},
			[]string{"--served-model-name", "a", "b", "--cudagraph-capture-sizes", "1", "2", "4"}},
		{"switch before the model", "vllm serve --enable-sleep-mode m", "m", harness.EngineArgs{},
			[]string{"--enable-sleep-mode"}},
		{"quotes and line ends", "VLLM_X=1 /opt/venv/bin/vllm serve \\\n 'my model' \\\n --speculative-config '{\"a\": " +
			"1}' \\\n" +
			" --gpu-memory-utilization \"0.8\"", "my model", harness.EngineArgs{GPUMemoryUtilization: 0.8},
			[]string{"--speculative-config", `{"a": 1}`}},
		{"model as a flag", "vllm serve --model m --swap-space 8", "m", harness.EngineArgs{SwapSpace: 8}, nil},
		{"python module", "python3 -m vllm.entrypoints.openai.api_server --model m --max-num-seqs 8", "m",
			harness.EngineArgs{MaxNumSeqs: 8}, nil},
		{"container", "docker run --gpus all -p 8000:8000 vllm/vllm-openai:v0.32.0 --model m --max-num-seqs 8", "m",
			harness.EngineArgs{MaxNumSeqs: 8}, nil},
		{"context that memory decides", "vllm serve m --max-model-len auto --max-num-seqs 8", "m",
			harness.EngineArgs{MaxNumSeqs: 8}, []string{"--max-model-len", "auto"}},
		{"alias", "vllm serve m --device-memory-utilization 0.5", "m", harness.EngineArgs{GPUMemoryUtilization: 0.5}, nil},
	} {
		model, args, rest, err := ParseServeCommand(c.command)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if model != c.model {
			t.Errorf("%s: model %q, want %q", c.name, model, c.model)
		}
		if diff := cmp.Diff(c.args, args); diff != "" {
			t.Errorf("%s: -want +got\n%s", c.name, diff)
		}
		if diff := cmp.Diff(c.rest, rest); diff != "" {
			t.Errorf("%s: rest: -want +got\n%s", c.name, diff)
		}
	}
}

func TestParseServeCommandErrors(t *testing.T) {
	for command, want := range map[string]string{
		"":                                                "expected 'vllm serve",
		"python train.py":                                 "expected 'vllm serve",
		"vllm serve m --max-num-seqs":                     "--max-num-seqs has no value",
		"vllm serve m --max-num-seqs many":                `max_num_seqs is "many": expected an integer`,
		"vllm serve m --max-num-seqs 8k":                  "expected an integer",
		"vllm serve m --block-size 0":                     "at least 1",
		"vllm serve m --max-num-batched-tokens 1.5K":      "8K (8192)",
		"vllm serve m --gpu-memory-utilization nan":       "above 0, at most 1",
		"vllm serve m other":                              `word "other"`,
		"vllm serve 'm":                                   "not closed",
		"vllm serve m \\":                                 "backslash",
		"vllm serve m --enable-chunked-prefill=false":     "--no-enable-chunked-prefill",
		"vllm serve m --scheduling-policy shortest":       "fcfs, priority",
		"vllm serve m --max-num-batched-tokens 99999999T": "below 2^40",
	} {
		if _, _, _, err := ParseServeCommand(command); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v does not say %q", command, err, want)
		}
	}
}

func TestParseFix(t *testing.T) {
	got, err := ParseFix("max_num_seqs=64", "enable-chunked-prefill=false", "max_num_batched_tokens = 8K",
		"max_num_seqs=64")
	want := harness.EngineArgs{MaxNumSeqs: 64, EnableChunkedPrefill: no(), MaxNumBatchedTokens: 8192}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v, -want +got\n%s", err, diff)
	}
	for fix, want := range map[string]string{
		"max_num_seqs":               "flag=value",
		"max_seqs=4":                 "unknown flag",
		"max_num_seqs=":              "expected an integer",
		"enable_prefix_caching=yess": "true or false",
	} {
		if _, err := ParseFix(fix); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v does not say %q", fix, err, want)
		}
	}
	if _, err := ParseFix("max_num_seqs=64", "max-num-seqs=32"); err == nil ||
		!strings.Contains(err.Error(), "both 64 and 32") {
		t.Errorf("two values for one flag: %v", err)
	}
}

// Whatever is read can be emitted and read again, and no word is lost.
func FuzzParseServeCommand(f *testing.F) {
	for _, seed := range []string{
		"vllm serve m --max-num-seqs 64 --max-num-batched-tokens=8k --no-enable-chunked-prefill",
		"vllm serve 'a b' --port 80 --speculative-config \"{\\\"a\\\": 1}\" -tp 2 --watermark 0.5",
		"docker run vllm/vllm-openai:latest --model x --kv-cache-dtype fp8 --max-model-len auto",
		"vllm serve \\\n m --swap_space 1e3 --block_size=32 --model= -- --",
		"vllm serve m --chat-template \"a\\\\\nb\"", // an escaped backslash before a line's end joins no lines
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, command string) {
		_, args, rest, err := ParseServeCommand(command)
		if err != nil {
			return
		}
		bare := strings.NewReplacer("'", "", `"`, "", `\`, "", "\n", "")
		for _, word := range rest {
			if !strings.Contains(bare.Replace(command), bare.Replace(word)) {
				t.Errorf("%q: the word %q is not in the command", command, word)
			}
		}
		argv, _, err := Argv(args, "0.32.0", h200)
		if err != nil {
			return // a KV data type that the release lacks
		}
		_, again, rest, err := ParseServeCommand("vllm serve m " + strings.Join(argv, " "))
		if err != nil || len(rest) > 0 {
			t.Fatalf("%q gives %q, which does not parse: %v, rest %q", command, argv, err, rest)
		}
		if _, reps, err := Legalize(again, "0.32.0", h200); len(reps) > 0 || err != nil {
			t.Fatalf("%q gives %q, which is not legal: %v %v", command, argv, reps, err)
		}
	})
}
