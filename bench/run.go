package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"runtime/debug"
	"time"

	"kvtune/harness"
	"kvtune/harness/compare"
	"kvtune/harness/stats"
	"kvtune/harness/telemetry"
	"kvtune/harness/timing"
	"kvtune/kernels"
	"kvtune/kernels/layout"
	"kvtune/kernels/ref"
)

// Options of a run.
type Options struct {
	// Name is that of the archive's part.
	Name string
	// Backend runs the cases, on Device (a processor or GPU by name).
	Backend kernels.Backend
	Device  string
	Cases   []kernels.Case
	// Ceiling is how many bytes are read and copied for the ceilings, several times the caches: 256 MiB for 0.
	Ceiling int64
	// Cold: the data of a launch is in no cache when it begins; else launches find there what fits. A backend with a clock
	// of its own was opened for that ([Open]).
	Cold bool
	// Rounds is how often all cases are gone through, forwards and backwards by turns, so that a machine that warms up or
	// is disturbed does not favour the cases that come first: 2 for 0.
	Rounds int
	// Timing is for each case in each round.
	Timing timing.Options
	// Progress, if not nil, is told what begins, and how many of all steps are done.
	Progress func(done, of int, what string)
}

// Outcome is what a run gave.
type Outcome struct {
	Bench   *harness.Bench
	Samples []harness.BenchSample
	cases   []kernels.Case
}

