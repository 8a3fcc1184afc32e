package cost

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"kvtune/harness/stats"
)

// Observation is a measured time and the steps that ran in it, one after the other. Several steps stand where only
// their sum was seen (asynchronous scheduling moves the border between neighbours).
type Observation struct {
	Steps []Step
	Time  time.Duration
	// Logged says that Time is one step's elapsed time in vLLM's iteration log, which covers the host's wait for the
	// result only: what it took to launch a step that no full CUDA graph covers is not in it.
	Logged bool
	// Prompt, where above 0, says that Time starts when a lone request of so many prompt tokens was sent to an idle
	// server, so that it holds the front end's part besides the steps.
	Prompt int
	// MaxGraph is [MaxGraph] of the server's settings; -1 for a server without graphs, 0 takes the prior's.
	MaxGraph int
	// Source names the run, for FittedOn and for messages.
	Source string
}

// FitOptions tune Fit; the zero value is right.
type FitOptions struct {
	Seed uint64
	// Draws is the number of bootstrap repetitions behind the intervals; 0 is 64.
	Draws int
	// Folds is the number of parts of the cross-validation; 0 is 8.
	Folds int
}

const (
	// sigma is the relative scatter of a step time about the formula: best published fits of this form leave 1.6 to
	// 3.5 %. repeatSigma is that of repetitions of one step.
	sigma       = 0.03
	repeatSigma = 0.05
	// priorSigma is how far off, relative to its prior, a coefficient is expected to be: a prior coefficient weighs as
	// much as one observation that it is (sigma/priorSigma) of.
	priorSigma = 0.4
	// farScale is how much of a token's time beyond the knee one far beyond it may take more, in the same sense.
	farScale = 0.1
	// outlier is the residual, in scatters, beyond which an observation's pull stops growing (Huber).
	outlier = 2.0
)

// Fit corrects a prior by observations: non-negative least squares on relative errors, with the prior as further rows
// so that what was not observed stays physical, large residuals damped, and the knee chosen among multiples of the
// prior's. Observations below the roofline are impossible and are dropped. Errors are cross-validated by composition,
// intervals are from a bootstrap over compositions; the same observations and seed give the same model.
func Fit(prior *Model, observations []Observation, opt FitOptions) (*Model, error) {
	if opt.Draws == 0 {
		opt.Draws = 64
	}
	if opt.Folds == 0 {
		opt.Folds = 8
	}
	kept, dropped := plausible(prior, observations)
	if len(kept) == 0 {
		return nil, fmt.Errorf("no usable observation among %d: %d had no steps or no time, or were faster than the "+
			"datasheet allows; is this the right GPU and model (%s on %s)?",
			len(observations), dropped, prior.Model, prior.GPU)
	}
	f := &fitter{prior: prior, cells: cells(kept)}
	f.prior = f.scaled(prior)
	all := make([]float64, len(f.cells))
	for i := range all {
		all[i] = 1
	}
	best, err := f.bestShape(all)
	if err != nil {
		return nil, err
	}
	m, err := f.model(best)
	if err != nil {
		return nil, err
	}
	m.Kind, m.Draws, m.FrontDraws = KindFitted, nil, nil
	m.Errors = &Errors{Observations: len(kept), Dropped: dropped}
	if dropped > 0 {
		m.Errors.Why = "no steps, no time, below the roofline, or all of it launch"
	}
	m.FittedOn, m.Range = nil, Range{}
	for _, o := range kept {
		if o.Source != "" && !slices.Contains(m.FittedOn, o.Source) {
			m.FittedOn = append(m.FittedOn, o.Source)
		}
		for _, s := range o.Steps {
			m.Range.add(s)
		}
	}
	slices.Sort(m.FittedOn)
	if err := f.crossValidate(m.Errors, opt); err != nil {
		return nil, err
	}
	m.Errors.InSample = stats.New(f.errors(best, nil)).Mean()
	known := solution{values: f.center(), shape: shape{prior.Knee, prior.Tile}}
	copy(known.values, prior.values())
	m.Errors.Prior = stats.New(f.errors(known, nil)).Mean()
	return m, f.bootstrap(m, best, opt)
}

