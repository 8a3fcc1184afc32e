package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"kvtune/harness/hist"
	"kvtune/harness/workload"
)

// Options say what to send and what to report.
type Options struct {
	Client   Client
	Workload *workload.Workload
	// HashBlock is the server's block size in tokens: records then name the prefix blocks that requests may share. 0 names
	// none.
	HashBlock int
	// OnRecord is called with every record once its request has ended, in that order, from one goroutine; sending does not
	// wait for it. nil is allowed, as for OnProgress.
	OnRecord func(workload.Record)
	// OnProgress is called after OnRecord, from the same goroutine.
	OnProgress func(Progress)
	// IdleTimeout ends a request to which nothing has come for so long, from its start or the last event. 0 is 10 minutes,
	// below 0 is none.
	IdleTimeout time.Duration
	// FirstTokenTimeout replaces IdleTimeout until the first event; 0 is IdleTimeout.
	FirstTokenTimeout time.Duration
	// RequestTimeout ends a request that has taken so long; 0 is none.
	RequestTimeout time.Duration
	// GiveUpAfter is the number of requests in a row that find no connection after which the endpoint counts as dead; 0 is
	// 5.
	GiveUpAfter int
	// Retries is how often a request that failed without a token is sent again at most, where no connection was found or
	// the error asks for it (RetryAfter; else after 0.1 s, doubled each time up to 5 s). Its record counts them, and its
	// times go on from the first send. 0 is never.
	Retries int
	// MaxInFlight is how many requests may be in flight at once, for want of files that may be open, say; 0 is any number.
	// Do refuses a workload that needs more, and ends a run whose open loop comes to it.
	MaxInFlight int
	// StartAt is when the measured requests begin, at the earliest: what goes before (priming, warm-up) is sent at once.
	// Zero is when that has ended.
	StartAt time.Time

	sleep func(until time.Time) // replaces the pacer in tests with a clock of their own
}

// Progress is how far a run has come.
type Progress struct {
	// Total = Ended + those in flight + those not sent yet. Failed are among Ended.
	Total, Sent, Ended, Failed int
	// Elapsed is from the run's start.
	Elapsed time.Duration
}

// Run is what was sent and what became of it. Sent = OK + Failed + Cancelled = len(Records), and Sent + Unsent is the
// number of requests of the workload.
type Run struct {
	// Records are in order of Index: every request that was sent, successful or not. Those that were cut off by the end of
	// the run hold what had arrived, and an Error.
	Records []workload.Record
	// Lag is how late the generator itself was, for requests that had a due moment: from that to the send, without the
	// wait for a new connection, which is the network's and the server's.
	Lag *hist.Recorder
	// CPU is this process's processor time as a share of what its processors have, over its busiest five seconds, 0..1;
	// nil where the system does not say.
	CPU *float64
	// Started is the moment from which the records' times count.
	Started time.Time
	// Begin is when the measured requests began, from Started; nil where none did.
	Begin *time.Duration
	// Interrupted is set when the run ended before the workload did; Why says how.
	Interrupted bool
	Why         string

	Sent, OK, Failed, Cancelled, Unsent int
	// Retried is how many of the records were sent more than once, Retries how often in all.
	Retried, Retries int
}

// LimitError says that a workload needs more requests in flight than there may be.
type LimitError struct {
	Needs, Has int
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("the workload has %d requests in flight at once and this process may have %d connections open: "+
		"raise its limit of open files (ulimit -n %d), or ask for fewer requests at once", e.Needs, e.Has, e.Needs+reserve)
}

// reserve are the files that a process wants beside its connections.
const reserve = 64

const (
	defaultIdle   = 10 * time.Minute
	defaultGiveUp = 5
)

// lead is how long before its time a request is taken in hand: for the last stretch of waiting, which the runtime's
// timers would prolong by up to 1 ms, and for building it.
func lead(r *workload.Request) time.Duration {
	const wait, perToken = 1500 * time.Microsecond, 100 * time.Nanosecond
	return wait + time.Duration(r.PromptTokens())*perToken
}

