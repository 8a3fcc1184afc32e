package gpu

import (
	"testing"

	"kvtune/kernels"
	"kvtune/kernels/layout"
)

// leastShare is that of the default choice.
const leastShare = 4

// TestDecodePlan: every token of every pair is in exactly one part, parts are numbered, and no block has much more than
// its share.
func TestDecodePlan(t *testing.T) {
	for name, sequences := range map[string][]kernels.Sequence{
		"one long":   {{Context: 100_000}},
		"ragged":     {{Context: 5000}, {Context: 1}, {Context: 64}, {Context: 65}, {Context: 3000}},
		"many equal": make([]kernels.Sequence, 32),
	} {
		for i := range sequences {
			if sequences[i].Context == 0 {
				sequences[i].Context = 4096
			}
		}
		for _, blocks := range []int{1, 7, 264, 5000} {
			const heads = 8
			plan := planDecode(sequences, heads, blocks, leastShare)
			if n := len(plan.Shares) - 1; n > blocks || int(plan.Shares[n]) != len(plan.Segments) {
				t.Errorf("%s: %d shares for %d blocks, of %d segments the last is %d", name, n, blocks, len(plan.Segments),
					plan.Shares[n])
			}
			at, parts, total := 0, int32(0), 0
			for i, s := range sequences {
				for head := range heads {
					next, first := int32(0), at
					for ; at < len(plan.Segments) && plan.Segments[at].Ticket == int32(i*heads+head); at++ {
						g := plan.Segments[at]
						if g.Sequence != int32(i) || g.Head != int32(head) || g.Begin != next || g.Begin%unit != 0 ||
							g.Part != int32(at-first) || g.Parts > 1 && g.First != parts {
							t.Fatalf("%s, %d blocks: segment %d is %+v", name, blocks, at, g)
						}
						next = g.End
					}
					if next != int32(s.Context) || int(plan.Segments[first].Parts) != at-first {
						t.Fatalf("%s, %d blocks: sequence %d, head %d ends at %d in %d parts, want %d", name, blocks, i, head, next,
							at-first, s.Context)
					}
					if at-first > 1 {
						parts += int32(at - first)
					}
					total += (s.Context + unit - 1) / unit
				}
			}
			if int(parts) != plan.Parts {
				t.Errorf("%s, %d blocks: %d parts, want %d", name, blocks, plan.Parts, parts)
			}
			starts := make([]int32, len(sequences))
			for i := range starts {
				starts[i] = int32(1000 * i)
			}
			all, firsts := plan.direct(starts)
			for i, w := range all {
				if w.segment != plan.Segments[i] || int(w.At) != i || w.Table != starts[w.Sequence] || w.End <= w.At {
					t.Fatalf("%s, %d blocks: work %d is %+v", name, blocks, i, w)
				}
			}
			for i, w := range firsts {
				if w.At != plan.Shares[i] || w.End != plan.Shares[i+1] || len(firsts) != len(plan.Shares)-1 {
					t.Fatalf("%s, %d blocks: block %d begins with %+v", name, blocks, i, w)
				}
			}
			share := max((total+blocks-1)/blocks, leastShare)
			for i := range plan.Shares[1:] {
				units := 0
				for _, g := range plan.Segments[plan.Shares[i]:plan.Shares[i+1]] {
					units += int(g.End-g.Begin+unit-1) / unit
				}
				if units == 0 || units > share+share/16 {
					t.Errorf("%s, %d blocks: block %d has %d units, the share is %d", name, blocks, i, units, share)
				}
			}
		}
	}
}

// TestPrefillPlan: every query of every head is in one part, and the work of parts falls.
func TestPrefillPlan(t *testing.T) {
	sequences := []kernels.Sequence{{Context: 1000, New: 300}, {New: 1}, {Context: 5, New: 128}}
	const heads = 4
	seen := map[part]bool{}
	last := 1 << 30
	for _, p := range planPrefill(sequences, heads) {
		s := sequences[p.Sequence]
		tokens := s.Context + min(int(p.First)+prefillRows, s.New)
		if seen[p] || int(p.First) >= s.New || p.First%prefillRows != 0 || p.Head >= heads || tokens > last {
			t.Errorf("part %+v after one of %d tokens", p, last)
		}
		seen[p], last = true, tokens
	}
	if len(seen) != heads*(3+1+1) {
		t.Errorf("%d parts", len(seen))
	}
}

// TestPrefillShares: every part is dealt once, a block's longest come first, and no block has more than a part above
// the mean.
func TestPrefillShares(t *testing.T) {
	sequences := []kernels.Sequence{{New: 8192}, {Context: 9000, New: 700}, {New: 1}}
	const heads = 8
	parts := planPrefill(sequences, heads)
	for _, blocks := range []int{1, 7, 132, 10_000} {
		dealt, shares := planShares(parts, sequences, blocks)
		seen := map[part]bool{}
		total, most, longest := 0, 0, 0
		for i := range shares[1:] {
			load, last := 0, 1<<30
			for _, p := range dealt[shares[i]:shares[i+1]] {
				s := sequences[p.Sequence]
				tokens := s.Context + min(int(p.First)+prefillRows, s.New)
				if seen[p] || tokens > last {
					t.Fatalf("%d blocks: part %+v of block %d", blocks, p, i)
				}
				seen[p], last = true, tokens
				load += tokens/prefillRows + 2
				longest = max(longest, tokens/prefillRows+2)
			}
			if load == 0 {
				t.Errorf("%d blocks: block %d has nothing", blocks, i)
			}
			total, most = total+load, max(most, load)
		}
		if n := len(shares) - 1; len(seen) != len(parts) || n != min(blocks, len(parts)) || most > total/n+longest {
			t.Errorf("%d blocks: %d of %d parts in %d shares, the largest %d of %d", blocks, len(seen), len(parts), n, most,
				total)
		}
	}
}

// TestChoices: what runs untuned comes first, choices have names of their own, and bulk copies are for blocks of whole
// rows of the swizzle's pattern.
func TestChoices(t *testing.T) {
	all, none := func(string) bool { return true }, func(string) bool { return false }
	c := kernels.Case{Op: kernels.OpPrefill, Layout: layout.NHD, BlockSize: 16}
	for _, test := range []struct {
		op    kernels.Op
		size  int
		rows  bool
		has   func(string) bool
		first kernels.Choice
		n     int
	}{
		{kernels.OpPrefill, 16, true, all, "kernel=wgmma", 4},
		{kernels.OpPrefill, bulkSlots / 2, true, all, "kernel=wgmma", 3},
		{kernels.OpPrefill, 16, false, all, "kernel=mma", 1},
		{kernels.OpPrefill, 16, true, none, "kernel=mma", 1},
		{kernels.OpDecode, 16, true, all, "blocks=2,least=4", 10},
		{kernels.OpAppend, 16, true, all, "", 1},
	} {
		c.Op, c.BlockSize = test.op, test.size
		list := choicesOf(c, test.rows, test.has)
		seen := map[kernels.Choice]bool{}
		for _, o := range list {
			seen[o.name()] = true
		}
		if len(list) != test.n || len(seen) != test.n || list[0].name() != test.first {
			t.Errorf("%+v: %+v", test, list)
		}
	}
}
