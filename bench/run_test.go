package bench

import (
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"image/png"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"kvtune/cuda"
	"kvtune/harness/archive"
	"kvtune/harness/compare"
	"kvtune/harness/stats"
	"kvtune/harness/timing"
	"kvtune/kernels"
	"kvtune/kernels/ref"
)

// fake is the reference with a clock that makes its times up: 100 us, of block_size 1 20 % more, with half a percent of
// noise.
type fake struct {
	wrong  bool // outputs are not the reference's
	loaded func()
	room   int64 // bytes of a case at most, if not 0
}

func (fake) Name() string { return "fake" }

func (fake) Peak(p kernels.Peak) (kernels.Kernel, float64, error) {
	if p != kernels.PeakLaunch && p != kernels.PeakMatrix {
		return nil, 0, nil
	}
	return &fakeKernel{truth: 1e-6, rng: rand.New(rand.NewPCG(1, 1))}, 1e12, nil
}

func (f fake) Load(in *kernels.Inputs) (kernels.Kernel, error) {
	if f.loaded != nil {
		f.loaded()
	}
	if f.room > 0 && in.Case.Bytes() > f.room {
		return nil, fmt.Errorf("case %s: %w: too large", in.Case.Name(), kernels.ErrUnsupported)
	}
	truth := 100e-6
	if in.Case.BlockSize == 1 {
		truth *= 1.2
	}
	k := &fakeKernel{wrong: f.wrong, truth: truth, rng: rand.New(rand.NewPCG(uint64(in.Case.BlockSize), 1))}
	var err error
	k.Kernel, err = ref.Load(in)
	return k, err
}

type fakeKernel struct {
	kernels.Kernel
	wrong bool
	truth float64
	rng   *rand.Rand
}

func (k *fakeKernel) Output() (kernels.Output, error) {
	out, err := k.Kernel.Output()
	if k.wrong && len(out.Attention) > 0 {
		out.Attention[0] += 1
	}
	return out, err
}

func (k *fakeKernel) Close() error {
	if k.Kernel == nil {
		return nil
	}
	return k.Kernel.Close()
}

func (k *fakeKernel) Series(samples, launches int) ([]timing.Reading, error) {
	out := make([]timing.Reading, samples)
	for i := range out {
		noise := 1 + 0.005*k.rng.NormFloat64()
		out[i] = timing.Reading{Seconds: 1e-6 + float64(launches)*k.truth*noise, SMClock: new(2e9 / noise)}
	}
	return out, nil
}

func (*fakeKernel) Empty(samples int) ([]float64, error) {
	out := make([]float64, samples)
	for i := range out {
		out[i] = 1e-6
	}
	return out, nil
}

