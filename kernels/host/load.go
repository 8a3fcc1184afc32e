//go:build cgo

package host

// #include "host.h"
import "C"

import (
	"fmt"
	"unsafe"

	"kvtune/kernels"
	"kvtune/kernels/layout"
)

// alloc is an array of n values in C's memory.
func alloc[T any](k *kernel, n int) []T {
	var zero T
	bytes := n * int(unsafe.Sizeof(zero))
	p := C.host_alloc(C.int64_t(bytes))
	if p == nil {
		if k.err == nil {
			k.err = fmt.Errorf("case %s: no memory for %d bytes", k.name, bytes)
		}
		return make([]T, n) // Go's, so that the rest of a load that has failed needs no care
	}
	k.arrays = append(k.arrays, p)
	return unsafe.Slice((*T)(p), n)
}

// clone is a copy of an array in C's memory.
func clone[T any](k *kernel, from []T) []T {
	to := alloc[T](k, len(from))
	copy(to, from)
	return to
}

// at is an array as C has it.
func at[To, From any](array []From) *To { return (*To)(unsafe.Pointer(unsafe.SliceData(array))) }

// load fills the case that C sees.
func (k *kernel) load(in *kernels.Inputs) error {
	arrangement, err := arrangement(in.Shape.Layout)
	if err != nil {
		return err
	}
	c := &alloc[C.struct_host_case](k, 1)[0]
	*c = C.struct_host_case{
		op: operation(in.Case.Op), layout: arrangement, dtype: number(in.Shape.DType),
		query_dtype: number(in.Case.QueryDType()), heads: C.int32_t(in.Case.Heads), kv_heads: C.int32_t(in.Case.KVHeads),
		head_size: C.int32_t(in.Case.HeadSize), batch: C.int32_t(in.Case.Batch),
		key_scale: C.float(in.KeyScale), value_scale: C.float(in.ValueScale),
	}
	for 1<<c.block_shift < in.Shape.BlockSize {
		c.block_shift++
	}
	c.query = at[C.uint8_t](clone(k, in.Query))
	c.new_key, c.new_value = at[C.uint8_t](clone(k, in.NewKey)), at[C.uint8_t](clone(k, in.NewValue))
	c.slots = at[C.int64_t](clone(k, in.Slots))
	c.pairs = at[C.int32_t](clone(k, in.Pairs))
	key, value := clone(k, in.Key), clone(k, in.Value)
	c.key, c.value = at[C.uint8_t](key), at[C.uint8_t](value)
	switch in.Case.Op {
	case kernels.OpRead:
	case kernels.OpAppend, kernels.OpCopyBlocks: // in place
		k.out = kernels.Output{Key: key, Value: value}
	default:
		d := in.Destination()
		k.out = kernels.Output{Attention: clone(k, d.Attention), Key: clone(k, d.Key), Value: clone(k, d.Value)}
	}
	c.out = at[C.float](k.out.Attention)
	c.out_key, c.out_value = at[C.uint8_t](k.out.Key), at[C.uint8_t](k.out.Value)
	k.loadSequences(c, in)
	k.loadItems(c, in, shares()[0])
	c.scratch_bytes = (C.host_scratch(c, k.backend.variant) + 63) / 64 * 64
	c.scratch = at[C.uint8_t](alloc[byte](k, int(c.scratch_bytes)*k.backend.Threads()))
	k.c = c
	k.in = *in // what is cut from later has not the data
	k.in.Query, k.in.Key, k.in.Value, k.in.NewKey, k.in.NewValue = nil, nil, nil, nil, nil
	return k.err
}

// loadSequences fills what C knows of every sequence.
func (k *kernel) loadSequences(c *C.struct_host_case, in *kernels.Inputs) {
	n := len(in.Sequences)
	context, added, first := alloc[int32](k, n), alloc[int32](k, n), alloc[int32](k, n)
	start := alloc[int64](k, n)
	row, block := 0, 0
	for i, s := range in.Sequences {
		context[i], added[i], first[i], start[i] = int32(s.Context), int32(s.New), int32(row), int64(block)
		if in.Case.Op == kernels.OpPrefill {
			row += s.New
		} else {
			row += s.Context
		}
		block += len(in.Table[i])
	}
	table := alloc[int32](k, block)
	for i, blocks := range in.Table {
		copy(table[start[i]:], blocks)
	}
	c.context, c.added, c.first = at[C.int32_t](context), at[C.int32_t](added), at[C.int32_t](first)
	c.table, c.table_start = at[C.int32_t](table), at[C.int64_t](start)
}

// loadItems cuts the work.
func (k *kernel) loadItems(c *C.struct_host_case, in *kernels.Inputs, share int) {
	items, start := cut(in, k.backend.Threads(), share)
	list := alloc[C.struct_item](k, len(items))
	for i, w := range items {
		list[i] = C.struct_item{sequence: C.int32_t(w.sequence), from: C.int32_t(w.from), to: C.int32_t(w.to),
			kv_head: C.int32_t(w.kvHead)}
	}
	c.items, c.item_count = at[C.struct_item](list), C.int32_t(len(items))
	c.item_start = at[C.int32_t](clone(k, start))
	switch in.Case.Op {
	case kernels.OpDecode:
		c.partial = at[C.float](alloc[float32](k, len(items)*in.Case.Heads*(in.Case.HeadSize+2)))
	case kernels.OpRead:
		c.sums = at[C.uint32_t](alloc[uint32](k, len(items)))
	}
}

func operation(op kernels.Op) C.int32_t {
	switch op {
	case kernels.OpDecode:
		return C.DECODE
	case kernels.OpPrefill:
		return C.PREFILL
	case kernels.OpAppend:
		return C.APPEND
	case kernels.OpGather:
		return C.GATHER
	case kernels.OpQuantize:
		return C.QUANTIZE
	case kernels.OpCopy:
		return C.COPY
	case kernels.OpRead:
		return C.READ
	}
	return C.MOVE_BLOCKS
}

func arrangement(l layout.Layout) (C.int32_t, error) {
	switch l {
	case layout.NHD:
		return C.NHD, nil
	case layout.HND:
		return C.HND, nil
	case layout.XPacked:
		return C.XPACKED, nil
	}
	return 0, fmt.Errorf("%w: layout %v", kernels.ErrUnsupported, l)
}

func number(d layout.DType) C.int32_t {
	switch d {
	case layout.BF16:
		return C.BF16
	case layout.FP16:
		return C.FP16
	}
	return C.FP8
}
