// Package vllmflags knows vLLM's scheduler and cache flags from 0.18 to 0.33: which release has which, their defaults,
// their legal values, and how settings become an argument vector and back. Pure.
//
// Read [Legalize] (what a release refuses is replaced and reported), [Resolve] (what is left open takes vLLM's default)
// and [Argv]. [ParseServeCommand] reads a `vllm serve` command line.
//
// Source of the tables: vllm/engine/arg_utils.py, vllm/config/cache.py and vllm/platforms of the named releases.
package vllmflags

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"kvtune/harness"
)

// Oldest and Newest are the minor numbers of the vLLM 0.x releases whose flags are known.
const (
	Oldest = 18
	Newest = 33
)

// Release gives the minor number of the vLLM 0.x release whose tables hold for a version such as "0.32.0", "v0.26.0",
// "0.32.0+cpu" or "0.26.0.dev1+g123": between [Oldest] and [Newest]. The warning is "" where that is the version
// itself, and says what is assumed where it is older, newer or not readable. "" is the newest release, without a
// warning.
func Release(version string) (minor int, warning string) {
	if version == "" {
		return Newest, ""
	}
	parts := strings.FieldsFunc(strings.TrimPrefix(version, "v"), func(r rune) bool { return r < '0' || r > '9' })
	newest := fmt.Sprintf("the flags of vLLM 0.%d are assumed", Newest)
	if len(parts) < 2 || !strings.HasPrefix(strings.TrimPrefix(version, "v"), parts[0]+"."+parts[1]) {
		return Newest, fmt.Sprintf("vLLM version %q is not of the form 0.32.0: %s", version, newest)
	}
	minor, err := strconv.Atoi(parts[1])
	switch {
	case parts[0] != "0" || err != nil || minor > Newest:
		return Newest, fmt.Sprintf("vLLM %s is newer than the newest known, 0.%d: %s", version, Newest, newest)
	case minor < Oldest:
		return Oldest, fmt.Sprintf("vLLM %s is older than the oldest known, 0.%d, whose flags are assumed", version, Oldest)
	}
	return minor, ""
}

// Device is what defaults and legal values depend on. The zero value is an unknown GPU, taken for a small one.
type Device struct {
	// Name is the GPU's, as the driver or planner/spec has it.
	Name string
	// Memory is the device's total in bytes; 0 is unknown.
	Memory int64
	// CPU says that vLLM runs on the CPU platform.
	CPU bool
}

// Flag is one setting of [harness.EngineArgs].
type Flag struct {
	// Name is vLLM's, with underscores.
	Name string
	// Legal says in words what vLLM accepts.
	Legal string
	// Default is vLLM's for `vllm serve`, "" for none or the model's.
	Default string
	// Modelled is false where neither the simulator nor the cost model knows what the flag does: it is emitted only.
	Modelled bool
}

// Known lists the flags that a release has on a device, in the order in which [Argv] emits them.
func Known(version string, dev Device) []Flag {
	minor, _ := Release(version)
	defaults := Defaults(version, dev)
	var flags []Flag
	for _, f := range fields() {
		if !f.in(minor) {
			continue
		}
		f.Default = format(f.at(&defaults))
		switch f.Name {
		case "block_size":
			f.Legal = multiples(blockUnit(minor, dev))
		case "kv_cache_dtype":
			f.Legal = strings.Join(cacheDTypes(minor), ", ")
		}
		flags = append(flags, f.Flag)
	}
	return flags
}

// field ties a flag to its place in EngineArgs.
type field struct {
	Flag
	// at is a *int, *float64, *string or **bool. Its zero value is "not set".
	at func(*harness.EngineArgs) any
	// since and until are the first and the last minor release that have it; 0 is no limit. until -1: no release does.
	since, until int
	// readable integers may be written 8k (8000) or 8K (8192).
	readable bool
	// low and high bound numbers, below is a bound that they must not reach; high or below 0 is no limit. positive
	// numbers must not be 0.
	low, high, below float64
	positive         bool
	// values are the legal ones of a string; nil where they depend on the release.
	values []string
}

func (f field) in(minor int) bool {
	return minor >= f.since && (f.until == 0 || minor <= f.until)
}

