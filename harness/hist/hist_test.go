package hist

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	hdr "github.com/HdrHistogram/hdrhistogram-go"
)

func TestRecorder(t *testing.T) {
	r := New()
	if r.Count() != 0 || r.Quantile(0.5) != 0 || r.Mean() != 0 {
		t.Errorf("empty recorder: count %d, median %v, mean %v", r.Count(), r.Quantile(0.5), r.Mean())
	}
	for _, d := range []time.Duration{0, 1, time.Hour, -1, time.Hour + 1, 100 * time.Hour} {
		r.Record(d)
	}
	if r.Count() != 3 || r.Overflow() != 3 {
		t.Errorf("count %d, overflow %d, want 3 and 3", r.Count(), r.Overflow())
	}
}

// TestPrecision: a quantile of one value is that value to 3 digits, rounded up, over the whole range.
func TestPrecision(t *testing.T) {
	for d := time.Duration(1); d <= Highest; d = d*7/4 + 1 {
		r := New()
		r.Record(d)
		got := r.Quantile(0.5)
		if got < d || float64(got-d) > 0.001*float64(d) {
			t.Errorf("%d ns is read back as %d ns", d, got)
		}
	}
}

func recorder(seed uint64, n int) *Recorder {
	rng := rand.New(rand.NewPCG(seed, seed))
	r := New()
	for range n {
		r.Record(time.Duration(rng.ExpFloat64() * float64(20*time.Millisecond)))
	}
	return r
}

// TestMergeIsUnion: parts merged equal the whole, in any order, overflow included.
func TestMergeIsUnion(t *testing.T) {
	whole, a, b := New(), New(), New()
	rng := rand.New(rand.NewPCG(3, 4))
	for i := range 5000 {
		d := time.Duration(rng.ExpFloat64() * float64(20*time.Minute)) // some above the hour
		whole.Record(d)
		[]*Recorder{a, b}[i%2].Record(d)
	}
	if whole.Overflow() == 0 {
		t.Fatal("the test draws no overflow")
	}
	ab, ba := New(), New()
	ab.Merge(a)
	ab.Merge(b)
	ba.Merge(b)
	ba.Merge(a)
	for _, m := range []*Recorder{ab, ba} {
		if !m.h.Equals(whole.h) || m.Overflow() != whole.Overflow() {
			t.Errorf("merged: count %d overflow %d, want %d and %d", m.Count(), m.Overflow(), whole.Count(), whole.Overflow())
		}
	}
}

var start = time.Date(2026, 11, 24, 1, 2, 3, 456e6, time.UTC)

func intervals() []Interval {
	over := recorder(9, 10)
	over.Record(2 * time.Hour)
	return []Interval{
		{TTFT, 0, time.Second, recorder(1, 1000)},
		{ITL, 0, time.Second, recorder(2, 50)},
		{TTFT, 1001 * time.Millisecond, 999 * time.Millisecond, over},
		{E2E, 2 * time.Second, 123456 * time.Microsecond, New()},
		{"", 3 * time.Second, time.Second, recorder(4, 1)},
	}
}

func logOf(t *testing.T, at time.Time, ivs []Interval) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := WriteLog(&b, at, ivs); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func same(a, b Interval) bool {
	return a.Tag == b.Tag && a.Start == b.Start && a.Length == b.Length && a.Hist.h.Equals(b.Hist.h) &&
		a.Hist.overflow == b.Hist.overflow
}

func TestLogRoundTrip(t *testing.T) {
	for _, at := range []time.Time{start, {}} { // a simulated run has no start on the clock
		got, err := ReadLog(bytes.NewReader(logOf(t, at, intervals())))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.EqualFunc(got, intervals(), same) {
			t.Errorf("start %v: read back %+v", at, got)
		}
	}
}

