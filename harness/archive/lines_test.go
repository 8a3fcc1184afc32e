package archive

import (
	"bytes"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kvtune/harness"
	"kvtune/harness/hist"
	"kvtune/harness/workload"
)

func records(n int) []workload.Record {
	recs := make([]workload.Record, n)
	for i := range recs {
		due, cached := time.Duration(i)*10*time.Millisecond, 32
		recs[i] = workload.Record{Index: i, Due: &due, Sent: due + 123456, PromptTokens: 100 + i, CachedTokens: &cached,
			AskedTokens: 3, OutputTokens: 3, FinishReason: "length",
			Tokens: []workload.TokenEvent{{At: 5 * time.Millisecond, Tokens: 1}, {At: 7*time.Millisecond + 1, Tokens: 2}}}
	}
	recs[0].Due, recs[0].CachedTokens, recs[0].Error = nil, nil, "server said: \"no\"\n"
	return recs
}

func TestRequestsRoundTrip(t *testing.T) {
	f := create(t)
	want := records(20)
	if err := f.WriteRequests("a", want); err != nil {
		t.Fatal(err)
	}
	w, err := f.Requests("b")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range want {
		if err := w.Append(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if w.Append(want[0]) == nil || w.Close() == nil {
		t.Error("a closed writer takes more")
	}
	for _, name := range []string{"a", "b"} {
		got, partial, err := f.ReadRequests(name)
		if err != nil || partial {
			t.Fatalf("%s: partial %v, %v", name, partial, err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	if got := entries(t, f); !slices.Equal(got, []string{"a_requests.jsonl.zst", "b_requests.jsonl.zst",
		"manifest.json"}) {
		t.Errorf("files left: %v", got)
	}
}

// TestCrash: what was appended is there though the writer never closed, and says that it is partial; a new run of the
// part supersedes it.
func TestCrash(t *testing.T) {
	f := create(t)
	want := records(5)
	w, err := f.Requests("a")
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range want {
		if err := w.Append(r); err != nil {
			t.Fatal(err)
		}
		// A second process looks at the folder: nothing of the first's memory is needed.
		g, err := Open(f.Dir())
		if i == 0 && err == nil {
			err = f.SetPart("a", Running)
		}
		if err != nil {
			t.Fatal(err)
		}
		got, partial, err := g.ReadRequests("a")
		if err != nil || !partial {
			t.Fatalf("after %d: partial %v, %v", i+1, partial, err)
		}
		if d := cmp.Diff(want[:i+1], got); d != "" {
			t.Fatalf("after %d: %s", i+1, d)
		}
	}
	g, err := Open(f.Path("a_requests.jsonl.zst.partial"))
	if err != nil || !slices.Equal(g.Names(), []string{"a"}) {
		t.Errorf("the partial file opened: %v, %v", g, err)
	}
	if g, err = Open(f.Dir()); err != nil || !slices.Equal(g.Names(), []string{"a"}) {
		t.Errorf("the folder opened: %v, %v", g, err)
	}
	if err := f.WriteRequests("a", want[:2]); err != nil {
		t.Fatal(err)
	}
	if got, partial, err := f.ReadRequests("a"); len(got) != 2 || partial || err != nil {
		t.Errorf("after the new run: %d records, partial %v, %v", len(got), partial, err)
	}
	if _, err := os.Stat(f.Path("a_requests.jsonl.zst.partial")); err == nil {
		t.Error("the superseded partial file is still there")
	}
}

// TestDiskFullWhileStreaming: the failure is told by Append, again by Close, and the file never takes its name.
func TestDiskFullWhileStreaming(t *testing.T) {
	f := create(t)
	if err := os.Symlink("/dev/full", f.Path("a_requests.jsonl.zst.partial")); err != nil {
		t.Fatal(err)
	}
	w, err := f.Requests("a")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := w.Append(records(2)[1]); err == nil || !strings.Contains(err.Error(), "the disk is full") {
			t.Errorf("append: %v", err)
		}
	}
	if err := w.Close(); err == nil || !strings.Contains(err.Error(), "the disk is full") {
		t.Errorf("close: %v", err)
	}
	if slices.Contains(f.Files(), "a_requests.jsonl.zst") || slices.Contains(entries(t, f), "a_requests.jsonl.zst") {
		t.Error("a file that could not be written has its name")
	}
}

func file(t *testing.T, f *Folder, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(f.Path(name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// prefix checks what a reader gave of a file cut short against what the file holds.
func prefix[T any](t *testing.T, cut, size int, got, want []T, partial bool, err error, equal func(a, b T) bool) {
	t.Helper()
	if err != nil {
		t.Fatalf("cut at %d of %d: %v", cut, size, err)
	}
	if len(got) > len(want) || !slices.EqualFunc(got, want[:len(got)], equal) {
		t.Fatalf("cut at %d of %d: %d records that are no prefix of the file's", cut, size, len(got))
	}
	if partial == (cut == size) {
		t.Fatalf("cut at %d of %d: partial is %v", cut, size, partial)
	}
	if cut == size && len(got) != len(want) {
		t.Fatalf("uncut: %d records of %d", len(got), len(want))
	}
}

// TestTruncation cuts each kind of file at every byte.
func TestTruncation(t *testing.T) {
	f := create(t)
	recs, steps, series, ivs := records(4), someSteps(), someSeries(), someIntervals()
	w, err := f.Requests("a")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range recs {
		if err := w.Append(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), f.WriteSteps("a", steps), f.WriteSeries("a", series),
		f.WriteHistograms("a", time.Time{}, ivs)); err != nil {
		t.Fatal(err)
	}
	sameRecord := func(a, b workload.Record) bool { return cmp.Equal(a, b) }
	data := file(t, f, "a_requests.jsonl.zst")
	most := 0
	for cut := range len(data) + 1 {
		got, partial, err := ReadRequests(bytes.NewReader(data[:cut]))
		prefix(t, cut, len(data), got, recs, partial, err, sameRecord)
		if len(got) < most {
			t.Fatalf("cut at %d: fewer records than with a shorter file", cut)
		}
		most = len(got)
	}
	data = file(t, f, "a_series.jsonl.zst")
	for cut := range len(data) + 1 {
		got, partial, err := ReadSeries(bytes.NewReader(data[:cut]))
		prefix(t, cut, len(data), got, series, partial, err, func(a, b harness.Sample) bool { return a == b })
	}
	data = file(t, f, "a_latency.hlog.zst")
	for cut := range len(data) + 1 {
		got, partial, err := ReadHistograms(bytes.NewReader(data[:cut]))
		prefix(t, cut, len(data), got, ivs, partial, err, sameInterval)
	}
	// A plain file does not tell that whole lines are missing: only the rows are checked, and a cut inside a line.
	data = file(t, f, "a_steps.csv")
	for cut := range len(data) + 1 {
		got, partial, err := ReadSteps(bytes.NewReader(data[:cut]))
		if lineEnd := cut > 0 && data[cut-1] == '\n'; partial == lineEnd {
			t.Fatalf("cut at %d: partial is %v", cut, partial)
		}
		if want := max(0, bytes.Count(data[:cut], []byte("\n"))-1); err != nil || len(got) != want {
			t.Fatalf("cut at %d: %d rows, want %d, %v", cut, len(got), want, err)
		}
	}
}

func TestPlainRequests(t *testing.T) {
	f := create(t)
	want := records(3)
	if err := f.WriteRequests("a", want); err != nil {
		t.Fatal(err)
	}
	plain, close, err := decompressed(bytes.NewReader(file(t, f, "a_requests.jsonl.zst")))
	if err != nil {
		t.Fatal(err)
	}
	defer close()
	text, err := io.ReadAll(plain)
	if err != nil {
		t.Fatal(err)
	}
	crlf := strings.ReplaceAll(string(text), "\n", "\r\n\r\n")
	for _, s := range []string{string(text), crlf, strings.TrimSuffix(string(text), "\n")} {
		got, partial, err := ReadRequests(strings.NewReader(s))
		if err != nil || partial || !cmp.Equal(got, want) {
			t.Errorf("%d records, partial %v, %v from %q", len(got), partial, err, s)
		}
	}
	got, partial, err := ReadRequests(strings.NewReader(string(text[:len(text)-5])))
	if err != nil || !partial || len(got) != 2 {
		t.Errorf("cut: %d records, partial %v, %v", len(got), partial, err)
	}
	got, _, err = ReadRequests(strings.NewReader(string(text) + "oops\n" + string(text)))
	if err == nil || !strings.Contains(err.Error(), "line 4") || len(got) != 3 {
		t.Errorf("garbage in the middle: %d records, %v", len(got), err)
	}
}

// TestCorrupt: a flipped bit is never read as something else; it is an error or a partial file.
func TestCorrupt(t *testing.T) {
	f := create(t)
	want := records(6)
	if err := f.WriteRequests("a", want); err != nil {
		t.Fatal(err)
	}
	data := file(t, f, "a_requests.jsonl.zst")
	for i := range data {
		bad := slices.Clone(data)
		bad[i] ^= 0x10
		_, partial, err := ReadRequests(bytes.NewReader(bad))
		// The unused bit of the frame header may flip unseen.
		if got, _, _ := ReadRequests(bytes.NewReader(bad)); err == nil && !partial && !cmp.Equal(got, want) {
			t.Errorf("byte %d flipped: read as another file without an error", i)
		}
	}
}

func someSteps() []harness.StepRecord {
	return []harness.StepRecord{
		{T: 0, ContextRequests: 1, ContextTokens: 64, Elapsed: 4380 * time.Microsecond, KVUsage: 0.07, Running: 1,
			Waiting: 2},
		{T: 1500 * time.Microsecond, GenerationRequests: 3, GenerationTokens: 3, Elapsed: 4812345, KVUsage: 1, Running: 3,
			Preemptions: 2},
		{T: -1, ContextRequests: 1, ContextTokens: 8, Elapsed: 1, KVUsage: -1, Running: -1, Waiting: -1, Preemptions: -1},
	}
}

func TestSteps(t *testing.T) {
	f := create(t)
	want := someSteps()
	if err := f.WriteSteps("a", want); err != nil {
		t.Fatal(err)
	}
	const text = "context_requests,context_tokens,generation_requests,generation_tokens,elapsed_ms,kv_usage_pct," +
		"t_s,running,waiting,preemptions\n" +
		"1,64,0,0,4.38,7,0,1,2,0\n0,0,3,3,4.812345,100,0.0015,3,0,2\n1,8,0,0,0.000001,,,,,\n"
	if got := string(file(t, f, "a_steps.csv")); got != text {
		t.Errorf("wrote\n%swant\n%s", got, text)
	}
	got, partial, err := f.ReadSteps("a")
	if err != nil || partial {
		t.Fatalf("partial %v, %v", partial, err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	short := "elapsed_ms, context_requests,context_tokens,generation_requests,generation_tokens,mine\r\n5,1,2,3,4,x\r\n"
	got, _, err = ReadSteps(strings.NewReader(short))
	other := []harness.StepRecord{{T: -1, ContextRequests: 1, ContextTokens: 2, GenerationRequests: 3, GenerationTokens: 4,
		Elapsed: 5 * time.Millisecond, KVUsage: -1, Running: -1, Waiting: -1, Preemptions: -1}}
	if d := cmp.Diff(other, got); d != "" || err != nil {
		t.Errorf("%v %s", err, d)
	}
	for _, bad := range []string{
		"a,b\n1,2\n",
		"context_requests,context_tokens,generation_requests,generation_tokens,elapsed_ms\n1,2,3,4\n",
		"context_requests,context_tokens,generation_requests,generation_tokens,elapsed_ms\n1,2,3,4,x\n",
		"context_requests,context_tokens,generation_requests,generation_tokens,elapsed_ms\n1,2,3,4,NaN\n",
		"context_requests,context_tokens,generation_requests,generation_tokens,elapsed_ms\n1,2,3,,5\n",
		"context_requests,context_tokens,generation_requests,generation_tokens,elapsed_ms\n1,2,3,-4,5\n",
	} {
		if _, _, err := ReadSteps(strings.NewReader(bad)); err == nil {
			t.Errorf("read without an error: %q", bad)
		}
	}
}

func someSeries() []harness.Sample {
	return []harness.Sample{{T: 0, Metric: "vllm:num_requests_running", Value: 3},
		{T: 1500*time.Millisecond + 1, Metric: "host_cpu", Value: 0.25}, {T: 2 * time.Second, Metric: "x", Value: -1e300}}
}

func TestSeries(t *testing.T) {
	f := create(t)
	want := someSeries()
	odd := append(slices.Clone(want), harness.Sample{Metric: "nan", Value: math.NaN()},
		harness.Sample{Metric: "inf", Value: math.Inf(1)})
	if err := f.WriteSeries("a", odd); err != nil {
		t.Fatal(err)
	}
	got, partial, err := f.ReadSeries("a")
	if err != nil || partial {
		t.Fatalf("partial %v, %v", partial, err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if _, _, err := ReadSeries(strings.NewReader("{\"t\": 1}\n{\"t\": 2}\n")); err == nil {
		t.Error("lines of another kind were read")
	}
}

func someIntervals() []hist.Interval {
	r := hist.New()
	for i := range 50 {
		r.Record(time.Duration(i*i) * time.Microsecond)
	}
	return []hist.Interval{{Tag: hist.TTFT, Length: time.Second, Hist: r},
		{Tag: hist.ITL, Start: time.Second, Hist: hist.New()}}
}

func sameInterval(a, b hist.Interval) bool {
	return a.Tag == b.Tag && a.Start == b.Start && a.Length == b.Length && a.Hist.Count() == b.Hist.Count() &&
		a.Hist.Quantile(0.5) == b.Hist.Quantile(0.5) && a.Hist.Mean() == b.Hist.Mean()
}

func TestHistograms(t *testing.T) {
	f := create(t)
	want := someIntervals()
	if err := f.WriteHistograms("a", time.Unix(1e9, 0), want); err != nil {
		t.Fatal(err)
	}
	got, partial, err := f.ReadHistograms("a")
	if err != nil || partial || !slices.EqualFunc(got, want, sameInterval) {
		t.Errorf("%v, partial %v, %v", got, partial, err)
	}
}

// TestSameBytes: the same content gives the same bytes, whatever the number of cores.
func TestSameBytes(t *testing.T) {
	var first [][]byte
	for round := range 2 {
		f := create(t)
		if err := errors.Join(f.SetPart("a", Running), f.WriteRequests("a", records(500)), f.WriteSteps("a", someSteps()),
			f.WriteSeries("a", someSeries()), f.WriteHistograms("a", time.Time{}, someIntervals()), f.WriteResult(result("a")),
			f.SetPart("a", Done)); err != nil {
			t.Fatal(err)
		}
		for i, name := range f.Files() {
			data := file(t, f, name)
			if round == 0 {
				first = append(first, data)
			} else if !bytes.Equal(first[i], data) {
				t.Errorf("%s differs", name)
			}
		}
	}
}

func fuzzSeeds(f *testing.F, suffix string) {
	folder, err := Create(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	if err := errors.Join(folder.WriteRequests("a", records(3)), folder.WriteSteps("a", someSteps()),
		folder.WriteSeries("a", someSeries()), folder.WriteHistograms("a", time.Time{}, someIntervals())); err != nil {
		f.Fatal(err)
	}
	data, err := os.ReadFile(folder.Path("a" + suffix))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(data[:len(data)/2])
	f.Add([]byte{})
	f.Add([]byte("{}\n"))
	f.Add([]byte("context_requests,context_tokens,generation_requests,generation_tokens,elapsed_ms\n1,2,3,4,1e11\n"))
}

func FuzzReadRequests(f *testing.F) {
	fuzzSeeds(f, RequestsSuffix)
	f.Fuzz(func(t *testing.T, data []byte) {
		again(t, data, ReadRequests)
	})
}

func FuzzReadSeries(f *testing.F) {
	fuzzSeeds(f, SeriesSuffix)
	f.Fuzz(func(t *testing.T, data []byte) { again(t, data, ReadSeries) })
}

func FuzzReadHistograms(f *testing.F) {
	fuzzSeeds(f, LatencySuffix)
	f.Fuzz(func(t *testing.T, data []byte) { again(t, data, ReadHistograms) })
}

// FuzzReadSteps: what is read can be written, and reads back the same.
func FuzzReadSteps(f *testing.F) {
	fuzzSeeds(f, StepsSuffix)
	f.Fuzz(func(t *testing.T, data []byte) {
		steps := again(t, data, ReadSteps)
		var b bytes.Buffer
		b.WriteString(strings.Join(stepColumns[:], ",") + "\n")
		for i := range steps {
			b.Write(appendStep(nil, &steps[i]))
		}
		got, partial, err := ReadSteps(&b)
		if err != nil || partial || len(got) != len(steps) {
			t.Fatalf("%d of %d steps read back, partial %v, %v", len(got), len(steps), partial, err)
		}
	})
}

// again reads data whole and cut by its last byte: what reads without an error still does when it is cut short.
func again[T any](t *testing.T, data []byte, read func(io.Reader) ([]T, bool, error)) []T {
	all, _, err := read(bytes.NewReader(data))
	if err == nil && len(data) > 0 {
		if _, _, err := read(bytes.NewReader(data[:len(data)-1])); err != nil {
			t.Fatalf("an error only when cut short: %v", err)
		}
	}
	return all
}

// dataDir is the folder of recorded data, which is not part of this repository.
func dataDir(t *testing.T) string {
	t.Helper()
	for _, dir := range []string{os.Getenv("KVTUNE_DATA"), "../../../shared/data"} {
		if _, err := os.Stat(filepath.Join(dir, "vllm_h200")); dir != "" && err == nil {
			return filepath.Join(dir, "vllm_h200")
		}
	}
	t.Skip("skipped: no data")
	return ""
}

// TestRecordedRuns reads what a real server did, as recorded by another program in the same format.
func TestRecordedRuns(t *testing.T) {
	dir := dataDir(t)
	for name, n := range map[string]int{"default_conc64": 256, "default_rate10": 200, "default_rate20": 400} {
		recs, partial, err := openPath(t, filepath.Join(dir, name+RequestsSuffix)).ReadRequests(name)
		if err != nil || partial || len(recs) != n {
			t.Errorf("%s: %d requests, partial %v, %v", name, len(recs), partial, err)
			continue
		}
		ms := harness.Measure(recs)
		if ok, _ := ms.Value(harness.MetricRequests, harness.StatOK); int(ok) != n {
			t.Errorf("%s: %v requests succeeded, want %d", name, ok, n)
		}
	}
	file, err := os.Open(filepath.Join(dir, "step_times_default.csv"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	steps, partial, err := ReadSteps(file)
	if err != nil || partial || len(steps) < 1000 {
		t.Fatalf("%d steps, partial %v, %v", len(steps), partial, err)
	}
	first := harness.StepRecord{T: -1, ContextRequests: 1, ContextTokens: 64, Elapsed: 4380 * time.Microsecond,
		Running: -1, Waiting: -1, Preemptions: -1}
	if d := cmp.Diff(first, steps[0]); d != "" {
		t.Error(d)
	}
}

func openPath(t *testing.T, path string) *Folder {
	t.Helper()
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func BenchmarkAppend(b *testing.B) {
	f, err := Create(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	w, err := f.Requests("a")
	if err != nil {
		b.Fatal(err)
	}
	rec := records(2)[1]
	for i := range 400 {
		rec.Tokens = append(rec.Tokens, workload.TokenEvent{At: 7*time.Millisecond + time.Duration(i)*5123456, Tokens: 1})
	}
	for b.Loop() {
		if err := w.Append(rec); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	info, err := os.Stat(f.Path("a_requests.jsonl.zst"))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(info.Size())/float64(b.N), "B/line")
}
