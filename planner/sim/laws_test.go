package sim

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// check verifies what must hold between any two calls: every block is held as often as its count says, the free queue
// has exactly the blocks nobody holds, and the index finds exactly the registered blocks.
func (s *Scheduler) check() error {
	refs := map[int32]int32{}
	live, held := 0, 0 // held: blocks without a node
	for slot := range s.requests {
		r := &s.requests[slot]
		if at, ok := s.slots[r.id]; !ok || at != int32(slot) {
			continue
		}
		live++
		for _, b := range r.nodes {
			refs[b]++
		}
		held += s.held(r) - len(r.nodes)
		switch {
		case !r.running && r.capacity > 0:
			return fmt.Errorf("request %d waits and holds %d blocks", r.id, s.held(r))
		case r.running && (r.computed > r.capacity || r.capacity%s.cfg.BlockSize != 0):
			return fmt.Errorf("request %d has %d positions in %d tokens of blocks", r.id, r.computed, r.capacity)
		case r.placeholders < 0 || r.stale < 0 || r.inFlight < r.stale || r.computed > r.known+r.placeholders:
			return fmt.Errorf("request %d: impossible counts %+v", r.id, *r)
		case r.running && r.registered > min(r.computed, r.known)/s.cfg.BlockSize || len(r.nodes) > r.registered:
			return fmt.Errorf("request %d registered %d blocks with %d computed", r.id, r.registered, r.computed)
		}
	}
	if live != len(s.slots) || live != len(s.running)+s.waiting.n {
		return fmt.Errorf("%d requests live, %d are known, %d run, %d wait", live, len(s.slots), len(s.running), s.waiting.n)
	}
	p := &s.pool
	again := 0
	for _, n := range refs {
		again += max(0, int(n)-1)
	}
	if p.again != again {
		return fmt.Errorf("%d blocks are held once more, counted %d", again, p.again)
	}
	registered := map[int32]bool{}
	for _, b := range p.index {
		for ; b != 0; b = p.nodes[b].twin {
			registered[b] = true
			if x := p.nodes[b]; x.ref != refs[b] || x.run != 0 {
				return fmt.Errorf("a registered block is held %d times, counted %d", refs[b], x.ref)
			}
			first := p.find(p.nodes[b].hash)
			for first != 0 && first != b {
				first = p.nodes[first].twin
			}
			if first == 0 {
				return fmt.Errorf("node %d is registered but cannot be found", b)
			}
		}
	}
	for b := range refs {
		if !registered[b] {
			return fmt.Errorf("node %d is held and not registered", b)
		}
	}
	idle := p.returned + p.fresh
	prev := int32(0)
	for b := p.nodes[0].next; b != 0; prev, b = b, p.nodes[b].next {
		x := p.nodes[b]
		if x.prev != prev || x.run == 0 && (x.ref != 0 || !registered[b]) {
			return fmt.Errorf("node %d is in the queue: %+v", b, x)
		}
		idle += max(1, int(x.run))
	}
	if idle != p.free {
		return fmt.Errorf("the free queue has %d blocks, not %d", idle, p.free)
	}
	for b := range registered {
		if p.nodes[b].ref > 0 {
			held++
		}
	}
	if held+idle != s.cfg.NumGPUBlocks-1 {
		return fmt.Errorf("%d blocks are held, %d free, of %d", held, idle, s.cfg.NumGPUBlocks-1)
	}
	return nil
}

