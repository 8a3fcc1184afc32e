package archive

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"kvtune/harness"
)

// kinds are the files that an archive has, each with its reader: what it gives, and whether it tells of damage.
func kinds() map[string]func(f *Folder, name string) (what string, told bool) {
	seen := func(v any, partial bool, err error) (string, bool) {
		text, _ := json.Marshal(v)
		return string(text), partial || err != nil
	}
	report := func(f *Folder, name string) (string, bool) {
		var v map[string]any
		err := ReadJSON(f.Path(name), "kvtune.report/1", &v)
		return seen(v, false, err)
	}
	return map[string]func(f *Folder, name string) (string, bool){
		"a" + ResultSuffix: func(f *Folder, _ string) (string, bool) {
			r, err := f.Result("a")
			return seen(r, false, err)
		},
		"a" + RequestsSuffix: func(f *Folder, _ string) (string, bool) { return seen(f.ReadRequests("a")) },
		"a" + StepsSuffix:    func(f *Folder, _ string) (string, bool) { return seen(f.ReadSteps("a")) },
		"a" + SeriesSuffix:   func(f *Folder, _ string) (string, bool) { return seen(f.ReadSeries("a")) },
		"a" + LatencySuffix: func(f *Folder, _ string) (string, bool) {
			ivs, partial, err := f.ReadHistograms("a")
			what := ""
			for _, iv := range ivs {
				what += fmt.Sprint(iv.Tag, iv.Start, iv.Length, iv.Hist.Count(), iv.Hist.Mean())
			}
			return seen(what, partial, err)
		},
		"a" + CostSuffix: report, "plans.json": report, // versioned JSON of packages above
		"k" + BenchSuffix: func(f *Folder, _ string) (string, bool) {
			b, _, err := ReadBench(f.Path("k" + BenchSuffix))
			return seen(b, false, err)
		},
		"k" + SamplesSuffix: func(f *Folder, _ string) (string, bool) {
			b, samples, err := ReadBench(f.Path("k" + BenchSuffix))
			return seen(samples, b != nil && len(b.Warnings) > 0, err)
		},
		"sweep.jsonl.zst": func(f *Folder, name string) (string, bool) {
			var rows []string
			err := f.ReadRows(name, func(line []byte) error {
				rows = append(rows, string(line))
				return nil
			})
			return seen(rows, false, err)
		},
		ManifestName: func(f *Folder, _ string) (string, bool) {
			g, err := Open(f.Dir())
			if err != nil {
				return "", true
			}
			return seen(g.manifest, false, err)
		},
	}
}

// everyKind is a folder that has one file of each kind.
func everyKind(t *testing.T) *Folder {
	t.Helper()
	f := create(t)
	w, err := f.Requests("a")
	for _, r := range records(3) {
		err = errors.Join(err, w.Append(r))
	}
	plans := map[string]any{"schema": "kvtune.report/1", "plans": []float64{1.5, 2048}, "name": "balanced"}
	rows, e := f.OpenRows("sweep.jsonl.zst", func([]byte) error { return nil })
	if e != nil {
		t.Fatal(e)
	}
	err = errors.Join(err, w.Close(), f.WriteResult(result("a")), f.WriteSteps("a", someSteps()),
		f.WriteSeries("a", someSeries()), f.WriteHistograms("a", time.Time{}, someIntervals()),
		f.WriteJSON("a"+CostSuffix, plans), f.WriteJSON("plans.json", plans),
		f.WriteBench(&harness.Bench{Name: "k"}, []harness.BenchSample{{Case: "a", Seconds: 1e-3}, {Case: "b", Seconds: 2}}),
		rows.Append(plans), rows.Append("second"), rows.Close(), f.SetPart("a", Done))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// stride is how far places in a file are apart so that there are about so many of them; under fire it is every byte.
func stride(data []byte, places int) int {
	if underFire {
		return 1
	}
	return max(1, len(data)/places)
}

// TestFlippedBits flips a bit of each byte in a file of every kind: its reader says that it is damaged. Rows, which
// grow over several runs and have no sum in the manifest, are frames with checksums: what comes unmarked is what was
// written.
func TestFlippedBits(t *testing.T) {
	f := everyKind(t)
	every := kinds()
	for _, name := range f.Files() {
		if every[name] == nil {
			t.Fatalf("no reader is tried on %s", name)
		}
		if _, ok := f.manifest.Sums[name]; !ok && name != ManifestName && name != "sweep.jsonl.zst" {
			t.Errorf("the manifest has no sum of %s", name)
		}
	}
	for name, read := range every {
		data := file(t, f, name)
		step := stride(data, 60)
		was, told := read(f, name)
		if told || was == "" {
			t.Fatalf("%s is damaged before it was: %q", name, was)
		}
		// The same file where no manifest lists it: what the sums tell and nothing else does.
		alone := &Folder{dir: filepath.Join(t.TempDir(), "alone")}
		if err := os.Mkdir(alone.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if name == "k"+SamplesSuffix {
			write(t, alone.Path("k"+BenchSuffix), string(file(t, f, "k"+BenchSuffix)))
		}
		silent := 0
		for at := 0; at < len(data); at += step {
			bad := slices.Clone(data)
			bad[at] ^= 1 << (at % 7)
			write(t, f.Path(name), string(bad))
			if got, told := read(f, name); !told && (name != "sweep.jsonl.zst" || got != was) {
				t.Errorf("%s: a bit of byte %d of %d flipped, and nothing said", name, at, len(data))
			}
			write(t, alone.Path(name), string(bad))
			if got, told := read(alone, name); !told && got != was {
				silent++
			}
		}
		write(t, f.Path(name), string(data))
		text := filepath.Ext(name) != ".zst"
		if text != (silent > 0) && name != ManifestName {
			t.Errorf("%s: without a sum %d flips were read as another file", name, silent)
		}
	}
}

// TestLostEnds cuts a file of every kind at every byte: what its reader gives is marked as partial, or refused.
func TestLostEnds(t *testing.T) {
	f := everyKind(t)
	for name, read := range kinds() {
		data := file(t, f, name)
		step := stride(data, 30)
		for at := 0; at < len(data); at += step {
			write(t, f.Path(name), string(data[:at]))
			// Rows that are missing as a whole are for the reader to count: a run that is killed has not made them.
			if got, told := read(f, name); !told && name != "sweep.jsonl.zst" {
				t.Errorf("%s, %d of %d bytes: nothing said, read as %s", name, at, len(data), got)
			}
		}
		write(t, f.Path(name), string(data))
	}
}
