//go:build accuracy

package main

import (
	"context"
	"fmt"
	"math"
	"time"

	"gonum.org/v1/gonum/mat"

	"kvtune/harness"
	"kvtune/harness/workload"
	"kvtune/planner/cost"
	"kvtune/planner/sim"
)

// meansRun is a run of which only means are known, as most benchmarks print them.
type meansRun struct {
	Name string
	// Workload is what was sent, or one like it: lengths and load are what counts.
	Workload *workload.Workload
	// Config is the server's, without a front end: that is the model's.
	Config sim.Config
	// TTFT and TPOT are means in seconds, from the send.
	TTFT, TPOT float64
}

const (
	// ttftScatter and tpotScatter are how far off, relatively, the model's form leaves a mean: queueing makes more of a
	// step's error in the first than in the second.
	ttftScatter, tpotScatter = 0.08, 0.03
	// groupSpread is how far off, as the standard deviation of its logarithm, a group of the prior's coefficients may be.
	groupSpread = 0.5
)

// factorGroups are the coefficients that one factor moves each: means of whole runs tell no finer parts apart.
func factorGroups() [][]string {
	return [][]string{
		{"base", "prefill_step"},
		{"seqs_above_0"},
		{"tokens"},
		{"tokens_above_knee", "tokens_far_above_knee", "throttled"},
		{"prefill_attention"},
		{"decode_context", "shared_context"},
		{"mixed_context", "empty_rows"},
		{"prepare", "launch_piecewise", "launch_eager"},
	}
}

// fitMeans fits a cost model to the means of runs of one server, through the simulator: groups of the prior's
// coefficients are moved by factors until the simulated means are the measured ones, as far as the prior allows
// (Gauss-Newton on the factors' logarithms, with the prior as further rows). The front end's request latency is one
// more factor. It fails when a run cannot be simulated.
func fitMeans(ctx context.Context, prior *cost.Model, runs []meansRun) (*cost.Model, error) {
	if len(runs) == 0 {
		return nil, fmt.Errorf("no run to fit from: give the means of one at least")
	}
	g := factorGroups()
	n := len(g) + 2 // and the front end, and what a larger batch takes beyond its knots
	theta := make([]float64, n)
	residuals := func(theta []float64) ([]float64, float64, error) {
		m, err := movedPrior(prior, theta)
		if err != nil {
			return nil, 0, err
		}
		var out []float64
		loss := 0.0
		for _, r := range runs {
			ttft, tpot, err := r.simulate(ctx, m)
			if err != nil {
				return nil, 0, fmt.Errorf("%s: %w", r.Name, err)
			}
			out = append(out, math.Log(ttft/r.TTFT)/ttftScatter, math.Log(tpot/r.TPOT)/tpotScatter)
		}
		for _, v := range theta {
			out = append(out, v/groupSpread)
		}
		for _, v := range out {
			loss += v * v
		}
		return out, loss, nil
	}
	now, loss, err := residuals(theta)
	if err != nil {
		return nil, err
	}
	const rounds, step = 5, 0.05
	damping := 1.0
	for range rounds {
		jacobian := mat.NewDense(len(now), n, nil)
		for j := range theta {
			theta[j] += step
			there, _, err := residuals(theta)
			theta[j] -= step
			if err != nil {
				return nil, err
			}
			for i := range now {
				jacobian.Set(i, j, (there[i]-now[i])/step)
			}
		}
		better := false
		for range 4 {
			var normal mat.Dense
			normal.Mul(jacobian.T(), jacobian)
			for j := range n {
				normal.Set(j, j, normal.At(j, j)*(1+damping))
			}
			var gradient, move mat.VecDense
			gradient.MulVec(jacobian.T(), mat.NewVecDense(len(now), now))
			if err := move.SolveVec(&normal, &gradient); err != nil {
				return nil, fmt.Errorf("the fit is singular: %w", err)
			}
			next := make([]float64, n)
			for j := range next {
				next[j] = theta[j] - min(max(move.AtVec(j), -0.5), 0.5)
			}
			there, l, err := residuals(next)
			if err != nil {
				return nil, err
			}
			if l < loss {
				better = loss-l > 0.01*loss
				theta, now, loss, damping = next, there, l, damping/4
				break
			}
			damping *= 4
		}
		if !better {
			break
		}
	}
	m, err := movedPrior(prior, theta)
	if err != nil {
		return nil, err
	}
	m.Kind, m.FittedOn = cost.KindFitted, nil
	for _, r := range runs {
		m.FittedOn = append(m.FittedOn, r.Name)
	}
	return m, nil
}

// movedPrior is the prior with its groups times exp(theta), and the front end's request latency; the last factor is of
// the time that each sequence beyond 16 takes, as a share of the prior's seqs_above_0 (a batch of more rows than one
// tile).
func movedPrior(prior *cost.Model, theta []float64) (*cost.Model, error) {
	g := factorGroups()
	values := make([]float64, len(prior.Coefficients))
	var perSeq float64
	for i, c := range prior.Coefficients {
		values[i] = c.Value
		if c.Name == "seqs_above_0" {
			perSeq = c.Value
		}
		for k, names := range g {
			for _, name := range names {
				if c.Name == name {
					values[i] *= math.Exp(theta[k])
				}
			}
		}
	}
	for i, c := range prior.Coefficients {
		if c.Name == "seqs_above_16" {
			values[i] += perSeq * (math.Exp(max(0, theta[len(g)+1])) - 1)
		}
	}
	m, err := prior.With(values)
	if err != nil {
		return nil, err
	}
	m.FrontEnd.Request = max(m.FrontEnd.Handle,
		time.Duration(float64(m.FrontEnd.Request)*math.Exp(theta[len(g)])))
	return m, nil
}

// simulate gives the run's mean TTFT and TPOT under a model, in seconds.
func (a meansRun) simulate(ctx context.Context, m *cost.Model) (ttft, tpot float64, err error) {
	cfg := a.Config
	cfg.FrontEnd = m.FrontEnd
	out, err := sim.Run(ctx, cfg, m, a.Workload, sim.Options{})
	if err != nil {
		return 0, 0, err
	}
	// Both means follow from the ends of a request; the tokens between are what measuring would spend its time on.
	for i := range out.Records {
		r := &out.Records[i]
		if n := len(r.Tokens); n > 2 {
			r.Tokens = []workload.TokenEvent{r.Tokens[0], {At: r.Tokens[n-1].At, Tokens: r.OutputTokens - r.Tokens[0].Tokens}}
		}
	}
	metrics := harness.Measure(out.Records)
	ttft, ok := metrics.Value(harness.MetricTTFTFromSend, harness.StatMean)
	tpot, also := metrics.Value(harness.MetricTPOT, harness.StatMean)
	if !ok || !also {
		return 0, 0, fmt.Errorf("no request of the workload has a first and a second token")
	}
	return ttft, tpot, nil
}
