package kernels

import (
	"encoding"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"kvtune/kernels/layout"
)

// Op is an operation on a paged KV cache.
type Op string

const (
	// OpDecode is attention of one query per sequence over its Context tokens.
	OpDecode Op = "decode"
	// OpPrefill is attention of the New last tokens of every sequence over the Context cached ones before them and,
	// causally, themselves: query i sees Context + i + 1 tokens. All of their keys and values are in the cache.
	OpPrefill Op = "prefill"
	// OpAppend writes the keys and values of New tokens per sequence behind its Context tokens, by slot mapping. Into
	// an fp8 cache they are quantised.
	OpAppend Op = "append"
	// OpGather copies the Context tokens of every sequence out of the cache into contiguous arrays.
	OpGather Op = "gather"
	// OpCopyBlocks copies every block that the sequences use to another block of the same cache.
	OpCopyBlocks Op = "copy_blocks"
	// OpSwapOut copies every block that the sequences use to a cache in host memory (pinned, where there is a device),
	// to another block there.
	OpSwapOut Op = "swap_out"
	// OpSwapIn copies the same number of blocks back from a cache in host memory.
	OpSwapIn Op = "swap_in"
	// OpQuantize converts the Context tokens of every sequence from a 16-bit cache to an fp8 cache of the same layout,
	// in the same slots.
	OpQuantize Op = "quantize"
	// OpCopy copies the whole cache: the ceiling of what reads and writes.
	OpCopy Op = "copy"
	// OpRead reads the whole cache and adds it up: the ceiling of what only reads.
	OpRead Op = "read"
)

// Ops lists every operation.
func Ops() []Op {
	return []Op{OpDecode, OpPrefill, OpAppend, OpGather, OpCopyBlocks, OpSwapOut, OpSwapIn, OpQuantize, OpCopy, OpRead}
}

// attention says whether the operation has queries.
func (op Op) attention() bool { return op == OpDecode || op == OpPrefill }

// hasNew says whether the operation has new tokens.
func (op Op) hasNew() bool { return op == OpPrefill || op == OpAppend }

// pairs says whether the operation moves whole blocks.
func (op Op) pairs() bool { return op == OpCopyBlocks || op == OpSwapOut || op == OpSwapIn }

// Case is one operation with the shape it works on. It is comparable, and [Case.Name] and [ParseCase] are each other's
// inverse.
type Case struct {
	Op        Op
	Layout    layout.Layout
	BlockSize int // slots in a block: a power of two, 1 to 256
	DType     layout.DType
	Heads     int // query heads: a multiple of KVHeads, at most 8 times as many; only attention has queries
	KVHeads   int
	HeadSize  int // 64 or 128
	Batch     int // sequences
	Context   int // tokens in the cache per sequence, before the new ones
	New       int // new tokens per sequence: prefill and append; 0 elsewhere
	Ragged    bool
	Permuted  bool // blocks lie at random in the cache, else one behind the other
	Seed      uint64
}

// Sequence is the length of one sequence of a batch, in tokens.
type Sequence struct {
	Context int // in the cache before the operation
	New     int // prefill, append
}

// axes are the parts of a case's name, in order.
var axes = [...]string{"layout", "block_size", "dtype", "heads", "kv_heads", "head_size", "batch", "context", "new",
	"lengths", "table", "seed"}

// Axes are the names that [Case.With] takes, in the order in which they stand in a case's name.
func Axes() []string { return slices.Clone(axes[:]) }

// axis is the value of one of axes as it is written in the name.
func (c Case) axis(name string) string {
	switch name {
	case "layout":
		return c.Layout.String()
	case "dtype":
		return c.DType.String()
	case "lengths":
		return either(c.Ragged, "ragged", "equal")
	case "table":
		return either(c.Permuted, "permuted", "ordered")
	case "seed":
		return strconv.FormatUint(c.Seed, 10)
	}
	return strconv.Itoa(*c.number(name))
}

// number is the field of an axis that is a whole number, nil where there is none.
func (c *Case) number(axis string) *int {
	switch axis {
	case "block_size":
		return &c.BlockSize
	case "heads":
		return &c.Heads
	case "kv_heads":
		return &c.KVHeads
	case "head_size":
		return &c.HeadSize
	case "batch":
		return &c.Batch
	case "context":
		return &c.Context
	case "new":
		return &c.New
	}
	return nil
}

