//go:build cuda

package cuda

import (
	"errors"
	"testing"
)

// open opens the first device, or skips the test where there is none.
func open(t *testing.T) *Device {
	t.Helper()
	d, err := Open(0)
	if errors.Is(err, ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// TestSeriesTakesStepsInTurn copies a different byte in every step, directly and through graphs.
func TestSeriesTakesStepsInTurn(t *testing.T) {
	d := open(t)
	t.Log(d.Info)
	from, to := must[*Memory](t)(d.AllocHost(3)), must[*Memory](t)(d.Alloc(4096))
	defer from.Free()
	defer to.Free()
	if err := from.Upload([]byte("abc")); err != nil {
		t.Fatal(err)
	}
	var steps [][]Op
	for i := range uint64(3) {
		steps = append(steps, []Op{Fill{to.Address, 8, 'x'}, Copy{to.Address, from.Address + i, 1}})
	}
	series := must[*Series](t)(d.Series(steps))
	defer series.Close()
	want := func(s *Series, n int, letters string) {
		t.Helper()
		if err := s.Run(n); err != nil {
			t.Fatal(err)
		}
		if got := string(must[[]byte](t)(to.Download(2))); got != letters {
			t.Errorf("after %d more steps: %q, want %q", n, got, letters)
		}
	}
	want(series, 1, "ax")
	want(series, 1, "bx")
	want(series, 3, "bx")
	graphs := must[*Series](t)(series.Graph(2))
	defer graphs.Close()
	want(graphs, 1, "bx")
	want(graphs, 1, "ax")
	want(graphs, 1, "cx")
	empty := must[[]float64](t)(series.Time(20, 0, nil, nil))
	full := must[[]float64](t)(graphs.Time(20, 3, series, series))
	if len(empty) != 20 || len(full) != 20 || empty[0] < 0 || full[0] <= 0 {
		t.Errorf("times of nothing %v and of three graphs %v", empty, full)
	}
	t.Logf("an empty pair of events takes %.2g s, six steps of two take %.2g s", empty[10], full[10])
}

func TestFailuresAreErrors(t *testing.T) {
	d := open(t)
	var e *Error
	if _, err := d.Alloc(1 << 60); !errors.As(err, &e) || e.Name != "CUDA_ERROR_OUT_OF_MEMORY" {
		t.Errorf("an exbibyte of memory: %v", err)
	}
	if _, err := d.Module([]byte("no image")); !errors.As(err, &e) || e.Meaning == "" {
		t.Errorf("a broken image: %v", err)
	}
}
