package sim

import (
	"context"
	"errors"
	"fmt"
	"iter"
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
	// Ends keeps a record's first and last token event only: all that its latencies are made of but the gaps between
	// tokens. It saves most of the memory.
	Ends bool

	itemized bool // decide every step request by request: the reference for the lane
}

// Run serves a workload in virtual time: the client sends on the workload's schedule without delay; the front end, one
// thread, hands requests to the scheduler and tokens to the client. Steps run one after the other on the device; each
// takes what timer says, and not less than the host's launch, during which the host does nothing else. With
// asynchronous scheduling two batches are in flight: when one ends, its tokens are delivered, requests that have come
// are taken in, and the next batch is scheduled while the other runs (EngineCore.step_with_batch_queue). Synchronous
// scheduling is serial.
//
// The same arguments give the same Outcome. The error is Validate's, or ctx's. See [Runner] for many runs and for
// workloads that do not fit into memory.
func Run(ctx context.Context, cfg Config, timer cost.Timer, w *workload.Workload, opt Options) (*Outcome, error) {
	return new(Runner).Run(ctx, cfg, timer, w, opt)
}

// Runner runs simulations one after the other in the same memory. The zero value is ready for use. It is not safe for
// concurrent use.
type Runner struct {
	scheduler Scheduler
	prefixes  prefixes
	records   []workload.Record
	progress  []progress
	events    arena
	run       run // of the last call, for its memory
	out       Outcome
}

// Run is the function [Run]. The Outcome, with everything in it, holds until the next call.
func (m *Runner) Run(ctx context.Context, cfg Config, timer cost.Timer, w *workload.Workload, opt Options) (*Outcome,
	error) {
	n := len(w.Requests)
	m.records, m.progress = slices.Grow(m.records[:0], n)[:n], slices.Grow(m.progress[:0], n)[:n]
	clear(m.progress)
	for i := range w.Requests {
		m.records[i] = workload.NewRecord(&w.Requests[i])
	}
	m.prefixes.of(cfg, w)
	r, err := m.start(cfg, timer, opt)
	if err != nil {
		return nil, err
	}
	schedule := workload.NewSchedule(w)
	r.source = &planned{schedule, m, w}
	m.out.Records = m.records
	if opt.Steps {
		r.out.Steps = make([]harness.StepRecord, 0, n)
	}
	out, err := m.finish(ctx)
	if err == nil && w.Duration > 0 { // what was never sent has no record
		out.Records = slices.DeleteFunc(out.Records, func(rec workload.Record) bool { return schedule.Dropped(rec.Index) })
	}
	return out, err
}

// Stream is Run for a workload that is read while it is served, an open loop as a [workload.Stream] gives it: requests
// in order of Wave and Due, waiting for nothing else (no After), each with its SharedTokens. done gets the record of
// each request when it has ended, in order of ending; record and tokens hold during the call only. Memory is bounded by
// the requests in flight, unless opt asks for Steps. The error is requests', done's, Validate's, or ctx's.
func (m *Runner) Stream(ctx context.Context, cfg Config, timer cost.Timer, requests iter.Seq2[workload.Request, error],
	done func(*workload.Record) error, opt Options) (*Outcome, error) {
	r, err := m.start(cfg, timer, opt)
	if err != nil {
		return nil, err
	}
	next, stop := iter.Pull2(requests)
	defer stop()
	s := &streamed{pull: next, done: done, hash: cfg.EnablePrefixCaching, blockSize: cfg.BlockSize}
	s.advance()
	r.source = s
	out, err := m.finish(ctx)
	return out, errors.Join(s.err, err)
}

