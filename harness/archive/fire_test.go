package archive

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kvtune/harness"
	"kvtune/harness/workload"
)

// underFire lets the tests of damage go their whole way (make test-fire).
var underFire = os.Getenv("KVTUNE_FIRE") != ""

// mutate damages a file as disks and copies do: bits flip, a stretch is overwritten, lost or doubled, the end is
// missing. cut says that nothing but the end is.
func mutate(rng *rand.Rand, data []byte) (bad []byte, cut bool) {
	bad = slices.Clone(data)
	at := rng.IntN(len(bad))
	end := min(len(bad), at+1+rng.IntN(64))
	switch rng.IntN(6) {
	case 0:
		return bad[:at], true
	case 1:
		for i := at; i < end; i++ {
			bad[i] = byte(rng.Uint32())
		}
	case 2:
		bad = append(bad[:at], bad[end:]...)
	case 3:
		bad = slices.Insert(bad, end, bad[at:end]...)
	case 4: // both
		bad[at] ^= 1 << rng.IntN(8)
		bad = bad[:end]
	default:
		for range 1 + rng.IntN(4) {
			bad[rng.IntN(len(bad))] ^= 1 << rng.IntN(8)
		}
	}
	return bad, false
}

// checkMutation reads a damaged compressed file: what comes without an error and unmarked is what was written, and of a
// file that lacks its end all whole records come.
func checkMutation[T any](t *testing.T, kind string, rng *rand.Rand, data []byte, want []T, same func(a, b T) bool,
	read func(io.Reader) ([]T, bool, error)) {
	t.Helper()
	bad, cut := mutate(rng, data)
	got, partial, err := read(bytes.NewReader(bad))
	switch {
	case cut && (err != nil || !partial):
		t.Errorf("%s cut at %d of %d: partial %v, %v", kind, len(bad), len(data), partial, err)
	case cut && (len(got) > len(want) || !slices.EqualFunc(got, want[:len(got)], same)):
		t.Errorf("%s cut at %d of %d: %d records that are not the first", kind, len(bad), len(data), len(got))
	case kind == "streamed requests" && len(got) > 0 && firstOther(got[:len(got)-1], want, same) >= 0:
		// Every record has a checksum, whatever else is damaged; the last one's may be what was cut.
		t.Errorf("%s: record %d of %d is another", kind, firstOther(got, want, same), len(got))
	case err == nil && !partial && !slices.EqualFunc(got, want, same):
		t.Errorf("%s: damaged, and read as another file without a word", kind)
	}
}

// firstOther is the first of got that is not what it was, -1 for none. Records that are lost or doubled by damage
// between them are told by it; here a record counts as itself wherever it stands.
func firstOther[T any](got, want []T, same func(a, b T) bool) int {
	return slices.IndexFunc(got, func(g T) bool {
		return !slices.ContainsFunc(want, func(w T) bool { return same(g, w) })
	})
}

// Thousands of damaged files of every kind: never a panic, never silently wrong. What a compressed file alone cannot
// tell, and all that is damaged in text files, the manifest's sums do.
func TestMutations(t *testing.T) {
	f := create(t)
	recs, series, ivs := records(12), someSeries(), someIntervals()
	samples := []harness.BenchSample{{Case: "a", At: time.Second, Seconds: 1e-3}, {Case: "a", Seconds: 2e-3},
		{Case: "b", Seconds: 3}}
	w, err := f.Requests("a")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range recs {
		if err := w.Append(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), f.WriteSteps("a", someSteps()), f.WriteSeries("a", series),
		f.WriteHistograms("a", time.Time{}, ivs), f.WriteResult(result("a")),
		f.WriteBench(&harness.Bench{Name: "k"}, samples), f.SetPart("a", Done)); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	requests, seriesFile := file(t, f, "a"+RequestsSuffix), file(t, f, "a"+SeriesSuffix)
	latency, samplesFile := file(t, f, "a"+LatencySuffix), file(t, f, "k"+SamplesSuffix)
	whole := wholeFolder{dir: f.Dir(), files: f.Files()}
	told := false
	if whole.was, told = see(f.Dir()); told {
		t.Fatal("damaged before it was")
	}
	rounds := 500
	if underFire {
		rounds = 10_000
	}
	for i := range rounds {
		switch i % 5 {
		case 0, 1:
			checkMutation(t, "streamed requests", rng, requests, recs,
				func(a, b workload.Record) bool { return cmp.Equal(a, b) }, ReadRequests)
		case 2:
			checkMutation(t, "series", rng, seriesFile, series, func(a, b harness.Sample) bool { return a == b }, ReadSeries)
		case 3:
			checkMutation(t, "histograms", rng, latency, ivs, sameInterval, ReadHistograms)
		default:
			checkMutation(t, "samples", rng, samplesFile, samples,
				func(a, b harness.BenchSample) bool { return cmp.Equal(a, b) }, readSamples)
		}
		if i%4 == 0 {
			whole.check(t, rng)
		}
	}
}

