// Package timing times a launch, trustworthy to half a percent where the machine lets it: warm-up, the timer's own cost
// measured and subtracted, launches in batches so that gaps between them are not counted, a stopping rule, and the
// machine's state beside every sample. It knows no kernel and no device.
//
// [Measure] takes samples from a [Clock]. [CPU] is the clock of work that runs on the host; a clock of work on a device
// records its own events around launches that one call enqueues. No sample is ever dropped: outliers and samples of a
// throttled device are flagged and stay, in the order in which they were taken.
package timing

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"kvtune/harness/stats"
	"kvtune/harness/telemetry"
)

// Clock times one piece of work.
type Clock interface {
	// Series takes samples one after the other, each around launches of the work back to back, and returns what it read of
	// each whole sample in order. The clock's own cost is in the seconds. launches is at least 1.
	Series(samples, launches int) ([]Reading, error)
	// Empty is the same with nothing launched: the seconds of the clock's own cost.
	Empty(samples int) ([]float64, error)
}

// Reading is what a clock says of one sample.
type Reading struct {
	Seconds float64
	// SMClock is the mean rate in Hz at which the device's processors ran meanwhile; nil where the clock cannot tell.
	SMClock *float64
}

// Options say how to measure. The zero value of a field is its default.
type Options struct {
	// Precision is the half width, relative to the median, of the median's 95 % interval at which to stop: 0.005.
	Precision float64
	// MaxTime bounds the measured part: 5 s. At least one series is taken, so a long launch takes longer.
	MaxTime time.Duration
	// WarmUp is how long launches run unmeasured first, at least one of them: 200 ms, or a fifth of MaxTime if that is
	// less. Negative is a single launch.
	WarmUp time.Duration
	// MinSamples are taken before the interval is believed: 30. MaxSamples bounds the memory: 20,000.
	MinSamples, MaxSamples int
	// Launches is the number of launches in a sample. 0 is as many as make the clock's cost at most 0.1 % of a sample,
	// from 1 to 1,000. It is 1 where a hook of the clock makes every launch cold.
	Launches int
	// Turn is after how many launches the work is back where it began, where launches take turns on different data: a
	// sample has a multiple of it if it can, so that all samples time the same. 0 is 1.
	Turn int
	// Probe reads the device's state, before, between and after series; nil reads nothing. An error ends the measurement.
	// [telemetry.ErrNoGPU] does not: there is nothing to read.
	Probe func() (telemetry.GPU, error)
	// Now is the time on the wall; nil is [time.Now].
	Now func() time.Time
}

const (
	level         = 0.95
	seriesTime    = 50 * time.Millisecond // of one series: between two looks at the device and at the interval
	emptySamples  = 200
	largestSeries = 1000
	clockShare    = 0.001 // of a sample, that may be the clock's cost
	mostLaunches  = 1000
)

