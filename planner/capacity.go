package planner

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"kvtune/harness"
	"kvtune/harness/stats"
	"kvtune/harness/workload"
)

// Capacity is how many requests per second settings serve.
type Capacity struct {
	// Rate is the highest arrival rate in request/s at which the simulated requests, at other paces of arrival, meet the
	// SLOs; without SLOs, and at most where none of them is about the time that a request waits, the rate at which they
	// are served when all wait at once. Beyond the simulated number of requests a queue may still grow: near Rate, a
	// longer run may miss.
	Rate float64 `json:"request_per_s"`
	// Low and High bound the 95 % interval over the draws.
	Low  float64 `json:"low"`
	High float64 `json:"high"`
	// AtLeast is set where the SLOs still hold at the fastest arrivals that were tried, 64 times the workload's own.
	AtLeast bool `json:"at_least,omitempty"`
}

// Deployment is what serves a target rate.
type Deployment struct {
	// Target is in request/s; Replicas servers of GPUs devices each reach it at [Capacity].Rate, ReplicasHigh at its lower
	// bound.
	Target       float64 `json:"target_request_per_s"`
	Replicas     int     `json:"replicas"`
	ReplicasHigh int     `json:"replicas_high"`
	GPUs         int     `json:"gpus_per_replica"`
	// PerHour is the price of Replicas in the unit of [Request].GPUPrice, PerMillion that of a million tokens, prompt and
	// output together, PerMillionOutput that of a million output tokens; nil without a price.
	PerHour          *float64 `json:"price_per_hour,omitempty"`
	PerMillion       *float64 `json:"price_per_million_tokens,omitempty"`
	PerMillionOutput *float64 `json:"price_per_million_output_tokens,omitempty"`
}

// faster is a workload whose arrivals come factor times as fast.
func faster(w *workload.Workload, factor float64) *workload.Workload {
	quick := *w
	quick.Requests = slices.Clone(w.Requests)
	for i := range quick.Requests {
		r := &quick.Requests[i]
		r.Due = time.Duration(float64(r.Due) / factor)
	}
	return &quick
}

// own is a workload's arrival rate in request/s over its measured requests; 0 where all arrive at once.
func own(w *workload.Workload) float64 {
	n, from, to := 0, math.Inf(1), 0.0
	for i := range w.Requests {
		if r := &w.Requests[i]; r.Phase == workload.Measured && r.After < 0 {
			n, from, to = n+1, min(from, r.Due.Seconds()), max(to, r.Due.Seconds())
		}
	}
	if n < 2 || to <= from {
		return 0
	}
	return float64(n-1) / (to - from)
}

// The arrivals are tried from 1/span to span times as fast as the workload's own.
const span = 64

// capacity finds a candidate's capacity; nil where the SLOs hold at no rate that was tried, or the workload has no
// arrivals to be changed.
func (p *planning) capacity(ctx context.Context, c *candidate) (*Capacity, error) {
	if found, ok := p.capacities.Load(c.key()); ok {
		return found.(*Capacity), nil
	}
	var out *Capacity
	var err error
	if len(p.req.SLOs) == 0 {
		out, err = p.saturated(ctx, c)
	} else if p.open && own(p.work[0]) > 0 {
		out, err = p.underSLOs(ctx, c)
	}
	if err != nil {
		return nil, err
	}
	p.capacities.Store(c.key(), out)
	return out, nil
}

// saturated lets all requests wait at once.
func (p *planning) saturated(ctx context.Context, c *candidate) (*Capacity, error) {
	rates, err := p.served(ctx, c)
	if err != nil || rates[0] <= 0 {
		return nil, err
	}
	return within(rates, false), nil
}

// served are the rates of the draws at which requests are served that all wait at once, in request/s.
func (p *planning) served(ctx context.Context, c *candidate) ([]float64, error) {
	rates := make([]float64, len(p.work))
	err := p.each(ctx, len(rates), func(ctx context.Context, i int) error {
		w := p.work[i]
		if p.open {
			w = faster(w, 1e9)
		}
		o, err := p.simulate(ctx, c, i, w, false)
		if err != nil {
			return err
		}
		rates[i], _ = o.metrics.Value(harness.MetricRequestThroughput, "")
		return nil
	})
	return rates, err
}

// queues reports whether an objective is about the time that requests wait to be served.
func queues(slos []harness.SLO) bool {
	return slices.ContainsFunc(slos, func(s harness.SLO) bool {
		return s.Metric == harness.MetricTTFT || s.Metric == harness.MetricE2EL || s.Metric == harness.MetricQueueTime
	})
}

// within is the first rate with the interval that the draws give it.
func within(rates []float64, atLeast bool) *Capacity {
	iv := interval(rates)
	return &Capacity{Rate: rates[0], Low: max(0, min(iv.Low, rates[0])), High: max(iv.High, rates[0]), AtLeast: atLeast}
}

// interval is where one more draw is expected with 95 %: the mean's uncertainty and the draw's own. Values above 0 are
// taken to vary by factors, as the draws' step times do: latencies near saturation are far from symmetric.
func interval(values []float64) stats.Interval {
	factors := len(values) > 0 && slices.Min(values) > 0
	scaled := slices.Clone(values)
	for i, v := range values {
		if factors {
			scaled[i] = math.Log(v)
		}
	}
	s := stats.New(scaled)
	half := (s.MeanInterval(0.95).High - s.Mean()) * math.Sqrt(float64(len(values)+1))
	iv := stats.Interval{Low: s.Mean() - half, High: s.Mean() + half}
	if factors {
		iv = stats.Interval{Low: math.Exp(iv.Low), High: math.Exp(iv.High)}
	}
	return iv
}

