package archive

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kvtune/harness"
)

func TestSums(t *testing.T) {
	f := create(t)
	if err := errors.Join(f.WriteResult(result("a")), f.WriteSteps("a", someSteps()),
		f.WriteRequests("a", records(2))); err != nil {
		t.Fatal(err)
	}
	change := func(name, old, new string) {
		t.Helper()
		text := string(file(t, f, name))
		if !strings.Contains(text, old) {
			t.Fatalf("%s has no %q", name, old)
		}
		write(t, f.Path(name), strings.Replace(text, old, new, 1))
	}
	damaged := func(err error, says string) {
		t.Helper()
		if e := (*DamagedError)(nil); !errors.As(err, &e) || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want a damaged file and %q", err, says)
		}
	}

	change("a_results.json", `"value": 0.2`, `"value": 0.3`)
	_, err := ReadResult(f.Dir())
	damaged(err,
		`a_results.json is damaged, or was changed after kvtune wrote it: its SHA-256 sum is another; restore it, or, if `+
			`the change is meant, remove "a_results.json" from "sums"`)
	into := create(t)
	damaged(into.Take(f, "a"), "a_results.json")

	change("a_steps.csv", "4.38", "4.3")
	steps, partial, err := f.ReadSteps("a")
	if len(steps) != 3 || !partial || err != nil {
		t.Errorf("shorter by a digit: %d steps, partial %v, %v", len(steps), partial, err)
	}
	change("a_steps.csv", "4.3", "4.39")
	_, _, err = f.ReadSteps("a")
	damaged(err, "a_steps.csv")

	// What a program of an older version wrote, or was copied out of its folder, has no sum.
	other := filepath.Join(t.TempDir(), "a_results.json")
	write(t, other, string(file(t, f, "a_results.json")))
	if _, err := ReadResult(other); err != nil {
		t.Errorf("a file alone: %v", err)
	}
	manifest := string(file(t, f, ManifestName))
	write(t, f.Path(ManifestName), strings.Split(manifest, ",\n  \"sums\"")[0]+"\n}\n")
	if _, err := ReadResult(f.Dir()); err != nil {
		t.Errorf("an old archive: %v", err)
	}
	write(t, f.Path(ManifestName), strings.Replace(manifest, "a_steps.csv", "b_steps.csv", 1))
	_, err = Open(f.Dir())
	damaged(err, ManifestName)
	_, err = Create(f.Dir())
	damaged(err, ManifestName)

	// Written anew by whoever, it is whole again: a file outside of Folder's methods, too.
	write(t, f.Path(ManifestName), manifest)
	if err := WriteJSON(f.Path("a_results.json"), result("a")); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadResult(f.Dir()); err != nil {
		t.Error(err)
	}
}

// TestSumsSurviveCrashes: a write that fails at any of its steps leaves a folder that can be read.
func TestSumsSurviveCrashes(t *testing.T) {
	f := create(t)
	if err := f.WriteResult(result("a")); err != nil {
		t.Fatal(err)
	}
	died := errors.New("died")
	// Before the new file has its name, the old one is whole; its sum has gone ahead.
	err := f.WriteFile("a_results.json", func(w io.Writer) error {
		w.Write([]byte("{"))
		if _, err := ReadResult(f.Dir()); err != nil {
			t.Errorf("while it is written: %v", err)
		}
		return died
	})
	if !errors.Is(err, died) {
		t.Fatal(err)
	}
	if _, err := ReadResult(f.Dir()); err != nil {
		t.Errorf("after the failed write: %v", err)
	}
	// After: the new file without a sum.
	if err := os.WriteFile(f.Path("a_results.json"), []byte(`{"schema": "`+harness.ResultSchema+`", "name": "new"}`),
		0o644); err != nil {
		t.Fatal(err)
	}
	if r, err := ReadResult(f.Dir()); err != nil || r.Name != "new" {
		t.Errorf("killed before the manifest: %v", err)
	}
	if _, ok := f.manifest.Sums["a_results.json"]; ok {
		t.Error("a sum of a file that was replaced is there")
	}
}