// TestLogIsStandard reads our log with the library's reader.
func TestLogIsStandard(t *testing.T) {
	want := intervals()
	r := hdr.NewHistogramLogReader(bytes.NewReader(logOf(t, start, want)))
	for i, iv := range want {
		h, err := r.NextIntervalHistogram()
		if err != nil || h == nil {
			t.Fatalf("interval %d: %v", i, err)
		}
		if iv.Tag != "" && h.Tag() != string(iv.Tag) {
			t.Errorf("interval %d: tag %q, want %q", i, h.Tag(), iv.Tag)
		}
		// That reader cuts float seconds to whole milliseconds.
		if off := h.StartTimeMs() - start.Add(iv.Start).UnixMilli(); off < -1 || off > 0 {
			t.Errorf("interval %d starts %d ms off", i, off)
		}
		if !h.Equals(iv.Hist.h) {
			t.Errorf("interval %d: another histogram", i)
		}
	}
}

// TestReadsForeignLog reads what the library's writer wrote: absolute times, another range and precision, no tag.
func TestReadsForeignLog(t *testing.T) {
	h := hdr.New(1000, int64(2*time.Hour), 2)
	for _, d := range []time.Duration{time.Millisecond, 20 * time.Millisecond, 90 * time.Minute} {
		if err := h.RecordValue(int64(d)); err != nil {
			t.Fatal(err)
		}
	}
	h.SetStartTimeMs(start.UnixMilli() + 1500)
	h.SetEndTimeMs(start.UnixMilli() + 2500)
	var b bytes.Buffer
	w := hdr.NewHistogramLogWriter(&b)
	if err := errors.Join(w.OutputLogFormatVersion(), w.OutputStartTime(start.UnixMilli()), w.OutputLegend(),
		w.OutputIntervalHistogram(h)); err != nil {
		t.Fatal(err)
	}
	got, err := ReadLog(&b)
	if err != nil || len(got) != 1 {
		t.Fatalf("%d intervals, %v", len(got), err)
	}
	// The writer's header holds whole seconds: 456 ms of the start are lost there.
	if got[0].Start != 1956*time.Millisecond || got[0].Length != time.Second {
		t.Errorf("start %v, length %v", got[0].Start, got[0].Length)
	}
	if got[0].Hist.Count() != 2 || got[0].Hist.Overflow() != 1 {
		t.Errorf("count %d, overflow %d, want 2 and 1", got[0].Hist.Count(), got[0].Hist.Overflow())
	}
}

func TestWriteLogRefuses(t *testing.T) {
	for _, iv := range []Interval{{Tag: "a,b", Hist: New()}, {Tag: "a b", Hist: New()}, {Tag: "a\n", Hist: New()},
		{Start: -1, Hist: New()}, {Length: -1, Hist: New()}} {
		if err := WriteLog(io.Discard, start, []Interval{iv}); err == nil {
			t.Errorf("%+v was written", iv)
		}
	}
}

// TestTruncatedLog: cut at any byte, a log gives the whole intervals before the cut.
func TestTruncatedLog(t *testing.T) {
	want := []Interval{{TTFT, 0, time.Second, recorder(1, 20)}, {"", time.Second, time.Second, recorder(2, 3)}}
	log := logOf(t, start, want)
	for cut := range len(log) {
		got, err := ReadLog(bytes.NewReader(log[:cut]))
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		whole := 0
		for line := range strings.Lines(string(log[:cut])) {
			if strings.Contains(line, ",HIST") && strings.HasSuffix(line, "\n") {
				whole++
			}
		}
		// The last interval may be whole but for its line end.
		if len(got) < whole || len(got) > whole+1 || !slices.EqualFunc(got, want[:len(got)], same) {
			t.Fatalf("cut at %d: %d intervals, %d are whole", cut, len(got), whole)
		}
	}
}

func FuzzReadLog(f *testing.F) {
	var b bytes.Buffer
	if err := WriteLog(&b, start, intervals()); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte("#[StartTime: 1e9 (seconds\nTag=A,1,2,3,HISTFAAA\n"))
	f.Add([]byte("Tag=\n,,,\n#[Overflow: 5]\n1,2,3,"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := ReadLog(bytes.NewReader(data))
		if err != nil {
			return
		}
		for _, iv := range got {
			if iv.Hist.Count() < 0 || iv.Hist.Overflow() < 0 {
				t.Fatalf("negative count %d or overflow %d", iv.Hist.Count(), iv.Hist.Overflow())
			}
		}
	})
}
