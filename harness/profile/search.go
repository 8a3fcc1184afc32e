package profile

import (
	"context"
	"fmt"
	"math"
	"time"

	"kvtune/harness"
	"kvtune/harness/workload"
)

// SearchOptions say between which rates, and how closely, the highest one is looked for that keeps the objectives.
type SearchOptions struct {
	// From and To bound the rate in requests/s; From is measured first.
	From, To float64
	SLOs     []harness.SLO
	// Precision is how far apart the highest rate that kept them and the lowest that did not may be at the end, as a
	// share; 0 is 5 %.
	Precision float64
	// Measure runs the workload at a rate.
	Measure func(ctx context.Context, rate float64) (*Output, error)
}

// RateStep is one rate of a search.
type RateStep struct {
	Rate float64
	// Kept says whether every objective was kept, Why which one was not, or what else was wrong.
	Kept bool
	Why  string
	// Sure is false where the 95 % interval of a metric holds its limit: another run may judge otherwise.
	Sure   bool
	Output *Output
}

// RateSearch is what a search found.
type RateSearch struct {
	// Steps in order of measuring.
	Steps []RateStep
	// Best is the index of the step with the highest rate that kept the objectives, -1 when none did; Missed is that of
	// the lowest rate above it that did not, -1 when the upper bound kept them.
	Best, Missed int
	// Ended says why the search could not go on, "" when it ended as it should.
	Ended string
}

// defaultPrecision is finer than one run of some hundred requests tells.
const defaultPrecision = 0.05

// SearchRate finds the highest rate that keeps the objectives: it doubles the rate until one is missed, so that the
// server is never asked for more than twice what it can do, and then halves the bracket (in the logarithm). A rate at
// which requests pile up is missed whatever the latencies of those that ended ([FallsBehind]). Where a miss may be
// the generator's, or a run ended early, the search ends and says so: nothing is known of higher rates. An objective
// that is kept in spite of a late generator is kept.
func SearchRate(ctx context.Context, opt SearchOptions) (*RateSearch, error) {
	if !(opt.From > 0 && opt.To >= opt.From) || len(opt.SLOs) == 0 {
		return nil, fmt.Errorf("a search from %g to %g requests/s under %d objectives: expected rates above 0 in ascending "+
			"order and an objective", opt.From, opt.To, len(opt.SLOs))
	}
	if opt.Precision == 0 {
		opt.Precision = defaultPrecision
	}
	s := &RateSearch{Best: -1, Missed: -1}
	for rate := opt.From; ; {
		out, err := opt.Measure(ctx, rate)
		if err != nil {
			return s, err
		}
		step := judge(rate, out, opt.SLOs)
		s.Steps = append(s.Steps, step)
		last := len(s.Steps) - 1
		switch res := out.Result; {
		case res.Partial:
			s.Ended = "the run at this rate ended early: " + res.Why
			return s, nil
		case !step.Kept && res.Conditions.GeneratorLimited != "":
			s.Ended = "the generator was the limit: " + res.Conditions.GeneratorLimited
			return s, nil
		case step.Kept:
			s.Best = last
		default:
			s.Missed = last
		}
		switch {
		case s.Best < 0, s.Missed < 0 && rate >= opt.To:
			return s, nil
		case s.Missed < 0:
			rate = min(2*rate, opt.To)
		default:
			low, high := s.Steps[s.Best].Rate, s.Steps[s.Missed].Rate
			if high <= low*(1+opt.Precision) {
				return s, nil
			}
			rate = math.Sqrt(low * high)
		}
	}
}

// judge says whether a run kept the objectives.
func judge(rate float64, out *Output, slos []harness.SLO) RateStep {
	step := RateStep{Rate: rate, Kept: true, Sure: true, Output: out}
	miss := func(format string, args ...any) {
		if step.Kept {
			step.Kept, step.Why = false, fmt.Sprintf(format, args...)
		}
	}
	for _, slo := range slos {
		m, met, known := slo.Judge(out.Result.Metrics, out.Records, slos)
		switch {
		case !known:
			miss("%s: not observed", slo)
		case !met:
			miss("%s: it was %.4g %s", slo, *m.Value, m.Unit)
		}
		if known && m.Low != nil && m.High != nil && *m.Low <= slo.Limit && slo.Limit <= *m.High {
			step.Sure = false
		}
	}
	if n, more := FallsBehind(out.Records); more {
		miss("the server falls behind: of %d requests, more were in flight the longer it went on", n)
	}
	return step
}

// FallsBehind reports whether an open loop asked for more than the server can do: whether the requests in flight grew
// over the second half of the arrivals by more than a tenth of what arrived in it, and by more than chance explains
// (three standard deviations of a Poisson count around their mean number). n is how many arrived in that half.
func FallsBehind(records []workload.Record) (n int, more bool) {
	var starts []time.Duration
	for i := range records {
		if r := &records[i]; r.Phase == workload.Measured {
			starts = append(starts, r.Start())
		}
	}
	if len(starts) < 20 {
		return len(starts), false
	}
	from, to := starts[len(starts)/2], starts[len(starts)-1]
	inFlight := func(at time.Duration) (k float64) {
		for i := range records {
			if r := &records[i]; r.Phase == workload.Measured && r.Start() <= at && r.End() > at {
				k++
			}
		}
		return k
	}
	n = len(starts) - len(starts)/2
	before, after := inFlight(from), inFlight(to)
	grown := after - before
	return n, grown > float64(n)/10 && grown > 3*math.Sqrt(max(1, (before+after)/2))
}
