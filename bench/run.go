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
)

// Options of a run.
type Options struct {
	// Name is that of the archive's part.
	Name string
	// Backend runs the cases, on Device (a processor or GPU by name).
	Backend kernels.Backend
	Device  string
	// Limits measures the ceilings; nil is Backend.
	Limits kernels.Backend
	Cases  []kernels.Case
	// Ceiling is how many bytes are read and copied for the ceilings, several times the caches: 256 MiB for 0.
	Ceiling int64
	// NoCeilings leaves the ceilings out, where only times matter.
	NoCeilings bool
	// Cold: the data of a launch is in no cache when it begins; else launches find there what fits. A backend with a clock
	// of its own was opened for that ([Open]).
	Cold bool
	// Rounds is how often all cases are gone through, forwards and backwards by turns, so that a machine that warms up or
	// is disturbed does not favour the cases that come first: 2 for 0.
	Rounds int
	// Timing is for each case in each round.
	Timing timing.Options
	// Tuning, if not nil, says which of a kernel's choices its case takes. Cases that it does not have take the first;
	// with Tune not 0, every choice of them is timed for so long, the fastest taken, and written into Tuning.
	Tuning *harness.Tuning
	Tune   time.Duration
	// Progress, if not nil, is told what begins, and how many of all steps are done.
	Progress func(done, of int, what string)
}

// Outcome is what a run gave.
type Outcome struct {
	Bench   *harness.Bench
	Samples []harness.BenchSample
	// Series are the GPU's clocks, power and temperature before and after every case in every round.
	Series []harness.Sample
	cases  []kernels.Case
}

