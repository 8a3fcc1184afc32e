package sim

import (
	"cmp"
	"errors"
	"iter"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"kvtune/harness/workload"
)

func each(w *workload.Workload) iter.Seq2[workload.Request, error] {
	return func(yield func(workload.Request, error) bool) {
		for _, r := range w.Requests {
			if !yield(r, nil) {
				return
			}
		}
	}
}

func TestStreamIsRun(t *testing.T) {
	cfg := with(h200, func(c *Config) { c.NumGPUBlocks, c.MaxModelLen = 700, 4096 })
	w := poisson(300, 30, 500, 100, 9)
	for i := range w.Requests {
		if i%3 == 0 {
			w.Requests[i].SharedTokens = 160
			w.Requests[i].Prompt = []workload.Segment{{ID: 1 << 40, Tokens: 160}, {ID: uint64(i) + 1, Tokens: 340}}
		}
	}
	w.Requests[7].Prompt[0].Tokens = 5000 // refused
	for i := range w.Requests {           // a wave of 20 before the rest
		if w.Requests[i].Wave = 1; i < 20 {
			w.Requests[i].Wave, w.Requests[i].Due = 0, 0
		}
	}
	want, err := Run(t.Context(), cfg, h100ish, w, Options{Series: true})
	if err != nil {
		t.Fatal(err)
	}
	var m Runner
	for range 2 { // the second time in memory that was used
		var records []workload.Record
		got, err := m.Stream(t.Context(), cfg, h100ish, each(w), func(r *workload.Record) error {
			kept := *r
			kept.Tokens = slices.Clone(r.Tokens)
			if kept.Due != nil {
				due := *r.Due
				kept.Due = &due
			}
			if kept.CachedTokens != nil {
				cached := *r.CachedTokens
				kept.CachedTokens = &cached
			}
			records = append(records, kept)
			return nil
		}, Options{Series: true})
		if err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(records, func(a, b workload.Record) int { return cmp.Compare(a.Index, b.Index) })
		for i := range records {
			if len(records[i].Tokens) == 0 && len(want.Records[i].Tokens) == 0 {
				records[i].Tokens = want.Records[i].Tokens // nil or empty
			}
			if a, b := js(t, records[i]), js(t, want.Records[i]); a != b {
				t.Fatalf("record %d:\nstream %s\nrun    %s", i, a, b)
			}
		}
		all := *got
		if all.Records = want.Records; len(records) != len(want.Records) || !reflect.DeepEqual(&all, want) {
			t.Errorf("%d records of %d, or another outcome", len(records), len(want.Records))
		}
		if got.Counters["vllm:prefix_cache_hits_total"] == 0 || got.Counters["vllm:num_preemptions_total"] == 0 {
			t.Error("no hit or no preemption: the case shows too little")
		}
	}
}

func TestStreamStops(t *testing.T) {
	broken := errors.New("the file ends")
	prompt := []workload.Segment{{ID: 1, Tokens: 8}}
	nothing := func(*workload.Record) error { return nil }
	for name, c := range map[string]struct {
		requests []workload.Request
		err      error
		done     func(*workload.Record) error
	}{
		"the file ends": {nil, broken, nothing},
		"before the one before it": {[]workload.Request{{After: -1, Due: time.Second, Prompt: prompt, OutputTokens: 1},
			{After: -1, Prompt: prompt, OutputTokens: 1}}, nil, nothing},
		"waits for request 0":  {[]workload.Request{{After: 0, Prompt: prompt, OutputTokens: 1}}, nil, nothing},
		"0 prompt and 1 outpu": {[]workload.Request{{After: -1, OutputTokens: 1}}, nil, nothing},
		"the disk is full": {[]workload.Request{{After: -1, Prompt: prompt, OutputTokens: 1}}, nil,
			func(*workload.Record) error { return errors.New("the disk is full") }},
	} {
		_, err := new(Runner).Stream(t.Context(), small, tick{}, func(yield func(workload.Request, error) bool) {
			for _, r := range c.requests {
				if !yield(r, nil) {
					return
				}
			}
			if c.err != nil {
				yield(workload.Request{}, c.err)
			}
		}, c.done, Options{})
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The API server refuses what is beyond its limits, and takes requests again when others have ended.
func TestAdmissionLimits(t *testing.T) {
	w := requests(ask{prompt: 10, output: 5}, ask{prompt: 10, output: 5}, ask{prompt: 10, output: 5},
		ask{ms: 50, prompt: 10, output: 5})
	for name, change := range map[string]func(*Config){
		"max_num_queued_reqs":   func(c *Config) { c.MaxNumQueuedReqs = 2 },
		"max_num_queued_tokens": func(c *Config) { c.MaxNumQueuedTokens = 15 },
	} {
		out := mustRun(t, with(small, change), tick{}, w)
		for i, r := range out.Records {
			if refused := strings.Contains(r.Error, "503") && strings.Contains(r.Error, name); refused != (i == 2) {
				t.Errorf("%s, request %d: %q", name, i, r.Error)
			}
		}
	}
}

func TestEndsKeepsFirstAndLast(t *testing.T) {
	w := poisson(100, 30, 500, 100, 9)
	full := mustRun(t, h200, h100ish, w)
	out, err := Run(t.Context(), h200, h100ish, w, Options{Ends: true})
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range out.Records {
		all := full.Records[i].Tokens
		if want := []workload.TokenEvent{all[0], all[len(all)-1]}; !slices.Equal(r.Tokens, want) {
			t.Fatalf("request %d: %v, want %v", i, r.Tokens, want)
		}
	}
}

// Runs in memory that was used before allocate next to nothing.
func TestARunnerReusesItsMemory(t *testing.T) {
	w := poisson(500, 20, 500, 100, 1)
	var m Runner
	allocs := testing.AllocsPerRun(5, func() {
		if _, err := m.Run(t.Context(), h200, h100ish, w, Options{Ends: true}); err != nil {
			t.Fatal(err)
		}
	})
	if allocs > 100 {
		t.Errorf("%g allocations in a run of 500 requests", allocs)
	}
}
