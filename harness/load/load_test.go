package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
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

func (f *server) Prepare(r *workload.Request) Send {
	return func(ctx context.Context, sent func(time.Time), event func(time.Time, int)) (Reply, error) {
		return f.send(ctx, &stream{r: r, sent: sent, event: event})
	}
}

func (f *server) send(ctx context.Context, s *stream) (Reply, error) {
	f.mu.Lock()
	f.sent = append(f.sent, s.r.Index)
	f.inFlight++
	f.peak = max(f.peak, f.inFlight)
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.inFlight--
		f.mu.Unlock()
	}()
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
	opt.sleep = func(t time.Time) { time.Sleep(time.Until(t)) } // the kernel's timers know nothing of synctest
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
		run := do(t, t.Context(), Options{Client: &server{serve: stalled},
			Workload: requests(40, every(50*time.Millisecond))})
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
		f := &server{serve: steady}
		run := do(t, t.Context(), Options{Client: f, Workload: w})
		if run.OK != 100 || f.peak != 8 {
			t.Errorf("%d ok, up to %d in flight, want 8", run.OK, f.peak)
		}
		if run.Lag.Count() != 0 || run.Records[3].Due != nil {
			t.Error("nothing is due in a closed loop, yet there is a lag or a due moment")
		}
		for _, at := range run.Records { // from first to last send the loop is full
			n := 0
			for _, r := range run.Records {
				if r.Sent <= at.Sent && at.Sent < r.End() {
					n++
				}
			}
			if n != 8 {
				t.Errorf("%d requests in flight at %v, want 8", n, at.Sent)
			}
		}
		for i, r := range run.Records[1:] {
			if r.Sent < run.Records[i].Sent {
				t.Errorf("request %d was sent at %v, before the one in front of it", r.Index, r.Sent)
			}
		}
	})
}

func TestWavesAndConversations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := requests(6, func(i int, r *workload.Request) {
			r.Wave = i / 3
			if i%3 > 0 {
				r.After, r.Think = i-1, 2*time.Second
			}
		})
		run := do(t, t.Context(), Options{Client: &server{serve: steady}, Workload: w})
		for i, want := range []time.Duration{0, 2040, 4080, 4120, 6160, 8200} {
			if got := run.Records[i].Sent; got != want*time.Millisecond || *run.Records[i].Due != got {
				t.Errorf("request %d was sent at %v, want %v", i, got, want*time.Millisecond)
			}
		}
	})
}

// A failed request must not keep back what waits for it, nor be taken for a dead endpoint when the server has answered.
func TestFailureReleasesDependents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refuse := func(ctx context.Context, s *stream) error {
			if s.r.Index%2 == 0 {
				s.sent(time.Now())
				return errors.New("prompt too long")
			}
			return steady(ctx, s)
		}
		for _, concurrency := range []int{0, 2} {
			w := requests(40, func(i int, r *workload.Request) {
				r.Wave = i / 20
				if i%4 > 0 {
					r.After = i - 1
				}
			})
			w.Concurrency = concurrency
			run := do(t, t.Context(), Options{Client: &server{serve: refuse}, Workload: w})
			if run.OK != 20 || run.Failed != 20 || run.Interrupted || run.Records[0].Error != "prompt too long" {
				t.Errorf("concurrency %d: %d ok, %d failed (%s), interrupted %v (%s), want 20 and 20", concurrency, run.OK,
					run.Failed, run.Records[0].Error, run.Interrupted, run.Why)
			}
		}
	})
}

