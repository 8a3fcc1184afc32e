package stats

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// ar1 are n values of which each keeps a share rho of the one before.
func ar1(n int, rho float64, seed uint64) []float64 {
	rng := rand.New(rand.NewPCG(seed, 1))
	values := make([]float64, n)
	v := rng.NormFloat64()
	for i := range values {
		values[i] = v
		v = rho*v + math.Sqrt(1-rho*rho)*rng.NormFloat64()
	}
	return values
}

func TestAutocorrelation(t *testing.T) {
	near(t, "alternating", Autocorrelation([]float64{1, -1, 1, -1}, 1), -0.75)
	near(t, "constant", Autocorrelation([]float64{2, 2, 2}, 1), 0)
	near(t, "lag too long", Autocorrelation([]float64{1, 2}, 2), 0)
	if got := Autocorrelation(ar1(20000, 0.6, 3), 1); math.Abs(got-0.6) > 0.03 {
		t.Errorf("of a series that keeps 0.6: %v", got)
	}
}

// TestEffective: n (1-rho)/(1+rho) independent values are in a series that keeps rho of the value before.
func TestEffective(t *testing.T) {
	for _, c := range []struct{ rho, low, high float64 }{{0, 0.7, 1.001}, {0.5, 0.25, 0.45}, {0.9, 0.03, 0.09}} {
		var share float64
		for seed := range uint64(20) {
			values := ar1(2000, c.rho, seed)
			before := slices.Clone(values)
			share += float64(Effective(values)) / 2000 / 20
			if !slices.Equal(values, before) {
				t.Fatal("the caller's values were reordered")
			}
		}
		if share < c.low || share > c.high {
			t.Errorf("rho %v: %v of the values are independent, want %v to %v", c.rho, share, c.low, c.high)
		}
	}
	if Effective(nil) != 0 || Effective([]float64{5}) != 1 || Effective([]float64{3, 3, 3, 3, 3, 3, 3, 3}) != 8 {
		t.Error("too few or equal values")
	}
}

func TestBlocks(t *testing.T) {
	if got := Blocks([]float64{1, 9, 2, 5, 5, 8, 7}, 3); !slices.Equal(got, []float64{5, 3.5, 7}) {
		t.Errorf("blocks %v", got)
	}
	if got := Blocks([]float64{1, 2}, 9); !slices.Equal(got, []float64{1, 2}) {
		t.Errorf("more blocks than values: %v", got)
	}
	if got := Blocks(nil, 3); len(got) != 0 {
		t.Errorf("blocks of nothing: %v", got)
	}
}
