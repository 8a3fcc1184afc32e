package planner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"kvtune/harness/stats"
	"kvtune/harness/workload"
)

// RateRange is what a plan over a range of arrival rates found: the settings that are never far from the best.
type RateRange struct {
	// Rates are the arrival rates that were simulated, in request/s, ascending. Plans and baselines are described at the
	// last one.
	Rates []float64 `json:"rates_request_per_s"`
	// Choices has one entry per strategy, in the order of Plans.
	Choices []RateChoice `json:"choices"`
}

// RateChoice is a strategy's choice over the range: of the settings that meet the SLOs at the most rates, those with
// the smallest worst-case regret, and of those that cannot be told from them the ones with the fewest changed flags.
type RateChoice struct {
	Strategy Strategy `json:"strategy"`
	// WorstRegret is the largest share by which the choice's metric falls behind the best settings' of the same rate, At
	// the rate where it does; Low and High bound its 95 % interval over the draws. The balanced strategy's metric is power
	// (throughput over p99 latency): a knee belongs to one rate.
	WorstRegret float64 `json:"worst_regret"`
	Low         float64 `json:"low"`
	High        float64 `json:"high"`
	At          float64 `json:"at_request_per_s"`
	// BaselineRegret is the same of the baseline; nil where it meets the SLOs at fewer rates than the choice.
	BaselineRegret *float64 `json:"baseline_worst_regret"`
	// BaselineMisses are the rates at which the choice meets the SLOs, and the baseline does not or in fewer draws.
	BaselineMisses []float64 `json:"baseline_misses_request_per_s,omitempty"`
	// Points are the range's rates, one by one; Switches where settings that were the best are so no more.
	Points   []RatePoint `json:"points"`
	Switches []Switch    `json:"switches,omitempty"`
}

// RatePoint is one rate of a [RateChoice].
type RatePoint struct {
	Rate float64 `json:"request_per_s"`
	// Winner are the flags that the best settings of this rate alone change; empty for the baseline's settings.
	Winner []Change `json:"winner"`
	// Regret is the choice's against the winner; nil where one of them misses the SLOs.
	Regret *float64 `json:"regret"`
	// Met says that the choice meets the SLOs, Possible that some settings do.
	Met      bool `json:"met"`
	Possible bool `json:"possible"`
}

// Switch is a change of the best settings between two rates, in request/s, found by bisection.
type Switch struct {
	Above float64 `json:"above_request_per_s"`
	Below float64 `json:"below_request_per_s"`
	// From and To are the flags that the best settings change below and above.
	From []Change `json:"from"`
	To   []Change `json:"to"`
}

const (
	// ratePoints is how many rates of a range are simulated.
	ratePoints = 6
	// switchAt is how near two rates are between which the winner changes, as a share.
	switchAt = 0.03
)

// ratesOf are rates from low to high, evenly spaced by ratio.
func ratesOf(low, high float64) []float64 {
	rates := make([]float64, ratePoints)
	for i := range rates {
		rates[i] = low * math.Pow(high/low, float64(i)/(ratePoints-1))
	}
	rates[ratePoints-1] = high
	return rates
}

// at is a planning for another arrival rate.
func (req Request) at(rate float64) Request {
	base := req.Workload
	req.Workload = func(seed uint64) (*workload.Workload, error) {
		w, err := base(seed)
		if err != nil {
			return nil, err
		}
		own := own(w)
		if own == 0 || !w.Open() {
			return nil, errors.New("a range of rates needs an open loop whose requests do not all arrive at once: give " +
				"--rate, or a trace with times")
		}
		return faster(w, rate/own), nil
	}
	return req
}

