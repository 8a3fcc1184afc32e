package planner

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"kvtune/harness/workload"
)

// A resampled recording is a valid workload of the same size whose requests are all of the recording; over many draws
// the mean length and the rate are the recording's; a shared prefix stays shared and nothing else becomes so.
func TestResample(t *testing.T) {
	const shared = 512
	w, err := load(200, shared, 400, 50, 40*time.Millisecond, 0)(1)
	if err != nil {
		t.Fatal(err)
	}
	lengths := map[int]bool{}
	mean, last := 0.0, w.Requests[len(w.Requests)-1].Due.Seconds()
	for i := range w.Requests {
		lengths[w.Requests[i].PromptTokens()] = true
		mean += float64(w.Requests[i].PromptTokens()) / float64(len(w.Requests))
	}
	rng := rand.New(rand.NewPCG(1, 1))
	sum, times, differ := 0.0, 0.0, false
	const draws = 200
	for range draws {
		r := resample(w, rng)
		if err := r.Validate(); err != nil {
			t.Fatal(err)
		}
		if len(r.Requests) != len(w.Requests) {
			t.Fatalf("%d requests of %d", len(r.Requests), len(w.Requests))
		}
		seen := map[uint64]bool{}
		for i := range r.Requests {
			q := &r.Requests[i]
			if q.Prompt[0].ID != 1 || q.Prompt[0].Tokens != shared {
				t.Fatalf("the shared prefix is %+v", q.Prompt[0])
			}
			if !lengths[q.PromptTokens()] || seen[q.Prompt[1].ID] {
				t.Fatalf("request %d: %+v", i, q)
			}
			seen[q.Prompt[1].ID] = true
			sum += float64(q.PromptTokens()) / draws / float64(len(r.Requests))
		}
		end := r.Requests[len(r.Requests)-1].Due.Seconds()
		times, differ = times+end/draws, differ || end != last
	}
	if math.Abs(sum/mean-1) > 0.02 || math.Abs(times/last-1) > 0.03 || !differ {
		t.Errorf("mean prompt %.1f of %.1f, duration %.3f of %.3f s", sum, mean, times, last)
	}
}

func TestResampleKeepsConversationsWhole(t *testing.T) {
	w, err := workload.Spec{C: 64, B: 1, OutputLen: "16", Users: 4, Turns: 3, NumRequests: 60}.Build()
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(2, 1))
	for range 20 {
		r := resample(w, rng)
		if err := r.Validate(); err != nil {
			t.Fatal(err)
		}
		for i := range r.Requests {
			if q := &r.Requests[i]; q.After >= 0 {
				before := &r.Requests[q.After]
				n := len(before.Prompt)
				if q.Session != before.Session || q.Turn != before.Turn+1 || q.Prompt[n-1] != before.Prompt[n-1] ||
					q.Prompt[n].ID != before.OutputID {
					t.Fatalf("turn %+v does not continue %+v", q, before)
				}
			}
		}
	}
}
