//go:build cgo

package host

import (
	"testing"

	"kvtune/kernels"
	"kvtune/kernels/layout"
	"kvtune/kernels/ref"
)

func open(t testing.TB, o Options) *Backend {
	t.Helper()
	b, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// check runs every choice of a case on every backend and compares it with the truth. It runs twice, because an
// operation must leave the same output every time.
func check(t *testing.T, c kernels.Case, backends []*Backend) {
	in, err := kernels.NewInputs(c)
	if err != nil {
		t.Fatal(err)
	}
	want, err := ref.Output(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range backends {
		k, err := b.Load(in)
		if err != nil {
			t.Fatal(err)
		}
		tunable := k.(kernels.Tunable)
		for _, choice := range tunable.Choices() {
			if err := tunable.Choose(choice); err != nil {
				t.Fatal(err)
			}
			if err := k.Run(2); err != nil {
				t.Fatal(err)
			}
			got, err := k.Output()
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Check(got, want); err != nil {
				t.Errorf("%s, choice %q: %v", b.Variant(), choice, err)
			}
		}
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// product is every operation, layout, block size, dtype, GQA ratio and head size; only attention has query heads, so
// that only for it the ratio makes a difference. Batches are ragged, of up to 512 tokens, in permuted blocks.
func product() []kernels.Case {
	var list []kernels.Case
	for _, op := range kernels.Ops() {
		ratios := []int{1}
		if op == kernels.OpDecode || op == kernels.OpPrefill {
			ratios = []int{1, 4, 8}
		}
		for _, l := range layout.Layouts() {
			for _, dtype := range layout.DTypes() {
				for blockSize := 1; blockSize <= 256; blockSize *= 2 {
					for _, ratio := range ratios {
						for _, headSize := range []int{64, 128} {
							c := kernels.Case{Op: op, Layout: l, BlockSize: blockSize, DType: dtype, Heads: 2 * ratio,
								KVHeads: 2, HeadSize: headSize, Batch: 4, Context: 512, Ragged: true, Permuted: true,
								Seed: uint64(len(list))}
							if op == kernels.OpPrefill || op == kernels.OpAppend {
								c.Context, c.New = 480, 32
							}
							if c.Validate() == nil { // quantize has no fp8 source
								list = append(list, c)
							}
						}
					}
				}
			}
		}
	}
	return list
}

func TestEveryCaseAgreesWithTheReference(t *testing.T) {
	cases := map[kernels.Op][]kernels.Case{}
	n := 0
	for i, c := range product() {
		n++
		if !testing.Short() || i%10 == 0 {
			cases[c.Op] = append(cases[c.Op], c)
		}
	}
	if n != 2214 {
		t.Errorf("%d cases, want 2214", n)
	}
	for op, list := range cases {
		t.Run(string(op), func(t *testing.T) {
			t.Parallel()
			var backends []*Backend
			for i, name := range Variants() {
				backends = append(backends, open(t, Options{Variant: name, Threads: 1 + i}))
			}
			for _, c := range list {
				check(t, c, backends)
			}
		})
	}
}
