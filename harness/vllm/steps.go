package vllm

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"regexp"
	"strconv"
	"time"

	"kvtune/harness"
)

// StepsFlag makes a vLLM log every engine step; all versions from 0.18 on have it.
const StepsFlag = "--enable-logging-iteration-details"

// CachedFlag makes a vLLM tell of every request how many prompt tokens its prefix cache held; all versions from 0.18 on
// have it (vllm/entrypoints/openai/cli_args.py).
const CachedFlag = "--enable-prompt-tokens-details"

// iteration is the line that [StepsFlag] gives for a step (vLLM 0.18 to 0.33; vllm/v1/metrics/loggers.py, before 0.26
// vllm/v1/engine/core.py without the KV cache's usage). Its time stamp has whole seconds, which no step has.
var iteration = regexp.MustCompile(`Iteration\((\d+)\): (\d+) context requests, (\d+) context tokens, ` +
	`(\d+) generation requests, (\d+) generation tokens, iteration elapsed time: ([\d.]+) ms( \(dummy\))?` +
	`(?:, \w+ KV cache usage: ([\d.]+)%)?`)

// ParseSteps finds the engine steps in a server's log. T, Running, Waiting and Preemptions stay unknown, which are not
// in it; Elapsed is how long the engine core waited for the step's result: the step's time without asynchronous
// scheduling, and with it, where the engine waits for the step before, nothing that a step's time could be told from.
// Steps of idle data-parallel ranks ("dummy") are left out.
func ParseSteps(r io.Reader) ([]harness.StepRecord, error) {
	var steps []harness.StepRecord
	lines := bufio.NewReaderSize(r, 1<<16)
	for {
		line, err := lines.ReadSlice('\n')
		if m := iteration.FindSubmatch(line); m != nil && m[7] == nil {
			steps = append(steps, stepOf(m))
		}
		switch {
		case err == io.EOF:
			return steps, nil
		case err != nil && !errors.Is(err, bufio.ErrBufferFull): // a long line in pieces is no step
			return steps, err
		}
	}
}

func stepOf(m [][]byte) harness.StepRecord {
	count := func(text []byte) int {
		n, err := strconv.Atoi(string(text))
		if err != nil {
			return 0 // beyond int: no number of tokens
		}
		return n
	}
	number := func(text []byte) float64 {
		v, err := strconv.ParseFloat(string(text), 64)
		if err != nil || v > 1e9 {
			return -1
		}
		return v
	}
	s := harness.StepRecord{
		T: -1, ContextRequests: count(m[2]), ContextTokens: count(m[3]), GenerationRequests: count(m[4]),
		GenerationTokens: count(m[5]), Elapsed: time.Duration(max(0, number(m[6])) * 1e6), KVUsage: -1, Running: -1,
		Waiting: -1, Preemptions: -1,
	}
	if len(m[8]) > 0 {
		if u := number(m[8]); u >= 0 && u <= 100 {
			s.KVUsage = u / 100
		}
	}
	return s
}

// Steps are the engine steps that the server has logged since the last call, for a server started with [StepsFlag];
// none otherwise. A step is logged when it has ended, and a line that is still being written comes with the next call.
func (p *Process) Steps() ([]harness.StepRecord, error) {
	f, err := os.Open(p.log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := f.Seek(p.seen, io.SeekStart); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	whole := bytes.LastIndexByte(text, '\n') + 1
	p.seen += int64(whole)
	return ParseSteps(bytes.NewReader(text[:whole]))
}
