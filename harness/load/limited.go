package load

import (
	"fmt"
	"runtime"
	"strings"
	"time"

	"kvtune/harness"
	"kvtune/harness/stats"
)

// A run is the generator's measure and not the server's when the generator was later (p99) than MaxLag, which is what a
// token takes on a fast server, and than MaxLagShare of the median time to first token: hundreds of requests that are
// due at one moment cannot be sent at one moment, which is nothing beside the seconds that they wait for each other; or
// when it used more than MaxCPU of its processors: then streams wait to be read.
const (
	MaxLag      = 5 * time.Millisecond
	MaxLagShare = 0.01
	MaxCPU      = 0.9
)

// Limited says why a run is generator-limited, "" when it is not.
func (r *Run) Limited() string {
	var why []string
	if lag, most := r.Lag.Quantile(0.99), r.maxLag(); lag > most {
		why = append(why, fmt.Sprintf("requests were sent up to %.1f ms late (p99), above %v", lag.Seconds()*1e3, most))
	}
	if r.CPU != nil && *r.CPU > MaxCPU {
		why = append(why, fmt.Sprintf("it used up to %.0f%% of its %d processors, above %.0f%%", *r.CPU*100,
			runtime.GOMAXPROCS(0), MaxCPU*100))
	}
	return strings.Join(why, "; ")
}

// maxLag is how late the generator may be.
func (r *Run) maxLag() time.Duration {
	waits := harness.Samples(r.Records, harness.MetricTTFT)
	if len(waits) == 0 {
		return MaxLag
	}
	share := time.Duration(MaxLagShare * stats.New(waits).Median() * float64(time.Second))
	return max(MaxLag, share.Round(time.Millisecond))
}

// meter watches how busy this process is: its processor time, as a share of what its processors have, over the busiest
// five seconds, or over a run that is shorter.
type meter struct {
	stop   chan struct{}
	result chan *float64
}

const meterBeats = 5 // of a second

func startMeter() *meter {
	m := &meter{make(chan struct{}), make(chan *float64, 1)}
	go m.watch()
	return m
}

func (m *meter) watch() {
	type reading struct {
		at   time.Time
		used time.Duration
	}
	read := func() (reading, bool) {
		used, ok := cpuTime()
		return reading{time.Now(), used}, ok
	}
	first, ok := read()
	if !ok {
		m.result <- nil
		return
	}
	last := []reading{first}
	peak, full := 0.0, false
	share := func(r reading) float64 {
		wall := r.at.Sub(last[0].at) * time.Duration(runtime.GOMAXPROCS(0))
		if wall <= 0 {
			return 0
		}
		return float64(r.used-last[0].used) / float64(wall)
	}
	beat := time.NewTicker(time.Second)
	defer beat.Stop()
	for {
		select {
		case <-beat.C:
		case <-m.stop:
			if r, _ := read(); !full {
				peak = share(r)
			}
			m.result <- &peak
			return
		}
		r, _ := read()
		if last = append(last, r); len(last) > meterBeats {
			peak, full = max(peak, share(r)), true
			last = last[1:]
		}
	}
}

// end stops watching and returns the share, nil where the system does not say.
func (m *meter) end() *float64 {
	close(m.stop)
	return <-m.result
}
