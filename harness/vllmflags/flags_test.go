package vllmflags

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kvtune/harness"
)

var (
	h200  = Device{Name: "NVIDIA H200", Memory: 150e9}
	h100  = Device{Name: "H100-SXM", Memory: 79 * gib}
	a100  = Device{Name: "NVIDIA A100-SXM4-80GB", Memory: 79 * gib}
	l4    = Device{Name: "L4", Memory: 22 * gib}
	b200  = Device{Name: "NVIDIA B200", Memory: 180 * gib}
	gb10  = Device{Name: "NVIDIA GB10", Memory: 119 * gib}
	gb100 = Device{Name: "NVIDIA GB100", Memory: 180 * gib}
	cpu   = Device{CPU: true}
)

func yes() *bool { b := true; return &b }
func no() *bool  { b := false; return &b }

func TestRelease(t *testing.T) {
	for version, want := range map[string]struct {
		minor int
		warn  string
	}{
		"":                  {33, ""},
		"0.32.0":            {32, ""},
		"v0.32.0":           {32, ""},
		"0.32.0+cpu":        {32, ""},
		"0.26.0.dev1":       {26, ""},
		"0.26.1rc2.dev7+g1": {26, ""},
		"0.18":              {18, ""},
		"0.34.0":            {33, "newer than the newest known"},
		"1.0.0":             {33, "newer than the newest known"},
		"0.11.2":            {18, "older than the oldest known"},
		"nightly":           {33, "not of the form"},
		"0":                 {33, "not of the form"},
		"build 0.3":         {33, "not of the form"},
	} {
		minor, warn := Release(version)
		if minor != want.minor || !strings.Contains(warn, want.warn) || (warn == "") != (want.warn == "") {
			t.Errorf("Release(%q) = %d, %q; want %d and a warning with %q", version, minor, warn, want.minor, want.warn)
		}
	}
}

// The figures are vLLM's own (arg_utils.py get_batch_defaults of each release).
func TestDefaults(t *testing.T) {
	for _, c := range []struct {
		version             string
		dev                 Device
		tokens, seqs, block int
		utilization         float64
		async               bool
	}{
		{"0.18.0", h200, 8192, 1024, 16, 0.9, true},
		{"0.20.0", h200, 8192, 1024, 16, 0.92, true},
		{"0.33.0", h100, 8192, 1024, 16, 0.92, true},
		{"0.32.0", a100, 2048, 256, 16, 0.92, true},
		{"0.32.0", l4, 2048, 256, 16, 0.92, true},
		{"0.26.0", b200, 8192, 1024, 16, 0.92, true},
		{"0.29.0", b200, 16384, 1024, 16, 0.92, true},
		{"0.32.0", gb10, 8192, 1024, 16, 0.92, true},
		{"0.33.0", gb10, 2048, 256, 16, 0.92, true},
		{"0.33.0", gb100, 16384, 1024, 16, 0.92, true},
		{"0.32.0+cpu", cpu, 2048, 128, 128, 0.92, false},
		{"", Device{}, 2048, 256, 16, 0.92, true},
	} {
		got := Defaults(c.version, c.dev)
		if got.MaxNumBatchedTokens != c.tokens || got.MaxNumSeqs != c.seqs || got.BlockSize != c.block ||
			got.GPUMemoryUtilization != c.utilization || *got.AsyncScheduling != c.async {
			t.Errorf("Defaults(%q, %+v) = %+v", c.version, c.dev, got)
		}
	}
}

