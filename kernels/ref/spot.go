package ref

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"

	"kvtune/kernels"
)

// Spot checks places of what a kernel left, at most n: rows of attention's output, tokens, or blocks. They are drawn
// from the case's seed, the first and the last among them. It is for cases that are too large for [Output]. What a
// kernel must not touch is not looked at; what read and copy leave is checked whole.
func Spot(in *kernels.Inputs, got kernels.Output, n int) error {
	err := spot(in, got, n)
	if err != nil {
		err = fmt.Errorf("case %s: %w", in.Case.Name(), err)
	}
	return err
}

func spot(in *kernels.Inputs, got kernels.Output, n int) error {
	switch in.Case.Op {
	case kernels.OpDecode, kernels.OpPrefill:
		return spotRows(in, got.Attention, n)
	case kernels.OpRead:
		if want := sum(in.Key) + sum(in.Value); got.Sum != want {
			return fmt.Errorf("sum is %#x, want %#x", got.Sum, want)
		}
		return nil
	}
	m, wrong := newMove(in), 0
	for _, place := range places(in.Case.Seed, n, m.places()) {
		same := true
		m.visit(place, func(array, at int, data []byte) {
			from := [][]byte{got.Key, got.Value}[array]
			same = same && at+len(data) <= len(from) && bytes.Equal(from[at:at+len(data)], data)
		})
		if !same {
			wrong++
		}
	}
	if wrong > 0 {
		return fmt.Errorf("%d of %d tokens or blocks that were looked at are wrong", wrong, min(n, m.places()))
	}
	return nil
}

// places draws at most n of so many places.
func places(seed uint64, n, of int) []int {
	list := rand.New(rand.NewPCG(seed, 3)).Perm(of)[:min(n, of)]
	list[0] = 0
	list[len(list)-1] = of - 1
	return list
}

// spotRows computes rows of attention's output (one head of one query) each by itself.
func spotRows(in *kernels.Inputs, got []float32, n int) error {
	c := in.Case
	if want := in.Queries() * c.Heads * c.HeadSize; len(got) != want {
		return fmt.Errorf("attention has %d numbers, want %d", len(got), want)
	}
	list := places(c.Seed, n, in.Queries()*c.Heads)
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for i, row := range list {
		wg.Go(func() {
			query, head := row/c.Heads, row%c.Heads
			sequence, tokens := 0, 0 // that the query sees
			if c.Op == kernels.OpDecode {
				sequence, tokens = query, in.Sequences[query].Context
			} else {
				q := query
				for q >= in.Sequences[sequence].New {
					q -= in.Sequences[sequence].New
					sequence++
				}
				tokens = in.Sequences[sequence].Context + q + 1
			}
			keys, values := rows(in, sequence, head/(c.Heads/c.KVHeads), tokens)
			want, _ := attend(queryRow(in, row*c.HeadSize), keys, values)
			out := make([]float32, c.HeadSize)
			for dim, v := range want {
				out[dim] = float32(v)
			}
			if err := c.CheckRow(got[row*c.HeadSize:(row+1)*c.HeadSize], out); err != nil {
				errs[i] = fmt.Errorf("query %d, head %d: %w", query, head, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
