// Package layout is the geometry of a paged KV cache: where the key and the value of a token lie in memory, which block
// a token of a sequence is in, and how its numbers are coded. It is pure arithmetic, shared by every backend.
//
// A cache is two arrays, keys and values, of [Shape.Elements] numbers each. It is cut into blocks of BlockSize slots;
// a slot holds one token. A [BlockTable] says which blocks belong to a sequence, in order. The words are vLLM's.
package layout

import (
	"fmt"
	"slices"
	"strings"
)

// Layout is the order of a cache's dimensions, slowest first.
type Layout uint8

const (
	// NHD is (blocks, slots, heads, head size), for keys and values.
	NHD Layout = iota
	// HND is (blocks, heads, slots, head size), for keys and values.
	HND
	// XPacked is the layout of vLLM's first paged attention kernels: keys (blocks, heads, head size / x, slots, x)
	// with x the numbers in 16 bytes, values (blocks, heads, head size, slots).
	XPacked
)

// Layouts lists every layout.
func Layouts() []Layout { return []Layout{NHD, HND, XPacked} }

// String is the layout's name: NHD, HND or x-packed.
func (l Layout) String() string {
	switch l {
	case NHD:
		return "NHD"
	case HND:
		return "HND"
	case XPacked:
		return "x-packed"
	}
	return fmt.Sprintf("Layout(%d)", uint8(l))
}

// MarshalText writes the layout's name.
func (l Layout) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads a layout's name.
func (l *Layout) UnmarshalText(text []byte) (err error) {
	*l, err = named("layout", string(text), Layouts())
	return err
}

// named finds the value whose String is name.
func named[T fmt.Stringer](what, name string, values []T) (T, error) {
	i := slices.IndexFunc(values, func(v T) bool { return v.String() == name })
	if i < 0 {
		var none T
		legal := make([]string, len(values))
		for i, v := range values {
			legal[i] = v.String()
		}
		return none, fmt.Errorf("%s %q: want one of %s", what, name, strings.Join(legal, ", "))
	}
	return values[i], nil
}

// Shape is the shape of a cache. Offsets are in elements, from the start of the key array or of the value array.
type Shape struct {
	Layout    Layout `json:"layout"`
	DType     DType  `json:"dtype"`
	Blocks    int    `json:"blocks"`
	BlockSize int    `json:"block_size"` // slots in a block
	KVHeads   int    `json:"kv_heads"`
	HeadSize  int    `json:"head_size"` // numbers in a head's key, and in its value
}

// Validate says what is wrong with a shape, nil if nothing is.
func (s Shape) Validate() error {
	for _, f := range []struct {
		name  string
		value int
	}{{"blocks", s.Blocks}, {"block_size", s.BlockSize}, {"kv_heads", s.KVHeads}, {"head_size", s.HeadSize}} {
		if f.value < 1 || f.value > 1<<31-1 {
			return fmt.Errorf("%s is %d: want 1 to 2147483647", f.name, f.value)
		}
	}
	if !slices.Contains(Layouts(), s.Layout) {
		return fmt.Errorf("unknown layout %v", s.Layout)
	}
	if !slices.Contains(DTypes(), s.DType) {
		return fmt.Errorf("unknown dtype %v", s.DType)
	}
	if s.Layout == XPacked && s.HeadSize%s.X() != 0 {
		return fmt.Errorf("head_size is %d: an x-packed %v cache wants a multiple of %d", s.HeadSize, s.DType, s.X())
	}
	if size := float64(s.Blocks) * float64(s.BlockSize) * float64(s.BytesPerToken()); size > 1<<50 {
		return fmt.Errorf("a cache of %.3g bytes: want at most 1 PiB", size)
	}
	return nil
}

// X is the x of the x-packed layout: how many numbers 16 bytes hold.
func (s Shape) X() int { return 16 / s.DType.Bytes() }

// Slots is the number of tokens that the cache holds.
func (s Shape) Slots() int { return s.Blocks * s.BlockSize }

// Elements is the length of the key array, which is that of the value array.
func (s Shape) Elements() int { return s.Slots() * s.KVHeads * s.HeadSize }

// Bytes is the size of keys and values together.
func (s Shape) Bytes() int64 { return int64(s.Slots()) * s.BytesPerToken() }

// BytesPerToken is the size of one token's key and value, in one layer.
func (s Shape) BytesPerToken() int64 {
	return 2 * int64(s.KVHeads) * int64(s.HeadSize) * int64(s.DType.Bytes())
}

// BlockElements is how many elements of the key array, or of the value array, one block has. A block is contiguous in
// every layout.
func (s Shape) BlockElements() int { return s.BlockSize * s.KVHeads * s.HeadSize }

// KeyOffset is where dimension dim of the key of the token in a slot lies. The arguments must be within the shape.
func (s Shape) KeyOffset(block, slot, head, dim int) int {
	if s.Layout == XPacked {
		x := s.X()
		return (((block*s.KVHeads+head)*(s.HeadSize/x)+dim/x)*s.BlockSize+slot)*x + dim%x
	}
	return s.rowOffset(block, slot, head) + dim
}

// ValueOffset is where dimension dim of the value of the token in a slot lies. The arguments must be within the shape.
func (s Shape) ValueOffset(block, slot, head, dim int) int {
	if s.Layout == XPacked {
		return ((block*s.KVHeads+head)*s.HeadSize+dim)*s.BlockSize + slot
	}
	return s.rowOffset(block, slot, head) + dim
}

// KeyRun is how many dimensions of a key lie side by side, from every multiple of it on.
func (s Shape) KeyRun() int {
	if s.Layout == XPacked {
		return s.X()
	}
	return s.HeadSize
}

// ValueRun is how many dimensions of a value lie side by side.
func (s Shape) ValueRun() int {
	if s.Layout == XPacked {
		return 1
	}
	return s.HeadSize
}

// rowOffset is where a head's contiguous row begins in the layouts that have one.
func (s Shape) rowOffset(block, slot, head int) int {
	if s.Layout == HND {
		return ((block*s.KVHeads+head)*s.BlockSize + slot) * s.HeadSize
	}
	return ((block*s.BlockSize+slot)*s.KVHeads + head) * s.HeadSize
}
