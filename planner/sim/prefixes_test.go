package sim

import (
	"slices"
	"testing"

	"kvtune/harness/workload"
)

// What a turn has from the one before it is what it would have alone, also where two turns follow the same one.
func TestPrefixesOfTurns(t *testing.T) {
	seg := func(id uint64, tokens int) workload.Segment { return workload.Segment{ID: id, Tokens: tokens} }
	w := &workload.Workload{Requests: []workload.Request{
		{After: -1, Prompt: []workload.Segment{seg(1, 37)}, OutputID: 2, OutputTokens: 20},
		{After: 0, Prompt: []workload.Segment{seg(1, 37), seg(2, 20), seg(3, 90)}, OutputID: 4, OutputTokens: 33},
		{After: 0, Prompt: []workload.Segment{seg(1, 37), seg(2, 20), seg(5, 64)}, OutputID: 6, OutputTokens: 8},
		{After: 1, Prompt: []workload.Segment{seg(1, 37), seg(2, 20), seg(3, 90), seg(4, 33), seg(7, 50)}, OutputTokens: 5},
		{After: 2, Prompt: []workload.Segment{seg(1, 37), seg(2, 20), seg(5, 64), seg(6, 8), seg(7, 50)}, OutputTokens: 5},
		{After: 3, Prompt: []workload.Segment{seg(9, 16), seg(2, 20)}, OutputTokens: 5}, // not what was said before
		{After: -1, Prompt: []workload.Segment{seg(9, 16), seg(8, 20)}, OutputTokens: 5},
	}}
	var p prefixes
	for _, blockSize := range []int{1, 16, 64} {
		p.of(Config{BlockSize: blockSize, EnablePrefixCaching: true}, w)
		var all [][]uint64
		for i := range w.Requests {
			all = append(all, p.hashes(i, &w.Requests[i]))
		}
		for i, q := range w.Requests {
			segments := append(slices.Clip(q.Prompt), seg(q.OutputID, q.OutputTokens))
			n := 0
			for n < len(segments) && p.uses[segments[n].ID] > 1 {
				n++
			}
			if want := workload.BlockHashes(segments[:n], blockSize); !slices.Equal(all[i], want) {
				t.Errorf("block_size %d, request %d: %x, want %x", blockSize, i, all[i], want)
			}
		}
	}
}
