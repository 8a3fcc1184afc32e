package harness

import (
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kvtune/harness/workload"
)

// fields are the fields that an error refuses, in order.
func fields(err error) []string {
	var names []string
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			names = append(names, fields(e)...)
		}
		return names
	}
	var field *FieldError
	if errors.As(err, &field) {
		names = append(names, field.Field)
	}
	return names
}

func TestValidate(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Errorf("the default: %v", err)
	}
	off := false
	for _, c := range []struct {
		set  func(*Config)
		want string // the fields that are refused
	}{
		{func(c *Config) { c.C = 0 }, "C"},
		{func(c *Config) { c.B = 0 }, "B"},
		{func(c *Config) { c.M = -1 }, "M"},
		{func(c *Config) { c.B, c.SchedulingPolicy, c.BlockSize = 0, "lifo", -1 }, "B block_size scheduling_policy"},
		{func(c *Config) { c.C = math.MaxInt }, "C"},
		{func(c *Config) { c.NumMeasurements = 0 }, "num_measurements"},
		{func(c *Config) { c.NumWarmup = -1 }, "num_warmup"},
		{func(c *Config) { c.NumWarmup = 0 }, ""},
		{func(c *Config) { c.ProfilingType = "both" }, "profiling_type"},
		{func(c *Config) { c.ProfilingType = "" }, ""},
		{func(c *Config) { c.Name = "../up" }, "name"},
		{func(c *Config) { c.Name = "a b" }, "name"},
		{func(c *Config) { c.Name = "run-1.B_8" }, ""},
		{func(c *Config) { c.BlockSize = -16 }, "block_size"},
		{func(c *Config) { c.MaxNumBatchedTokens, c.MaxNumSeqs = 64, 65 }, "max_num_batched_tokens"},
		{func(c *Config) { c.MaxNumBatchedTokens, c.MaxNumSeqs = 64, 64 }, ""},
		{func(c *Config) { c.MaxNumBatchedTokens, c.MaxModelLen, c.EnableChunkedPrefill = 64, 65, &off },
			"max_num_batched_tokens"},
		{func(c *Config) { c.MaxNumBatchedTokens, c.MaxModelLen = 64, 65 }, ""},
		{func(c *Config) { c.SchedulingPolicy = "lifo" }, "scheduling_policy"},
		{func(c *Config) { c.GPUMemoryUtilization = 1.01 }, "gpu_memory_utilization"},
		{func(c *Config) { c.GPUMemoryUtilization = math.NaN() }, "gpu_memory_utilization"},
		{func(c *Config) { c.SwapSpace = -1 }, "swap_space"},
		{func(c *Config) { c.Watermark = 1 }, "watermark"},
		{func(c *Config) { c.Rate, c.Concurrency = "8", 4 }, "concurrency"},
		{func(c *Config) { c.Clients = 2 }, "clients"},
		{func(c *Config) { c.Clients, c.Concurrency = 3, 2 }, "clients"},
		{func(c *Config) { c.Clients, c.Concurrency = 2, 2 }, ""},
		{func(c *Config) { c.Turns = 2 }, "turns"},
		{func(c *Config) { c.Users, c.Turns, c.Rate = 2, 2, "1" }, "users"},
		{func(c *Config) { c.Users, c.Turns, c.ThinkTime = 2, 2, -1 }, "think_time_s"},
		{func(c *Config) { c.Burstiness = math.Inf(1) }, "burstiness"},
		{func(c *Config) { c.Prefix = "groups=0" }, "prefix"},
		{func(c *Config) { c.OutputLen = "9:1" }, "output_len"},
		{func(c *Config) { c.Rate = "fast" }, "rate"},
		{func(c *Config) { c.Trace, c.Rate = "a.csv", "fast" }, "rate"},
		{func(c *Config) { c.Trace, c.Rate = "a.csv", "4..8" }, "rate"},
		{func(c *Config) { c.Trace, c.Rate = "a.csv", "4" }, ""},
		{func(c *Config) { c.Trace, c.C, c.B, c.ProfilingType = "a.csv", 0, 0, "" }, ""}, // a trace says what is sent
		{func(c *Config) { c.Trace, c.Users = "a.csv", 1 }, "users"},
	} {
		config := DefaultConfig()
		c.set(&config)
		err := config.Validate()
		if got := strings.Join(fields(err), " "); got != c.want {
			t.Errorf("refused %q, want %q: %v", got, c.want, err)
		}
	}
	err := (&FieldError{Field: "B", Value: 0, Allowed: "from 1 to 9"}).Error()
	if err != "B is 0: allowed is from 1 to 9" {
		t.Error(err)
	}
}

