package workload

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// simulate runs a schedule in virtual time; a request takes how long took says. It returns when each request was due
// and when it ended, and the order of sending.
func simulate(t *testing.T, w *Workload, took func(i int) time.Duration) (due, ended []time.Duration, order []int) {
	t.Helper()
	s := NewSchedule(w)
	due, ended = make([]time.Duration, len(w.Requests)), make([]time.Duration, len(w.Requests))
	sent := make([]bool, len(w.Requests))
	var flight []int
	now := time.Duration(0)
	for !s.Finished() {
		// What ends next; ends at a moment come before sends.
		first := -1
		for k, i := range flight {
			if first < 0 || ended[i] < ended[flight[first]] {
				first = k
			}
		}
		i, at, ok := s.Next()
		if j, again, same := s.Next(); i != j || at != again || ok != same {
			t.Fatal("Next changes something")
		}
		switch {
		case first >= 0 && (!ok || ended[flight[first]] <= at):
			now = ended[flight[first]]
			s.Done(flight[first], now)
			flight = slices.Delete(flight, first, first+1)
		case ok:
			if sent[i] {
				t.Fatalf("request %d was released twice", i)
			}
			if at < now {
				t.Fatalf("request %d is due at %v, in the past of %v", i, at, now)
			}
			now, sent[i], due[i], ended[i] = at, true, at, at+took(i)
			flight, order = append(flight, i), append(order, i)
			s.Pop()
		default:
			t.Fatalf("stalled after %d of %d requests", len(order), len(w.Requests))
		}
	}
	given := 0
	for i := range w.Requests {
		if s.Dropped(i) == sent[i] {
			t.Fatalf("request %d: sent %v and dropped %v", i, sent[i], s.Dropped(i))
		}
		if !s.Dropped(i) {
			given++
		}
	}
	if _, _, ok := s.Next(); ok || len(order) != given {
		t.Fatalf("%d of %d requests were sent, more to send: %v", len(order), given, ok)
	}
	return due, ended, order
}

// random makes a workload with waves, conversations and due times in any order.
func random(rng *rand.Rand) *Workload {
	w := &Workload{}
	if rng.IntN(2) == 0 {
		w.Concurrency = 1 + rng.IntN(6)
		w.Clients = rng.IntN(w.Concurrency + 1)
	}
	conversations := rng.IntN(2) == 0
	for i := range 1 + rng.IntN(40) {
		r := Request{Index: i, After: -1, Wave: 3 * rng.IntN(3), Prompt: []Segment{{1, 1}}, OutputTokens: 1,
			Due: time.Duration(rng.IntN(10)) * time.Second, Think: time.Duration(rng.IntN(4)) * time.Second}
		if before := rng.IntN(i + 1); conversations && before < i && w.Requests[before].Wave <= r.Wave {
			r.After = before
		}
		w.Requests = append(w.Requests, r)
	}
	return w
}

// The rules of the schedule, each checked on its own over random workloads.
func TestScheduleLaws(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	for trial := range 1000 {
		w := random(rng)
		if err := w.Validate(); err != nil {
			t.Fatal(err)
		}
		length := make([]time.Duration, len(w.Requests))
		for i := range length {
			length[i] = time.Duration(rng.IntN(8)) * time.Second
		}
		due, ended, order := simulate(t, w, func(i int) time.Duration { return length[i] })
		if problem := broken(w, due, ended, order); problem != "" {
			t.Fatalf("trial %d: %s\nconcurrency %d, clients %d\n%+v", trial, problem, w.Concurrency, w.Clients, w.Requests)
		}
	}
}

