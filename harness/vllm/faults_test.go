package vllm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kvtune/harness/load"
	"kvtune/harness/workload"
)

// What a server says about coming back is kept.
func TestRetryAfter(t *testing.T) {
	for _, c := range []struct {
		status int
		header string
		wait   time.Duration
		ok     bool
	}{
		{429, "7", 7 * time.Second, true}, {503, "", 0, true}, {503, "soon", 0, true}, {502, "-3", 0, true},
		{504, "1e9", 0, true}, {503, "Wed, 21 Oct 2015 07:28:00 GMT", 0, true}, {400, "7", 0, false}, {500, "7", 0, false},
		{401, "", 0, false},
	} {
		got := send(t, t.Context(), client(t, completions(func(w http.ResponseWriter, _ *http.Request) {
			if c.header != "" {
				w.Header().Set("Retry-After", c.header)
			}
			w.WriteHeader(c.status)
		})), request(5, 1))
		var api *APIError
		if !errors.As(got.err, &api) {
			t.Fatalf("%d: %v", c.status, got.err)
		}
		if wait, ok := api.RetryAfter(); ok != c.ok || ok && wait != c.wait {
			t.Errorf("%d, Retry-After %q: %v, %v; want %v, %v", c.status, c.header, wait, ok, c.wait, c.ok)
		}
	}
	if wait := retryAfter(time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)); wait < 59*time.Minute ||
		wait > time.Hour {
		t.Errorf("a date an hour from now is %v", wait)
	}
	if _, ok := (&APIError{Status: 503, InStream: true}).RetryAfter(); ok {
		t.Error("a stream that has begun is asked for again")
	}
}

// A server that is busy twice, through the generator: three attempts, one record.
func TestRetriesThroughTheGenerator(t *testing.T) {
	var asked atomic.Int32
	c := client(t, completions(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) <= 2 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		streams(ev("", 7), ev("length", 8), usageEvent(5, 2, ""), done)(w, r)
	}))
	run, err := load.Do(t.Context(),
		load.Options{Client: c, Retries: 3, Workload: &workload.Workload{Requests: []workload.Request{*request(5, 2)}}})
	if err != nil || run.OK != 1 || run.Retries != 2 || run.Records[0].Retries != 2 || asked.Load() != 3 {
		t.Errorf("%+v, %v, asked %d times", run, err, asked.Load())
	}
}

