package kernels

import (
	"math"
	"math/rand/v2"
	"slices"

	"kvtune/kernels/layout"
)

// Poison is the byte that outputs are filled with before a kernel runs: NaN in every dtype.
const Poison = 0xff

// The scales of an fp8 cache: a number is code x scale. They are powers of two, so that dividing by them is exact and
// every backend rounds once and alike.
const (
	keyScale   = 1.0 / 128 // so that a few numbers beyond 3.5 are saturated
	valueScale = 1.0 / 64
)

// Inputs is the data of a case, in host memory. Numbers are drawn from the normal distribution; a key or value depends
// on the seed, its sequence, token, head and dimension only, so that the same tokens lie in every layout, under every
// block table and block size.
type Inputs struct {
	Case      Case
	Shape     layout.Shape // of the cache
	Sequences []Sequence
	Table     layout.BlockTable
	// Query is (queries, heads, head size) in the case's QueryDType; the queries of a sequence lie together.
	Query []byte
	// Key and Value are the cache. Slots that hold no token are NaN in every number.
	Key, Value []byte
	// NewKey and NewValue are the tokens to append, (tokens, KV heads, head size) in the case's QueryDType.
	NewKey, NewValue []byte
	// Slots says where the new tokens go: block x block_size + slot.
	Slots []int64
	// Pairs are source and destination of the blocks to copy or swap.
	Pairs [][2]int32
	// KeyScale and ValueScale are what the codes of an fp8 cache are multiplied with, powers of two; 1 otherwise.
	KeyScale, ValueScale float32
}

// Queries is the number of queries in the batch.
func (in *Inputs) Queries() int {
	if in.Case.Op == OpDecode {
		return len(in.Sequences)
	}
	return in.tokens(func(s Sequence) int { return s.New })
}

// ContextTokens is the number of tokens in the cache before the operation, of all sequences.
func (in *Inputs) ContextTokens() int { return in.tokens(func(s Sequence) int { return s.Context }) }

func (in *Inputs) tokens(of func(Sequence) int) int {
	sum := 0
	for _, s := range in.Sequences {
		sum += of(s)
	}
	return sum
}

// NewInputs makes the data of a case. It fails where the case is not valid.
func NewInputs(c Case) (*Inputs, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	in := &Inputs{Case: c, Shape: c.Shape(), Sequences: c.Sequences(), KeyScale: 1, ValueScale: 1}
	if c.DType == layout.FP8 || c.Op == OpQuantize {
		in.KeyScale, in.ValueScale = keyScale, valueScale
	}
	counts, _ := c.blockCounts()
	in.Table = layout.Ordered(counts)
	if c.Permuted {
		in.Table = layout.Permuted(counts, in.Shape.Blocks, c.Seed)
	}
	in.fillCache()
	switch {
	case c.Op.attention():
		in.Query = in.rows(newSource(c.QueryDType(), 1, c.Seed, streamQuery), c.Heads)
	case c.Op == OpAppend:
		in.NewKey = in.rows(newSource(c.QueryDType(), 1, c.Seed, streamKey), c.KVHeads)
		in.NewValue = in.rows(newSource(c.QueryDType(), 1, c.Seed, streamValue), c.KVHeads)
		for i, s := range in.Sequences {
			in.Slots = append(in.Slots, in.Table.SlotMapping(i, s.Context, s.Context+s.New, c.BlockSize)...)
		}
	case c.Op.pairs():
		in.Pairs = in.pairs()
	}
	return in, nil
}

// pairs sends every block in use to one of its own: in the same cache (copy_blocks) to one that is not in use, else to
// any one.
func (in *Inputs) pairs() [][2]int32 {
	from := slices.Concat(in.Table...)
	busy := make([]bool, in.Shape.Blocks)
	if in.Case.Op == OpCopyBlocks {
		for _, block := range from {
			busy[block] = true
		}
	}
	var to []int32
	for block, b := range busy {
		if !b {
			to = append(to, int32(block))
		}
	}
	if in.Case.Permuted {
		r := rand.New(rand.NewPCG(in.Case.Seed, 2))
		r.Shuffle(len(to), func(i, j int) { to[i], to[j] = to[j], to[i] })
	}
	pairs := make([][2]int32, len(from))
	for i := range from {
		pairs[i] = [2]int32{from[i], to[i]}
	}
	return pairs
}

// Destination is what the outputs hold before a kernel runs: poison, and for append and copy_blocks, which change the
// cache in place, a copy of the cache.
func (in *Inputs) Destination() Output {
	shape := in.Shape
	switch in.Case.Op {
	case OpDecode, OpPrefill:
		out := make([]float32, in.Queries()*in.Case.Heads*in.Case.HeadSize)
		for i := range out {
			out[i] = float32(math.NaN())
		}
		return Output{Attention: out}
	case OpAppend, OpCopyBlocks:
		return Output{Key: slices.Clone(in.Key), Value: slices.Clone(in.Value)}
	case OpGather:
		size := in.ContextTokens() * int(shape.BytesPerToken()) / 2
		return Output{Key: poisoned(size), Value: poisoned(size)}
	case OpRead:
		return Output{}
	case OpQuantize:
		shape.DType = layout.FP8
	}
	size := int(shape.Bytes() / 2)
	return Output{Key: poisoned(size), Value: poisoned(size)}
}

func poisoned(size int) []byte {
	b := make([]byte, size)
	if size > 0 {
		b[0] = Poison
	}
	for n := 1; n < size; n *= 2 {
		copy(b[n:], b[:n])
	}
	return b
}
