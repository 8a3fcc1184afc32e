package vllm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvtune/harness/load"
	"kvtune/harness/workload"
)

// completions is a fake vLLM whose /v1/completions is the function.
type completions func(w http.ResponseWriter, r *http.Request)

func (c completions) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/v1/completions" {
		c(w, r)
		return
	}
	vllmPages(nil).ServeHTTP(w, r)
}

// streams answers with these pieces, each flushed by itself.
func streams(pieces ...string) completions {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		for _, p := range pieces {
			_, _ = io.WriteString(w, p)
			_ = http.NewResponseController(w).Flush()
		}
	}
}

// ev is a token event as vLLM 0.32 writes it.
func ev(finish string, ids ...int) string { // no ids: null
	reason := "null"
	if finish != "" {
		reason = `"` + finish + `"`
	}
	list, _ := json.Marshal(ids)
	return fmt.Sprintf(`data: {"id":"cmpl-1","object":"text_completion","created":1,"model":"tiny","choices":[{"index":0,`+
		`"text":"","logprobs":null,"finish_reason":%s,"stop_reason":null,"prompt_token_ids":null,"token_ids":%s}]}`+"\n\n",
		reason, list)
}

func usageEvent(prompt, completion int, more string) string {
	return fmt.Sprintf(`data: {"id":"cmpl-1","choices":[],`+
		`"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d%s}}`+
		"\n\n", prompt, prompt+completion, completion, more)
}

const done = "data: [DONE]\n\n"

// sending is what became of one Send.
type sending struct {
	reply  load.Reply
	err    error
	events []int // tokens per event
	sent   int
}

func send(t *testing.T, ctx context.Context, c *Client, r *workload.Request) sending {
	t.Helper()
	var got sending
	var last time.Time
	got.reply, got.err = c.Prepare(r)(ctx, func(at time.Time) {
		got.sent++
		last = at
	}, func(at time.Time, tokens int) {
		if at.Before(last) {
			t.Errorf("event at %v, before %v", at, last)
		}
		last = at
		got.events = append(got.events, tokens)
	})
	return got
}