// randomConfig draws settings small enough for every limit to bind.
func randomConfig(rng *rand.Rand) Config {
	c := Config{
		MaxNumSeqs: 1 + rng.IntN(12), BlockSize: 1 << (1 + rng.IntN(4)), MaxModelLen: 40 + rng.IntN(150),
		EnableChunkedPrefill: rng.IntN(4) > 0, EnablePrefixCaching: rng.IntN(4) > 0, Priority: rng.IntN(3) == 0,
		AsyncScheduling: rng.IntN(2) == 0, ReserveFullISL: rng.IntN(4) > 0, StreamInterval: 1,
	}
	if rng.IntN(3) == 0 {
		c.LongPrefillTokenThreshold = 1 + rng.IntN(30)
	}
	if rng.IntN(3) == 0 {
		c.Watermark = 0.1
	}
	c.Release = []int{0, 23, 26, 30, 32}[rng.IntN(5)]
	c.MaxNumBatchedTokens = c.MaxNumSeqs + rng.IntN(100)
	if !c.EnableChunkedPrefill {
		c.MaxNumBatchedTokens = max(c.MaxNumBatchedTokens, c.MaxModelLen)
	}
	c.NumGPUBlocks = 1 + (c.MaxModelLen+c.BlockSize-1)/c.BlockSize
	c.NumGPUBlocks += rng.IntN(3 * c.NumGPUBlocks)
	return c
}

// watched drives a scheduler and checks every law after every call.
type watched struct {
	*Scheduler
	t       *testing.T
	flight  []*Batch
	want    map[int]int // tokens that each living request will get
	got     map[int]int
	given   map[int]Request
	arrived []int // not yet admitted, in order of arrival
	pre     map[int]int
}

func (w *watched) must(ok bool, format string, args ...any) {
	w.t.Helper()
	if !ok {
		w.t.Fatalf(format, args...)
	}
}

