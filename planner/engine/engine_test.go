package engine

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"kvtune/harness"
	"kvtune/planner/cost"
	"kvtune/planner/spec"
)

// options is Llama-3.1-8B on an H200 with a small cache.
func options(t testing.TB) Options {
	t.Helper()
	m, err := spec.FindModel("meta-llama/Llama-3.1-8B")
	if err != nil {
		t.Fatal(err)
	}
	gpu, err := spec.FindGPU("H200")
	if err != nil {
		t.Fatal(err)
	}
	return Options{Model: m, GPU: gpu, Seed: 1, NumGPUBlocks: 1001, Args: harness.EngineArgs{
		MaxNumBatchedTokens: 2048, MaxNumSeqs: 64, BlockSize: 16, MaxModelLen: 4096, GPUMemoryUtilization: 0.92,
	}}
}

// given has step times that the tests know: the prior, used exactly.
func given(t testing.TB) Options {
	opt := options(t)
	opt.Cost = cost.Prior(opt.GPU, opt.Model, opt.Args)
	return opt
}

// inBubble runs f with an engine on synctest's clock, and checks that the engine leaves nothing behind.
func inBubble(t *testing.T, opt Options, f func(*testing.T, *Engine)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		e, err := newEngine(opt, newRuntimeAlarm())
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := e.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}()
		f(t, e)
	})
}

// event is one server-sent event and when it was written.
type event struct {
	at   time.Time
	data string
}

// reply is an answer, with its events if it is a stream.
type reply struct {
	status int
	header http.Header
	body   string
	events []event
}

// writer is a ResponseWriter that notes when each event was written.
type writer struct {
	mu sync.Mutex
	*httptest.ResponseRecorder
	events []event
}

func (w *writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for e := range strings.SplitSeq(strings.TrimSuffix(string(p), "\n\n"), "\n\n") {
		w.events = append(w.events, event{time.Now(), strings.TrimPrefix(e, "data: ")})
	}
	return w.ResponseRecorder.Write(p)
}

// post sends a JSON body to a path of the engine and reads the whole answer.
func post(ctx context.Context, e *Engine, path, body string, header ...string) reply {
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := &writer{ResponseRecorder: httptest.NewRecorder()}
	e.Handler().ServeHTTP(w, r)
	rep := reply{status: w.Code, header: w.Header(), body: w.Body.String()}
	if strings.HasPrefix(w.Header().Get("Content-Type"), "text/event-stream") {
		rep.events = w.events
	}
	return rep
}

func get(e *Engine, path string) reply {
	w := httptest.NewRecorder()
	e.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return reply{status: w.Code, header: w.Header(), body: w.Body.String()}
}

// ids is a JSON list of n token ids, all different for different seeds.
func ids(seed, n int) string {
	list := make([]int, n)
	for i := range list {
		list[i] = 1000 + (seed*7919+i*31)%90000
	}
	b, _ := json.Marshal(list)
	return string(b)
}

// chunk is what the tests read of an event or of a whole answer.
type chunk struct {
	ID      string
	Choices []struct {
		Text           string
		Delta, Message struct{ Role, Content string }
		FinishReason   string  `json:"finish_reason"`
		TokenIDs       []int32 `json:"token_ids"`
		PromptTokenIDs []int32 `json:"prompt_token_ids"`
	}
	Usage *struct {
		PromptTokens     int `json:"prompt_tokens"`
		TotalTokens      int `json:"total_tokens"`
		CompletionTokens int `json:"completion_tokens"`
		Details          *struct {
			CachedTokens int `json:"cached_tokens"`
		} `json:"prompt_tokens_details"`
	}
}

func decode(t testing.TB, data string) chunk {
	t.Helper()
	var c chunk
	if err := json.Unmarshal([]byte(data), &c); err != nil {
		t.Fatalf("event %q: %v", data, err)
	}
	return c
}

// samples are the series of /metrics, by name and labels as written.
func samples(t testing.TB, e *Engine) map[string]float64 {
	t.Helper()
	rep := get(e, "/metrics")
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(rep.body))
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]float64)
	for name, family := range families {
		for _, m := range family.Metric {
			key := name
			for _, l := range m.Label {
				if n := l.GetName(); n != "model_name" && n != "engine" && name != "vllm:cache_config_info" {
					key += fmt.Sprintf("{%s=%s}", n, l.GetValue())
				}
			}
			switch {
			case m.Counter != nil:
				all[key] = m.Counter.GetValue()
			case m.Gauge != nil:
				all[key] = m.Gauge.GetValue()
			case m.Histogram != nil:
				all[key+"_count"] = float64(m.Histogram.GetSampleCount())
				all[key+"_sum"] = m.Histogram.GetSampleSum()
			}
		}
	}
	return all
}