func (m *Runner) start(cfg Config, timer cost.Timer, opt Options) (*run, error) {
	if m.scheduler.slots == nil {
		m.scheduler.slots = make(map[int]int32)
	}
	m.scheduler.lane.on = !opt.itemized
	if err := m.scheduler.reset(cfg); err != nil {
		return nil, err
	}
	m.events.reset()
	m.out = Outcome{}
	old := &m.run
	m.run = run{
		cfg: cfg, timer: timer, scheduler: &m.scheduler, depth: 1, ends: opt.Ends, out: &m.out, arena: &m.events,
		flights: old.flights[:0], arriving: old.arriving.emptied(), ending: old.ending.emptied(), bySlot: old.bySlot,
		landed: old.landed[:0], front: frontEnd{FrontEnd: cfg.FrontEnd},
	}
	if cfg.AsyncScheduling {
		m.run.depth = 2
	}
	m.run.steps = opt.Steps
	if opt.Series {
		m.run.series = &series{}
	}
	return &m.run, nil
}

func (m *Runner) finish(ctx context.Context) (*Outcome, error) {
	if err := m.run.loop(ctx); err != nil {
		return nil, err
	}
	m.run.finish()
	return m.run.out, nil
}

// progress is a request under way.
type progress struct {
	rec                      *workload.Record // points into due and cached
	due                      time.Duration
	queued, scheduled, first time.Duration // in the engine's time
	cached                   int
	delivered                int // tokens noted in the record
}

// arrival is a request on its way to the scheduler.
type arrival struct {
	*progress
	Request
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
	scheduler *Scheduler
	source    source
	out       *Outcome
	series    *series
	steps     bool
	ends      bool
	arena     *arena
	bySlot    []*progress
	depth     int // batches in flight

	now      time.Duration // the engine's clock, which is the host's
	device   time.Duration // when the device is free
	front    frontEnd
	heat     cost.Heat
	flights  []flight
	working  int // flights that compute something
	victims  int // preempted since the last step with work
	barren   int // steps since the last one that gave a token
	arriving timeline[arrival]
	ending   timeline[int] // ended, not yet known to the client
	// The API server's view: requests that have not ended, prompt tokens of those without a token.
	unfinished, prefilling int
	// landed are when the first tokens of the latest steps reached the client.
	landed []time.Duration

	tally    tally
	usage    float64 // since usedAt
	usedAt   time.Duration
	usedArea float64 // usage x seconds
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
			if len(r.flights) < r.depth && (!b.empty() || r.busy()) {
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
		if err := r.land(); err != nil {
			return err
		}
	}
}

func (r *run) busy() bool { return r.scheduler.Running()+r.scheduler.Waiting() > 0 }

// next is when something happens outside the engine.
func (r *run) next() (at time.Duration, ok bool) {
	_, at, ok = r.source.Next()
	if first, some := r.arriving.next(); some && (!ok || first < at) {
		at, ok = first, true
	}
	if first, some := r.ending.next(); some && (!ok || first < at) {
		at, ok = first, true
	}
	return at, ok
}

// takeIn lets the client act up to now, and gives the scheduler the requests that have reached it.
func (r *run) takeIn() error {
	if err := r.clients(r.now); err != nil {
		return err
	}
	for {
		if at, some := r.arriving.next(); !some || at > r.now {
			return nil
		}
		a := r.arriving.pop()
		slot, err := r.scheduler.add(a.Request)
		if err != nil {
			return err
		}
		for int(slot) >= len(r.bySlot) {
			r.bySlot = append(r.bySlot, nil)
		}
		r.bySlot[slot] = a.progress
		a.queued = r.now
	}
}

// clients lets the client act up to a moment.
func (r *run) clients(until time.Duration) error {
	for {
		index, due, ok := r.source.Next()
		if at, some := r.ending.next(); some && at <= until && (!ok || at <= due) {
			r.source.Done(r.ending.pop(), at)
			continue
		}
		if !ok || due > until {
			return nil
		}
		if err := r.send(index, due); err != nil {
			return err
		}
	}
}

