package engine

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// golden compares text with testdata/name, or writes the file when KVTUNE_UPDATE is set.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if os.Getenv("KVTUNE_UPDATE") != "" {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

func TestAnswers(t *testing.T) {
	const chat = `"messages":[{"role":"system","content":"short"},` +
		`{"role":"user","content":[{"type":"text","text":"what is a KV cache?"}]}]`
	for _, c := range []struct{ name, path, body string }{
		{"stream", "/v1/completions", `{"prompt":[289,988],"max_tokens":3,"stream":true}`},
		{"stream_usage_ids", "/v1/completions", `{"prompt":[[289,988]],"max_tokens":3,"stream":true,"return_token_ids":true,
			"ignore_eos":true,"min_tokens":3,"temperature":0,"stop":["x"],"seed":7,"stream_options":{"include_usage":true}}`},
		{"stream_progress", "/v1/completions", `{"prompt":"four words of text","max_tokens":2,"stream":true,
			"stream_options":{"include_usage":true,"continuous_usage_stats":true}}`},
		{"stream_interval", "/v1/completions", `{"prompt":[289,988],"max_tokens":10,"stream":true,"return_token_ids":true,
			"stream_interval":4,"stream_options":{"continuous_usage_stats":true}}`},
		{"whole", "/v1/completions", `{"model":"meta-llama/Llama-3.1-8B","prompt":["four words of text"]}`},
		{"whole_ids", "/v1/completions", `{"prompt":[289,988],"max_tokens":2,"return_token_ids":true,"unknown":1}`},
		{"chat_stream", "/v1/chat/completions", `{` + chat + `,"max_tokens":2,"stream":true,"return_token_ids":true,
			"stream_options":{"include_usage":true,"continuous_usage_stats":true}}`},
		{"chat_whole", "/v1/chat/completions", `{` + chat + `,"max_completion_tokens":2}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			opt := given(t)
			opt.EnablePromptTokensDetails = true
			inBubble(t, opt, func(t *testing.T, e *Engine) {
				rep := post(t.Context(), e, c.path, c.body, "X-Request-Id", "request")
				if rep.status != http.StatusOK {
					t.Fatal(rep.body)
				}
				for _, ev := range rep.events[:max(0, len(rep.events)-1)] {
					decode(t, ev.data)
				}
				golden(t, c.name+".txt", rep.header.Get("Content-Type")+"\n\n"+rep.body)
			})
		})
	}
}

func TestEveryTokenOnce(t *testing.T) {
	// However the tokens are grouped into events, they are those of the answer in one piece, and as many as asked for.
	for _, asked := range []int{1, 2, 7, 64} {
		for _, interval := range []int{1, 3, 100} {
			inBubble(t, options(t), func(t *testing.T, e *Engine) {
				body := fmt.Sprintf(`{"prompt":%s,"max_tokens":%d,"return_token_ids":true`, ids(asked, 33), asked)
				whole := decode(t, post(t.Context(), e, "/v1/completions", body+`}`).body)
				rep := post(t.Context(), e, "/v1/completions", fmt.Sprintf(
					`%s,"stream":true,"stream_interval":%d,"stream_options":{"include_usage":true}}`, body, interval))
				var text string
				var got []int32
				n := len(rep.events)
				for i, ev := range rep.events[:n-2] {
					c := decode(t, ev.data).Choices[0]
					text += c.Text
					got = append(got, c.TokenIDs...)
					if (c.FinishReason == "length") != (i == n-3) {
						t.Errorf("finish_reason %q in event %d of %d", c.FinishReason, i, n-2)
					}
					if (len(c.PromptTokenIDs) > 0) != (i == 0) {
						t.Errorf("prompt_token_ids in event %d", i)
					}
				}
				usage := decode(t, rep.events[n-2].data).Usage
				if usage == nil || usage.CompletionTokens != asked || len(got) != asked || usage.PromptTokens != 33 ||
					usage.TotalTokens != 33+asked {
					t.Errorf("%d tokens in events, usage %+v, asked %d", len(got), usage, asked)
				}
				if diff := cmp.Diff(whole.Choices[0].TokenIDs, got); diff != "" || whole.Choices[0].Text != text {
					t.Errorf("the stream differs from the whole answer:\n%s", diff)
				}
				if want := 2 + (asked-2+interval)/interval + 1; asked > 1 && n != want {
					t.Errorf("interval %d, %d tokens: %d events, expected %d", interval, asked, n, want)
				}
			})
		}
	}
}

func TestErrors(t *testing.T) {
	const completions, chat = "/v1/completions", "/v1/chat/completions"
	// The messages were seen on vLLM 0.32.0, but for those that name the embedded engine.
	for _, c := range []struct {
		name, path, body string
		status           int
		want             string // a part of the body
	}{
		{"prompt too long", completions, `{"prompt":` + ids(1, 5000) + `}`, 400,
			`{"error":{"message":"This model's maximum context length is 4096 tokens. However, your prompt contains 5000 ` +
				`input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input ` +
				`prompt. (parameter=input_tokens, value=5000)","type":"BadRequestError","param":"input_tokens","code":400}}`},
		{"no room for output", completions, `{"prompt":` + ids(1, 4096) + `}`, 400,
			`{"error":{"message":"max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)",` +
				`"type":"BadRequestError","param":"max_tokens","code":400}}`},
		{"output is shortened", completions, `{"prompt":` + ids(1, 4095) + `,"max_tokens":2}`, 200, `"completion_tokens":1`},
		{"max_tokens over the context", completions, `{"prompt":[20],"max_tokens":5000,"stream":true}`, 400,
			`"max_tokens=5000 cannot be greater than max_model_len=4096. Please request fewer output tokens. ` +
				`(parameter=max_tokens, value=5000)","type":"BadRequestError","param":"max_tokens"`},
		{"max_tokens 0", completions, `{"prompt":[20],"max_tokens":0}`, 400,
			`"max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)"`},
		{"max_tokens -1", completions, `{"prompt":[20],"max_tokens":-1}`, 400,
			`"max_tokens must be at least 1, got -1. (parameter=max_tokens, value=-1)"`},
		{"max_tokens null", completions, `{"prompt":[20],"max_tokens":null}`, 200, `"completion_tokens":16`},
		{"min_tokens over max_tokens", completions, `{"prompt":[20],"max_tokens":2,"min_tokens":3}`, 400,
			`{"error":{"message":"min_tokens must be less than or equal to max_tokens=2, got 3.","type":"BadRequestError",` +
				`"param":null,"code":400}}`},
		{"min_tokens", completions, `{"prompt":[20],"min_tokens":-3}`, 400,
			`"min_tokens must be greater than or equal to 0, got -3."`},
		{"temperature", completions, `{"prompt":[20],"temperature":-1}`, 400,
			`"temperature must be non-negative, got -1.0. (parameter=temperature, value=-1.0)"`},
		{"top_p", completions, `{"prompt":[20],"top_p":2}`, 400, `"top_p must be in (0, 1], got 2.0.`},
		{"not a number", completions, `{"prompt":[20],"max_tokens":"abc"}`, 400,
			`{"error":{"message":"1 validation error:\n  {'type': 'int_parsing', 'loc': 'body.max_tokens', 'msg': 'Input ` +
				`should be a valid integer, unable to parse string as an integer', 'input': 'abc'}","type":"Bad Request",` +
				`"param":"body.max_tokens","code":400}}`},
		{"a number in a string", completions, `{"prompt":[20],"max_tokens":"3"}`, 200, `"completion_tokens":3`},
		{"a fraction", completions, `{"prompt":[20],"max_tokens":1.5}`, 400, `'int_from_float', 'loc': 'body.max_tokens'`},
		{"a whole float", completions, `{"prompt":[20],"max_tokens":4.0}`, 200, `"completion_tokens":4`},
		{"two faults", completions, `{"prompt":[20],"stream":5,"priority":"x"}`, 400, `"2 validation errors:\n`},
		{"nested fault", completions, `{"prompt":[20],"stream":true,"stream_options":{"include_usage":7}}`, 400,
			`'loc': 'body.stream_options.include_usage'`},
		{"broken JSON", completions, `{"prompt":[5,6], "max_tokens":`, 400,
			`"message":"1 validation error:\n  {'type': 'json_invalid', 'loc': 'body.`},
		{"empty body", completions, ``, 400,
			`"1 validation error:\n  {'type': 'missing', 'loc': 'body', 'msg': 'Field required', 'input': 'None'}"`},
		{"a list", completions, `[1,2]`, 400, `'type': 'model_attributes_type', 'loc': 'body'`},
		{"null", completions, `null`, 400, `'type': 'missing', 'loc': 'body'`},
		{"unknown model", completions, `{"prompt":[5],"model":"nope"}`, 404,
			"{\"error\":{\"message\":\"The model `nope` does not exist. Valid aliases: meta-llama/Llama-3.1-8B.\"," +
				`"type":"NotFoundError","param":"model","code":404}}`},
		{"no prompt", completions, `{}`, 400,
			`"Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"`},
		{"empty text", completions, `{"prompt":""}`, 400, `"Either prompt or prompt_embeds must be provided`},
		{"empty list", completions, `{"prompt":[]}`, 400, `"You must pass at least one prompt"`},
		{"empty list in a list", completions, `{"prompt":[[]]}`, 400, `"The decoder prompt cannot be empty"`},
		{"two prompts", completions, `{"prompt":[[20],[21]]}`, 400, `one prompt per request`},
		{"two texts", completions, `{"prompt":["a","b"]}`, 400, `one prompt per request`},
		{"an object", completions, `{"prompt":{"a":1}}`, 400, `'loc': 'body.prompt', 'msg': 'Input should be a valid`},
		{"mixed list", completions, `{"prompt":[5,"x"]}`, 400, `'loc': 'body.prompt'`},
		{"negative id", completions, `{"prompt":[5,-6]}`, 400, `'loc': 'body.prompt'`},
		{"unknown id", completions, `{"prompt":[128256]}`, 400, `"Token id 128256 is out of vocabulary"`},
		{"options without stream", completions, `{"prompt":[5],"stream_options":{"include_usage":true}}`, 400,
			`{"error":{"message":"Stream options can only be defined when ` + "`stream=True`" +
				`. (parameter=stream_options)","type":"BadRequestError","param":"stream_options","code":400}}`},
		{"empty salt", completions, `{"prompt":[5],"cache_salt":""}`, 400,
			`"Parameter 'cache_salt' must be a non-empty string if provided. (parameter=cache_salt)"`},
		{"stream_interval 0", completions, `{"prompt":[5],"stream_interval":0}`, 400,
			`'greater_than_equal', 'loc': 'body.stream_interval', 'msg': 'Input should be greater than or equal to 1', ` +
				`'input': '0', 'ctx': {'ge': 1}}`},
		{"n 0", completions, `{"prompt":[5],"n":0}`, 400, `"n must be at least 1, got 0."`},
		{"n 2", completions, `{"prompt":[5],"n":2}`, 400, `n must be 1. (parameter=n, value=2)`},
		{"logprobs", completions, `{"prompt":[5],"logprobs":1}`, 400, "does not support `logprobs`"},
		{"echo", completions, `{"prompt":[5],"echo":true}`, 400, "does not support `echo`"},
		{"echo off", completions, `{"prompt":[5],"echo":false,"logprobs":null}`, 200, `"completion_tokens":16`},
		{"structured", chat, `{"messages":[{"role":"user"}],"response_format":{"type":"json_object"}}`, 400,
			`generates text only`},
		{"chat without messages", chat, `{}`, 400, `'type': 'missing', 'loc': 'body.messages', 'msg': 'Field required'`},
		{"chat of text", chat, `{"messages":"x"}`, 400,
			`"1 validation error:\n  {'type': 'list_type', 'loc': 'body.messages', 'msg': 'Input should be a valid list', ` +
				`'input': 'x'}"`},
		{"no messages", chat, `{"messages":[]}`, 400, `"At least one message is required. (parameter=messages)"`},
		{"no role", chat, `{"messages":[{"content":"x"}]}`, 400, `'type': 'missing', 'loc': 'body.messages.0.role'`},
		{"an image", chat, `{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}`, 400,
			`'loc': 'body.messages.0.content'`},
		{"unknown path", "/v1/nope", `{}`, 404, `{"detail":"Not Found"}`},
		{"wrong method", "/v1/models", `{}`, 405, `{"detail":"Method Not Allowed"}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, given(t), func(t *testing.T, e *Engine) {
				rep := post(t.Context(), e, c.path, c.body)
				if rep.status != c.status || !strings.Contains(rep.body, c.want) {
					t.Errorf("%d %s\nexpected %d and %s", rep.status, rep.body, c.status, c.want)
				}
				if got := rep.header.Get("Content-Type"); got != "application/json" {
					t.Errorf("Content-Type %q", got)
				}
				if c.status != http.StatusOK {
					if got := samples(t, e)["vllm:prefix_cache_queries_total"]; got != 0 {
						t.Errorf("the scheduler saw the request: %g tokens queried", got)
					}
				}
			})
		})
	}
	inBubble(t, given(t), func(t *testing.T, e *Engine) {
		if rep := get(e, completions); rep.status != 405 || rep.header.Get("Allow") != "POST" {
			t.Errorf("GET on the route: %d, Allow %q", rep.status, rep.header.Get("Allow"))
		}
		rep := post(t.Context(), e, completions, `{"prompt":[5]}`, "Content-Type", "text/plain")
		if rep.status != 400 || !strings.Contains(rep.body, "Unsupported Media Type: Only 'application/json' is allowed") {
			t.Errorf("text/plain: %d %s", rep.status, rep.body)
		}
	})
}

func TestPages(t *testing.T) {
	inBubble(t, options(t), func(t *testing.T, e *Engine) {
		for path, want := range map[string]string{
			"/health": "", "/ping": "", "/version": `{"version":"0.32.0+kvtune.embedded"}`, "/load": `{"server_load":0}`,
			"/kvtune/info": `{"simulated":true,"gpu":"H200","model":"meta-llama/Llama-3.1-8B","args":{` +
				`"max_num_batched_tokens":2048,"max_num_seqs":64,"block_size":16,"gpu_memory_utilization":0.92,` +
				`"max_model_len":4096},"num_gpu_blocks":1001,"speed":1}`,
		} {
			if rep := get(e, path); rep.status != http.StatusOK || rep.body != want {
				t.Errorf("%s: %d %s\nexpected %s", path, rep.status, rep.body, want)
			}
		}
		models := get(e, "/v1/models").body
		for _, want := range []string{`"id":"meta-llama/Llama-3.1-8B"`, `"root":"meta-llama/Llama-3.1-8B"`,
			`"max_model_len":4096`} {
			if !strings.Contains(models, want) {
				t.Errorf("/v1/models lacks %s: %s", want, models)
			}
		}
		golden(t, "metrics.txt", get(e, "/metrics").body)
	})
}

// slowWriter takes a while for each write, as a client that reads slowly does.
type slowWriter struct{ *writer }

func (w slowWriter) Write(p []byte) (int, error) {
	time.Sleep(100 * time.Millisecond)
	return w.writer.Write(p)
}

func TestSlowReadersGetMergedEvents(t *testing.T) {
	opt := given(t)
	synctest.Test(t, func(t *testing.T) {
		e, err := newEngine(opt, newRuntimeAlarm())
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/completions",
			strings.NewReader(`{"prompt":[20],"max_tokens":200,"stream":true,"return_token_ids":true}`))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		w := slowWriter{&writer{ResponseRecorder: httptest.NewRecorder()}}
		e.Handler().ServeHTTP(w, r)
		total, largest := 0, 0
		for _, ev := range w.events {
			if ev.data == "[DONE]" {
				break
			}
			n := len(decode(t, ev.data).Choices[0].TokenIDs)
			total, largest = total+n, max(largest, n)
		}
		if total != 200 || largest < 5 {
			t.Errorf("%d tokens, at most %d in an event; expected 200, merged", total, largest)
		}
	})
}

func TestSameRequestSameAnswer(t *testing.T) {
	var mu sync.Mutex
	answers := map[string]int{}
	created := regexp.MustCompile(`"created":\d+`)
	for seed := range 3 {
		opt := options(t)
		opt.Seed = uint64(seed)
		inBubble(t, opt, func(t *testing.T, e *Engine) {
			rep := post(t.Context(), e, "/v1/completions", `{"prompt":"hello, world","request_id":"x"}`)
			mu.Lock()
			answers[created.ReplaceAllString(rep.body, "")]++
			mu.Unlock()
		})
	}
	if len(answers) != 1 {
		t.Errorf("the answer depends on the engine's seed: %v", answers)
	}
}
