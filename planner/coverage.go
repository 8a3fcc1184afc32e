package planner

import (
	"fmt"
	"slices"
	"strings"

	"kvtune/harness"
)

// A NotCoveredError is a request for a plan on a server whose way of working the simulator does not have.
type NotCoveredError struct {
	// Features are what is not covered, one sentence each.
	Features []string
}

func (e *NotCoveredError) Error() string {
	return "no plan can be made for this server: " + strings.Join(e.Features, "; ") +
		"; measure settings instead (kvtune workflow --configs, kvtune compare)"
}

// The support of a feature that the simulator and the cost model have, and of one that only measurements show.
const (
	modelled     = "modelled"
	measuredOnly = "measured only"
)

// uncovered are the features without a model that change what a step is: a simulation of it would be of another server.
// Of all others without a model, the steps are those that are simulated and only their times or hits differ.
var uncovered = map[string]string{
	"speculative decoding": "a step gives a request several tokens, and how many depends on the text",
	"several engines":      "requests are dealt to several schedulers, and kvtune simulates one",
	"pipeline parallelism": "several batches are in flight at different stages, and kvtune simulates one stage",
	"KV connector":         "other servers compute or hold a part of the KV cache",
}

// perFeature is by how much a prediction's interval is widened for each feature that is measured but not modelled: the
// standard deviation of the logarithm of step times. It is a guess on the safe side, not a measurement.
const perFeature = 0.2

// coverage is by how much predictions are widened for what the model does not cover; notes say for what. The error is a
// *NotCoveredError.
func coverage(features []harness.Feature) (spread float64, notes []string, err error) {
	var not []string
	for _, f := range features {
		if f.Support == modelled {
			continue
		}
		text := f.Name
		if f.Note != "" {
			text += " (" + f.Note + ")"
		}
		why, refuse := uncovered[f.Name]
		switch {
		case refuse:
			not = append(not, fmt.Sprintf("%s: %s", f.Name, why))
		case f.Support != measuredOnly:
			not = append(not, text+" is not supported")
		default:
			spread += perFeature * perFeature
			notes = append(notes, fmt.Sprintf("%s is not modelled: intervals are widened by a guess (%.0f %% in step times)",
				text, 100*perFeature))
		}
	}
	if len(not) > 0 {
		return 0, nil, &NotCoveredError{Features: not}
	}
	return spread, notes, nil
}

// flagFeatures are vLLM's flags that turn on what the model does not cover, unless their value is off.
var flagFeatures = []struct{ flag, off, feature, note string }{
	{"speculative_config", "", "speculative decoding", ""},
	{"spec_method", "", "speculative decoding", ""},
	{"spec_model", "", "speculative decoding", ""},
	{"data_parallel_size", "1", "several engines", ""},
	{"dp", "1", "several engines", ""},
	{"pipeline_parallel_size", "1", "pipeline parallelism", ""},
	{"pp", "1", "pipeline parallelism", ""},
	{"kv_transfer_config", "", "KV connector", ""},
	{"enable_lora", "", "LoRA", "adapters add work to every step"},
	{"lora_modules", "", "LoRA", "adapters add work to every step"},
	{"cpu_offload_gb", "0", "weight offload", "weights are read from the host in every step"},
}

// FeaturesOf names what a server's flags turn on that the model does not cover; rest are the flags beyond
// [harness.EngineArgs], as [vllmflags.ParseServeCommand] leaves them over.
func FeaturesOf(args harness.EngineArgs, rest []string) []harness.Feature {
	var out []harness.Feature
	add := func(name, note string) {
		if !slices.ContainsFunc(out, func(f harness.Feature) bool { return f.Name == name }) {
			out = append(out, harness.Feature{Name: name, Support: measuredOnly, Note: note})
		}
	}
	if args.KVOffloadingSize > 0 || args.SwapSpace > 0 { // newer releases have the first in place of the second
		add("KV offload", "host memory holds evicted blocks")
	}
	for i, word := range rest {
		name, value, inline := strings.Cut(strings.TrimLeft(word, "-"), "=")
		if !strings.HasPrefix(word, "-") {
			continue
		}
		if !inline && i+1 < len(rest) {
			value = rest[i+1]
		}
		for _, f := range flagFeatures {
			if f.flag == strings.ReplaceAll(name, "-", "_") && (f.off == "" || value != f.off) {
				add(f.feature, f.note)
			}
		}
	}
	return out
}