func (w *watched) verify() {
	w.t.Helper()
	if err := w.check(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *watched) schedule() *Batch {
	w.t.Helper()
	b := w.Schedule()
	w.verify()
	tokens, partial, prefillOf := 0, 0, map[int]bool{}
	for _, a := range b.Admitted {
		prefillOf[a.ID] = true
		w.must(a.CachedTokens%w.cfg.BlockSize == 0, "request %d: %d cached tokens are no whole blocks", a.ID, a.CachedTokens)
		w.must(a.CachedTokens < w.given[a.ID].PromptTokens+w.got[a.ID], "request %d: nothing left to compute", a.ID)
		w.must(a.Resumed == (w.pre[a.ID] > 0), "request %d resumed: %v", a.ID, a.Resumed)
	}
	fresh := false
	step := b.Step
	for i, it := range b.Items {
		w.must(it.Tokens > 0, "request %d gets %d tokens", it.ID, it.Tokens)
		w.must(it.Prefill || it.Tokens == 1, "request %d decodes %d tokens", it.ID, it.Tokens)
		tokens += it.Tokens
		if !it.Samples {
			partial++
		}
		w.must(prefillOf[it.ID] || !fresh, "item %d: a running request stands behind an admitted one", i)
		fresh = prefillOf[it.ID]
		it.addTo(&step, -1)
	}
	w.must(step.Tokens() == 0 && step.DecodeContext == 0 && step.PrefillAttention == 0 && step.PrefillSeqs == 0,
		"the step differs from the sum over its items by %+v", step)
	w.must(tokens == b.Step.Tokens() && tokens <= w.cfg.MaxNumBatchedTokens, "%d tokens in a step of at most %d",
		tokens, w.cfg.MaxNumBatchedTokens)
	w.must(w.Running() <= w.cfg.MaxNumSeqs, "%d requests run", w.Running())
	w.must(len(b.Preempted) == 0 || len(b.Admitted) == 0, "a step preempts %v and admits %v", b.Preempted, b.Admitted)
	w.must(partial <= 1 || w.cfg.LongPrefillTokenThreshold > 0, "%d prompts are computed in part", partial)
	for _, id := range b.Preempted {
		w.pre[id]++
	}
	w.order(b)
	w.flight = append(w.flight, b)
	return b
}

// order checks who was admitted and who was preempted.
func (w *watched) order(b *Batch) {
	w.t.Helper()
	rank := func(a, b Request) bool { // a before b
		return a.Priority < b.Priority || a.Priority == b.Priority && a.Arrival < b.Arrival
	}
	for _, a := range b.Admitted {
		if a.Resumed {
			continue
		}
		if !w.cfg.Priority {
			w.must(w.arrived[0] == a.ID, "request %d is admitted before %d", a.ID, w.arrived[0])
		}
		for i, id := range w.arrived {
			if id == a.ID {
				w.arrived = append(w.arrived[:i], w.arrived[i+1:]...)
				break
			}
		}
	}
	if !w.cfg.Priority {
		return
	}
	for _, a := range b.Admitted {
		for _, id := range w.arrived {
			w.must(!rank(w.given[id], w.given[a.ID]), "request %d is admitted before %d", a.ID, id)
		}
	}
	for _, id := range b.Preempted {
		for _, slot := range w.running {
			other := w.given[w.requests[slot].id]
			w.must(!rank(w.given[id], other), "request %d is preempted before %d", id, other.ID)
		}
	}
}

func (w *watched) update() {
	w.t.Helper()
	b := w.flight[0]
	w.flight = w.flight[1:]
	for _, e := range w.Update(b) {
		w.got[e.ID]++
		n := w.got[e.ID]
		w.must(e.Token == 1 && e.Output == n && e.First == (n == 1), "request %d: token %d is reported as %+v", e.ID, n, e)
		w.must(e.Finished == (n == w.want[e.ID]), "request %d: token %d of %d, finished %v",
			e.ID, n, w.want[e.ID], e.Finished)
		if e.Finished {
			delete(w.want, e.ID)
		}
	}
	w.verify()
}

func TestLawsHoldForRandomRuns(t *testing.T) {
	preemptions, hits := int64(0), int64(0)
	for seed := range uint64(400) {
		rng := rand.New(rand.NewPCG(seed, 2))
		cfg := randomConfig(rng)
		s, err := New(cfg)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		w := &watched{Scheduler: s, t: t, want: map[int]int{}, got: map[int]int{}, given: map[int]Request{},
			pre: map[int]int{}}
		depth, total := 1, 5+rng.IntN(30)
		if cfg.AsyncScheduling {
			depth = 2
		}
		for id, idle := 0, 0; id < total || len(w.want) > 0; {
			for id < total && rng.IntN(3) == 0 {
				group := rng.IntN(3)
				shared := min(group*3*cfg.BlockSize, cfg.MaxModelLen/2)
				prompt := shared + 1 + rng.IntN(cfg.MaxModelLen-shared-1)
				q := Request{ID: id, PromptTokens: prompt, MaxTokens: 1 + rng.IntN(cfg.MaxModelLen-prompt),
					Priority: rng.IntN(3), Arrival: time.Duration(id)}
				if group > 0 {
					q.Hashes = chain(cfg.BlockSize, [2]int{group, shared})
				}
				if err := w.Add(q); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				w.want[id], w.given[id] = q.MaxTokens, q
				w.arrived = append(w.arrived, id)
				id++
			}
			if rng.IntN(60) == 0 && id > 0 {
				victim := rng.IntN(id)
				w.Abort(victim)
				delete(w.want, victim)
				for i, x := range w.arrived {
					if x == victim {
						w.arrived = append(w.arrived[:i], w.arrived[i+1:]...)
						break
					}
				}
				w.verify()
			}
			b := w.schedule()
			if idle++; len(b.Items) > 0 || len(b.Preempted) > 0 || len(w.want) == 0 {
				idle = 0
			}
			w.must(idle < 5, "seed %d: %d wait and nothing happens", seed, w.Waiting())
			if len(w.flight) == depth {
				w.update()
			}
		}
		for len(w.flight) > 0 {
			w.update()
		}
		w.must(w.pool.free == cfg.NumGPUBlocks-1 && w.Usage() == 0, "seed %d: %d of %d blocks are free at the end",
			seed, w.pool.free, cfg.NumGPUBlocks-1)
		w.must(w.Running()+w.Waiting() == 0, "seed %d: %d run, %d wait at the end", seed, w.Running(), w.Waiting())
		preemptions += w.Stats().Preemptions
		hits += w.Stats().PrefixHits
	}
	if preemptions < 100 || hits < 1000 {
		t.Errorf("%d preemptions and %d hit tokens: too few to show anything", preemptions, hits)
	}
}
