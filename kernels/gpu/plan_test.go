package gpu

import (
	"testing"

	"kvtune/kernels"
)

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
			plan := planDecode(sequences, heads, blocks)
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