// send is the client's act: a request that the API server refuses ends at once.
func (r *run) send(index int, due time.Duration) error {
	p, hashes := r.source.begin(index)
	intended := r.source.Intended(index)
	r.source.Pop()
	rec := p.rec
	rec.Sent = due
	if intended {
		p.due = due
		rec.Due = &p.due
	}
	at := r.front.receive(due, rec.PromptTokens)
	if err := r.refuses(rec); err != nil {
		rec.Error = err.Error()
		r.end(index, at)
		return r.source.finish(p)
	}
	r.unfinished++
	r.prefilling += rec.PromptTokens
	r.arriving.push(at, arrival{p, Request{
		ID: index, PromptTokens: rec.PromptTokens, MaxTokens: rec.AskedTokens, Priority: rec.Priority, Arrival: due,
		Hashes: hashes,
	}})
	return nil
}

// refuses is the API server's answer to a request that it does not take.
//
// Source of the limits: vllm/v1/engine/async_llm.py check_admission.
func (r *run) refuses(rec *workload.Record) error {
	if n := r.cfg.MaxNumQueuedReqs; n > 0 && r.unfinished+1 > n {
		return fmt.Errorf("status 503: %d requests have not ended, max_num_queued_reqs is %d", r.unfinished, n)
	}
	if n := r.cfg.MaxNumQueuedTokens; n > 0 && r.prefilling >= n {
		return fmt.Errorf("status 503: %d prompt tokens wait, max_num_queued_tokens is %d", r.prefilling, n)
	}
	_, err := r.cfg.Admit(rec.PromptTokens, rec.AskedTokens)
	return err
}

// end notes when the client will see that a request has ended.
func (r *run) end(index int, at time.Duration) {
	r.ending.push(at, index)
	r.out.End = max(r.out.End, at)
}

