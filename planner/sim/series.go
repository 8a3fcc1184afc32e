package sim

import (
	"time"

	"kvtune/harness"
)

// seriesLimit is the largest number of readings kept; when it is reached, about half of them go.
const seriesLimit = 4096

// reading is what vLLM's gauges say after a step.
type reading struct {
	at               time.Duration
	usage            float64
	running, waiting int
}

// series are the gauges over time: a reading at every change, no two closer than spacing. All gauges are noted
// together, as one reading of /metrics gives them.
type series struct {
	readings []reading
	spacing  time.Duration
}

// add notes the scheduler's state; the last one is kept however close it is.
func (s *series) add(at time.Duration, from *Scheduler, last bool) {
	now := reading{at, from.Usage(), from.Running(), from.Waiting()}
	if n := len(s.readings); n > 0 {
		prev := s.readings[n-1]
		prev.at = at
		if prev == now || at-s.readings[n-1].at < s.spacing && !last {
			return
		}
	}
	s.readings = append(s.readings, now)
	if len(s.readings) < seriesLimit || last {
		return
	}
	s.spacing = 2 * at / seriesLimit
	kept := s.readings[:1]
	for _, m := range s.readings[1:] {
		if m.at-kept[len(kept)-1].at >= s.spacing {
			kept = append(kept, m)
		}
	}
	s.readings = kept
}

// samples are all gauges in order of time.
func (s *series) samples() []harness.Sample {
	all := make([]harness.Sample, 0, 3*len(s.readings))
	for _, m := range s.readings {
		all = append(all,
			harness.Sample{T: m.at, Metric: harness.SeriesKVUsage, Value: m.usage},
			harness.Sample{T: m.at, Metric: harness.SeriesRunning, Value: float64(m.running)},
			harness.Sample{T: m.at, Metric: harness.SeriesWaiting, Value: float64(m.waiting)})
	}
	return all
}
