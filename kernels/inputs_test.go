package kernels_test

import (
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
	want := "decode/layout=HND/block_size=16/dtype=fp8/heads=32/kv_heads=8/head_size=128/batch=32/context=4096/table=ordered"
	c, err := kernels.ParseCase(want)
	if err != nil || c.Name() != want {
		t.Errorf("%q, %v", c.Name(), err)
	}
}
