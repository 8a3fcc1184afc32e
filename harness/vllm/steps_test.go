package vllm

import (
	_ "embed"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kvtune/harness"
)

// Lines as vLLM 0.18, 0.26 and 0.32 write them, between others.
//
//go:embed testdata/steps.log
var stepsLog string

func wantSteps() []harness.StepRecord {
	unknown := harness.StepRecord{T: -1, KVUsage: -1, Running: -1, Waiting: -1, Preemptions: -1}
	a, b, c := unknown, unknown, unknown
	a.ContextRequests, a.ContextTokens, a.Elapsed = 1, 2048, 507280*time.Microsecond
	b.GenerationRequests, b.GenerationTokens, b.Elapsed, b.KVUsage = 16, 16, 7040*time.Microsecond, 0.002
	c.ContextRequests, c.ContextTokens, c.GenerationRequests, c.GenerationTokens = 2, 300, 5, 5
	c.Elapsed, c.KVUsage = 12500*time.Microsecond, 0.415
	return []harness.StepRecord{a, b, c}
}

func TestParseSteps(t *testing.T) {
	got, err := ParseSteps(strings.NewReader(stepsLog))
	if err != nil || !slices.Equal(got, wantSteps()) {
		t.Errorf("%v, %+v, want %+v", err, got, wantSteps())
	}
}

// Steps gives every step once, and a line that is still being written when it is whole.
func TestStepsOfAProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	p := &Process{log: path}
	var got []harness.StepRecord
	for cut := 0; cut <= len(stepsLog); cut += 97 {
		end := min(len(stepsLog), cut+97)
		if err := os.WriteFile(path, []byte(stepsLog[:end]), 0o600); err != nil {
			t.Fatal(err)
		}
		steps, err := p.Steps()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, steps...)
	}
	if !slices.Equal(got, wantSteps()) {
		t.Errorf("%+v, want %+v", got, wantSteps())
	}
}

func FuzzParseSteps(f *testing.F) {
	f.Add([]byte(stepsLog))
	f.Fuzz(func(t *testing.T, data []byte) {
		steps, err := ParseSteps(strings.NewReader(string(data)))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range steps {
			if s.ContextTokens < 0 || s.GenerationTokens < 0 || s.Elapsed < 0 || s.KVUsage > 1 {
				t.Fatalf("%+v", s)
			}
		}
	})
}
