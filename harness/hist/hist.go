// Package hist keeps latencies in HdrHistograms: nanoseconds from 1 ns to 1 h with 3 significant digits, and the
// standard interval log that any HdrHistogram tool reads.
//
// Histograms of several clients or shards add up exactly; percentiles do not. That is why they are kept beside the
// request lines.
package hist

import (
	"time"

	hdr "github.com/HdrHistogram/hdrhistogram-go"
)

// Highest is the longest duration that a Recorder holds.
const Highest = time.Hour

const digits = 3

// Recorder counts durations. What it cannot hold (below 0 or above [Highest]) is counted in Overflow, never dropped
// silently. It is not safe for concurrent use. Create it with [New].
type Recorder struct {
	h        *hdr.Histogram
	overflow int64
}

// New returns an empty Recorder.
func New() *Recorder {
	return &Recorder{h: hdr.New(1, int64(Highest), digits)}
}

// Record counts one duration.
func (r *Recorder) Record(d time.Duration) {
	if d < 0 || d > Highest || r.h.RecordValue(int64(d)) != nil {
		r.overflow++
	}
}

// Count is the number of durations held; Overflow is not in it.
func (r *Recorder) Count() int64 { return r.h.TotalCount() }

// Overflow is the number of durations that could not be held.
func (r *Recorder) Overflow() int64 { return r.overflow }

// Quantile is the duration below or at which a share q (0..1) of the held durations lies, exact to 3 digits and rounded
// up. It is 0 for an empty Recorder.
func (r *Recorder) Quantile(q float64) time.Duration {
	if r.Count() == 0 {
		return 0
	}
	return time.Duration(r.h.ValueAtPercentile(100 * min(max(q, 0), 1)))
}

// Ordered is the i-th smallest of the held durations, from 0, exact to 3 digits and rounded up.
func (r *Recorder) Ordered(i int64) time.Duration {
	return r.Quantile((float64(i) + 1) / float64(r.Count()))
}

// Mean is the mean of the held durations, exact to 3 digits; 0 for an empty Recorder.
func (r *Recorder) Mean() time.Duration { return time.Duration(r.h.Mean()) }

// Max is the longest held duration, exact to 3 digits and rounded up; 0 for an empty Recorder.
func (r *Recorder) Max() time.Duration { return time.Duration(r.h.Max()) }

// Merge adds what from holds, its overflow included.
func (r *Recorder) Merge(from *Recorder) {
	r.overflow += from.overflow + r.h.Merge(from.h)
}
