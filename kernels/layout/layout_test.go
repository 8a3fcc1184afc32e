package layout

import (
	"encoding/json"
	"math"
	"slices"
	"testing"
)

// In every layout each (block, slot, head, dimension) has its own place, and every place is taken.
func TestOffsetsAreABijection(t *testing.T) {
	for _, l := range Layouts() {
		for _, d := range DTypes() {
			for _, blockSize := range []int{1, 2, 16, 256} {
				s := Shape{Layout: l, DType: d, Blocks: 3, BlockSize: blockSize, KVHeads: 2, HeadSize: 64}
				for name, offset := range map[string]func(block, slot, head, dim int) int{
					"key": s.KeyOffset, "value": s.ValueOffset} {
					taken := make([]bool, s.Elements())
					for i := range s.Elements() {
						dim, head := i%s.HeadSize, i/s.HeadSize%s.KVHeads
						slot, block := i/s.HeadSize/s.KVHeads%blockSize, i/s.BlockElements()
						at := offset(block, slot, head, dim)
						if at/s.BlockElements() != block || taken[at] {
							t.Fatalf("%+v: %s (%d, %d, %d, %d) is at %d, in another block or taken", s, name, block, slot,
								head, dim, at)
						}
						taken[at] = true
					}
				}
			}
		}
	}
}

// Offsets by hand: 4 slots, 3 heads of 64 bf16, so that x is 8 and a block has 768 numbers.
func TestOffsetsByHand(t *testing.T) {
	for l, want := range map[Layout][2]int{
		NHD:     {768 + (2*3+1)*64 + 13, 768 + (2*3+1)*64 + 13},
		HND:     {768 + (1*4+2)*64 + 13, 768 + (1*4+2)*64 + 13},
		XPacked: {768 + ((1*8+1)*4+2)*8 + 5, 768 + (1*64+13)*4 + 2},
	} {
		s := Shape{Layout: l, Blocks: 2, BlockSize: 4, KVHeads: 3, HeadSize: 64}
		if got := [2]int{s.KeyOffset(1, 2, 1, 13), s.ValueOffset(1, 2, 1, 13)}; got != want {
			t.Errorf("%v: %v, want %v", l, got, want)
		}
	}
}

func TestSizes(t *testing.T) {
	s := Shape{Layout: HND, DType: BF16, Blocks: 10, BlockSize: 16, KVHeads: 8, HeadSize: 128}
	if s.BytesPerToken() != 4096 || s.Bytes() != 655360 || s.Elements() != 163840 {
		t.Errorf("%d bytes per token, %d bytes, %d elements", s.BytesPerToken(), s.Bytes(), s.Elements())
	}
	if err := s.Validate(); err != nil {
		t.Error(err)
	}
	for _, bad := range []Shape{
		{},
		{Layout: 9, Blocks: 1, BlockSize: 1, KVHeads: 1, HeadSize: 64},
		{DType: 9, Blocks: 1, BlockSize: 1, KVHeads: 1, HeadSize: 64},
		{Layout: XPacked, DType: FP8, Blocks: 1, BlockSize: 1, KVHeads: 1, HeadSize: 8},
		{Blocks: 1 << 30, BlockSize: 256, KVHeads: 1 << 20, HeadSize: 128},
	} {
		if bad.Validate() == nil {
			t.Errorf("%+v is taken for valid", bad)
		}
	}
}

func TestBlockTables(t *testing.T) {
	counts := []int{3, 0, 2}
	if got := Ordered(counts); !slices.Equal(slices.Concat(got...), []int32{0, 1, 2, 3, 4}) || len(got[1]) != 0 {
		t.Errorf("ordered: %v", got)
	}
	a, b := Permuted(counts, 9, 1), Permuted(counts, 9, 1)
	dealt := slices.Concat(a...)
	if !slices.Equal(dealt, slices.Concat(b...)) {
		t.Error("the same seed deals different blocks")
	}
	slices.Sort(dealt)
	if len(slices.Compact(dealt)) != 5 || dealt[0] < 0 || dealt[4] > 8 {
		t.Errorf("permuted: %v", a)
	}
	table := BlockTable{{7, 2}}
	if got := table.SlotMapping(0, 2, 6, 4); !slices.Equal(got, []int64{30, 31, 8, 9}) {
		t.Errorf("slots %v, want 30 31 8 9", got)
	}
	if BlocksFor(0, 16) != 0 || BlocksFor(16, 16) != 1 || BlocksFor(17, 16) != 2 {
		t.Error("blocks for 0, 16, 17 tokens")
	}
}