// Do sends a workload on its schedule and returns when every request has ended. Sending waits for nothing but the
// schedule: every request has its own goroutine, and no stream or callback delays another.
//
// When ctx is cancelled, or the endpoint is dead, Do sends no more, cancels what is in flight and returns what was
// measured, with Interrupted set and a nil error. Its error is about opt alone: no client, or a workload that is not
// valid.
func Do(ctx context.Context, opt Options) (*Run, error) {
	if opt.Client == nil || opt.Workload == nil {
		return nil, errors.New("load needs a client and a workload")
	}
	if err := opt.Workload.Validate(); err != nil {
		return nil, err
	}
	if opt.IdleTimeout == 0 {
		opt.IdleTimeout = defaultIdle
	}
	if opt.GiveUpAfter == 0 {
		opt.GiveUpAfter = defaultGiveUp
	}
	if needs := opt.Workload.InFlight(); opt.MaxInFlight > 0 && needs > opt.MaxInFlight {
		return nil, &LimitError{needs, opt.MaxInFlight}
	}
	if opt.sleep == nil {
		p, err := newPacer()
		if err != nil {
			return nil, err
		}
		defer p.close()
		opt.sleep = p.wait
	}
	total := len(opt.Workload.Requests)
	g := &generator{
		opt: opt, records: opt.Workload.NewRecords(opt.HashBlock), due: make([]time.Duration, total),
		outcome: make([]outcome, total), late: make([]time.Duration, total), ends: make(chan end, total),
		ended: make(chan int, total),
	}
	var stop context.CancelCauseFunc
	g.ctx, stop = context.WithCancelCause(ctx)
	defer stop(nil)
	reported := make(chan struct{})
	meter := startMeter()
	g.start = time.Now()
	scheduled := *opt.Workload
	if !opt.StartAt.IsZero() {
		scheduled.Hold = max(0, opt.StartAt.Sub(g.start))
	}
	g.schedule = workload.NewSchedule(&scheduled)
	go g.report(reported)
	why := g.send()
	if why != nil {
		stop(why)
	}
	g.drain()
	close(g.ended)
	<-reported
	run := g.run(why)
	run.CPU = meter.end()
	return run, nil
}

// outcome is what became of a request.
type outcome uint8

const (
	unsent outcome = iota
	ok
	failed
	cancelled
)

// end is the end of a request.
type end struct {
	index  int
	at     time.Duration
	err    error
	handed bool // it was handed to the network
}

// generator is one run. Each record belongs to its request's goroutine until that has put the index into ends; then to
// the sender, and from ended on to the reporter.
type generator struct {
	opt      Options
	ctx      context.Context // of all requests
	schedule *workload.Schedule
	start    time.Time

	records []workload.Record
	due     []time.Duration // what Record.Due points to
	late    []time.Duration // how late each was taken in hand
	outcome []outcome
	// Both channels have room for every request: nobody waits to write.
	ends  chan end
	ended chan int

	sent     atomic.Int64
	inFlight int
	cut      bool // a request was cancelled
	lost     lost
}

// send sends until all requests have ended, and returns why it stopped before, nil if it did not.
func (g *generator) send() error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for !g.schedule.Finished() {
		if g.ctx.Err() != nil {
			return context.Cause(g.ctx)
		}
		index, due, released := g.schedule.Next()
		var wake <-chan time.Time
		if released {
			early := due - lead(&g.opt.Workload.Requests[index]) - time.Since(g.start)
			if early <= 0 {
				if limit := g.opt.MaxInFlight; limit > 0 && g.inFlight >= limit {
					return fmt.Errorf("the open loop has come to %w", &LimitError{g.inFlight + 1, limit})
				}
				g.schedule.Pop()
				g.launch(index, due)
				continue
			}
			timer.Reset(early)
			wake = timer.C
		}
		select {
		case e := <-g.ends:
			g.take(e)
			if errors.Is(e.err, syscall.EMFILE) || errors.Is(e.err, syscall.ENFILE) {
				return fmt.Errorf("no more files may be open: raise the limit (ulimit -n), or ask for fewer requests at once: %w",
					e.err)
			}
			if err := g.lost.verdict(g.opt.GiveUpAfter); err != nil {
				return err
			}
		case <-wake:
		case <-g.ctx.Done():
		}
	}
	if g.cut {
		return context.Cause(g.ctx)
	}
	return g.lost.last()
}