func client(t *testing.T, h http.Handler) *Client {
	t.Helper()
	s, err := connect(t, h, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return s.Client(ClientOptions{})
}

func request(prompt, output int) *workload.Request {
	return &workload.Request{After: -1, Prompt: []workload.Segment{{ID: 1, Tokens: prompt}}, OutputTokens: output}
}

func TestSendCountsTokens(t *testing.T) {
	plain := func(finish string) string {
		return `data: {"choices":[{"index":0,"text":"x","finish_reason":` + finish + `}]}` + "\n\n"
	}
	running := func(n int, finish string) string {
		return fmt.Sprintf(`data: {"choices":[{"index":0,"text":"","finish_reason":%s,"token_ids":null}],`+
			`"usage":{"prompt_tokens":5,"completion_tokens":%d}}`+"\n\n", finish, n)
	}
	for _, c := range []struct {
		name   string
		pieces []string
		events []int
		usage  int
	}{
		{"one token an event", []string{ev("", 7), ev("", 8), ev("length", 9), usageEvent(5, 3, ""), done}, []int{1, 1,
			1}, 3},
		{"several tokens an event", []string{ev("", 7), ev("", 8, 9, 10, 11), ev("length", 12), usageEvent(5, 6, ""), done},
			[]int{1, 4, 1}, 6},
		{"an event without tokens", []string{ev("", 7), ev(""), ev("stop"), usageEvent(5, 1, ""), done}, []int{1}, 1},
		{"by running usage", []string{running(1, "null"), running(5, "null"), running(6, `"length"`), usageEvent(5, 6,
			""), done},
			[]int{1, 4, 1}, 6},
		{"by events with choices", []string{plain("null"), plain("null"), plain(`"length"`), usageEvent(5, 3, ""), done},
			[]int{1, 1, 1}, 3},
		{"no usage, no [DONE]", []string{ev("", 7), ev("length", 8)}, []int{1, 1}, 0},
		{"everything in one write", []string{ev("", 7) + ev("length", 8) + usageEvent(5, 2, "") + done}, []int{1, 1}, 2},
		{"comments between, CRLF", []string{": keep-alive\r\n\r\n", strings.ReplaceAll(ev("", 7), "\n", "\r\n"), ": x\n",
			ev("length", 8),
			usageEvent(5, 2, ""), done}, []int{1, 1}, 2},
		{"no last blank line", []string{ev("", 7), ev("length", 8), usageEvent(5, 2, ""), "data: [DONE]"}, []int{1, 1}, 2},
	} {
		for split, pieces := range map[string][]string{"as written": c.pieces,
			"byte by byte": strings.Split(strings.Join(c.pieces, ""), "")} {
			t.Run(c.name+", "+split, func(t *testing.T) {
				got := send(t, t.Context(), client(t, streams(pieces...)), request(5, 3))
				if got.err != nil || !slices.Equal(got.events, c.events) || got.reply.OutputTokens != c.usage || got.sent != 1 {
					t.Errorf("events %v, want %v; usage %d, want %d; sent %d times; %v",
						got.events, c.events, got.reply.OutputTokens, c.usage, got.sent, got.err)
				}
			})
		}
	}
}

func TestSendReportsCachedTokensOnlyWhenTold(t *testing.T) {
	got := send(t, t.Context(), client(t, streams(ev("length", 7), usageEvent(300, 1, ""), done)), request(5, 1))
	if got.reply.CachedTokens != nil || got.reply.PromptTokens != 300 || got.reply.FinishReason != "length" {
		t.Errorf("%+v", got.reply)
	}
	details := `,"prompt_tokens_details":{"cached_tokens":256}`
	got = send(t, t.Context(), client(t, streams(ev("length", 7), usageEvent(300, 1, details), done)), request(5, 1))
	if got.reply.CachedTokens == nil || *got.reply.CachedTokens != 256 {
		t.Errorf("%+v", got.reply)
	}
}

// completionBody is what the server must get, in full: an unknown field fails.
type completionBody struct {
	Model         string  `json:"model"`
	Prompt        []int32 `json:"prompt"`
	MaxTokens     int     `json:"max_tokens"`
	IgnoreEOS     bool    `json:"ignore_eos"`
	Temperature   float64 `json:"temperature"`
	Stream        bool    `json:"stream"`
	StreamOptions struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
	ReturnTokenIDs bool   `json:"return_token_ids"`
	CacheSalt      string `json:"cache_salt"`
	Priority       int    `json:"priority"`
}

// recording answers like a server that generates ids 3000, 3001, ... and keeps the bodies that it got.
type recording struct {
	mu     sync.Mutex
	bodies []completionBody
	header http.Header
}

func (rec *recording) handler(w http.ResponseWriter, r *http.Request) {
	var b completionBody
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&b); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	rec.mu.Lock()
	rec.bodies, rec.header = append(rec.bodies, b), r.Header
	rec.mu.Unlock()
	for i := range b.MaxTokens {
		finish := ""
		if i == b.MaxTokens-1 {
			finish = "length"
		}
		_, _ = io.WriteString(w, ev(finish, 3000+i))
	}
	_, _ = io.WriteString(w, usageEvent(len(b.Prompt), b.MaxTokens, "")+done)
}