func TestWhatCountsAsFailed(t *testing.T) {
	for _, c := range []struct {
		name  string
		serve func(ctx context.Context, s *stream) error
		want  string
	}{
		{"no token", func(ctx context.Context, s *stream) error { return s.tokens(ctx, 0, 0) },
			"the stream ended without a token"},
		{"abort", func(ctx context.Context, s *stream) error {
			s.event(time.Now(), 1)
			s.reply.FinishReason = "abort"
			return nil
		}, "aborted by the server"},
		{"error in the stream", func(ctx context.Context, s *stream) error {
			s.event(time.Now(), 3)
			return errors.New("engine died")
		}, "engine died"},
		{"stalled stream", func(ctx context.Context, s *stream) error { return s.tokens(ctx, 3, time.Minute+1) },
			"nothing came for 1m0s (idle timeout)"},
		{"endless stream", func(ctx context.Context, s *stream) error { return s.tokens(ctx, 1e6, time.Minute-1) },
			"not finished after 1h0m0s (request timeout)"},
	} {
		synctest.Test(t, func(t *testing.T) {
			run := do(t, t.Context(), Options{
				Client: &server{serve: c.serve}, Workload: requests(1, every(0)), IdleTimeout: time.Minute,
				RequestTimeout: time.Hour,
			})
			if run.Failed != 1 || run.Records[0].Error != c.want {
				t.Errorf("%s: %d failed with %q, want %q", c.name, run.Failed, run.Records[0].Error, c.want)
			}
		})
	}
}

func TestCancelKeepsWhatWasMeasured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		// At 1.005 s: 10 requests have been sent, the one at 1 s not having a token yet.
		time.AfterFunc(1005*time.Millisecond, cancel)
		slow := func(ctx context.Context, s *stream) error {
			s.sent(time.Now())
			return s.tokens(ctx, 4, 50*time.Millisecond)
		}
		run := do(t, ctx, Options{Client: &server{serve: slow}, Workload: requests(100, every(100*time.Millisecond))})
		if !run.Interrupted || run.Why != "interrupted" || run.OK != 9 || run.Cancelled != 2 || run.Unsent != 89 {
			t.Errorf("interrupted %v (%s), %d ok, %d cancelled, %d unsent: want 9, 2, 89", run.Interrupted, run.Why, run.OK,
				run.Cancelled, run.Unsent)
		}
		if r := run.Records[9]; len(r.Tokens) != 2 || r.OutputTokens != 2 || r.Error != "cancelled: interrupted" {
			t.Errorf("request 9 was cut off after two tokens, its record says %d and %q", len(r.Tokens), r.Error)
		}
		if got := time.Since(run.Started); got != 1005*time.Millisecond {
			t.Errorf("the run ended %v after its start, want at once: 1.005 s", got)
		}
	})
}

func TestCancelBeforeStart(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if run := do(t, ctx, Options{Client: &server{serve: steady}, Workload: requests(3, every(0))}); run.Unsent != 3 ||
		!run.Interrupted {
		t.Errorf("%d unsent, interrupted %v: want 3, true", run.Unsent, run.Interrupted)
	}
}

var refused = &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}

// dies serves until a moment and then is gone: streams are cut, and nobody answers.
func dies(at time.Duration) func(ctx context.Context, s *stream) error {
	start := time.Now()
	return func(ctx context.Context, s *stream) error {
		left := at - time.Since(start)
		if left <= 0 {
			return fmt.Errorf("no answer: %w", refused)
		}
		s.sent(time.Now())
		alive, kill := context.WithTimeout(ctx, left)
		defer kill()
		if err := s.tokens(alive, s.r.OutputTokens, 10*time.Millisecond); err != nil {
			return fmt.Errorf("stream cut off: %w", io.ErrUnexpectedEOF)
		}
		return nil
	}
}