// launch starts a request's goroutine.
func (g *generator) launch(index int, due time.Duration) {
	if g.schedule.Intended(index) {
		g.due[index] = due
		g.records[index].Due = &g.due[index]
	}
	g.inFlight++
	go g.serve(index, due)
}

// take accounts for the end of a request.
func (g *generator) take(e end) {
	g.inFlight--
	g.schedule.Done(e.index, e.at)
	if g.outcome[e.index] != unsent {
		g.cut = g.cut || g.outcome[e.index] == cancelled
		g.lost.add(e, g.inFlight)
		g.ended <- e.index
	}
}

// drain waits for the requests in flight.
func (g *generator) drain() {
	for g.inFlight > 0 {
		g.take(<-g.ends)
	}
}

// serve sends one request at its time and writes its record.
func (g *generator) serve(index int, due time.Duration) {
	r, rec := &g.opt.Workload.Requests[index], &g.records[index]
	send := g.opt.Client.Prepare(r)
	g.opt.sleep(g.start.Add(due))
	if g.ctx.Err() != nil {
		g.ends <- end{index: index, at: time.Since(g.start)}
		return
	}
	ctx, cancel := context.WithCancelCause(g.ctx)
	defer cancel(nil)
	dog := g.watch(cancel)
	defer dog.stop()
	rec.Tokens = make([]workload.TokenEvent, 0, min(r.OutputTokens, 1<<14))
	rec.Sent = time.Since(g.start) // until the client knows better
	g.late[index] = rec.Sent - due
	g.sent.Add(1)
	last, handed := time.Duration(0), false
	onSent := func(at time.Time) {
		if !handed {
			rec.Sent, handed = at.Sub(g.start), true
		}
	}
	onEvent := func(at time.Time, tokens int) {
		last = max(last, at.Sub(g.start)-rec.Sent)
		rec.Tokens = append(rec.Tokens, workload.TokenEvent{At: last, Tokens: tokens})
		dog.pat(rec.Sent + last)
	}
	reply, err := send(ctx, onSent, onEvent)
	if handed {
		g.late[index] = rec.Sent - due - reply.Connect
	}
	for rec.Retries < g.opt.Retries && g.again(ctx, rec, err) {
		rec.Retries++
		reply, err = send(ctx, onSent, onEvent)
	}
	at := time.Since(g.start)
	g.finish(index, reply, err, context.Cause(ctx))
	g.ends <- end{index, at, err, handed}
}

// again waits until a request may be sent again; false when it may not.
func (g *generator) again(ctx context.Context, rec *workload.Record, err error) bool {
	if err == nil || len(rec.Tokens) > 0 || ctx.Err() != nil {
		return false
	}
	const first, most = 100 * time.Millisecond, 5 * time.Second
	wait := min(first<<min(rec.Retries, 10), most)
	var asked interface {
		RetryAfter() (wait time.Duration, ok bool)
	}
	if errors.As(err, &asked) {
		w, ok := asked.RetryAfter()
		if !ok {
			return false
		}
		if w > 0 {
			wait = w
		}
	} else if !isConnection(err) {
		return false
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(wait):
		return true
	}
}