func TestSpec(t *testing.T) {
	c := DefaultConfig()
	c.M, c.BlockSize, c.Users, c.Turns, c.ThinkTime, c.MaxModelLen, c.Seed = 3, 16, 2, 4, 0.25, 9000, 5
	got, err := c.Spec()
	want := workload.Spec{C: 512, M: 3, B: 8, BlockSize: 16, Type: "mixed", Prefix: "shared", NumWarmup: 1,
		NumMeasurements: 3, Users: 2, Turns: 4, ThinkTime: 250 * ms, MaxModelLen: 9000, Seed: 5}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("%v %s", err, d)
	}
	c.B = 0
	c.Users, c.Turns = 0, 0
	if _, err := c.Spec(); err == nil {
		t.Error("a spec of an invalid configuration")
	}
}

func TestPresets(t *testing.T) {
	type row struct {
		C, M, B, Tokens, Seqs, Block int
		Policy                       string
		Chunked                      bool
		Memory, Swap                 float64
	}
	want := map[string]row{
		"low-latency":      {256, 16, 16, 4096, 32, 16, "priority", true, 0, 0},
		"high-throughput":  {2048, 128, 128, 262144, 256, 16, "fcfs", true, 0, 0},
		"memory-efficient": {512, 32, 32, 16384, 64, 8, "fcfs", false, 0.7, 8},
	}
	for _, name := range PresetNames() {
		c, err := Preset(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Validate(); err != nil || c.Name != name {
			t.Errorf("%s: name %q, %v", name, c.Name, err)
		}
		got := row{c.C, c.M, c.B, c.MaxNumBatchedTokens, c.MaxNumSeqs, c.BlockSize, c.SchedulingPolicy,
			*c.EnableChunkedPrefill, c.GPUMemoryUtilization, c.SwapSpace}
		if got != want[name] {
			t.Errorf("%s: %+v, want %+v", name, got, want[name])
		}
		delete(want, name)
	}
	if len(want) > 0 {
		t.Errorf("not in PresetNames: %v", want)
	}
	_, err := Preset("fast")
	if err == nil || err.Error() != `preset is "fast": allowed is low-latency, high-throughput, memory-efficient` {
		t.Error(err)
	}
}

func TestReadConfigs(t *testing.T) {
	base := DefaultConfig()
	base.Seed = 7
	first, second := base, base
	first.Name, first.C, first.MaxNumSeqs = "a", 64, 32
	second.Name, second.M, second.NumWarmup = "config-2", 4, 0
	for _, text := range []string{
		`[{"name": "a", "C": 64, "max_num_seqs": 32}, {"M": 4, "num_warmup": 0}]`,
		` {"configs": [{"name": "a", "C": 64, "max_num_seqs": 32}, {"M": 4, "num_warmup": 0}]}` + "\n",
	} {
		got, err := ReadConfigs(strings.NewReader(text), base)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]Config{first, second}, got); d != "" {
			t.Error(d)
		}
		// What was read can be written and read again.
		again, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		if second, err := ReadConfigs(strings.NewReader(string(again)), DefaultConfig()); err != nil || !slices.Equal(
			[]string{second[0].Name, second[1].Name}, []string{"a", "config-2"}) {
			t.Errorf("%s: %v", again, err)
		}
	}
}

func TestReadConfigsRefuses(t *testing.T) {
	for text, want := range map[string]string{
		``:                               "empty",
		`[]`:                             "no configuration in the list",
		`{}`:                             `no "configs" in the object`,
		`{"configs": [], "extra": 1}`:    "extra",
		`[{"C": 64, "max_seqs": 32}]`:    `configs[0]: max_seqs is "unknown"`,
		`[{"C": 64}, {"C": "many"}]`:     `configs[1]: C is "a string": allowed is a int`,
		`[{"B": 0}]`:                     "configs[0] (config-1): B is 0: allowed is from 1",
		`[{"name": "x"}, {"name": "X"}]`: `configs[1]: name is "X"`,
		`[{"C": 64}`:                     "ends in the middle",
		`[{"C": 64}] [`:                  "more text behind",
		`[null]`:                         "null",
		`"C=64"`:                         "configs",
		`[{"C": 1.5}]`:                   "C",
	} {
		_, err := ReadConfigs(strings.NewReader(text), DefaultConfig())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func FuzzReadConfigs(f *testing.F) {
	f.Add(`[{"C": 64, "M": 2}]`)
	f.Add(`{"configs": [{"profiling_type": "decode"}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		configs, err := ReadConfigs(strings.NewReader(text), DefaultConfig())
		for _, c := range configs {
			if err := c.Validate(); err != nil {
				t.Fatalf("an invalid configuration was accepted: %v", err)
			}
		}
		if err == nil && len(configs) == 0 {
			t.Fatal("neither configurations nor an error")
		}
	})
}
