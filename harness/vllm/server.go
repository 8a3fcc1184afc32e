package vllm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"kvtune/harness"
)

// maxBody bounds an answer that is read whole.
const maxBody = 64 << 20

// Options say how to reach a server and what is known of it beforehand.
type Options struct {
	// APIKey is sent as a bearer token, "" for none.
	APIKey string
	// Model is the served model to use, "" for the first one that is no adapter.
	Model string
	// Args are settings known to be in force because the caller launched the server with them; [Server.Info] repeats
	// them, completed by what the server itself says.
	Args harness.EngineArgs
	// ConnectTimeout bounds each of address lookup with dialling, and TLS handshake; 0 is 30 s.
	ConnectTimeout time.Duration
	// HTTPClient replaces the package's own client: HTTP/1.1 with one connection per request in flight, without limit, or
	// HTTP/2 where a server offers it over TLS; no compression, no timeout but the one above (contexts bound requests).
	HTTPClient *http.Client
}

// Server is a reachable vLLM server, or the embedded engine. It is safe for concurrent use.
type Server struct {
	url  string
	key  string
	http *http.Client
	info harness.ServerInfo
}

// Connect asks the server at baseURL ("http://host:8000"; a missing scheme is http, a trailing "/v1" is dropped) what
// it is: /version, /v1/models, /metrics, and /kvtune/info if it is the embedded engine.
// Errors: *UnreachableError, *NotVLLMError, *APIError (a wrong key), or one that names an unknown model.
func Connect(ctx context.Context, baseURL string, opt Options) (*Server, error) {
	u, err := parseURL(baseURL)
	if err != nil {
		return nil, err
	}
	s := &Server{url: u, key: opt.APIKey, http: opt.HTTPClient}
	if s.http == nil {
		s.http = newHTTPClient(opt.ConnectTimeout)
	}
	if err := s.identify(ctx, opt); err != nil {
		return nil, err
	}
	return s, nil
}

func parseURL(raw string) (string, error) {
	full := raw
	if !strings.Contains(full, "://") {
		full = "http://" + full
	}
	u, err := url.Parse(full)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return "", fmt.Errorf("endpoint %q is not an address: expected http://HOST:PORT", raw)
	}
	u.RawQuery, u.Fragment = "", ""
	return strings.TrimSuffix(strings.TrimRight(u.String(), "/"), "/v1"), nil
}

// URL is the server's base address, without a trailing slash.
func (s *Server) URL() string { return s.url }

// Info is what is known of the server since Connect.
func (s *Server) Info() harness.ServerInfo {
	info := s.info
	info.Features = append([]harness.Feature(nil), info.Features...)
	return info
}

// Close drops idle connections.
func (s *Server) Close() { s.http.CloseIdleConnections() }

func (s *Server) newRequest(ctx context.Context, method, path string, body io.Reader) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, body)
	if err != nil {
		return nil, err
	}
	if s.key != "" {
		req.Header.Set("Authorization", "Bearer "+s.key)
	}
	return req, nil
}

// get returns the body of a 200 answer and when it had arrived; any other status is an *APIError.
func (s *Server) get(ctx context.Context, path string) (body []byte, header http.Header, at time.Time, err error) {
	req, err := s.newRequest(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, nil, at, err
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return nil, nil, at, cause(ctx, err)
	}
	defer resp.Body.Close()
	if err := encoded(resp); err != nil {
		return nil, nil, at, err
	}
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	at = time.Now()
	switch {
	case err != nil:
		return nil, nil, at, cause(ctx, err)
	case len(body) > maxBody:
		return nil, nil, at, fmt.Errorf("answer of %s is over %d bytes", path, maxBody)
	case resp.StatusCode != http.StatusOK:
		return nil, nil, at, s.hideKey(parseAPIError(resp.StatusCode, body))
	}
	return body, resp.Header, at, nil
}

// encoded refuses an answer in a content coding: none is asked for, and what a few bytes may unpack to has no bound.
func encoded(resp *http.Response) error {
	if c := resp.Header.Get("Content-Encoding"); c != "" && c != "identity" {
		return fmt.Errorf("the answer is in the content coding %.40q, which was not asked for: look at the gateway before "+
			"the server", c)
	}
	return nil
}

// identify fills s.info.
func (s *Server) identify(ctx context.Context, opt Options) error {
	s.info.Args = opt.Args
	version, header, err := s.version(ctx)
	if err != nil {
		return err
	}
	s.info.Version, s.info.Kind = version, harness.KindVLLM
	if strings.HasSuffix(version, "+kvtune.embedded") || strings.HasPrefix(header.Get("Server"), "kvtune") {
		s.info.Kind = harness.KindEmbedded
	}
	if err := s.models(ctx, opt.Model); err != nil {
		return err
	}
	page, _, _, err := s.get(ctx, "/metrics")
	if err != nil {
		return s.notVLLM("/metrics", err)
	}
	families, err := parseMetrics(page)
	if err != nil {
		return &NotVLLMError{URL: s.url, Why: fmt.Sprintf("/metrics is not in Prometheus' text format (%v)", err), Err: err}
	}
	if !hasVLLM(families) {
		return &NotVLLMError{URL: s.url, Why: "/metrics has no vllm: metrics (a vLLM started with --disable-log-stats has " +
			"none: start it without)"}
	}
	s.readCacheConfig(families)
	if s.info.Kind == harness.KindEmbedded {
		if err := s.embedded(ctx); err != nil {
			return err
		}
	}
	s.completeArgs()
	s.info.Features = features(families, s.info.Adapters)
	return nil
}

