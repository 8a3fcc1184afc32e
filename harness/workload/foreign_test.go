package workload

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

// Files as vLLM 0.32.0, aiperf 0.13.0 and guidellm 0.8.1 write them, cut to what is of interest.
const (
	vllmBench = `{"date": "20261125-163115", "endpoint_type": "openai", "backend": "openai", "label": null, "model_id": ` +
		`"gpt2", ` +
		`"tokenizer_id": "tok", "num_prompts": 3, "request_rate": 5.0, "burstiness": 1.0, "max_concurrency": null, ` +
		`"duration": 0.6174878280000939, "completed": 2, "failed": 1, "input_lens": [30, 31, 30], "output_lens": [4,` +
		` 5, 0], ` +
		`"ttfts": [0.011298725999949966, 0.011011972000005699, 0.0], "itls": [[0.001, 0.002, 0.003], [0.004, 0.005], []], ` +
		`"latencies": [0.015494099000079586, 0.015248300999928688, 0.0], "start_times": [1951.0, 1950.75, 1951.5], ` +
		`"generated_texts": ["secret", "", ""], "errors": ["", "", "Bad Request"], "mean_ttft_ms": 11.06}`
	vllmBenchSummary = `{"date": "20261125-163115", "endpoint_type": "openai", "backend": "openai", ` +
		`"tokenizer_id": "tok", ` +
		`"num_prompts": 3, "mean_ttft_ms": 11.06}`
	aiperf = `{"metadata":{"session_num":1,"x_request_id":"614d7557","conversation_id":"8813e3a8-7ff7","turn_index":0,` +
		`"credit_issued_ns":1795624302004495536,"request_start_ns":1795624302500000000,` +
		`"request_end_ns":1795624302640458469,` +
		`"benchmark_phase":"profiling","was_cancelled":false},"metrics":{"output_sequence_length":{"value":4,` +
		`"unit":"tokens"},` +
		`"request_latency":{"value":17.076098,"unit":"ms"},"time_to_first_token":{"value":13.25,"unit":"ms"},` +
		`"input_sequence_length":{"value":20,"unit":"tokens"},"usage_prompt_tokens":{"value":30,"unit":"tokens"},` +
		`"usage_completion_tokens":{"value":4,"unit":"tokens"},"usage_prompt_cache_read_tokens":{"value":16,` +
		`"unit":"tokens"},` +
		`"inter_chunk_latency":{"value":[2.25,1.5],"unit":"ms"},"http_req_connection_reused":{"value":0,"unit":"ratio"}}}` +
		"\n" +
		`{"metadata":{"conversation_id":"509b97ce","request_start_ns":1795624302000000000,"benchmark_phase":"warmup",` +
		`"was_cancelled":true},"metrics":{"input_sequence_length":{"value":20,"unit":"tokens"}},"error":{"code":500,` +
		`"type":"x",` +
		`"message":"boom"}}` + "\n"
	aiperfSummary = "{\n  \"schema_version\": \"1.4\",\n  \"aiperf_version\": \"0.13.0\"\n}\n"
	guidellm      = `{"metadata":{"version":2,"guidellm_version":"0.8.1"},"config":{},` +
		`"benchmarks":[{"requests":{"successful":[` +
		guidellmOne + `],"errored":[{"info":{"status":"errored","timings":{"targeted_start":1000.5,"request_start":1000.5},` +
		`"error":"ConnectError"},"input_metrics":{"text_tokens":7},"output_metrics":{}}],"incomplete":[` +
		`{"info":{"status":"queued","timings":{"queued":999.0}},"input_metrics":{},"output_metrics":{}}],"total":null}}]}`
	guidellmOne = `{"type_":"generative_request_stats","request_id":"r1","output":"secret","info":{"request_id":"r1",` +
		`"conversation_id":null,"turn_index":0,"status":"completed","timings":{"targeted_start":1000.0,"queued":999.9,` +
		`"request_start":1000.25,"first_request_iteration":1000.375,"first_token_iteration":1000.5,` +
		`"last_token_iteration":1001.5,` +
		`"token_iterations":4,"request_end":1001.6},"error":null},"input_metrics":{"text_tokens":20,"cached_tokens":16},` +
		`"output_metrics":{"text_tokens":5,"cached_tokens":null},"request_start_time":1000.25}`
)

func tokensAt(ms ...float64) []TokenEvent {
	var list []TokenEvent
	for _, m := range ms {
		list = append(list, TokenEvent{At: time.Duration(m * 1e6), Tokens: 1})
	}
	return list
}

