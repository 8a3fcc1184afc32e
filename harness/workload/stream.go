package workload

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"time"
)

// Stream is an open loop whose requests are made while they are served, so that none of them needs to be kept: a [Spec]
// with a Rate, or a trace that is in order of time.
type Stream struct {
	// Requests gives the requests in order of Index, which is the order of Wave and, within a wave, of Due. Each waits for
	// its wave only (After is -1). It can be ranged over again and gives the same. An error ends it.
	Requests iter.Seq2[Request, error]
	// Expected is how many requests there are, which of a duration is an expectation.
	Expected int
	// Priorities says that not all measured requests have priority 0.
	Priorities bool
	notes      []string
}

// Notes say what was changed to make the workload possible, as [Workload].Notes do; complete when the last request was
// given out.
func (s *Stream) Notes() []string { return s.notes }

// Stream is Build for an open loop, with the same requests; nil for any other Spec.
func (s Spec) Stream() (*Stream, error) {
	p, err := s.plan()
	if err != nil || s.Rate == "" || s.Users > 0 || s.Concurrency > 0 {
		return nil, err
	}
	out := &Stream{Expected: p.prefixes + p.NumWarmup*p.places + p.measured}
	if p.measured == 0 {
		out.Expected += int(p.rate.Mean() * p.Duration.Seconds())
	}
	out.Requests = func(yield func(Request, error) bool) {
		out.notes = p.build(func(r Request) bool { return yield(r, nil) })
	}
	return out, nil
}

// Classify is [Workload.Classify].
func (s *Stream) Classify(classes []Class, seed uint64) {
	if len(classes) == 0 {
		return
	}
	for _, c := range classes {
		s.Priorities = s.Priorities || c.Priority != 0
	}
	requests := s.Requests
	s.Requests = func(yield func(Request, error) bool) {
		d := newDealer(classes, seed)
		for r, err := range requests {
			if err == nil {
				d.deal(&r)
			}
			if !yield(r, err) {
				break
			}
		}
		s.notes = append(s.notes, d.notes()...)
	}
}

// errEnough ends the reading of a trace whose further rows are not wanted.
var errEnough = errors.New("enough")

// StreamTrace is [ReadTrace] for an open loop that ends after duration (0: with the trace), with the same requests.
// read opens the file, gives it to its argument and returns that one's error or its own; the file is read once to see
// whether it can be streamed, and then for every run. The Stream is nil where that cannot be: the trace is not in order
// of time, its requests wait for others (conversations, waves) or share prefixes, or opt asks for a closed loop.
func StreamTrace(name string, read func(func(io.Reader) error) error, opt TraceOptions,
	duration time.Duration) (*Stream, error) {
	if opt.Concurrency > 0 {
		return nil, nil
	}
	t := tape{name, read}
	out := &Stream{}
	var first, latest, last time.Duration // last is of those that are replayed
	plain := true
	anywhere, _, err := t.each(func(x row) error { // to the end: what is wrong anywhere is an error
		if out.Expected == 0 {
			first, latest = x.at, x.at
		}
		plain = x.at >= latest && x.session == "" && len(x.hashes) == 0 && x.shared == 0 && sameWave(&x, &row{})
		if !plain {
			return errEnough
		}
		latest = x.at
		if opt.NumRequests == 0 || out.Expected < opt.NumRequests {
			out.Expected, last = out.Expected+1, x.at
			out.Priorities = out.Priorities || x.priority != 0
		}
		return nil
	})
	if err != nil || !plain || out.Expected == 0 {
		return nil, err
	}
	scale, err := opt.scale(out.Expected, last-first)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if !anywhere {
		first = 0
	}
	out.Requests = func(yield func(Request, error) bool) {
		w, tr := &Workload{}, newTrace(opt)
		_, notes, err := t.each(func(x row) error {
			x.at -= first
			w.Requests = w.Requests[:0]
			tr.add(w, &x, scale, 0)
			r := w.Requests[0]
			if duration > 0 && r.Due >= duration || !yield(r, nil) || tr.added == opt.NumRequests {
				return errEnough
			}
			return nil
		})
		if err != nil {
			yield(Request{}, err)
		}
		out.notes = append(tr.notes(), notes...)
	}
	return out, nil
}

// tape is a trace file that is read again and again.
type tape struct {
	name string
	read func(func(io.Reader) error) error
}

// each reads rows until do wants no more (errEnough). anywhere is the format's; notes say how the file ended.
func (t tape) each(do func(row) error) (anywhere bool, notes []string, err error) {
	err = t.read(func(r io.Reader) error {
		s, err := open(t.name, r)
		if err != nil {
			return err
		}
		defer s.close()
		if anywhere, err = s.read(do); errors.Is(err, errEnough) {
			err = nil
		}
		notes = s.notes()
		return err
	})
	return anywhere, notes, err
}
