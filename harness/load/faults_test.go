package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"
)

// busy is a server's answer that asks for patience.
type busy struct {
	wait  time.Duration
	again bool
}

func (busy) Error() string                       { return "busy" }
func (b busy) RetryAfter() (time.Duration, bool) { return b.wait, b.again }
func refusal(b busy) error                       { return fmt.Errorf("no: %w", b) }

func TestRetriesOnlyWhenAskedAndCounted(t *testing.T) {
	for _, c := range []struct {
		name    string
		retries int
		fails   int // how many attempts fail
		err     error
		partial bool // fails after a token
		want    int
		ok      bool
		first   time.Duration // of the first token, from the first send
	}{
		{"not asked", 0, 1, refusal(busy{0, true}), false, 0, false, 0},
		{"as the server says", 3, 2, refusal(busy{2 * time.Second, true}), false, 2, true, 4010 * time.Millisecond},
		{"by our own clock", 3, 3, refusal(busy{0, true}), false, 3, true, 710 * time.Millisecond}, // 0.1 + 0.2 + 0.4 s
		{"too often", 2, 9, refusal(busy{0, true}), false, 2, false, 0},
		{"no connection", 1, 1, refused, false, 1, true, 110 * time.Millisecond},
		{"a refusal for good", 3, 1, refusal(busy{0, false}), false, 0, false, 0},
		{"another error", 3, 1, errors.New("prompt too long"), false, 0, false, 0},
		{"tokens came", 3, 1, io.ErrUnexpectedEOF, true, 0, false, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			attempts := 0
			serve := func(ctx context.Context, s *stream) error {
				s.sent(time.Now())
				if attempts++; attempts <= c.fails {
					if c.partial {
						s.event(time.Now(), 1)
					}
					return c.err
				}
				return s.tokens(ctx, 2, 10*time.Millisecond)
			}
			run := do(t, t.Context(), Options{Client: &server{serve: serve}, Workload: requests(1, every(0)),
				Retries: c.retries})
			r := run.Records[0]
			if r.Retries != c.want || attempts != c.want+1 || r.OK() != c.ok || run.Retries != c.want ||
				(run.Retried == 1) != (c.want > 0) {
				t.Errorf("%s: %d retries of %d attempts, ok %v (%s), the run counts %d of %d", c.name, r.Retries, attempts, r.OK(),
					r.Error, run.Retries, run.Retried)
			}
			if c.ok && (r.Sent != 0 || r.Tokens[0].At != c.first) {
				t.Errorf("%s: sent %v, first token %v later, want %v", c.name, r.Sent, r.Tokens[0].At, c.first)
			}
		})
	}
}

func TestTimeouts(t *testing.T) {
	stream := func(first, gap time.Duration) func(ctx context.Context, s *stream) error {
		return func(ctx context.Context, s *stream) error {
			s.sent(time.Now())
			if err := s.tokens(ctx, 1, first); err != nil {
				return err
			}
			return s.tokens(ctx, 3, gap)
		}
	}
	const first, idle = time.Minute, time.Second
	for _, c := range []struct {
		first, gap time.Duration
		want       string
		end        time.Duration
	}{
		{first - 1, idle - 1, "", 0},
		{first + 1, 0, "no token for 1m0s (first-token timeout)", first},
		{time.Millisecond, idle + 1, "nothing came for 1s (idle timeout)", idle + time.Millisecond},
		{first - 1, idle + 1, "nothing came for 1s (idle timeout)", first - 1 + idle},
	} {
		synctest.Test(t, func(t *testing.T) {
			run := do(t, t.Context(), Options{
				Client: &server{serve: stream(c.first, c.gap)}, Workload: requests(1, every(0)), IdleTimeout: idle,
				FirstTokenTimeout: first,
			})
			if r := run.Records[0]; r.Error != c.want || c.end > 0 && time.Since(run.Started) != c.end {
				t.Errorf("first token after %v, then gaps of %v: %q after %v, want %q after %v", c.first, c.gap, r.Error,
					time.Since(run.Started), c.want, c.end)
			}
		})
	}
}

