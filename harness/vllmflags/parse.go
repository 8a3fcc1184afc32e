package vllmflags

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"kvtune/harness"
)

// ParseFix reads settings of the form flag=value ("max_num_seqs=64", "enable-chunked-prefill=false") into one set. A
// flag given twice must have one value.
func ParseFix(fixes ...string) (harness.EngineArgs, error) {
	var args harness.EngineArgs
	for _, fix := range fixes {
		flag, value, ok := strings.Cut(fix, "=")
		if !ok {
			return args, fmt.Errorf("%q is not of the form flag=value, as in max_num_seqs=64", fix)
		}
		flag = strings.TrimSpace(flag)
		before := Get(args, flag)
		if err := Set(&args, flag, value); err != nil {
			return args, err
		}
		if now := Get(args, flag); before != "" && before != now {
			return args, fmt.Errorf("%s is fixed to both %s and %s: give it once", canonical(flag), before, now)
		}
	}
	return args, nil
}

// ParseServeCommand reads a command line that starts vLLM: `vllm serve MODEL --flag value`, with anything before it
// (environment, docker, srun), `python -m vllm.entrypoints.openai.api_server --model MODEL`, or a vllm-openai
// container image followed by its arguments. Words are split as a POSIX shell does, without expansions; a backslash
// at the end of a line joins lines. Flags are written --flag value, --flag=value, --no-flag, with dashes or
// underscores; of a flag given twice the last counts, as in vLLM. Flags that are not of EngineArgs, and values that
// only the server can turn into a number (max_model_len auto), are in rest, in order, as written.
func ParseServeCommand(command string) (model string, args harness.EngineArgs, rest []string, err error) {
	words, err := split(command)
	if err != nil {
		return "", args, nil, err
	}
	if words, err = afterServe(words); err != nil {
		return "", args, nil, err
	}
	for len(words) > 0 {
		word := words[0]
		words = words[1:]
		if !strings.HasPrefix(word, "-") || word == "-" {
			if model != "" {
				return "", args, nil, fmt.Errorf("word %q after model %q is neither a flag nor a flag's value: quote values "+
					"with spaces", word, model)
			}
			model = word
			continue
		}
		n, err := parseFlag(&args, &model, word, words)
		if err != nil {
			return "", args, nil, err
		}
		if n < 0 { // not ours
			n = unknownValues(word, words)
			rest = append(append(rest, word), words[:n]...)
		}
		words = words[n:]
	}
	return model, args, rest, nil
}

// parseFlag reads one flag of EngineArgs or the model and gives the number of further words that it took; -1 when the
// flag is neither.
func parseFlag(args *harness.EngineArgs, model *string, word string, words []string) (int, error) {
	name, value, inline := strings.Cut(word, "=")
	flag := canonical(name)
	switch {
	case name == "-tp":
		flag = "tensor_parallel_size"
	case !strings.HasPrefix(name, "--"):
		return -1, nil
	case flag == "device_memory_utilization": // an alias from 0.31 on
		flag = "gpu_memory_utilization"
	}
	positive, negated := strings.CutPrefix(flag, "no_")
	i := slices.IndexFunc(fields(), func(f field) bool { return f.Name == positive })
	if i < 0 && flag != "model" {
		return -1, nil
	}
	if i >= 0 {
		if _, boolean := fields()[i].at(args).(**bool); boolean {
			if inline {
				return 0, fmt.Errorf("%s: a switch takes no value, use %s or --no-%s", word, name, strings.TrimLeft(name, "-"))
			}
			on := "true"
			if negated {
				on = "false"
			}
			return 0, Set(args, positive, on)
		}
		if negated {
			return -1, nil
		}
	}
	used := 0
	if !inline {
		if len(words) == 0 {
			return 0, fmt.Errorf("%s has no value", name)
		}
		value, used = words[0], 1
	}
	switch {
	case flag == "model":
		*model = value
	case flag == "max_model_len" && (value == "-1" || strings.EqualFold(value, "auto")):
		args.MaxModelLen = 0
		return -1, nil
	default:
		return used, Set(args, flag, value)
	}
	return used, nil
}

