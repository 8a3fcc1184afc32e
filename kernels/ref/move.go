package ref

import (
	"kvtune/kernels"
	"kvtune/kernels/layout"
)

// move is an operation that moves tokens or blocks, as a number of places that do not depend on each other: a token
// (append, gather, quantize), a pair of blocks, or the whole cache (copy).
type move struct {
	in *kernels.Inputs
	// slots say where token i lies in the cache; for gather and quantize.
	slots [][2]int
}

func newMove(in *kernels.Inputs) *move {
	m := &move{in: in}
	if in.Case.Op != kernels.OpGather && in.Case.Op != kernels.OpQuantize {
		return m
	}
	for i, s := range in.Sequences {
		for token := range s.Context {
			block, slot := in.Table.Find(i, token, in.Shape.BlockSize)
			m.slots = append(m.slots, [2]int{block, slot})
		}
	}
	return m
}

// places is the number of places.
func (m *move) places() int {
	switch m.in.Case.Op {
	case kernels.OpAppend:
		return len(m.in.Slots)
	case kernels.OpGather, kernels.OpQuantize:
		return len(m.slots)
	case kernels.OpCopy:
		return 1
	}
	return len(m.in.Pairs)
}

// put takes what belongs at an offset, in bytes, of the output's keys (array 0) or values (array 1).
type put func(array, at int, data []byte)

// visit puts what belongs to a place.
func (m *move) visit(place int, put put) {
	in, s := m.in, m.in.Shape
	switch in.Case.Op {
	case kernels.OpAppend: // token i goes to slot Slots[i]
		at := int(in.Slots[place])
		token := place * s.KVHeads * s.HeadSize
		m.convert(s, at/s.BlockSize, at%s.BlockSize, put, in.Case.QueryDType(), in.NewKey, in.NewValue,
			func(head, dim int) (key, value int) { i := token + head*s.HeadSize + dim; return i, i })
	case kernels.OpGather: // to contiguous rows
		block, slot, size := m.slots[place][0], m.slots[place][1], s.DType.Bytes()
		for head := range s.KVHeads {
			for dim := range s.HeadSize {
				to := ((place*s.KVHeads+head)*s.HeadSize + dim) * size
				key, value := s.KeyOffset(block, slot, head, dim)*size, s.ValueOffset(block, slot, head, dim)*size
				put(0, to, in.Key[key:key+size])
				put(1, to, in.Value[value:value+size])
			}
		}
	case kernels.OpQuantize: // slot by slot; the x of an x-packed cache changes with the dtype, and so do the offsets
		block, slot, narrow := m.slots[place][0], m.slots[place][1], s
		narrow.DType = layout.FP8
		m.convert(narrow, block, slot, put, s.DType, in.Key, in.Value, func(head, dim int) (key, value int) {
			return s.KeyOffset(block, slot, head, dim), s.ValueOffset(block, slot, head, dim)
		})
	case kernels.OpCopy:
		put(0, 0, in.Key)
		put(1, 0, in.Value)
	default:
		size := s.BlockElements() * s.DType.Bytes()
		from, to := int(in.Pairs[place][0])*size, int(in.Pairs[place][1])*size
		put(0, to, in.Key[from:from+size])
		put(1, to, in.Value[from:from+size])
	}
}

// convert puts a token into a slot of a cache of shape to, in that cache's dtype; from says where its numbers are in
// keys and values of another dtype.
func (m *move) convert(to layout.Shape, block, slot int, put put, dtype layout.DType, keys, values []byte,
	from func(head, dim int) (key, value int)) {
	var code [2]byte
	size := to.DType.Bytes()
	for head := range to.KVHeads {
		for dim := range to.HeadSize {
			key, value := from(head, dim)
			to.DType.Put(code[:], 0, dtype.Get(keys, key)/m.in.KeyScale)
			put(0, to.KeyOffset(block, slot, head, dim)*size, code[:size])
			to.DType.Put(code[:], 0, dtype.Get(values, value)/m.in.ValueScale)
			put(1, to.ValueOffset(block, slot, head, dim)*size, code[:size])
		}
	}
}
