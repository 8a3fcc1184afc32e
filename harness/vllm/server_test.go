package vllm

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kvtune/harness"
)

const modelsPage = `{"object":"list","data":[
 {"id":"sql-adapter","root":"/adapters/sql","parent":"tiny","max_model_len":null},
 {"id":"tiny","root":"/models/tiny","parent":null,"max_model_len":4096}]}`

const metricsPage = `# HELP vllm:num_requests_running Running.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",reason="deferred"} 1.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.25
# TYPE vllm:prefix_cache_hits_total counter
vllm:prefix_cache_hits_total{engine="0",model_name="tiny"} 640.0
# TYPE vllm:prefix_cache_hits_created gauge
vllm:prefix_cache_hits_created{engine="0",model_name="tiny"} 1.7954858014600968e+09
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1"} 3.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf"} 4.0
vllm:time_to_first_token_seconds_count{engine="0"} 4.0
vllm:time_to_first_token_seconds_sum{engine="0"} 0.5
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{_block_size_resolved="True",block_size="128",cache_dtype="auto",` +
	`effective_attention_block_size="128",enable_prefix_caching="True",engine="0",gpu_memory_utilization="0.92",` +
	`is_attention_free="False",kv_offloading_size="None",mamba_block_size="None",num_gpu_blocks="4096",` +
	`num_gpu_blocks_override="None",sliding_window="None"} 1.0
# TYPE http_requests_total counter
http_requests_total{handler="/health"} 9.0
`

// pages is a server that answers GETs with fixed bodies.
type pages map[string]string

func (p pages) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, ok := p[r.URL.Path]
	if !ok {
		http.Error(w, `{"detail":"Not Found"}`, http.StatusNotFound)
		return
	}
	_, _ = w.Write([]byte(body))
}

// vllmPages are the pages of a healthy vLLM; change replaces or (with "") removes some.
func vllmPages(change pages) pages {
	p := pages{"/version": `{"version":"0.32.0"}`, "/v1/models": modelsPage, "/metrics": metricsPage}
	for path, body := range change {
		p[path] = body
		if body == "" {
			delete(p, path)
		}
	}
	return p
}

// connect connects to a fake server that answers with h.
func connect(t *testing.T, h http.Handler, opt Options) (*Server, error) {
	t.Helper()
	fake := httptest.NewServer(h)
	t.Cleanup(fake.Close)
	s, err := Connect(t.Context(), fake.URL, opt)
	if err == nil {
		t.Cleanup(s.Close)
	}
	return s, err
}

func TestConnectReadsWhatTheServerSays(t *testing.T) {
	launched := harness.EngineArgs{MaxNumSeqs: 64, BlockSize: 16}
	s, err := connect(t, vllmPages(nil), Options{Args: launched})
	if err != nil {
		t.Fatal(err)
	}
	yes := true
	want := harness.ServerInfo{
		Kind: harness.KindVLLM, Version: "0.32.0", Model: "tiny", Root: "/models/tiny", MaxModelLen: 4096,
		Adapters: []string{"sql-adapter"}, BlockSize: 128, NumGPUBlocks: 4096, EnablePrefixCaching: &yes, CacheDType: "auto",
		GPUMemoryUtilization: 0.92, Args: harness.EngineArgs{MaxNumSeqs: 64, BlockSize: 128, EnablePrefixCaching: &yes,
			KVCacheDType: "auto", GPUMemoryUtilization: 0.92, MaxModelLen: 4096},
		Features: []harness.Feature{
			{Name: "prefix caching", Support: modelled},
			{Name: "LoRA", Support: measuredOnly, Note: "sql-adapter"},
		},
	}
	if diff := cmp.Diff(want, s.Info()); diff != "" {
		t.Errorf("info (-want +got):\n%s", diff)
	}
}

func TestConnectNamesAnAdapterOnDemand(t *testing.T) {
	s, err := connect(t, vllmPages(nil), Options{Model: "sql-adapter"})
	if err != nil || s.Info().Model != "sql-adapter" {
		t.Errorf("model %q, %v", s.Info().Model, err)
	}
	_, err = connect(t, vllmPages(nil), Options{Model: "nope"})
	if err == nil || !strings.Contains(err.Error(), `"nope"`) || !strings.Contains(err.Error(), "sql-adapter, tiny") {
		t.Errorf("unknown model: %v; want one that lists the served ones", err)
	}
}

func TestConnectEmbeddedEngine(t *testing.T) {
	engine := vllmPages(pages{
		"/version":     `{"version":"0.32.0+kvtune.embedded"}`,
		"/kvtune/info": `{"gpu":"H200","args":{"max_num_batched_tokens":8192,"max_num_seqs":1024,"async_scheduling":true}}`,
	})
	s, err := connect(t, engine, Options{})
	if err != nil {
		t.Fatal(err)
	}
	info := s.Info()
	if !info.Simulated() || info.GPU != "H200" || info.Args.MaxNumBatchedTokens != 8192 || info.Args.MaxNumSeqs != 1024 ||
		info.Args.AsyncScheduling == nil || info.Args.BlockSize != 128 {
		t.Errorf("info %+v", info)
	}
	delete(engine, "/kvtune/info")
	if _, err := connect(t, engine, Options{}); err == nil || !strings.Contains(err.Error(), "/kvtune/info") {
		t.Errorf("engine without settings: %v", err)
	}
}

