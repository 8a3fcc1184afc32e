package profile_test

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/profile"
)

func decode(c, m, b int) harness.Config {
	cfg := harness.DefaultConfig()
	cfg.Name, cfg.C, cfg.M, cfg.B, cfg.ProfilingType, cfg.OutputLen = "run", c, m, b, harness.Decode, "32"
	cfg.NumWarmup, cfg.NumMeasurements = 1, 2
	return cfg
}

func TestWorkloadOfAServer(t *testing.T) {
	server := harness.ServerInfo{MaxModelLen: 1024, BlockSize: 16}
	tests := []struct {
		name   string
		change func(*harness.Config)
		// want of every measured request
		prompt, shared int
		notes          []string
	}{
		{"fits", func(*harness.Config) {}, 4*16 + 100, 4 * 16, nil},
		{"the server's block size", func(c *harness.Config) { c.BlockSize = 8 }, 4*16 + 100, 4 * 16,
			[]string{"M counts blocks of 16 tokens, the server's block_size, not of 8 as asked for"}},
		{"the block size that was wished for", func(c *harness.Config) { c.BlockSize = 16 }, 4*16 + 100, 4 * 16, nil},
		{"no blocks, so that no size matters", func(c *harness.Config) { c.M, c.BlockSize = 0, 8 }, 100, 0, nil},
		{"M scaled", func(c *harness.Config) { c.M = 64 }, 55*16 + 100, 55 * 16, []string{"M scaled from 64 to 55"}},
		{"M, then C", func(c *harness.Config) { c.M, c.C = 8, 2000 }, 992, 0,
			[]string{"M scaled from 8 to 0", "C scaled from 2000 to 992"}},
		{"a limit of one's own", func(c *harness.Config) { c.MaxModelLen = 196 }, 4*16 + 100, 4 * 16, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := decode(100, 4, 3)
			tt.change(&cfg)
			w, err := profile.Workload(cfg, server)
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Validate(); err != nil {
				t.Error(err)
			}
			n := 0
			for i := range w.Requests {
				if r := &w.Requests[i]; r.Phase == "" {
					n++
					if r.PromptTokens() != tt.prompt || r.SharedTokens != tt.shared || r.PromptTokens()+r.OutputTokens > 1024 {
						t.Errorf("request %d has %d prompt tokens, %d shared, want %d and %d", i, r.PromptTokens(), r.SharedTokens,
							tt.prompt, tt.shared)
					}
				}
			}
			if n != 2*3 {
				t.Errorf("%d measured requests", n)
			}
			if len(w.Notes) != len(tt.notes) {
				t.Fatalf("notes %q, want %q", w.Notes, tt.notes)
			}
			for i, note := range tt.notes {
				if !strings.Contains(w.Notes[i], note) {
					t.Errorf("note %q, want %q", w.Notes[i], note)
				}
			}
		})
	}
}

func TestWorkloadRefusals(t *testing.T) {
	server := harness.ServerInfo{MaxModelLen: 1024, BlockSize: 16}
	tests := []struct {
		name, field string
		change      func(*harness.Config)
	}{
		{"an explicit context that is too small", "C", func(c *harness.Config) { c.MaxModelLen = 100 }},
		{"an explicit context above the server's", "M", func(c *harness.Config) { c.M, c.MaxModelLen = 64, 2048 }},
		{"an explicit context of which M takes most", "M", func(c *harness.Config) { c.MaxModelLen, c.M = 300, 12 }},
		{"no request in flight", "B", func(c *harness.Config) { c.B = 0 }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := decode(100, 4, 3)
			tt.change(&cfg)
			_, err := profile.Workload(cfg, server)
			var field *harness.FieldError
			if !errors.As(err, &field) || field.Field != tt.field {
				t.Errorf("%v, want one that names %s", err, tt.field)
			}
		})
	}
}