// MakeRange plans for arrival rates from low to high, in request/s: the workload's arrivals are brought to each rate,
// its lengths stay. The plans are [Make]'s, chosen for the whole range and described at its highest rate; Plans.Range
// says how far they are from the best at each rate, and where the best settings change.
func MakeRange(ctx context.Context, req Request, low, high float64) (*Plans, error) {
	if !(low > 0 && high > low) {
		return nil, fmt.Errorf("rates from %g to %g: expected a range above 0 that rises", low, high)
	}
	r := &ranging{rates: ratesOf(low, high)}
	for _, rate := range r.rates {
		p, err := newPlanning(req.at(rate))
		if err != nil {
			return nil, err
		}
		r.plannings = append(r.plannings, p)
	}
	if err := r.search(ctx); err != nil {
		return nil, err
	}
	return r.finish(ctx)
}

// ranging is one call of MakeRange under way. A setting is one number in all plannings.
type ranging struct {
	rates     []float64
	plannings []*planning
	searches  []Search
	// sets are the settings that are compared at all rates; sets[k][i] is the i-th at rate k. keep are the baselines.
	sets [][]*candidate
	keep []int
	axes []Axis
	// meets is judge's, by rate and setting.
	meets [][]bool
}

// top is the planning for the highest rate.
func (r *ranging) top() *planning { return r.plannings[len(r.plannings)-1] }

// search finds the best settings of every rate, and simulates all of them at all rates.
func (r *ranging) search(ctx context.Context) error {
	var union []*candidate // of any planning; the settings count
	known := func(c *candidate) int {
		return slices.IndexFunc(union, func(o *candidate) bool { return o.cfg == c.cfg && o.changes == c.changes })
	}
	for _, p := range r.plannings {
		g, err := p.gather(ctx)
		if err != nil {
			return err
		}
		r.axes, r.searches = g.search.Axes, append(r.searches, g.search)
		for _, c := range p.finalists(g.able, g.keep) {
			if known(c) < 0 {
				union = append(union, c)
			}
		}
		if len(r.keep) == 0 {
			for _, c := range g.keep {
				r.keep = append(r.keep, known(c))
			}
		}
	}
	for _, p := range r.plannings {
		var own []*candidate
		for i, c := range union {
			own = append(own, &candidate{args: c.args, cfg: c.cfg, changes: c.changes, order: i})
		}
		if err := p.replicate(ctx, own); err != nil {
			return err
		}
		r.sets = append(r.sets, own)
	}
	return nil
}

// able are the indices of the settings that have every pinned value.
func (r *ranging) able() []int {
	var out []int
	for i, c := range r.sets[0] {
		if r.top().obeys(c) {
			out = append(out, i)
		}
	}
	return out
}

// judge notes which settings do at each rate what the strategy takes for granted: they meet the SLOs, in as many draws
// as any (95 % of them are enough), and for the memory strategy have enough throughput.
func (r *ranging) judge(s Strategy) {
	r.meets = make([][]bool, len(r.rates))
	for k, set := range r.sets {
		var able []*candidate
		most := 0.0
		for _, i := range r.able() {
			if set[i].feasible() {
				able = append(able, set[i])
				most = max(most, min(surely, metShare(set[i])))
			}
		}
		enough := math.Inf(-1)
		if s == Memory {
			enough = r.plannings[k].enough(able)
		}
		r.meets[k] = make([]bool, len(set))
		for _, c := range able {
			r.meets[k][c.order] = metShare(c) >= most && goal(Throughput, c, 0) >= enough
		}
	}
}

// regret is by how much setting i falls behind the best at rate k in one draw (draw < 0: on average), as a share.
func (r *ranging) regret(s Strategy, k, i, draw int) float64 {
	value := func(j int) float64 {
		if draw < 0 {
			return meanGoal(s, r.sets[k][j])
		}
		return goal(s, r.sets[k][j], draw)
	}
	best := math.Inf(-1)
	for _, j := range r.able() {
		if r.meets[k][j] {
			best = max(best, value(j))
		}
	}
	if math.IsInf(best, -1) || best == 0 {
		return 0
	}
	return max(0, (best-value(i))/math.Abs(best))
}