// afterServe gives the words behind the one that starts the server.
func afterServe(words []string) ([]string, error) {
	for i, w := range words {
		switch {
		case path.Base(w) == "vllm" && i+1 < len(words) && words[i+1] == "serve":
			return words[i+2:], nil
		case w == "vllm.entrypoints.openai.api_server", strings.HasPrefix(imageName(w), "vllm-openai"):
			return words[i+1:], nil
		}
	}
	return nil, errors.New("this is not a command that starts vLLM: expected 'vllm serve MODEL --flag value ...'")
}

// imageName is the last part of a container image's name, without tag and digest.
func imageName(word string) string {
	name, _, _ := strings.Cut(path.Base(word), ":")
	name, _, _ = strings.Cut(name, "@")
	return name
}

// unknownValues is how many words behind a flag that is not ours belong to it: none for --flag=value and for switches,
// all up to the next flag where vLLM takes several, else one.
func unknownValues(word string, words []string) int {
	if strings.Contains(word, "=") || isSwitch(word) {
		return 0
	}
	n := 0
	for n < len(words) && !(strings.HasPrefix(words[n], "--") && len(words[n]) > 2) {
		n++
		if !takesSeveral(word) {
			break
		}
	}
	return n
}

// isSwitch knows vLLM's flags without a value: all that begin with enable-, disable- or no-, and these.
//
// Source: the argument parser of vLLM 0.32.
func isSwitch(word string) bool {
	name := canonical(word)
	for _, prefix := range []string{"enable_", "disable_", "no_", "trust_", "skip_", "use_", "O"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return slices.Contains([]string{
		"aggregate_engine_logging", "allow_credentials", "allow_deprecated_quantization", "calculate_kv_scales",
		"cohere_is_reasoning_model", "cudagraph_metrics", "data_parallel_external_lb", "data_parallel_hybrid_lb",
		"data_parallel_multi_port_external_lb", "dcp_q_replicate", "dpe", "dph", "dpm", "ep",
		"exclude_tools_when_tool_choice_none", "fail_on_environ_validation", "fully_sharded_loras", "grpc", "h", "headless",
		"help", "interleave_mm_strings", "jit_monitor_verbose", "kv_cache_metrics", "kv_sharing_fast_prefill",
		"language_model_only", "log_error_stack", "long_prefill_token_threshold_adaptive", "mm_device_do_normalize",
		"mm_encoder_only", "numa_bind", "ray_workers_use_nsight", "return_sampling_mask", "return_tokens_as_token_ids",
		"scheduler_reserve_full_isl", "sleep_mode_offload_cudagraph", "specialize_active_lora", "swa_bounded_replay",
		"tokens_only",
	}, name)
}

// takesSeveral knows vLLM's flags with a list of values (the same source).
func takesSeveral(word string) bool {
	return slices.Contains([]string{
		"allowed_media_domains", "api_key", "collect_detailed_traces", "cpu_offload_params", "cudagraph_capture_sizes",
		"ignore_patterns", "kv_cache_dtype_skip_layers", "logits_processors", "lora_modules", "lora_target_modules",
		"middleware", "numa_bind_cpus", "numa_bind_nodes", "offload_params", "served_model_name",
		"sleep_preserve_parameter_names",
	}, canonical(word))
}

// split cuts a command line into words as a POSIX shell does, without expansions.
func split(s string) ([]string, error) {
	var words []string
	var word strings.Builder
	inWord, quote := false, byte(0)
	for i := 0; i < len(s); i++ {
		r := s[i]
		switch {
		case quote == '\'' && r != '\'', quote == '"' && r != '"' && r != '\\':
			word.WriteByte(r)
		case quote != 0 && r == quote:
			quote = 0
		case quote == 0 && (r == '\'' || r == '"'):
			quote, inWord = r, true
		case r == '\\':
			i++
			switch {
			case i == len(s):
				return nil, errors.New("the command ends in a backslash")
			case s[i] == '\n':
			case quote == '"' && strings.IndexByte("\"\\$`", s[i]) < 0:
				word.WriteByte('\\')
				word.WriteByte(s[i])
			default:
				word.WriteByte(s[i])
				inWord = true
			}
		case strings.IndexByte(" \t\r\n", r) >= 0:
			if inWord {
				words = append(words, word.String())
				word.Reset()
				inWord = false
			}
		default:
			word.WriteByte(r)
			inWord = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("a quote %c is not closed", quote)
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, nil
}
