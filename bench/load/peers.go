package main

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
)

// peer is another load generator.
type peer struct {
	tool, program string
	version       []string // what prints its version
	argv          func(l *scenario, dir, tokenizer string) []string
	result        string // the file with its requests, in the folder where it runs
}

func itoa(n int) string { return strconv.Itoa(n) }

// versionOf is the first version number that a program prints.
func versionOf(argv []string) string {
	out, _ := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	return string(regexp.MustCompile(`\d+\.\d+\.\d+`).Find(out))
}

func vllmBench(l *scenario, _, tokenizer string) []string {
	argv := []string{"bench", "serve", "--backend", "openai", "--base-url", "http://" + address, "--model", l.model(),
		"--tokenizer", tokenizer, "--dataset-name", "random", "--random-input-len", "16", "--random-output-len", itoa(tokens),
		"--num-prompts", itoa(l.requests), "--ignore-eos", "--save-result", "--save-detailed", "--result-filename",
		"vllm.json", "--disable-tqdm"}
	if l.rate > 0 {
		return append(argv, "--request-rate", itoa(l.rate))
	}
	return append(argv, "--max-concurrency", itoa(l.concurrency))
}

func guidellm(l *scenario, _, tokenizer string) []string {
	profile := fmt.Sprintf("kind=poisson,rate=%d", l.rate)
	if l.rate == 0 {
		profile = fmt.Sprintf("kind=concurrent,streams=%d", l.concurrency)
	}
	return []string{"run", "--backend", "kind=openai_http,target=http://" + address + ",model=" + l.model(),
		"--profile", profile, "--constraint", fmt.Sprintf("kind=max_requests,count=%d", l.requests),
		"--tokenizer", "kind=hf_auto,model=" + tokenizer, "--data",
		fmt.Sprintf("kind=synthetic_text,prompt_tokens=16,output_tokens=%d", tokens),
		"--output", "kind=json,path=guidellm.json", "--disable-console"}
}

func aiperf(l *scenario, dir, tokenizer string) []string {
	argv := []string{"profile", "-m", l.model(), "--url", "http://" + address, "--endpoint-type", "completions",
		"--streaming", "--tokenizer", tokenizer, "--request-count", itoa(l.requests), "--isl", "16", "--osl", itoa(tokens),
		"--extra-inputs", "ignore_eos:true", "--artifact-dir", filepath.Join(dir, "aiperf"), "--ui", "none"}
	if l.rate > 0 {
		return append(argv, "--request-rate", itoa(l.rate))
	}
	return append(argv, "--concurrency", itoa(l.concurrency))
}
