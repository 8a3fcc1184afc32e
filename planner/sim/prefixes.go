package sim

import (
	"slices"

	"kvtune/harness/workload"
)

// prefixes finds out which leading part of a request another request can share.
type prefixes struct {
	blockSize int            // 0 without prefix caching: then nothing is ever shared
	uses      map[uint64]int // of each segment
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
	for i := range w.Requests {
		for _, seg := range w.Requests[i].Prompt {
			p.uses[seg.ID]++
		}
		if id := w.Requests[i].OutputID; id != 0 {
			p.uses[id]++
		}
	}
}

// hashes are the content hashes of the leading blocks that others can share.
func (p *prefixes) hashes(q *workload.Request) []uint64 {
	if p.blockSize == 0 {
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
