// Package ref runs every case in plain Go, as its definition says and with attention in float64: the truth that the
// other backends are checked against. It is written to be read, not to be fast.
package ref

import (
	"encoding/binary"
	"fmt"

	"kvtune/kernels"
)

// Load prepares a case; every valid one can be run.
func Load(in *kernels.Inputs) (kernels.Kernel, error) {
	if err := in.Case.Validate(); err != nil {
		return nil, err
	}
	return &kernel{in: in}, nil
}

// Output runs a case once: what it must leave behind.
func Output(in *kernels.Inputs) (kernels.Output, error) {
	k, err := Load(in)
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
	case kernels.OpRead:
		out.Sum = sum(in.Key) + sum(in.Value)
	default:
		m := newMove(in)
		for place := range m.places() {
			m.visit(place, func(array, at int, data []byte) { copy([][]byte{out.Key, out.Value}[array][at:], data) })
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