func TestTooManyInFlight(t *testing.T) {
	w := requests(300, every(0))
	w.Concurrency = 200
	var limit *LimitError
	_, err := Do(t.Context(), Options{Client: &server{serve: steady}, Workload: w, MaxInFlight: 150})
	if !errors.As(err, &limit) ||
		limit.Needs != 200 || limit.Has != 150 || !strings.Contains(err.Error(), "ulimit -n") {
		t.Errorf("closed loop: %v", err)
	}
	if _, err := Do(t.Context(), Options{Client: &server{serve: steady}, Workload: requests(300, every(0)),
		MaxInFlight: 150}); !errors.As(err, &limit) {
		t.Errorf("300 at once: %v", err)
	}
	synctest.Test(t, func(t *testing.T) {
		slow := func(ctx context.Context, s *stream) error {
			s.sent(time.Now())
			return s.tokens(ctx, 1, time.Hour)
		}
		run := do(t, t.Context(), Options{Client: &server{serve: slow}, Workload: requests(300, every(time.Second)),
			MaxInFlight: 150, IdleTimeout: -1})
		if !run.Interrupted || run.Sent != 150 || !strings.Contains(run.Why, "150 connections open") {
			t.Errorf("open loop: interrupted %v after %d: %s", run.Interrupted, run.Sent, run.Why)
		}
	})
}

// A file too many is not a dead endpoint.
func TestOutOfFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		none := func(context.Context, *stream) error {
			return fmt.Errorf("no answer: %w", &net.OpError{Op: "dial", Err: syscall.EMFILE})
		}
		run := do(t, t.Context(), Options{Client: &server{serve: none}, Workload: requests(9, every(time.Second))})
		if !run.Interrupted || run.Sent != 1 || !strings.Contains(run.Why, "ulimit -n") {
			t.Errorf("interrupted %v after %d: %s", run.Interrupted, run.Sent, run.Why)
		}
	})
}

// stepped is the same moment on a wall clock that somebody has moved. It rests on the layout of time.Time: a bit for
// "has a monotonic reading", 33 bits of seconds since 1885 and 30 bits of nanoseconds; then the monotonic reading.
func stepped(t time.Time, by time.Duration) time.Time {
	wall := (*uint64)(unsafe.Pointer(&t))
	*wall += uint64(int64(by/time.Second)) << 30
	return t
}

// Somebody sets the machine's clock while a run goes on: no latency may move.
func TestClockStep(t *testing.T) {
	now := time.Now()
	if moved := stepped(now, -time.Hour); now.Unix()-moved.Unix() != 3600 || moved.Sub(now) != 0 {
		t.Fatalf("time.Time has another layout: %v became %v", now, moved)
	}
	serve := func(ctx context.Context, s *stream) error {
		s.sent(stepped(time.Now(), time.Hour))
		for i := range 4 {
			time.Sleep(2 * time.Millisecond)
			s.event(stepped(time.Now(), time.Duration(i-2)*time.Hour), 1)
		}
		s.reply = Reply{OutputTokens: 4, FinishReason: "length"}
		return nil
	}
	run, err := Do(t.Context(), Options{Client: &server{serve: serve}, Workload: requests(3, every(3*time.Millisecond))})
	if err != nil || run.OK != 3 {
		t.Fatalf("%+v, %v", run, err)
	}
	for _, r := range run.Records {
		if r.Sent < *r.Due || r.End() > time.Minute || r.Tokens[3].At < 8*time.Millisecond {
			t.Errorf("request %d: due %v, sent %v, tokens at %v", r.Index, *r.Due, r.Sent, r.Tokens)
		}
	}
	if run.Lag.Overflow() > 0 || run.Lag.Max() > time.Minute {
		t.Errorf("lag up to %v, %d below 0 or above an hour", run.Lag.Max(), run.Lag.Overflow())
	}
}

