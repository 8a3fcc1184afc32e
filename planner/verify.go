package planner

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"kvtune/harness"
	"kvtune/harness/stats"
	"kvtune/harness/workload"
	"kvtune/planner/analysis"
)

// SetMeasured puts runs of the plan's settings, at least one, beside the prediction: every metric that both have, with
// the relative error and whether the measured value lies in the predicted interval, and every SLO. Of several runs a
// value is the mean; each of them must meet an SLO.
func (p *Plan) SetMeasured(runs ...Measured) {
	p.Measured, p.MeasuredOrigin, p.Compared = average(runs), runs[0].Origin, nil
	p.setMeasuredSLOs(runs)
	for i := range p.Predicted {
		m := &p.Predicted[i]
		measured, ok := p.Measured.Value(m.Name, m.Stat)
		if !ok || m.Value == nil {
			continue
		}
		c := Comparison{Metric: m.Name, Stat: m.Stat, Unit: m.Unit, Predicted: *m.Value, Measured: measured}
		if measured != 0 {
			e := (*m.Value - measured) / measured
			c.Error = &e
		}
		if m.Low != nil && m.High != nil {
			in := *m.Low <= measured && measured <= *m.High
			c.Inside = &in
		}
		p.Compared = append(p.Compared, c)
	}
}

// setMeasuredSLOs judges every SLO by the run that is worst in it.
func (p *Plan) setMeasuredSLOs(runs []Measured) {
	var slos []harness.SLO
	for _, check := range p.SLOs {
		slo, err := harness.ParseSLO(check.SLO)
		if err != nil { // not written by kvtune
			return
		}
		slos = append(slos, slo)
	}
	for i, slo := range slos {
		check := &p.SLOs[i]
		check.Measured, check.MeasuredMet = nil, nil
		for _, run := range runs {
			m, met, known := slo.Judge(run.Metrics, run.Records, slos)
			if known && (check.Measured == nil || (*m.Value < *check.Measured) == slo.AtLeast()) {
				check.Measured, check.MeasuredMet = m.Value, &met
			}
		}
	}
}

// average is the mean of every metric over the runs that have it; its interval spans theirs.
func average(results []Measured) harness.Metrics {
	out := slices.Clone(results[0].Metrics)
	if len(results) == 1 {
		return out
	}
	for i := range out {
		m := &out[i]
		sum, n := 0.0, 0
		m.Low, m.High = nil, nil
		for _, r := range results {
			o := r.Metrics.Get(m.Name, m.Stat)
			if o == nil || o.Value == nil {
				continue
			}
			sum, n = sum+*o.Value, n+1
			if o.Low != nil && (m.Low == nil || *o.Low < *m.Low) {
				m.Low = o.Low
			}
			if o.High != nil && (m.High == nil || *o.High > *m.High) {
				m.High = o.High
			}
		}
		if n > 0 {
			mean := sum / float64(n)
			m.Value = &mean
		}
	}
	return out
}

// Measured is one run of settings.
type Measured struct {
	Origin  harness.Origin
	Metrics harness.Metrics
	Records []workload.Record
}

// GainVerdict is what paired runs say of a predicted gain.
type GainVerdict string

const (
	// GainHolds: the plan is surely better than the baseline, and the measured interval meets the predicted one.
	GainHolds GainVerdict = "holds"
	// GainDiffers: the plan is surely better, by another amount than predicted.
	GainDiffers GainVerdict = "better, but not by what was predicted"
	// GainUnsure: the interval of the measured gain holds 0.
	GainUnsure GainVerdict = "no gain that the runs can show"
	// GainWorse: the plan is surely worse than the baseline.
	GainWorse GainVerdict = "WORSE than the baseline"
)

