package kernels_test

import (
	"bytes"
	"math"
	"slices"
	"strings"
	"testing"

	"kvtune/kernels"
	"kvtune/kernels/layout"
)

// small is a case that every test can afford.
func small(op kernels.Op) kernels.Case {
	c := kernels.Case{Op: op, BlockSize: 16, Heads: 8, KVHeads: 2, HeadSize: 64, Batch: 3, Context: 70, Ragged: true,
		Permuted: true, Seed: 7}
	if op == kernels.OpPrefill || op == kernels.OpAppend {
		c.New = 20
	}
	return c
}

func TestNameAndParseCaseAreInverse(t *testing.T) {
	for _, op := range kernels.Ops() {
		c := small(op)
		c.Layout = layout.XPacked
		back, err := kernels.ParseCase(c.Name())
		if err != nil || back != c {
			t.Errorf("%s: %+v, %v", c.Name(), back, err)
		}
	}
	want := "decode/layout=HND/block_size=16/dtype=fp8/heads=32/kv_heads=8/head_size=128/batch=32/context=4096/" +
		"table=ordered"
	c, err := kernels.ParseCase(want)
	if err != nil || c.Name() != want {
		t.Errorf("%q, %v", c.Name(), err)
	}
}

func TestCasesThatAreRefused(t *testing.T) {
	for _, name := range []string{
		"dance/layout=NHD",
		"decode/layout=NDH",
		"decode/layout",
		"decode/color=red",
		"decode/block_size=many",
		"decode/lengths=odd",
		"decode/seed=-1",
		"decode/layout=NHD/block_size=3/dtype=bf16/heads=8/kv_heads=8/head_size=64/batch=1/context=1/table=ordered",
		"decode/layout=NHD/block_size=8/dtype=bf16/heads=9/kv_heads=8/head_size=64/batch=1/context=1/table=ordered",
		"decode/layout=NHD/block_size=8/dtype=bf16/heads=8/kv_heads=8/head_size=80/batch=1/context=1/table=ordered",
		"decode/layout=NHD/block_size=8/dtype=bf16/heads=8/kv_heads=8/head_size=64/batch=1/context=0/table=ordered",
		"decode/layout=NHD/block_size=8/dtype=bf16/heads=8/kv_heads=8/head_size=64/batch=1/context=1/new=1/table=ordered",
		"prefill/layout=NHD/block_size=8/dtype=bf16/heads=8/kv_heads=8/head_size=64/batch=1/context=1/table=ordered",
		"quantize/layout=NHD/block_size=8/dtype=fp8/heads=8/kv_heads=8/head_size=64/batch=1/context=1/table=ordered",
	} {
		if _, err := kernels.ParseCase(name); err == nil {
			t.Errorf("%s is taken for valid", name)
		}
	}
}

// Bytes and flops by hand: 2 sequences of 96 + 32 tokens, 4 query and 2 KV heads of 64, blocks of 16; a bf16 token
// takes 512 bytes, a bf16 query or its output 512.
func TestBytesAndFlops(t *testing.T) {
	for _, c := range []struct {
		op    kernels.Op
		dtype layout.DType
		bytes int64
		flops float64
	}{
		{kernels.OpDecode, layout.BF16, 2 * (96*512 + 2*512), 4 * 2 * 96 * 4 * 64},
		{kernels.OpDecode, layout.FP8, 2 * (96*256 + 2*512), 4 * 2 * 96 * 4 * 64},
		{kernels.OpPrefill, layout.FP16, 2 * (128*512 + 32*2*512), 4 * 2 * (32*96 + 32*33/2) * 4 * 64},
		{kernels.OpAppend, layout.BF16, 2 * 32 * 2 * 512, 0},
		{kernels.OpAppend, layout.FP8, 2 * 32 * (512 + 256), 0},
		{kernels.OpGather, layout.BF16, 2 * 2 * 96 * 512, 0},
		{kernels.OpCopyBlocks, layout.BF16, 2 * 2 * 96 * 512, 0},
		{kernels.OpSwapOut, layout.FP8, 2 * 96 * 256, 0},
		{kernels.OpQuantize, layout.FP16, 2 * 96 * (512 + 256), 0},
		{kernels.OpCopy, layout.BF16, 2 * (2*96 + 16) * 512, 0},
		{kernels.OpRead, layout.BF16, (2*96 + 16) * 512, 0},
	} {
		k := kernels.Case{Op: c.op, BlockSize: 16, DType: c.dtype, Heads: 4, KVHeads: 2, HeadSize: 64, Batch: 2, Context: 96}
		if c.op == kernels.OpPrefill || c.op == kernels.OpAppend {
			k.New = 32
		}
		if err := k.Validate(); err != nil {
			t.Error(err)
		}
		if k.Bytes() != c.bytes || k.Flops() != c.flops {
			t.Errorf("%s: %d bytes, %g flops, want %d, %g", k.Name(), k.Bytes(), k.Flops(), c.bytes, c.flops)
		}
	}
}