// worst is the largest regret over the rates at which the SLOs can be met, and the rate. missed counts those at which i
// misses them.
func (r *ranging) worst(s Strategy, i, draw int) (missed int, regret float64, at int) {
	for k := range r.rates {
		switch {
		case !r.possible(k):
			continue
		case !r.meets[k][i]:
			missed++
		default:
			if x := r.regret(s, k, i, draw); x > regret {
				regret, at = x, k
			}
		}
	}
	return missed, regret, at
}

func (r *ranging) possible(k int) bool { return slices.Contains(r.meets[k], true) }

// choose is the setting with the smallest worst-case regret.
func (r *ranging) choose(s Strategy) int {
	able := r.able()
	type score struct {
		missed int
		regret float64
	}
	scores := map[int]score{}
	for _, i := range able {
		missed, regret, _ := r.worst(s, i, -1)
		scores[i] = score{missed, regret}
	}
	best := slices.MinFunc(able, func(a, b int) int {
		return cmp.Or(cmp.Compare(scores[a].missed, scores[b].missed), cmp.Compare(scores[a].regret, scores[b].regret))
	})
	near := slices.DeleteFunc(able, func(i int) bool {
		return scores[i].missed > scores[best].missed || scores[i].regret > scores[best].regret+r.top().resolution()
	})
	return slices.MinFunc(near, func(a, b int) int {
		return cmp.Or(cmp.Compare(r.sets[0][a].changes, r.sets[0][b].changes),
			cmp.Compare(scores[a].regret, scores[b].regret), cmp.Compare(a, b))
	})
}

// winner is the best setting of one rate, as [Make] would choose; -1 where nothing meets the SLOs.
func (r *ranging) winner(s Strategy, k int) int {
	var from []*candidate
	for _, i := range r.able() {
		if r.meets[k][i] {
			from = append(from, r.sets[k][i])
		}
	}
	if len(from) == 0 {
		return -1
	}
	return r.plannings[k].choose(steady(s), from, r.sets[k][r.keep[0]]).order
}

// power is the balanced strategy as one number: two settings have no knee.
const power Strategy = "power"

func steady(s Strategy) Strategy {
	if s == Balanced {
		return power
	}
	return s
}

// finish describes the choices.
func (r *ranging) finish(ctx context.Context) (*Plans, error) {
	p, last := r.top(), len(r.rates)-1
	out := p.newPlans()
	out.Search = r.searches[last]
	for _, s := range r.searches[:last] {
		out.Search.Exhaustive = out.Search.Exhaustive && s.Exhaustive
	}
	out.Search.Statement = fmt.Sprintf("at each of %d rates: %s", len(r.rates), out.Search.Statement)
	out.Range = &RateRange{Rates: r.rates}
	base := r.sets[last][r.keep[0]]
	var keep []*candidate
	for _, i := range r.keep {
		keep = append(keep, r.sets[last][i])
	}
	if err := p.baselines(ctx, out, base, keep); err != nil {
		return nil, err
	}
	met := slices.ContainsFunc(r.able(), func(i int) bool { return r.sets[0][i].feasible() })
	if !met {
		var able []*candidate
		for _, i := range r.able() {
			able = append(able, r.sets[0][i])
		}
		low := r.plannings[0]
		if err := low.infeasible(ctx, out, r.sets[0][r.keep[0]], able); err != nil {
			return nil, err
		}
		out.Infeasible.Why = fmt.Sprintf("at %.4g request/s, the lowest rate: %s", r.rates[0], out.Infeasible.Why)
	}
	var chosen []*candidate
	for _, s := range p.req.Strategies {
		if !met {
			break
		}
		r.judge(s)
		i := r.choose(s)
		c := r.sets[last][i]
		plan, err := p.plan(ctx, s, c, base)
		if err != nil {
			return nil, err
		}
		choice := r.choice(s, i)
		if err := r.switches(ctx, s, &choice); err != nil {
			return nil, err
		}
		plan.Why = fmt.Sprintf("smallest worst-case regret in %s from %.4g to %.4g request/s: at most %.3g %% behind "+
			"the best settings of any rate", aimOf(s).words, r.rates[0], r.rates[last], 100*choice.WorstRegret)
		plan.DefaultRegret = p.regret(s, c, keep)
		out.Plans, chosen = append(out.Plans, *plan), append(chosen, c)
		out.Range.Choices = append(out.Range.Choices, choice)
	}
	if err := p.sensitivities(ctx, r.axes, out.Plans, chosen); err != nil {
		return nil, err
	}
	for _, q := range r.plannings {
		out.Search.Simulated += q.simulated.Load()
		for _, n := range q.notes {
			p.note(n)
		}
	}
	out.Notes = p.notes
	out.Verdict = out.verdict()
	return out, nil
}

