package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"kvtune/harness/workload"
)

// server is a Client with a server's behaviour: serve decides how a request goes, inFlight is counted.
type server struct {
	serve func(ctx context.Context, s *stream) error

	mu       sync.Mutex
	sent     []int // indices, in order of sending
	inFlight int
	peak     int
	low      int // fewest in flight when a request was sent, that one included
}

// stream is one request on the server.
type stream struct {
	r     *workload.Request
	sent  func(time.Time)
	event func(time.Time, int)
	reply Reply
}

// tokens streams n tokens, one each gap.
func (s *stream) tokens(ctx context.Context, n int, gap time.Duration) error {
	for range n {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(gap):
			s.event(time.Now(), 1)
		}
	}
	s.reply = Reply{PromptTokens: s.r.PromptTokens(), OutputTokens: n, FinishReason: "length"}
	return nil
}

func (f *server) Send(ctx context.Context, r *workload.Request, sent func(time.Time), event func(time.Time, int)) (Reply, error) {
	f.mu.Lock()
	f.sent = append(f.sent, r.Index)
	f.inFlight++
	f.peak = max(f.peak, f.inFlight)
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.inFlight--
		f.mu.Unlock()
	}()
	s := &stream{r: r, sent: sent, event: event}
	err := f.serve(ctx, s)
	return s.reply, err
}

// steady accepts every request at once and streams its tokens 10 ms apart.
func steady(ctx context.Context, s *stream) error {
	s.sent(time.Now())
	return s.tokens(ctx, s.r.OutputTokens, 10*time.Millisecond)
}

func requests(n int, edit func(i int, r *workload.Request)) *workload.Workload {
	w := &workload.Workload{}
	for i := range n {
		r := workload.Request{
			Index: i, After: -1, Prompt: []workload.Segment{{ID: uint64(i + 1), Tokens: 8}}, OutputTokens: 4,
		}
		edit(i, &r)
		w.Requests = append(w.Requests, r)
	}
	return w
}

// every makes an open loop with a request each gap.
func every(gap time.Duration) func(int, *workload.Request) {
	return func(i int, r *workload.Request) { r.Due = time.Duration(i) * gap }
}

// do runs a workload and checks the laws that hold for every run.
func do(t *testing.T, ctx context.Context, opt Options) *Run {
	t.Helper()
	seen := make(map[int]bool)
	report := opt.OnRecord
	opt.OnRecord = func(r workload.Record) {
		if seen[r.Index] {
			t.Errorf("request %d was reported twice", r.Index)
		}
		seen[r.Index] = true
		if report != nil {
			report(r)
		}
	}
	last := Progress{}
	opt.OnProgress = func(p Progress) {
		if p.Ended != last.Ended+1 || p.Sent < p.Ended || p.Sent > p.Total || p.Failed > p.Ended || p.Elapsed < last.Elapsed {
			t.Errorf("progress %+v after %+v", p, last)
		}
		last = p
	}
	run, err := Do(ctx, opt)
	if err != nil {
		t.Fatal(err)
	}
	if run.Sent != run.OK+run.Failed+run.Cancelled || run.Sent != len(run.Records) ||
		run.Sent+run.Unsent != len(opt.Workload.Requests) || len(seen) != run.Sent || last.Ended != run.Sent {
		t.Errorf("not conserved: sent %d, ok %d, failed %d, cancelled %d, unsent %d, %d records, %d reported, %d requests",
			run.Sent, run.OK, run.Failed, run.Cancelled, run.Unsent, len(run.Records), len(seen), len(opt.Workload.Requests))
	}
	good := 0
	for i := range run.Records {
		r := &run.Records[i]
		if i > 0 && run.Records[i-1].Index >= r.Index {
			t.Errorf("record of request %d comes after that of %d", r.Index, run.Records[i-1].Index)
		}
		if r.OK() {
			good++
		}
		if r.Due != nil && r.Sent < *r.Due {
			t.Errorf("request %d was due at %v and sent at %v", r.Index, *r.Due, r.Sent)
		}
	}
	if good != run.OK {
		t.Errorf("%d records are OK, the run counts %d", good, run.OK)
	}
	return run
}

func TestOpenLoopSendsOnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := requests(50, every(7*time.Millisecond))
		run := do(t, t.Context(), Options{Client: &server{serve: steady}, Workload: w})
		if run.OK != 50 || run.Interrupted || run.Lag.Count() != 50 || run.Lag.Max() != 0 {
			t.Errorf("%d ok, interrupted %v, %d lags up to %v", run.OK, run.Interrupted, run.Lag.Count(), run.Lag.Max())
		}
		for i, r := range run.Records {
			if *r.Due != w.Requests[i].Due || r.Sent != *r.Due || r.End() != *r.Due+40*time.Millisecond || r.OutputTokens != 4 {
				t.Fatalf("request %d: due %v, sent %v, end %v, %d tokens", i, *r.Due, r.Sent, r.End(), r.OutputTokens)
			}
		}
	})
}

// A client that cannot get its request out for a second must not hide that second.
func TestStallIsChargedFromDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stalled := func(ctx context.Context, s *stream) error {
			if now := s.r.Due; now >= 100*time.Millisecond && now < 1100*time.Millisecond {
				time.Sleep(1100*time.Millisecond - now) // the machine stood still until 1.1 s
			}
			return steady(ctx, s)
		}
		run := do(t, t.Context(), Options{Client: &server{serve: stalled}, Workload: requests(40, every(50*time.Millisecond))})
		worst := time.Duration(0)
		for i := range run.Records {
			r := &run.Records[i]
			worst = max(worst, r.Sent+r.Tokens[0].At-r.Start())
			if r.Tokens[0].At != 10*time.Millisecond {
				t.Errorf("request %d: %v from the send, want 10 ms", r.Index, r.Tokens[0].At)
			}
		}
		if worst != 1010*time.Millisecond || run.Lag.Max() < time.Second {
			t.Errorf("worst first token %v after it was due, worst lag %v: want 1.01 s and 1 s", worst, run.Lag.Max())
		}
	})
}

func TestSlowStreamDelaysNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := func(ctx context.Context, s *stream) error {
			s.sent(time.Now())
			if s.r.Index == 0 {
				return s.tokens(ctx, 4, time.Hour)
			}
			return s.tokens(ctx, 4, time.Millisecond)
		}
		run := do(t, t.Context(), Options{
			Client: &server{serve: slow}, Workload: requests(20, every(time.Millisecond)), IdleTimeout: -1,
			OnRecord: func(workload.Record) { time.Sleep(time.Minute) }, // nor does a slow disk
		})
		for _, r := range run.Records[1:] {
			if r.Sent != *r.Due || r.End() != *r.Due+4*time.Millisecond {
				t.Errorf("request %d: due %v, sent %v, end %v", r.Index, *r.Due, r.Sent, r.End())
			}
		}
		if run.OK != 20 || run.Records[0].End() != 4*time.Hour {
			t.Errorf("%d ok, the slow one ended at %v", run.OK, run.Records[0].End())
		}
	})
}

func TestClosedLoopKeepsItsNumberInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := requests(100, func(i int, r *workload.Request) { r.OutputTokens = 1 + i*7%13 })
		w.Concurrency = 8
		f := &server{low: 100}
		f.serve = func(ctx context.Context, s *stream) error {
			synctest.Wait() // every slot that is free now has been taken
			f.mu.Lock()
			if len(f.sent) < 100 {
				f.low = min(f.low, f.inFlight)
			}
			f.mu.Unlock()
			return steady(ctx, s)
		}
		f.serve = oneAtATime(f.serve)
		run := do(t, t.Context(), Options{Client: f, Workload: w})
		if run.OK != 100 || f.peak != 8 || f.low != 8 {
			t.Errorf("%d ok, %d to %d in flight, want 8", run.OK, f.low, f.peak)
		}
		if run.Lag.Count() != 0 || run.Records[3].Due != nil {
			t.Error("nothing is due in a closed loop, yet there is a lag or a due moment")
		}
		for i, index := range f.sent[8:] {
			if index < i { // order of index but for those that are in flight together
				t.Errorf("request %d was sent at place %d", index, i+8)
			}
		}
	})
}

// oneAtATime lets only one request at once into synctest.Wait.
func oneAtATime(serve func(context.Context, *stream) error) func(context.Context, *stream) error {
	return serve
}
