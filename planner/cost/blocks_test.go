package cost

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"kvtune/harness"
	"kvtune/planner/spec"
)

// kernels are a benchmark of attention in NHD, by block size in us.
func kernels(backend string, decode map[int]float64) *harness.Bench {
	b := &harness.Bench{Name: "kernels", Backend: backend, Device: "NVIDIA H200"}
	for size, us := range decode {
		for _, batch := range []string{"32", "8"} {
			for _, layout := range []string{"NHD", "x-packed"} {
				axes := map[string]string{"layout": layout, "block_size": fmt.Sprint(size), "dtype": "bf16", "heads": "32",
					"kv_heads": "8", "head_size": "128", "batch": batch, "table": "permuted"}
				t := us * 1e-6
				if layout != "NHD" {
					t *= float64(size)
				}
				low, high := 0.999*t, 1.001*t
				b.Cases = append(b.Cases, harness.BenchCase{Case: fmt.Sprintf("decode/layout=%s/block_size=%d/dtype=bf16/batch=%s",
					layout, size, batch),
					Axes: axes, Median: t, Low: &low, High: &high})
			}
		}
	}
	return b
}

func decoding(m *Model) (longContext time.Duration) {
	return m.StepTime(Step{DecodeSeqs: 32, DecodeContext: 32 * 4096})
}

// The ratio to 16 scales the KV read and nothing else; the interval of our kernels is wider than that of the server's.
func TestKernelsScaleTheKVRead(t *testing.T) {
	prior := h200Prior(t)
	at := func(m *Model, size int) *Model { return m.For(harness.EngineArgs{BlockSize: size}) }
	ours, err := prior.WithKernels(kernels("gpu", map[int]float64{16: 100, 64: 90}), spec.Default(), harness.EngineArgs{})
	if err != nil {
		t.Fatal(err)
	}
	read := prior.StepTime(Step{DecodeSeqs: 32, DecodeContext: 32 * 4096}) - prior.StepTime(Step{DecodeSeqs: 32})
	if got, want := decoding(at(ours, 16))-decoding(at(ours, 64)), read/10; (got - want).Abs() > time.Microsecond {
		t.Errorf("blocks of 64 save %v of a read of %v, want %v", got, read, want)
	}
	if got := decoding(at(ours, 32)); got != decoding(prior) {
		t.Errorf("blocks of 32, of which nothing is known, take %v instead of %v", got, decoding(prior))
	}
	if a, b := at(ours, 64).StepTime(Step{DecodeSeqs: 32}), prior.StepTime(Step{DecodeSeqs: 32}); a != b {
		t.Errorf("without context: %v, at 16 %v", a, b)
	}
	theirs, err := ours.WithKernels(kernels("vllm", map[int]float64{16: 100, 64: 97}), spec.Default(),
		harness.EngineArgs{})
	if err != nil {
		t.Fatal(err)
	}
	wide, narrow := *ours.Blocks[0].Decode, *theirs.Blocks[0].Decode
	if theirs.BlockOrigin(64) != ServersKernel || narrow.High-narrow.Low >= wide.High-wide.Low ||
		wide.High-wide.Low < 0.03 {
		t.Errorf("ours %+v, the server's %+v from %s", wide, narrow, theirs.BlockOrigin(64))
	}
	// What says more stays.
	again, err := theirs.WithKernels(kernels("gpu", map[int]float64{16: 100, 64: 50, 128: 80}), spec.Default(),
		harness.EngineArgs{})
	if err != nil {
		t.Fatal(err)
	}
	if again.BlockOrigin(64) != ServersKernel || *again.Blocks[0].Decode != narrow ||
		again.BlockOrigin(128) != OurKernels {
		t.Errorf("our kernels replaced the server's: %+v", again.Blocks)
	}
	data, err := json.Marshal(again)
	if err != nil {
		t.Fatal(err)
	}
	var back Model
	if err := json.Unmarshal(data, &back); err != nil || !reflect.DeepEqual(back.Blocks, again.Blocks) {
		t.Errorf("%v: %+v came back as %+v", err, again.Blocks, back.Blocks)
	}
	moved := 0
	for seed := range uint64(8) {
		if decoding(at(ours.Sample(rand.New(rand.NewPCG(seed, 1))), 64)) != decoding(at(ours, 64)) {
			moved++
		}
	}
	if moved < 8 || *ours.Blocks[0].Decode != wide {
		t.Errorf("%d of 8 draws moved; the model's own ratio is %+v", moved, *ours.Blocks[0].Decode)
	}
}

// A probe of the server says what its own kernel takes; no benchmark replaces it.
func TestProbeOfABlockSize(t *testing.T) {
	m := h200Prior(t)
	var slow []Observation
	read := m.Coefficients[nSeqs+len(m.Knots)+oContext].Value
	for i := range 20 {
		s := Step{DecodeSeqs: 16, DecodeContext: 16 * (3000 + i)}
		slow = append(slow, Observation{Steps: []Step{s}, Time: m.StepTime(s) + seconds(0.2*read*float64(s.DecodeContext))})
	}
	if m.Probe(64, slow[:3], "few") != m {
		t.Error("three steps tell a ratio")
	}
	probed := m.Probe(64, slow, "run")
	if r := probed.Blocks[0].Decode; r.Value < 1.199 || r.Value > 1.201 || probed.BlockOrigin(64) != Probed {
		t.Fatalf("%+v, want 1.2", probed.Blocks)
	}
	both, err := probed.WithKernels(kernels("vllm", map[int]float64{16: 100, 64: 50}), spec.Default(),
		harness.EngineArgs{})
	if err != nil || both.BlockOrigin(64) != Probed {
		t.Errorf("%v: %+v", err, both.Blocks)
	}
}

func TestKernelsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(*harness.Bench)
		args harness.EngineArgs
		want string
	}{
		"another device": {func(b *harness.Bench) { b.Device = "NVIDIA A100-SXM4-80GB" }, harness.EngineArgs{},
			"the cost model is of H200"},
		"another dtype": {func(*harness.Bench) {}, harness.EngineArgs{KVCacheDType: "fp8"},
			"no decode in fp8 with heads of 128"},
		"one size": {func(b *harness.Bench) { b.Cases = b.Cases[:1] }, harness.EngineArgs{},
			"kvtune bench --op decode"},
	} {
		b := kernels("gpu", map[int]float64{16: 100, 64: 90})
		c.edit(b)
		if _, err := h200Prior(t).WithKernels(b, spec.Default(), c.args); err == nil ||
			!strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
