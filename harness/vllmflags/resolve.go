package vllmflags

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"kvtune/harness"
)

const gib = 1 << 30

// Defaults are the settings of `vllm serve MODEL` without a flag. MaxModelLen and NumGPUBlocksOverride stay open: they
// are the model's and the memory's.
func Defaults(version string, dev Device) harness.EngineArgs {
	minor, _ := Release(version)
	on, off := true, false
	a := harness.EngineArgs{
		BlockSize:            16,
		EnableChunkedPrefill: &on,
		EnablePrefixCaching:  &on,
		SchedulingPolicy:     "fcfs",
		GPUMemoryUtilization: 0.92,
		KVCacheDType:         "auto",
		AsyncScheduling:      &on,
		StreamInterval:       1,
		EnforceEager:         &off,
		TensorParallelSize:   1,
	}
	if minor < 20 {
		a.GPUMemoryUtilization = 0.9
	}
	if dev.CPU { // the platform's preferred block; asynchronous scheduling is forced off
		a.BlockSize, a.AsyncScheduling = 128, &off
	}
	a.MaxNumBatchedTokens, a.MaxNumSeqs = batchDefaults(minor, dev, 1)
	return a
}

// batchDefaults are max_num_batched_tokens and max_num_seqs before clamping; ranks is tensor x pipeline parallel.
//
// Source: vllm/engine/arg_utils.py get_batch_defaults.
func batchDefaults(minor int, dev Device, ranks int) (tokens, seqs int) {
	name := strings.ToLower(dev.Name)
	gb10 := strings.Contains(name, "gb10") && !strings.Contains(name, "gb100") // unified memory, a small GPU
	switch {
	case dev.CPU:
		return 2048 * ranks, 128 * ranks
	case gb10 && minor >= 33:
	case dev.Memory >= 160*gib && minor >= 28:
		return 16384, 1024
	case dev.Memory >= 70*gib && !strings.Contains(name, "a100"):
		return 8192, 1024
	}
	return 2048, 256
}

// Resolve fills what is not set with vLLM's defaults and vLLM's own clamping of them: without chunked prefill the
// token budget is at least max_model_len; it is at most max_num_seqs x max_model_len; the number of sequences is at
// most the budget. max_num_batched_tokens and max_num_seqs are always set. What is set stays as it is, so that
// settings which vLLM accepts come out as it would run them; see [Legalize] for the others. Without MaxModelLen its
// rules are left out.
//
// Source: vllm/engine/arg_utils.py _set_default_max_num_seqs_and_batched_tokens_args. One difference: where only
// max_num_seqs is set and is above the default budget, vLLM refuses to start, and here the budget follows it.
func Resolve(args harness.EngineArgs, version string, dev Device) harness.EngineArgs {
	tokensOpen, seqsOpen := args.MaxNumBatchedTokens == 0, args.MaxNumSeqs == 0
	if tokensOpen {
		args.MaxNumBatchedTokens = max(defaultBudget(args, version, dev), args.MaxNumSeqs)
	}
	defaults := Defaults(version, dev)
	if seqsOpen {
		minor, _ := Release(version)
		_, seqs := batchDefaults(minor, dev, max(1, args.TensorParallelSize))
		defaults.MaxNumSeqs = min(seqs, args.MaxNumBatchedTokens)
	}
	for _, f := range fields() {
		if format(f.at(&args)) == "" {
			f.copy(&args, &defaults)
		}
	}
	return args
}

// defaultBudget is vLLM's default of max_num_batched_tokens beside the other settings.
func defaultBudget(args harness.EngineArgs, version string, dev Device) int {
	minor, _ := Release(version)
	tokens, seqs := batchDefaults(minor, dev, max(1, args.TensorParallelSize))
	if args.MaxNumSeqs > 0 {
		seqs = args.MaxNumSeqs
	}
	n := args.MaxModelLen
	if n == 0 {
		return tokens
	}
	if args.EnableChunkedPrefill != nil && !*args.EnableChunkedPrefill {
		tokens = max(tokens, n)
	}
	return min(tokens, seqs*n)
}

