package archive

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kvtune/harness"
)

func TestBench(t *testing.T) {
	f, err := Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	b := &harness.Bench{Schema: harness.BenchSchema, Name: "kernels", Origin: harness.OriginMeasured, Backend: "host",
		Cold:        true,
		ReadCeiling: new(2e10), Cases: []harness.BenchCase{{Case: "decode/block_size=16",
			Axes:   map[string]string{"block_size": "16"},
			Median: 1e-3, Low: new(0.9e-3), Samples: 3, Stop: "precise", Bytes: 1 << 20, Best: true}}}
	samples := []harness.BenchSample{
		{Case: "decode/block_size=16", Seconds: 1.2e-3, Clock: new(1.98e9), Outlier: true},
		{Case: "decode/block_size=16", Seconds: 1e-3, At: 50 * time.Millisecond, Gate: "power cap"},
		{Case: "decode/block_size=16", Seconds: 0.9e-3, Round: 1},
	}
	if err := f.WriteBench(b, samples); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{f.Dir(), f.Path("kernels" + BenchSuffix), f.Path("kernels" + SamplesSuffix)} {
		got, gotSamples, err := ReadBench(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(b, got) + cmp.Diff(samples, gotSamples); diff != "" {
			t.Errorf("%s: written and read differ:\n%s", path, diff)
		}
	}
	if err := os.WriteFile(f.Path("other"+BenchSuffix), []byte(`{"schema": "kvtune.bench/2"}`), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ReadBench(f.Path("other" + BenchSuffix)); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("a newer version: %v", err)
	}
}