func broken(w *Workload, due, ended []time.Duration, order []int) string {
	n := len(w.Requests)
	begin := make(map[int]time.Duration) // of waves: the last end of the lower ones
	for i := range n {
		for j := range n {
			if w.Requests[j].Wave < w.Requests[i].Wave {
				begin[w.Requests[i].Wave] = max(begin[w.Requests[i].Wave], ended[j])
			}
		}
	}
	root, released := make([]int, n), make([]time.Duration, n) // by root: the end of its conversation
	for i := range n {
		r := &w.Requests[i]
		root[i] = i
		start := begin[r.Wave]
		if due[i] < start {
			return fmt.Sprintf("request %d is due at %v, wave %d begins at %v", i, due[i], r.Wave, start)
		}
		switch {
		case r.After >= 0 && w.Requests[r.After].Wave == r.Wave:
			root[i] = root[r.After]
			if due[i] != ended[r.After]+r.Think {
				return fmt.Sprintf("request %d is due at %v, %v after the end of %d at %v", i, due[i], r.Think, r.After,
					ended[r.After])
			}
		case w.Concurrency == 0 && r.After >= 0 && due[i] != start+r.Think, w.Concurrency == 0 && r.After < 0 &&
			due[i] != start+r.Due:
			return fmt.Sprintf("request %d is due at %v, its wave begins at %v", i, due[i], start)
		}
		released[root[i]] = max(released[root[i]], ended[i])
	}
	if w.Concurrency == 0 {
		return ""
	}
	// The closed loop. Conversations, dealt round-robin, are taken by each client in order of index, and a slot is never
	// empty while its client has more in this wave.
	clients := max(1, w.Clients)
	taken := make([][]int, clients)
	k := 0
	client := make([]int, n)
	for i := range n {
		if root[i] == i {
			client[i] = k % clients
			k++
		}
	}
	for _, i := range order {
		if root[i] == i {
			c := client[i]
			for _, j := range taken[c] {
				if w.Requests[j].Wave == w.Requests[i].Wave && j > i {
					return fmt.Sprintf("client %d sent request %d before %d", c, j, i)
				}
			}
			taken[c] = append(taken[c], i)
		}
	}
	for c, all := range taken {
		slots := w.Concurrency / clients
		if c < w.Concurrency%clients {
			slots++
		}
		for _, i := range all {
			before, same := 0, 0 // held slots just before and, i included, at due[i]
			for _, j := range all {
				if j != i && due[j] <= due[i] && due[i] < released[j] {
					same++
				}
				if due[j] < due[i] && due[i] <= released[j] {
					before++
				}
			}
			switch {
			case same+1 > slots && released[i] > due[i]:
				return fmt.Sprintf("client %d holds %d slots at %v, it has %d", c, same+1, due[i], slots)
			case due[i] > begin[w.Requests[i].Wave] && before < slots:
				return fmt.Sprintf("request %d waited until %v though client %d held %d of %d slots", i, due[i], c, before, slots)
			}
		}
	}
	return ""
}

// With a duration a schedule gives out what it would have given out without one, up to the deadline.
func TestDurationCutsTheEnd(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	cut := 0
	for range 500 {
		w := random(rng)
		w.Think = time.Duration(rng.IntN(3)) * 5 * time.Millisecond
		took := func(i int) time.Duration { return time.Duration(1+i*7%13) * time.Millisecond }
		due, _, order := simulate(t, w, took)
		begin := time.Duration(-1) // of the first wave with measured requests
		first := math.MaxInt
		for i := range w.Requests {
			if w.Requests[i].Phase == Measured {
				first = min(first, w.Requests[i].Wave)
			}
		}
		for _, i := range order { // the wave begins when the last request of the lower ones has ended
			if w.Requests[i].Wave < first {
				begin = max(begin, due[i]+took(i))
			}
		}
		limited := *w
		limited.Duration = time.Duration(1+rng.IntN(60)) * time.Millisecond
		deadline := max(begin, 0) + limited.Duration
		var want []int
		for _, i := range order {
			if due[i] < deadline {
				want = append(want, i)
			}
		}
		_, _, got := simulate(t, &limited, took)
		if !slices.Equal(got, want) {
			t.Fatalf("%d requests, deadline %v: sent %v, want %v; %+v", len(w.Requests), deadline, got, want, w)
		}
		if len(got) < len(order) {
			cut++
		}
	}
	if cut < 50 {
		t.Errorf("only %d of 500 schedules were cut", cut)
	}
}