// One event of 100,000 bytes, written in pieces and slowly, is one event.
func TestLongEventsAndSlowLoris(t *testing.T) {
	long := strings.Replace(ev("", 7), `"text":""`, `"text":"`+strings.Repeat("x", 100_000)+`"`, 1)
	for i := range 3 {
		piece := 1 + 9973*i // byte by byte would take long
		if i == 0 {
			piece = 997
		}
		text := long + long + ev("length", 8) + usageEvent(5, 3, "") + done
		var pieces []string
		for len(text) > 0 {
			n := min(piece, len(text))
			pieces, text = append(pieces, text[:n]), text[n:]
		}
		got := send(t, t.Context(), client(t, streams(pieces...)), request(5, 3))
		if got.err != nil || len(got.events) != 3 || got.reply.OutputTokens != 3 {
			t.Errorf("in pieces of %d: events %v, %v", piece, got.events, got.err)
		}
	}
	// Header lines that never end: the request's own limit ends it, and the reason is said.
	loris := completions(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		for {
			if _, err := io.WriteString(conn, "X"); err != nil {
				return
			}
			select {
			case <-r.Context().Done():
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	run, err := load.Do(t.Context(), load.Options{Client: client(t, loris), FirstTokenTimeout: 50 * time.Millisecond,
		Workload: &workload.Workload{Requests: []workload.Request{*request(5, 2)}}})
	if err != nil || run.Failed != 1 || !strings.Contains(run.Records[0].Error, "first-token timeout") {
		t.Errorf("%+v, %v", run, err)
	}
}

// Under load 1 % of the streams die at random, at the network: every request is accounted for, and the others are
// whole.
func TestStreamsDieUnderLoad(t *testing.T) {
	var served, killed atomic.Int32
	h := completions(func(w http.ResponseWriter, r *http.Request) {
		if n := served.Add(1); n%100 == 50 {
			killed.Add(1)
			hijacked([]string{"", head + "Transfer-Encoding: chunked\r\n\r\n", chunked(ev("", 7), ev("", 8)[:30])}[n/100%3],
				n/100%2 == 0)(w, r)
			return
		}
		streams(ev("", 7), ev("", 8), ev("length", 9), usageEvent(5, 3, ""), done)(w, r)
	})
	w := &workload.Workload{Concurrency: 16}
	for i := range 2000 {
		r := *request(5, 3)
		r.Index = i
		w.Requests = append(w.Requests, r)
	}
	run, err := load.Do(t.Context(), load.Options{Client: client(t, h), Workload: w})
	if err != nil || run.Interrupted {
		t.Fatalf("%+v, %v", run, err)
	}
	if run.Sent != 2000 || run.Sent != run.OK+run.Failed+run.Cancelled || run.Failed != int(killed.Load()) ||
		run.Cancelled != 0 {
		t.Errorf("sent %d, ok %d, failed %d, cancelled %d; %d were killed", run.Sent, run.OK, run.Failed, run.Cancelled,
			killed.Load())
	}
	for i := range run.Records {
		if r := &run.Records[i]; r.OK() && (r.OutputTokens != 3 || len(r.Tokens) != 3) || !r.OK() && r.Error == "" {
			t.Errorf("record %+v", r)
		}
	}
}

func TestUnknownHost(t *testing.T) {
	_, err := Connect(t.Context(), "http://no-such-host.invalid:8000", Options{ConnectTimeout: 5 * time.Second})
	var unreachable *UnreachableError
	if !errors.As(err, &unreachable) || !strings.Contains(err.Error(), "no-such-host.invalid") {
		t.Errorf("%v", err)
	}
}

// HTTP/2 is taken where a server offers it: the streams of one run share connections. The certificate must be good.
func TestHTTP2WhenOffered(t *testing.T) {
	var proto atomic.Value
	var opened atomic.Int32
	fake := httptest.NewUnstartedServer(completions(func(w http.ResponseWriter, r *http.Request) {
		proto.Store(r.Proto)
		streams(ev("", 7), ev("length", 8), usageEvent(5, 2, ""), done)(w, r)
	}))
	fake.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	fake.Config.ErrorLog = nil
	fake.EnableHTTP2 = true
	fake.StartTLS()
	defer fake.Close()
	if _, err := Connect(t.Context(), fake.URL, Options{}); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate that no system root has signed: %v", err)
	}
	trusting := newHTTPClient(0)
	trusting.Transport.(*http.Transport).TLSClientConfig =
		fake.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	trusting.Transport.(*http.Transport).TLSClientConfig.NextProtos = nil
	opened.Store(0)
	s, err := Connect(t.Context(), fake.URL, Options{HTTPClient: trusting})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w := &workload.Workload{Concurrency: 8}
	for i := range 64 {
		r := *request(5, 2)
		r.Index = i
		w.Requests = append(w.Requests, r)
	}
	run, err := load.Do(t.Context(), load.Options{Client: s.Client(ClientOptions{}), Workload: w})
	if err != nil || run.OK != 64 || proto.Load() != "HTTP/2.0" || opened.Load() > 2 {
		t.Errorf("%+v, %v; by %v over %d connections", run, err, proto.Load(), opened.Load())
	}
}

// Chat and text prompts: what goes out, what counts as a token, and how a conversation goes on.
func TestChat(t *testing.T) {
	var bodies []string
	event := func(delta, finish string) string {
		return fmt.Sprintf(`data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":%s,"finish_reason":%s}]}`+
			"\n\n", delta, finish)
	}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/chat/completions" {
			vllmPages(nil).ServeHTTP(w, r)
			return
		}
		body, _ := io.ReadAll(r.Body)
		bodies = append(bodies, string(body))
		for _, e := range []string{event(`{"role":"assistant","content":""}`, "null"),
			event(`{"content":"say \"a\""}`, "null"), event(`{"content":" b"}`, `"length"`), usageEvent(9, 2, ""), done} {
			_, _ = io.WriteString(w, e)
		}
	})
	s, err := connect(t, h, Options{})
	if err != nil {
		t.Fatal(err)
	}
	c := s.Client(ClientOptions{API: Chat})
	first := &workload.Request{Prompt: []workload.Segment{{ID: 1, Tokens: 3}, {ID: 2, Tokens: 1}}, OutputTokens: 2,
		OutputID: 77}
	got := send(t, t.Context(), c, first)
	if got.err != nil || fmt.Sprint(got.events) != "[1 1]" || got.reply.PromptTokens != 9 {
		t.Errorf("events %v, %+v, %v: the role is no token", got.events, got.reply, got.err)
	}
	second := &workload.Request{Prompt: []workload.Segment{{ID: 1, Tokens: 3}, {ID: 2, Tokens: 1}, {ID: 77, Tokens: 2},
		{ID: 3, Tokens: 2}},
		OutputTokens: 2}
	if got := send(t, t.Context(), c, second); got.err != nil {
		t.Fatal(got.err)
	}
	user, _, _ := strings.Cut(strings.SplitN(bodies[0], `"content":"`, 2)[1], `"`)
	if len(strings.Fields(user)) != 4 ||
		!strings.Contains(bodies[0], `"messages":[{"role":"user","content":"`+user+`"}]`) {
		t.Errorf("body %s", bodies[0])
	}
	if want := `"messages":[{"role":"user","content":"` + user +
		`"},{"role":"assistant","content":"say \"a\" b"},{"role":"user","content":"`; !strings.Contains(bodies[1], want) {
		t.Errorf("body %s, want %s", bodies[1], want)
	}
	text := string(s.Client(ClientOptions{Text: true}).body(first))
	if !strings.Contains(text, `"prompt":"`+user+`"`) {
		t.Errorf("body %s, want the same words in a completion", text)
	}
}

// The limit of open files is known before anything is sent. A process's own limit cannot be raised again, so the test
// lowers it for a child.
func TestOpenFilesLimit(t *testing.T) {
	if os.Getenv("KVTUNE_TEST_FILES") != "" {
		w := &workload.Workload{Concurrency: 300}
		for i := range 300 {
			r := *request(5, 3)
			r.Index = i
			w.Requests = append(w.Requests, r)
		}
		_, err := load.Do(context.Background(), load.Options{Client: new(Client), Workload: w, MaxInFlight: MaxConnections()})
		fmt.Println(err)
		return
	}
	if MaxConnections() == 0 {
		t.Skip("this system has no limit of open files")
	}
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "ulimit -n 256 && exec \"$0\" -test.run '^TestOpenFilesLimit$'", self)
	cmd.Env = append(os.Environ(), "KVTUNE_TEST_FILES=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out),
		"the workload has 300 requests in flight at once and this process may have 192 connections open") {
		t.Errorf("%s%v", out, err)
	}
}