func TestSequences(t *testing.T) {
	c := small(kernels.OpPrefill)
	c.Batch = 200
	list := c.Sequences()
	if list[0] != (kernels.Sequence{Context: c.Context, New: c.New}) || !slices.Equal(list, c.Sequences()) {
		t.Errorf("the first of the ragged sequences is %+v, or two draws differ", list[0])
	}
	none, distinct := false, map[kernels.Sequence]bool{}
	for _, s := range list {
		if s.Context < 0 || s.Context > c.Context || s.New < 1 || s.New > c.New {
			t.Fatalf("%+v is out of range", s)
		}
		none = none || s.Context == 0
		distinct[s] = true
	}
	if !none || len(distinct) < 100 {
		t.Errorf("%d distinct sequences; one without context: %v", len(distinct), none)
	}
}

// The same seed makes the same bytes, another one does not, and the numbers have mean 0 and variance 1.
func TestInputsAreSeeded(t *testing.T) {
	c := small(kernels.OpDecode)
	c.Context = 2000
	a, b := inputs(t, c), inputs(t, c)
	if !bytes.Equal(a.Key, b.Key) || !bytes.Equal(a.Query, b.Query) {
		t.Error("the same seed makes different bytes")
	}
	c.Seed++
	if bytes.Equal(a.Query, inputs(t, c).Query) || bytes.Equal(a.Key, a.Value) {
		t.Error("streams do not depend on the seed, or not on what they are for")
	}
	var n, sum, squares float64
	for i := range len(a.Value) / 2 {
		if v := float64(a.Shape.DType.Get(a.Value, i)); v == v {
			n, sum, squares = n+1, sum+v, squares+v*v
		}
	}
	if n != float64(a.ContextTokens()*128) || math.Abs(sum/n) > 0.01 || math.Abs(squares/n-1) > 0.01 {
		t.Errorf("%g numbers of mean %g and variance %g", n, sum/n, squares/n)
	}
}

// The pairs use every block in use once as a source, no block twice as a destination, and copy_blocks overwrites none.
func TestPairs(t *testing.T) {
	for _, op := range []kernels.Op{kernels.OpCopyBlocks, kernels.OpSwapIn} {
		in := inputs(t, small(op))
		from, to := map[int32]bool{}, map[int32]bool{}
		for _, p := range in.Pairs {
			from[p[0]], to[p[1]] = true, true
		}
		used := slices.Concat(in.Table...)
		if len(from) != len(used) || len(to) != len(used) || len(in.Pairs) != len(used) {
			t.Errorf("%s: %v", op, in.Pairs)
		}
		for _, block := range used {
			if !from[block] || op == kernels.OpCopyBlocks && to[block] {
				t.Errorf("%s: block %d is no source, or a destination", op, block)
			}
		}
	}
}

func TestCheckFindsWhatIsWrong(t *testing.T) {
	c := small(kernels.OpDecode)
	want := kernels.Output{Attention: make([]float32, 2*c.Heads*c.HeadSize)}
	for i := range want.Attention {
		want.Attention[i] = 1
	}
	change := func(i int, v float32) kernels.Output {
		got := kernels.Output{Attention: slices.Clone(want.Attention)}
		got.Attention[i] = v
		return got
	}
	if err := c.Check(change(5, 1.03), want); err != nil {
		t.Errorf("an error within the bound: %v", err)
	}
	nan := float32(math.NaN())
	for message, got := range map[string]kernels.Output{
		"query 1, head 2: error 0.0125, want at most 0.00781": change((8+2)*64+7, 1.1),
		"query 0, head 0: error NaN, want at most 0.00781":    change(0, nan),
		"attention has 0 numbers, want 1024":                  {},
	} {
		if err := c.Check(got, want); err == nil || !strings.HasSuffix(err.Error(), message) {
			t.Errorf("%v, want %s", err, message)
		}
	}
	c = small(kernels.OpGather)
	err := c.Check(kernels.Output{Key: []byte{1, 2, 3, 4}}, kernels.Output{Key: []byte{1, 2, 0, 0}})
	if want := "key array: 2 of 4 bytes are wrong, the first is byte 2: 0x03, want 0x00"; err == nil ||
		!strings.HasSuffix(err.Error(), want) {
		t.Errorf("%v, want %s", err, want)
	}
	for _, got := range []kernels.Output{{Sum: 1}, {Value: []byte{1}}} {
		if c.Check(got, kernels.Output{}) == nil {
			t.Errorf("%+v is taken for right", got)
		}
	}
}

func inputs(t *testing.T, c kernels.Case) *kernels.Inputs {
	t.Helper()
	in, err := kernels.NewInputs(c)
	if err != nil {
		t.Fatal(err)
	}
	return in
}