// finish completes the record of a request that was sent. cause is why its context ended, nil if it did not.
func (g *generator) finish(index int, reply Reply, err, cause error) {
	rec := &g.records[index]
	if reply.PromptTokens > 0 {
		rec.PromptTokens = reply.PromptTokens
	}
	rec.OutputTokens = reply.OutputTokens
	if rec.OutputTokens == 0 {
		for _, e := range rec.Tokens {
			rec.OutputTokens += e.Tokens
		}
	}
	rec.CachedTokens, rec.FinishReason = reply.CachedTokens, reply.FinishReason
	switch {
	case err != nil && g.ctx.Err() != nil:
		g.outcome[index] = cancelled
		rec.Error = "cancelled: " + reason(context.Cause(g.ctx))
		return
	case err != nil && cause != nil:
		rec.Error = cause.Error()
	case err != nil:
		rec.Error = err.Error()
	case reply.FinishReason == "abort":
		rec.Error = "aborted by the server"
	case len(rec.Tokens) == 0:
		rec.Error = "the stream ended without a token"
	}
	g.outcome[index] = ok
	if rec.Error != "" {
		g.outcome[index] = failed
	}
}

// report tells the caller of every end.
func (g *generator) report(done chan<- struct{}) {
	defer close(done)
	p := Progress{Total: len(g.records)}
	for i := range g.ended {
		if g.opt.OnRecord != nil {
			g.opt.OnRecord(g.records[i])
		}
		p.Ended++
		if g.outcome[i] != ok {
			p.Failed++
		}
		if g.opt.OnProgress != nil {
			p.Sent, p.Elapsed = int(g.sent.Load()), time.Since(g.start)
			g.opt.OnProgress(p)
		}
	}
}

// run is the result, once nothing is in flight.
func (g *generator) run(why error) *Run {
	run := &Run{Lag: hist.New(), Started: g.start, Records: make([]workload.Record, 0, len(g.records))}
	for i := range g.records {
		switch g.outcome[i] {
		case unsent:
			run.Unsent++
			continue
		case ok:
			run.OK++
		case failed:
			run.Failed++
		case cancelled:
			run.Cancelled++
		}
		rec := &g.records[i]
		if rec.Due != nil {
			run.Lag.Record(max(0, g.late[i]))
		}
		if rec.Retries > 0 {
			run.Retried++
			run.Retries += rec.Retries
		}
		run.Records = append(run.Records, *rec)
	}
	run.Sent = len(run.Records)
	if begin, ok := g.schedule.Begin(); ok {
		run.Begin = &begin
	}
	if why != nil {
		run.Interrupted, run.Why = true, reason(why)
	}
	return run
}

// reason is why a run ended, for people.
func reason(err error) string {
	if err == context.Canceled {
		return "interrupted"
	}
	return err.Error()
}

// lost counts the requests that ended without a connection, since one got through.
type lost struct {
	refused int // found nobody to talk to
	all     int // were refused or cut off
	flight  int // were in flight when the row began, the first of it included
	err     error
}

// add accounts for the end of a request; inFlight is how many are left.
func (l *lost) add(e end, inFlight int) {
	if !isConnection(e.err) {
		*l = lost{}
		return
	}
	if l.all == 0 {
		l.flight = inFlight + 1
	}
	l.all++
	l.err = e.err
	if !e.handed {
		l.refused++
	}
}

// verdict is an error when the endpoint is dead. Streams that are cut prove nothing (a gateway may be back at once),
// but requests that find nobody do.
func (l *lost) verdict(limit int) error {
	if l.refused < limit {
		return nil
	}
	return fmt.Errorf("the endpoint is dead: %d requests in a row failed, the last with: %w", l.all, l.err)
}

// last is an error when the run ended because everything that was still in flight lost its connection.
func (l *lost) last() error {
	if l.all == 0 || l.all < l.flight {
		return nil
	}
	return fmt.Errorf("the endpoint is dead: the last %d requests lost their connection: %w", l.all, l.err)
}

// isConnection reports whether a request failed for want of a connection, in contrast to an answer that says no.
func isConnection(err error) bool {
	var n net.Error
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.As(err, &n) && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}