// scaled is the prior moved by one factor to the observations' level when it is far from it: the form of the roofline
// then holds for a device whose datasheet is not the prior's.
func (f *fitter) scaled(prior *Model) *Model {
	const far = 1.5
	ratios := make([]float64, len(f.cells))
	for i, c := range f.cells {
		ratios[i] = c.median / dot(f.row(c, prior, f.center()), f.center())
	}
	ratio := stats.New(ratios).Median()
	if ratio < far && ratio > 1/far {
		return prior
	}
	m := *prior
	m.Coefficients = slices.Clone(prior.Coefficients)
	for i := range m.Coefficients {
		m.Coefficients[i].Value *= ratio
	}
	m.compile()
	return &m
}

func (m *Model) values() []float64 {
	v := make([]float64, len(m.Coefficients))
	for i, c := range m.Coefficients {
		v[i] = c.Value
	}
	return v
}

// plausible drops what cannot be (no work, no time, or less time than the roofline) and what tells nothing: a logged
// step in which the device was done when the launch was.
func plausible(prior *Model, observations []Observation) (kept []Observation, dropped int) {
	for _, o := range observations {
		var floor, hidden time.Duration
		prior := prior.withGraphs(o.MaxGraph)
		for _, s := range o.Steps {
			compute, memory := prior.Roofline(s)
			if !prior.Limits.Guess {
				floor += max(compute, memory)
			}
			if _, launch := prior.HostTime(s); o.Logged {
				hidden += launch
			}
		}
		if len(o.Steps) == 0 || o.Time <= 0 || o.Time+hidden < floor || o.Time < hidden/2 {
			dropped++
			continue
		}
		kept = append(kept, o)
	}
	return kept, dropped
}

// cell is the observations of one composition of steps. A long run of equal steps is one cell, so that it does not
// outweigh the rest.
type cell struct {
	steps []Step
	// times are the observed times in seconds; the median is fitted.
	times  []float64
	median float64
	logged bool
	prompt int
	graph  int // its observations' MaxGraph
	weight float64
}

// cells groups observations by composition: equal counts, contexts and attention within about 5 %.
func cells(observations []Observation) []cell {
	bucket := func(v float64) int { return int(math.Round(20 * math.Log1p(v))) }
	byKey := map[string]*cell{}
	var keys []string
	for _, o := range observations {
		key := fmt.Sprint(o.Logged, o.Prompt, o.MaxGraph, ";")
		for _, s := range o.Steps {
			key += fmt.Sprint(s.PrefillSeqs, s.PrefillTokens, bucket(float64(s.MaxChunk)), int(10*s.Heat),
				bucket(s.PrefillAttention), s.DecodeSeqs, bucket(float64(s.DecodeContext)), bucket(float64(s.SharedContext)), ";")
		}
		c := byKey[key]
		if c == nil {
			c = &cell{logged: o.Logged, prompt: o.Prompt, graph: o.MaxGraph, steps: slices.Clone(o.Steps)}
			byKey[key] = c
			keys = append(keys, key)
		}
		c.times = append(c.times, o.Time.Seconds())
	}
	slices.Sort(keys)
	out := make([]cell, len(keys))
	for i, key := range keys {
		c := byKey[key]
		c.median = stats.New(c.times).Median()
		// The errors of a sum's steps even out in part.
		sums := math.Sqrt(float64(len(c.steps)))
		c.weight = math.Sqrt(sums) * sigma / math.Sqrt(sigma*sigma+repeatSigma*repeatSigma/float64(len(c.times)))
		out[i] = *c
	}
	return out
}

// fitter fits a set of cells.
type fitter struct {
	prior *Model
	cells []cell
}

// Columns behind the model's coefficients, for what is not part of a step: the front end's latency of a lone request,
// in s and in s per prompt token.
const (
	oRequest = iota
	oPromptToken
	extraColumns
)

// shape is what the form of the step time depends on beside its coefficients.
type shape struct{ knee, tile int }

// solution is a fitted set of values: the coefficients, then the extra columns.
type solution struct {
	values []float64
	shape
	loss float64
}

// center is the prior's values of all columns.
func (f *fitter) center() []float64 {
	fe := f.prior.FrontEnd
	return append(f.prior.values(), (fe.Request + fe.Token).Seconds(), fe.PromptToken.Seconds())
}

// knees are the candidates: the knee is where matrix products turn compute-bound; on a device without
// tensor cores that is after a few tokens.
func (f *fitter) knees() []int {
	var out []int
	for _, factor := range []float64{0.03, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1, 1.2, 1.4, 1.7, 2, 2.5, 3} {
		out = append(out, max(1, int(factor*float64(f.prior.Knee))))
	}
	return out
}

// tiles are the candidates beside none: row tiles of matrix kernels, and of two of them side by side.
func (f *fitter) tiles() []int { return []int{64, 128, 256} }