func TestSendBody(t *testing.T) {
	var rec recording
	s, err := connect(t, completions(rec.handler), Options{APIKey: "sesame"})
	if err != nil {
		t.Fatal(err)
	}
	c := s.Client(ClientOptions{Salt: `run "1"`, Vocab: 64})
	got := send(t, t.Context(), c, &workload.Request{Prompt: []workload.Segment{{ID: 1, Tokens: 200}, {ID: 2, Tokens: 3}},
		OutputTokens: 4, Priority: -5})
	if got.err != nil {
		t.Fatal(got.err)
	}
	b := rec.bodies[0]
	if len(b.Prompt) != 203 || slices.Min(b.Prompt) < 16 || slices.Max(b.Prompt) >= 64 {
		t.Errorf("prompt of %d ids in [%d, %d]; want 203 in [16, 64)", len(b.Prompt), slices.Min(b.Prompt),
			slices.Max(b.Prompt))
	}
	b.Prompt = nil
	want := completionBody{Model: "tiny", MaxTokens: 4, IgnoreEOS: true, Stream: true, ReturnTokenIDs: true,
		CacheSalt: `run "1"`, Priority: -5}
	want.StreamOptions.IncludeUsage = true
	if fmt.Sprint(b) != fmt.Sprint(want) {
		t.Errorf("body %+v, want %+v", b, want)
	}
	if rec.header.Get("Authorization") != "Bearer sesame" || rec.header.Get("Accept-Encoding") != "" ||
		rec.header.Get("Idempotency-Key") != "" {
		t.Errorf("header %v", rec.header)
	}
	send(t, t.Context(), s.Client(ClientOptions{}), &workload.Request{Prompt: []workload.Segment{{ID: 9, Tokens: 1}},
		OutputTokens: 1, LoRA: "sql-adapter"})
	if b := rec.bodies[1]; b.CacheSalt != "" || b.Model != "sql-adapter" || b.Priority != 0 {
		t.Errorf("body %+v", b)
	}
}

// A prepared request goes out as it was when it was prepared, and not before it is sent.
func TestPrepare(t *testing.T) {
	var rec recording
	c := client(t, completions(rec.handler))
	r := request(5, 2)
	prepared := c.Prepare(r)
	if len(rec.bodies) != 0 {
		t.Fatal("preparing sends")
	}
	tokens := 0
	reply, err := prepared(t.Context(), func(time.Time) {}, func(_ time.Time, n int) { tokens += n })
	if err != nil || tokens != 2 || reply.PromptTokens != 5 {
		t.Errorf("%+v, %d tokens, %v", reply, tokens, err)
	}
	if got := send(t, t.Context(), c, r); got.err != nil || !slices.Equal(rec.bodies[0].Prompt, rec.bodies[1].Prompt) {
		t.Errorf("prepared %v, sent %v", rec.bodies[0].Prompt, rec.bodies[1].Prompt)
	}
}

func BenchmarkBody(b *testing.B) {
	c := (&Server{}).Client(ClientOptions{Salt: "bench"})
	r := request(16_000, 128)
	b.ReportAllocs()
	for b.Loop() {
		c.body(r)
	}
}

