package ref

import (
	"bytes"
	"math"
	"slices"
	"testing"

	"kvtune/kernels"
	"kvtune/kernels/layout"
)

// base is a ragged case with a permuted table.
func base(op kernels.Op, dtype layout.DType) kernels.Case {
	c := kernels.Case{Op: op, BlockSize: 8, DType: dtype, Heads: 8, KVHeads: 2, HeadSize: 64, Batch: 3, Context: 50,
		Ragged: true, Permuted: true, Seed: 3}
	if op == kernels.OpPrefill || op == kernels.OpAppend {
		c.New = 11
	}
	return c
}

func inputs(t *testing.T, c kernels.Case) *kernels.Inputs {
	t.Helper()
	in, err := kernels.NewInputs(c)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

func output(t *testing.T, in *kernels.Inputs) kernels.Output {
	t.Helper()
	out, err := Output(in)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Where a token lies does not matter: every layout, block size and table gives the same attention, to the last bit.
func TestAttentionDoesNotDependOnWhereTokensLie(t *testing.T) {
	for _, op := range []kernels.Op{kernels.OpDecode, kernels.OpPrefill} {
		for _, dtype := range layout.DTypes() {
			c := base(op, dtype)
			want := output(t, inputs(t, c)).Attention
			for _, l := range layout.Layouts() {
				for _, blockSize := range []int{1, 4, 64} {
					for _, permuted := range []bool{false, true} {
						c := c
						c.Layout, c.BlockSize, c.Permuted = l, blockSize, permuted
						if !slices.Equal(output(t, inputs(t, c)).Attention, want) {
							t.Errorf("%s differs from %s", c.Name(), base(op, dtype).Name())
						}
					}
				}
			}
		}
	}
}

// Attention to two parts of the tokens, weighed by their sums, is attention to all of them.
func TestPartsAddUpToTheWhole(t *testing.T) {
	in := inputs(t, base(kernels.OpDecode, layout.BF16))
	keys, values := rows(in, 0, 1, in.Sequences[0].Context)
	q := keys[3]
	want, wantSum := attend(q, keys, values)
	for cut := 1; cut < len(keys); cut++ {
		a, aSum := attend(q, keys[:cut], values[:cut])
		b, bSum := attend(q, keys[cut:], values[cut:])
		total := math.Log(math.Exp(aSum) + math.Exp(bSum))
		if math.Abs(total-wantSum) > 1e-12 {
			t.Fatalf("cut at %d: sum %v, want %v", cut, total, wantSum)
		}
		for dim := range want {
			if got := a[dim]*math.Exp(aSum-total) + b[dim]*math.Exp(bSum-total); math.Abs(got-want[dim]) > 1e-12 {
				t.Fatalf("cut at %d: dimension %d is %v, want %v", cut, dim, got, want[dim])
			}
		}
	}
}

func TestAttendByHand(t *testing.T) {
	// Scores 0 and ln 3 (before the division by sqrt(4)): weights 1/4 and 3/4.
	q := []float64{2 * math.Log(3), 0, 0, 0}
	out, logSum := attend(q, [][]float64{{0, 5, 5, 5}, {1, 0, 0, 0}}, [][]float64{{4, 0, 8, 1}, {0, 4, 8, 1}})
	for dim, want := range []float64{1, 3, 8, 1} {
		if math.Abs(out[dim]-want) > 1e-12 {
			t.Errorf("dimension %d is %v, want %v", dim, out[dim], want)
		}
	}
	if math.Abs(logSum-math.Log(4)) > 1e-12 {
		t.Errorf("log sum %v, want ln 4", logSum)
	}
}

// The last query of a prefill sees what a decode of the whole sequence sees.
func TestPrefillEndsWhereDecodeIs(t *testing.T) {
	c := base(kernels.OpPrefill, layout.FP16)
	c.Batch, c.Ragged = 1, false
	prefill := inputs(t, c)
	d := c
	d.Op, d.Context, d.New = kernels.OpDecode, c.Context+c.New, 0
	decode := inputs(t, d)
	row := c.Heads * c.HeadSize
	decode.Query = prefill.Query[(c.New-1)*row*2:]
	if got := output(t, decode).Attention; !slices.Equal(got, output(t, prefill).Attention[(c.New-1)*row:]) {
		t.Error("the last query of the prefill and the decode differ")
	}
}

// No operation on tokens reads a slot that holds none: all outputs of attention are finite although such slots are NaN,
// and no output changes when they do.
func TestUnusedSlotsAreNotRead(t *testing.T) {
	for _, op := range []kernels.Op{kernels.OpDecode, kernels.OpPrefill, kernels.OpGather, kernels.OpQuantize} {
		in := inputs(t, base(op, layout.BF16))
		want := output(t, in)
		for i, v := range want.Attention {
			if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
				t.Fatalf("%s: number %d is %v", op, i, v)
			}
		}
		changed := 0
		for _, array := range [][]byte{in.Key, in.Value} {
			for i := 0; i < len(array); i += 2 {
				if array[i] == kernels.Poison && array[i+1] == kernels.Poison {
					array[i], array[i+1] = 0, 0x42
					changed++
				}
			}
		}
		if changed == 0 {
			t.Fatalf("%s: no slot is unused", op)
		}
		if err := in.Case.Check(output(t, in), want); err != nil {
			t.Error(err)
		}
	}
}

// What is appended and then gathered is what was to be appended, and the tokens before it are as they were.
func TestAppendThenGather(t *testing.T) {
	for _, l := range layout.Layouts() {
		c := base(kernels.OpAppend, layout.FP16)
		c.Layout = l
		in := inputs(t, c)
		appended := output(t, in)
		g := *in
		g.Case.Op, g.Case.New = kernels.OpGather, 0
		g.Key, g.Value = appended.Key, appended.Value
		g.Sequences = slices.Clone(in.Sequences)
		for i := range g.Sequences {
			g.Sequences[i].Context += g.Sequences[i].New
		}
		got := output(t, &g)
		row := int(in.Shape.BytesPerToken()) / 2
		at, added := 0, 0
		for _, s := range in.Sequences {
			at += s.Context * row
			n := s.New * row
			if !bytes.Equal(got.Key[at:at+n], in.NewKey[added:added+n]) ||
				!bytes.Equal(got.Value[at:at+n], in.NewValue[added:added+n]) {
				t.Errorf("%v: appended tokens are not what is gathered", l)
			}
			at, added = at+n, added+n
		}
	}
}

// quantize and append of the same tokens into an fp8 cache give the same codes, and some are saturated.
func TestQuantizeAgreesWithTheScale(t *testing.T) {
	for _, l := range layout.Layouts() {
		c := base(kernels.OpQuantize, layout.BF16)
		c.Layout = l
		in := inputs(t, c)
		out := output(t, in)
		to := in.Shape
		to.DType = layout.FP8
		saturated := 0
		for _, at := range newMove(in).slots {
			block, slot := at[0], at[1]
			for dim := range c.HeadSize {
				from := layout.BF16.Get(in.Key, in.Shape.KeyOffset(block, slot, 1, dim))
				got := layout.FP8.Get(out.Key, to.KeyOffset(block, slot, 1, dim)) * in.KeyScale
				most := 448 * in.KeyScale
				if max(from, -from) > most {
					saturated++
					from = min(max(from, -most), most)
				}
				if d := math.Abs(float64(got - from)); d > math.Abs(float64(from))/16 && d > float64(in.KeyScale)/1024 {
					t.Fatalf("%v: %v became %v", l, from, got)
				}
			}
		}
		if saturated == 0 {
			t.Errorf("%v: nothing was saturated", l)
		}
		// The slots of the unused block are still poison.
		unused := bytes.Count(out.Key, []byte{kernels.Poison})
		if unused != len(out.Key)-in.ContextTokens()*in.Shape.KVHeads*in.Shape.HeadSize {
			t.Errorf("%v: %d numbers are poison", l, unused)
		}
	}
}

// A swap out and a swap in of the same pairs, turned round, give the blocks back; copied blocks equal their sources.
func TestBlocksMoveWhole(t *testing.T) {
	for _, op := range []kernels.Op{kernels.OpCopyBlocks, kernels.OpSwapOut, kernels.OpSwapIn} {
		in := inputs(t, base(op, layout.FP8))
		out := output(t, in)
		size := in.Shape.BlockElements()
		untouched := in.Destination()
		for _, p := range in.Pairs {
			from, to := int(p[0])*size, int(p[1])*size
			if !bytes.Equal(out.Value[to:to+size], in.Value[from:from+size]) {
				t.Errorf("%s: block %d is not in %d", op, p[0], p[1])
			}
			copy(out.Value[to:to+size], untouched.Value[to:])
		}
		if !bytes.Equal(out.Value, untouched.Value) {
			t.Errorf("%s: blocks beside the destinations have changed", op)
		}
	}
}

func TestReadAndCopy(t *testing.T) {
	in := inputs(t, base(kernels.OpCopy, layout.BF16))
	out := output(t, in)
	if !bytes.Equal(out.Key, in.Key) || !bytes.Equal(out.Value, in.Value) {
		t.Error("the copy is not equal")
	}
	if got := sum([]byte{1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 5, 1, 0, 0}); got != 0x105 {
		t.Errorf("sum is %#x, want 0x105", got)
	}
}

func TestOutputBeforeRun(t *testing.T) {
	k, err := Load(inputs(t, base(kernels.OpRead, layout.BF16)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Output(); err == nil {
		t.Error("the output of a kernel that has not run")
	}
}

// TestSpot: the truth passes, and an output that is wrong everywhere does not, for every operation.
func TestSpot(t *testing.T) {
	for _, op := range kernels.Ops() {
		c := kernels.Case{Op: op, Layout: layout.XPacked, BlockSize: 16, DType: layout.BF16, Heads: 4, KVHeads: 2,
			HeadSize: 64, Batch: 3, Context: 70, Ragged: true, Permuted: true, Seed: 5}
		if op == kernels.OpPrefill || op == kernels.OpAppend {
			c.New = 20
		}
		in, err := kernels.NewInputs(c)
		if err != nil {
			t.Fatal(err)
		}
		want, err := Output(in)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{1, 7, 1 << 20} {
			if err := Spot(in, want, n); err != nil {
				t.Error(err)
			}
		}
		wrong := kernels.Output{Attention: slices.Clone(want.Attention), Key: bytes.Clone(want.Key),
			Value: bytes.Clone(want.Value), Sum: want.Sum + 1}
		for i := range wrong.Attention {
			wrong.Attention[i] += 1
		}
		for i := range wrong.Value {
			wrong.Value[i] ^= 1
		}
		if err := Spot(in, wrong, 7); err == nil {
			t.Errorf("%s: a wrong output passes", c.Name())
		}
	}
}