// bestShape is the solution with the least loss over the candidates; uses[i] is how often cell i counts. The tile is
// looked for about the best knee without one.
func (f *fitter) bestShape(uses []float64) (solution, error) {
	best := solution{loss: math.Inf(1)}
	try := func(shape shape) error {
		s, err := f.solve(uses, shape)
		if err != nil {
			return err
		}
		// The knee has a prior too: a factor of two away costs as much as one coefficient that is off by priorSigma. So does
		// a tile.
		off := math.Log2(float64(shape.knee) / float64(f.prior.Knee))
		s.loss += off * off
		if shape.tile > 1 {
			s.loss++
		}
		if s.loss < best.loss {
			best = s
		}
		return nil
	}
	knees := f.knees()
	for _, knee := range knees {
		if err := try(shape{knee, 1}); err != nil {
			return best, err
		}
	}
	at := slices.Index(knees, best.knee)
	for _, tile := range f.tiles() {
		for _, knee := range knees[max(0, at-1):min(len(knees), at+4)] {
			if err := try(shape{knee, tile}); err != nil {
				return best, err
			}
		}
	}
	return best, nil
}

// solve is one damped non-negative least-squares fit at a fixed shape, by steps each of which lessens the loss.
func (f *fitter) solve(uses []float64, shape shape) (solution, error) {
	m := *f.prior
	m.Knee, m.Tile = shape.knee, shape.tile
	center := f.center()
	scale := slices.Clone(center)
	for i, k := range m.Knots {
		if k > 0 {
			scale[nSeqs+i] = scale[nSeqs]
		}
	}
	o := nSeqs + len(m.Knots)
	scale[o+oFar] = farScale * scale[o+oAbove]
	for i := range scale {
		if scale[i] <= 0 {
			scale[i] = 1e-12
		}
	}
	x := make([]float64, len(center))
	values := slices.Clone(center)
	for i := range x {
		x[i] = center[i] / scale[i]
	}
	// at evaluates the fit where x is: each cell's row there (whether the device or the host's launches set the pace in a
	// cell depends on the values), how much its residual counts, and the loss.
	rows, damp := make([][]float64, len(f.cells)), make([]float64, len(f.cells))
	residuals := make([]float64, len(f.cells))
	at := func() (loss float64) {
		for j := range x {
			values[j] = x[j] * scale[j]
		}
		var absolute []float64
		for i, c := range f.cells {
			if uses[i] == 0 {
				continue
			}
			rows[i] = f.row(c, &m, values)
			for j := range rows[i] {
				rows[i][j] *= scale[j] / c.median
			}
			residuals[i] = (dot(rows[i], x) - 1) * c.weight / sigma
			absolute = append(absolute, math.Abs(residuals[i]))
		}
		limit := outlier
		if len(absolute) > 0 {
			limit *= max(1, 1.48*stats.New(absolute).Median())
		}
		for i, r := range residuals {
			a := math.Abs(r)
			damp[i] = 1
			if a > limit {
				damp[i] = limit / a
				loss += uses[i] * (2*limit*a - limit*limit)
			} else {
				loss += uses[i] * a * a
			}
		}
		for j := range x {
			d := x[j] - center[j]/scale[j]
			loss += d * d * f.priorWeight(j)
		}
		return loss
	}
	loss := at()
	best := slices.Clone(x)
	const rounds, close = 10, 1e-4
	for range rounds {
		g := newGram(len(center))
		for i, c := range f.cells {
			if w := uses[i] * damp[i]; w > 0 {
				g.add(rows[i], 1, w*c.weight*c.weight/(sigma*sigma))
			}
		}
		for j := range center {
			g.diagonal(j, center[j]/scale[j], f.priorWeight(j))
		}
		to, err := g.solve()
		if err != nil {
			return solution{}, err
		}
		// The rows hold near x only: as much of the way as lessens the loss.
		before := loss
		for share := 1.0; ; share /= 2 {
			for j := range x {
				x[j] = best[j] + share*(to[j]-best[j])
			}
			if loss = at(); loss < before || share < 0.2 {
				break
			}
		}
		if !(loss < before) {
			copy(x, best)
			loss = at()
			break
		}
		copy(best, x)
		if before-loss < close*before {
			break
		}
	}
	return solution{values: values, shape: shape, loss: loss}, nil
}