func cases(t *testing.T, ops []string, axes ...string) []kernels.Case {
	t.Helper()
	list, err := Cases(ops, append([]string{"kv_heads=1", "heads=4", "head_size=64"}, axes...), false)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func run(t *testing.T, o Options) *Outcome {
	t.Helper()
	o.Name, o.Device, o.Ceiling = "kernels", "made up", 40<<20
	o.Timing.WarmUp = -1
	if o.Backend == nil {
		o.Backend = fake{}
	}
	out, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestRun: what block_size 1 costs is found, whatever layout it is in, and what costs nothing is not significant; files
// and formats say the same.
func TestRun(t *testing.T) {
	o := Options{Cases: cases(t, []string{"decode", "append"}, "block_size=1,16,64", "layout=NHD,HND"), Cold: true,
		Timing: timing.Options{MinSamples: 200}}
	out := run(t, o)
	if len(out.Bench.Cases) != 12 || out.Bench.Rounds != 2 || out.Bench.Partial {
		t.Fatalf("%d cases, %d rounds", len(out.Bench.Cases), out.Bench.Rounds)
	}
	if b := out.Bench; b.ReadCeiling == nil || b.CopyCeiling == nil || b.MatrixCeiling == nil || b.LaunchFloor == nil ||
		b.ToHost != nil {
		t.Errorf("ceilings of %+v", b)
	}
	best := 0
	for i, row := range out.Bench.Cases {
		if row.Samples < 400 || row.Checked == "" || row.Low == nil || *row.Low > row.Median || *row.High < row.Median {
			t.Errorf("%+v", row)
		}
		if row.Cycles == nil || math.Abs(*row.Cycles/(2e9*row.Median)-1) > 0.005 {
			t.Errorf("%s: cycles %v at 2 GHz", row.Case, row.Cycles)
		}
		r := &out.Bench.Cases[i]
		switch {
		case row.Best:
			best++
		case row.Axes["block_size"] == "1":
			if !r.Significant() || math.Abs(*row.Slower-1.2) > 0.01 || *row.SlowerLow > 1.2 || *row.SlowerHigh < 1.2 {
				t.Errorf("%s: %+v", row.Case, row)
			}
		case math.Abs(*row.Slower-1) > 0.005 || !strings.HasSuffix(r.Cost(), "%") && !strings.HasSuffix(r.Cost(), "~"):
			t.Errorf("%s: %s", row.Case, r.Cost())
		}
	}
	if best != 2 {
		t.Errorf("%d fastest cases, want one per operation", best)
	}
	if v := out.Verdict(); !strings.Contains(v, "block_size 1 ") || !strings.Contains(v, "costs +") ||
		!strings.Contains(v, "measured, fake backend") {
		t.Errorf("verdict: %s", v)
	}

	f, err := archive.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := out.Save(f); err != nil {
		t.Fatal(err)
	}
	picture, err := os.Open(f.Path("kernels" + HeatMapSuffix))
	if err != nil {
		t.Fatal(err)
	}
	defer picture.Close()
	if _, err := png.Decode(picture); err != nil {
		t.Error(err)
	}
	intervals, _, err := f.ReadHistograms("kernels")
	if err != nil || len(intervals) != 12 || intervals[0].Hist.Count() != int64(out.Bench.Cases[0].Samples) {
		t.Errorf("%d histograms, %v", len(intervals), err)
	}
	side, err := compare.Read(f.Dir())
	if err != nil || len(side.Series) != 12 || !strings.HasSuffix(side.Series[0].Case, "/cold") {
		t.Errorf("the archive as a side of a comparison: %d series, %v", len(side.Series), err)
	}

	var text, table, lines bytes.Buffer
	if err := errors.Join(out.Text(&text), out.CSV(&table), out.GoBench(&lines)); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(text.String(), out.Verdict()+"\n") || !strings.Contains(text.String(), "yes") {
		t.Errorf("text:\n%s", &text)
	}
	if records, err := csv.NewReader(&table).ReadAll(); err != nil || len(records) != 13 || records[1][2] != "1" {
		t.Errorf("csv: %v, %v", records, err)
	}
	side, err = compare.ReadGo(&lines, "lines")
	if err != nil || len(side.Series) != 12 || len(side.Warnings) > 0 || len(side.Series[0].Values) < 6 ||
		!strings.HasPrefix(side.Series[0].Case, "Decode/layout=NHD/block_size=1/") {
		t.Errorf("Go's benchmark format: %+v, %v", side, err)
	}
}

// TestWrongKernelIsNotTimed: a kernel that does not agree with the reference is an error, not a fast row.
func TestWrongKernelIsNotTimed(t *testing.T) {
	_, err := Run(t.Context(), Options{Backend: fake{wrong: true}, Cases: cases(t, []string{"decode"})})
	if err == nil || !strings.Contains(err.Error(), "against the reference") {
		t.Errorf("%v", err)
	}
}

// TestTooLarge: a case whose timed form the backend does not hold is left out and named; the others are timed.
func TestTooLarge(t *testing.T) {
	list := cases(t, []string{"decode"}, "context=512,4096", "batch=1")
	out := run(t, Options{Backend: fake{room: list[0].Bytes()}, Cases: list})
	if len(out.Bench.Cases) != 1 || out.Bench.Cases[0].Case != list[0].Name() || out.Bench.Partial {
		t.Errorf("%d cases: %+v", len(out.Bench.Cases), out.Bench.Cases)
	}
	if !slices.ContainsFunc(out.Bench.Warnings, func(w string) bool {
		return strings.Contains(w, "left out: case "+list[1].Name())
	}) {
		t.Errorf("warnings %q", out.Bench.Warnings)
	}
	if _, err := Run(t.Context(), Options{Backend: fake{room: list[0].Bytes()}, Cases: list[1:], Ceiling: 40 << 20,
		Timing: timing.Options{WarmUp: -1}}); err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("nothing was timed, and the error is %v", err)
	}
}

// TestInterrupted: what was timed before is there and says that it is partial.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	loads := 0
	o := Options{Cases: cases(t, []string{"decode"}, "block_size=1,16,64"), Name: "kernels", Ceiling: 40 << 20,
		Timing: timing.Options{WarmUp: -1}}
	o.Backend = fake{loaded: func() {
		if loads++; loads == 3+2+2 { // three checks, two ceilings, the second case
			cancel()
		}
	}}
	out, err := Run(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	if !out.Bench.Partial || len(out.Bench.Cases) == 0 || len(out.Bench.Cases) == 3 || !strings.Contains(out.Verdict(),
		"PARTIAL") {
		t.Errorf("%d cases, partial %v: %s", len(out.Bench.Cases), out.Bench.Partial, out.Verdict())
	}
}

func TestCases(t *testing.T) {
	list, err := Cases([]string{"decode", "gather"}, []string{"layout=NHD,HND", "block_size=1,16"}, true)
	if err != nil || len(list) != 8 || list[0].Context != 4096 || list[1].BlockSize != 16 ||
		list[4].Op != kernels.OpGather {
		t.Errorf("%v, %v", list, err)
	}
	for _, c := range []struct {
		op, axis, want string
	}{
		{"decod", "block_size=1", "unknown"}, {"decode", "block_size", "name=value"}, {"decode", "page=1", "unknown axis"},
		{"decode", "block_size=3", "power of two"}, {"decode", "block_size=16,16", "twice"}, {"decode", "block_size=x",
			"whole number"},
	} {
		if _, err := Cases([]string{c.op}, []string{c.axis}, false); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: %v, want %q", c.op, c.axis, err, c.want)
		}
	}
	if _, err := Cases([]string{"decode"}, []string{"batch=1", "batch=2"}, false); err == nil {
		t.Error("an axis given twice")
	}
	file, err := os.Open("gpu.cases")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if list, err = ReadCases(file, true); err != nil || len(list) > 120 {
		t.Errorf("gpu.cases: %d cases, want at most 120; %v", len(list), err)
	}
	for text, want := range map[string]string{"": "no case", "# decode": "no case", "decode\n\ndecode": "line 3",
		"decode x=1": "line 1"} {
		if _, err := ReadCases(strings.NewReader(text), true); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	for _, op := range kernels.Ops() {
		for _, large := range []bool{false, true} {
			for _, c := range []kernels.Case{Base(op, large), Small(Base(op, large))} {
				if err := c.Validate(); err != nil {
					t.Error(err)
				}
			}
		}
	}
}

// suite times every operation at its base case, and decode over layouts and block sizes, on a backend.
func suite(b *testing.B, backend string, cold bool) {
	m, err := Open(backend, cold)
	if err != nil {
		b.Skip(err)
	}
	defer m.Close()
	var list []kernels.Case
	for _, op := range kernels.Ops() {
		list = append(list, Base(op, m.Large))
	}
	decode, err := Cases([]string{"decode"}, []string{"layout=NHD,HND,x-packed", "block_size=1,8,32,256"}, m.Large)
	if err != nil {
		b.Fatal(err)
	}
	rates := map[kernels.Op]float64{} // of plain reading and copying in the same run, which come first
	slices.Reverse(list)
	for _, c := range append(list, decode...) {
		b.Run(c.Name(), func(b *testing.B) {
			seconds := each(b, loaded(b, m, c))
			rate := float64(c.Bytes()) / seconds
			rates[c.Op] = rate
			b.ReportMetric(seconds*1e9, "ns/op")
			b.ReportMetric(rate/1e12, "TB/s")
			if c.Flops() > 0 {
				b.ReportMetric(c.Flops()/seconds/1e12, "TFLOP/s")
			}
			for _, ceiling := range []kernels.Op{kernels.OpRead, kernels.OpCopy} {
				if rates[ceiling] > 0 {
					b.ReportMetric(100*rate/rates[ceiling], "%"+string(ceiling))
				}
			}
		})
	}
}

// loaded is a case with random inputs on a backend, until the benchmark ends.
func loaded(b *testing.B, m *Machine, c kernels.Case) kernels.Kernel {
	b.Helper()
	in, err := kernels.NewInputs(c)
	if err != nil {
		b.Fatal(err)
	}
	k, err := m.Backend.Load(in)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { k.Close() })
	return k
}

