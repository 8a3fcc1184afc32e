package vllm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"kvtune/harness"
)

// roundTrip is a server in memory, for tests in virtual time.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func answer(body string) *http.Response {
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}
}

// inMemory connects to a server whose /metrics page is made by metrics.
func inMemory(t *testing.T, metrics func(ctx context.Context) (string, error)) *Server {
	t.Helper()
	healthy := vllmPages(nil)
	connected := false
	s, err := Connect(t.Context(), "fake:1", Options{HTTPClient: &http.Client{Transport: roundTrip(
		func(r *http.Request) (*http.Response, error) {
			if r.URL.Path == "/metrics" && connected {
				page, err := metrics(r.Context())
				if err != nil {
					return nil, err
				}
				return answer(page), nil
			}
			return answer(healthy[r.URL.Path]), nil
		})}})
	if err != nil {
		t.Fatal(err)
	}
	connected = true
	return s
}

func tokensPage(n int) string {
	return fmt.Sprintf("# TYPE vllm:generation_tokens_total counter\nvllm:generation_tokens_total %d\n"+
		"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 2\n", n)
}

func TestWatchKeepsItsBeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reads := 0
		s := inMemory(t, func(context.Context) (string, error) {
			reads++
			time.Sleep(10 * time.Millisecond) // the answer's way
			return tokensPage(100 * reads), nil
		})
		w := s.Watch(t.Context(), time.Second, time.Now())
		time.Sleep(3500 * time.Millisecond)
		seen := w.Stop()
		var at []time.Duration
		var values []float64
		for _, p := range seen.Series {
			if p.Metric == "vllm:generation_tokens_total" {
				at, values = append(at, p.T), append(values, p.Value)
			}
		}
		want := []time.Duration{10, 1010, 2010, 3010, 3520}
		if len(at) != len(want) {
			t.Fatalf("readings at %v", at)
		}
		for i := range at {
			if at[i] != want[i]*time.Millisecond || values[i] != float64(100*(i+1)) {
				t.Errorf("reading %d at %v is %v; want %v ms and %d", i, at[i], values[i], want[i], 100*(i+1))
			}
		}
		if len(seen.Series) != 3*len(want)-1 || // two metrics, and a rate from the second reading on
			seen.Missed != 0 || seen.Err != nil {
			t.Errorf("%d points, missed %d, %v", len(seen.Series), seen.Missed, seen.Err)
		}
		if seen.Delta["vllm:generation_tokens_total"] != 400 {
			t.Errorf("delta %v", seen.Delta)
		}
	})
}

// A server that dies during the run: what was read before stays, and the end says that it is old.
func TestWatchSurvivesTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reads := 0
		dead := errors.New("connection refused")
		s := inMemory(t, func(context.Context) (string, error) {
			reads++
			if reads > 2 {
				return "", dead
			}
			return tokensPage(reads), nil
		})
		w := s.Watch(t.Context(), time.Second, time.Now())
		time.Sleep(2500 * time.Millisecond)
		seen := w.Stop()
		if !errors.Is(seen.Err, dead) || seen.Missed != 2 || seen.After["vllm:generation_tokens_total"] != 2 ||
			seen.Before["vllm:generation_tokens_total"] != 1 || len(seen.Series) != 5 { // twice two metrics, and one rate
			t.Errorf("%+v", seen)
		}
	})
}

// A reading that hangs is given up, and counts as missed; the run's end does not wait for the watch's context.
func TestWatchGivesUpOnAStalledServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stall := true
		s := inMemory(t, func(ctx context.Context) (string, error) {
			if stall {
				<-ctx.Done()
				return "", ctx.Err()
			}
			return tokensPage(7), nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		begin := time.Now()
		w := s.Watch(ctx, time.Minute, begin)
		if waited := time.Since(begin); waited != scrapeTimeout || w.seen.Missed != 1 {
			t.Errorf("gave up after %v, missed %d", waited, w.seen.Missed)
		}
		cancel()
		stall = false
		if seen := w.Stop(); seen.Err != nil || seen.After["vllm:generation_tokens_total"] != 7 || seen.Missed != 1 {
			t.Errorf("%+v", seen)
		}
	})
}

func TestRates(t *testing.T) {
	at := func(s int, counters Counters) reading {
		return reading{at: time.Unix(int64(100+s), 0), counters: counters}
	}
	before := at(0, Counters{harness.CounterPromptTokens: 100, harness.CounterGenerationTokens: 50})
	for _, c := range []struct {
		now  reading
		want map[string]float64
	}{
		{at(2, Counters{harness.CounterPromptTokens: 300, harness.CounterGenerationTokens: 60}),
			map[string]float64{harness.SeriesPromptRate: 100, harness.SeriesOutputRate: 5}},
		// A counter that began again at 0 has moved by what it shows.
		{at(2, Counters{harness.CounterPromptTokens: 40, harness.CounterGenerationTokens: 50}),
			map[string]float64{harness.SeriesPromptRate: 20, harness.SeriesOutputRate: 0}},
		{at(0, Counters{harness.CounterPromptTokens: 300}), nil},
	} {
		got := map[string]float64{}
		for _, s := range rates(before, c.now) {
			got[s.Metric] = s.Value
		}
		if len(got) != len(c.want) {
			t.Errorf("%v, want %v", got, c.want)
		}
		for name, want := range c.want {
			if got[name] != want {
				t.Errorf("%s: %v, want %v", name, got[name], want)
			}
		}
	}
	if got := rates(reading{}, before); got != nil {
		t.Errorf("of one reading: %v", got)
	}
}