func (o Options) filled() Options {
	def := func(v *time.Duration, to time.Duration) {
		if *v == 0 {
			*v = to
		}
	}
	count := func(v *int, to int) {
		if *v == 0 {
			*v = to
		}
	}
	if o.Precision == 0 {
		o.Precision = 0.005
	}
	def(&o.MaxTime, 5*time.Second)
	def(&o.WarmUp, min(200*time.Millisecond, o.MaxTime/5))
	count(&o.MinSamples, 30)
	count(&o.MaxSamples, 20000)
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

func (o Options) validate() error {
	switch {
	case !(o.Precision > 0 && o.Precision < 1):
		return fmt.Errorf("precision is %v: it must be above 0 and below 1 (0.005 is half a percent)", o.Precision)
	case o.MaxTime < 0:
		return fmt.Errorf("max time is %v: it must not be negative", o.MaxTime)
	case o.MinSamples < 6: // fewer have no 95 % interval of the median
		return fmt.Errorf("min samples is %d: allowed is from 6", o.MinSamples)
	case o.MaxSamples < o.MinSamples:
		return fmt.Errorf("max samples is %d: allowed is from min samples, %d", o.MaxSamples, o.MinSamples)
	case o.Launches < 0 || o.Turn < 0:
		return fmt.Errorf("launches is %d, turn is %d: allowed is from 0", o.Launches, o.Turn)
	}
	return nil
}

// Sample is one timed batch of launches.
type Sample struct {
	// Seconds is the time of one launch: the batch's, less the clock's cost, by the launches in it. It may be 0 or less
	// where the launch is shorter than the clock's noise.
	Seconds float64
	// At is when the sample's series began, from the begin of the measured part.
	At time.Duration
	// SMClock is the rate of the device's processors in Hz: what the clock says of the sample, else what the probe read
	// after the series; nil where neither knows. Counted says that it is the former, so that Seconds times SMClock is the
	// launch in clock cycles.
	SMClock *float64
	Counted bool
	// Gate says why the device was not fit when this was taken; "" where it was. Gated samples are not in the median.
	Gate string
	// Capped: the device was at its power limit. Work that keeps the processors busy brings it there and it stays there,
	// so that this is how fast it is; but what else draws power, and the card, decide about the clock.
	Capped bool
	// Outlier: further from the quartiles than three times their distance (Tukey 1977). It is in the median all the same.
	Outlier bool
}

// Stop says why a measurement ended.
type Stop string

const (
	// Precise: the median's interval is as narrow as was asked for.
	Precise Stop = "precise"
	// TimeUp and Full: it is not, but the time or the room for samples was used up.
	TimeUp Stop = "time up"
	Full   Stop = "samples full"
	// Cancelled: the context ended.
	Cancelled Stop = "cancelled"
)

// Result is a measurement. Times are in seconds and of one launch.
type Result struct {
	Samples  []Sample
	Launches int // in each sample
	Stop     Stop
	// Median is over the samples that are not gated; over all where fewer than MinSamples are not (see Warnings). Interval
	// is its 95 % interval, for as many independent samples as Effective, and no narrower than the clock can tell.
	Median   float64
	Interval stats.Interval
	// Cycles is the median of the samples' clock cycles, over the samples of Median; nil where they are not counted.
	Cycles *float64
	// Overhead is the clock's cost per sample: the median of Empty, with its 95 % interval.
	Overhead         float64
	OverheadInterval stats.Interval
	// Resolution is the smallest step between different samples, as a time of one launch.
	Resolution float64
	// Autocorrelation is that of neighbouring samples (ranks do not enter); Effective as in [stats.Effective].
	Autocorrelation float64
	Effective       int
	// Drift is the change from the median of the first third to that of the last, relative; DriftP the chance of at least
	// that without a drift.
	Drift, DriftP float64
	// Gated, Capped and Outliers count flagged samples.
	Gated, Capped, Outliers int
	// Before and After are the device's state around the measurement; nil where none was read.
	Before, After *telemetry.GPU
	// Warnings are what a reader must know before believing the median.
	Warnings []string
}

// Precision is the half width of the median's interval relative to the median; infinite where there is no interval.
func (r *Result) Precision() float64 {
	if p := (r.Interval.High - r.Interval.Low) / 2 / r.Median; p >= 0 {
		return p
	}
	return math.Inf(1)
}

// Measure warms up and takes samples until the median is known precisely enough, the time is up, or the context ends.
// With an error of the clock or the probe it returns what was measured before it, or nil.
func Measure(ctx context.Context, clock Clock, o Options) (*Result, error) {
	o = o.filled()
	if err := o.validate(); err != nil {
		return nil, err
	}
	r := &Result{}
	one, err := warmUp(ctx, clock, o)
	if err != nil {
		return nil, err
	}
	empty, err := clock.Empty(emptySamples)
	if err != nil {
		return nil, fmt.Errorf("time the empty launch: %w", err)
	}
	cost := stats.New(empty)
	r.Overhead, r.OverheadInterval = cost.Median(), cost.PercentileInterval(50, level, stats.Effective(empty))
	// Neighbours that depend on each other much leave too few values for an interval: then it is all of them.
	r.OverheadInterval.Low = max(r.OverheadInterval.Low, cost.Percentile(0))
	r.OverheadInterval.High = min(r.OverheadInterval.High, cost.Percentile(100))
	if math.IsNaN(r.Overhead) {
		return nil, errors.New("the clock gave no sample of an empty launch")
	}
	r.Launches = o.Launches
	if r.Launches == 0 {
		r.Launches = whole(launchesFor(one-r.Overhead, r.Overhead), o.Turn)
	}
	err = r.sample(ctx, clock, o, one*float64(r.Launches))
	if len(r.Samples) == 0 {
		if err == nil {
			err = ctx.Err()
		}
		return nil, err
	}
	r.conclude(o)
	return r, err
}

// warmUp launches until the time is over and returns the seconds of one launch, the clock's cost included.
func warmUp(ctx context.Context, clock Clock, o Options) (float64, error) {
	begin, n := o.Now(), 1
	for {
		got, err := clock.Series(1, n)
		if err != nil {
			return 0, fmt.Errorf("warm up: %w", err)
		}
		if len(got) != 1 {
			return 0, fmt.Errorf("the clock gave %d samples: 1 was asked for", len(got))
		}
		if o.Now().Sub(begin) >= o.WarmUp || ctx.Err() != nil {
			return max(got[0].Seconds/float64(n), 1e-9), ctx.Err()
		}
		if o.Launches == 0 && got[0].Seconds < 0.01 {
			n = min(2*n, mostLaunches)
		}
	}
}

// launchesFor is how many launches of so many seconds make the clock's cost small.
func launchesFor(launch, overhead float64) int {
	if !(launch > 0) {
		return mostLaunches
	}
	return int(min(max(math.Ceil(overhead/clockShare/launch), 1), mostLaunches))
}

// whole is launches rounded up to whole turns, or down where that would be too many; one turn that is too long is cut.
func whole(launches, turn int) int {
	switch {
	case turn < 2 || turn > mostLaunches:
		return launches
	case launches > mostLaunches-turn:
		return mostLaunches / turn * turn
	}
	return (launches + turn - 1) / turn * turn
}

// sample takes series until a rule stops it. each is what one sample is thought to last, in seconds.
func (r *Result) sample(ctx context.Context, clock Clock, o Options, each float64) error {
	before, err := r.look(o)
	if err != nil {
		return err
	}
	r.Before = before
	begin, seen := o.Now(), 0
	for {
		size := int(min(max(seriesTime.Seconds()/each, 1), largestSeries, float64(o.MaxSamples-len(r.Samples))))
		at := o.Now().Sub(begin)
		got, err := clock.Series(size, r.Launches)
		if err != nil {
			return fmt.Errorf("time a series of %d samples: %w", size, err)
		}
		if len(got) != size {
			return fmt.Errorf("the clock gave %d samples: %d were asked for", len(got), size)
		}
		after, err := r.look(o)
		if err != nil {
			return err
		}
		gate, capped := gateOf(before, after)
		seconds := make([]float64, size)
		for i, g := range got {
			seconds[i] = g.Seconds
			sample := Sample{Seconds: (g.Seconds - r.Overhead) / float64(r.Launches), At: at, Gate: gate, Capped: capped,
				SMClock: g.SMClock, Counted: g.SMClock != nil}
			if after != nil && !sample.Counted {
				sample.SMClock = after.SMClock
			}
			r.Samples = append(r.Samples, sample)
		}
		before, r.After = after, after
		each = max(stats.New(seconds).Median(), 1e-9)
		switch {
		case r.precise(o, &seen):
			r.Stop = Precise
		case ctx.Err() != nil:
			r.Stop = Cancelled
		case o.Now().Sub(begin) >= o.MaxTime:
			r.Stop = TimeUp
		case len(r.Samples) >= o.MaxSamples:
			r.Stop = Full
		default:
			continue
		}
		return nil
	}
}

func (r *Result) look(o Options) (*telemetry.GPU, error) {
	if o.Probe == nil {
		return nil, nil
	}
	state, err := o.Probe()
	if errors.Is(err, telemetry.ErrNoGPU) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the device's state: %w", err)
	}
	return &state, nil
}

// precise says whether the median is known as precisely as was asked, looking at the samples that are not gated. seen
// is how many those were at the last look.
func (r *Result) precise(o Options, seen *int) bool {
	values := r.fit()
	// The more often one looks, the likelier is a narrow interval by chance; and a look costs a sort.
	if len(values) < o.MinSamples || len(values) < *seen+*seen/10 {
		return false
	}
	*seen = len(values)
	r.locate(values)
	return r.Precision() <= o.Precision
}
