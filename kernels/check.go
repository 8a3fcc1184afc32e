package kernels

import (
	"bytes"
	"fmt"
	"math"
)

// Bound is the largest error that [Case.Check] accepts in a row of attention's output (one head of one query): the
// Euclidean norm of the difference over that of the truth. It is twice the roundoff of the query's dtype: 2^-7 for bf16
// and fp8 caches, 2^-10 for fp16.
//
// Rounding the output costs at most one roundoff, and rounding the probabilities to the same dtype before the second
// product costs, its errors being independent, about 0.6 of one. A token too many or too few among n costs about
// 1/sqrt(n), which is far beyond the bound at the lengths that are checked.
func (c Case) Bound() float64 { return 2 * c.QueryDType().Roundoff() }

// Check compares what a kernel left with the truth. Attention must be finite and within [Case.Bound] in every row;
// everything else must be the same to the last bit, poison included.
func (c Case) Check(got, want Output) error {
	if err := c.check(got, want); err != nil {
		return fmt.Errorf("case %s: %w", c.Name(), err)
	}
	return nil
}

func (c Case) check(got, want Output) error {
	if len(got.Attention) != len(want.Attention) {
		return fmt.Errorf("attention has %d numbers, want %d", len(got.Attention), len(want.Attention))
	}
	for at := 0; at < len(want.Attention); at += c.HeadSize {
		query, head := at/c.HeadSize/c.Heads, at/c.HeadSize%c.Heads
		if err := c.CheckRow(got.Attention[at:at+c.HeadSize], want.Attention[at:at+c.HeadSize]); err != nil {
			return fmt.Errorf("query %d, head %d: %w", query, head, err)
		}
	}
	if err := checkBytes("key", got.Key, want.Key); err != nil {
		return err
	}
	if err := checkBytes("value", got.Value, want.Value); err != nil {
		return err
	}
	if got.Sum != want.Sum {
		return fmt.Errorf("sum is %#x, want %#x", got.Sum, want.Sum)
	}
	return nil
}

// CheckRow compares one row of attention's output with the truth.
func (c Case) CheckRow(got, want []float32) error {
	if e := rowError(got, want); !(e <= c.Bound()) {
		return fmt.Errorf("error %.3g, want at most %.3g", e, c.Bound())
	}
	return nil
}

// rowError is the norm of got - want over that of want, NaN where got is not finite.
func rowError(got, want []float32) float64 {
	var difference, norm float64
	for i, w := range want {
		d := float64(got[i]) - float64(w)
		difference += d * d
		norm += float64(w) * float64(w)
	}
	return math.Sqrt(difference / norm)
}

func checkBytes(what string, got, want []byte) error {
	if bytes.Equal(got, want) {
		return nil
	}
	if len(got) != len(want) {
		return fmt.Errorf("%s array has %d bytes, want %d", what, len(got), len(want))
	}
	wrong, first := 0, -1
	for i := range want {
		if got[i] != want[i] {
			if wrong++; first < 0 {
				first = i
			}
		}
	}
	return fmt.Errorf("%s array: %d of %d bytes are wrong, the first is byte %d: %#02x, want %#02x", what, wrong,
		len(want), first, got[first], want[first])
}