func TestDeadEndpointEndsTheRun(t *testing.T) {
	for _, c := range []struct {
		name        string
		concurrency int
		gap         time.Duration
		dies        time.Duration
		requests    int
		ok, most    int // requests that succeed, and that are sent at most
	}{
		// 4 in flight are cut, then 5 find nobody; each slot may just have been filled again.
		{"closed loop", 4, 0, 105 * time.Millisecond, 1000, 8, 8 + 4 + 5 + 4},
		// Requests 18 to 21 are cut, 22 to 26 find nobody.
		{"open loop", 0, 10 * time.Millisecond, 215 * time.Millisecond, 1000, 18, 18 + 4 + 5},
		// Nothing is left to send when it dies.
		{"at the end", 4, 0, 105 * time.Millisecond, 12, 8, 12},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := requests(c.requests, every(c.gap))
			w.Concurrency = c.concurrency
			run := do(t, t.Context(), Options{Client: &server{serve: dies(c.dies)}, Workload: w})
			if !run.Interrupted || run.OK != c.ok || run.Sent > c.most {
				t.Errorf("%s: interrupted %v, %d ok, %d sent: want true, %d, at most %d", c.name, run.Interrupted, run.OK, run.Sent,
					c.ok, c.most)
			}
			if !strings.HasPrefix(run.Why, "the endpoint is dead: ") {
				t.Errorf("%s: why is %q", c.name, run.Why)
			}
		})
	}
}

// A gateway that restarts cuts many streams at once and is back at once: the run goes on.
func TestCutStreamsAreNotADeadEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		serve := func(ctx context.Context, s *stream) error {
			if time.Since(start) < 100*time.Millisecond {
				s.sent(time.Now())
				time.Sleep(100*time.Millisecond - time.Since(start))
				return io.ErrUnexpectedEOF
			}
			return steady(ctx, s)
		}
		w := requests(200, every(0))
		w.Concurrency = 64
		run := do(t, t.Context(), Options{Client: &server{serve: serve}, Workload: w})
		if run.Interrupted || run.Failed != 64 || run.OK != 136 {
			t.Errorf("interrupted %v (%s), %d failed, %d ok: want 64 and 136", run.Interrupted, run.Why, run.Failed, run.OK)
		}
	})
}

// builder is a server whose requests take long to build.
type builder struct{ *server }

func (b builder) Prepare(r *workload.Request) Send {
	time.Sleep(time.Millisecond)
	return b.server.Prepare(r)
}

func TestRequestsAreBuiltBeforeTheyAreDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := requests(20, func(i int, r *workload.Request) { r.Due = time.Duration(i+1) * 5 * time.Millisecond })
		run := do(t, t.Context(), Options{Client: builder{&server{serve: steady}}, Workload: w})
		if run.Lag.Count() != 20 || run.Lag.Max() != 0 {
			t.Errorf("%d requests, up to %v late", run.Lag.Count(), run.Lag.Max())
		}
	})
}

func TestRecordsNameSharedBlocks(t *testing.T) {
	w, err := workload.Spec{C: 5, M: 3, B: 2, BlockSize: 16, Type: "decode", Prefix: "own", NumMeasurements: 2}.Build()
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		run := do(t, t.Context(), Options{Client: &server{serve: steady}, Workload: w, HashBlock: 16})
		for i, want := range [][]uint64{{1, 2, 3}, {4, 5, 6}, {1, 2, 3}, {4, 5, 6}, {1, 2, 3}, {4, 5, 6}} {
			if r := run.Records[i]; fmt.Sprint(r.PrefixHashes) != fmt.Sprint(want) || r.HashBlock != 16 ||
				r.SharedPrefixTokens != 48 {
				t.Errorf("request %d: blocks %v of %d tokens over %d tokens, want %v", i, r.PrefixHashes, r.HashBlock,
					r.SharedPrefixTokens, want)
			}
		}
	})
}

func TestDoRefuses(t *testing.T) {
	for name, opt := range map[string]Options{
		"no client":   {Workload: requests(1, every(0))},
		"no workload": {Client: &server{serve: steady}},
		"no requests": {Client: &server{serve: steady}, Workload: &workload.Workload{}},
		"waits for itself": {Client: &server{serve: steady}, Workload: requests(1, func(_ int, r *workload.Request) {
			r.After = 0
		})},
	} {
		if _, err := Do(t.Context(), opt); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