func TestResolve(t *testing.T) {
	type want struct{ tokens, seqs int }
	for _, c := range []struct {
		name string
		args harness.EngineArgs
		dev  Device
		want want
	}{
		{"nothing set", harness.EngineArgs{}, h200, want{8192, 1024}},
		{"small budget pulls the default sequences down", harness.EngineArgs{MaxNumBatchedTokens: 64}, cpu, want{64, 64}},
		{"both set stay", harness.EngineArgs{MaxNumBatchedTokens: 512, MaxNumSeqs: 8}, h200, want{512, 8}},
		{"chunked prefill off: a whole prompt fits", harness.EngineArgs{EnableChunkedPrefill: no(), MaxModelLen: 16384}, h200,
			want{16384, 1024}},
		{"chunked prefill off, short model", harness.EngineArgs{EnableChunkedPrefill: no(), MaxModelLen: 1024}, h200,
			want{8192, 1024}},
		{"chunked prefill on: no raise", harness.EngineArgs{MaxModelLen: 131072}, h200, want{8192, 1024}},
		{"at most seqs x max_model_len", harness.EngineArgs{MaxModelLen: 128, MaxNumSeqs: 4}, h200, want{512, 4}},
		{"sequences above the default budget", harness.EngineArgs{MaxNumSeqs: 4096}, cpu, want{4096, 4096}},
		{"cpu defaults grow with the ranks", harness.EngineArgs{TensorParallelSize: 2}, cpu, want{4096, 256}},
	} {
		got := Resolve(c.args, "0.32.0", c.dev)
		if (want{got.MaxNumBatchedTokens, got.MaxNumSeqs}) != c.want {
			t.Errorf("%s: tokens %d, seqs %d; want %+v", c.name, got.MaxNumBatchedTokens, got.MaxNumSeqs, c.want)
		}
	}
}

func TestLegalize(t *testing.T) {
	for _, c := range []struct {
		name    string
		version string
		dev     Device
		args    harness.EngineArgs
		want    harness.EngineArgs
		reps    []string
	}{
		{"block 8 on a GPU", "0.32.0", h200, harness.EngineArgs{BlockSize: 8}, harness.EngineArgs{BlockSize: 16},
			[]string{"block_size 8 replaced by 16"}},
		{"block 40 is as near to 32 as to 48: up", "0.32.0", h200, harness.EngineArgs{BlockSize: 40},
			harness.EngineArgs{BlockSize: 48}, []string{"block_size 40 replaced by 48"}},
		{"block 8 on the CPU", "0.32.0+cpu", cpu, harness.EngineArgs{BlockSize: 8}, harness.EngineArgs{BlockSize: 32},
			[]string{"multiples of 32"}},
		{"block 48 on the CPU of 0.26", "0.26.0", cpu, harness.EngineArgs{BlockSize: 48}, harness.EngineArgs{BlockSize: 48},
			nil},
		{"block 8 on the CPU of 0.20", "0.20.0", cpu, harness.EngineArgs{BlockSize: 8}, harness.EngineArgs{BlockSize: 8},
			nil},
		{"swap space becomes offloading", "0.33.0", h200, harness.EngineArgs{SwapSpace: 8},
			harness.EngineArgs{KVOffloadingSize: 8}, []string{"swap_space 8 replaced by kv_offloading_size=8", "not modelled"}},
		{"swap space beside offloading", "0.33.0", h200, harness.EngineArgs{SwapSpace: 8, KVOffloadingSize: 4},
			harness.EngineArgs{KVOffloadingSize: 4}, []string{"swap_space 8 left out"}},
		{"swap space on the CPU", "0.33.0", cpu, harness.EngineArgs{SwapSpace: 8}, harness.EngineArgs{},
			[]string{"swap_space 8 left out"}},
		{"watermark too early", "0.20.0", h200, harness.EngineArgs{Watermark: 0.01}, harness.EngineArgs{},
			[]string{"watermark 0.01 left out"}},
		{"watermark", "0.26.0", h200, harness.EngineArgs{Watermark: 0.01}, harness.EngineArgs{Watermark: 0.01}, nil},
		{"asynchronous scheduling on the CPU", "0.32.0", cpu, harness.EngineArgs{AsyncScheduling: yes()},
			harness.EngineArgs{AsyncScheduling: no()}, []string{"async_scheduling true replaced by false"}},
		{"threshold above the context", "0.32.0", h200,
			harness.EngineArgs{LongPrefillTokenThreshold: 9000, MaxModelLen: 4096},
			harness.EngineArgs{LongPrefillTokenThreshold: 4096, MaxModelLen: 4096},
			[]string{"long_prefill_token_threshold 9000 replaced by 4096"}},
		{"more sequences than tokens", "0.32.0", h200, harness.EngineArgs{MaxNumBatchedTokens: 64, MaxNumSeqs: 128},
			harness.EngineArgs{MaxNumBatchedTokens: 64, MaxNumSeqs: 64}, []string{"max_num_seqs 128 replaced by 64"}},
		{"many sequences alone", "0.32.0", cpu, harness.EngineArgs{MaxNumSeqs: 4096},
			harness.EngineArgs{MaxNumBatchedTokens: 4096, MaxNumSeqs: 4096}, []string{"max_num_batched_tokens set to 4096"}},
		{"few sequences alone", "0.32.0", cpu, harness.EngineArgs{MaxNumSeqs: 4, MaxModelLen: 64},
			harness.EngineArgs{MaxNumSeqs: 4, MaxModelLen: 64}, nil},
		{"chunked prefill off needs room for a prompt", "0.32.0", h200,
			harness.EngineArgs{MaxNumBatchedTokens: 2048, EnableChunkedPrefill: no(), MaxModelLen: 16384},
			harness.EngineArgs{MaxNumBatchedTokens: 16384, EnableChunkedPrefill: no(), MaxModelLen: 16384},
			[]string{"max_num_batched_tokens 2048 replaced by 16384"}},
		{"priority", "0.18.0", h200, harness.EngineArgs{SchedulingPolicy: "priority"},
			harness.EngineArgs{SchedulingPolicy: "priority"}, nil},
	} {
		got, reps, err := Legalize(c.args, c.version, c.dev)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: -want +got\n%s", c.name, diff)
		}
		text := ""
		for _, r := range reps {
			text += r.String() + "\n"
		}
		for _, want := range c.reps {
			if !strings.Contains(text, want) {
				t.Errorf("%s: replacements %q do not say %q", c.name, text, want)
			}
		}
		if c.reps == nil && text != "" {
			t.Errorf("%s: unexpected replacement %q", c.name, text)
		}
	}
}