// copy sets the field in dst to what it is in src.
func (f field) copy(dst, src *harness.EngineArgs) {
	switch p := f.at(dst).(type) {
	case *int:
		*p = *f.at(src).(*int)
	case *float64:
		*p = *f.at(src).(*float64)
	case *string:
		*p = *f.at(src).(*string)
	case **bool:
		*p = *f.at(src).(**bool)
	}
}

// Replacement is a value that the server would refuse or ignore, and what stands in its place.
type Replacement struct {
	Flag string
	// Asked is "" where the flag was not set, Used is "" where it is left out.
	Asked, Used string
	Why         string
}

// String says it in a sentence: "block_size 8 replaced by 16: vLLM's GPU attention backends take multiples of 16".
func (r Replacement) String() string {
	switch {
	case r.Used == "":
		return fmt.Sprintf("%s %s left out: %s", r.Flag, r.Asked, r.Why)
	case r.Asked == "":
		return fmt.Sprintf("%s set to %s: %s", r.Flag, r.Used, r.Why)
	}
	return fmt.Sprintf("%s %s replaced by %s: %s", r.Flag, r.Asked, r.Used, r.Why)
}

// Legalize replaces values that this release refuses on this device by the nearest that it accepts, and lists what it
// replaced, in the order of the flags. What is not set stays so, unless a value that is set needs it. Rules that
// involve max_model_len hold only where that is set. The error is about a value with no legal neighbour: a negative
// number, an unknown policy or KV data type.
func Legalize(args harness.EngineArgs, version string, dev Device) (harness.EngineArgs, []Replacement, error) {
	minor, _ := Release(version)
	var reps []Replacement
	change := func(flag, used, why string, set func()) {
		reps = append(reps, Replacement{Flag: flag, Asked: Get(args, flag), Used: used, Why: why})
		set()
	}
	if err := check(args, minor); err != nil {
		return args, nil, err
	}

	if unit := blockUnit(minor, dev); args.BlockSize%unit != 0 {
		n := max(unit, (args.BlockSize+unit/2)/unit*unit)
		where := "the GPU attention backends (FLASH_ATTN, TRITON_ATTN) take"
		if dev.CPU {
			where = fmt.Sprintf("the CPU backend of vLLM 0.%d takes", minor)
		}
		change("block_size", strconv.Itoa(n), fmt.Sprintf("%s multiples of %d", where, unit), func() { args.BlockSize = n })
	}
	if args.SwapSpace > 0 {
		const why = "no vLLM from 0.18 on has swap_space"
		drop := func() { args.SwapSpace = 0 }
		switch {
		case dev.CPU:
			change("swap_space", "", why+", and KV offloading needs a GPU", drop)
		case args.KVOffloadingSize > 0:
			change("swap_space", "", why+"; kv_offloading_size is set and stands", drop)
		default:
			size := args.SwapSpace
			change("swap_space", "kv_offloading_size="+format(&size), why+"; KV offloading of the same size in GiB "+
				"is emitted but not modelled", func() { args.SwapSpace, args.KVOffloadingSize = 0, size })
		}
	}
	if dev.CPU && args.KVOffloadingSize > 0 {
		change("kv_offloading_size", "", "KV offloading needs a GPU", func() { args.KVOffloadingSize = 0 })
	}
	if n := args.MaxModelLen; n > 0 && args.LongPrefillTokenThreshold > n {
		change("long_prefill_token_threshold", strconv.Itoa(n), fmt.Sprintf("it must not be above max_model_len %d", n),
			func() { args.LongPrefillTokenThreshold = n })
	}
	if dev.CPU && args.AsyncScheduling != nil && *args.AsyncScheduling {
		off := false
		change("async_scheduling", "false", "the CPU platform forces it off", func() { args.AsyncScheduling = &off })
	}
	for _, f := range fields() {
		if minor < f.since && Get(args, f.Name) != "" {
			change(f.Name, "", fmt.Sprintf("vLLM 0.%d has no such flag (0.%d and later have)", minor, f.since),
				func() { f.clear(&args) })
		}
	}
	return legalizeBatch(args, reps, version, dev)
}

