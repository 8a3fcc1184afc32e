package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// queued is the free queue, the block that is used next first. It ends early where links do not fit.
func (p *pool) queued() []int32 {
	var all []int32
	for _, b := range slices.Backward(p.stack) {
		all = append(all, b)
	}
	for b := p.used; b < p.size; b++ {
		all = append(all, b)
	}
	for prev, b := int32(0), p.at(0).next; b != 0; prev, b = b, p.at(b).next {
		if p.at(b).prev != prev || len(all) > int(p.size) {
			break
		}
		all = append(all, b)
	}
	return all
}

func (p *pool) order() string {
	s := ""
	for _, b := range p.queued() {
		s += fmt.Sprint(b)
	}
	return s
}

func TestFreeQueueOrder(t *testing.T) {
	for _, c := range []struct {
		name string
		fifo bool
		full int
		want string
	}{
		{"a block without hash is used next, hashed ones last, later ones first", false, 2, "34521"},
		{"without prefix caching the last block is used next", false, 0, "32145"},
		{"before 0.24 all went to the tail", true, 2, "45321"},
	} {
		p := newPool(6, c.fifo)
		if p.order() != "12345" {
			t.Fatalf("a new pool's free queue is %s", p.order())
		}
		p.release([]int32{p.take(), p.take(), p.take()}, c.full)
		if p.order() != c.want || p.free != 5 {
			t.Errorf("%s: free queue %s, want %s", c.name, p.order(), c.want)
		}
	}
}

func TestIndexAgainstAMap(t *testing.T) {
	const n = 600
	rng := rand.New(rand.NewPCG(1, 1))
	p := newPool(n, false)
	for range n - 1 {
		p.take()
	}
	model := map[uint64][]int32{}
	for range 50_000 {
		b := int32(1 + rng.IntN(n-1))
		if x := p.at(b); x.indexed {
			p.forget(b)
			x.indexed = false
			list := model[x.hash]
			for i := range list {
				if list[i] == b {
					list = append(list[:i:i], list[i+1:]...)
					break
				}
			}
			model[x.hash] = list
		} else {
			hash := uint64(rng.IntN(400)) // so that some are registered twice
			p.register(b, hash)
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