func (s *Server) version(ctx context.Context) (string, http.Header, error) {
	body, header, _, err := s.get(ctx, "/version")
	var api *APIError
	if err != nil && !errors.As(err, &api) {
		if ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
			return "", nil, &UnreachableError{URL: s.url, Err: fmt.Errorf("gave up waiting for /version: %w", err)}
		}
		return "", nil, &UnreachableError{URL: s.url, Err: rootCause(err)}
	}
	if err != nil {
		return "", nil, s.notVLLM("/version", err)
	}
	var doc struct {
		Version string `json:"version"`
	}
	if json.Unmarshal(body, &doc) != nil || doc.Version == "" {
		return "", nil, &NotVLLMError{URL: s.url, Why: `/version does not answer {"version": ...}`}
	}
	return doc.Version, header, nil
}

// models reads /v1/models into s.info and picks the model to use.
func (s *Server) models(ctx context.Context, want string) error {
	body, _, _, err := s.get(ctx, "/v1/models")
	var api *APIError
	if errors.As(err, &api) && (api.Status == http.StatusUnauthorized || api.Status == http.StatusForbidden) {
		return fmt.Errorf("%s: %w", s.url, err)
	}
	if err != nil {
		return s.notVLLM("/v1/models", err)
	}
	var doc struct {
		Data []struct {
			ID          string  `json:"id"`
			Root        string  `json:"root"`
			Parent      *string `json:"parent"`
			MaxModelLen int     `json:"max_model_len"`
		} `json:"data"`
	}
	if err := json.Unmarshal(body, &doc); err != nil || len(doc.Data) == 0 {
		return &NotVLLMError{URL: s.url, Why: "/v1/models lists no model", Err: err}
	}
	var names []string
	found := false
	for _, m := range doc.Data {
		names = append(names, m.ID)
		if m.Parent != nil && *m.Parent != "" {
			s.info.Adapters = append(s.info.Adapters, m.ID)
		}
		if !found && (want == m.ID || want == "" && (m.Parent == nil || *m.Parent == "")) {
			found = true
			s.info.Model, s.info.Root, s.info.MaxModelLen = m.ID, m.Root, m.MaxModelLen
		}
	}
	if !found {
		return fmt.Errorf("%s does not serve model %q: it serves %s", s.url, want, strings.Join(names, ", "))
	}
	return nil
}

// notVLLM words the failure of a path that every vLLM has.
func (s *Server) notVLLM(path string, err error) error {
	var api *APIError
	if !errors.As(err, &api) {
		return &UnreachableError{URL: s.url, Err: fmt.Errorf("%s: %w", path, rootCause(err))}
	}
	return &NotVLLMError{URL: s.url, Why: fmt.Sprintf("GET %s answers status %d", path, api.Status), Err: err}
}

// rootCause drops net/http's "Get URL:" in front of a transport error.
func rootCause(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// readCacheConfig takes what vllm:cache_config_info says. Its labels are every attribute of vLLM's CacheConfig as
// Python prints them; which ones exist differs by version, "None" is unset.
func (s *Server) readCacheConfig(families metricFamilies) {
	cfg := families.labels("vllm:cache_config_info")
	s.info.BlockSize, _ = strconv.Atoi(cfg["block_size"])
	s.info.NumGPUBlocks, _ = strconv.Atoi(cfg["num_gpu_blocks"])
	s.info.GPUMemoryUtilization, _ = strconv.ParseFloat(cfg["gpu_memory_utilization"], 64)
	s.info.EnablePrefixCaching = pythonBool(cfg["enable_prefix_caching"])
	if d := cfg["cache_dtype"]; d != "None" {
		s.info.CacheDType = d
	}
	if g, err := strconv.ParseFloat(cfg["kv_offloading_size"], 64); err == nil && s.info.Args.KVOffloadingSize == 0 {
		s.info.Args.KVOffloadingSize = g
	}
	if n, err := strconv.Atoi(cfg["num_gpu_blocks_override"]); err == nil && s.info.Args.NumGPUBlocksOverride == 0 {
		s.info.Args.NumGPUBlocksOverride = n
	}
}

func pythonBool(s string) *bool {
	var b bool
	switch s {
	case "True":
		b = true
	case "False":
	default:
		return nil
	}
	return &b
}

// embedded asks the embedded engine for the settings and the GPU that it simulates.
func (s *Server) embedded(ctx context.Context) error {
	body, _, _, err := s.get(ctx, "/kvtune/info")
	if err != nil {
		return fmt.Errorf("%s says that it is kvtune's embedded engine, but /kvtune/info fails: %w; "+
			"run the same version of kvtune on both sides", s.url, err)
	}
	var doc struct {
		GPU  string             `json:"gpu"`
		Args harness.EngineArgs `json:"args"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return fmt.Errorf("%s/kvtune/info is not understood: %w; run the same version of kvtune on both sides", s.url, err)
	}
	s.info.GPU, s.info.Args = doc.GPU, doc.Args
	return nil
}

// completeArgs adds what the server shows of its settings to those that the caller knew. The server is right where the
// two differ: a backend may replace a block size.
func (s *Server) completeArgs() {
	a, info := &s.info.Args, &s.info
	if info.BlockSize > 0 {
		a.BlockSize = info.BlockSize
	}
	if info.EnablePrefixCaching != nil {
		a.EnablePrefixCaching = info.EnablePrefixCaching
	}
	if info.GPUMemoryUtilization > 0 {
		a.GPUMemoryUtilization = info.GPUMemoryUtilization
	}
	if info.CacheDType != "" {
		a.KVCacheDType = info.CacheDType
	}
	if info.MaxModelLen > 0 {
		a.MaxModelLen = info.MaxModelLen
	}
}