// Streams die at random under load, before or after tokens, some at the connection; the run is cut off in the end. do
// checks that every request is accounted for.
func TestRandomDeathsAreAccountedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var died atomic.Int64
		serve := func(ctx context.Context, s *stream) error {
			n := uint64(s.r.Index) * 0x9e3779b97f4a7c15 >> 32
			if n%100 == 0 { // 1 %
				died.Add(1)
				if n%3 == 0 {
					return refused
				}
				s.sent(time.Now())
				if err := s.tokens(ctx, int(n%5), 10*time.Millisecond); err != nil {
					return err
				}
				return io.ErrUnexpectedEOF
			}
			return steady(ctx, s)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 19_999_500*time.Microsecond)
		defer cancel()
		run := do(t, ctx, Options{Client: &server{serve: serve}, Workload: requests(25_000, every(time.Millisecond))})
		if died.Load() < 150 || run.Failed < int(died.Load())-5 || run.Failed > int(died.Load()) || run.Cancelled == 0 ||
			run.Unsent != 5000 {
			t.Errorf("%d died: %d failed, %d cancelled, %d unsent", died.Load(), run.Failed, run.Cancelled, run.Unsent)
		}
	})
}

func TestClosedLoopThinksAndStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := requests(100, every(0))
		w.Concurrency, w.Think, w.Duration = 2, 60*time.Millisecond, time.Second // 40 ms each, every 100 ms
		run := do(t, t.Context(), Options{Client: &server{serve: steady}, Workload: w})
		if run.OK != 20 || run.Unsent != 80 || run.Interrupted {
			t.Fatalf("%d ok, %d unsent, interrupted %v: want 20, 80", run.OK, run.Unsent, run.Interrupted)
		}
		for i, r := range run.Records {
			if want := time.Duration(i/2) * 100 * time.Millisecond; r.Sent != want || *r.Due != want {
				t.Errorf("request %d due %v, sent %v, want %v", i, *r.Due, r.Sent, want)
			}
		}
	})
}

// The pacer against the real clock: nobody is woken early, whatever the order in which they came.
func TestPacerWakesNobodyEarly(t *testing.T) {
	p, err := newPacer()
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	early := make(chan time.Duration, 200)
	for i := range 200 {
		at := start.Add(time.Duration(i*7919%200) * 100 * time.Microsecond)
		go func() {
			p.wait(at)
			early <- time.Until(at)
		}()
	}
	for range 200 {
		if d := <-early; d > 0 {
			t.Errorf("woken %v early", d)
		}
	}
	p.close()
	p.wait(time.Now().Add(time.Millisecond)) // still waits
}

func TestLimited(t *testing.T) {
	full, fine := 0.95, 0.5
	synctest.Test(t, func(t *testing.T) {
		run := do(t, t.Context(), Options{Client: &server{serve: steady}, Workload: requests(50, every(time.Millisecond))})
		run.CPU = &fine
		if why := run.Limited(); why != "" {
			t.Errorf("limited: %s", why)
		}
		run.CPU = &full
		if why := run.Limited(); !strings.Contains(why, "95%") {
			t.Errorf("limited: %q", why)
		}
		run.CPU = nil
		for range 5 {
			run.Lag.Record(6 * time.Millisecond)
		}
		if why := run.Limited(); !strings.Contains(why, "6.0 ms late (p99), above 5ms") {
			t.Errorf("limited: %q", why)
		}
		for i := range run.Records { // a queue before the server, beside which 6 ms are nothing
			run.Records[i].Tokens[0].At += 800 * time.Millisecond
		}
		if why := run.Limited(); why != "" {
			t.Errorf("limited: %q", why)
		}
		for range 5 {
			run.Lag.Record(20 * time.Millisecond)
		}
		if why := run.Limited(); !strings.Contains(why, "20.0 ms late (p99), above 8ms") {
			t.Errorf("limited: %q", why)
		}
	})
}