func BenchmarkStream(b *testing.B) {
	text := strings.Repeat(ev("", 77), 1000) + ev("length", 78) + usageEvent(5, 1001, "") + done
	b.ReportAllocs()
	b.SetBytes(int64(len(text)))
	var events eventScanner
	var body strings.Reader
	for b.Loop() {
		body.Reset(text)
		events.reset(&body, time.Now, maxEvent)
		st := stream{event: func(time.Time, int) {}, asked: 1001}
		if err := st.read(&events); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(1002*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

// The prompt of a later turn repeats the conversation token for token: what was sent, and what really came back.
func TestSendContinuesAConversation(t *testing.T) {
	var rec recording
	c := client(t, completions(rec.handler))
	first := &workload.Request{Prompt: []workload.Segment{{ID: 1, Tokens: 6}}, OutputTokens: 3, OutputID: 77}
	second := &workload.Request{Index: 1, Prompt: []workload.Segment{{ID: 1, Tokens: 6}, {ID: 77, Tokens: 3}, {ID: 2,
		Tokens: 4}},
		OutputTokens: 1}
	for _, r := range []*workload.Request{first, second} {
		if got := send(t, t.Context(), c, r); got.err != nil {
			t.Fatal(got.err)
		}
	}
	a, b := rec.bodies[0].Prompt, rec.bodies[1].Prompt
	if len(b) != 13 || !slices.Equal(b[:6], a) || !slices.Equal(b[6:9], []int32{3000, 3001, 3002}) {
		t.Errorf("first prompt %v, second %v", a, b)
	}
	// Where the first turn gave fewer tokens than planned, or failed, the length still is what was asked for.
	short := &workload.Request{Prompt: []workload.Segment{{ID: 77, Tokens: 5}, {ID: 78, Tokens: 2}}, OutputTokens: 1}
	if got := send(t, t.Context(), c, short); got.err != nil {
		t.Fatal(got.err)
	}
	if p := rec.bodies[2].Prompt; len(p) != 7 || !slices.Equal(p[:3], []int32{3000, 3001, 3002}) {
		t.Errorf("prompt %v", p)
	}
}

func TestSendShowsRefusals(t *testing.T) {
	long := "This model's maximum context length is 4096 tokens. However, your prompt contains 5000 input tokens."
	for _, c := range []struct {
		name   string
		status int
		body   string
		want   []string
	}{
		{"prompt too long", 400,
			`{"error":{"message":"` + long + `","type":"BadRequestError","param":"input_tokens","code":400}}`,
			[]string{"prompt too long", "5000 input tokens", "400"}},
		{"prompt of the whole context", 400,
			`{"error":{"message":"max_tokens must be at least 1, got 0.","param":"max_tokens"}}`,
			[]string{"prompt too long"}},
		{"model", 404, "{\"error\":{\"message\":\"The model `nope` does not exist.\",\"type\":\"NotFoundError\"}}",
			[]string{"does not serve this model", "nope"}},
		{"framework", 405, `{"detail":"Method Not Allowed"}`, []string{"405", "Method Not Allowed"}},
		{"validation list", 422, `{"detail":[{"loc":["body","prompt"],"msg":"field required"}]}`, []string{"422",
			"field required"}},
		{"old flat form", 400, `{"object":"error","message":"bad top_k","type":"BadRequestError"}`, []string{"bad top_k"}},
		{"key", 401, `{"error":"Unauthorized"}`, []string{"API key", "Unauthorized"}},
		{"queue full", 503, `{"error":{"message":"The engine is currently busy","type":"Service Unavailable"}}`,
			[]string{"too busy", "engine is currently busy"}},
		{"engine dead", 500, `{"error":{"message":"EngineCore encountered an issue"}}`, []string{"the server failed",
			"EngineCore"}},
		{"gateway page", 502, "<html>\n<body>Bad   Gateway</body>", []string{"502", "<body>Bad Gateway"}},
		{"nothing", 500, "", []string{"the server failed (status 500)"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := send(t, t.Context(), client(t, completions(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			})), request(5, 1))
			var api *APIError
			if !errors.As(got.err, &api) || api.Status != c.status || len(got.events) != 0 {
				t.Fatalf("%v, events %v", got.err, got.events)
			}
			for _, w := range c.want {
				if !strings.Contains(got.err.Error(), w) {
					t.Errorf("%q lacks %q", got.err, w)
				}
			}
		})
	}
}

// hijacked writes raw bytes to the connection and closes it, hard (a reset) or softly.
func hijacked(raw string, reset bool) completions {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		_, _ = io.WriteString(conn, raw)
		if reset {
			_ = conn.(*net.TCPConn).SetLinger(0)
		}
		conn.Close()
	}
}

const head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"

// chunked is a body in chunked coding without its end.
func chunked(pieces ...string) string {
	var b strings.Builder
	b.WriteString(head + "Transfer-Encoding: chunked\r\n\r\n")
	for _, p := range pieces {
		fmt.Fprintf(&b, "%x\r\n%s\r\n", len(p), p)
	}
	return b.String()
}

// Every way in which a stream can go wrong keeps what arrived before, and is an error that says what happened.
func TestSendKeepsWhatArrivedBeforeAFailure(t *testing.T) {
	two := ev("", 7) + ev("", 8)
	for _, c := range []struct {
		name   string
		h      completions
		events int
		want   string
		is     error
	}{
		{"killed in mid-stream", hijacked(chunked(two), false), 2, "after 2 of 9 tokens", ErrStreamCut},
		{"killed inside an event", hijacked(chunked(two, ev("", 9)[:40]), false), 2, "after 2 of 9 tokens", ErrStreamCut},
		{"headers, then close", hijacked(head+"Transfer-Encoding: chunked\r\n\r\n", false), 0, "after 0 of 9", ErrStreamCut},
		{"clean end without a finish reason", streams(two), 2, "without a finish reason", ErrStreamCut},
		{"[DONE] without a finish reason", streams(two, done), 2, "[DONE] without", ErrStreamCut},
		{"reset before the answer", hijacked("", true), 0, "no answer from http://", nil},
		{"not HTTP", hijacked("SSH-2.0-x\r\n", false), 0, "malformed HTTP", nil},
		{"event is not JSON", streams(two, "data: {\"choices\":[\n\n", done), 2, "not a JSON object", nil},
		{"binary", streams(two, "data: \x00\xff\xfe\n\n", done), 2, "not a JSON object", nil},
		{"error object inside the stream", streams(two,
			`data: {"error":{"message":"engine died","type":"InternalServerError","code":500}}`+
				"\n\n", done), 2, "inside the stream (status 500): engine died", nil},
		{"old error object", streams(two, `data: {"object":"error","message":"boom"}`+"\n\n"), 2,
			"inside the stream: boom", nil},
		{"aborted", streams(two, ev("abort"), usageEvent(5, 2, ""), done), 2, "aborted the request after 2 of 9", nil},
		{"aborted before the first token", streams(ev("abort"), usageEvent(5, 0, ""), done), 0, "after 0 of 9", nil},
		{"engine error", streams(two, ev("error"), done), 2, "engine failed the request", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := send(t, t.Context(), client(t, c.h), request(5, 9))
			if got.err == nil || !strings.Contains(got.err.Error(), c.want) || c.is != nil && !errors.Is(got.err, c.is) {
				t.Errorf("error %v; want one with %q", got.err, c.want)
			}
			if len(got.events) != c.events {
				t.Errorf("%d events kept, want %d", len(got.events), c.events)
			}
		})
	}
}

