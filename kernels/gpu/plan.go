package gpu

import (
	"cmp"
	"slices"

	"kvtune/kernels"
)

// What decode.cu and prefill.cu are compiled with.
const (
	tile        = 16        // tokens that a warp takes at a time
	warps       = 4         // of a block
	decodeRows  = 8         // queries that decode can have in a group
	decodeBytes = 16 * 1024 // shared memory for a warp of decode
	prefillRows = 32 * warps
)

// segment is decode.cu's Segment: tokens of one pair of sequence and KV head that one block attends to.
type segment struct {
	Sequence, Head int32
	Begin, End     int32
	Part, Parts    int32 // of the pair
	First          int32 // where the pair's parts begin in the workspace
	Ticket         int32
}

// decodePlan is which block attends to what.
type decodePlan struct {
	Segments []segment
	Shares   []int32 // block i has the segments from Shares[i] to Shares[i+1]
	Parts    int     // of all pairs that are in more than one part
	Pairs    int
}

// leastShare is the units below which it costs more to add parts up than more blocks gain.
const leastShare = 4

// unit is the tokens that the warps of a block take at a time: a share is a multiple of it.
const unit = tile * warps

// planDecode deals the tokens of all pairs to at most blocks blocks in shares that are about equal, in order. A pair is
// not cut for the last sixteenth of a share, since adding parts up costs more than that.
func planDecode(sequences []kernels.Sequence, kvHeads, blocks int) decodePlan {
	p := decodePlan{Pairs: len(sequences) * kvHeads, Shares: []int32{0}}
	total := 0
	for _, s := range sequences {
		total += (s.Context + unit - 1) / unit * kvHeads
	}
	share := max((total+blocks-1)/blocks, leastShare)
	left := share // units that the current block still takes
	flush := func() {
		if n := int32(len(p.Segments)); n > p.Shares[len(p.Shares)-1] {
			p.Shares = append(p.Shares, n)
		}
		left = share
	}
	for i, s := range sequences {
		for head := range kvHeads {
			pair := int32(i*kvHeads + head)
			begin := len(p.Segments)
			for at := 0; at < s.Context; {
				units := (s.Context - at + unit - 1) / unit
				if units > left+share/16 {
					units = left
				}
				end := min(at+units*unit, s.Context)
				p.Segments = append(p.Segments, segment{Sequence: int32(i), Head: int32(head), Begin: int32(at), End: int32(end),
					Part: int32(len(p.Segments) - begin), Ticket: pair, First: int32(p.Parts)})
				at = end
				if left -= units; left <= 0 {
					flush()
				}
			}
			parts := len(p.Segments) - begin
			for j := begin; j < len(p.Segments); j++ {
				p.Segments[j].Parts = int32(parts)
			}
			if parts > 1 {
				p.Parts += parts
			}
		}
	}
	flush()
	return p
}

// part is prefill.cu's Part: up to prefillRows queries of one head of one sequence.
type part struct{ Sequence, Head, First, _ int32 }

// planPrefill lists the parts, those with the most tokens to see first, so that the last to start end soon. The heads
// of the same queries follow each other: those of a group read the same keys and values.
func planPrefill(sequences []kernels.Sequence, heads int) []part {
	type rows struct{ sequence, first, tokens int }
	var list []rows
	for i, s := range sequences {
		for first := 0; first < s.New; first += prefillRows {
			list = append(list, rows{i, first, s.Context + min(first+prefillRows, s.New)})
		}
	}
	slices.SortStableFunc(list, func(a, b rows) int { return cmp.Compare(b.tokens, a.tokens) })
	parts := make([]part, 0, len(list)*heads)
	for _, r := range list {
		for head := range heads {
			parts = append(parts, part{Sequence: int32(r.sequence), Head: int32(head), First: int32(r.first)})
		}
	}
	return parts
}
