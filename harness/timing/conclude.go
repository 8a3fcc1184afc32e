package timing

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"gonum.org/v1/gonum/stat"

	"kvtune/harness"
	"kvtune/harness/stats"
	"kvtune/harness/telemetry"
)

// gateOf says why what was timed between two looks at the device is unfit, "" where it is fit or was not looked at, and
// whether the device was at its power limit.
func gateOf(before, after *telemetry.GPU) (gate string, capped bool) {
	var reasons []string
	for _, g := range []*telemetry.GPU{before, after} {
		if g == nil {
			continue
		}
		for _, reason := range g.Throttle {
			if reason == harness.PowerCap {
				capped = true
			} else {
				reasons = append(reasons, reason)
			}
		}
	}
	slices.Sort(reasons)
	return strings.Join(slices.Compact(reasons), ", "), capped
}

// fit are the samples that are not gated, in order.
func (r *Result) fit() []float64 {
	values := make([]float64, 0, len(r.Samples))
	for _, s := range r.Samples {
		if s.Gate == "" {
			values = append(values, s.Seconds)
		}
	}
	return values
}

// cycles is the median of the clock cycles of the samples that are not gated, or of all with all set; nil where some
// were not counted.
func (r *Result) cycles(all bool) *float64 {
	var values []float64
	for _, s := range r.Samples {
		switch {
		case !s.Counted:
			return nil
		case all || s.Gate == "":
			values = append(values, s.Seconds**s.SMClock)
		}
	}
	return new(stats.New(values).Median())
}

// Seconds are the times of all samples in order, gated ones among them.
func (r *Result) Seconds() []float64 {
	values := make([]float64, len(r.Samples))
	for i, s := range r.Samples {
		values[i] = s.Seconds
	}
	return values
}

// conclude computes what is told of the samples.
func (r *Result) conclude(o Options) {
	values := r.fit()
	r.Gated = len(r.Samples) - len(values)
	throughout := len(values) < o.MinSamples && r.Gated > 0
	if throughout {
		values = r.Seconds()
		r.warn("the device was throttled nearly throughout (%d of %d samples: %s): the median is over all of them",
			r.Gated, len(r.Samples), r.gates())
	} else if r.Gated > 0 {
		r.warn("%d of %d samples were taken while the device was throttled (%s): they are kept, and not in the median",
			r.Gated, len(r.Samples), r.gates())
	}
	for _, s := range r.Samples {
		if s.Capped {
			r.Capped++
		}
	}
	if r.Capped > 0 {
		r.warn("%d of %d samples were taken at the device's power limit: the time depends on the card, clock cycles less so",
			r.Capped, len(r.Samples))
	}
	r.locate(values)
	r.Cycles = r.cycles(throughout)
	r.Autocorrelation = stats.Autocorrelation(values, 1)
	r.markOutliers(stats.New(values))
	r.Drift, r.DriftP = drift(values)
	if r.DriftP < 0.01 && math.Abs(r.Drift) > o.Precision {
		r.warn("the samples drift: the last third is %+.2f %% from the first (p = %.2g)", 100*r.Drift, r.DriftP)
	}
	switch r.Stop {
	case TimeUp, Full:
		r.warn("%s with the median known %s: %.2f %% was asked for", r.Stop, r.known(), 100*o.Precision)
	case Cancelled:
		r.warn("cancelled with the median known %s", r.known())
	}
	if half := (r.OverheadInterval.High - r.OverheadInterval.Low) / 2 / float64(r.Launches); half > o.Precision*r.Median {
		r.warn("the launch is too short for this clock: the subtracted cost is uncertain by %.2g s, %.1f %% of the median",
			half, 100*half/r.Median)
	}
}

// locate computes the median of values and how well it is known.
func (r *Result) locate(values []float64) {
	s := stats.New(values)
	r.Median, r.Effective, r.Resolution = s.Median(), stats.Effective(values), resolution(values)
	r.Interval = s.PercentileInterval(50, level, r.Effective)
	// A clock of coarse steps gives an interval of no width where most samples are on one step.
	r.Interval.Low = min(r.Interval.Low, r.Median-r.Resolution/2)
	r.Interval.High = max(r.Interval.High, r.Median+r.Resolution/2)
}

func (r *Result) known() string {
	if math.IsInf(r.Precision(), 1) {
		return "without an interval (too few independent samples)"
	}
	return fmt.Sprintf("to %.2f %% only", 100*r.Precision())
}

func (r *Result) warn(format string, args ...any) {
	r.Warnings = append(r.Warnings, fmt.Sprintf(format, args...))
}

// gates are the different reasons for gates, sorted.
func (r *Result) gates() string {
	var reasons []string
	for _, s := range r.Samples {
		if s.Gate != "" {
			reasons = append(reasons, s.Gate)
		}
	}
	slices.Sort(reasons)
	return strings.Join(slices.Compact(reasons), "; ")
}

func (r *Result) markOutliers(s stats.Sample) {
	low, high := s.Percentile(25), s.Percentile(75)
	reach := 3 * (high - low)
	for i := range r.Samples {
		v := r.Samples[i].Seconds
		if r.Samples[i].Outlier = v < low-reach || v > high+reach; r.Samples[i].Outlier {
			r.Outliers++
		}
	}
}

// resolution is the smallest step between different values; 0 where all are equal. Steps below a billionth of the value
// are the rounding of floating point, not the clock's.
func resolution(values []float64) float64 {
	sorted := slices.SortedFunc(slices.Values(values), cmp.Compare[float64])
	smallest := math.Inf(1)
	for i := 1; i < len(sorted); i++ {
		if step := sorted[i] - sorted[i-1]; step > 1e-9*math.Abs(sorted[i]) {
			smallest = min(smallest, step)
		}
	}
	if math.IsInf(smallest, 1) {
		return 0
	}
	return smallest
}

// drift compares the first third of values with the last: the change of the median relative to the first, and the
// p-value of a Mann-Whitney test between blocks of both. The blocks are long enough to be nearly independent of each
// other; the drift itself, taken as a straight line, does not count against that.
func drift(values []float64) (relative, p float64) {
	third := len(values) / 3
	if third < 2 {
		return 0, 1
	}
	at := make([]float64, len(values))
	for i := range at {
		at[i] = float64(i)
	}
	start, slope := stat.LinearRegression(at, values, nil, false)
	rest := make([]float64, len(values))
	for i, v := range values {
		rest[i] = v - start - slope*at[i]
	}
	blocks := min(max(stats.Effective(rest)/3, 1), 50)
	first, last := values[:third], values[len(values)-third:]
	change := stats.New(last).Median()/stats.New(first).Median() - 1
	return change, stats.MannWhitney(stats.Blocks(first, blocks), stats.Blocks(last, blocks)).P
}
