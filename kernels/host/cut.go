package host

import "kvtune/kernels"

// item is a piece of work; its fields are those of struct item in host.h.
type item struct{ sequence, from, to, kvHead int }

const (
	tile        = 32      // ranges of tokens begin at multiples of it: DECODE_TILE, and a multiple of x-packed runs
	prefillRows = 64      // PREFILL_ROWS
	chunkBytes  = 1 << 20 // that one item moves, roughly
	unitBytes   = 256     // in which items of copy and read count
)

// shares lists into how many items decode cuts a thread's part: the more, the less is the last to finish behind the
// others; the fewer, the less is to be added up. The first is taken where nothing is known.
func shares() []int { return []int{8, 2, 32} }

// cut divides a case among threads, so that each has several items and the last to finish is not far behind the others,
// each of decode as many as share says. For decode, start has the first item of every sequence, then the number of
// items.
func cut(in *kernels.Inputs, threads, share int) (items []item, start []int32) {
	token := int(in.Shape.BytesPerToken())
	switch in.Case.Op {
	case kernels.OpDecode:
		step := roundUp(max(in.ContextTokens()/(share*threads), 128), tile)
		for i, s := range in.Sequences {
			start = append(start, int32(len(items)))
			items = split(items, i, s.Context, step)
		}
		start = append(start, int32(len(items)))
	case kernels.OpPrefill:
		step := prefillRows / (in.Case.Heads / in.Case.KVHeads)
		for i, s := range in.Sequences {
			for to := s.New; to > 0; to -= step { // the last queries see most: first
				for head := range in.Case.KVHeads {
					items = append(items, item{i, max(to-step, 0), to, head})
				}
			}
		}
	case kernels.OpAppend:
		items = split(items, 0, len(in.Slots), max(chunkBytes/token, 1))
	case kernels.OpGather:
		for i, s := range in.Sequences {
			items = split(items, i, s.Context, roundUp(chunkBytes/token, tile))
		}
	case kernels.OpQuantize:
		for i := range in.Sequences {
			items = split(items, i, len(in.Table[i]), max(chunkBytes/token/in.Shape.BlockSize, 1))
		}
	case kernels.OpCopy, kernels.OpRead:
		units := roundUp(len(in.Key), unitBytes) / unitBytes
		for array := range 2 {
			items = split(items, array, units, chunkBytes/unitBytes)
		}
	default:
		items = split(items, 0, len(in.Pairs), max(chunkBytes/token/in.Shape.BlockSize, 1))
	}
	return items, start
}

// split appends the ranges of at most step that make up 0 to n.
func split(items []item, sequence, n, step int) []item {
	for from := 0; from < n; from += step {
		items = append(items, item{sequence, from, min(from+step, n), 0})
	}
	return items
}

// roundUp is the multiple of step that n is rounded up to, at least one step.
func roundUp(n, step int) int { return max((n+step-1)/step, 1) * step }