// priorWeight is the weight of a column's prior row. Times from a send show prepare in a sum with the front end's
// latency only: it stays near the prior. An eager launch shows where it outlasts the device, in few steps if any, and
// errors of the form show in it there: it stays somewhat nearer than what every step shows.
func (f *fitter) priorWeight(j int) float64 {
	near := priorSigma
	switch j - nSeqs - len(f.prior.Knots) {
	case oPrepare:
		near /= 8
	case oEager:
		near /= 2
	}
	return 1 / (near * near)
}

// row is the factors of all columns in a cell's time, in s: the longest chain of the device's steps and the host's
// launches at the given values. The device does a step behind the one before and not before the launch begins; it ends
// not before the launch does. The host begins a launch when it has done the one before, and when the step two before
// has ended. In a cell that starts with a token, the first step had been launched before.
func (f *fitter) row(c cell, m *Model, values []float64) []float64 {
	m = m.withGraphs(c.graph)
	n := len(m.Coefficients)
	prepare := nSeqs + len(m.Knots) + oPrepare
	row := make([]float64, n+extraColumns)
	if c.logged {
		m.terms(row[:n], c.steps[0])
		if l := m.launch(c.steps[0]); l >= 0 {
			row[l]--
		}
		return row
	}
	if c.prompt > 0 {
		row[n+oRequest]++
		row[prepare]++
		row[n+oPromptToken] += float64(c.prompt)
	}
	p := pipeline{steps: make([]stage, len(c.steps)), launched: c.prompt == 0, prepare: prepare}
	for i, s := range c.steps {
		p.steps[i].terms = make([]float64, n)
		m.terms(p.steps[i].terms, s)
		p.steps[i].device, p.steps[i].launch = dot(p.steps[i].terms, values), m.launch(s)
		if l := p.steps[i].launch; l >= 0 {
			p.steps[i].host = values[l]
		}
		if i > 0 || c.prompt == 0 {
			p.steps[i].prepare = values[prepare] // that of the first step is in the row
		}
	}
	p.longest(row)
	return row
}

// stage is one step in a pipeline: what the device and the host are busy with it, in s, and what made it begin and end.
type stage struct {
	terms  []float64
	launch int // the coefficient that is the host's time, or -1
	// prepare is the host's before the device can begin, host while it works.
	prepare, device, host float64

	begin, hostEnd, end        float64
	afterTwoBack               bool // begin is the end of the step two before, not of the host's last launch
	afterPrevious, afterLaunch bool // end follows the step before, or the end of the launch; else begin
}

// pipeline is a sequence of steps under asynchronous scheduling.
type pipeline struct {
	steps   []stage
	prepare int // the coefficient
	// launched is set when the first step had been launched before.
	launched bool
}

// longest adds the factors of the longest chain to row.
func (p *pipeline) longest(row []float64) {
	for i := range p.steps {
		s := &p.steps[i]
		var before, twoBack, host float64
		if i > 0 {
			before, host = p.steps[i-1].end, p.steps[i-1].hostEnd
		}
		if i > 1 {
			twoBack = p.steps[i-2].end
		}
		if i == 0 && p.launched {
			s.end, s.afterPrevious = s.device, true
			continue
		}
		s.begin, s.afterTwoBack = max(host, twoBack), twoBack > host
		ready := s.begin + s.prepare
		s.hostEnd = ready + s.host
		s.end, s.afterPrevious = max(before, ready)+s.device, before >= ready
		if s.hostEnd > s.end {
			s.end, s.afterLaunch = s.hostEnd, true
		}
	}
	i, atHost := len(p.steps)-1, false // on the chain: the end of step i, or of its launch
	for i >= 0 {
		s := &p.steps[i]
		switch {
		case atHost || s.afterLaunch:
			if s.launch >= 0 {
				row[s.launch]++
			}
		case s.afterPrevious:
			add(row, s.terms)
			i--
			continue
		default:
			add(row, s.terms)
		}
		if s.prepare > 0 {
			row[p.prepare]++
		}
		if s.afterTwoBack {
			i, atHost = i-2, false
		} else {
			i, atHost = i-1, true
		}
		if atHost && i == 0 && p.launched {
			break
		}
	}
}

func add(to, what []float64) {
	for i, v := range what {
		to[i] += v
	}
}

