//go:build vllm

package hist

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// TestVLLMInstallationReadsHistogramLog lets an independent implementation, PyPI's hdrhistogram, read a log of ours: it
// must find every interval with its tag, times, count and quantiles. It needs the Python of `make test-vllm` and fails
// without it.
func TestVLLMInstallationReadsHistogramLog(t *testing.T) {
	dir := os.Getenv("KVTUNE_VLLM")
	if dir == "" {
		t.Fatal("KVTUNE_VLLM names no vLLM installation; run make test-vllm, which makes one")
	}
	extremes := New()
	for _, d := range []time.Duration{0, 1, 999, 1000, 1001, 2047, 2048, 2049, time.Minute, Highest} {
		extremes.Record(d)
	}
	want := append(intervals(), Interval{E2E, time.Minute, time.Hour, extremes}, Interval{ITL, time.Minute, 0, New()})
	path := filepath.Join(t.TempDir(), "latency.hlog")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := WriteLog(file, start, want); err != nil {
		t.Fatal(err)
	}
	percentiles := []float64{0, 25, 50, 90, 99, 99.9, 100}
	args := []string{filepath.Join("testdata", "read_log.py"), path}
	for _, p := range percentiles {
		args = append(args, strconv.FormatFloat(p, 'g', -1, 64))
	}
	out, err := exec.Command(filepath.Join(dir, "bin", "python"), args...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("%v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var got struct {
		Start     float64 `json:"start_s"`
		Intervals []struct {
			Tag         string  `json:"tag"`
			Start       float64 `json:"start_ms"`
			End         float64 `json:"end_ms"`
			Count       int64   `json:"count"`
			Max         float64 `json:"max_ns"`
			Mean        float64 `json:"mean_ns"`
			Percentiles []int64 `json:"percentiles_ns"`
		} `json:"intervals"`
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	base := float64(start.UnixMilli())
	if got.Start*1e3 != base {
		t.Errorf("the log starts at %v s, want %v", got.Start, base/1e3)
	}
	if len(got.Intervals) != len(want) {
		t.Fatalf("%d intervals, want %d", len(got.Intervals), len(want))
	}
	for i, w := range want {
		g := got.Intervals[i]
		from := base + w.Start.Seconds()*1e3
		if g.Tag != string(w.Tag) || math.Abs(g.Start-from) > 1e-2 || math.Abs(g.End-g.Start-w.Length.Seconds()*1e3) > 1e-2 {
			t.Errorf("interval %d: %s from %v to %v ms, want %s from %v for %v", i, g.Tag, g.Start, g.End, w.Tag, from, w.Length)
		}
		if g.Count != w.Hist.Count() || g.Max != float64(w.Hist.Max()) {
			t.Errorf("interval %d: count %d, largest %v ns, want %d and %d", i, g.Count, g.Max, w.Hist.Count(), w.Hist.Max())
		}
		if math.Abs(g.Mean-float64(w.Hist.Mean())) > 1 {
			t.Errorf("interval %d: mean %v ns, want %d", i, g.Mean, w.Hist.Mean())
		}
		for k, p := range percentiles {
			if q := int64(w.Hist.Quantile(p / 100)); g.Percentiles[k] != q {
				t.Errorf("interval %d, p%g: %d ns, want %d", i, p, g.Percentiles[k], q)
			}
		}
	}
}
