package cost

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// Watched is a model that notes how much of what it is asked for lies beyond what it was fitted on.
type Watched struct {
	*Model
	all    time.Duration
	beyond map[string]*beyond // by excess.what
}

// beyond is the predicted time of the steps that go beyond the fit by one quantity, and the furthest of them.
type beyond struct {
	excess
	time time.Duration
}

// StepTime is the model's.
func (w *Watched) StepTime(s Step) time.Duration {
	d := w.Model.StepTime(s)
	w.all += d
	if !w.InRange(s) {
		e := w.Range.excess(s)
		b := w.beyond[e.what]
		if b == nil {
			if w.beyond == nil {
				w.beyond = map[string]*beyond{}
			}
			b = &beyond{excess: e}
			w.beyond[e.what] = b
		}
		b.time, b.here = b.time+d, max(b.here, e.here)
	}
	return d
}

// extrapolates is the share of the time beyond the fitted range from which on a prediction says so.
const extrapolates = 0.1

// Extrapolated says how far the steps went beyond the fit, and by what most of them; "" where they stayed within it. A
// prior has no such range, and says so itself.
func (w *Watched) Extrapolated() string {
	var sum time.Duration
	most := &beyond{}
	for _, name := range slices.Sorted(maps.Keys(w.beyond)) {
		b := w.beyond[name]
		if sum += b.time; b.time > most.time {
			most = b
		}
	}
	share := sum.Seconds() / max(w.all.Seconds(), 1e-9)
	if w.Kind != KindFitted || share < extrapolates {
		return ""
	}
	by := "which saw no " + most.what
	if most.there > 0 {
		by = fmt.Sprintf("most of it with up to %.1f times the %s", most.here/most.there, most.what)
	}
	return fmt.Sprintf("%.0f %% of the predicted time is in steps beyond what the cost model was fitted on, %s: the "+
		"error may be larger than the interval", 100*share, by)
}