// choice describes setting i over the range.
func (r *ranging) choice(s Strategy, i int) RateChoice {
	missed, regret, at := r.worst(s, i, -1)
	out := RateChoice{Strategy: s, WorstRegret: regret, At: r.rates[at]}
	var draws []float64
	for d := range r.sets[0][i].runs {
		_, x, _ := r.worst(s, i, d)
		draws = append(draws, x)
	}
	iv := stats.New(draws).MeanInterval(0.95)
	out.Low, out.High = max(0, min(iv.Low, regret)), max(iv.High, regret)
	if m, x, _ := r.worst(s, r.keep[0], -1); m <= missed {
		out.BaselineRegret = &x
	}
	for k, rate := range r.rates {
		if r.meets[k][i] && !r.meets[k][r.keep[0]] {
			out.BaselineMisses = append(out.BaselineMisses, rate)
		}
		point := RatePoint{Rate: rate, Met: r.meets[k][i], Possible: r.possible(k), Winner: []Change{}}
		if w := r.winner(s, k); w >= 0 {
			point.Winner = r.changes(w)
			if point.Met {
				x := r.regret(s, k, i, -1)
				point.Regret = &x
			}
		}
		out.Points = append(out.Points, point)
	}
	return out
}

func (r *ranging) changes(i int) []Change {
	p := r.top()
	return p.changesBetween(p.base, r.sets[0][i].args)
}

// switches finds between which rates the winner changes. Settings that were the best stay so until others are surely
// better: where many are equal, the draws alone would change the winner from rate to rate.
func (r *ranging) switches(ctx context.Context, s Strategy, choice *RateChoice) error {
	a := r.winner(s, 0)
	for k := 1; k < len(r.rates); k++ {
		b := r.winner(s, k)
		if a < 0 || b < 0 {
			a = b
			continue
		}
		set := r.sets[k]
		if a == b || r.meets[k][a] && r.plannings[k].stays(s, set[a], set[b]) {
			continue
		}
		low, high := r.rates[k-1], r.rates[k]
		for high/low > 1+switchAt {
			mid := math.Sqrt(low * high)
			first, err := r.stillWins(ctx, s, mid, a, b)
			if err != nil {
				return err
			}
			if first {
				low = mid
			} else {
				high = mid
			}
		}
		choice.Switches = append(choice.Switches, Switch{Above: low, Below: high, From: r.changes(a), To: r.changes(b)})
		a = b
	}
	return nil
}

// stays reports whether b is no reason to change a.
func (p *planning) stays(s Strategy, a, b *candidate) bool {
	return p.choose(steady(s), []*candidate{a, b}, a) == a
}

// stillWins compares two settings at a rate between those of the range.
func (r *ranging) stillWins(ctx context.Context, s Strategy, rate float64, a, b int) (bool, error) {
	p, err := newPlanning(r.top().req.at(rate))
	if err != nil {
		return false, err
	}
	var two []*candidate
	for _, i := range []int{a, b} {
		c := r.sets[0][i]
		two = append(two, &candidate{args: c.args, cfg: c.cfg, changes: c.changes, order: i})
	}
	if err := p.replicate(ctx, two); err != nil {
		return false, err
	}
	return p.stays(s, two[0], two[1]), nil
}
