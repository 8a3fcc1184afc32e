// Package ref runs every case in plain Go, as its definition says and with attention in float64: the truth that the
// other backends are checked against. It is written to be read, not to be fast.
package ref

import (
	"encoding/binary"
	"fmt"

	"kvtune/kernels"
	"kvtune/kernels/layout"
)

// Backend is the reference backend. The zero value is ready.
type Backend struct{}

// Name is "ref".
func (Backend) Name() string { return "ref" }

// Load prepares a case; every valid one can be run.
func (Backend) Load(in *kernels.Inputs) (kernels.Kernel, error) {
	if err := in.Case.Validate(); err != nil {
		return nil, err
	}
	return &kernel{in: in}, nil
}

// Output runs a case once: what it must leave behind.
func Output(in *kernels.Inputs) (kernels.Output, error) {
	k, err := Backend{}.Load(in)
	if err != nil {
		return kernels.Output{}, err
	}
	if err := k.Run(1); err != nil {
		return kernels.Output{}, err
	}
	return k.Output()
}

type kernel struct {
	in  *kernels.Inputs
	out *kernels.Output // nil before the first run
}

// Run does the operation n times, each from a fresh destination.
func (k *kernel) Run(n int) error {
	for range n {
		out := k.in.Destination()
		run(k.in, &out)
		k.out = &out
	}
	return nil
}

// Output is what the last run left.
func (k *kernel) Output() (kernels.Output, error) {
	if k.out == nil {
		return kernels.Output{}, fmt.Errorf("case %s has not been run", k.in.Case.Name())
	}
	return *k.out, nil
}

// Close drops the inputs.
func (k *kernel) Close() error {
	*k = kernel{}
	return nil
}

func run(in *kernels.Inputs, out *kernels.Output) {
	switch in.Case.Op {
	case kernels.OpDecode, kernels.OpPrefill:
		attention(in, out.Attention)
	case kernels.OpAppend:
		appendTokens(in, out)
	case kernels.OpGather:
		gather(in, out)
	case kernels.OpCopyBlocks, kernels.OpSwapOut, kernels.OpSwapIn:
		size := in.Shape.BlockElements() * in.Shape.DType.Bytes()
		for _, p := range in.Pairs {
			from, to := int(p[0])*size, int(p[1])*size
			copy(out.Key[to:to+size], in.Key[from:from+size])
			copy(out.Value[to:to+size], in.Value[from:from+size])
		}
	case kernels.OpQuantize:
		quantize(in, out)
	case kernels.OpCopy:
		copy(out.Key, in.Key)
		copy(out.Value, in.Value)
	case kernels.OpRead:
		out.Sum = sum(in.Key) + sum(in.Value)
	}
}

// appendTokens writes token i to slot Slots[i] of the cache.
func appendTokens(in *kernels.Inputs, out *kernels.Output) {
	s, from := in.Shape, in.Case.QueryDType()
	for i, at := range in.Slots {
		block, slot := int(at)/s.BlockSize, int(at)%s.BlockSize
		for head := range s.KVHeads {
			for dim := range s.HeadSize {
				source := (i*s.KVHeads+head)*s.HeadSize + dim
				key, value := from.Get(in.NewKey, source), from.Get(in.NewValue, source)
				s.DType.Put(out.Key, s.KeyOffset(block, slot, head, dim), key/in.KeyScale)
				s.DType.Put(out.Value, s.ValueOffset(block, slot, head, dim), value/in.ValueScale)
			}
		}
	}
}

// gather copies the tokens of all sequences to contiguous rows.
func gather(in *kernels.Inputs, out *kernels.Output) {
	s, size, row := in.Shape, in.Shape.DType.Bytes(), 0
	eachToken(in, func(block, slot int) {
		for head := range s.KVHeads {
			for dim := range s.HeadSize {
				to := ((row*s.KVHeads+head)*s.HeadSize + dim) * size
				key := s.KeyOffset(block, slot, head, dim) * size
				value := s.ValueOffset(block, slot, head, dim) * size
				copy(out.Key[to:to+size], in.Key[key:key+size])
				copy(out.Value[to:to+size], in.Value[value:value+size])
			}
		}
		row++
	})
}

// quantize converts the tokens of all sequences to fp8, slot by slot. The x of an x-packed cache changes with the
// dtype, and so do the offsets.
func quantize(in *kernels.Inputs, out *kernels.Output) {
	from, to := in.Shape, in.Shape
	to.DType = layout.FP8
	eachToken(in, func(block, slot int) {
		for head := range from.KVHeads {
			for dim := range from.HeadSize {
				key := from.DType.Get(in.Key, from.KeyOffset(block, slot, head, dim))
				value := from.DType.Get(in.Value, from.ValueOffset(block, slot, head, dim))
				to.DType.Put(out.Key, to.KeyOffset(block, slot, head, dim), key/in.KeyScale)
				to.DType.Put(out.Value, to.ValueOffset(block, slot, head, dim), value/in.ValueScale)
			}
		}
	})
}

// eachToken visits the Context tokens of every sequence, in order.
func eachToken(in *kernels.Inputs, visit func(block, slot int)) {
	for i, s := range in.Sequences {
		for token := range s.Context {
			visit(in.Table.Find(i, token, in.Shape.BlockSize))
		}
	}
}

// sum adds an array up as little-endian 32-bit words, modulo 2^32. Arrays are whole words long: heads have 64 numbers
// or more.
func sum(array []byte) uint32 {
	var s uint32
	for i := 0; i < len(array); i += 4 {
		s += binary.LittleEndian.Uint32(array[i:])
	}
	return s
}
