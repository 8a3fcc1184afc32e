package load

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// watchdog ends one request to which nothing comes, or that takes too long. An event costs it one store: its timer
// looks when it fires, and is set again to what is left.
type watchdog struct {
	start       time.Time
	first, idle time.Duration // 0 or below is none
	named       bool          // first has a name of its own
	last        atomic.Int64  // the last event, from start; 0 before the first
	cancel      context.CancelCauseFunc
	quiet, all  *time.Timer
}

// watch starts the watchdog of a request that is sent now; cancel ends it.
func (g *generator) watch(cancel context.CancelCauseFunc) *watchdog {
	d := &watchdog{start: g.start, first: g.opt.FirstTokenTimeout, idle: g.opt.IdleTimeout, named: true, cancel: cancel}
	if d.first == 0 {
		d.first, d.named = d.idle, false
	}
	if d.first > 0 {
		d.quiet = time.AfterFunc(d.first, d.look)
	} else if d.idle > 0 {
		d.quiet = time.AfterFunc(d.idle, d.look)
	}
	if t := g.opt.RequestTimeout; t > 0 {
		d.all = time.AfterFunc(t, func() { cancel(fmt.Errorf("not finished after %v (request timeout)", t)) })
	}
	return d
}

// pat tells of an event, at a moment from the run's start.
func (d *watchdog) pat(at time.Duration) {
	if d.last.Swap(int64(max(1, at))) == 0 && d.quiet != nil {
		if d.idle > 0 {
			d.quiet.Reset(d.idle)
		} else {
			d.quiet.Stop()
		}
	}
}

// look ends the request if nothing has come for too long.
func (d *watchdog) look() {
	last := time.Duration(d.last.Load())
	switch since := time.Since(d.start) - last; {
	case last == 0 && d.first <= 0: // the first token may take any time
		d.quiet.Reset(d.idle)
	case last == 0 && d.named:
		d.cancel(fmt.Errorf("no token for %v (first-token timeout)", d.first))
	case last == 0:
		d.cancel(fmt.Errorf("nothing came for %v (idle timeout)", d.first))
	case d.idle <= 0:
	case since < d.idle:
		d.quiet.Reset(d.idle - since)
	default:
		d.cancel(fmt.Errorf("nothing came for %v (idle timeout)", d.idle))
	}
}

func (d *watchdog) stop() {
	for _, t := range []*time.Timer{d.quiet, d.all} {
		if t != nil {
			t.Stop()
		}
	}
}