func TestNoLegalNeighbour(t *testing.T) {
	for want, args := range map[string]harness.EngineArgs{
		"scheduling_policy":      {SchedulingPolicy: "lifo"},
		"gpu_memory_utilization": {GPUMemoryUtilization: 1.5},
		"max_num_seqs":           {MaxNumSeqs: -1},
		"watermark":              {Watermark: 1},
		"octave_k3v4":            {KVCacheDType: "octave_k3v4"}, // 0.33 only
	} {
		if _, _, err := Argv(args, "0.32.0", h200); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: error %v does not name %s", args, err, want)
		}
	}
	if _, _, err := Argv(harness.EngineArgs{KVCacheDType: "octave_k3v4"}, "0.33.0", h200); err != nil {
		t.Errorf("0.33 knows octave_k3v4: %v", err)
	}
}

func TestArgv(t *testing.T) {
	for _, c := range []struct {
		args harness.EngineArgs
		dev  Device
		want string
	}{
		{harness.EngineArgs{}, h200, ""},
		{harness.EngineArgs{MaxNumSeqs: 64}, h200, "--max-num-batched-tokens 8192 --max-num-seqs 64"},
		{harness.EngineArgs{MaxNumBatchedTokens: 64}, cpu, "--max-num-batched-tokens 64 --max-num-seqs 64"},
		{harness.EngineArgs{BlockSize: 8, SwapSpace: 8, EnableChunkedPrefill: no(), EnablePrefixCaching: yes(),
			SchedulingPolicy: "fcfs", GPUMemoryUtilization: 0.7}, h200,
			"--block-size 16 --no-enable-chunked-prefill --enable-prefix-caching --scheduling-policy fcfs " +
				"--gpu-memory-utilization 0.7 --kv-offloading-size 8"},
	} {
		got, _, err := Argv(c.args, "0.32.0", c.dev)
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("Argv(%+v) = %q, %v; want %q", c.args, got, err, c.want)
		}
	}
}

