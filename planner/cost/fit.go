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
	// LaunchHidden says that Time leaves out how long the host took to launch each step that computes prompt tokens, as
	// the elapsed time in vLLM's iteration log does: it covers the wait for the result only.
	LaunchHidden bool
	// FromSend says that Time starts when the first request was sent, so that it holds the model's RequestLatency and
	// TokenLatency besides the steps.
	FromSend bool
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
	f := &fitter{cells: cells(kept)}
	f.prior = f.scaled(prior)
	all := make([]float64, len(f.cells))
	for i := range all {
		all[i] = 1
	}
	best, err := f.bestKnee(all)
	if err != nil {
		return nil, err
	}
	m, err := f.model(best)
	if err != nil {
		return nil, err
	}
	m.Kind, m.Draws = KindFitted, nil
	m.Errors = &Errors{Observations: len(kept), Dropped: dropped}
	if dropped > 0 {
		m.Errors.Why = "no steps, no time, or below the roofline"
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
	m.Errors.Prior = stats.New(f.errors(solution{
		values: prior.values(), knee: prior.Knee, hidden: best.hidden,
		request: (prior.RequestLatency + prior.TokenLatency).Seconds(),
	}, nil)).Mean()
	return m, f.bootstrap(m, best, opt)
}

// scaled is the prior moved by one factor to the observations' level when it is far from it: the form of the roofline
// then holds for a device whose datasheet is not the prior's.
func (f *fitter) scaled(prior *Model) *Model {
	const far = 1.5
	ratios := make([]float64, len(f.cells))
	for i, c := range f.cells {
		predicted := float64(c.sends) * (prior.RequestLatency + prior.TokenLatency).Seconds()
		for _, s := range c.steps {
			predicted += prior.StepTime(s).Seconds()
		}
		ratios[i] = c.median / predicted
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

// plausible drops what cannot be: no work, no time, or less time than the roofline.
func plausible(prior *Model, observations []Observation) (kept []Observation, dropped int) {
	for _, o := range observations {
		var floor time.Duration
		for _, s := range o.Steps {
			compute, memory := prior.Roofline(s)
			if !prior.Limits.Guess {
				floor += max(compute, memory)
			}
		}
		if len(o.Steps) == 0 || o.Time <= 0 || o.Time < floor {
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
	hidden int // steps with a hidden launch
	sends  int // 1 when the time starts at a send
	weight float64
}

// cells groups observations by composition: equal counts, contexts and attention within about 5 %.
func cells(observations []Observation) []cell {
	bucket := func(v float64) int { return int(math.Round(20 * math.Log1p(v))) }
	byKey := map[string]*cell{}
	var keys []string
	for _, o := range observations {
		var key string
		hidden := 0
		for _, s := range o.Steps {
			key += fmt.Sprint(s.PrefillSeqs, s.PrefillTokens, bucket(s.PrefillAttention), s.DecodeSeqs,
				bucket(float64(s.DecodeContext)), ";")
			if o.LaunchHidden && s.PrefillTokens > 0 {
				hidden++
			}
		}
		sends := 0
		if o.FromSend {
			sends = 1
		}
		key += fmt.Sprint(hidden, sends)
		c := byKey[key]
		if c == nil {
			c = &cell{hidden: hidden, sends: sends, steps: slices.Clone(o.Steps)}
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
		c.weight = sigma / math.Sqrt(sigma*sigma+repeatSigma*repeatSigma/float64(len(c.times)))
		out[i] = *c
	}
	return out
}

// fitter fits a set of cells.
type fitter struct {
	prior *Model
	cells []cell
}

// solution is a fitted set of values. hidden is the launch time that hidden observations leave out, request what those
// that start at a send have besides their steps; in seconds.
type solution struct {
	values          []float64
	knee            int
	hidden, request float64
	loss            float64
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

// bestKnee is the solution with the least loss over the candidates; uses[i] is how often cell i counts.
func (f *fitter) bestKnee(uses []float64) (solution, error) {
	best := solution{loss: math.Inf(1)}
	for _, knee := range f.knees() {
		s, err := f.solve(uses, knee)
		if err != nil {
			return s, err
		}
		// The knee has a prior too: a factor of two away costs as much as one coefficient that is off by priorSigma.
		off := math.Log2(float64(knee) / float64(f.prior.Knee))
		if s.loss += off * off; s.loss < best.loss {
			best = s
		}
	}
	return best, nil
}

// solve is one damped non-negative least-squares fit at a fixed knee.
func (f *fitter) solve(uses []float64, knee int) (solution, error) {
	n := len(f.prior.Coefficients)
	hidden, request := n, n+1 // the columns of what is not part of a step
	center := append(f.prior.values(), 0, (f.prior.RequestLatency + f.prior.TokenLatency).Seconds())
	scale := slices.Clone(center)
	for i, k := range f.prior.Knots {
		if k > 0 {
			scale[nSeqs+i] = scale[nSeqs]
		}
	}
	prefillStep := nSeqs + len(f.prior.Knots) + oPrefillStep
	// A launch outside a graph takes about what makes such steps slower than decode at their smallest.
	center[hidden] = center[nBase] + center[prefillStep]
	scale[hidden] = center[hidden]
	scale[prefillStep], scale[prefillStep+1] = center[hidden], center[hidden]
	for i := range scale {
		if scale[i] <= 0 {
			scale[i] = 1e-12
		}
	}
	rows := make([][]float64, len(f.cells))
	damp := make([]float64, len(f.cells))
	for i, c := range f.cells {
		rows[i] = f.row(c, knee, scale)
		damp[i] = 1
	}
	var x []float64
	var loss float64
	for range 6 {
		g := newGram(len(center))
		for i, c := range f.cells {
			if w := uses[i] * damp[i]; w > 0 {
				w *= c.weight * c.weight / (sigma * sigma)
				g.add(rows[i], 1, w)
			}
		}
		for j := range center {
			g.diagonal(j, center[j]/scale[j], 1/(priorSigma*priorSigma))
		}
		var err error
		if x, err = g.solve(); err != nil {
			return solution{}, err
		}
		loss = 0
		var absolute []float64
		residuals := make([]float64, len(f.cells))
		for i, c := range f.cells {
			residuals[i] = (dot(rows[i], x) - 1) * c.weight / sigma
			if uses[i] > 0 {
				absolute = append(absolute, math.Abs(residuals[i]))
			}
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
			d := (x[j] - center[j]/scale[j]) / priorSigma
			loss += d * d
		}
	}
	s := solution{
		values: make([]float64, n), knee: knee, loss: loss,
		hidden: x[hidden] * scale[hidden], request: x[request] * scale[request],
	}
	for j := range s.values {
		s.values[j] = x[j] * scale[j]
	}
	return s, nil
}

// row is the cell's terms over its time, in units of scale, so that a perfect fit gives 1.
func (f *fitter) row(c cell, knee int, scale []float64) []float64 {
	n := len(f.prior.Coefficients)
	row := make([]float64, n+2)
	for _, s := range c.steps {
		terms(row[:n], s, f.prior.Knots, knee)
	}
	row[n], row[n+1] = -float64(c.hidden), float64(c.sends)
	for j := range row {
		row[j] *= scale[j] / c.median
	}
	return row
}

func (f *fitter) model(s solution) (*Model, error) {
	m, err := f.prior.With(s.values)
	if err != nil {
		return nil, err
	}
	m.Knee = s.knee
	m.RequestLatency = max(0, seconds(s.request)-m.TokenLatency)
	m.compile()
	return m, nil
}

// errors are the relative errors of all observations in the cells that pick selects (nil: all).
func (f *fitter) errors(s solution, pick func(int) bool) []float64 {
	x := append(slices.Clone(s.values), s.hidden, s.request)
	unit := make([]float64, len(x))
	for i := range unit {
		unit[i] = 1
	}
	var out []float64
	for i, c := range f.cells {
		if pick != nil && !pick(i) {
			continue
		}
		predicted := dot(f.row(c, s.knee, unit), x) * c.median
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
		s, err := f.bestKnee(uses)
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
		s, err := f.solve(uses, best.knee)
		if err != nil {
			return err
		}
		m.Draws = append(m.Draws, s.values)
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

func dot(a, b []float64) float64 {
	var sum float64
	for i := range a {
		sum += a[i] * b[i]
	}
	return sum
}
