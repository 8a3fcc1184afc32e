package workload

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func built(t *testing.T, s Spec) *Workload {
	t.Helper()
	s.NumMeasurements = max(1, s.NumMeasurements)
	w, err := s.Build()
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// TestShardsAreTheWhole: the shards have each request of the workload once, with its moment, its prompt, and in its
// record its index and the names of its blocks; every n-th arrival belongs to one shard.
func TestShardsAreTheWhole(t *testing.T) {
	base := Spec{C: 40, M: 2, B: 8, BlockSize: 16, OutputLen: "4:9", Prefix: "groups=3", NumWarmup: 1, NumRequests: 50,
		Seed: 3}
	open, closed, talk, timed := base, base, base, base
	open.Rate = "20"
	closed.Concurrency, closed.Clients, closed.ThinkTime = 11, 4, time.Second
	talk.Users, talk.Turns, talk.NumRequests, talk.ThinkTime = 9, 3, 0, time.Second
	timed.Rate, timed.Duration, timed.NumRequests = "30", 2*time.Second, 0
	for name, spec := range map[string]Spec{"open": open, "closed": closed, "conversations": talk, "duration": timed} {
		w := built(t, spec)
		want := w.NewRecords(16)
		for _, n := range []int{2, 3, 7} {
			got := make([]*Record, len(want))
			inFlight, arrivals := 0, 0
			for i := range n {
				s, err := w.Shard(i, n, false)
				if err != nil {
					t.Fatalf("%s %d/%d: %v", name, i, n, err)
				}
				if err := s.Validate(); err != nil {
					t.Fatalf("%s %d/%d: %v", name, i, n, err)
				}
				records := s.NewRecords(16)
				for k := range s.Requests {
					r, rec := s.Requests[k], records[k]
					if got[rec.Index] != nil {
						t.Fatalf("%s: request %d is there twice", name, rec.Index)
					}
					got[rec.Index] = &rec
					whole := w.Requests[rec.Index]
					if r.After >= 0 && w.Requests[whole.After].Session != s.Requests[r.After].Session {
						t.Errorf("%s: request %d waits for another conversation", name, rec.Index)
					}
					r.Index, r.After = whole.Index, whole.After
					if !reflect.DeepEqual(r, whole) {
						t.Errorf("%s: request %d is %+v, want %+v", name, rec.Index, r, whole)
					}
				}
				inFlight += s.Concurrency
				if name == "open" {
					for k := range records {
						if records[k].Phase == Measured && (records[k].Index-want[len(want)-50].Index)%n != i {
							t.Errorf("arrival %d is shard %d's of %d", records[k].Index, i, n)
						}
					}
					arrivals += len(records)
				}
			}
			for k, rec := range got {
				if rec == nil || !reflect.DeepEqual(*rec, want[k]) {
					t.Fatalf("%s, %d shards: record %d is %+v, want %+v", name, n, k, rec, want[k])
				}
			}
			if inFlight != w.Concurrency {
				t.Errorf("%s: %d shards have %d in flight, want %d", name, n, inFlight, w.Concurrency)
			}
		}
	}
}

// TestShardAlone: shards that do not begin together prime for themselves.
func TestShardAlone(t *testing.T) {
	w := built(t, Spec{C: 40, M: 2, B: 8, BlockSize: 16, OutputLen: "4", Prefix: "groups=3", Rate: "5", NumRequests: 9,
		Seed: 3})
	for i := range 3 {
		s, err := w.Shard(i, 3, true)
		if err != nil {
			t.Fatal(err)
		}
		primes := 0
		for _, r := range s.Requests {
			if r.Phase == Prime {
				primes++
			}
		}
		if primes != 3 {
			t.Errorf("shard %d primes %d of 3 prefixes", i, primes)
		}
	}
}

func TestShardRefuses(t *testing.T) {
	for _, tt := range []struct {
		spec Spec
		n    int
		err  string
	}{
		{Spec{C: 9, B: 4, OutputLen: "2", Type: "decode", NumMeasurements: 3}, 2, "its batches wait for one another"},
		{Spec{C: 9, B: 4, OutputLen: "2", Concurrency: 2, NumRequests: 8},
			3, "2 requests in flight does not divide into 3 shards"},
		{Spec{C: 9, B: 4, OutputLen: "2", Rate: "3", NumRequests: 2},
			3, "2 measured requests or conversations do not divide into 3"},
	} {
		w := built(t, tt.spec)
		if _, err := w.Shard(0, tt.n, false); err == nil || !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%v, want %q", err, tt.err)
		}
	}
	w := built(t, Spec{C: 9, B: 4, OutputLen: "2", Rate: "3", NumRequests: 9})
	for _, i := range []int{-1, 3} {
		if _, err := w.Shard(i, 3, false); err == nil {
			t.Errorf("shard %d of 3 was made", i)
		}
	}
}

// TestHold: the first wave with measured requests begins at its time, or when what goes before has ended, if that is
// later; shards of an open loop are due at the moments of the whole.
func TestHold(t *testing.T) {
	w := built(t, Spec{C: 9, M: 1, BlockSize: 16, B: 2, OutputLen: "2", Prefix: "shared", Rate: "10", NumRequests: 6,
		Seed: 1})
	moments := func(w *Workload, primed time.Duration) []string {
		s := NewSchedule(w)
		if _, ok := s.Begin(); ok && w.Requests[0].Phase == Prime {
			t.Error("it has begun before anything was sent")
		}
		var due []string
		for {
			i, at, ok := s.Next()
			if !ok {
				break
			}
			s.Pop()
			if w.Requests[i].Phase == Prime {
				s.Done(i, primed)
				continue
			}
			due = append(due, at.String())
		}
		begin, ok := s.Begin()
		if want := max(primed, w.Hold); !ok || begin != want {
			t.Errorf("begun at %v, want %v", begin, want)
		}
		return due
	}
	w.Hold = 3 * time.Second
	whole := moments(w, time.Second)
	if fmt.Sprint(whole) == fmt.Sprint(moments(w, 4*time.Second)) {
		t.Error("late priming does not delay what follows")
	}
	var shards []string
	for i := range 2 {
		s, err := w.Shard(i, 2, true)
		if err != nil {
			t.Fatal(err)
		}
		shards = append(shards, moments(s, time.Duration(i+1)*time.Second)...)
	}
	slices.Sort(whole)
	slices.Sort(shards)
	if !slices.Equal(whole, shards) {
		t.Errorf("shards are due at %v, the whole at %v", shards, whole)
	}
}
