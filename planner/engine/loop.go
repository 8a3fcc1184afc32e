package engine

import (
	"slices"
	"time"

	"kvtune/planner/cost"
	"kvtune/planner/sim"
)

// maxLag is how far the loop may fall behind its schedule and still catch up. Waking late costs nothing then: the next
// step starts when the last one should have ended. A machine that cannot keep up loses the time beyond, and the counter
// kvtune:engine_lag_seconds_total says how much.
const maxLag = 50 * time.Millisecond

// loop is the goroutine that owns the scheduler: vLLM's engine core (step, step_with_batch_queue), and the part of the
// front end that hands outputs to the streams and counts them.
type loop struct {
	e     *Engine
	sched *sim.Scheduler
	timer cost.Timer
	heat  cost.Heat
	depth int // batches in flight: 2 with async scheduling

	arrivals []*job // not yet due, in order of due
	jobs     map[int]*job
	flight   []flight
	outbox   []output
	spare    [][]sim.Event
	// tried is set when the scheduler had nothing to do beside the batches in flight. It is asked again after the oldest
	// has ended, not before, as vLLM's engine core blocks on that one.
	tried bool
	// busyUntil is the end of the last step launched; zero when the device idled since.
	busyUntil time.Time
	// hostUntil is when the host has launched the last step; more is set when it goes on to launch another one then.
	hostUntil time.Time
	more      bool
	err       error
}

// flight is a step on the device.
type flight struct {
	batch *sim.Batch
	end   time.Time
}

// output is what a step gave, on its way through the API server.
type output struct {
	due    time.Time
	events []sim.Event
}

func (l *loop) run() {
	defer close(l.e.done)
	for l.err == nil {
		kill, drain := l.receive()
		if kill || drain && len(l.jobs) == 0 && len(l.arrivals) == 0 {
			break
		}
		now := time.Now()
		for len(l.outbox) > 0 && !l.outbox[0].due.After(now) {
			l.publish(l.outbox[0].events)
			l.outbox = slices.Delete(l.outbox, 0, 1)
		}
		if !l.hostUntil.After(now) {
			l.step(now)
		}
		l.e.met.state(l.sched)
		l.rest()
	}
	l.e.failed = l.err
	for _, j := range l.jobs {
		j.deliver(j.made, j.cached, endAbort)
	}
	for _, j := range append(l.arrivals, l.e.inbox.close()...) {
		j.deliver(0, 0, endAbort)
	}
}

// step is what the host does when it is free: it takes a result in and launches what there is room for.
func (l *loop) step(now time.Time) {
	if !l.more && len(l.flight) > 0 && !l.flight[0].end.After(now) {
		l.finish()
	}
	l.admit(now)
	l.more = false
	for len(l.flight) < l.depth && !l.tried && !l.more {
		l.launch(now)
		l.more = l.hostUntil.After(now) && len(l.flight) < l.depth
	}
}

// receive takes what the HTTP side has sent.
func (l *loop) receive() (kill, drain bool) {
	added, aborted, kill, drain := l.e.inbox.take()
	for _, j := range added {
		i, _ := slices.BinarySearchFunc(l.arrivals, j.due, func(a *job, due time.Time) int {
			if a.due.After(due) {
				return 1
			}
			return -1 // equal ones keep their order
		})
		l.arrivals = slices.Insert(l.arrivals, i, j)
	}
	for _, id := range aborted {
		if _, ok := l.jobs[id]; ok {
			l.sched.Abort(id)
			delete(l.jobs, id)
			continue
		}
		l.arrivals = slices.DeleteFunc(l.arrivals, func(j *job) bool { return j.id == id })
	}
	return kill, drain
}

// admit gives the scheduler what is due.
func (l *loop) admit(now time.Time) {
	for len(l.arrivals) > 0 && !l.arrivals[0].due.After(now) {
		j := l.arrivals[0]
		l.arrivals = slices.Delete(l.arrivals, 0, 1)
		j.queued = now
		err := l.sched.Add(sim.Request{ID: j.id, PromptTokens: len(j.prompt), MaxTokens: j.max, Priority: j.priority,
			Arrival: j.arrived.Sub(l.e.started), Hashes: j.hashes})
		if err != nil { // the API server has checked the lengths with the same rule
			l.err = err
			return
		}
		l.jobs[j.id] = j
		if len(l.flight) == 0 {
			l.tried = false
		}
	}
}