// each is the seconds of one launch: between the device's own events where the kernel has them, less what an empty pair
// of events takes, else on the benchmark's clock.
func each(b *testing.B, k kernels.Kernel) float64 {
	clock, onDevice := k.(timing.Clock)
	if !onDevice {
		for b.Loop() {
			if err := k.Run(1); err != nil {
				b.Fatal(err)
			}
		}
		return b.Elapsed().Seconds() / float64(b.N)
	}
	const launches = 20
	var samples []float64
	for b.Loop() {
		readings, err := clock.Series(10, launches)
		if err != nil {
			b.Fatal(err)
		}
		for _, r := range readings {
			samples = append(samples, r.Seconds)
		}
	}
	empty, err := clock.Empty(100)
	if err != nil {
		b.Fatal(err)
	}
	return (stats.New(samples).Median() - stats.New(empty).Median()) / launches
}

func BenchmarkHost(b *testing.B) { suite(b, "host", false) }

func BenchmarkCUDA(b *testing.B) { suite(b, "cuda", true) }

// Example shows a run from Go.
func Example() {
	list, err := Cases([]string{"decode"}, []string{"block_size=1,16", "batch=1", "context=256"}, false)
	if err != nil {
		fmt.Println(err)
		return
	}
	m, err := Open("host", false)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer m.Close()
	out, err := Run(context.Background(), Options{Name: "kernels", Backend: m.Backend, Device: m.Device, Cases: list,
		Rounds:  1,
		Ceiling: 16 << 20, Timing: timing.Options{MaxTime: 1e7}})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, c := range out.Bench.Cases {
		fmt.Println(c.Axes["op"], c.Axes["block_size"], c.Median > 0, c.Checked != "")
	}
	// Output:
	// decode 1 true true
	// decode 16 true true
}

// TestGPUCases checks every case that is recorded on a GPU, at its small shape: what compute-sanitizer runs.
func TestGPUCases(t *testing.T) {
	m, err := Open("cuda", false)
	if errors.Is(err, cuda.ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	file, err := os.Open("gpu.cases")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	list, err := ReadCases(file, true)
	if err != nil {
		t.Fatal(err)
	}
	r := &runner{Options: Options{Backend: m.Backend}}
	seen := map[kernels.Case]bool{}
	for _, c := range list {
		if c = Small(c); !seen[c] {
			seen[c] = true
			if err := r.check(c); err != nil {
				t.Error(err)
			}
		}
	}
	t.Logf("%d cases", len(seen))
}
