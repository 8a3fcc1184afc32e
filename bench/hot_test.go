package bench

import (
	"math/rand/v2"
	"testing"
	"time"

	"kvtune/harness/compare"
	"kvtune/harness/hist"
	"kvtune/harness/stats"
	"kvtune/harness/timing"
	"kvtune/kernels"
)

// BenchmarkHarness times what stands between a kernel and its figure: a launch through cgo, the clock, the histogram,
// the test of a difference.
func BenchmarkHarness(b *testing.B) {
	b.Run("launch", func(b *testing.B) { // the smallest read: the call into C and a pass through the threads
		m, err := Open("host", false)
		if err != nil {
			b.Skip(err)
		}
		b.Cleanup(func() { m.Close() }) // behind the kernel
		c := Base(kernels.OpRead, false)
		c.Batch, c.Context = 1, 1
		k := loaded(b, m, c)
		for b.Loop() {
			if err := k.Run(1); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("clock", func(b *testing.B) {
		clock := timing.CPU(func(int) error { return nil }, nil)
		for b.Loop() {
			if _, err := clock.Empty(1); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("histogram", func(b *testing.B) {
		h, v := hist.New(), time.Duration(0)
		for b.Loop() {
			h.Record(v)
			v = (v + 12345) % time.Second
		}
	})
	b.Run("significance", func(b *testing.B) { // of two cases of 400 samples
		rng := rand.New(rand.NewPCG(1, 1))
		x, y := make([]float64, 400), make([]float64, 400)
		for i := range x {
			x[i], y[i] = 1+0.01*rng.NormFloat64(), 1.01+0.01*rng.NormFloat64()
		}
		for b.Loop() {
			u, v := compare.Blocks(x), compare.Blocks(y)
			stats.MannWhitney(u, v)
			stats.Ratio(u, v, 0.99)
		}
	})
}