// launch schedules a step and puts it on the device.
func (l *loop) launch(now time.Time) {
	b := l.sched.Schedule()
	for _, a := range b.Admitted {
		if !a.Resumed {
			l.jobs[a.ID].scheduled = now
		}
	}
	for _, id := range b.Preempted {
		if j, ok := l.jobs[id]; ok { // its last token may be in the outbox
			j.preemptions++
		}
	}
	if len(b.Items) == 0 {
		// A request that preempted itself, alone, is admitted when asked again.
		l.tried = len(l.flight) > 0 || len(b.Preempted) == 0
		if l.tried && len(l.flight) == 0 {
			l.busyUntil = time.Time{}
		}
		l.sched.Update(b)
		return
	}
	start := l.busyUntil
	if start.IsZero() {
		start = now
	} else if lag := now.Sub(start); lag > maxLag {
		l.e.met.lag(lag)
		start = now
	}
	prepare, launch := l.timer.HostTime(b.Step)
	ready := now.Add(l.e.real(prepare))
	if start.Before(ready) {
		start = ready
	}
	l.hostUntil = ready.Add(l.e.real(launch))
	l.busyUntil = start.Add(l.e.real(l.heat.StepTime(l.timer, b.Step, l.virtual(start))))
	if l.busyUntil.Before(l.hostUntil) {
		l.busyUntil = l.hostUntil
	}
	l.flight = append(l.flight, flight{b, l.busyUntil})
}

// virtual is a moment in simulated time.
func (l *loop) virtual(t time.Time) time.Duration {
	return time.Duration(float64(t.Sub(l.e.started)) * l.e.opt.Speed)
}

// finish applies the oldest step's result and sends its outputs on.
func (l *loop) finish() {
	f := l.flight[0]
	l.flight = slices.Delete(l.flight, 0, 1)
	l.tried = false
	events := l.sched.Update(f.batch)
	if len(events) == 0 {
		return
	}
	var kept []sim.Event
	if n := len(l.spare); n > 0 {
		kept, l.spare = l.spare[n-1][:0], l.spare[:n-1]
	}
	at := f.end // the host may have been busy then
	if at.Before(l.hostUntil) {
		at = l.hostUntil
	}
	l.outbox = append(l.outbox, output{at.Add(l.e.real(l.e.front.Token)), append(kept, events...)})
}

// publish hands a step's tokens to the streams.
func (l *loop) publish(events []sim.Event) {
	now := time.Now()
	step := stepStats{}
	stream := l.e.cfg
	for _, ev := range events {
		if j, ok := l.jobs[ev.ID]; ok {
			l.e.met.token(&step, j, ev, now)
		}
	}
	l.e.met.step(step) // before a client has its tokens: the counters it then asks for have them, too
	for _, ev := range events {
		j, ok := l.jobs[ev.ID]
		if !ok {
			continue // aborted since
		}
		end := ""
		if ev.Finished {
			end = endLength
			delete(l.jobs, j.id)
		}
		stream.StreamInterval = j.interval
		if ev.Finished || j.streamed && stream.Stream(ev.Output, false) > 0 {
			j.deliver(ev.Output, ev.CachedTokens, end)
		}
	}
	l.spare = append(l.spare, events)
}

// rest waits for what comes next.
func (l *loop) rest() {
	var next time.Time
	earlier := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	switch {
	case l.more:
		earlier(l.hostUntil)
	case len(l.flight) > 0:
		earlier(l.flight[0].end)
	case len(l.arrivals) > 0:
		earlier(l.arrivals[0].due)
	}
	if next.Before(l.hostUntil) && !next.IsZero() {
		next = l.hostUntil
	}
	if len(l.outbox) > 0 {
		earlier(l.outbox[0].due)
	}
	if l.err != nil {
		return
	}
	if next.IsZero() {
		<-l.e.inbox.wake
		return
	}
	l.err = l.e.alarm.wait(next)
}
