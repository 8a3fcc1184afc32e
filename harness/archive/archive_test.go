package archive

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kvtune/harness"
)

func create(t *testing.T) *Folder {
	t.Helper()
	f, err := Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// entries are the names in a folder; a temporary file left behind shows here.
func entries(t *testing.T, f *Folder) []string {
	t.Helper()
	all, err := os.ReadDir(f.Dir())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range all {
		names = append(names, e.Name())
	}
	return names
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func result(name string) *harness.Result {
	v, low, high := 0.2, 0.1, 0.3
	c := harness.DefaultConfig()
	c.Name = name
	return &harness.Result{
		Schema: harness.ResultSchema, Name: name, Origin: harness.OriginSimulated, Config: c,
		Conditions: harness.Conditions{Duration: 1.5, Server: harness.ServerInfo{Kind: harness.KindEmbedded, BlockSize: 16}},
		Metrics: harness.Metrics{
			{Name: harness.MetricTTFT, Stat: harness.StatP99, Unit: "s", Value: &v, Low: &low, High: &high, N: 7},
			{Name: harness.MetricCacheHitRate, Unit: "ratio", Note: "not looked at"},
		},
		Counters: map[string]float64{"vllm:prompt_tokens_total": 42},
		Warnings: []string{"<a warning>"},
	}
}

func TestResultRoundTrip(t *testing.T) {
	f := create(t)
	want := result("a")
	if err := f.WriteResult(want); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(f.Path("a_results.json"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), `"value": null`) || !strings.Contains(string(text), "<a warning>") {
		t.Errorf("what was not observed must be null, and text as it is:\n%s", text)
	}
	own := write(t, f.Path("mine.json"), string(text))
	for _, path := range []string{f.Dir(), f.Path("a_results.json"), f.Path(ManifestName), own} {
		got, err := ReadResult(path)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", path, d)
		}
	}
	if err := f.WriteResult(result("b")); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadResult(f.Dir()); err == nil ||
		!strings.Contains(err.Error(), "holds 2 results: name one of the files: a, b") {
		t.Errorf("two results: %v", err)
	}
	if got, err := ReadResult(f.Path("b_results.json")); err != nil || got.Name != "b" {
		t.Errorf("file of b: %v, %v", got, err)
	}
}

func TestManifest(t *testing.T) {
	f := create(t)
	if err := errors.Join(f.SetPart("b", Running), f.SetPart("a", Running), f.SetPart("b", Done), f.SetPart("a", Partial),
		f.WriteResult(result("b")), f.WriteResult(result("b"))); err != nil {
		t.Fatal(err)
	}
	for name, open := range map[string]func(string) (*Folder, error){"Open": Open, "Create": Create} {
		g, err := open(f.Dir())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if d := cmp.Diff([]Part{{"b", Done}, {"a", Partial}}, g.Parts()); d != "" {
			t.Errorf("%s: parts %s", name, d)
		}
		if d := cmp.Diff([]string{"manifest.json", "b_results.json"}, g.Files()); d != "" {
			t.Errorf("%s: files %s", name, d)
		}
	}
	if p, ok := f.Part("a"); !ok || p.State != Partial {
		t.Errorf("part a: %v, %v", p, ok)
	}
	if _, ok := f.Part("c"); ok {
		t.Error("a part that was never set is there")
	}
}

func TestOpen(t *testing.T) {
	f := create(t)
	if err := errors.Join(f.WriteResult(result("a")), f.WriteResult(result("b")), f.SetPart("a", Done)); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteJSON("performance_analysis.json", struct{}{}); err != nil {
		t.Fatal(err)
	}
	bare := t.TempDir() // files copied out of their archive
	write(t, filepath.Join(bare, "x_results.json"), "{}")
	for _, c := range []struct {
		path  string
		names []string
	}{
		{f.Dir(), []string{"a", "b"}},
		{f.Path(ManifestName), []string{"a", "b"}},
		{f.Path("performance_analysis.json"), []string{"a", "b"}}, // by the manifest
		{f.Path("b_results.json"), []string{"b"}},
		{bare, []string{"x"}},
	} {
		g, err := Open(c.path)
		if err != nil {
			t.Errorf("%s: %v", c.path, err)
			continue
		}
		if !slices.Equal(g.Names(), c.names) {
			t.Errorf("%s: parts %v, want %v", c.path, g.Names(), c.names)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	newer := t.TempDir()
	write(t, filepath.Join(newer, ManifestName), `{"schema": "kvtune.archive/2", "parts": []}`)
	other := t.TempDir()
	write(t, filepath.Join(other, ManifestName), `{"name": "a web app"}`)
	for _, c := range []struct{ path, want string }{
		{filepath.Join(dir, "nothing"), "does not exist"},
		{dir, "is not a kvtune archive: it has no manifest.json and no file that ends in one of _results.json"},
		{write(t, filepath.Join(dir, "notes.txt"), "hello"), "is not a file of a kvtune archive"},
		{write(t, filepath.Join(dir, "performance_analysis.json"), "{}"), "is not a file of a kvtune archive"},
		{newer, "schema kvtune.archive/2 is newer than this kvtune reads (up to kvtune.archive/1): use a newer kvtune"},
		{other, `no "schema" in it`},
		{os.DevNull, "neither a folder nor a file"},
	} {
		if _, err := Open(c.path); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.path, err, c.want)
		}
	}
}

func TestReadJSONRefuses(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", "empty file"},
		{`{"schema": "kvtune.result/1", "name": "a`, "cut short"},
		{"{\n\"schema\": \"kvtune.result/1\",\n oops}", "line 3"},
		{`{"schema": "kvtune.plans/1"}`, "a file of kind kvtune.plans: expected kvtune.result/1"},
		{`{"schema": "kvtune.result/9"}`, "newer than this kvtune reads"},
		{`{"schema": "kvtune.result"}`, "not of the form kind/version"},
		{`{"schema": "kvtune.result/0"}`, "not of the form kind/version"},
		{`{"name": "x"}`, `no "schema"`},
		{`[1]`, "expected a"},
		{`{"schema": "kvtune.result/1", "name": 5}`, `"name" is a number, expected a string`},
	} {
		var r harness.Result
		if err := decodeJSON([]byte(c.text), harness.ResultSchema, &r); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.text, err, c.want)
		}
	}
	var r harness.Result
	minor := `{"schema": "kvtune.result/1.4", "name": "x", "a_field_of_tomorrow": {"deep": [1]}}`
	if err := decodeJSON([]byte(minor), harness.ResultSchema, &r); err != nil || r.Name != "x" {
		t.Errorf("newer minor version with unknown fields: %v", err)
	}
}