// launch schedules a batch and puts it behind those in flight.
func (r *run) launch() (*Batch, error) {
	b := r.scheduler.Schedule()
	f := flight{batch: b, end: r.now}
	for _, a := range b.Admitted {
		if !a.Resumed {
			p := r.bySlot[a.slot]
			p.scheduled, p.cached = r.now, a.CachedTokens
			p.rec.CachedTokens = &p.cached
		}
	}
	for i := range b.departed {
		r.catchUp(&b.departed[i])
	}
	r.victims += len(b.Preempted)
	if !b.empty() {
		prepare, launch := r.timer.HostTime(b.Step)
		if err := r.compute(prepare); err != nil {
			return nil, err
		}
		start := max(r.now, r.device)
		if err := r.compute(launch); err != nil {
			return nil, err
		}
		f.end = max(start+max(0, r.heat.StepTime(r.timer, b.Step, start)), r.now)
		elapsed := f.end - start
		r.device = f.end
		r.out.Busy += elapsed
		r.working++
		if r.steps {
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
func (r *run) compute(d time.Duration) error {
	if d <= 0 {
		return nil
	}
	until := r.now + d + max(0, r.front.reading-r.now)
	for until > r.now {
		r.now = until
		before := r.front.handled
		if err := r.clients(until); err != nil {
			return err
		}
		until += r.front.handled - before
	}
	return nil
}

// land waits for the oldest batch and delivers its tokens.
func (r *run) land() error {
	f := r.flights[0]
	r.flights = r.flights[:copy(r.flights, r.flights[1:])]
	r.now = max(r.now, f.end)
	computes := !f.batch.empty()
	if err := r.clients(r.now); err != nil { // what was sent before is in the front end's queue before the tokens
		return err
	}
	if err := r.deliver(r.scheduler.Update(f.batch), f.batch.Decoding); err != nil {
		return err
	}
	r.observe()
	if computes {
		r.working--
		if r.steps {
			r.out.Steps[f.step].KVUsage = r.usage
		}
		if r.series != nil {
			r.series.add(r.now, r.scheduler, false)
		}
	}
	return nil
}

// catchUp notes the tokens that a request got in the lane, one in each of the latest steps.
func (r *run) catchUp(d *departure) {
	p := r.bySlot[d.slot]
	first := p.delivered + 1
	p.delivered += d.tokens
	if r.ends {
		return
	}
	latest := r.landed[len(r.landed)-d.tokens:]
	tokens, sent := p.rec.Tokens, p.rec.Sent
	event := r.cfg.FrontEnd.Event
	if event == 0 && r.cfg.StreamInterval == 1 {
		for _, at := range latest {
			tokens = append(tokens, workload.TokenEvent{At: at - sent, Tokens: 1})
		}
		p.rec.Tokens = tokens
		return
	}
	place := d.standing
	for i, at := range latest {
		at += time.Duration(r.scheduler.lane.place(&place, d.joined+i)) * event
		if k := r.cfg.Stream(first+i, false); k > 0 {
			tokens = append(tokens, workload.TokenEvent{At: at - sent, Tokens: k})
		}
	}
	p.rec.Tokens = tokens
}

// note keeps when a step's tokens reached the client. No request has more steps behind it than max_model_len.
func (r *run) note(at time.Duration) {
	if limit := r.cfg.MaxModelLen; len(r.landed) >= 2*limit+1024 {
		r.landed = r.landed[:copy(r.landed, r.landed[len(r.landed)-limit:])]
	}
	r.landed = append(r.landed, at)
}

// deliver hands tokens to the client: one of each event, and decoding further ones that are noted later.
func (r *run) deliver(events []Event, decoding int) error {
	tokens := len(events) + decoding
	first := r.front.stream(r.now, tokens)
	r.note(first)
	for i := range events {
		e := &events[i]
		at := first + time.Duration(e.place)*r.cfg.FrontEnd.Event
		p := r.bySlot[e.slot]
		rec := p.rec
		if e.First {
			p.first = r.now
			computed := rec.PromptTokens - e.CachedTokens
			tokens += computed
			r.prefilling -= rec.PromptTokens
			r.tally.first(r.now-rec.Sent, rec.PromptTokens, e.CachedTokens)
			if rec.Tokens == nil {
				rec.Tokens = r.arena.room(r.room(rec.AskedTokens))
			}
		}
		p.delivered = e.Output
		if n := r.cfg.Stream(e.Output, e.Finished); n > 0 && (!r.ends || e.First || e.Finished) {
			rec.Tokens = append(rec.Tokens, workload.TokenEvent{At: at - rec.Sent, Tokens: n})
		}
		if e.Finished {
			rec.OutputTokens = e.Output
			rec.FinishReason = "length"
			r.unfinished--
			r.tally.last(r.now, rec.Sent, p, e.Output)
			r.end(e.ID, at)
			if err := r.source.finish(p); err != nil {
				return err
			}
		}
	}
	if tokens > 0 {
		r.tally.iterations++
		r.tally.iterationTokens += tokens
		r.barren = 0
	} else if r.barren++; r.barren > 10_000+4*r.cfg.MaxModelLen {
		return fmt.Errorf("sim: no token in %d steps: running requests preempt each other for ever, as they would in vLLM; "+
			"give the KV cache more than %d blocks, lower max_num_seqs or keep scheduler_reserve_full_isl on", r.barren,
			r.cfg.NumGPUBlocks)
	}
	return nil
}

// room is how many events a request of so many tokens has at most.
func (r *run) room(tokens int) int {
	if r.ends {
		return 2
	}
	return tokens/r.cfg.StreamInterval + 2
}

// observe accounts for the KV cache's use up to now.
func (r *run) observe() {
	r.usedArea += r.usage * (r.now - r.usedAt).Seconds()
	r.usage, r.usedAt = r.scheduler.Usage(), r.now
	r.out.KVUsagePeak = max(r.out.KVUsagePeak, r.usage)
}

func (r *run) finish() {
	r.out.Counters = r.tally.counters(r.scheduler.Stats())
	if r.series != nil {
		r.series.add(r.now, r.scheduler, true)
		r.out.Series = r.series.samples()
	}
	if r.out.End > 0 {
		r.out.KVUsageMean = r.usedArea / r.out.End.Seconds()
	}
}
