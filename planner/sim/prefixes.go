package sim

import (
	"slices"

	"kvtune/harness/workload"
)

// prefixes finds out which leading part of a request another request can share.
type prefixes struct {
	blockSize int            // 0 without prefix caching: then nothing is ever shared
	uses      map[uint64]int // of each segment
	shared    []shared       // of each request that was sent
}

// shared is what others can share of a request, prompt and output.
type shared struct {
	segments []workload.Segment
	blocks   workload.BlockChain
	extended bool // by a later turn, whose hashes lie behind these
}

// of counts the segments of a workload.
func (p *prefixes) of(cfg Config, w *workload.Workload) {
	p.blockSize = 0
	if !cfg.EnablePrefixCaching {
		return
	}
	p.blockSize = cfg.BlockSize
	if p.uses == nil {
		p.uses = make(map[uint64]int)
	}
	clear(p.uses)
	clear(p.shared)
	p.shared = slices.Grow(p.shared[:0], len(w.Requests))[:len(w.Requests)]
	for i := range w.Requests {
		for _, seg := range w.Requests[i].Prompt {
			p.uses[seg.ID]++
		}
		if id := w.Requests[i].OutputID; id != 0 {
			p.uses[id]++
		}
	}
}

// hashes are the content hashes of the leading blocks of the request at an index that others can share. A later turn of
// a conversation goes on where the one before it ended.
func (p *prefixes) hashes(index int, q *workload.Request) []uint64 {
	if p.blockSize == 0 {
		return nil
	}
	segments := q.Prompt
	if q.OutputID != 0 {
		segments = append(slices.Clip(segments), workload.Segment{ID: q.OutputID, Tokens: q.OutputTokens})
	}
	before, n := new(shared), 0 // n is how many segments are shared
	if q.After >= 0 {
		b := &p.shared[q.After]
		if k := len(b.segments); k <= len(segments) && !b.extended && slices.Equal(b.segments, segments[:k]) {
			before, n = b, k
		}
	}
	k := n
	for n < len(segments) && p.uses[segments[n].ID] > 1 {
		n++
	}
	if n == 0 {
		return nil
	}
	s := &p.shared[index]
	if s.segments, s.blocks = segments[:n], before.blocks; k == 0 {
		s.blocks = workload.NewBlockChain(p.blockSize)
	}
	before.extended = true
	s.blocks.Append(segments[k:n]...)
	return s.blocks.Hashes()
}
