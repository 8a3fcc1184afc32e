package sim

import (
	"context"
	"errors"
	"slices"
	"time"

	"kvtune/harness"
	"kvtune/harness/workload"
	"kvtune/planner/cost"
)

// Options say what an Outcome holds beside records and counters.
type Options struct {
	// Steps keeps a StepRecord per step, Series the gauges over time (thinned to some thousand samples each).
	Steps, Series bool
}

// Run serves a workload in virtual time: the client sends on the workload's schedule without delay; the front end, one
// thread, hands requests to the scheduler and tokens to the client. Steps run one after the other on the device; each
// takes what timer says, and not less than the host's launch, during which the host does nothing else. With asynchronous
// scheduling two batches are in flight: when one ends, its tokens are delivered, requests that have come are taken in,
// and the next batch is scheduled while the other runs (EngineCore.step_with_batch_queue). Synchronous scheduling is
// serial.
//
// The same arguments give the same Outcome. The error is Validate's, or ctx's.
func Run(ctx context.Context, cfg Config, timer cost.Timer, w *workload.Workload, opt Options) (*Outcome, error) {
	s, err := New(cfg)
	if err != nil {
		return nil, err
	}
	r := &run{
		cfg: cfg, timer: timer, work: w, scheduler: s, release: workload.NewSchedule(w), depth: 1,
		out:      &Outcome{Records: make([]workload.Record, len(w.Requests))},
		progress: make([]progress, len(w.Requests)),
		front:    frontEnd{FrontEnd: cfg.FrontEnd},
		prefixes: newPrefixes(cfg, w),
	}
	if cfg.AsyncScheduling {
		r.depth = 2
	}
	if opt.Steps {
		r.out.Steps = make([]harness.StepRecord, 0, len(w.Requests))
	}
	if opt.Series {
		r.series = &series{}
	}
	for i := range w.Requests {
		r.out.Records[i] = workload.NewRecord(&w.Requests[i])
	}
	if err := r.loop(ctx); err != nil {
		return nil, err
	}
	r.finish()
	return r.out, nil
}

// progress is what the metrics need to know of a request. Records point into it.
type progress struct {
	due                      time.Duration
	queued, scheduled, first time.Duration // in the engine's time
	cached                   int
}

// moment is something that will happen to a request.
type moment struct {
	index int
	at    time.Duration
}

// flight is a batch that runs or waits for the device.
type flight struct {
	batch *Batch
	end   time.Duration
	step  int // its record in Outcome.Steps
}

type run struct {
	cfg       Config
	timer     cost.Timer
	work      *workload.Workload
	scheduler *Scheduler
	release   *workload.Schedule
	prefixes  *prefixes
	out       *Outcome
	series    *series
	progress  []progress
	depth     int // batches in flight

	now      time.Duration // the engine's clock, which is the host's
	device   time.Duration // when the device is free
	front    frontEnd
	heat     cost.Heat
	flights  []flight
	working  int      // flights that compute something
	victims  int      // preempted since the last step with work
	arriving []moment // sent, not yet at the scheduler; in order of time
	ending   []moment // ended, not yet known to the client; in order of time

	tally    tally
	usage    float64 // since usedAt
	usedAt   time.Duration
	usedArea float64 // usage x seconds
	events   []workload.TokenEvent
}

func (r *run) loop(ctx context.Context) error {
	for n := 0; ; n++ {
		if n%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if err := r.takeIn(); err != nil {
			return err
		}
		if r.busy() {
			b, err := r.launch()
			if err != nil {
				return err
			}
			if len(r.flights) < r.depth && (len(b.Items) > 0 || r.busy()) {
				continue
			}
		} else if len(r.flights) == 0 {
			next, ok := r.next()
			if !ok {
				return nil
			}
			r.now = max(r.now, next)
			continue
		}
		r.land()
	}
}

func (r *run) busy() bool { return r.scheduler.Running()+r.scheduler.Waiting() > 0 }

