package planner

import (
	"encoding/json"
	"fmt"
	"strings"
)

// ExportFormats are the formats of [Export].
func ExportFormats() []string { return []string{"flags", "yaml", "helm", "compose"} }

// Export writes a plan for a deployment: "flags" the shell command, "yaml" a file for `vllm serve --config`, "helm"
// values of vLLM's production-stack chart, with as many replicas as the plan's deployment, "compose" a Docker Compose
// service of the image vllm/vllm-openai; both ask for tensor_parallel_size GPUs. version is the image's tag without
// "v", "" for latest. Every word is quoted for its format, so that a value can be nothing but a value.
func Export(p *Plan, format, version string) (string, error) {
	if len(p.Launch) < 3 {
		return "", fmt.Errorf("the plan has no launch command")
	}
	model, flags := p.Launch[2], p.Launch[3:]
	for _, word := range p.Launch {
		if strings.ContainsFunc(word, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return "", fmt.Errorf("%q holds a control character and cannot be exported", word)
		}
	}
	tag := "latest"
	if version != "" {
		tag = "v" + strings.TrimPrefix(version, "v")
	}
	gpus, replicas := max(1, p.Args.TensorParallelSize), 1
	if p.Deployment != nil {
		replicas = p.Deployment.Replicas
	}
	var b strings.Builder
	switch format {
	case "flags":
		for i, word := range p.Launch {
			if i > 0 {
				b.WriteByte(' ')
			}
			b.WriteString(shellQuote(word))
		}
		b.WriteByte('\n')
	case "yaml":
		fmt.Fprintf(&b, "# vllm serve --config FILE (strategy %s; predicted by simulation)\nmodel: %s\n", p.Strategy,
			yamlQuote(model))
		for i := 0; i < len(flags); i++ {
			name, value, inline := strings.Cut(strings.TrimPrefix(flags[i], "--"), "=")
			switch {
			case inline:
				fmt.Fprintf(&b, "%s: %s\n", name, yamlValue(value))
			case i+1 < len(flags) && !strings.HasPrefix(flags[i+1], "--"):
				i++
				fmt.Fprintf(&b, "%s: %s\n", name, yamlValue(flags[i]))
			default: // vLLM turns "no-x: true" into --no-x and leaves out "x: false"
				fmt.Fprintf(&b, "%s: true\n", name)
			}
		}
	case "helm":
		fmt.Fprintf(&b, "# values of vLLM's production-stack chart (strategy %s; predicted by simulation)\n", p.Strategy)
		b.WriteString("servingEngineSpec:\n  modelSpec:\n    - name: kvtune\n      repository: vllm/vllm-openai\n")
		fmt.Fprintf(&b, "      tag: %s\n      modelURL: %s\n      replicaCount: %d\n      requestGPU: %d\n",
			yamlQuote(tag), yamlQuote(model), replicas, gpus)
		b.WriteString("      vllmConfig:\n        extraArgs:\n")
		for _, word := range flags {
			fmt.Fprintf(&b, "          - %s\n", yamlQuote(word))
		}
		if len(flags) == 0 {
			return strings.Replace(b.String(), "extraArgs:\n", "extraArgs: []\n", 1), nil
		}
	case "compose":
		fmt.Fprintf(&b, "# strategy %s; predicted by simulation\nservices:\n  vllm:\n", p.Strategy)
		fmt.Fprintf(&b, "    image: %s\n    ipc: host\n    ports:\n      - \"8000:8000\"\n    command:\n",
			composeQuote("vllm/vllm-openai:"+tag))
		for _, word := range append([]string{model}, flags...) {
			fmt.Fprintf(&b, "      - %s\n", composeQuote(word))
		}
		fmt.Fprintf(&b, "    deploy:\n      resources:\n        reservations:\n          devices:\n"+
			"            - driver: nvidia\n              count: %d\n              capabilities: [gpu]\n", gpus)
	default:
		return "", fmt.Errorf("export format %q is not known: expected %s", format, strings.Join(ExportFormats(), ", "))
	}
	return b.String(), nil
}

// shellQuote writes a word for a POSIX shell.
func shellQuote(word string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:=,+@%", r)
	}
	if word != "" && strings.TrimFunc(word, plain) == "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// yamlQuote writes a word as a JSON string, which is a YAML string too.
func yamlQuote(word string) string {
	text, err := json.Marshal(word)
	if err != nil { // a string always has a JSON form
		panic(err)
	}
	return string(text)
}

// yamlValue leaves plain numbers as they are and quotes the rest.
func yamlValue(word string) string {
	var n json.Number
	if json.Unmarshal([]byte(word), &n) == nil && word != "" && word[0] != '"' {
		return word
	}
	return yamlQuote(word)
}

// composeQuote is yamlQuote with the dollar doubled: Compose puts variables in its place.
func composeQuote(word string) string { return yamlQuote(strings.ReplaceAll(word, "$", "$$")) }