func TestSendAfterTheFinishNothingCanFail(t *testing.T) {
	got := send(t, t.Context(), client(t, hijacked(chunked(ev("", 7), ev("length", 8)), false)), request(5, 2))
	if got.err != nil || len(got.events) != 2 || got.reply.FinishReason != "length" {
		t.Errorf("%+v", got)
	}
}

// A stalled stream ends when its context does, with the reason that the caller gave.
func TestSendStalled(t *testing.T) {
	idle := errors.New("no token for 30s")
	ctx, cancel := context.WithCancelCause(t.Context())
	c := client(t, completions(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, ev("", 7))
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	var events int
	_, err := c.Prepare(request(5, 9))(ctx, func(time.Time) {}, func(time.Time, int) {
		events++
		cancel(idle)
	})
	if !errors.Is(err, idle) || events != 1 {
		t.Errorf("%v after %d events; want the cancellation's cause after 1", err, events)
	}
	// The same before any answer.
	ctx, cancel = context.WithCancelCause(t.Context())
	c = client(t, completions(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		cancel(idle)
		<-r.Context().Done()
	}))
	if got := send(t, ctx, c, request(5, 9)); !errors.Is(got.err, idle) || got.sent != 1 {
		t.Errorf("%v, sent %d", got.err, got.sent)
	}
}

// Connections are used again, by as many streams as run together, and one that the server closed meanwhile is replaced.
func TestSendReusesConnections(t *testing.T) {
	var opened atomic.Int32
	fake := httptest.NewUnstartedServer(streams(ev("", 7), ev("length", 8), usageEvent(5, 2, ""), done))
	fake.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	fake.Start()
	defer fake.Close()
	s, err := Connect(t.Context(), fake.URL, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c := s.Client(ClientOptions{})
	for range 20 {
		if got := send(t, t.Context(), c, request(5, 2)); got.err != nil {
			t.Fatal(got.err)
		}
	}
	if n := opened.Load(); n != 1 {
		t.Errorf("%d connections for requests one after the other, want 1", n)
	}
	fake.CloseClientConnections()
	// The transport learns of it; a request in that moment would fail, and count as failed.
	time.Sleep(20 * time.Millisecond)
	if got := send(t, t.Context(), c, request(5, 2)); got.err != nil || got.sent != 1 {
		t.Errorf("after the server closed the idle connection: %v, sent %d", got.err, got.sent)
	}
}
