package vllm

import (
	"context"
	"slices"
	"sync"
	"time"

	"kvtune/harness"
)

// scrapeTimeout is how long one reading may take before it counts as missed.
const scrapeTimeout = 10 * time.Second

// watched are the metrics kept as series: vLLM's names without labels.
var watched = [...]string{
	harness.SeriesRunning,
	harness.SeriesWaiting,
	harness.SeriesKVUsage,
	harness.CounterPreemptions,
	harness.CounterPrefixQueries,
	harness.CounterPrefixHits,
	harness.CounterPromptTokens,
	harness.CounterGenerationTokens,
}

// Watched is what a [Watcher] saw.
type Watched struct {
	// Series are the watched gauges and counters over time (counters as they stand), and how fast tokens and preemptions
	// moved since the reading before, in order.
	// T counts from the start given to Watch and is when the answer arrived.
	Series []harness.Sample
	// Before and After are the first and the last reading that succeeded, nil when none did, and Delta is what happened to
	// the counters in between: After.Delta(Before).
	Before, After, Delta Counters
	// Histograms are what was added to the server's histograms of times between those readings.
	Histograms map[string]harness.Histogram
	// Missed counts readings that failed or took too long, and Err is the last one's reason; with Err not nil at the
	// end, After is older than the end of the run.
	Missed int
	Err    error
	// Restarts counts readings that another process answered than the one before; Back are the counters that fell while
	// it was the same one, sorted.
	Restarts int
	Back     []string
}

// Watcher reads a server's metrics on a fixed beat.
type Watcher struct {
	s     *Server
	start time.Time
	stop  context.CancelFunc
	done  chan struct{}
	seen  Watched

	mu            sync.Mutex // guards what Latest shows
	last, preLast reading
	before        map[string]harness.Histogram
}

// Now is what a server is doing, as of the last reading.
type Now struct {
	// Running and Waiting count requests; KVUsage is the share of KV blocks in use, 0..1.
	Running, Waiting, KVUsage float64
	// OutputRate and PromptRate are tokens per second between the last two readings.
	OutputRate, PromptRate float64
}

// Latest is the present state; false before there are two readings.
func (w *Watcher) Latest() (now Now, ok bool) {
	w.mu.Lock()
	last, before := w.last, w.preLast
	w.mu.Unlock()
	if before.counters == nil {
		return now, false
	}
	now = Now{Running: last.counters[harness.SeriesRunning], Waiting: last.counters[harness.SeriesWaiting],
		KVUsage: last.counters[harness.SeriesKVUsage]}
	for _, r := range rates(before, last) {
		switch r.Metric {
		case harness.SeriesOutputRate:
			now.OutputRate = r.Value
		case harness.SeriesPromptRate:
			now.PromptRate = r.Value
		}
	}
	return now, true
}

// Watch reads the metrics once before it returns, then every so often until Stop or the end of ctx. A reading that
// comes late skips beats; the beat itself does not drift. It panics on a beat that is not above 0.
//
// A reading is not free: vLLM writes the page on the event loop that also delivers tokens, about 7 ms on one core for
// 0.32 (tokens due meanwhile come later by as much). On a real server a beat of a second touches less than 1 % of them.
func (s *Server) Watch(ctx context.Context, every time.Duration, start time.Time) *Watcher {
	ticker := time.NewTicker(every)
	ctx, cancel := context.WithCancel(ctx)
	w := &Watcher{s: s, start: start, stop: cancel, done: make(chan struct{})}
	w.read(ctx)
	go func() {
		defer close(w.done)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				w.read(ctx)
			}
		}
	}()
	return w
}

// Stop ends the watch with a last reading, also when the watch's context is over, and returns what was seen. It is to
// be called once.
func (w *Watcher) Stop() Watched {
	w.stop()
	<-w.done
	w.read(context.Background())
	w.seen.Delta = w.seen.After.Delta(w.seen.Before)
	w.seen.Histograms = map[string]harness.Histogram{}
	for name, h := range w.last.histograms {
		if !w.seen.After.restarted(w.seen.Before) {
			h = h.Since(w.before[name])
		}
		w.seen.Histograms[name] = h
	}
	return w.seen
}

// rates are how fast counters moved between two readings, without a time; none where no time passed.
func rates(before, now reading) []harness.Sample {
	s := now.at.Sub(before.at).Seconds()
	if s <= 0 || before.counters == nil {
		return nil
	}
	moved := now.counters.Delta(before.counters)
	var samples []harness.Sample
	for _, r := range [...]struct{ rate, counter string }{
		{harness.SeriesPromptRate, harness.CounterPromptTokens},
		{harness.SeriesOutputRate, harness.CounterGenerationTokens},
		{harness.SeriesPreemptionRate, harness.CounterPreemptions},
	} {
		if d, ok := moved[r.counter]; ok {
			samples = append(samples, harness.Sample{Metric: r.rate, Value: d / s})
		}
	}
	return samples
}

// read takes one reading. One that is cut off by the end of the watch is not a missed one.
func (w *Watcher) read(ctx context.Context) {
	rctx, cancel := context.WithTimeout(ctx, scrapeTimeout)
	defer cancel()
	r, err := w.s.read(rctx)
	if ctx.Err() != nil {
		return
	}
	w.seen.Err = err
	if err != nil {
		w.seen.Missed++
		return
	}
	c := r.counters
	if w.seen.Before == nil {
		w.seen.Before, w.before = c, r.histograms
	}
	w.seen.After = c
	if c.restarted(w.last.counters) {
		w.seen.Restarts++
	} else {
		w.seen.Back = slices.Compact(slices.Sorted(slices.Values(append(w.seen.Back, c.fell(w.last.counters)...))))
	}
	w.mu.Lock()
	w.preLast, w.last = w.last, r
	w.mu.Unlock()
	t := r.at.Sub(w.start)
	for _, name := range watched {
		if v, ok := c[name]; ok {
			w.seen.Series = append(w.seen.Series, harness.Sample{T: t, Metric: name, Value: v})
		}
	}
	for _, sample := range rates(w.preLast, r) {
		sample.T = t
		w.seen.Series = append(w.seen.Series, sample)
	}
}
