package sim

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kvtune/harness"
)

// recording is a line that testdata/vllm_steps.py wrote: what a real vLLM's iteration log said.
type recording struct {
	Name     string             `json:"name"`
	VLLM     string             `json:"vllm"`
	Args     harness.EngineArgs `json:"args"`
	Requests []struct {
		Prompt    [][2]int `json:"prompt"`
		MaxTokens int      `json:"max_tokens"`
		At        int      `json:"at"`
		Priority  int      `json:"priority"`
		After     int      `json:"after"`
	} `json:"requests"`
	// Steps holds context requests and tokens, generation requests and tokens, KV cache usage in percent.
	Steps [][5]float64 `json:"steps"`
}

func readRecordings(t *testing.T, data []byte) []recording {
	t.Helper()
	var all []recording
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r recording
		decoder := json.NewDecoder(bytes.NewReader(lines.Bytes()))
		decoder.DisallowUnknownFields() // an argument that is not replayed would go unnoticed
		if err := decoder.Decode(&r); err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

// config is the recorded engine: everything else is vLLM's default, on the CPU.
func (r *recording) config(t *testing.T) Config {
	t.Helper()
	off := false
	r.Args.AsyncScheduling = &off // the CPU platform has none
	c, err := FromArgs(r.Args, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(r.VLLM, "0.%d.", &c.Release); err != nil {
		t.Fatalf("vLLM version %q: %v", r.VLLM, err)
	}
	return c
}

// replay gives the scheduler the same requests before the same steps and says what the iteration log would.
func (r *recording) replay(t *testing.T) (steps [][5]float64, stats Stats) {
	t.Helper()
	s, err := New(r.config(t))
	if err != nil {
		t.Fatal(err)
	}
	contents := make([][][2]int, len(r.Requests)) // prompt as runs of (segment, tokens)
	outputs := make([]int, len(r.Requests))       // tokens so far
	added, ended := 0, map[int]bool{-1: true}
	isAdded := make([]bool, len(r.Requests))
	for k := 0; len(ended) <= len(r.Requests); k++ {
		for i, q := range r.Requests {
			if isAdded[i] || !ended[q.After] || q.At > k {
				continue
			}
			isAdded[i] = true
			if q.After >= 0 {
				before := [2]int{2000 + q.After, r.Requests[q.After].MaxTokens}
				contents[i] = append(slices.Clone(contents[q.After]), before)
			}
			contents[i] = append(contents[i], q.Prompt...)
			tokens := 0
			for _, run := range contents[i] {
				tokens += run[1]
			}
			err := s.Add(Request{ID: i, PromptTokens: tokens, MaxTokens: q.MaxTokens, Priority: q.Priority,
				Arrival: time.Duration(i),
				Hashes:  chain(s.cfg.BlockSize, append(slices.Clone(contents[i]), [2]int{2000 + i, q.MaxTokens})...)})
			if err != nil {
				t.Fatal(err)
			}
			added++
		}
		b := s.Schedule()
		var step [5]float64
		for _, it := range b.Items {
			// vLLM calls a request context until it has a token, and generation ever after, also while its prompt is computed
			// again (vllm/v1/utils.py, compute_iteration_details).
			at := 0
			if outputs[it.ID] > 0 {
				at = 2
			}
			step[at]++
			step[at+1] += float64(it.Tokens)
		}
		computes := len(b.Items) > 0
		for _, e := range s.Update(b) {
			outputs[e.ID] = e.Output
			if e.Finished {
				ended[e.ID] = true
			}
		}
		if step[4] = round1(100 * s.Usage()); computes {
			steps = append(steps, step)
		}
		if k > 10_000 {
			t.Fatalf("%d of %d requests have ended after %d steps", len(ended)-1, len(r.Requests), k)
		}
	}
	return steps, s.Stats()
}

// round1 rounds to one decimal as Python prints it.
func round1(x float64) (y float64) {
	_, _ = fmt.Sscan(fmt.Sprintf("%.1f", x), &y)
	return y
}

func (r *recording) compare(t *testing.T) Stats {
	t.Helper()
	got, stats := r.replay(t)
	if diff := cmp.Diff(r.Steps, got); diff != "" {
		t.Errorf("%s, %d steps: -vLLM %s +simulated\n%s", r.Name, len(r.Steps), r.VLLM, diff)
	}
	return stats
}

func TestStepsOfARealVLLM(t *testing.T) {
	data, err := os.ReadFile("testdata/vllm_steps.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	all := readRecordings(t, data)
	sizes, steps, total := map[int]bool{}, 0, Stats{}
	for i := range all {
		t.Run(all[i].Name, func(t *testing.T) {
			stats := all[i].compare(t)
			total.Preemptions += stats.Preemptions
			total.PrefixHits += stats.PrefixHits
		})
		sizes[all[i].Args.BlockSize] = true
		steps += len(all[i].Steps)
	}
	if len(all) < 12 || len(sizes) < 4 || steps < 1000 || total.Preemptions < 20 || total.PrefixHits < 1000 {
		t.Errorf("%d cases, %d block sizes, %d steps, %+v: too few to show anything", len(all), len(sizes), steps, total)
	}
}