// random draws settings, each set with probability one half, many of them illegal for a release.
func random(rng *rand.Rand) harness.EngineArgs {
	var a harness.EngineArgs
	bit := func() bool { return rng.IntN(2) == 0 }
	for _, f := range fields() {
		if bit() {
			continue
		}
		switch p := f.at(&a).(type) {
		case *int:
			*p = 1 + rng.IntN(20000)
		case *float64:
			*p = float64(1+rng.IntN(99)) / 100
		case **bool:
			b := bit()
			*p = &b
		case *string:
			*p = map[string]string{"scheduling_policy": "priority", "kv_cache_dtype": "fp8"}[f.Name]
		}
	}
	return a
}

// Whatever was asked for, the argument vector parses back to the legal settings, is legal itself, has only flags of the
// release, and what is resolved from it can be started.
func TestArgvParsesBack(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	versions := []string{"0.18.0", "0.20.0", "0.26.0", "0.29.0", "0.32.0", "0.33.0"}
	devices := []Device{h200, l4, cpu, b200}
	for range 3000 {
		asked, version, dev := random(rng), versions[rng.IntN(len(versions))], devices[rng.IntN(len(devices))]
		argv, _, err := Argv(asked, version, dev)
		if err != nil {
			t.Fatalf("%+v: %v", asked, err)
		}
		_, got, rest, err := ParseServeCommand("vllm serve m " + strings.Join(argv, " "))
		if err != nil || len(rest) > 0 {
			t.Fatalf("%q: rest %q, %v", argv, rest, err)
		}
		want, _, _ := Legalize(asked, version, dev)
		if want.MaxNumBatchedTokens > 0 || want.MaxNumSeqs > 0 {
			full := Resolve(want, version, dev)
			want.MaxNumBatchedTokens, want.MaxNumSeqs = full.MaxNumBatchedTokens, full.MaxNumSeqs
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%q on %s: -legal +parsed\n%s", argv, version, diff)
		}
		if _, reps, err := Legalize(got, version, dev); len(reps) > 0 || err != nil {
			t.Fatalf("%q is not legal on %s %+v: %v %v", argv, version, dev, reps, err)
		}
		minor, _ := Release(version)
		for _, f := range fields() {
			flag := strings.ReplaceAll(f.Name, "_", "-")
			if !f.in(minor) && (slices.Contains(argv, "--"+flag) || slices.Contains(argv, "--no-"+flag)) {
				t.Fatalf("%q: %s does not exist in %s", argv, flag, version)
			}
		}
		full := Resolve(got, version, dev)
		if full.MaxNumBatchedTokens < full.MaxNumSeqs || full.MaxNumSeqs < 1 {
			t.Fatalf("%q resolves to %d tokens, %d sequences", argv, full.MaxNumBatchedTokens, full.MaxNumSeqs)
		}
		if !*full.EnableChunkedPrefill && full.MaxNumBatchedTokens < full.MaxModelLen {
			t.Fatalf("%q: %d tokens hold no prompt of %d", argv, full.MaxNumBatchedTokens, full.MaxModelLen)
		}
		if diff := cmp.Diff(full, Resolve(full, version, dev)); diff != "" {
			t.Fatalf("resolving twice changes: %s", diff)
		}
	}
}

func TestKnown(t *testing.T) {
	names := func(version string) (ns []string) {
		for _, f := range Known(version, h200) {
			ns = append(ns, f.Name)
			if f.Legal == "" {
				t.Errorf("%s of %s has no legal values", f.Name, version)
			}
		}
		return ns
	}
	if slices.Contains(names("0.20.0"), "watermark") || !slices.Contains(names("0.26.0"), "watermark") {
		t.Error("watermark exists from 0.24 on")
	}
	if slices.Contains(names("0.18.0"), "swap_space") {
		t.Error("no release has swap_space")
	}
	for _, f := range Known("0.32.0", cpu) {
		if f.Name == "block_size" && (f.Default != "128" || f.Legal != "multiples of 32") {
			t.Errorf("block_size on the CPU: %+v", f)
		}
	}
	for _, f := range Known("0.32.0", Device{}) {
		if want := f.Name != "kv_offloading_size"; f.Modelled != want {
			t.Errorf("%s: modelled is %v", f.Name, f.Modelled)
		}
	}
}