// next is when something happens outside the engine.
func (r *run) next() (at time.Duration, ok bool) {
	_, at, ok = r.release.Next()
	for _, q := range [][]moment{r.arriving, r.ending} {
		if len(q) > 0 && (!ok || q[0].at < at) {
			at, ok = q[0].at, true
		}
	}
	return at, ok
}

// takeIn lets the client act up to now, and gives the scheduler the requests that have reached it.
func (r *run) takeIn() error {
	r.clients(r.now)
	for len(r.arriving) > 0 && r.arriving[0].at <= r.now {
		i := r.arriving[0].index
		r.arriving = r.arriving[1:]
		q := &r.work.Requests[i]
		r.progress[i].queued = r.now
		err := r.scheduler.Add(Request{
			ID: i, PromptTokens: r.out.Records[i].PromptTokens, MaxTokens: q.OutputTokens, Priority: q.Priority,
			Arrival: r.out.Records[i].Sent, Hashes: r.prefixes.hashes(q),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// clients lets the client act up to a moment.
func (r *run) clients(until time.Duration) {
	for {
		index, due, ok := r.release.Next()
		if len(r.ending) > 0 && r.ending[0].at <= until && (!ok || r.ending[0].at <= due) {
			r.release.Done(r.ending[0].index, r.ending[0].at)
			r.ending = r.ending[1:]
			continue
		}
		if !ok || due > until {
			return
		}
		r.send(index, due)
	}
}

// send is the client's act: a request that the API server refuses ends at once.
func (r *run) send(index int, due time.Duration) {
	rec := &r.out.Records[index]
	rec.Sent = due
	if r.release.Intended(index) {
		r.progress[index].due = due
		rec.Due = &r.progress[index].due
	}
	r.release.Pop()
	at := moment{index, r.front.receive(due, rec.PromptTokens)}
	q := &r.work.Requests[index]
	if _, err := r.cfg.Admit(rec.PromptTokens, q.OutputTokens); err != nil {
		rec.Error = err.Error()
		r.end(at)
		return
	}
	r.arriving = insert(r.arriving, at)
}

// end notes when the client will see that a request has ended.
func (r *run) end(m moment) {
	r.ending = insert(r.ending, m)
	r.out.End = max(r.out.End, m.at)
}

// insert keeps a queue of moments in order of time; equal times stay in order of insertion.
func insert(q []moment, m moment) []moment {
	q = append(q, m)
	for i := len(q) - 1; i > 0 && q[i-1].at > m.at; i-- {
		q[i-1], q[i] = q[i], q[i-1]
	}
	return q
}

// launch schedules a batch and puts it behind those in flight.
func (r *run) launch() (*Batch, error) {
	b := r.scheduler.Schedule()
	f := flight{batch: b, end: r.now}
	for _, a := range b.Admitted {
		if !a.Resumed {
			r.progress[a.ID].scheduled = r.now
			r.progress[a.ID].cached = a.CachedTokens
			r.out.Records[a.ID].CachedTokens = &r.progress[a.ID].cached
		}
	}
	r.victims += len(b.Preempted)
	if len(b.Items) > 0 {
		prepare, launch := r.timer.HostTime(b.Step)
		r.compute(prepare)
		start := max(r.now, r.device)
		r.compute(launch)
		f.end = max(start+max(0, r.heat.StepTime(r.timer, b.Step, start)), r.now)
		elapsed := f.end - start
		r.device = f.end
		r.out.Busy += elapsed
		r.working++
		if r.out.Steps != nil {
			f.step = len(r.out.Steps)
			r.out.Steps = append(r.out.Steps, harness.StepRecord{
				T: start, ContextRequests: b.Step.PrefillSeqs, ContextTokens: b.Step.PrefillTokens,
				GenerationRequests: b.Step.DecodeSeqs, GenerationTokens: b.Step.DecodeSeqs, Elapsed: elapsed,
				Running: r.scheduler.Running(), Waiting: r.scheduler.Waiting(), Preemptions: r.victims,
			})
			r.victims = 0
		}
	} else if r.working == 0 && len(b.Preempted) == 0 {
		return nil, errors.New("sim: nothing runs and no waiting request fits: the scheduler has stalled")
	}
	r.flights = append(r.flights, f)
	r.observe()
	return b, nil
}

// compute keeps the host busy for d, and for as long as it takes to read the requests that come meanwhile: the engine
// core's threads share an interpreter (64 requests at once on an idle H200 server: the first has its token after 63 ms,
// alone it would after 13 ms, and all others are in the second step).
func (r *run) compute(d time.Duration) {
	if d <= 0 {
		return
	}
	until := r.now + d + max(0, r.front.reading-r.now)
	for until > r.now {
		r.now = until
		before := r.front.handled
		r.clients(until)
		until += r.front.handled - before
	}
}

// land waits for the oldest batch and delivers its tokens.
func (r *run) land() {
	f := r.flights[0]
	r.flights = slices.Delete(r.flights, 0, 1)
	r.now = max(r.now, f.end)
	computes := len(f.batch.Items) > 0
	r.clients(r.now) // what was sent before is in the front end's queue before the tokens
	r.deliver(r.scheduler.Update(f.batch))
	r.observe()
	if computes {
		r.working--
		if r.out.Steps != nil {
			r.out.Steps[f.step].KVUsage = r.usage
		}
		if r.series != nil {
			r.series.add(r.now, r.scheduler, false)
		}
	}
}

func (r *run) deliver(events []Event) {
	tokens := len(events)
	at := r.front.stream(r.now, len(events))
	for i := range events {
		e := &events[i]
		rec, p := &r.out.Records[e.ID], &r.progress[e.ID]
		if e.First {
			p.first = r.now
			computed := rec.PromptTokens - e.CachedTokens
			tokens += computed
			r.tally.first(r.now-rec.Sent, rec.PromptTokens, e.CachedTokens)
			rec.Tokens = r.room(rec.AskedTokens)
		}
		n := 1
		if r.cfg.StreamInterval > 1 {
			n = r.cfg.Stream(e.Output, e.Finished)
		}
		if n > 0 {
			rec.Tokens = append(rec.Tokens, workload.TokenEvent{At: at - rec.Sent, Tokens: n})
		}
		if e.Finished {
			rec.OutputTokens = e.Output
			rec.FinishReason = "length"
			r.tally.last(r.now, rec.Sent, p, e.Output)
			r.end(moment{e.ID, at})
		}
		at += r.cfg.FrontEnd.Event
	}
	if len(events) > 0 {
		r.tally.iterations++
		r.tally.iterationTokens += tokens
	}
}

// room is space for a request's token events, cut from a larger piece.
func (r *run) room(tokens int) []workload.TokenEvent {
	n := tokens/r.cfg.StreamInterval + 2
	if cap(r.events)-len(r.events) < n {
		r.events = make([]workload.TokenEvent, 0, max(n, 1<<13))
	}
	from := len(r.events)
	r.events = r.events[:from+n]
	return r.events[from : from : from+n]
}

// observe accounts for the KV cache's use up to now.
func (r *run) observe() {
	r.usedArea += r.usage * (r.now - r.usedAt).Seconds()
	r.usage, r.usedAt = r.scheduler.Usage(), r.now
	r.out.KVUsagePeak = max(r.out.KVUsagePeak, r.usage)
}

func (r *run) finish() {
	if r.work.Duration > 0 { // what was never sent has no record
		r.out.Records = slices.DeleteFunc(r.out.Records, func(rec workload.Record) bool { return r.release.Dropped(rec.Index) })
	}
	r.out.Counters = r.tally.counters(r.scheduler.Stats())
	if r.series != nil {
		r.series.add(r.now, r.scheduler, true)
		r.out.Series = r.series.samples()
	}
	if r.out.End > 0 {
		r.out.KVUsageMean = r.usedArea / r.out.End.Seconds()
	}
}