func TestReadForeign(t *testing.T) {
	due := func(d time.Duration) *time.Duration { return &d }
	cached := 16
	for _, c := range []struct {
		file, tool string
		want       []Record
	}{
		{vllmBench, "vllm bench serve", []Record{
			{Index: 0, PromptTokens: 31, OutputTokens: 5, Tokens: tokensAt(11.011972, 15.011972, 20.011972)},
			{Index: 1, Sent: 250 * time.Millisecond, PromptTokens: 30, OutputTokens: 4,
				Tokens: tokensAt(11.298726, 12.298726, 14.298726, 17.298726)},
			{Index: 2, Sent: 750 * time.Millisecond, PromptTokens: 30, Error: "Bad Request"},
		}},
		{aiperf, "aiperf", []Record{
			{Index: 0, Phase: Warmup, PromptTokens: 20, Error: "boom", Session: "c2"},
			{Index: 1, Sent: 500 * time.Millisecond, PromptTokens: 30, OutputTokens: 4, CachedTokens: &cached, Session: "c1",
				Tokens: tokensAt(13.25, 15.5, 17)},
		}},
		{guidellm, "guidellm", []Record{
			{Index: 0, Due: due(0), Sent: 250 * time.Millisecond, PromptTokens: 20, OutputTokens: 5, CachedTokens: &cached,
				Tokens: []TokenEvent{{At: 250 * time.Millisecond, Tokens: 1}, {At: 1250 * time.Millisecond, Tokens: 4}}},
			{Index: 1, Sent: 500 * time.Millisecond, Due: due(500 * time.Millisecond), PromptTokens: 7, Error: "ConnectError"},
		}},
	} {
		runs, err := ReadForeign("file", strings.NewReader(c.file))
		if err != nil || len(runs) != 1 || runs[0].Tool != c.tool || runs[0].Name != "" {
			t.Errorf("%s: %v, %d runs", c.tool, err, len(runs))
			continue
		}
		if !reflect.DeepEqual(runs[0].Records, c.want) {
			t.Errorf("%s:\n%+v, want\n%+v", c.tool, runs[0].Records, c.want)
		}
		if text := fmt.Sprintf("%+v", runs); strings.Contains(text, "secret") {
			t.Errorf("%s: text of the run came through: %s", c.tool, text)
		}
	}
}

func TestReadForeignOfSeveralRuns(t *testing.T) {
	runs, err := ReadForeign("file", strings.NewReader(vllmBench+"\n"+vllmBench))
	if err != nil || len(runs) != 2 || runs[0].Name != "run1" || runs[1].Name != "run2" || len(runs[1].Records) != 3 {
		t.Errorf("appended results: %v, %+v", err, runs)
	}
	two := strings.Replace(guidellm, `"benchmarks":[`, `"benchmarks":[{"requests":{"successful":[`+guidellmOne+`]}},`, 1)
	runs, err = ReadForeign("file", strings.NewReader(two))
	if err != nil || len(runs) != 2 || runs[0].Name != "benchmark1" || len(runs[0].Records) != 1 {
		t.Errorf("a sweep: %v, %+v", err, runs)
	}
}

func TestReadForeignErrors(t *testing.T) {
	for _, c := range []struct{ file, want string }{
		{vllmBenchSummary, "with --save-detailed"},
		{aiperfSummary, "profile_export.jsonl"},
		{strings.Replace(vllmBench, `"input_lens": [30, 31, 30]`, `"input_lens": [30]`, 1), "expected one each per request"},
		{strings.Replace(vllmBench, `"itls": [[0.001`, `"itls": [[-1`, 1), "expected one from 0 on"},
		{strings.Replace(vllmBench, `"input_lens": [30, 31, 30]`, `"input_lens": [30, 31, -30]`, 1),
			"request 2: prompt_tokens is -30"},
		{strings.Replace(vllmBench, `"itls": [[0.001`, `"itls": [[4e9, 4e9`, 1), "request 0: the gaps between its chunks"},
		{strings.Replace(guidellm, `"turn_index":0`, `"turn_index":-3`, 1), "request 0: turn is -3"},
		{vllmBench[:len(vllmBench)-40], "unexpected EOF"},
		{`{"metadata":{"guidellm_version":"0.8.1"},"benchmarks":[]}`, "no benchmark"},
		{strings.Replace(aiperf, `"request_start_ns":1795624302500000000`, `"metrics_ns":1`, 1),
			"line 1: no metadata.request_start_ns"},
	} {
		_, err := ReadForeign("file", strings.NewReader(c.file))
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "file: ") {
			t.Errorf("%.60s...: %v, want %q", c.file, err, c.want)
		}
	}
	for _, file := range []string{"", "BenchmarkX 1 2 ns/op\n", `{"due_s":0,"prompt_tokens":3}`, "[1]", "time,in,out\n"} {
		if _, err := ReadForeign("file", strings.NewReader(file)); !errors.Is(err, ErrNotForeign) {
			t.Errorf("%q: %v", file, err)
		}
	}
}

// A run of another tool can be replayed.
func TestReadTraceOfForeign(t *testing.T) {
	for _, c := range []struct{ file, want string }{
		{vllmBench, "0s 31>5 250ms 30>4 750ms 30>1"},
		{guidellm, "0s 20>5 500ms 7>1"}, // as they were due
	} {
		if got := times(read(t, c.file, TraceOptions{})); got != c.want {
			t.Errorf("%.40s...: %s, want %s", c.file, got, c.want)
		}
	}
	if _, err := ReadTrace("two", strings.NewReader(vllmBench+vllmBench), TraceOptions{}); err == nil ||
		!strings.Contains(err.Error(), "one can be replayed") {
		t.Errorf("two runs: %v", err)
	}
}

func FuzzReadForeign(f *testing.F) {
	for _, file := range []string{vllmBench, vllmBenchSummary, aiperf, aiperfSummary, guidellm} {
		f.Add([]byte(file))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		runs, err := ReadForeign("fuzz", strings.NewReader(string(data)))
		if err != nil {
			return
		}
		for _, run := range runs {
			for i := range run.Records {
				r := &run.Records[i]
				if r.Index != i || r.Sent < 0 || r.Start() < 0 || r.End() < r.Start() || r.checkCounts() != nil {
					t.Fatalf("record %d: %+v", i, r)
				}
				for k := range r.Tokens {
					if r.Tokens[k].Tokens < 1 || r.Tokens[k].At < 0 || k > 0 && r.Tokens[k].At < r.Tokens[k-1].At {
						t.Fatalf("record %d, event %d: %+v", i, k, r.Tokens)
					}
				}
			}
		}
	})
}