// underSLOs finds the end of the SLOs in every draw, by doubling or halving, then bisection to 1 %.
func (p *planning) underSLOs(ctx context.Context, c *candidate) (*Capacity, error) {
	ends := make([]float64, len(p.work)) // in request/s; 0: at no rate
	open := make([]bool, len(p.work))
	find := func(ctx context.Context, i int, from float64) error {
		holds := func(factor float64) (bool, error) {
			o, err := p.simulate(ctx, c, i, faster(p.work[i], factor), false)
			return o.miss == 0, err
		}
		step := 2.0
		if i > 0 {
			step = 1.15 // the other draws end not far from the first
		}
		at, low, high := from, 0.0, 0.0
		ok, err := holds(at)
		for first := ok; err == nil && ok == first; step *= step {
			if ok {
				low, at = at, at*step
			} else {
				high, at = at, at/step
			}
			if at > span || at < 1.0/span {
				if ok {
					open[i], ends[i] = true, low*own(p.work[i])
				}
				return nil
			}
			ok, err = holds(at)
		}
		if err != nil {
			return err
		}
		if ok {
			low = at
		} else {
			high = at
		}
		for high/low > 1.01 {
			mid := math.Sqrt(low * high)
			if ok, err = holds(mid); err != nil {
				return err
			}
			if ok {
				low = mid
			} else {
				high = mid
			}
		}
		ends[i] = low * own(p.work[i])
		return nil
	}
	if err := find(ctx, 0, 1); err != nil || ends[0] == 0 {
		return nil, err
	}
	at := ends[0] / own(p.work[0])
	err := p.each(ctx, len(ends)-1, func(ctx context.Context, i int) error { return find(ctx, i+1, at) })
	if err != nil {
		return nil, err
	}
	if !queues(p.req.SLOs) { // the objectives hold however long the queue grows
		most, err := p.served(ctx, c)
		if err != nil {
			return nil, err
		}
		for i := range ends {
			if ends[i] > most[i] {
				ends[i], open[i] = most[i], false
			}
		}
	}
	return within(ends, slices.Contains(open, true)), nil
}

// deploy sizes a deployment of a plan for the target rate.
func (p *planning) deploy(plan *Plan) *Deployment {
	if p.req.TargetRate <= 0 || plan.MaxRequestRate == nil || plan.MaxRequestRate.Rate <= 0 {
		return nil
	}
	c := plan.MaxRequestRate
	d := &Deployment{Target: p.req.TargetRate, GPUs: max(1, plan.Args.TensorParallelSize),
		Replicas: int(math.Ceil(p.req.TargetRate / c.Rate))}
	d.ReplicasHigh = d.Replicas
	if c.Low > 0 {
		d.ReplicasHigh = int(min(1e6, math.Ceil(p.req.TargetRate/c.Low)))
	}
	if p.req.GPUPrice > 0 {
		hour := p.req.GPUPrice * float64(d.Replicas*d.GPUs)
		n, tokens, output := 0.0, 0.0, 0.0
		for i := range p.work[0].Requests {
			if r := &p.work[0].Requests[i]; r.Phase == workload.Measured {
				n, tokens, output = n+1, tokens+float64(r.PromptTokens()+r.OutputTokens), output+float64(r.OutputTokens)
			}
		}
		all, out := hour/(p.req.TargetRate*3600*tokens/n)*1e6, hour/(p.req.TargetRate*3600*output/n)*1e6
		d.PerHour, d.PerMillion, d.PerMillionOutput = &hour, &all, &out
	}
	return d
}

// String is e.g. "12.4 request/s (11.9 to 12.8)".
func (c *Capacity) String() string {
	least := ""
	if c.AtLeast {
		least = "at least "
	}
	return fmt.Sprintf("%s%s request/s (%s to %s)", least, threeDigits(c.Rate), threeDigits(c.Low), threeDigits(c.High))
}

// threeDigits writes a number in three significant digits, without an exponent.
func threeDigits(v float64) string {
	rounded, _ := strconv.ParseFloat(strconv.FormatFloat(v, 'g', 3, 64), 64)
	return strconv.FormatFloat(rounded, 'f', -1, 64)
}

// String is e.g. "3 replicas of 1 GPU for 30 request/s, 7.5/hour, 0.021 per million tokens".
func (d *Deployment) String() string {
	replicas := fmt.Sprintf("%d replica(s)", d.Replicas)
	if d.ReplicasHigh > d.Replicas {
		replicas = fmt.Sprintf("%d (at most %d) replicas", d.Replicas, d.ReplicasHigh)
	}
	text := fmt.Sprintf("%s of %d GPU(s) for %.4g request/s", replicas, d.GPUs, d.Target)
	if d.PerHour != nil {
		text += fmt.Sprintf(", %.4g per hour, %.4g per million tokens (%.4g per million output tokens)", *d.PerHour,
			*d.PerMillion, *d.PerMillionOutput)
	}
	return text
}
