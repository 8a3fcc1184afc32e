package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// order takes all free blocks and says what each was: the hash of a registered one, . for others.
func (p *pool) order() string {
	s := ""
	for p.free > 0 {
		first := p.nodes[0].next
		if p.returned+p.fresh > 0 || p.nodes[first].run > 0 {
			s += "."
		} else {
			s += fmt.Sprint(p.nodes[first].hash)
		}
		p.take(1)
	}
	return s
}

func TestFreeQueueOrder(t *testing.T) {
	for _, c := range []struct {
		name string
		fifo bool
		want string
	}{
		{"blocks without a hash are used next, hashed ones last, later ones first", false, ".21."},
		{"before 0.24 all went to the tail", true, "21.."},
	} {
		var p pool
		p.reset(5, c.fifo)
		p.take(4)
		p.release([]int32{p.register(1), p.register(2)}, 0, 0)
		p.release(nil, 1, 1) // a full block of private content, and one that is not full
		if got := p.order(); got != c.want {
			t.Errorf("%s: free queue %s, want %s", c.name, got, c.want)
		}
		if p.find(1)+p.find(2) != 0 {
			t.Errorf("%s: an evicted block is found", c.name)
		}
	}
}

func TestIndexAgainstAMap(t *testing.T) {
	const n = 600
	rng := rand.New(rand.NewPCG(1, 1))
	var p pool
	p.reset(n, false)
	var all []int32
	model := map[uint64][]int32{}
	for range 50_000 {
		if len(all) == n-1 || len(all) > 0 && rng.IntN(2) == 0 {
			k := rng.IntN(len(all))
			b := all[k]
			all = slices.Delete(all, k, k+1)
			p.forget(b)
			p.spare = append(p.spare, b)
			hash := p.nodes[b].hash
			model[hash] = slices.DeleteFunc(model[hash], func(x int32) bool { return x == b })
		} else {
			hash := uint64(rng.IntN(400)) // so that some are registered twice
			b := p.register(hash)
			all = append(all, b)
			model[hash] = append(model[hash], b)
		}
		hash := uint64(rng.IntN(400))
		want := int32(0)
		if list := model[hash]; len(list) > 0 {
			want = list[0]
		}
		if got := p.find(hash); got != want {
			t.Fatalf("hash %d: block %d, want %d, the first registered", hash, got, want)
		}
	}
}

// The request with the worst priority runs first in the list and preempts itself: from 0.33 on the others of the step
// are still served.
func TestWhoPreemptsItselfByRelease(t *testing.T) {
	for release, items := range map[int]int{32: 0, 33: 1} {
		s, err := New(with(small, func(c *Config) {
			c.NumGPUBlocks, c.MaxModelLen, c.Priority, c.Release = 6, 20, true, release
		}))
		if err != nil {
			t.Fatal(err)
		}
		for i, prompt := range []int{6, 8} {
			// The second comes later, so that the first is admitted before it.
			err := s.Add(Request{ID: i, PromptTokens: prompt, MaxTokens: 5, Priority: 5 - 5*i, Arrival: time.Duration(i)})
			if err != nil {
				t.Fatal(err)
			}
			s.Update(s.Schedule())
		}
		var b *Batch
		for b = s.Schedule(); len(b.Preempted) == 0; b = s.Schedule() {
			s.Update(b)
		}
		if b.Preempted[0] != 0 || len(b.Items) != items {
			t.Errorf("release %d: preempted %v, %d items; want request 0 and %d", release, b.Preempted, len(b.Items), items)
		}
	}
}

func TestAdd(t *testing.T) {
	s, err := New(small)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Add(Request{ID: 3, PromptTokens: 5, MaxTokens: 2}); err != nil {
		t.Fatal(err)
	}
	if err := s.Add(Request{ID: 3, PromptTokens: 5, MaxTokens: 2}); err == nil {
		t.Error("an ID is taken twice")
	}
	b := s.Schedule()
	s.Abort(3)
	s.Abort(4)
	if err := s.Add(Request{ID: 3, PromptTokens: 5, MaxTokens: 2}); err != nil {
		t.Errorf("the ID of an aborted request: %v", err)
	}
	if events := s.Update(b); len(events) != 0 {
		t.Errorf("an aborted request got %v", events)
	}
}
