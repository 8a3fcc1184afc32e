//go:build cuda

package gpu

import (
	"errors"
	"fmt"
	"runtime"
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

// check runs every choice of a case twice: what the first run left in the workspace must not disturb the second.
func check(b *Backend, in *kernels.Inputs, want kernels.Output) error {
	loaded, err := b.Load(in)
	if err != nil {
		return err
	}
	k := loaded.(*Kernel)
	for _, choice := range k.Choices() {
		one := k.Choose(choice)
		if one == nil {
			one = k.Run(2)
		}
		if one == nil {
			var got kernels.Output
			if got, one = k.Output(); one == nil {
				one = in.Case.Check(got, want)
			}
		}
		if one != nil {
			err = errors.Join(err, fmt.Errorf("choice %q: %w", choice, one))
		}
	}
	return errors.Join(err, k.Close())
}

// TestLongCases looks at places of what every choice leaves of cases in which a block has several parts or segments, or
// a warp goes through its stages many times.
func TestLongCases(t *testing.T) {
	b := open(t)
	b.Warm = true
	var cases []kernels.Case
	for _, dtype := range []layout.DType{layout.BF16, layout.FP16} {
		for _, size := range []int{64, 128} {
			for _, block := range []int{1, 8, 16, 64, 256} {
				c := kernels.Case{Layout: layout.NHD, DType: dtype, HeadSize: size, BlockSize: block, Heads: 32, KVHeads: 8,
					Batch: 3, Ragged: true, Permuted: true, Seed: uint64(block)}
				if block == 16 {
					c.Layout = layout.HND
				}
				c.Op, c.Context = kernels.OpDecode, 5000
				cases = append(cases, c)
				c.Op, c.Context, c.New = kernels.OpPrefill, 700, 1500
				cases = append(cases, c)
				c.Batch, c.Context, c.New, c.Ragged = 1, 0, 2048, false
				cases = append(cases, c)
			}
		}
	}
	for _, c := range cases {
		t.Run(c.Name(), func(t *testing.T) {
			in, err := kernels.NewInputs(c)
			if err != nil {
				t.Fatal(err)
			}
			loaded, err := b.Load(in)
			if err != nil {
				t.Fatal(err)
			}
			defer loaded.Close()
			k := loaded.(*Kernel)
			for _, choice := range k.Choices() {
				err := k.Choose(choice)
				if err == nil {
					err = k.Run(3)
				}
				if err == nil {
					var got kernels.Output
					if got, err = k.Output(); err == nil {
						err = ref.Spot(in, got, 200)
					}
				}
				if err != nil {
					t.Errorf("choice %q: %v", choice, err)
				}
			}
		})
	}
}

// TestPeaks: there is every peak, and the clock's rate beside its time is one that a GPU can have.
func TestPeaks(t *testing.T) {
	b := open(t)
	for _, p := range []kernels.Peak{kernels.PeakMatrix, kernels.PeakToHost, kernels.PeakToDevice, kernels.PeakLaunch} {
		k, units, err := b.Peak(p)
		if err != nil {
			t.Fatal(err)
		}
		readings, err := k.(*Kernel).Series(3, 20)
		if err = errors.Join(err, k.Close()); err != nil {
			t.Fatal(err)
		}
		for _, r := range readings {
			if !(r.Seconds > 0) || r.SMClock == nil || !(*r.SMClock > 1e8 && *r.SMClock < 1e10) {
				t.Errorf("%s: %+v", p, r)
			}
		}
		t.Logf("%s: %.4g units/s at %.4g Hz", p, units*20/readings[2].Seconds, *readings[2].SMClock)
	}
}
