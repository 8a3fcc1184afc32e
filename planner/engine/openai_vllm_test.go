//go:build vllm

package engine

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestVLLMInstallationsOpenAIClient lets the official client judge the engine: both endpoints, in one piece and
// streamed, and errors. It needs the Python of `make test-vllm` and fails without it.
func TestVLLMInstallationsOpenAIClient(t *testing.T) {
	dir := os.Getenv("KVTUNE_VLLM")
	if dir == "" {
		t.Fatal("KVTUNE_VLLM names no vLLM installation; run make test-vllm, which makes one")
	}
	opt := options(t)
	opt.Speed = 10
	e, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	url, err := e.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	python := exec.Command(filepath.Join(dir, "bin", "python"), filepath.Join("testdata", "openai_client.py"), url)
	if out, err := python.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