func FuzzDecodeJSON(f *testing.F) {
	f.Add([]byte(`{"schema": "kvtune.result/1", "metrics": [{"name": "ttft", "value": null}]}`))
	f.Add([]byte(`{"schema": "/"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var r harness.Result
		if decodeJSON(data, harness.ResultSchema, &r) == nil && !strings.HasPrefix(r.Schema, "kvtune.result/") {
			t.Fatalf("accepted schema %q", r.Schema)
		}
	})
}

func TestCreateRefuses(t *testing.T) {
	file := write(t, filepath.Join(t.TempDir(), "file"), "")
	if _, err := Create(file); err == nil || !strings.Contains(err.Error(), "is a file: choose another folder") {
		t.Errorf("folder on a file: %v", err)
	}
	if _, err := Create(filepath.Join(file, "below")); err == nil {
		t.Error("folder below a file was made")
	}
	newer := t.TempDir()
	manifest := write(t, filepath.Join(newer, ManifestName), `{"schema": "kvtune.archive/2"}`)
	if _, err := Create(newer); err == nil {
		t.Error("an archive of a newer version was continued")
	}
	if text, _ := os.ReadFile(manifest); string(text) != `{"schema": "kvtune.archive/2"}` {
		t.Errorf("the newer manifest was changed: %s", text)
	}
}

// TestNothingHalfWritten: when writing fails, the old file stays and no temporary file is left.
func TestNothingHalfWritten(t *testing.T) {
	f := create(t)
	if err := f.WriteResult(result("a")); err != nil {
		t.Fatal(err)
	}
	old, _ := os.ReadFile(f.Path("a_results.json"))
	err := f.WriteFile("a_results.json", func(w io.Writer) error {
		if _, err := io.WriteString(w, "half"); err != nil {
			t.Fatal(err)
		}
		return fmt.Errorf("write: %w", syscall.ENOSPC)
	})
	if err == nil || !strings.Contains(err.Error(), "the disk is full: free some space or choose another output folder") ||
		!errors.Is(err, syscall.ENOSPC) {
		t.Errorf("disk full: %v", err)
	}
	if err := f.WriteJSON("b.json", func() {}); err == nil {
		t.Error("a function was written as JSON")
	}
	if now, _ := os.ReadFile(f.Path("a_results.json")); string(now) != string(old) {
		t.Errorf("the old file was replaced: %s", now)
	}
	if got := entries(t, f); !slices.Equal(got, []string{"a_results.json", "manifest.json"}) {
		t.Errorf("files left: %v", got)
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{syscall.ENOSPC, "the disk is full"}, {syscall.EDQUOT, "the disk is full"}, {syscall.EROFS, "not writable"},
		{os.ErrPermission, "not writable"}, {errors.New("odd"), "write x: odd"},
	} {
		if got := diskError("write", "x", c.err); !strings.Contains(got.Error(), c.want) || !errors.Is(got, c.err) {
			t.Errorf("%v became %v", c.err, got)
		}
	}
}
