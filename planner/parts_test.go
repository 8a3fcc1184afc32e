package planner

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"kvtune/harness"
	"kvtune/harness/workload"
)

// talks are conversations of users that begin at once, turn by turn with fresh tokens behind what was said; grouped
// says that a conversation's turns stand side by side, as kvtune makes them, and not by turn, as in a trace.
func talks(users, turns, fresh, output int, grouped bool) func(uint64) (*workload.Workload, error) {
	return func(seed uint64) (*workload.Workload, error) {
		rng := rand.New(rand.NewPCG(seed, 2))
		w := &workload.Workload{BlockSize: 16, Concurrency: users}
		latest := make([]int, users)
		for k := range users * turns {
			user, turn := k%users, k/users
			if grouped {
				user, turn = k/turns, k%turns
			}
			r := workload.Request{Index: k, After: -1, OutputTokens: output/2 + rng.IntN(output), Turn: turn,
				OutputID: uint64(1_000_000 + k)}
			if turn > 0 {
				before := &w.Requests[latest[user]]
				r.After = before.Index
				r.Prompt = append(r.Prompt, before.Prompt...)
				r.Prompt = append(r.Prompt, workload.Segment{ID: before.OutputID, Tokens: before.OutputTokens})
			}
			r.SharedTokens = r.PromptTokens()
			r.Prompt = append(r.Prompt, workload.Segment{ID: uint64(1000 + k), Tokens: fresh})
			w.Requests = append(w.Requests, r)
			latest[user] = k
		}
		return w, w.Validate()
	}
}

func TestTelling(t *testing.T) {
	for name, tt := range map[string]struct {
		work     func(uint64) (*workload.Workload, error)
		n        int
		inFlight int
		want     int
	}{
		"an open loop":                    {load(100, 0, 100, 10, time.Second, 0), 24, 3, 24},
		"a closed loop":                   {load(100, 0, 100, 10, 0, 20), 24, 20, 40},
		"fewer than twice what it has":    {load(100, 0, 100, 10, 0, 64), 24, 64, 100},
		"all users at once":               {talks(10, 6, 50, 20, true), 24, 10, 55},  // the last one has begun
		"the same in a trace":             {talks(10, 6, 50, 20, false), 24, 10, 55}, // half of them are whole
		"a few of many users":             {talks(40, 6, 50, 20, true), 24, 3, 31},   // the sixth has begun
		"no more than there are requests": {load(10, 0, 100, 10, 0, 20), 24, 20, 10},
	} {
		w, err := tt.work(1)
		if err != nil {
			t.Fatal(err)
		}
		if got := telling(w, tt.n, tt.inFlight); got != tt.want {
			t.Errorf("%s: %d, want %d", name, got, tt.want)
		}
	}
}

// Forty users of whom the first few requests hold two: for them every KV cache is large enough, and the smaller ones
// were taken for as good as those that hold what forty say.
func TestHalvingOfConversations(t *testing.T) {
	req := request(t, talks(40, 8, 1800, 100, true))
	req.Current = harness.EngineArgs{MaxNumSeqs: 64, MaxNumBatchedTokens: 8192, GPUMemoryUtilization: 0.4}
	req.Fixed.MaxNumSeqs = 64
	req.Strategies = []Strategy{Throughput}
	memory := Axis{Flag: "gpu_memory_utilization"}
	for i := range 20 {
		memory.Values = append(memory.Values, fmt.Sprint(0.41+0.02*float64(i)))
	}
	best := func(budget int) (float64, Search) {
		req.Options = Options{Replicas: 2, Budget: budget, Axes: []Axis{memory}}
		plans := mustMake(t, req)
		v, ok := plans.Plans[0].Predicted.Value(harness.MetricTotalThroughput, "")
		if !ok {
			t.Fatal("no throughput")
		}
		return v, plans.Search
	}
	all, _ := best(1 << 40)
	got, search := best(3_000)
	if got < 0.99*all {
		t.Errorf("%.0f token/s of %.0f that the whole grid has: %s", got, all, search.Statement)
	}
	if search.Exhaustive {
		t.Errorf("%s: the case shows nothing", search.Statement)
	}
}