func TestServesOverTCPAndLeavesNothingOpen(t *testing.T) {
	opt := options(t)
	opt.Speed = 20
	e, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	url, err := e.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	resp, err := client.Post(url+"/v1/completions", "application/json", strings.NewReader(
		`{"prompt":`+ids(1, 100)+`,"max_tokens":20,"stream":true,"return_token_ids":true,`+
			`"stream_options":{"include_usage":true}}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("Server"); got != "kvtune" {
		t.Errorf("Server header %q", got)
	}
	tokens, done := 0, false
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		if done = data == "[DONE]"; done {
			break
		}
		for _, c := range decode(t, data).Choices {
			tokens += len(c.TokenIDs)
		}
	}
	if tokens != 20 || !done {
		t.Errorf("%d tokens, done %v; expected 20 and true", tokens, done)
	}
	if err := e.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := e.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := client.Get(url + "/health"); err == nil {
		t.Error("the port is still open after Close")
	}
	if _, err := e.Listen("127.0.0.1:0"); err == nil {
		t.Error("a closed engine listens")
	}
}

func TestListenKeepsToLoopback(t *testing.T) {
	e, err := New(options(t))
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	for _, addr := range []string{":0", "0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.org:0", "nonsense"} {
		if url, err := e.Listen(addr); err == nil {
			t.Errorf("Listen(%q) gave %s, expected an error", addr, url)
		}
	}
}

func TestCloseAbortsOrDrains(t *testing.T) {
	for _, c := range []struct {
		name   string
		grace  time.Duration
		reason string
	}{
		{"at once", 0, "abort"},
		{"grace too short", 50 * time.Millisecond, "abort"},
		{"grace long enough", time.Minute, "length"},
	} {
		t.Run(c.name, func(t *testing.T) {
			opt := given(t)
			opt.ShutdownTimeout = c.grace
			synctest.Test(t, func(t *testing.T) {
				e, err := newEngine(opt, newRuntimeAlarm())
				if err != nil {
					t.Fatal(err)
				}
				answer := make(chan reply, 1)
				go func() {
					answer <- post(t.Context(), e, "/v1/completions", `{"prompt":[20,21],"max_tokens":100,"stream":true}`)
				}()
				time.Sleep(100 * time.Millisecond)
				if err := e.Close(); err != nil {
					t.Fatal(err)
				}
				rep := <-answer
				n := len(rep.events)
				if n < 2 || rep.events[n-1].data != "[DONE]" {
					t.Fatalf("%d events, the stream did not end", n)
				}
				if got := decode(t, rep.events[n-2].data).Choices[0].FinishReason; got != c.reason {
					t.Errorf("finish_reason %q, expected %q", got, c.reason)
				}
				late := decode(t, post(t.Context(), e, "/v1/completions", `{"prompt":[20]}`).body)
				if late.Choices[0].FinishReason != "abort" || late.Usage.CompletionTokens != 0 {
					t.Errorf("a request after Close got %+v", late)
				}
				if got := get(e, "/health").status; got != http.StatusServiceUnavailable {
					t.Errorf("/health after Close: %d", got)
				}
			})
		})
	}
}

func TestDisconnectFreesBlocks(t *testing.T) {
	for _, stream := range []string{"true", "false"} {
		inBubble(t, given(t), func(t *testing.T, e *Engine) {
			ctx, hangUp := context.WithCancel(t.Context())
			gone := make(chan reply, 1)
			go func() {
				gone <- post(ctx, e, "/v1/completions", `{"prompt":`+ids(1, 300)+`,"max_tokens":3000,"stream":`+stream+`}`)
			}()
			time.Sleep(200 * time.Millisecond)
			before := samples(t, e)
			if before["vllm:num_requests_running"] != 1 || before["vllm:kv_cache_usage_perc"] < 19.0/1000 {
				t.Errorf("while it runs: running %g, KV usage %g", before["vllm:num_requests_running"],
					before["vllm:kv_cache_usage_perc"])
			}
			hangUp()
			<-gone
			time.Sleep(50 * time.Millisecond)
			after := samples(t, e)
			for _, name := range []string{"vllm:num_requests_running", "vllm:num_requests_waiting",
				"vllm:kv_cache_usage_perc", "vllm:request_success_total{finished_reason=abort}"} {
				if after[name] != 0 {
					t.Errorf("stream %s: %s is %g after the client left", stream, name, after[name])
				}
			}
			time.Sleep(time.Minute)
			if now := samples(t, e); now["vllm:generation_tokens_total"] != after["vllm:generation_tokens_total"] {
				t.Error("generation went on without a client")
			}
		})
	}
}

func TestAbortBeforeItIsDue(t *testing.T) {
	inBubble(t, given(t), func(t *testing.T, e *Engine) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond) // request latency is 5 ms
		defer cancel()
		post(ctx, e, "/v1/completions", `{"prompt":[20],"stream":true}`)
		time.Sleep(time.Second)
		if got := samples(t, e)["vllm:prefix_cache_queries_total"]; got != 0 {
			t.Errorf("the scheduler saw a request whose client had left: %g tokens queried", got)
		}
	})
}

func TestPrefixHitsAreExact(t *testing.T) {
	const blockSize, m, fresh, batch = 16, 5, 20, 4
	inBubble(t, given(t), func(t *testing.T, e *Engine) {
		ask := func(i int, salt string) int {
			prefix := strings.TrimSuffix(ids(1, m*blockSize), "]")
			rep := post(t.Context(), e, "/v1/completions", `{"prompt":`+prefix+","+strings.TrimPrefix(ids(100+i, fresh), "[")+
				`,"max_tokens":8`+salt+`}`)
			if rep.status != http.StatusOK {
				t.Fatal(rep.body)
			}
			return decode(t, rep.body).Usage.PromptTokens
		}
		ask(0, "")
		before := samples(t, e)
		if before["vllm:prefix_cache_hits_total"] != 0 {
			t.Fatalf("hits in an empty cache: %g", before["vllm:prefix_cache_hits_total"])
		}
		for i := range batch {
			if got := ask(1+i, ""); got != m*blockSize+fresh {
				t.Errorf("prompt_tokens %d", got)
			}
		}
		after := samples(t, e)
		for name, want := range map[string]float64{
			"vllm:prefix_cache_hits_total":                                    batch * m * blockSize,
			"vllm:prefix_cache_queries_total":                                 batch * (m*blockSize + fresh),
			"vllm:prompt_tokens_cached_total":                                 batch * m * blockSize,
			"vllm:prompt_tokens_cached_by_source_total{source=device}":        batch * m * blockSize,
			"vllm:prompt_tokens_by_source_total{source=local_cache_hit}":      batch * m * blockSize,
			"vllm:prompt_tokens_by_source_total{source=local_compute}":        batch * fresh,
			"vllm:prompt_tokens_total":                                        batch * (m*blockSize + fresh),
			"vllm:generation_tokens_total":                                    batch * 8,
			"vllm:request_success_total{finished_reason=length}":              batch,
			"vllm:request_prefill_kv_computed_tokens_sum":                     batch * fresh,
			"vllm:request_generation_tokens_sum":                              batch * 8,
			"vllm:time_to_first_token_seconds_count":                          batch,
			"vllm:inter_token_latency_seconds_count":                          batch * 7,
			"vllm:iteration_tokens_total_sum":                                 batch * (fresh + 8),
			"vllm:request_num_preemptions_count":                              batch,
			"vllm:prompt_tokens_by_source_total{source=external_kv_transfer}": 0,
		} {
			if got := after[name] - before[name]; got != want {
				t.Errorf("%s grew by %g, expected %g", name, got, want)
			}
		}
		ask(50, `,"cache_salt":"x"`)
		salted := samples(t, e)["vllm:prefix_cache_hits_total"]
		if salted != after["vllm:prefix_cache_hits_total"] {
			t.Error("another cache_salt hit the unsalted prefix")
		}
		ask(51, `,"cache_salt":"x"`)
		if got := samples(t, e)["vllm:prefix_cache_hits_total"] - salted; got != m*blockSize {
			t.Errorf("the same cache_salt hit %g tokens, expected %d", got, m*blockSize)
		}
	})
}

func TestConversationsHitWhatWasGenerated(t *testing.T) {
	inBubble(t, given(t), func(t *testing.T, e *Engine) {
		hits := func() float64 { return samples(t, e)["vllm:prefix_cache_hits_total"] }
		// Token ids: prompt 40 + output 40; the next prompt holds both, of which floor(79/16) blocks were computed.
		first := decode(t, post(t.Context(), e, "/v1/completions",
			`{"prompt":`+ids(3, 40)+`,"max_tokens":40,"return_token_ids":true}`).body).Choices[0]
		next, _ := json.Marshal(append(append([]int32{}, first.PromptTokenIDs...), first.TokenIDs...))
		post(t.Context(), e, "/v1/completions", `{"prompt":`+strings.TrimSuffix(string(next), "]")+`,77,78],"max_tokens":1}`)
		if got := hits(); got != 64 {
			t.Errorf("second turn by token ids: %g tokens hit, expected 64", got)
		}
		// Chat: marker + 10 pieces, marker, 60 tokens of answer = 72; floor(71/16) blocks were computed.
		before := hits()
		talk := `{"role":"user","content":"` + strings.Repeat("abcd", 10) + `"}`
		answer := decode(t, post(t.Context(), e, "/v1/chat/completions",
			`{"messages":[`+talk+`],"max_completion_tokens":60}`).body).Choices[0].Message
		talk += fmt.Sprintf(`,{"role":%q,"content":%q},{"role":"user","content":"more"}`, answer.Role, answer.Content)
		post(t.Context(), e, "/v1/chat/completions", `{"messages":[`+talk+`]}`)
		if got := hits() - before; got != 64 {
			t.Errorf("second turn by chat: %g tokens hit, expected 64", got)
		}
	})
}

func TestMetricsNeverFall(t *testing.T) {
	opt := given(t)
	opt.NumGPUBlocks = 300 // too few for what follows: preemptions
	inBubble(t, opt, func(t *testing.T, e *Engine) {
		var wait sync.WaitGroup
		for i := range 24 {
			wait.Go(func() {
				time.Sleep(time.Duration(i) * 10 * time.Millisecond)
				post(t.Context(), e, "/v1/completions", `{"prompt":`+ids(i, 100)+`,"max_tokens":200}`)
			})
		}
		last := samples(t, e)
		for range 40 {
			time.Sleep(100 * time.Millisecond)
			now := samples(t, e)
			for name, v := range last {
				gauge := strings.Contains(name, "num_requests_") || strings.Contains(name, "usage_perc") // may fall
				if !gauge && now[name] < v {
					t.Errorf("%s fell from %g to %g", name, v, now[name])
				}
			}
			last = now
		}
		wait.Wait()
		end := samples(t, e)
		for name, want := range map[string]float64{
			"vllm:generation_tokens_total": 24 * 200, "vllm:prompt_tokens_total": 24 * 100,
			"vllm:prefix_cache_queries_total": 24 * 100, "vllm:kv_cache_usage_perc": 0, "vllm:num_requests_running": 0,
			"vllm:request_num_preemptions_sum": end["vllm:num_preemptions_total"], "kvtune:engine_lag_seconds_total": 0,
		} {
			if end[name] != want {
				t.Errorf("%s is %g, expected %g", name, end[name], want)
			}
		}
		if end["vllm:num_preemptions_total"] == 0 {
			t.Error("nothing was preempted: the test does not test preemption")
		}
	})
}

func TestPriorityOrder(t *testing.T) {
	opt := given(t)
	opt.Args.SchedulingPolicy = "priority"
	opt.Args.MaxNumSeqs = 1
	inBubble(t, opt, func(t *testing.T, e *Engine) {
		var mu sync.Mutex
		var order []string
		var wait sync.WaitGroup
		ask := func(name, field string, header ...string) {
			wait.Go(func() {
				post(t.Context(), e, "/v1/completions", `{"prompt":[20],"max_tokens":3`+field+`}`, header...)
				mu.Lock()
				order = append(order, name)
				mu.Unlock()
			})
			time.Sleep(time.Millisecond)
		}
		wait.Go(func() { post(t.Context(), e, "/v1/completions", `{"prompt":[20],"max_tokens":50}`) })
		time.Sleep(50 * time.Millisecond)
		ask("10a", `,"priority":10`)
		ask("10b", `,"priority":10`)
		ask("none", "")
		ask("5", `,"priority":5`)
		ask("-5", `,"priority":-5`)
		ask("header -9", `,"priority":99`, "X-Vllm-Priority", "-9")
		wait.Wait()
		if got, want := strings.Join(order, ", "), "header -9, -5, none, 5, 10a, 10b"; got != want {
			t.Errorf("order %s, expected %s", got, want)
		}
	})
}

func TestSpeedDividesEveryDuration(t *testing.T) {
	total := func(speed float64) time.Duration {
		opt := given(t)
		opt.Speed = speed
		var took time.Duration
		inBubble(t, opt, func(t *testing.T, e *Engine) {
			start := time.Now()
			post(t.Context(), e, "/v1/completions", `{"prompt":`+ids(1, 3000)+`,"max_tokens":50}`)
			took = time.Since(start)
		})
		return took
	}
	slow, fast := total(0.5), total(50)
	if ratio := float64(slow) / float64(fast); ratio < 99.99 || ratio > 100.01 {
		t.Errorf("%v at speed 0.5, %v at 50: ratio %g, expected 100", slow, fast, ratio)
	}
}

func TestQueueLimit(t *testing.T) {
	opt := given(t)
	opt.MaxNumQueuedReqs = 3
	inBubble(t, opt, func(t *testing.T, e *Engine) {
		status := make(chan int, 5)
		for range 5 {
			go func() { status <- post(t.Context(), e, "/v1/completions", `{"prompt":[20]}`).status }()
		}
		got := map[int]int{}
		for range 5 {
			got[<-status]++
		}
		if got[http.StatusOK] != 3 || got[http.StatusServiceUnavailable] != 2 {
			t.Errorf("statuses %v, expected 3 x 200 and 2 x 503", got)
		}
		if n := samples(t, e)["vllm:admission_rejections_total{reason=max_num_queued_reqs}"]; n != 2 {
			t.Errorf("admission_rejections %g, expected 2", n)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"max_num_batched_tokens": func(o *Options) { o.Args.MaxNumBatchedTokens = 10 },
		"block_size":             func(o *Options) { o.Args.BlockSize = 0 },
		"scheduling_policy":      func(o *Options) { o.Args.SchedulingPolicy = "lifo" },
		"num_gpu_blocks":         func(o *Options) { o.NumGPUBlocks = 100 },
		"speed":                  func(o *Options) { o.Speed = -1 },
		"vocabulary":             func(o *Options) { o.Model.Vocab = 0 },
		"does not fit":           func(o *Options) { o.NumGPUBlocks = 0; o.GPU.Memory = 1 << 30 },
	} {
		opt := options(t)
		change(&opt)
		e, err := New(opt)
		if err == nil {
			e.Close()
			t.Errorf("%s: no error", name)
		} else if !strings.Contains(err.Error(), name) {
			t.Errorf("%s: the error does not name it: %v", name, err)
		}
	}
}

func TestCapacityDecidesTheBlocks(t *testing.T) {
	opt := options(t)
	opt.NumGPUBlocks = 0
	memory, err := cost.Capacity(opt.GPU, opt.Model, opt.Args)
	if err != nil {
		t.Fatal(err)
	}
	inBubble(t, opt, func(t *testing.T, e *Engine) {
		body := get(e, "/metrics").body
		line := body[strings.Index(body, "vllm:cache_config_info{"):]
		for _, label := range []string{fmt.Sprintf(`num_gpu_blocks="%d"`, memory.Blocks), `block_size="16"`,
			`enable_prefix_caching="True"`, `num_gpu_blocks_override="None"`, `gpu_memory_utilization="0.92"`,
			fmt.Sprintf(`kv_cache_memory_bytes="%d"`, memory.KV), `engine="0"`} {
			if !strings.Contains(line, label) {
				t.Errorf("cache_config_info lacks %s: %s", label, line)
			}
		}
	})
}

// Connections beyond the limit wait until one of those before them is closed.
func TestConnectionLimit(t *testing.T) {
	opt := options(t)
	opt.MaxNumQueuedReqs = 1
	e, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	url, err := e.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	const limit, more = 1 + spareConnections, 20
	conns := make([]net.Conn, limit+more)
	answered := make(chan error, limit+more)
	for i := range conns {
		if conns[i], err = net.Dial("tcp", strings.TrimPrefix(url, "http://")); err != nil {
			t.Fatal(err)
		}
		defer conns[i].Close()
		fmt.Fprint(conns[i], "GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
		go func() {
			_, err := conns[i].Read(make([]byte, 1))
			answered <- err
		}()
	}
	for range limit {
		if err := <-answered; err != nil {
			t.Error(err)
		}
	}
	select {
	case err := <-answered:
		t.Errorf("more than %d connections are served: %v", limit, err)
	case <-time.After(50 * time.Millisecond):
	}
	for _, c := range conns {
		c.Close()
	}
	for range more {
		<-answered
	}
}

func TestBodyLimit(t *testing.T) {
	inBubble(t, given(t), func(t *testing.T, e *Engine) {
		r := httptest.NewRequest(http.MethodPost, "/v1/completions", io.MultiReader(strings.NewReader(`{"prompt":"`),
			bytes.NewReader(bytes.Repeat([]byte("a"), maxBody))))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		e.Handler().ServeHTTP(w, r)
		if w.Code != http.StatusRequestEntityTooLarge {
			t.Errorf("status %d for a body of more than %d bytes", w.Code, maxBody)
		}
	})
}
