package planner

import (
	"context"
	"math"
	"slices"
	"strconv"

	"kvtune/harness/vllmflags"
	"kvtune/planner/analysis"
)

// Sensitivity is what one flag alone does to a plan when it goes to a neighbouring value.
type Sensitivity struct {
	Flag string `json:"flag"`
	From string `json:"from"`
	To   string `json:"to"`
	// Change is that of the strategy's own metric as a share, below 0 where it would cost; nil where it cannot be told:
	// Refused says that the server would not start, or the metric was not observed.
	Change  *float64 `json:"change"`
	Refused string   `json:"refused,omitempty"`
	// Misses are the objectives that the plan meets and the neighbour does not.
	Misses []string `json:"misses,omitempty"`
}

// neighbours are the searched values next to a flag's own: the next smaller and the next larger number, or all others
// where values are no numbers.
func neighbours(values []string, own string) []string {
	at, err := strconv.ParseFloat(own, 64)
	var others []string
	low, high, below, above := "", "", math.Inf(-1), math.Inf(1)
	for _, v := range values {
		n, bad := strconv.ParseFloat(v, 64)
		switch {
		case v == own:
		case err != nil || bad != nil:
			others = append(others, v)
		case n < at && n > below:
			low, below = v, n
		case n > at && n < above:
			high, above = v, n
		}
	}
	for _, v := range []string{low, high} {
		if v != "" {
			others = append(others, v)
		}
	}
	return others
}

// sensitivities simulates the neighbours of every plan along every axis, in the prediction's own draw: the difference
// is that of the flag alone.
func (p *planning) sensitivities(ctx context.Context, axes []Axis, plans []Plan, chosen []*candidate) error {
	type place struct{ plan, at int }
	var all []*candidate
	var places []place
	for i, c := range chosen {
		for _, a := range axes {
			own := vllmflags.Get(c.args, a.Flag)
			for _, v := range neighbours(a.Values, own) {
				s := Sensitivity{Flag: a.Flag, From: own, To: v}
				args := c.args
				if err := vllmflags.Set(&args, a.Flag, v); err != nil {
					continue // an axis that the caller gave, of values that are not legal
				}
				if n := p.candidate(args); n != nil {
					all, places = append(all, n), append(places, place{i, len(plans[i].Sensitivity)})
				} else {
					_, err := p.req.Server.Config(args)
					s.Refused = "the server would not start"
					if err != nil {
						s.Refused = err.Error()
					}
				}
				plans[i].Sensitivity = append(plans[i].Sensitivity, s)
			}
		}
	}
	if _, err := p.evaluate(ctx, all, p.req.Options.Requests); err != nil {
		return err
	}
	for k, n := range all {
		plan, c := &plans[places[k].plan], chosen[places[k].plan]
		s := &plan.Sensitivity[places[k].at]
		own := &candidate{args: c.args, cfg: c.cfg, runs: c.runs[:1]}
		if g := p.gain(plan.Strategy, n, own); g != nil {
			s.Change = &g.Change
		}
		for i, check := range n.runs[0].slos {
			if !check.Met && c.runs[0].slos[i].Met {
				s.Misses = append(s.Misses, check.SLO)
			}
		}
	}
	return nil
}

// regret is what the default would lose against a plan: the plan's gain over it, in the strategy's own metric.
func (p *planning) regret(s Strategy, c *candidate, keep []*candidate) *analysis.Gain {
	at := slices.IndexFunc(keep, func(k *candidate) bool { return len(p.changesBetween(k.args, p.defaults())) == 0 })
	if at < 0 {
		return nil
	}
	if keep[at] == c {
		own, zero := aimOf(s), 0.0
		g := &analysis.Gain{Metric: own.metric, Stat: own.stat, Low: &zero, High: &zero}
		if m := c.runs[0].metrics.Get(own.metric, own.stat); m != nil && m.Value != nil {
			g.Unit, g.Before, g.After = m.Unit, *m.Value, *m.Value
		}
		return g
	}
	return p.gain(s, c, keep[at])
}
