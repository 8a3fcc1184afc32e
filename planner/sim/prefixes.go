package sim

import (
	"slices"

	"kvtune/harness/workload"
)

// prefixes finds out which leading part of a request another request can share.
type prefixes struct {
	blockSize int
	uses      map[uint64]int // of each segment
}

// newPrefixes returns nil without prefix caching: then nothing is ever shared.
func newPrefixes(cfg Config, w *workload.Workload) *prefixes {
	if !cfg.EnablePrefixCaching {
		return nil
	}
	p := &prefixes{cfg.BlockSize, make(map[uint64]int)}
	for i := range w.Requests {
		for _, seg := range w.Requests[i].Prompt {
			p.uses[seg.ID]++
		}
		if id := w.Requests[i].OutputID; id != 0 {
			p.uses[id]++
		}
	}
	return p
}

// hashes are the content hashes of the leading blocks that others can share.
func (p *prefixes) hashes(q *workload.Request) []uint64 {
	if p == nil {
		return nil
	}
	segments := q.Prompt
	if q.OutputID != 0 {
		segments = append(slices.Clip(segments), workload.Segment{ID: q.OutputID, Tokens: q.OutputTokens})
	}
	n := 0
	for n < len(segments) && p.uses[segments[n].ID] > 1 {
		n++
	}
	if n == 0 {
		return nil
	}
	return workload.BlockHashes(segments[:n], p.blockSize)
}
