package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"kvtune/harness"
	"kvtune/harness/timing"
	"kvtune/kernels"
)

// ceiling is something that the machine does at most so fast.
type ceiling struct {
	op   kernels.Op   // a large case of this operation
	peak kernels.Peak // or this peak, where op is ""
	// field is where its rate goes, in units per second. The launch floor is a time instead.
	field func(*harness.Bench) **float64
}

// ceilings are those that cases are held against.
func ceilings(cases []kernels.Case) []ceiling {
	has := func(of func(kernels.Case) bool) bool { return slices.ContainsFunc(cases, of) }
	list := []ceiling{
		{op: kernels.OpRead, field: func(b *harness.Bench) **float64 { return &b.ReadCeiling }},
		{op: kernels.OpCopy, field: func(b *harness.Bench) **float64 { return &b.CopyCeiling }},
		{peak: kernels.PeakLaunch, field: func(b *harness.Bench) **float64 { return &b.LaunchFloor }},
	}
	if has(func(c kernels.Case) bool { return c.Flops() > 0 }) {
		list = append(list, ceiling{peak: kernels.PeakMatrix,
			field: func(b *harness.Bench) **float64 { return &b.MatrixCeiling }})
	}
	if has(func(c kernels.Case) bool { return c.Op == kernels.OpSwapOut }) {
		list = append(list, ceiling{peak: kernels.PeakToHost, field: func(b *harness.Bench) **float64 { return &b.ToHost }})
	}
	if has(func(c kernels.Case) bool { return c.Op == kernels.OpSwapIn }) {
		list = append(list, ceiling{peak: kernels.PeakToDevice,
			field: func(b *harness.Bench) **float64 { return &b.ToDevice }})
	}
	return list
}

// ceilings measures the ceilings of the cases.
func (r *runner) ceilings(ctx context.Context, b *harness.Bench) error {
	for _, c := range r.limits {
		r.tell("ceiling: " + string(c.op) + string(c.peak))
		seconds, units, err := r.ceiling(ctx, c)
		switch {
		case err != nil:
			return err
		case seconds == nil: // the backend has none
		case c.peak == kernels.PeakLaunch:
			*c.field(b) = seconds
		default:
			*c.field(b) = new(units / *seconds)
		}
	}
	return nil
}

func (r *runner) ceiling(ctx context.Context, of ceiling) (seconds *float64, units float64, err error) {
	if of.op != "" {
		c := Base(of.op, false)
		c.Batch = 16
		c.Context = max(1, int(r.Ceiling/c.Shape().BytesPerToken())/c.Batch)
		result, err := r.time(ctx, r.Limits, c, true)
		if errors.Is(err, kernels.ErrUnsupported) {
			return nil, 0, nil
		}
		if err != nil {
			return nil, 0, err
		}
		return &result.Median, float64(c.Bytes()), nil
	}
	k, units, err := r.Limits.Peak(of.peak)
	if err != nil || k == nil {
		return nil, 0, err
	}
	defer k.Close()
	clock, onDevice := k.(timing.Clock)
	if !onDevice {
		clock = timing.CPU(k.Run, nil)
	}
	result, err := timing.Measure(ctx, clock, r.Timing)
	if err != nil {
		return nil, 0, fmt.Errorf("peak %s: %w", of.peak, err)
	}
	return &result.Median, units, nil
}