// fields is the table. gpu_memory_utilization, max_model_len, kv_cache_dtype, num_gpu_blocks_override, enforce_eager
// and tensor_parallel_size are modelled through the size of the KV cache and the prior of the step times.
func fields() []field {
	type args = harness.EngineArgs
	return []field{
		{Flag: Flag{Name: "max_num_batched_tokens", Modelled: true,
			Legal: "at least max_num_seqs; at least max_model_len without chunked prefill"},
			at: func(a *args) any { return &a.MaxNumBatchedTokens }, readable: true, low: 1},
		{Flag: Flag{Name: "max_num_seqs", Legal: "1 to max_num_batched_tokens", Modelled: true},
			at: func(a *args) any { return &a.MaxNumSeqs }, low: 1},
		{Flag: Flag{Name: "block_size", Modelled: true}, at: func(a *args) any { return &a.BlockSize }, low: 1},
		{Flag: Flag{Name: "enable_chunked_prefill", Legal: "true, false", Modelled: true},
			at: func(a *args) any { return &a.EnableChunkedPrefill }},
		{Flag: Flag{Name: "enable_prefix_caching", Legal: "true, false", Modelled: true},
			at: func(a *args) any { return &a.EnablePrefixCaching }},
		{Flag: Flag{Name: "scheduling_policy", Legal: "fcfs, priority", Modelled: true},
			at: func(a *args) any { return &a.SchedulingPolicy }, values: []string{"fcfs", "priority"}},
		{Flag: Flag{Name: "gpu_memory_utilization", Legal: "above 0, at most 1", Modelled: true},
			at: func(a *args) any { return &a.GPUMemoryUtilization }, positive: true, high: 1},
		{Flag: Flag{Name: "swap_space", Legal: "in no release from 0.18 on"},
			at: func(a *args) any { return &a.SwapSpace }, until: -1},
		{Flag: Flag{Name: "kv_offloading_size", Legal: "GiB, at least 0"},
			at: func(a *args) any { return &a.KVOffloadingSize }},
		{Flag: Flag{Name: "max_model_len", Legal: "at least 1", Modelled: true},
			at: func(a *args) any { return &a.MaxModelLen }, readable: true, low: 1},
		{Flag: Flag{Name: "num_gpu_blocks_override", Legal: "at least 1", Modelled: true},
			at: func(a *args) any { return &a.NumGPUBlocksOverride }, low: 1},
		{Flag: Flag{Name: "kv_cache_dtype", Legal: "auto, bfloat16, fp8, ...", Modelled: true},
			at: func(a *args) any { return &a.KVCacheDType }},
		{Flag: Flag{Name: "long_prefill_token_threshold", Legal: "0 (off) to max_model_len", Modelled: true},
			at: func(a *args) any { return &a.LongPrefillTokenThreshold }},
		{Flag: Flag{Name: "long_prefill_token_threshold_adaptive", Legal: "true, false", Modelled: true},
			at: func(a *args) any { return &a.LongPrefillTokenThresholdAdaptive }, since: 31},
		{Flag: Flag{Name: "max_num_scheduled_tokens", Legal: "1 to max_num_batched_tokens", Modelled: true},
			at: func(a *args) any { return &a.MaxNumScheduledTokens }, readable: true, low: 1, since: 26},
		{Flag: Flag{Name: "max_num_active_seqs", Legal: "1 to max_num_seqs", Modelled: true},
			at: func(a *args) any { return &a.MaxNumActiveSeqs }, low: 1, since: 31},
		{Flag: Flag{Name: "max_num_queued_reqs", Legal: "at least 1", Modelled: true},
			at: func(a *args) any { return &a.MaxNumQueuedReqs }, low: 1, since: 29},
		{Flag: Flag{Name: "max_num_queued_tokens", Legal: "at least 1", Modelled: true},
			at: func(a *args) any { return &a.MaxNumQueuedTokens }, low: 1, since: 29},
		{Flag: Flag{Name: "scheduler_reserve_full_isl", Legal: "true, false", Modelled: true},
			at: func(a *args) any { return &a.SchedulerReserveFullISL }, since: 19},
		{Flag: Flag{Name: "async_scheduling", Legal: "true, false (the CPU platform forces false)", Modelled: true},
			at: func(a *args) any { return &a.AsyncScheduling }},
		{Flag: Flag{Name: "watermark", Legal: "at least 0, below 1", Modelled: true},
			at: func(a *args) any { return &a.Watermark }, since: 24, below: 1},
		{Flag: Flag{Name: "stream_interval", Legal: "at least 1", Modelled: true},
			at: func(a *args) any { return &a.StreamInterval }, low: 1},
		{Flag: Flag{Name: "enforce_eager", Legal: "true, false", Modelled: true},
			at: func(a *args) any { return &a.EnforceEager }},
		{Flag: Flag{Name: "tensor_parallel_size", Legal: "at least 1", Modelled: true},
			at: func(a *args) any { return &a.TensorParallelSize }, low: 1},
	}
}

// cacheDTypes are the values of kv_cache_dtype that a release knows; the backend may refuse some of them.
func cacheDTypes(minor int) []string {
	ds := []string{"auto", "float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc", "fp8_ds_mla"}
	for _, added := range []struct {
		since  int
		dtypes []string
	}{
		{20, []string{"turboquant_k8v4", "turboquant_4bit_nc", "turboquant_k3v4_nc", "turboquant_3bit_nc",
			"int8_per_token_head", "fp8_per_token_head", "nvfp4"}},
		{26, []string{"int4_per_token_head"}},
		{29, []string{"nvfp4_4over6"}},
		{32, []string{"nvfp4_ds_mla", "ultraquant_4bit"}},
		{33, []string{"octave_k3v4", "octave_k3v3", "octave_k3v3_compact"}},
	} {
		if minor >= added.since {
			ds = append(ds, added.dtypes...)
		}
	}
	return ds
}