func TestWorkloadOfATrace(t *testing.T) {
	dir := t.TempDir()
	trace := filepath.Join(dir, "trace.csv")
	err := os.WriteFile(trace, []byte("TIMESTAMP,ContextTokens,GeneratedTokens\n"+
		"2023-11-16 18:15:46.0,374,44\n2023-11-16 18:15:48.0,500,10\n2023-11-16 18:15:50.0,100,5\n"), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	server := harness.ServerInfo{MaxModelLen: 1024, BlockSize: 16}
	cfg := harness.Config{Trace: trace, Seed: 1}
	w, err := profile.Workload(cfg, server)
	if err != nil {
		t.Fatal(err)
	}
	if len(w.Requests) != 3 || w.Requests[0].PromptTokens() != 374 || w.Requests[0].OutputTokens != 44 ||
		w.Concurrency != 0 ||
		w.Requests[2].Due.Seconds() != 4 {
		t.Errorf("workload %+v", w)
	}
	cfg.Rate, cfg.NumRequests = "5", 2
	if w, err = profile.Workload(cfg, server); err != nil {
		t.Fatal(err)
	}
	if len(w.Requests) != 2 || w.Requests[1].Due.Seconds() >= 1 {
		t.Errorf("5 request/s, 2 requests: %+v", w.Requests)
	}
	cfg.Rate, cfg.NumRequests, cfg.Concurrency = "", 0, 2
	if w, err = profile.Workload(cfg, server); err != nil || w.Concurrency != 2 {
		t.Errorf("closed loop: %v, %+v", err, w)
	}
	cfg.Concurrency, cfg.Rate = 0, "4..8"
	var field *harness.FieldError
	if _, err = profile.Workload(cfg, server); !errors.As(err, &field) || field.Field != "rate" {
		t.Errorf("a ramp over a trace: %v", err)
	}
	cfg.Rate, cfg.Trace = "", filepath.Join(dir, "none.csv")
	if _, err = profile.Workload(cfg, server); !errors.Is(err, fs.ErrNotExist) ||
		!strings.Contains(err.Error(), "none.csv") {
		t.Errorf("a trace that is not there: %v", err)
	}
}

// TestTraceOfAnArchive: the requests of a run are a trace; what was changed since is not replayed as what was recorded.
func TestTraceOfAnArchive(t *testing.T) {
	dir := t.TempDir()
	folder, err := archive.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	const steps = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,100,20\n2023-11-16 18:15:50,110,30\n"
	if err := folder.WriteFile("azure.csv", func(w io.Writer) error {
		_, err := io.WriteString(w, steps)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	cfg := harness.DefaultConfig()
	cfg.Trace = filepath.Join(dir, "azure.csv")
	for _, tt := range []struct {
		name, text string
		requests   int
		note       string
		damaged    bool
	}{
		{"as written", steps, 2, "", false},
		{"without its end", steps[:strings.LastIndex(steps, "2023")], 1, "has lost its end", false},
		{"another figure", strings.Replace(steps, "110", "910", 1), 0, "", true},
	} {
		if err := os.WriteFile(cfg.Trace, []byte(tt.text), 0o644); err != nil {
			t.Fatal(err)
		}
		w, err := profile.Workload(cfg, harness.ServerInfo{MaxModelLen: 1 << 14, BlockSize: 16})
		if e := (*archive.DamagedError)(nil); errors.As(err, &e) != tt.damaged || err == nil == tt.damaged {
			t.Errorf("%s: %v", tt.name, err)
		}
		if err == nil && (len(w.Requests) != tt.requests || tt.note != "" &&
			!strings.Contains(strings.Join(w.Notes, "; "), tt.note)) {
			t.Errorf("%s: %d requests, notes %q", tt.name, len(w.Requests), w.Notes)
		}
	}
}

// vLLM ignores priorities under fcfs without a word, and answers 404 to every request for an adapter that it lacks.
func TestClassesThatAServerHasNot(t *testing.T) {
	cfg := decode(16, 0, 8)
	cfg.Classes = "chat=0.5,batch=0.5/10/sql"
	for _, tt := range []struct {
		policy   string
		adapters []string
		note     string
		err      string
	}{
		{"priority", []string{"other", "sql"}, "", ""},
		{"fcfs", []string{"sql"}, "have no effect: the server's scheduling_policy is fcfs", ""},
		{"", []string{"sql"}, "does not state its scheduling_policy", ""},
		{"priority", []string{"other"}, "", `lora is "sql": allowed is an adapter that the server serves (other)`},
		{"priority", nil, "", `lora is "sql": allowed is an adapter that the server serves (none)`},
	} {
		info := harness.ServerInfo{Kind: harness.KindVLLM, Model: "m", MaxModelLen: 1024, Adapters: tt.adapters,
			Args: harness.EngineArgs{SchedulingPolicy: tt.policy}}
		w, err := profile.Workload(cfg, info)
		if tt.err != "" {
			var field *harness.FieldError
			if !errors.As(err, &field) || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%+v: %v", tt, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if notes := strings.Join(w.Notes, "; "); !strings.Contains(notes, tt.note) || tt.note == "" && notes != "" {
			t.Errorf("%+v: notes %q", tt, notes)
		}
	}
	if _, err := profile.Workload(cfg, harness.ServerInfo{}); err != nil {
		t.Errorf("before a server was asked: %v", err)
	}
}
