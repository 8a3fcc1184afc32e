package profile

import (
	"sync"
	"time"

	"kvtune/harness/hist"
	"kvtune/harness/load"
	"kvtune/harness/vllm"
	"kvtune/harness/workload"
)

// liveBeat is how often a run is reported on while nothing ends.
const liveBeat = 500 * time.Millisecond

// Progress is how far a run has come and how it goes.
type Progress struct {
	load.Progress
	// Rate is requests that ended per second, over the run so far.
	Rate float64
	// TTFT, ITL and Lag (sent - due) are of the requests that have ended, measured or not; zero before there are any.
	TTFT, ITL, Lag Spread
	// Server is what the server last said of itself; nil before its second reading.
	Server *vllm.Now
}

// Spread is the middle and the tail of a latency.
type Spread struct{ P50, P99 time.Duration }

// live follows a run for OnProgress.
type live struct {
	report func(Progress)
	watch  *vllm.Watcher

	mu             sync.Mutex
	started        time.Time
	now            load.Progress
	ttft, itl, lag *hist.Recorder
	stop, stopped  chan struct{}
}

func newLive(report func(Progress), watch *vllm.Watcher, total int) *live {
	l := &live{report: report, watch: watch, started: time.Now(), ttft: hist.New(), itl: hist.New(), lag: hist.New(),
		stop: make(chan struct{}), stopped: make(chan struct{})}
	l.now.Total = total
	go l.beat()
	return l
}

// beat reports while nothing ends, too.
func (l *live) beat() {
	defer close(l.stopped)
	ticker := time.NewTicker(liveBeat)
	defer ticker.Stop()
	for {
		select {
		case <-l.stop:
			return
		case <-ticker.C:
			l.mu.Lock()
			l.now.Elapsed = max(l.now.Elapsed, time.Since(l.started))
			l.tell()
			l.mu.Unlock()
		}
	}
}

func (l *live) close() {
	close(l.stop)
	<-l.stopped
}

// record takes the end of a request in.
func (l *live) record(r *workload.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.Due != nil {
		l.lag.Record(max(0, r.Sent-*r.Due))
	}
	for i, e := range r.Tokens {
		if i == 0 {
			l.ttft.Record(r.Sent - r.Start() + e.At)
		} else {
			l.itl.Record(e.At - r.Tokens[i-1].At)
		}
	}
}

// progress takes the generator's own account in.
func (l *live) progress(p load.Progress) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now = p
	l.tell()
}

func (l *live) tell() {
	spread := func(r *hist.Recorder) Spread {
		if r.Count() == 0 {
			return Spread{}
		}
		return Spread{P50: r.Quantile(0.5), P99: r.Quantile(0.99)}
	}
	p := Progress{Progress: l.now, TTFT: spread(l.ttft), ITL: spread(l.itl), Lag: spread(l.lag)}
	if s := l.now.Elapsed.Seconds(); s > 0 {
		p.Rate = float64(l.now.Ended) / s
	}
	if now, ok := l.watch.Latest(); ok {
		p.Server = &now
	}
	l.report(p)
}