func TestClosedLoopDealsRoundRobin(t *testing.T) {
	w := &Workload{Concurrency: 4, Clients: 2}
	for i := range 12 {
		w.Requests = append(w.Requests, Request{Index: i, After: -1, Prompt: []Segment{{1, 1}}, OutputTokens: 1})
	}
	// Requests of client 0 take 10 s, those of client 1 take 1 s.
	due, _, _ := simulate(t, w, func(i int) time.Duration { return time.Duration(10-9*(i%2)) * time.Second })
	for i, want := range []time.Duration{0, 0, 0, 0, 10, 1, 10, 1, 20, 2, 20, 2} {
		if due[i] != want*time.Second {
			t.Errorf("request %d is due at %v, want %v", i, due[i], want*time.Second)
		}
	}
}

func TestConversationHoldsItsSlot(t *testing.T) {
	w := &Workload{Concurrency: 1}
	for i := range 4 {
		r := Request{Index: i, After: -1, Prompt: []Segment{{1, 1}}, OutputTokens: 1}
		if i%2 == 1 {
			r.After, r.Think = i-1, 5*time.Second
		}
		w.Requests = append(w.Requests, r)
	}
	s := NewSchedule(w)
	due, _, _ := simulate(t, w, func(int) time.Duration { return time.Second })
	for i, want := range []time.Duration{0, 6, 7, 13} {
		if due[i] != want*time.Second || s.Intended(i) != (i%2 == 1) {
			t.Errorf("request %d is due at %v, intended %v: want %v", i, due[i], s.Intended(i), want*time.Second)
		}
	}
}

func TestScheduleDoesNotAllocate(t *testing.T) {
	w := &Workload{}
	for i := range 2000 {
		w.Requests = append(w.Requests, Request{Index: i, After: -1, Due: time.Duration(i), Prompt: []Segment{{1, 1}},
			OutputTokens: 1})
	}
	s := NewSchedule(w)
	if n := testing.AllocsPerRun(1000, func() {
		i, at, _ := s.Next()
		s.Pop()
		s.Done(i, at)
	}); n != 0 {
		t.Errorf("%v allocations per request of an open loop", n)
	}
}

func TestValidate(t *testing.T) {
	for want, edit := range map[string]func(w *Workload){
		"no requests":                    func(w *Workload) { w.Requests = nil },
		"at least one request in flight": func(w *Workload) { w.Concurrency, w.Clients = 2, 3 },
		"has index 3":                    func(w *Workload) { w.Requests[1].Index = 3 },
		"0 prompt and 1 output":          func(w *Workload) { w.Requests[1].Prompt = nil },
		"1 prompt and 0 output":          func(w *Workload) { w.Requests[1].OutputTokens = 0 },
		"empty prompt segment":           func(w *Workload) { w.Requests[1].Prompt = []Segment{{1, 1}, {2, 0}} },
		"shares 2 of 1":                  func(w *Workload) { w.Requests[1].SharedTokens = 2 },
		"waits for request 1":            func(w *Workload) { w.Requests[1].After = 1 },
		"wait for ever":                  func(w *Workload) { w.Requests[1].After, w.Requests[0].Wave = 0, 1 },
		"is due at -1ns":                 func(w *Workload) { w.Requests[1].Due = -1 },
	} {
		w := &Workload{Requests: []Request{
			{Index: 0, After: -1, Prompt: []Segment{{1, 1}}, OutputTokens: 1}, {Index: 1, After: -1, Prompt: []Segment{{1, 1}},
				OutputTokens: 1},
		}}
		if err := w.Validate(); err != nil {
			t.Fatal(err)
		}
		edit(w)
		if err := w.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

func BenchmarkScheduleOpenLoop(b *testing.B) {
	w := &Workload{Requests: make([]Request, 1<<16)}
	for i := range w.Requests {
		w.Requests[i] = Request{Index: i, After: -1, Due: time.Duration(i)}
	}
	s := NewSchedule(w)
	for b.Loop() {
		i, at, ok := s.Next()
		if !ok {
			s = NewSchedule(w)
			continue
		}
		s.Pop()
		s.Done(i, at)
	}
}
