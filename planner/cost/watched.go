package cost

import (
	"fmt"
	"time"
)

// Watched is a model that notes how much of what it is asked for lies beyond what it was fitted on.
type Watched struct {
	*Model
	all, beyond time.Duration
	largest     int // tokens
}

// StepTime is the model's.
func (w *Watched) StepTime(s Step) time.Duration {
	d := w.Model.StepTime(s)
	w.all += d
	w.largest = max(w.largest, s.Tokens())
	if !w.InRange(s) {
		w.beyond += d
	}
	return d
}

// extrapolates is the share of the time beyond the fitted range from which on a prediction says so.
const extrapolates = 0.1

// Extrapolated says how far the steps went beyond the fit; "" where they stayed within it. A prior has no such range,
// and says so itself.
func (w *Watched) Extrapolated() string {
	share := w.beyond.Seconds() / max(w.all.Seconds(), 1e-9)
	if w.Kind != KindFitted || share < extrapolates {
		return ""
	}
	return fmt.Sprintf("%.0f %% of the predicted time is in steps beyond what the cost model was fitted on (steps of up "+
		"to %d tokens here, %d there): the error may be larger than the interval", 100*share, w.largest, w.Range.Tokens)
}