// blockUnit is the number that a block size must be a multiple of: the FLASH_ATTN and TRITON_ATTN backends' 16 on a
// GPU; on the CPU 1 at first, 16 from (at the latest) 0.26 and 32 from 0.29.
func blockUnit(minor int, dev Device) int {
	switch {
	case !dev.CPU || minor > 20 && minor < 29:
		return 16
	case minor <= 20:
		return 1
	}
	return 32
}

func multiples(unit int) string {
	if unit == 1 {
		return "at least 1"
	}
	return fmt.Sprintf("multiples of %d", unit)
}

// canonical is vLLM's name with underscores and without leading dashes.
func canonical(flag string) string {
	return strings.ReplaceAll(strings.TrimLeft(flag, "-"), "-", "_")
}

// format writes a value as a command line has it, "" where it is not set.
func format(at any) string {
	switch p := at.(type) {
	case *int:
		if *p != 0 {
			return strconv.Itoa(*p)
		}
	case *float64:
		if *p != 0 {
			return strconv.FormatFloat(*p, 'g', -1, 64)
		}
	case **bool:
		if *p != nil {
			return strconv.FormatBool(**p)
		}
	case *string:
		return *p
	}
	return ""
}

// Get gives the value of a flag as a command line has it, "" where it is not set or not a flag of EngineArgs.
func Get(args harness.EngineArgs, flag string) string {
	for _, f := range fields() {
		if f.Name == canonical(flag) {
			return format(f.at(&args))
		}
	}
	return ""
}

// Set gives a flag a value as a command line has it: 8k is 8000 and 8K is 8192 where vLLM reads it so, booleans are
// true or false. The error names the flag, the value and what is legal.
func Set(args *harness.EngineArgs, flag, value string) error {
	var names []string
	for _, f := range fields() {
		if f.Name == canonical(flag) {
			if err := f.set(args, strings.TrimSpace(value)); err != nil {
				return fmt.Errorf("%s is %q: %w", f.Name, value, err)
			}
			return nil
		}
		names = append(names, f.Name)
	}
	return fmt.Errorf("unknown flag %q: kvtune sets %s", flag, strings.Join(names, ", "))
}

func (f field) set(args *harness.EngineArgs, value string) error {
	switch p := f.at(args).(type) {
	case *int:
		n, err := parseInt(value, f.readable)
		if err != nil {
			return err
		}
		if n < int(f.low) {
			return fmt.Errorf("it must be at least %g", f.low)
		}
		*p = n
	case *float64:
		x, err := strconv.ParseFloat(value, 64)
		if err != nil || !(x >= f.low && x <= 1e12) || f.positive && x == 0 || f.high > 0 && x > f.high ||
			f.below > 0 && x >= f.below {
			return fmt.Errorf("expected a number, %s", f.Legal)
		}
		*p = x
	case **bool:
		b, err := strconv.ParseBool(strings.ToLower(value))
		if err != nil {
			return errors.New("expected true or false")
		}
		*p = &b
	case *string:
		if value == "" || f.values != nil && !slices.Contains(f.values, value) {
			return fmt.Errorf("expected one of %s", f.Legal)
		}
		*p = value
	}
	return nil
}

// clear makes a flag "not set".
func (f field) clear(args *harness.EngineArgs) {
	reflect.ValueOf(f.at(args)).Elem().SetZero()
}

// parseInt reads an integer as vllm/utils/argparse_utils.py human_readable_int does: small letters are decimal and take
// fractions, capitals are binary.
func parseInt(s string, readable bool) (int, error) {
	const limit = 1 << 40 // above any token count; keeps products within an int
	var x float64
	n, err := strconv.Atoi(s)
	x = float64(n)
	if err != nil && readable && len(s) > 1 {
		const decimal, binary = "kmgt", "KMGT"
		number, suffix := s[:len(s)-1], s[len(s)-1:]
		if i := strings.Index(decimal, suffix); i >= 0 {
			if x, err = strconv.ParseFloat(number, 64); err == nil {
				x *= [...]float64{1e3, 1e6, 1e9, 1e12}[i]
			}
		} else if i := strings.Index(binary, suffix); i >= 0 {
			if n, err = strconv.Atoi(number); err == nil {
				x = float64(n) * float64(int64(1)<<(10*(i+1)))
			}
		}
	}
	if err != nil {
		if readable {
			return 0, errors.New("expected an integer, or one like 8k (8000) or 8K (8192)")
		}
		return 0, errors.New("expected an integer")
	}
	if !(x > -limit && x < limit) {
		return 0, errors.New("expected a number below 2^40")
	}
	return int(x), nil
}