// With is the case with one axis set to a value, as it is written in a name. It does not validate the whole.
func (c Case) With(axis, value string) (Case, error) {
	text := func(v encoding.TextUnmarshaler) (Case, error) {
		err := v.UnmarshalText([]byte(value))
		return c, err
	}
	word := func(field *bool, yes, no string) (Case, error) {
		if value != yes && value != no {
			return c, fmt.Errorf("%s %q: want %s or %s", axis, value, yes, no)
		}
		*field = value == yes
		return c, nil
	}
	switch axis {
	case "layout":
		return text(&c.Layout)
	case "dtype":
		return text(&c.DType)
	case "lengths":
		return word(&c.Ragged, "ragged", "equal")
	case "table":
		return word(&c.Permuted, "permuted", "ordered")
	case "seed":
		seed, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			return c, fmt.Errorf("seed %q: want a whole number from 0 to 18446744073709551615", value)
		}
		c.Seed = seed
		return c, nil
	}
	field := c.number(axis)
	if field == nil {
		return c, fmt.Errorf("unknown axis %q: want one of %s", axis, strings.Join(axes[:], ", "))
	}
	n, err := strconv.Atoi(value)
	if err != nil || n < 0 {
		return c, fmt.Errorf("%s %q: want a whole number", axis, value)
	}
	*field = n
	return c, nil
}

func either(condition bool, yes, no string) string {
	if condition {
		return yes
	}
	return no
}

// Name is the case as the name of a Go benchmark: the operation, then /axis=value for every axis that is not at its
// default (new 0, lengths equal, seed 0 are left out).
func (c Case) Name() string {
	var b strings.Builder
	b.WriteString(string(c.Op))
	for _, axis := range axes {
		value := c.axis(axis)
		if axis == "new" && c.New == 0 || axis == "lengths" && !c.Ragged || axis == "seed" && c.Seed == 0 {
			continue
		}
		fmt.Fprintf(&b, "/%s=%s", axis, value)
	}
	return b.String()
}

// ParseCase reads a name that [Case.Name] has written, with the axes in any order, and validates the case.
func ParseCase(name string) (Case, error) {
	op, rest, _ := strings.Cut(name, "/")
	c := Case{Op: Op(op)}
	for part := range strings.SplitSeq(rest, "/") {
		axis, value, ok := strings.Cut(part, "=")
		if !ok {
			return c, fmt.Errorf("case %q: %q is not axis=value", name, part)
		}
		var err error
		if c, err = c.With(axis, value); err != nil {
			return c, fmt.Errorf("case %q: %w", name, err)
		}
	}
	return c, c.Validate()
}

// Validate says what is wrong with a case, nil if nothing is.
func (c Case) Validate() error {
	err := c.validate()
	if err != nil {
		return fmt.Errorf("case %s: %w", c.Name(), err)
	}
	return nil
}

func (c Case) validate() error {
	const most = 1 << 24 // of sequences, of tokens: their product stays far below 2^63
	switch {
	case !slices.Contains(Ops(), c.Op):
		return fmt.Errorf("unknown operation %q: want one of %v", c.Op, Ops())
	case c.BlockSize < 1 || c.BlockSize > 256 || bits.OnesCount(uint(c.BlockSize)) != 1:
		return fmt.Errorf("block_size is %d: want a power of two from 1 to 256", c.BlockSize)
	case c.HeadSize != 64 && c.HeadSize != 128:
		return fmt.Errorf("head_size is %d: want 64 or 128", c.HeadSize)
	case c.KVHeads < 1 || c.KVHeads > 1024:
		return fmt.Errorf("kv_heads is %d: want 1 to 1024", c.KVHeads)
	case c.Heads < c.KVHeads || c.Heads > 8*c.KVHeads || c.Heads%c.KVHeads != 0:
		return fmt.Errorf("heads is %d: want 1 to 8 times kv_heads, which is %d", c.Heads, c.KVHeads)
	case c.Batch < 1 || c.Batch > most:
		return fmt.Errorf("batch is %d: want 1 to %d", c.Batch, most)
	case c.Context < 0 || c.Context > most || c.Context == 0 && !c.Op.hasNew():
		return fmt.Errorf("context is %d: want 1 to %d (prefill and append: also 0)", c.Context, most)
	case c.Op.hasNew() && (c.New < 1 || c.New > most):
		return fmt.Errorf("new is %d: %s wants 1 to %d", c.New, c.Op, most)
	case !c.Op.hasNew() && c.New != 0:
		return fmt.Errorf("new is %d: %s has no new tokens", c.New, c.Op)
	case c.Op == OpQuantize && c.DType == layout.FP8:
		return fmt.Errorf("quantize wants a bf16 or fp16 cache to convert to fp8")
	case float64(c.Batch)*float64(c.Context+c.New+c.BlockSize) > 1<<31-1:
		return fmt.Errorf("batch %d of %d tokens: want at most 2147483647 slots", c.Batch, c.Context+c.New)
	}
	return c.Shape().Validate()
}

