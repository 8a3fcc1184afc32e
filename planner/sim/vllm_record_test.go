//go:build vllm

package sim

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A vLLM that is at hand says the same as the one of the golden file, in two of its cases.
func TestStepsOfVLLMRecordedAgain(t *testing.T) {
	dir := os.Getenv("KVTUNE_VLLM")
	if dir == "" {
		t.Fatal("KVTUNE_VLLM names no vLLM installation; run make test-vllm, which makes one")
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(dir, "bin", "python"), "testdata/vllm_steps.py",
		filepath.Join(dir, "tiny-llama"), "everything", "conversations-evicted")
	var log strings.Builder
	cmd.Stderr = &log
	data, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	all := readRecordings(t, data)
	if len(all) != 2 {
		t.Fatalf("%d cases were recorded, not 2\n%s", len(all), log.String())
	}
	for i := range all {
		all[i].compare(t)
	}
}
