//go:build cuda

package gpu

import (
	"errors"
	"math"
	"runtime"
	"slices"
	"testing"

	"kvtune/cuda"
	"kvtune/kernels"
	"kvtune/kernels/layout"
	"kvtune/kernels/ref"
)

// open opens the first device, or skips the test where there is none.
func open(t testing.TB) *Backend {
	t.Helper()
	b, err := Open(0)
	if errors.Is(err, cuda.ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// small are cases of every kind: ragged sequences in a permuted table.
func small() (list []kernels.Case) {
	for _, op := range kernels.Ops() {
		groups := []int{1}
		if op == kernels.OpDecode || op == kernels.OpPrefill {
			groups = []int{1, 4, 8}
		}
		for _, c := range product(op, groups) {
			if c.Op == kernels.OpPrefill || c.Op == kernels.OpAppend {
				c.New = 150
			}
			if c.Validate() == nil {
				list = append(list, c)
			}
		}
	}
	return list
}

func product(op kernels.Op, groups []int) (list []kernels.Case) {
	for _, l := range layout.Layouts() {
		for _, dtype := range layout.DTypes() {
			for _, size := range []int{64, 128} {
				for _, group := range groups {
					for shift := range 9 {
						list = append(list, kernels.Case{Op: op, Layout: l, DType: dtype, HeadSize: size, BlockSize: 1 << shift,
							Heads: 2 * group, KVHeads: 2, Batch: 4, Context: 300, Ragged: true, Permuted: true, Seed: uint64(shift)})
					}
				}
			}
		}
	}
	return list
}

// TestAgainstReference runs every small case and compares all that it leaves.
func TestAgainstReference(t *testing.T) {
	b := open(t)
	b.Warm = true
	type truth struct {
		in   *kernels.Inputs
		want kernels.Output
		err  error
	}
	cases := small()
	truths := make([]chan truth, len(cases))
	workers := make(chan struct{}, 2*runtime.GOMAXPROCS(0))
	for i := range truths {
		truths[i] = make(chan truth, 1)
	}
	go func() {
		for i, c := range cases {
			workers <- struct{}{}
			go func() {
				in, err := kernels.NewInputs(c)
				var want kernels.Output
				if err == nil {
					want, err = ref.Output(in)
				}
				truths[i] <- truth{in, want, err}
			}()
		}
	}()
	for i, c := range cases {
		truth := <-truths[i]
		<-workers
		t.Run(c.Name(), func(t *testing.T) {
			if truth.err != nil {
				t.Fatal(truth.err)
			}
			if err := check(b, truth.in, truth.want); err != nil {
				t.Error(err)
			}
		})
	}
	t.Logf("%d cases", len(cases))
}

// check runs a case twice: what the first run left in the workspace must not disturb the second.
func check(b *Backend, in *kernels.Inputs, want kernels.Output) error {
	k, err := b.Load(in)
	if err != nil {
		return err
	}
	err = k.Run(2)
	if err == nil {
		var got kernels.Output
		if got, err = k.Output(); err == nil {
			err = in.Case.Check(got, want)
		}
	}
	return errors.Join(err, k.Close())
}

// BenchmarkGPU times cold launches of a few large cases: the ceilings, and what is measured against them.
func BenchmarkGPU(b *testing.B) {
	backend := open(b)
	base := kernels.Case{Layout: layout.NHD, BlockSize: 16, DType: layout.BF16, Heads: 32, KVHeads: 8, HeadSize: 128,
		Permuted: true}
	of := func(op kernels.Op, batch, context, added int, change ...string) kernels.Case {
		c := base
		c.Op, c.Batch, c.Context, c.New = op, batch, context, added
		for i := 0; i < len(change); i += 2 {
			var err error
			if c, err = c.With(change[i], change[i+1]); err != nil {
				b.Fatal(err)
			}
		}
		return c
	}
	for _, c := range []kernels.Case{
		of(kernels.OpRead, 32, 4096, 0), of(kernels.OpCopy, 32, 4096, 0),
		of(kernels.OpDecode, 32, 4096, 0), of(kernels.OpDecode, 32, 4096, 0, "block_size", "1"),
		of(kernels.OpDecode, 32, 4096, 0, "block_size", "64"), of(kernels.OpDecode, 32, 4096, 0, "layout", "HND"),
		of(kernels.OpDecode, 32, 4096, 0, "layout", "x-packed"), of(kernels.OpDecode, 32, 4096, 0, "dtype", "fp8"),
		of(kernels.OpDecode, 32, 4096, 0, "layout", "x-packed", "dtype", "fp8"),
		of(kernels.OpDecode, 1, 4096, 0), of(kernels.OpDecode, 1, 32768, 0), of(kernels.OpDecode, 64, 1024, 0),
		of(kernels.OpDecode, 8, 32768, 0), of(kernels.OpDecode, 16, 4096, 0, "heads", "64"),
		of(kernels.OpDecode, 8, 8192, 0, "kv_heads", "32"), of(kernels.OpDecode, 32, 4096, 0, "lengths", "ragged"),
		of(kernels.OpPrefill, 1, 0, 8192), of(kernels.OpPrefill, 1, 8192, 512),
		of(kernels.OpAppend, 1, 0, 8192), of(kernels.OpAppend, 1, 0, 8192, "dtype", "fp8"),
		of(kernels.OpAppend, 1, 0, 8192, "layout", "x-packed"),
		of(kernels.OpGather, 16, 4096, 0), of(kernels.OpQuantize, 16, 4096, 0), of(kernels.OpCopyBlocks, 16, 4096, 0),
		of(kernels.OpSwapOut, 1, 8192, 0), of(kernels.OpSwapIn, 1, 8192, 0),
		of(kernels.OpSwapOut, 1, 8192, 0, "table", "ordered"), of(kernels.OpSwapIn, 1, 8192, 0, "table", "ordered"),
	} {
		b.Run(c.Name(), func(b *testing.B) {
			in, err := kernels.NewInputs(c)
			if err != nil {
				b.Fatal(err)
			}
			k, err := backend.Load(in)
			if err != nil {
				b.Fatal(err)
			}
			defer k.Close()
			report(b, k.(*Kernel), c)
		})
	}
	b.Run("empty", func(b *testing.B) {
		k, err := backend.Nothing()
		if err != nil {
			b.Fatal(err)
		}
		defer k.Close()
		report(b, k.(*Kernel), kernels.Case{})
	})
}

func report(b *testing.B, k *Kernel, c kernels.Case) {
	const launches = 10
	samples := make([]float64, 0, 60)
	for b.Loop() {
		s, err := k.Series(20, launches)
		if err != nil {
			b.Fatal(err)
		}
		samples = append(samples, s...)
	}
	empty, err := k.Empty(100)
	if err != nil {
		b.Fatal(err)
	}
	seconds := (median(samples) - median(empty)) / launches
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(seconds*1e6, "µs/launch")
	if c.Op != "" {
		b.ReportMetric(float64(c.Bytes())/seconds/1e12, "TB/s")
	}
	if flops := c.Flops(); flops > 0 {
		b.ReportMetric(flops/seconds/1e12, "TFLOP/s")
	}
}

func median(v []float64) float64 {
	slices.Sort(v)
	if len(v) == 0 {
		return math.NaN()
	}
	return v[len(v)/2]
}