// SetMeasuredGain states the plan's gain over the baseline in its strategy's own metric (throughput for memory, whose
// gain is its size), from runs by turns: before[i] and after[i] served the same requests in the same round. A mean of
// requests is compared request by request, counting neighbours that are alike as less than one each; what is one number
// per run is compared round by round, without an interval where there is one round.
func (p *Plan) SetMeasuredGain(over Strategy, before, after []Measured) {
	name, stat := aimOf(p.Strategy).metric, aimOf(p.Strategy).stat
	switch {
	case p.Strategy == Memory || p.Strategy == Balanced:
		name, stat = harness.MetricTotalThroughput, ""
	case p.Gain != nil: // a recommendation's may be in the metric of an objective
		name, stat = p.Gain.Metric, p.Gain.Stat
	}
	n := min(len(before), len(after))
	var a, b, changes []float64
	for i := range n {
		x, okX := before[i].Metrics.Value(name, stat)
		y, okY := after[i].Metrics.Value(name, stat)
		if okX && okY && x != 0 {
			a, b, changes = append(a, x), append(b, y), append(changes, better(name, (y-x)/math.Abs(x)))
		}
	}
	if len(changes) == 0 {
		return
	}
	first := before[0].Metrics.Get(name, stat)
	g := &analysis.Gain{Metric: name, Stat: stat, Unit: first.Unit, Before: stats.New(a).Mean(),
		After: stats.New(b).Mean(), Change: stats.New(changes).Mean()}
	var iv stats.Interval
	known := len(changes) > 1
	if known {
		iv = stats.New(changes).MeanInterval(0.95)
	}
	if name == harness.MetricE2EL && stat == harness.StatMean {
		if diffs := paired(before[:n], after[:n]); len(diffs) >= 10 {
			d := stats.New(diffs)
			half := (d.MeanInterval(0.95).High - d.Mean()) * math.Sqrt(float64(len(diffs))/float64(stats.Effective(diffs)))
			// A shorter latency is better.
			iv, known = stats.Interval{Low: -(d.Mean() + half) / g.Before, High: -(d.Mean() - half) / g.Before}, true
		}
	}
	if known {
		low, high := min(iv.Low, g.Change), max(iv.High, g.Change)
		g.Low, g.High = &low, &high
	}
	p.MeasuredGain, p.MeasuredOver = g, over
	switch {
	case g.Low == nil:
	case *g.High < 0:
		p.GainVerdict = GainWorse
	case *g.Low <= 0:
		p.GainVerdict = GainUnsure
	case p.Gain != nil && p.Gain.Metric == g.Metric && p.Gain.Low != nil &&
		(*p.Gain.High < *g.Low || *p.Gain.Low > *g.High):
		p.GainVerdict = GainDiffers
	default:
		p.GainVerdict = GainHolds
	}
}

// better turns a relative change into an improvement.
func better(metric string, change float64) float64 {
	if harness.HigherIsBetter(metric) {
		return change
	}
	return -change
}

// paired are the differences in end-to-end latency, in s, of the requests that both runs of a round served.
func paired(before, after []Measured) []float64 {
	var diffs []float64
	for i := range before {
		latency := map[int]float64{}
		of := func(r *workload.Record) float64 { return (r.End() - r.Start()).Seconds() }
		for k := range before[i].Records {
			if r := &before[i].Records[k]; r.Phase == workload.Measured && r.OK() {
				latency[r.Index] = of(r)
			}
		}
		for k := range after[i].Records {
			r := &after[i].Records[k]
			if x, ok := latency[r.Index]; ok && r.Phase == workload.Measured && r.OK() {
				diffs = append(diffs, of(r)-x)
			}
		}
	}
	return diffs
}

// Plan finds the plan of a strategy; nil when there is none.
func (p *Plans) Plan(s Strategy) *Plan {
	for i := range p.Plans {
		if p.Plans[i].Strategy == s {
			return &p.Plans[i]
		}
	}
	return nil
}

// ReadPlans reads custom_schedule_plans.json. Unknown fields are ignored; another kind of file and a newer major
// version are refused. Objectives of a measured plan that the version which wrote it did not judge are judged.
func ReadPlans(r io.Reader) (*Plans, error) {
	var plans Plans
	if err := json.NewDecoder(r).Decode(&plans); err != nil {
		return nil, fmt.Errorf("plans: %w; expected the JSON that `kvtune plan` writes", err)
	}
	if err := harness.CheckSchema(plans.Schema, Schema); err != nil {
		return nil, fmt.Errorf("plans: %w; give the file that `kvtune plan` writes", err)
	}
	if len(plans.Plans) == 0 && plans.Infeasible == nil {
		return nil, errors.New("plans: the file holds no plan")
	}
	for i := range plans.Plans {
		p := &plans.Plans[i]
		judged := slices.ContainsFunc(p.SLOs, func(c SLOCheck) bool { return c.MeasuredMet != nil })
		if len(p.Measured) > 0 && !judged {
			p.setMeasuredSLOs([]Measured{{Metrics: p.Measured}})
		}
	}
	return &plans, nil
}