// legalizeBatch applies the rules between max_num_batched_tokens, max_num_seqs, chunked prefill and max_model_len.
func legalizeBatch(args harness.EngineArgs, reps []Replacement, version string, dev Device) (harness.EngineArgs,
	[]Replacement, error) {
	if args.EnableChunkedPrefill != nil && !*args.EnableChunkedPrefill && args.MaxNumBatchedTokens > 0 &&
		args.MaxNumBatchedTokens < args.MaxModelLen {
		reps = append(reps, Replacement{"max_num_batched_tokens", strconv.Itoa(args.MaxNumBatchedTokens),
			strconv.Itoa(args.MaxModelLen), "without chunked prefill a step must hold a prompt of max_model_len"})
		args.MaxNumBatchedTokens = args.MaxModelLen
	}
	switch tokens, seqs := args.MaxNumBatchedTokens, args.MaxNumSeqs; {
	case tokens > 0 && seqs > tokens:
		reps = append(reps, Replacement{"max_num_seqs", strconv.Itoa(seqs), strconv.Itoa(tokens),
			fmt.Sprintf("it must not be above max_num_batched_tokens %d", tokens)})
		args.MaxNumSeqs = tokens
	case tokens == 0 && seqs > 0:
		if n := defaultBudget(args, version, dev); seqs > n {
			reps = append(reps, Replacement{"max_num_batched_tokens", "", strconv.Itoa(seqs),
				fmt.Sprintf("vLLM's default %d is below max_num_seqs %d and would be refused", n, seqs)})
			args.MaxNumBatchedTokens = seqs
		}
	}
	if n := Resolve(args, version, dev).MaxNumSeqs; args.MaxNumActiveSeqs > n {
		reps = append(reps, Replacement{"max_num_active_seqs", strconv.Itoa(args.MaxNumActiveSeqs), strconv.Itoa(n),
			fmt.Sprintf("it must not be above max_num_seqs %d", n)})
		args.MaxNumActiveSeqs = n
	}
	return args, reps, nil
}

// check refuses what has no legal neighbour.
func check(args harness.EngineArgs, minor int) error {
	for _, f := range fields() {
		value := format(f.at(&args))
		if value == "" {
			continue
		}
		if err := f.set(&args, value); err != nil {
			return fmt.Errorf("%s is %s: %w", f.Name, value, err)
		}
	}
	if d := args.KVCacheDType; d != "" && !slices.Contains(cacheDTypes(minor), d) {
		return fmt.Errorf("kv_cache_dtype is %q: vLLM 0.%d knows %s", d, minor, strings.Join(cacheDTypes(minor), ", "))
	}
	return nil
}

// Differing keeps the settings that differ from base, as far as that version knows them: what a command line must say.
func Differing(args, base harness.EngineArgs, version string, dev Device) harness.EngineArgs {
	var out harness.EngineArgs
	for _, f := range Known(version, dev) {
		if v := Get(args, f.Name); v != "" && v != Get(base, f.Name) {
			// The value comes from settings that were legal, so it can be set.
			_ = Set(&out, f.Name, v)
		}
	}
	return out
}

// Argv is the argument vector, after `vllm serve MODEL`, that sets what args set: legal values only ([Legalize]), in
// a fixed order, --max-num-batched-tokens and --max-num-seqs always together, because a default that does not fit the
// other value stops vLLM. [ParseServeCommand] reads it back.
func Argv(args harness.EngineArgs, version string, dev Device) ([]string, []Replacement, error) {
	args, reps, err := Legalize(args, version, dev)
	if err != nil {
		return nil, nil, err
	}
	if args.MaxNumBatchedTokens > 0 || args.MaxNumSeqs > 0 {
		full := Resolve(args, version, dev)
		args.MaxNumBatchedTokens, args.MaxNumSeqs = full.MaxNumBatchedTokens, full.MaxNumSeqs
	}
	var argv []string
	for _, f := range fields() {
		value := format(f.at(&args))
		name := strings.ReplaceAll(f.Name, "_", "-")
		switch at := f.at(&args).(type) {
		case **bool:
			if *at != nil && **at {
				argv = append(argv, "--"+name)
			} else if *at != nil {
				argv = append(argv, "--no-"+name)
			}
		default:
			if value != "" {
				argv = append(argv, "--"+name, value)
			}
		}
	}
	return argv, reps, nil
}