func TestNames(t *testing.T) {
	type axes struct {
		Layout Layout `json:"layout"`
		DType  DType  `json:"dtype"`
	}
	text, err := json.Marshal(axes{XPacked, FP8})
	if err != nil || string(text) != `{"layout":"x-packed","dtype":"fp8"}` {
		t.Errorf("%s, %v", text, err)
	}
	var back axes
	if err := json.Unmarshal(text, &back); err != nil || back != (axes{XPacked, FP8}) {
		t.Errorf("%+v, %v", back, err)
	}
	if err := json.Unmarshal([]byte(`{"layout":"nhd"}`), &back); err == nil ||
		err.Error() != `layout "nhd": want one of NHD, HND, x-packed` {
		t.Errorf("%v", err)
	}
}

// codes are all codes of a dtype.
func codes(d DType) int { return 1 << (8 * d.Bytes()) }

// Every code stands for a number whose nearest code it is; NaN stays NaN, with its sign.
func TestEveryCodeIsItsOwnNearest(t *testing.T) {
	for _, d := range DTypes() {
		for i := range codes(d) {
			code := uint16(i)
			v := d.Decode(code)
			back := d.Encode(v)
			if v != v {
				if w := d.Decode(back); w == w || back>>(8*d.Bytes()-1) != code>>(8*d.Bytes()-1) {
					t.Fatalf("%v: NaN %#x became %#x", d, code, back)
				}
			} else if back != code {
				t.Fatalf("%v: %#x is %v, which is coded %#x", d, code, v, back)
			}
		}
	}
}

// Between two neighbouring numbers the nearer one is taken, and the even code of two equally near.
func TestEncodeRoundsToNearestEven(t *testing.T) {
	for _, d := range DTypes() {
		for i := range codes(d)/2 - 1 {
			low, high := d.Decode(uint16(i)), d.Decode(uint16(i+1))
			if high != high || math.IsInf(float64(high), 0) || low != low {
				continue
			}
			middle := float32((float64(low) + float64(high)) / 2) // exact: no dtype has more than 11 bits
			sign := uint16(codes(d) / 2)
			for _, c := range []struct {
				v    float32
				want uint16
			}{
				{math.Nextafter32(middle, low), uint16(i)},
				{middle, uint16(i + i&1)},
				{math.Nextafter32(middle, high), uint16(i + 1)},
			} {
				if got, minus := d.Encode(c.v), d.Encode(-c.v); got != c.want || minus != c.want|sign {
					t.Fatalf("%v: %v became %#x and its negative %#x, want %#x", d, c.v, got, minus, c.want)
				}
			}
		}
	}
}

func TestOverflow(t *testing.T) {
	inf := float32(math.Inf(1))
	for _, c := range []struct {
		d    DType
		v    float32
		want float32
	}{
		{FP8, 448, 448}, {FP8, 464, 448}, {FP8, 1e30, 448}, {FP8, inf, 448}, {FP8, -inf, -448}, {FP8, -1e5, -448},
		{FP8, 0x1p-9, 0x1p-9}, {FP8, 0x1p-10, 0}, {FP8, 0x1.8p-10, 0x1p-9},
		{FP16, 65504, 65504}, {FP16, 65519, 65504}, {FP16, 65520, inf}, {FP16, -1e30, -inf}, {FP16, 0x1p-24, 0x1p-24},
		{BF16, math.MaxFloat32, inf}, {BF16, -inf, -inf}, {BF16, 0x1.fep127, 0x1.fep127},
	} {
		if got := c.d.Decode(c.d.Encode(c.v)); got != c.want {
			t.Errorf("%v: %v became %v, want %v", c.d, c.v, got, c.want)
		}
	}
	if quiet := BF16.Encode(math.Float32frombits(0x7f800001)); BF16.Decode(quiet) == BF16.Decode(quiet) {
		t.Error("bf16: a NaN became a number")
	}
}

func TestPutAndGet(t *testing.T) {
	for _, d := range DTypes() {
		array := make([]byte, 3*d.Bytes())
		d.Put(array, 1, -1.5)
		if d.Get(array, 0) != 0 || d.Get(array, 1) != -1.5 || d.Get(array, 2) != 0 {
			t.Errorf("%v: % x", d, array)
		}
	}
}