// Run checks every case against the reference, measures the machine's ceilings, times all cases, and compares each with
// the fastest of its group: the cases that differ in layout and block size only. Cases that the backend does not have
// are left out, with a warning; it is an error if that are all.
//
// When the context ends, what was timed is returned as a partial outcome without an error; when a case fails after
// others were timed, with the error.
func Run(ctx context.Context, o Options) (*Outcome, error) {
	if len(o.Cases) == 0 {
		return nil, errors.New("no case to run")
	}
	if o.Rounds == 0 {
		o.Rounds = 2
	}
	if o.Limits == nil {
		o.Limits = o.Backend
	}
	if o.Ceiling == 0 {
		o.Ceiling = 256 << 20
	}
	// The collector would take its turns within samples. Inputs are collected between cases.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	begin := time.Now()
	r := &runner{Options: o, chosen: map[string]string{}, begin: begin, steps: (1 + o.Rounds) * len(o.Cases)}
	if !o.NoCeilings {
		r.limits = ceilings(o.Cases)
		r.steps += len(r.limits)
	}
	out := &Outcome{Bench: &harness.Bench{Schema: harness.BenchSchema, Name: o.Name,
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
	var missing []error
	for _, c := range o.Cases {
		r.tell("checking " + c.Name())
		err := r.check(Small(c))
		if errors.Is(err, kernels.ErrUnsupported) {
			missing = append(missing, err)
			continue
		}
		if err != nil {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		b.Cases = append(b.Cases, harness.BenchCase{Case: c.Name(), Axes: axesOf(c), Bytes: c.Bytes(), Flops: c.Flops(),
			Checked: fmt.Sprintf("%s, and %d places of the case", Small(c).Name(), spots)})
		out.cases = append(out.cases, c)
	}
	if len(out.cases) == 0 {
		return nil, fmt.Errorf("no case can be run: %w", missing[0])
	}
	if len(missing) > 0 {
		b.Warnings = append(b.Warnings, fmt.Sprintf("%d of %d cases are left out, the first: %v", len(missing), len(o.Cases),
			missing[0]))
	}
	o.Cases = out.cases
	r.steps -= (1 + o.Rounds) * len(missing)
	err = r.ceilings(ctx, b)
	timed, left := make([][]*timing.Result, len(o.Cases)), make([]error, len(o.Cases))
	for round := 0; round < o.Rounds && err == nil && ctx.Err() == nil; round++ {
		for at := range o.Cases {
			if round%2 == 1 {
				at = len(o.Cases) - 1 - at
			}
			r.tell("timing " + o.Cases[at].Name())
			if left[at] != nil {
				continue
			}
			one, failed := r.time(ctx, r.Backend, o.Cases[at], round == 0)
			if errors.Is(failed, kernels.ErrUnsupported) { // its small form was taken: too large
				left[at] = failed
				b.Warnings = append(b.Warnings, "left out: "+failed.Error())
				continue
			}
			if err = failed; err != nil {
				break
			}
			out.Series = append(out.Series, r.states(one)...)
			timed[at] = append(timed[at], one)
			for _, s := range one.Samples {
				out.Samples = append(out.Samples, harness.BenchSample{Case: o.Cases[at].Name(), Round: round, At: s.At,
					Seconds: s.Seconds, Clock: s.SMClock, Counted: s.Counted, Gate: s.Gate, Capped: s.Capped, Outlier: s.Outlier})
			}
		}
	}
	switch {
	case ctx.Err() != nil:
		b.Partial, b.Why, err = true, "interrupted", nil
	case err != nil && len(out.Samples) == 0:
		return nil, err
	case len(out.Samples) == 0:
		return nil, fmt.Errorf("no case can be timed: %w", errors.Join(left...))
	case err != nil:
		b.Partial, b.Why = true, err.Error()
	}
	out.conclude(timed, r.chosen)
	b.Conditions.Duration = time.Since(begin).Seconds()
	return out, err
}

type runner struct {
	Options
	chosen      map[string]string // by case
	begin       time.Time
	limits      []ceiling
	done, steps int
	sweep       []uint64 // larger than every cache of the host
}

func (r *runner) tell(what string) {
	r.say(what)
	r.done++
}

// say tells what begins within a step.
func (r *runner) say(what string) {
	if r.Progress != nil {
		r.Progress(r.done, r.steps, what)
	}
}

// states are the GPU's before and after a measurement.
func (r *runner) states(of *timing.Result) (samples []harness.Sample) {
	for _, g := range []*telemetry.GPU{of.Before, of.After} {
		if g == nil {
			continue
		}
		for _, v := range []struct {
			metric string
			value  *float64
		}{{harness.SeriesGPUSMClock, g.SMClock}, {harness.SeriesGPUMemoryClock, g.MemoryClock},
			{harness.SeriesGPUPower, g.Power}, {harness.SeriesGPUTemperature, g.Temperature}} {
			if v.value != nil {
				samples = append(samples, harness.Sample{T: g.At.Sub(r.begin), Metric: v.metric, Value: *v.value})
			}
		}
	}
	return samples
}

// time loads a case and measures it; with first set it chooses how to run it, and looks at places of what one launch
// leaves.
func (r *runner) time(ctx context.Context, on kernels.Backend, c kernels.Case, first bool) (*timing.Result, error) {
	in, err := kernels.NewInputs(c)
	if err != nil {
		return nil, err
	}
	k, err := on.Load(in)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	o := r.Timing
	if k, ok := k.(interface{ Turn() int }); ok {
		o.Turn = k.Turn()
	}
	switch choice := r.chosen[c.Name()]; {
	case first:
		if choice, err = r.choose(ctx, k, in, o); err != nil {
			return nil, err
		}
		r.chosen[c.Name()] = choice
		if err := r.spot(k, in); err != nil {
			return nil, err
		}
	case choice != "":
		if err := k.(kernels.Tunable).Choose(kernels.Choice(choice)); err != nil {
			return nil, err
		}
	}
	runtime.GC()
	result, err := timing.Measure(ctx, r.clock(k, c, &o), o)
	if err != nil {
		return nil, fmt.Errorf("case %s: %w", c.Name(), err)
	}
	return result, nil
}

// clock is a loaded case's own clock, or one of the host's that finds the caches as the options say.
func (r *runner) clock(k kernels.Kernel, c kernels.Case, o *timing.Options) timing.Clock {
	if clock, onDevice := k.(timing.Clock); onDevice {
		return clock
	}
	var before func() error
	// What is several times larger than the cache evicts itself.
	if size := cacheSize(); r.Cold && c.Bytes() < 4*size {
		before, o.Launches = func() error { r.evict(size); return nil }, 1
	}
	return timing.CPU(k.Run, before)
}

// conclude makes the rows of what was timed, one list of results per case, with the choices that were taken.
func (out *Outcome) conclude(timed [][]*timing.Result, chosen map[string]string) {
	b := out.Bench
	values := out.values()
	rows, cases := b.Cases[:0], out.cases[:0:0]
	for i, results := range timed {
		if len(results) == 0 {
			continue // left out, or the run ended before
		}
		row := b.Cases[i]
		fill(&row, results, values[row.Case])
		row.Cycles = out.cycles(row.Case)
		row.Choice = chosen[row.Case]
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

// cycles is the median of a case's clock cycles; nil where not all of its samples have them. Gated samples are not in
// it, unless all are gated.
func (out *Outcome) cycles(name string) *float64 {
	var fit, all []float64
	for _, s := range out.Samples {
		if s.Case != name {
			continue
		}
		if !s.Counted {
			return nil
		}
		all = append(all, s.Seconds**s.Clock)
		if s.Gate == "" {
			fit = append(fit, all[len(all)-1])
		}
	}
	if len(fit) == 0 {
		fit = all
	}
	return new(stats.New(fit).Median())
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
		row.Capped += r.Capped
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