func TestConnectRefusesOtherServers(t *testing.T) {
	for _, c := range []struct {
		name   string
		change pages
		why    string
	}{
		{"a web server", pages{"/version": "", "/v1/models": "", "/metrics": ""}, "GET /version answers status 404"},
		{"html everywhere", pages{"/version": "<html>"}, "/version does not answer"},
		{"version of something else", pages{"/version": `{"build":"7"}`}, "/version does not answer"},
		{"no models", pages{"/v1/models": `{"data":[]}`}, "lists no model"},
		{"no metrics", pages{"/metrics": ""}, "GET /metrics answers status 404"},
		{"metrics of another engine", pages{"/metrics": "# TYPE sglang:x gauge\nsglang:x 1\n"}, "--disable-log-stats"},
		{"metrics are no metrics", pages{"/metrics": "<html>\n"}, "not in Prometheus' text format"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := connect(t, vllmPages(c.change), Options{})
			var not *NotVLLMError
			if !errors.As(err, &not) || !strings.Contains(err.Error(), c.why) {
				t.Errorf("%v; want a NotVLLMError with %q", err, c.why)
			}
		})
	}
}

func TestConnectUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	var un *UnreachableError
	if _, err := Connect(t.Context(), addr, Options{}); !errors.As(err, &un) || un.URL != "http://"+addr ||
		!strings.Contains(err.Error(), "refused") || !strings.Contains(err.Error(), "vllm serve") {
		t.Errorf("closed port: %v", err)
	}
	stalled := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer stalled.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Connect(ctx, stalled.URL, Options{}); !errors.As(err, &un) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silent server: %v", err)
	}
	for _, bad := range []string{"", "http://", "ftp://host", "http://ho st", "::"} {
		if _, err := Connect(t.Context(), bad, Options{}); err == nil || !strings.Contains(err.Error(), "http://HOST:PORT") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestConnectWithAKey(t *testing.T) {
	h := vllmPages(nil)
	guarded := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v1/") && r.Header.Get("Authorization") != "Bearer sesame" {
			http.Error(w, `{"error":"Unauthorized"}`, http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, r)
	})
	if _, err := connect(t, guarded, Options{APIKey: "sesame"}); err != nil {
		t.Error(err)
	}
	var api *APIError
	if _, err := connect(t, guarded, Options{}); !errors.As(err, &api) || api.Status != http.StatusUnauthorized ||
		!strings.Contains(err.Error(), "API key") {
		t.Errorf("no key: %v", err)
	}
}

func TestParseURL(t *testing.T) {
	for in, want := range map[string]string{
		"host:8000":             "http://host:8000",
		"http://host:8000/":     "http://host:8000",
		"http://host:8000/v1/":  "http://host:8000",
		"https://host/llm/v1?x": "https://host/llm",
		"[::1]:8000":            "http://[::1]:8000",
	} {
		if got, err := parseURL(in); err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestFeatures(t *testing.T) {
	cfg := func(old, new string) string { return strings.Replace(metricsPage, old, new, 1) }
	for _, c := range []struct{ name, page, feature, support string }{
		{"prefix caching off", cfg(`enable_prefix_caching="True"`, `enable_prefix_caching="False"`), "prefix caching",
			modelled},
		{"fp8 cache", cfg(`cache_dtype="auto"`, `cache_dtype="fp8"`), "kv cache dtype fp8", modelled},
		{"two engines", metricsPage + "vllm:num_requests_running{engine=\"1\"} 0\n", "several engines", measuredOnly},
		{"speculative",
			metricsPage + "# TYPE vllm:spec_decode_num_drafts_total counter\nvllm:spec_decode_num_drafts_total 0\n",
			"speculative decoding", measuredOnly},
		{"offload", cfg(`kv_offloading_size="None"`, `kv_offloading_size="8.0"`), "KV offload", measuredOnly},
		{"window", cfg(`sliding_window="None"`, `sliding_window="4096"`), "sliding window", measuredOnly},
		{"mamba", cfg(`mamba_block_size="None"`, `mamba_block_size="528"`), "hybrid or attention-free model", notSupported},
		{"groups", cfg(`effective_attention_block_size="128"`, `effective_attention_block_size="32"`), "hybrid cache groups",
			measuredOnly},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := connect(t, vllmPages(pages{"/metrics": c.page}), Options{})
			if err != nil {
				t.Fatal(err)
			}
			found := false
			for _, f := range s.Info().Features {
				found = found || f.Name == c.feature && f.Support == c.support
			}
			if !found {
				t.Errorf("no %q, %s in %+v", c.feature, c.support, s.Info().Features)
			}
		})
	}
}