func (f *fitter) model(s solution) (*Model, error) {
	n := len(f.prior.Coefficients)
	m, err := f.prior.With(s.values[:n])
	if err != nil {
		return nil, err
	}
	m.Knee, m.Tile = s.knee, s.tile
	m.FrontEnd.Request = max(0, seconds(s.values[n+oRequest])-m.FrontEnd.Token)
	m.FrontEnd.PromptToken = seconds(s.values[n+oPromptToken])
	m.compile()
	return m.Arriving(m.FrontEnd.Request), nil
}

// Arriving is the model with another FrontEnd.Request: the host's prepare makes up for it, so that a lone request has
// its first token as before, as far as the smallest step leaves the host time to prepare the next.
func (m *Model) Arriving(request time.Duration) *Model {
	const share = 0.8 // of the smallest step
	c := *m
	c.Coefficients = slices.Clone(m.Coefficients)
	prepare := &c.Coefficients[nSeqs+len(m.Knots)+oPrepare]
	sum := m.FrontEnd.Request.Seconds() + prepare.Value
	value := min(max(0, sum-request.Seconds()), share*c.Coefficients[nBase].Value)
	low, high := prepare.Low-prepare.Value, prepare.High-prepare.Value
	prepare.Value, prepare.Low, prepare.High = value, max(0, value+low), value+high
	c.FrontEnd.Request = seconds(sum - value)
	c.FrontEnd.Handle = min(c.FrontEnd.Handle, c.FrontEnd.Request)
	c.compile()
	return &c
}

// errors are the relative errors of all observations in the cells that pick selects (nil: all).
func (f *fitter) errors(s solution, pick func(int) bool) []float64 {
	m := *f.prior
	m.Knee, m.Tile = s.knee, s.tile
	var out []float64
	for i, c := range f.cells {
		if pick != nil && !pick(i) {
			continue
		}
		predicted := dot(f.row(c, &m, s.values), s.values)
		for _, t := range c.times {
			out = append(out, math.Abs(predicted-t)/t)
		}
	}
	return out
}

// crossValidate predicts every cell by a fit that has not seen it.
func (f *fitter) crossValidate(e *Errors, opt FitOptions) error {
	folds := min(opt.Folds, len(f.cells)) // of one alone, the part that is left is the prior
	fold := make([]int, len(f.cells))
	for i, j := range rand.New(rand.NewPCG(opt.Seed, 1)).Perm(len(f.cells)) {
		fold[j] = i % folds
	}
	var errs []float64
	for k := range folds {
		uses := make([]float64, len(f.cells))
		for i := range uses {
			if fold[i] != k {
				uses[i] = 1
			}
		}
		s, err := f.bestShape(uses)
		if err != nil {
			return err
		}
		errs = append(errs, f.errors(s, func(i int) bool { return fold[i] == k })...)
	}
	s := stats.New(errs)
	e.Median, e.Mean, e.P95 = s.Median(), s.Mean(), s.Percentile(95)
	return nil
}

// bootstrap fills Draws and the intervals: cells are drawn with replacement, and the prior rows move by their own
// spread.
func (f *fitter) bootstrap(m *Model, best solution, opt FitOptions) error {
	rng := rand.New(rand.NewPCG(opt.Seed, 2))
	original := f.prior
	defer func() { f.prior = original }()
	for range opt.Draws {
		uses := make([]float64, len(f.cells))
		for range f.cells {
			uses[rng.IntN(len(f.cells))]++
		}
		values := original.values()
		for i := range values {
			values[i] *= math.Exp(priorSigma * rng.NormFloat64())
		}
		var err error
		if f.prior, err = original.With(values); err != nil {
			return err
		}
		s, err := f.solve(uses, best.shape)
		if err != nil {
			return err
		}
		n := len(m.Coefficients)
		m.Draws = append(m.Draws, s.values[:n])
		m.FrontDraws = append(m.FrontDraws, [2]float64{quotient(s.values[n+oRequest], best.values[n+oRequest]),
			quotient(s.values[n+oPromptToken], best.values[n+oPromptToken])})
	}
	for i := range m.Coefficients {
		var v []float64
		for _, d := range m.Draws {
			v = append(v, d[i])
		}
		c, s := &m.Coefficients[i], stats.New(v)
		c.Low, c.High = min(c.Value, s.Percentile(2.5)), max(c.Value, s.Percentile(97.5))
	}
	return nil
}

// quotient is 1 where there is nothing to divide by, and at most 1000.
func quotient(a, b float64) float64 {
	if b <= 0 {
		return 1
	}
	return min(a/b, 1e3)
}

func dot(a, b []float64) float64 {
	var sum float64
	for i := range a {
		sum += a[i] * b[i]
	}
	return sum
}
