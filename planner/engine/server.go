package engine

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"kvtune/harness"
)

const (
	headerTimeout = 10 * time.Second
	bodyTimeout   = 30 * time.Second
	// writeTimeout ends a stream whose client has stopped reading.
	writeTimeout = time.Minute
	idleTimeout  = 2 * time.Minute
	// flushTimeout is how long Close waits for the last bytes of ended streams to be read.
	flushTimeout = 2 * time.Second
	// spareConnections may be open beside one per request.
	spareConnections = 256
)

// Handler serves vLLM's paths: /v1/completions, /v1/chat/completions, /v1/models, /health, /ping, /version, /load and
// /metrics; and /kvtune/info, which says that the server is simulated and with which settings.
func (e *Engine) Handler() http.Handler {
	metrics := promhttp.HandlerFor(e.met.reg, promhttp.HandlerOpts{})
	completions := func(chat bool) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { e.complete(w, r, chat) }
	}
	routes := map[string]map[string]http.HandlerFunc{
		"/v1/completions":      {http.MethodPost: completions(false)},
		"/v1/chat/completions": {http.MethodPost: completions(true)},
		"/v1/models":           {http.MethodGet: e.models},
		"/health":              {http.MethodGet: e.health},
		"/ping":                {http.MethodGet: e.health, http.MethodPost: e.health},
		"/version": {http.MethodGet: func(w http.ResponseWriter, _ *http.Request) {
			writeJSON(w, http.StatusOK, struct {
				Version string `json:"version"`
			}{Version})
		}},
		"/load": {http.MethodGet: func(w http.ResponseWriter, _ *http.Request) {
			writeJSON(w, http.StatusOK, struct {
				Load int64 `json:"server_load"`
			}{e.live.Load()})
		}},
		"/metrics":     {http.MethodGet: metrics.ServeHTTP},
		"/kvtune/info": {http.MethodGet: e.info},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server", "kvtune")
		methods, ok := routes[r.URL.Path]
		if !ok {
			writeDetail(w, http.StatusNotFound)
			return
		}
		handle, ok := methods[r.Method]
		if !ok {
			for _, m := range []string{http.MethodGet, http.MethodPost} {
				if _, ok := methods[m]; ok {
					w.Header().Add("Allow", m)
				}
			}
			writeDetail(w, http.StatusMethodNotAllowed)
			return
		}
		handle(w, r)
	})
}

// Listen serves on a TCP address such as "127.0.0.1:8000" (port 0 takes a free one) until Close, and returns the URL.
// It may be called more than once. Addresses that other machines can reach need Options.AllowRemote.
func (e *Engine) Listen(addr string) (url string, err error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return "", fmt.Errorf("listen address %q: expected host:port, e.g. 127.0.0.1:8000", addr)
	}
	if ip := net.ParseIP(host); !e.opt.AllowRemote && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return "", fmt.Errorf("listen address %q can be reached from other machines, and the engine has no authentication: "+
			"use 127.0.0.1, or allow remote clients (kvtune serve --allow-remote)", addr)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return "", fmt.Errorf("cannot listen on %s: %w", addr, err)
	}
	s := &http.Server{
		Handler: e.Handler(), ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: 64 << 10,
		ErrorLog: log.New(io.Discard, "", 0),
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closing {
		l.Close()
		return "", fmt.Errorf("cannot listen on %s: the engine is closed", addr)
	}
	e.servers = append(e.servers, s)
	go s.Serve(&limitListener{Listener: l, slots: make(chan struct{}, e.opt.MaxNumQueuedReqs+spareConnections)})
	return "http://" + l.Addr().String(), nil
}

// limitListener bounds the open connections; further ones wait in the kernel's queue.
type limitListener struct {
	net.Listener
	slots chan struct{}
}

// Accept waits for a free slot after a connection has come, so that closing the listener always ends it.
func (l *limitListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.slots <- struct{}{}
	return &limitConn{Conn: c, slots: l.slots}, nil
}

type limitConn struct {
	net.Conn
	slots chan struct{}
	once  sync.Once
}

// Close frees the slot.
func (c *limitConn) Close() error {
	c.once.Do(func() { <-c.slots })
	return c.Conn.Close()
}

func (e *Engine) health(w http.ResponseWriter, _ *http.Request) {
	select {
	case <-e.done:
		w.WriteHeader(http.StatusServiceUnavailable)
	default:
		w.WriteHeader(http.StatusOK)
	}
}

func (e *Engine) models(w http.ResponseWriter, _ *http.Request) {
	type permission struct {
		ID                 string  `json:"id"`
		Object             string  `json:"object"`
		Created            int64   `json:"created"`
		AllowCreateEngine  bool    `json:"allow_create_engine"`
		AllowSampling      bool    `json:"allow_sampling"`
		AllowLogprobs      bool    `json:"allow_logprobs"`
		AllowSearchIndices bool    `json:"allow_search_indices"`
		AllowView          bool    `json:"allow_view"`
		AllowFineTuning    bool    `json:"allow_fine_tuning"`
		Organization       string  `json:"organization"`
		Group              *string `json:"group"`
		IsBlocking         bool    `json:"is_blocking"`
	}
	type model struct {
		ID          string       `json:"id"`
		Object      string       `json:"object"`
		Created     int64        `json:"created"`
		OwnedBy     string       `json:"owned_by"`
		Root        string       `json:"root"`
		Parent      *string      `json:"parent"`
		MaxModelLen int          `json:"max_model_len"`
		Permission  []permission `json:"permission"`
	}
	created := e.started.Unix()
	writeJSON(w, http.StatusOK, struct {
		Object string  `json:"object"`
		Data   []model `json:"data"`
	}{"list", []model{{
		ID: e.opt.ServedModelName, Object: "model", Created: created, OwnedBy: "kvtune", Root: e.opt.Model.Name,
		MaxModelLen: e.cfg.MaxModelLen, Permission: []permission{{
			ID: "modelperm-kvtune", Object: "model_permission", Created: created, AllowSampling: true, AllowView: true,
			Organization: "*",
		}},
	}}})
}

// serverInfo is the answer of /kvtune/info: what a client must know to call its figures simulated. It has settings
// only.
type serverInfo struct {
	Simulated bool               `json:"simulated"`
	GPU       string             `json:"gpu"`
	Model     string             `json:"model"`
	Args      harness.EngineArgs `json:"args"`
	// NumGPUBlocks includes the null block.
	NumGPUBlocks int     `json:"num_gpu_blocks"`
	Speed        float64 `json:"speed"`
}

func (e *Engine) info(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, serverInfo{Simulated: true, GPU: e.opt.GPU.Name, Model: e.opt.Model.Name, Args: e.opt.Args,
		NumGPUBlocks: e.cfg.NumGPUBlocks, Speed: e.opt.Speed})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	data, err := encode(v)
	if err != nil {
		status, data = http.StatusInternalServerError, []byte(`{"detail":"Internal Server Error"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(data)
}

// encode is json.Marshal without HTML escapes: model names may have any character.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

func writeDetail(w http.ResponseWriter, status int) {
	writeJSON(w, status, struct {
		Detail string `json:"detail"`
	}{http.StatusText(status)})
}

func writeError(w http.ResponseWriter, err *apiError) {
	var param *string
	if err.param != "" {
		param = &err.param
	}
	type inner struct {
		Message string  `json:"message"`
		Type    string  `json:"type"`
		Param   *string `json:"param"`
		Code    int     `json:"code"`
	}
	writeJSON(w, err.status, struct {
		Error inner `json:"error"`
	}{inner{err.message, err.kind, param, err.status}})
}