// Run checks every case against the reference, measures the ceilings of reading and copying, times all cases, and
// compares each with the fastest of its group: the cases that differ in layout and block size only.
//
// When the context ends, what was timed is returned as a partial outcome without an error.
func Run(ctx context.Context, o Options) (*Outcome, error) {
	if len(o.Cases) == 0 {
		return nil, errors.New("no case to run")
	}
	if o.Rounds == 0 {
		o.Rounds = 2
	}
	if o.Ceiling == 0 {
		o.Ceiling = 256 << 20
	}
	// The collector would take its turns within samples. Inputs are collected between cases.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	r := &runner{Options: o, steps: (1+o.Rounds)*len(o.Cases) + 2}
	begin := time.Now()
	out := &Outcome{cases: o.Cases, Bench: &harness.Bench{Schema: harness.BenchSchema, Name: o.Name,
		Origin:  harness.OriginMeasured,
		Backend: o.Backend.Name(), Device: o.Device, Cold: o.Cold, Rounds: o.Rounds, Cases: []harness.BenchCase{}}}
	b := out.Bench
	environment, err := telemetry.ReadEnvironment()
	if err != nil {
		return nil, err
	}
	b.Conditions.Started, b.Conditions.Host = begin, environment.Host
	for _, finding := range environment.Unfit {
		b.Warnings = append(b.Warnings, finding.What)
	}
	for i, c := range o.Cases {
		r.tell("checking " + c.Name())
		if err := r.check(Small(c)); err != nil {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		b.Cases = append(b.Cases, harness.BenchCase{Case: c.Name(), Axes: axesOf(c), Bytes: c.Bytes(), Flops: c.Flops(),
			Checked: Small(o.Cases[i]).Name()})
	}
	err = r.ceilings(ctx, b)
	timed := make([][]*timing.Result, len(o.Cases))
	for round := 0; round < o.Rounds && err == nil && ctx.Err() == nil; round++ {
		for at := range o.Cases {
			if round%2 == 1 {
				at = len(o.Cases) - 1 - at
			}
			r.tell("timing " + o.Cases[at].Name())
			var one *timing.Result
			if one, err = r.time(ctx, o.Cases[at]); err != nil {
				break
			}
			timed[at] = append(timed[at], one)
			for _, s := range one.Samples {
				out.Samples = append(out.Samples, harness.BenchSample{Case: o.Cases[at].Name(), Round: round, At: s.At,
					Seconds: s.Seconds, Clock: s.SMClock, Gate: s.Gate, Outlier: s.Outlier})
			}
		}
	}
	if err != nil && ctx.Err() == nil {
		return nil, err
	}
	out.conclude(timed, ctx.Err() != nil)
	b.Conditions.Duration = time.Since(begin).Seconds()
	return out, nil
}

type runner struct {
	Options
	done, steps int
	sweep       []uint64 // larger than every cache of the host
}

func (r *runner) tell(what string) {
	if r.Progress != nil {
		r.Progress(r.done, r.steps, what)
	}
	r.done++
}

// check runs a case once and compares what it leaves with the reference.
func (r *runner) check(c kernels.Case) error {
	in, err := kernels.NewInputs(c)
	if err != nil {
		return err
	}
	k, err := r.Backend.Load(in)
	if err != nil {
		return err
	}
	defer k.Close()
	if err := k.Run(1); err != nil {
		return fmt.Errorf("case %s: %w", c.Name(), err)
	}
	got, err := k.Output()
	if err != nil {
		return err
	}
	want, err := ref.Output(in)
	if err != nil {
		return err
	}
	if err := c.Check(got, want); err != nil {
		return fmt.Errorf("%s backend against the reference: %w", r.Backend.Name(), err)
	}
	return nil
}

// ceilings measures how fast the machine reads and copies.
func (r *runner) ceilings(ctx context.Context, b *harness.Bench) error {
	for _, ceiling := range []struct {
		op kernels.Op
		to **float64
	}{{kernels.OpRead, &b.ReadCeiling}, {kernels.OpCopy, &b.CopyCeiling}} {
		c := Base(ceiling.op, false)
		c.Batch = 16
		c.Context = max(1, int(r.Ceiling/c.Shape().BytesPerToken())/c.Batch)
		r.tell("ceiling: " + string(ceiling.op))
		result, err := r.time(ctx, c)
		if err != nil {
			return err
		}
		*ceiling.to = new(float64(c.Bytes()) / result.Median)
	}
	return nil
}

func (r *runner) time(ctx context.Context, c kernels.Case) (*timing.Result, error) {
	in, err := kernels.NewInputs(c)
	if err != nil {
		return nil, err
	}
	k, err := r.Backend.Load(in)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	runtime.GC()
	o := r.Timing
	clock, onDevice := k.(timing.Clock)
	if !onDevice {
		var before func() error
		// What is several times larger than the cache evicts itself.
		if size := cacheSize(); r.Cold && c.Bytes() < 4*size {
			before, o.Launches = func() error { r.evict(size); return nil }, 1
		}
		clock = timing.CPU(k.Run, before)
	}
	result, err := timing.Measure(ctx, clock, o)
	if err != nil {
		return nil, fmt.Errorf("case %s: %w", c.Name(), err)
	}
	return result, nil
}

// conclude makes the rows of what was timed, one list of results per case.
func (out *Outcome) conclude(timed [][]*timing.Result, cancelled bool) {
	b := out.Bench
	if cancelled {
		b.Partial, b.Why = true, "interrupted"
	}
	values := out.values()
	rows, cases := b.Cases[:0], out.cases[:0:0]
	for i, results := range timed {
		if len(results) == 0 {
			continue // the run ended before
		}
		row := b.Cases[i]
		fill(&row, results, values[row.Case])
		rows, cases = append(rows, row), append(cases, out.cases[i])
	}
	b.Cases, out.cases = rows, cases
	out.rank(values)
}

// values are the times of every case that are not gated, in order, in seconds; all of them where none is.
func (out *Outcome) values() map[string][]float64 {
	fit, all := map[string][]float64{}, map[string][]float64{}
	for _, s := range out.Samples {
		all[s.Case] = append(all[s.Case], s.Seconds)
		if s.Gate == "" {
			fit[s.Case] = append(fit[s.Case], s.Seconds)
		}
	}
	for name, v := range all {
		if len(fit[name]) == 0 {
			fit[name] = v
		}
	}
	return fit
}

// fill sums up the rounds of a case.
func fill(row *harness.BenchCase, results []*timing.Result, values []float64) {
	s := stats.New(values)
	row.Median, row.Effective = s.Median(), stats.Effective(values)
	iv := s.PercentileInterval(50, 0.95, row.Effective)
	if !math.IsInf(iv.Low, 0) && !math.IsInf(iv.High, 0) {
		row.Low, row.High = &iv.Low, &iv.High
	}
	row.Stop = string(timing.Precise)
	for _, r := range results {
		row.Samples += len(r.Samples)
		row.Gated += r.Gated
		row.Outliers += r.Outliers
		if r.Stop != timing.Precise {
			row.Stop = string(r.Stop)
		}
		row.Warnings = append(row.Warnings, r.Warnings...)
	}
	last := results[len(results)-1]
	row.Launches, row.Overhead = last.Launches, last.Overhead
	row.Autocorrelation, row.Drift = last.Autocorrelation, last.Drift
	if first := results[0].Median; len(results) > 1 && math.Abs(last.Median/first-1) > 0.01 {
		row.Warnings = append(row.Warnings, fmt.Sprintf(
			"the last round is %+.1f %% from the first: the interval does not know of that", 100*(last.Median/first-1)))
	}
}

// rank compares every case with the fastest of its group.
func (out *Outcome) rank(values map[string][]float64) {
	rows := out.Bench.Cases
	best := map[kernels.Case]int{}
	for i := range rows {
		g := group(out.cases[i])
		if at, seen := best[g]; !seen || rows[i].Median < rows[at].Median {
			best[g] = i
		}
	}
	var tested []int
	var ps []float64
	for i := range rows {
		at := best[group(out.cases[i])]
		if at == i {
			rows[i].Best = true
			continue
		}
		fastest, own := compare.Blocks(values[rows[at].Case]), compare.Blocks(values[rows[i].Case])
		ratio, iv := stats.Ratio(fastest, own, 0.99)
		rows[i].Slower = &ratio
		if iv.Low > 0 && !math.IsInf(iv.High, 1) {
			rows[i].SlowerLow, rows[i].SlowerHigh = &iv.Low, &iv.High
		}
		tested, ps = append(tested, i), append(ps, stats.MannWhitney(fastest, own).P)
	}
	for i, p := range stats.Holm(ps) {
		rows[tested[i]].P = &p
	}
}

// significant is the level at which a difference to the best counts, after Holm's correction.
const significant = 0.01

// layouts and block sizes in the order of the cases.
func (out *Outcome) axis(g kernels.Case) (layouts []layout.Layout, sizes []int) {
	seenLayout, seenSize := map[layout.Layout]bool{}, map[int]bool{}
	for _, c := range out.cases {
		if group(c) != g {
			continue
		}
		if !seenLayout[c.Layout] {
			seenLayout[c.Layout], layouts = true, append(layouts, c.Layout)
		}
		if !seenSize[c.BlockSize] {
			seenSize[c.BlockSize], sizes = true, append(sizes, c.BlockSize)
		}
	}
	return layouts, sizes
}

// groups are the different groups of the cases, in order.
func (out *Outcome) groups() []kernels.Case {
	var groups []kernels.Case
	seen := map[kernels.Case]bool{}
	for _, c := range out.cases {
		if g := group(c); !seen[g] {
			seen[g], groups = true, append(groups, g)
		}
	}
	return groups
}