// wholeFolder is a folder with what its readers gave of it when nothing was damaged.
type wholeFolder struct {
	dir   string
	files []string
	was   string
}

// see reads all that a folder holds through its methods; told is whether something was said to be damaged or partial.
func see(dir string) (what string, told bool) {
	f, err := Open(dir)
	if err != nil {
		return "", true
	}
	saw := fmt.Sprint(f.Files(), f.Parts())
	add := func(v any, partial bool, err error) {
		told = told || partial || err != nil
		text, _ := json.Marshal(v)
		saw += string(text)
	}
	for _, name := range f.Results() {
		r, err := f.Result(name)
		add(r, false, err)
		recs, partial, err := f.ReadRequests(name)
		add(recs, partial, err)
		steps, partial, err := f.ReadSteps(name)
		add(steps, partial, err)
		series, partial, err := f.ReadSeries(name)
		add(series, partial, err)
		ivs, partial, err := f.ReadHistograms(name)
		for _, iv := range ivs {
			add([]any{iv.Tag, iv.Start, iv.Length, iv.Hist.Count(), iv.Hist.Mean()}, partial, err)
		}
		add(nil, partial, err)
	}
	b, samples, err := ReadBench(f.Path("k" + BenchSuffix))
	add([]any{b, samples}, b != nil && len(b.Warnings) > 0, err)
	return saw, told
}

// check damages one file of the folder, any byte of any kind of file, and mends it again.
func (w *wholeFolder) check(t *testing.T, rng *rand.Rand) {
	t.Helper()
	name := w.files[rng.IntN(len(w.files))]
	path := filepath.Join(w.dir, name)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	bad, _ := mutate(rng, data)
	if err := os.WriteFile(path, bad, 0o644); err != nil {
		t.Fatal(err)
	}
	if got, told := see(w.dir); !told && got != w.was {
		t.Errorf("%s: damaged, and read as another without a word", name)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// A name that would lead out of the folder is refused, wherever it comes from; others are files of the folder.
func TestNamesStayInTheFolder(t *testing.T) {
	f := create(t)
	before := entries(t, f)
	for _, name := range []string{"../a", "a/b", "/a", "..", `a\b`, "a\nb", "a\x00b",
		".." + string(filepath.Separator)} {
		err := f.WriteRequests(name, records(1))
		if err == nil && !slices.Contains(entries(t, f), name+RequestsSuffix) {
			t.Errorf("%q was written elsewhere", name)
		}
		if strings.ContainsAny(name, "/\\\n\x00") && (err == nil || !strings.Contains(err.Error(), "without a folder")) {
			t.Errorf("%q: %v", name, err)
		}
		if _, err := f.Requests(name + "/"); err == nil {
			t.Errorf("%q/ streams", name)
		}
		if rows, err := f.OpenRows(name+"/x", func([]byte) error { return nil }); err == nil {
			rows.Close()
			t.Errorf("%q/x has rows", name)
		}
	}
	for _, name := range []string{"a b; touch pwned", "$(touch pwned)", "-rf", "<b>", "'", `"`, "é"} {
		if err := f.WriteRequests(name, records(1)); err != nil || !slices.Contains(entries(t, f), name+RequestsSuffix) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if parent, err := os.ReadDir(filepath.Dir(f.Dir())); err != nil || len(parent) != 1 {
		t.Errorf("beside the folder: %v, %v (before: %v)", parent, err, before)
	}
}
