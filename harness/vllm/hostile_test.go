package vllm

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime/metrics"
	"strings"
	"testing"
	"time"

	"kvtune/harness/load"
	"kvtune/harness/workload"
)

// endless gives text without end.
type endless struct{ text string }

func (e endless) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		n += copy(p[n:], e.text)
	}
	return n, nil
}

// flood writes up to 1 GiB to a hijacked connection behind a head, until the other side has had enough.
func flood(head, text string) completions {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, head)
		_, _ = io.Copy(conn, io.LimitReader(endless{text: text}, 1<<30))
	}
}

// allocated is how many bytes this process has ever allocated: a bound on what it held.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// bomb is 8 MiB of an event stream as gzip has it.
func bomb() []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = io.Copy(z, io.LimitReader(endless{text: "data: " + strings.Repeat("x", 994)}, 8<<20))
	_ = z.Close()
	return b.Bytes()
}

// A server that sends without end costs bounded memory and ends in an error that says what came.
func TestHostileServer(t *testing.T) {
	const stream = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
	packed := bomb()
	for _, c := range []struct {
		name string
		h    completions
		want string
	}{
		{"one event of 1 GB", flood(stream+"\r\ndata: ", strings.Repeat("x", 1<<16)), "streamed event too large"},
		{"an event of endless lines", flood(stream+"\r\n", "data: "+strings.Repeat("x", 1017)+"\n"),
			"streamed event too large"},
		{"endless headers", flood(stream, "X-More: "+strings.Repeat("x", 1<<10)+"\r\n"), "header"},
		{"one endless header line", flood(stream+"X-More: ", strings.Repeat("x", 1<<16)), "header"},
		{"an endless error", flood("HTTP/1.1 500 No\r\n\r\n", strings.Repeat("no ", 1000)),
			"the server failed (status 500): no no"},
		{"tokens without end", flood(stream+"\r\n", ev("", 7)), "the server does not end the stream"},
		{"a gzip bomb", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(packed)
		}, `content coding "gzip"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := client(t, c.h)
			before := allocated()
			got := send(t, t.Context(), cl, request(5, 3))
			if got.err == nil || !strings.Contains(got.err.Error(), c.want) || len(got.err.Error()) > 4096 {
				t.Errorf("%.5000v; want %q", got.err, c.want)
			}
			// Of an error's body 64 MiB are read, by a buffer that doubles.
			if took := (allocated() - before) >> 20; took > 500 {
				t.Errorf("%d MiB were allocated", took)
			}
		})
	}
}

// The pages that are read whole are bounded, too, when a server is looked at and while it is watched.
func TestHostilePages(t *testing.T) {
	for _, path := range []string{"/version", "/v1/models", "/metrics"} {
		t.Run(path, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == path {
					_, _ = io.Copy(w, io.LimitReader(endless{text: strings.Repeat("# x\n", 1000)}, 1<<30))
					return
				}
				vllmPages(nil).ServeHTTP(w, r)
			}))
			defer s.Close()
			before := allocated()
			_, err := Connect(t.Context(), s.URL, Options{})
			if err == nil || !strings.Contains(err.Error(), "is over 67108864 bytes") {
				t.Errorf("%v", err)
			}
			if took := (allocated() - before) >> 20; took > 500 {
				t.Errorf("%d MiB were allocated", took)
			}
		})
	}
}

// lying answers with a stream of three tokens whose n-th answer is told its number, to put what it likes into it.
func lying(answer func(n int) []string) completions {
	n := 0
	return func(w http.ResponseWriter, r *http.Request) {
		n++
		streams(answer(n)...)(w, r)
	}
}

// A server that contradicts itself is believed in nothing that can be known better, and is told.
func TestLyingServer(t *testing.T) {
	named := func(id string, created int, event string) string {
		return strings.NewReplacer(`"id":"cmpl-1"`, fmt.Sprintf(`"id":%q`, id), `"created":1`,
			fmt.Sprintf(`"created":%d`, created)).
			Replace(event)
	}
	honest := func(n int) []string {
		id := fmt.Sprint("cmpl-", n)
		return []string{named(id, 100, ev("", 7)), named(id, 100, ev("", 8)), named(id, 100, ev("length", 9)),
			named(id, 100, usageEvent(5, 3, "")), done}
	}
	with := func(at int, event func(id string) string) func(int) []string {
		return func(n int) []string {
			pieces := honest(n)
			pieces[at] = event(fmt.Sprint("cmpl-", n))
			return pieces
		}
	}
	for _, c := range []struct {
		name   string
		answer func(n int) []string
		want   string // "" for no doubt
	}{
		{"honest", honest, ""},
		{"usage", with(3, func(id string) string { return named(id, 100, usageEvent(5, 3000, "")) }),
			"4 of 4 answers have another number of completion tokens in their usage"},
		{"prompt", with(3, func(id string) string { return named(id, 100, usageEvent(6, 3, "")) }),
			"4 of 4 answers count another number of prompt tokens"},
		{"time", with(2, func(id string) string { return named(id, 99, ev("length", 9)) }),
			"4 of 4 answers have events that were created before earlier ones"},
		{"another's event", with(1, func(string) string { return named("other", 100, ev("", 8)) }),
			"4 of 4 answers have events under the id of another answer"},
		{"ids twice", func(n int) []string { return honest(n / 2) }, // 0, 1, 1, 2
			"1 of 4 answers have an id that another answer had before"},
		{"surplus", with(1, func(id string) string { return named(id, 100, ev("", 8, 9, 10)) }),
			"4 of 4 answers hold more tokens than were asked for"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := client(t, lying(c.answer))
			w := &workload.Workload{Concurrency: 1}
			for i := range 4 {
				r := *request(5, 3)
				r.Index = i
				w.Requests = append(w.Requests, r)
			}
			run, err := load.Do(t.Context(), load.Options{Client: cl, Workload: w})
			if err != nil || run.OK != 4 {
				t.Fatalf("%+v, %v", run, err)
			}
			doubts := strings.Join(cl.Doubts(), "\n")
			if (c.want == "") != (doubts == "") || !strings.Contains(doubts, c.want) {
				t.Errorf("doubts %q, want %q", doubts, c.want)
			}
			for i := range run.Records {
				r := &run.Records[i]
				tokens := 0
				for k, e := range r.Tokens {
					tokens += e.Tokens
					if k > 0 && e.At < r.Tokens[k-1].At || e.At > time.Minute {
						t.Errorf("times %v", r.Tokens)
					}
				}
				if r.OutputTokens != tokens {
					t.Errorf("%d tokens are recorded, %d came", r.OutputTokens, tokens)
				}
			}
		})
	}
}