// Sequences are the lengths of the batch. With Ragged every one is drawn evenly up to the case's Context and New
// (Context from 1, or 0 where New follows); the first has both in full. The same seed draws the same.
func (c Case) Sequences() []Sequence {
	r := rand.New(rand.NewPCG(c.Seed, 1))
	list := make([]Sequence, c.Batch)
	for i := range list {
		list[i] = Sequence{c.Context, c.New}
		if !c.Ragged || i == 0 {
			continue
		}
		if c.Op.hasNew() {
			list[i] = Sequence{r.IntN(c.Context + 1), 1 + r.IntN(c.New)}
		} else {
			list[i].Context = 1 + r.IntN(c.Context)
		}
	}
	return list
}

// QueryDType is the dtype of queries, of the attention's output, and of the tokens that append writes: the cache's,
// bf16 for an fp8 cache.
func (c Case) QueryDType() layout.DType {
	if c.DType == layout.FP8 {
		return layout.BF16
	}
	return c.DType
}

// blockCounts is how many blocks every sequence uses, and their sum.
func (c Case) blockCounts() (counts []int, sum int) {
	for _, s := range c.Sequences() {
		n := layout.BlocksFor(s.Context+s.New, c.BlockSize)
		counts = append(counts, n)
		sum += n
	}
	return counts, sum
}

// Shape is the shape of the cache: the blocks of all sequences, with copy_blocks as many again to copy to, and one that
// nothing uses.
func (c Case) Shape() layout.Shape {
	_, blocks := c.blockCounts()
	if c.Op == OpCopyBlocks {
		blocks *= 2
	}
	return layout.Shape{Layout: c.Layout, DType: c.DType, Blocks: blocks + 1, BlockSize: c.BlockSize, KVHeads: c.KVHeads,
		HeadSize: c.HeadSize}
}

// Bytes is how many bytes the operation must move, each counted once however often a kernel touches it: attention reads
// queries, keys and values and writes its output; block tables do not count. copy and what is like it count a byte read
// and a byte written; a swap counts the bytes that cross the link, once.
func (c Case) Bytes() int64 {
	var context, added int64
	for _, s := range c.Sequences() {
		context += int64(s.Context)
		added += int64(s.New)
	}
	shape := c.Shape()
	token := shape.BytesPerToken()
	wide := token / int64(c.DType.Bytes()) * int64(c.QueryDType().Bytes()) // the same token in the query's dtype
	query := 2 * int64(c.Heads) * int64(c.HeadSize) * int64(c.QueryDType().Bytes())
	_, blocks := c.blockCounts()
	moved := int64(blocks) * int64(c.BlockSize) * token
	switch c.Op {
	case OpDecode:
		return context*token + int64(c.Batch)*query
	case OpPrefill:
		return (context+added)*token + added*query
	case OpAppend:
		return added * (wide + token)
	case OpGather:
		return 2 * context * token
	case OpCopyBlocks:
		return 2 * moved
	case OpSwapOut, OpSwapIn:
		return moved
	case OpQuantize:
		return context * (token + token/2)
	case OpCopy:
		return 2 * shape.Bytes()
	}
	return shape.Bytes()
}

// Flops is how many floating point operations attention takes: a multiplication and an addition for every number of
// every key and every value that a query sees. It is 0 for the operations that only move.
func (c Case) Flops() float64 {
	if !c.Op.attention() {
		return 0
	}
	seen := 0.0 // (query, token) pairs
	for _, s := range c.Sequences() {
		context, added := float64(s.Context), float64(s.New)
		if c.Op == OpDecode {
			seen += context
		} else {
			seen += added*context + added*(added+1)/2
		}
	}
	return 4 * seen * float64(c.Heads) * float64(c.HeadSize)
}
