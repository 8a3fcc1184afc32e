//go:build cgo

package host

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"kvtune/kernels"
	"kvtune/kernels/layout"
)

// readCeiling measures how many bytes a second b reads, as the best of some passes over 1 GiB: once for all benchmarks.
var readCeiling = sync.OnceValue(func() float64 {
	b, err := Open(Options{})
	if err != nil {
		panic(err)
	}
	defer b.Close()
	c := kernels.Case{Op: kernels.OpRead, BlockSize: 16, Heads: 8, KVHeads: 8, HeadSize: 128, Batch: 8, Context: 1 << 15}
	in, err := kernels.NewInputs(c)
	if err != nil {
		panic(err)
	}
	k, err := b.Load(in)
	if err != nil {
		panic(err)
	}
	defer k.Close()
	best := 0.0
	for range 8 {
		start := time.Now()
		if err := k.Run(1); err != nil {
			panic(err)
		}
		best = max(best, float64(c.Bytes())/time.Since(start).Seconds())
	}
	return best
})

// benchmark runs a case and reports bytes per second, the share of the measured read bandwidth, and the flop rate.
func benchmark(b *testing.B, c kernels.Case) {
	b.Run(c.Name(), func(b *testing.B) {
		ceiling := readCeiling()
		in, err := kernels.NewInputs(c)
		if err != nil {
			b.Fatal(err)
		}
		k, err := open(b, Options{}).Load(in)
		if err != nil {
			b.Fatal(err)
		}
		defer k.Close()
		b.SetBytes(c.Bytes())
		for b.Loop() {
			if err := k.Run(1); err != nil {
				b.Fatal(err)
			}
		}
		seconds := b.Elapsed().Seconds() / float64(b.N)
		b.ReportMetric(100*float64(c.Bytes())/seconds/ceiling, "%read")
		if c.Flops() > 0 {
			b.ReportMetric(c.Flops()/seconds/1e9, "GFLOP/s")
		}
	})
}

// wide is a batch of Llama-3.1-8B's shape: 256 MiB of keys and values in bf16, far beyond the caches.
func wide(op kernels.Op) kernels.Case {
	return kernels.Case{Op: op, BlockSize: 16, Heads: 32, KVHeads: 8, HeadSize: 128, Batch: 32, Context: 2048,
		Permuted: true}
}

func BenchmarkDecode(b *testing.B) {
	for _, l := range layout.Layouts() {
		for _, blockSize := range []int{1, 16, 256} {
			c := wide(kernels.OpDecode)
			c.Layout, c.BlockSize = l, blockSize
			benchmark(b, c)
		}
	}
	for _, dtype := range []layout.DType{layout.FP16, layout.FP8} {
		c := wide(kernels.OpDecode)
		c.DType = dtype
		benchmark(b, c)
	}
	for _, heads := range []int{8, 64} {
		c := wide(kernels.OpDecode)
		c.Heads = heads
		benchmark(b, c)
	}
}

func BenchmarkPrefill(b *testing.B) {
	c := wide(kernels.OpPrefill)
	c.Batch, c.Context, c.New = 1, 1024, 512
	benchmark(b, c)
}

func BenchmarkMove(b *testing.B) {
	for _, op := range kernels.Ops() {
		c := wide(op)
		switch op {
		case kernels.OpDecode, kernels.OpPrefill:
			continue
		case kernels.OpAppend:
			c.Context, c.New = 0, c.Context
		}
		benchmark(b, c)
	}
}

// An empty pass through the pool is the time that a small case cannot go below.
func BenchmarkSmallest(b *testing.B) {
	c := wide(kernels.OpRead)
	c.Batch, c.Context = 1, 1
	for _, threads := range []int{1, 2} {
		b.Run(fmt.Sprintf("threads=%d", threads), func(b *testing.B) {
			in, err := kernels.NewInputs(c)
			if err != nil {
				b.Fatal(err)
			}
			k, err := open(b, Options{Threads: threads}).Load(in)
			if err != nil {
				b.Fatal(err)
			}
			defer k.Close()
			for b.Loop() {
				if err := k.Run(1); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
