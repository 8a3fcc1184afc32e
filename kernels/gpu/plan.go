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

// unit is the tokens that the warps of a block take at a time: a share is a multiple of it.
const unit = tile * warps

// planDecode deals the tokens of all pairs to at most blocks blocks in shares that are about equal, in order. A share
// is at least so many units: below, it costs more to add parts up than more blocks gain. A pair is not cut for the last
// sixteenth of a share, for the same reason.
func planDecode(sequences []kernels.Sequence, kvHeads, blocks, least int) decodePlan {
	p := decodePlan{Pairs: len(sequences) * kvHeads, Shares: []int32{0}}
	total := 0
	for _, s := range sequences {
		total += (s.Context + unit - 1) / unit * kvHeads
	}
	share := max((total+blocks-1)/blocks, least)
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

// work is decode.cu's Work.
type work struct {
	segment
	Table, At, End, _ int32
}

// direct lists the work of every segment, and the first of every block. starts is where the blocks of a sequence begin
// in the table.
func (p decodePlan) direct(starts []int32) (all, first []work) {
	for i := range p.Shares[1:] {
		for at := p.Shares[i]; at < p.Shares[i+1]; at++ {
			s := p.Segments[at]
			all = append(all, work{segment: s, Table: starts[s.Sequence], At: at, End: p.Shares[i+1]})
		}
		first = append(first, all[p.Shares[i]])
	}
	return all, first
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

// planShares deals parts, which [planPrefill] has listed, to blocks that stay, the next always to the block that has
// the least to do (Graham, "Bounds on multiprocessing timing anomalies", 1969: the longest first). Block i has the
// parts from shares[i] to shares[i+1] of the list that is returned.
func planShares(parts []part, sequences []kernels.Sequence, blocks int) (dealt []part, shares []int32) {
	const start = 1 // what a part costs beside its tiles of prefillRows tokens
	blocks = min(blocks, len(parts))
	load, own := make([]int, blocks), make([][]part, blocks)
	for _, p := range parts {
		s, at := sequences[p.Sequence], 0
		for i := range load {
			if load[i] < load[at] {
				at = i
			}
		}
		seen := s.Context + min(int(p.First)+prefillRows, s.New)
		load[at] += start + (seen+prefillRows-1)/prefillRows
		own[at] = append(own[at], p)
	}
	shares = []int32{0}
	for _, list := range own {
		dealt = append(dealt, list...)
		shares = append(shares, int32(len(dealt)))
	}
	return dealt, shares
}
