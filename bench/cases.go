// Package bench runs the kernel benchmarks: `go test -bench . ./bench` and, behind `kvtune bench`, [Run], which takes
// cases through check, ceilings and timing to rows that say what a layout or a block size costs against the best.
package bench

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"kvtune/kernels"
	"kvtune/kernels/layout"
)

// Base is the case of an operation from which axes are varied: Llama-3.1-8B's attention (32 query heads, 8 KV heads,
// head size 128) in bf16, blocks of 16 tokens, a permuted block table. large is for a GPU: 32 sequences of 4,096
// tokens, 8,192 tokens appended or prefilled; otherwise 8 of 1,024, and 2,048 or, prefilled, 64.
func Base(op kernels.Op, large bool) kernels.Case {
	c := kernels.Case{Op: op, Layout: layout.NHD, BlockSize: 16, DType: layout.BF16, Heads: 32, KVHeads: 8, HeadSize: 128,
		Batch: 8, Context: 1024, Permuted: true}
	if large {
		c.Batch, c.Context = 32, 4096
	}
	switch op {
	case kernels.OpPrefill:
		c.Batch, c.Context, c.New = 1, 0, 64
		if large {
			c.New = 8192
		}
	case kernels.OpAppend:
		c.New = 256
	}
	return c
}

// Cases are the product of operations and axes, in order, the last axis varying fastest. An axis is "name=value,value"
// with the names of [kernels.Axes]; a name may be given once. Values that an operation does not have are errors.
func Cases(ops []string, axes []string, large bool) ([]kernels.Case, error) {
	var cases []kernels.Case
	for _, op := range ops {
		if !slices.Contains(kernels.Ops(), kernels.Op(op)) {
			return nil, fmt.Errorf("operation %q is unknown: expected one of %v", op, kernels.Ops())
		}
		cases = append(cases, Base(kernels.Op(op), large))
	}
	return product(cases, axes)
}

// ReadCases reads a list of cases: on every line an operation and axes, between spaces, of which it is the product as
// in [Cases]. Empty lines and those that begin with # say nothing.
func ReadCases(r io.Reader, large bool) ([]kernels.Case, error) {
	var list []kernels.Case
	lines := bufio.NewScanner(r)
	for number := 1; lines.Scan(); number++ {
		words := strings.Fields(lines.Text())
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		cases, err := Cases(words[:1], words[1:], large)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		for _, c := range cases {
			if slices.Contains(list, c) {
				return nil, fmt.Errorf("line %d: case %s is there twice", number, c.Name())
			}
			list = append(list, c)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, errors.New("there is no case: expected lines of an operation and axes, such as: decode block_size=1,16")
	}
	return list, nil
}

// product sets axes of cases to values, one case for every combination.
func product(cases []kernels.Case, axes []string) ([]kernels.Case, error) {
	var seen []string
	for _, axis := range axes {
		name, values, ok := strings.Cut(axis, "=")
		if !ok || values == "" {
			return nil, fmt.Errorf("axis %q: expected name=value,value with a name of %s", axis, strings.Join(kernels.Axes(),
				", "))
		}
		if slices.Contains(seen, name) {
			return nil, fmt.Errorf("axis %s is given twice: put all its values behind one", name)
		}
		seen = append(seen, name)
		var next []kernels.Case
		for _, c := range cases {
			for value := range strings.SplitSeq(values, ",") {
				with, err := c.With(name, strings.TrimSpace(value))
				if err != nil {
					return nil, err
				}
				next = append(next, with)
			}
		}
		cases = next
	}
	for i, c := range cases {
		if err := c.Validate(); err != nil {
			return nil, err
		}
		if slices.Contains(cases[:i], c) {
			return nil, fmt.Errorf("case %s is there twice: an axis has a value twice", c.Name())
		}
	}
	return cases, nil
}

// Small is a case like c that the reference computes in a moment: at most 4 sequences of 512 tokens and 64 new ones,
// ragged, with a permuted block table. It is what is checked before c is timed.
func Small(c kernels.Case) kernels.Case {
	c.Batch, c.Context, c.New = min(c.Batch, 4), min(c.Context, 512), min(c.New, 64)
	c.Ragged, c.Permuted = true, true
	return c
}

// group is what the choice of layout and block size is free within: c with these at their first values.
func group(c kernels.Case) kernels.Case {
	c.Layout, c.BlockSize = 0, 1
	return c
}

// axesOf are the axes of a case by name, as they stand in its name.
func axesOf(c kernels.Case) map[string]string {
	axes := map[string]string{"op": string(c.Op)}
	for part := range strings.SplitSeq(c.Name(), "/") {
		if name, value, ok := strings.Cut(part, "="); ok {
			axes[name] = value
		}
	}
	return axes
}
