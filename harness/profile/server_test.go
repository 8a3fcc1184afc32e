package profile_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"kvtune/harness"
	"kvtune/harness/vllm"
	"kvtune/planner/engine"
	"kvtune/planner/spec"
)

// serve starts the embedded engine: gpt2 with a context of 1024 tokens, blocks of 16, ten thousand times as fast as the
// GPU. change may alter its options, wrap its handler.
func serve(t *testing.T, change func(*engine.Options), wrap func(http.Handler) http.Handler) *httptest.Server {
	t.Helper()
	model, err := spec.FindModel("gpt2")
	if err != nil {
		t.Fatal(err)
	}
	gpu, err := spec.FindGPU("L4")
	if err != nil {
		t.Fatal(err)
	}
	opt := engine.Options{
		Model: model, GPU: gpu, NumGPUBlocks: 2000, Seed: 1, Speed: 1e4, EnablePromptTokensDetails: true,
		Args: harness.EngineArgs{MaxNumBatchedTokens: 2048, MaxNumSeqs: 16, BlockSize: 16, MaxModelLen: 1024},
	}
	if change != nil {
		change(&opt)
	}
	e, err := engine.New(opt)
	if err != nil {
		t.Fatal(err)
	}
	handler := e.Handler()
	if wrap != nil {
		handler = wrap(handler)
	}
	s := httptest.NewServer(handler)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func connect(t *testing.T, s *httptest.Server, opt vllm.Options) *vllm.Server {
	t.Helper()
	srv, err := vllm.Connect(t.Context(), s.URL, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Close)
	return srv
}
