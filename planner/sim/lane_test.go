package sim

import (
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"kvtune/harness/workload"
	"kvtune/planner/cost"
)

// randomWorkload has all that decides a schedule: bursts, shared prefixes, conversations, waves, priorities.
func randomWorkload(rng *rand.Rand, cfg Config) *workload.Workload {
	w := &workload.Workload{}
	if rng.IntN(4) == 0 {
		w.Concurrency = 1 + rng.IntN(20)
		w.Clients = 1 + rng.IntN(min(3, w.Concurrency))
	}
	due, wave := time.Duration(0), 0
	for i := range 10 + rng.IntN(60) {
		if rng.IntN(3) > 0 {
			due += time.Duration(rng.IntN(20)) * time.Millisecond
		}
		if rng.IntN(40) == 0 {
			due, wave = 0, wave+1
		}
		r := workload.Request{Index: i, After: -1, Due: due, Wave: wave, Priority: rng.IntN(3)}
		room := cfg.MaxModelLen - 1
		if before := i - 1 - rng.IntN(4); before >= 0 && rng.IntN(4) == 0 && w.Requests[before].Wave == wave {
			q := &w.Requests[before]
			if n := q.PromptTokens() + q.OutputTokens; n < room {
				if q.OutputID == 0 {
					q.OutputID = uint64(5000 + before)
				}
				r.After, r.Due, r.Think = before, 0, time.Duration(rng.IntN(9))*time.Millisecond
				r.Prompt = append(append(r.Prompt, q.Prompt...), workload.Segment{ID: q.OutputID, Tokens: q.OutputTokens})
				room -= n
			}
		} else if g := rng.IntN(4); g > 0 {
			r.Prompt = append(r.Prompt, workload.Segment{ID: uint64(g), Tokens: min(room-1, g*3*cfg.BlockSize/2)})
			room -= r.Prompt[0].Tokens
		}
		if own := rng.IntN(room); own > 0 || len(r.Prompt) == 0 {
			r.Prompt = append(r.Prompt, workload.Segment{ID: uint64(100 + i), Tokens: own + 1})
		}
		r.OutputTokens = 1 + rng.IntN(max(1, cfg.MaxModelLen-r.PromptTokens()))
		w.Requests = append(w.Requests, r)
	}
	return w
}

// What the lane gives is what deciding every step request by request gives, to the last byte, in fresh memory or in
// memory that was used before.
func TestTheLaneChangesNothing(t *testing.T) {
	var again Runner
	joined, preemptions := 0, 0.0
	for seed := range uint64(500) {
		rng := rand.New(rand.NewPCG(seed, 3))
		cfg := randomConfig(rng)
		cfg.StreamInterval = 1 + rng.IntN(3)*rng.IntN(2)
		some := func() time.Duration { return time.Duration(rng.IntN(3)*rng.IntN(500)) * time.Microsecond }
		cfg.FrontEnd = cost.FrontEnd{Handle: some(), PromptToken: some() / 1000, Token: some(), Event: some() / 10}
		cfg.FrontEnd.Request = cfg.FrontEnd.Handle + some()
		if rng.IntN(5) == 0 {
			cfg.MaxNumQueuedReqs = 1 + rng.IntN(20)
		}
		if rng.IntN(5) == 0 {
			cfg.MaxNumActiveSeqs = 1 + rng.IntN(cfg.MaxNumSeqs)
		}
		if rng.IntN(5) == 0 && cfg.EnableChunkedPrefill {
			cfg.MaxNumScheduledTokens = 1 + rng.IntN(cfg.MaxNumBatchedTokens)
		}
		w := randomWorkload(rng, cfg)
		if err := w.Validate(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		opt := Options{Steps: true, Series: true, Ends: rng.IntN(4) == 0}
		timer := linear{1e-3, 1e-5, 1e-5, 1e-7}
		got, err := again.Run(t.Context(), cfg, timer, w, opt)
		if err != nil && !cfg.ReserveFullISL && strings.Contains(err.Error(), "preempt each other for ever") {
			continue
		}
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		joined += int(again.scheduler.lane.seqs)
		preemptions += got.Counters["vllm:num_preemptions_total"]
		opt.itemized = true
		want, err := new(Runner).Run(t.Context(), cfg, timer, w, opt)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if !reflect.DeepEqual(got, want) {
			for i := range want.Steps {
				if i < len(got.Steps) && got.Steps[i] != want.Steps[i] {
					t.Errorf("step %d:\nlane %+v\nwant %+v", i, got.Steps[i], want.Steps[i])
					break
				}
			}
			for i := range want.Records {
				if a, b := js(t, got.Records[i]), js(t, want.Records[i]); a != b {
					t.Errorf("record %d:\nlane %s\nwant %s", i, a, b)
					break
				}
			}
			t.Fatalf("seed %d: %+v\nthe lane gives another outcome", seed, cfg)
		}
	}
	if joined < 4000 || preemptions < 300 {
		t.Errorf("%d joined, %g preemptions: too few to show anything", joined, preemptions)
	}
}

func js(t *testing.T, x any) string {
	t.Helper()
	b, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
