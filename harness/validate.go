package harness

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strings"
	"time"

	"kvtune/harness/workload"
)

// FieldError says that a field's value is not allowed. Every refusal of a bad configuration is one, so that a command
// can tell wrong usage from failure and name the flag.
type FieldError = workload.FieldError

// Upper bounds that no real system comes near: they catch a slipped digit and keep products within an int.
const (
	maxTokens   = 1 << 30
	maxRequests = 1 << 24
	maxThink    = 1e6
)

// nameForm is what a name may be: it becomes part of file names.
var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// Validate reports the fields that are out of range, as [*FieldError] joined with [errors.Join]; nil when all is well.
// Whether the requests fit the model's context is decided where they are built, because the context may be the
// server's. A value that only some vLLM version refuses passes here.
func (c Config) Validate() error {
	v := checks{}
	if c.Name != "" && (!nameForm.MatchString(c.Name) || len(c.Name) > 128) {
		v.refuse("name", c.Name, "letters, digits, '.', '_' and '-', beginning with a letter or digit, up to 128")
	}
	if c.Rate != "" && c.Concurrency > 0 {
		v.refuse("concurrency", c.Concurrency,
			fmt.Sprintf("0 (unset) beside rate %s: an open loop or a closed one, not both", c.Rate))
	}
	if c.Users > 0 && (c.Rate != "" || c.Concurrency > 0) {
		v.refuse("users", c.Users, "0 (unset) beside rate or concurrency: users are a load of their own")
	}
	if _, err := workload.ParseClasses(c.Classes); err != nil {
		v = append(v, err)
	}
	v.number("think_time_s", c.ThinkTime, 0, maxThink, fmt.Sprintf("from 0 to %g seconds", maxThink))
	if c.Trace != "" { // says itself what is sent
		if c.Users > 0 {
			v.refuse("users", c.Users, "0 (unset) with a trace, which has its own conversations")
		}
		v.whole("num_requests", c.NumRequests, 0, maxRequests)
		v.whole("concurrency", c.Concurrency, 0, maxRequests)
		v.whole("clients", c.Clients, 0, max(c.Concurrency, 1))
		v.number("duration_s", c.Duration, 0, maxThink, fmt.Sprintf("from 0 to %g seconds", maxThink))
		v.number("speed", c.Speed, 0, maxThink, fmt.Sprintf("above 0, up to %g", maxThink))
		if c.Speed > 0 && c.Rate != "" {
			v.refuse("speed", c.Speed, "0 (unset) beside rate: both stretch the trace's times")
		}
		if _, err := c.RequestRate(); err != nil {
			v = append(v, err)
		}
	} else {
		if c.Speed != 0 {
			v.refuse("speed", c.Speed, "0 (unset) without a trace, whose times it divides")
		}
		if c.Turns > 0 && c.Users == 0 {
			v.refuse("turns", c.Turns, "0 (unset) without users, who take the turns")
		}
		spec := c.spec()
		if spec.BlockSize == 0 {
			spec.BlockSize = 1 // the server's, which is not known yet
		}
		spec.ThinkTime = 0 // judged above, in seconds
		if err := spec.Validate(); err != nil {
			v = append(v, err)
		}
	}
	v = append(v, c.EngineArgs.checks()...)
	return errors.Join(v...)
}

// Spec is the workload that the configuration describes, once BlockSize is known (M blocks need one) and the
// configuration is valid. It is not for a trace: [workload.ReadTrace] reads that.
func (c Config) Spec() (workload.Spec, error) {
	if err := c.Validate(); err != nil {
		return workload.Spec{}, err
	}
	return c.spec(), nil
}

func (c Config) spec() workload.Spec {
	return workload.Spec{
		C: c.C, M: c.M, B: c.B, BlockSize: c.BlockSize, Type: string(c.ProfilingType), Prefix: c.Prefix,
		OutputLen: c.OutputLen,
		NumWarmup: c.NumWarmup, NumMeasurements: c.NumMeasurements, Rate: c.Rate, Burstiness: c.Burstiness,
		Concurrency: c.Concurrency, Clients: c.Clients, Users: c.Users, Turns: c.Turns,
		ThinkTime: time.Duration(c.ThinkTime * float64(time.Second)), NumRequests: c.NumRequests,
		Duration:    time.Duration(c.Duration * float64(time.Second)),
		MaxModelLen: c.MaxModelLen, Seed: c.Seed,
	}
}

// RequestRate is the mean rate in requests/s to which a trace is rescaled, 0 where none is asked for. A rate that rises
// or falls over the run, or has even gaps, is refused: a trace has its own arrivals.
func (c Config) RequestRate() (float64, error) {
	if c.Rate == "" {
		return 0, nil
	}
	r, err := workload.ParseRate(c.Rate)
	if err != nil {
		return 0, err
	}
	if r.Even || r.From != r.To {
		return 0, &FieldError{Field: "rate", Value: c.Rate,
			Allowed: "one number of requests/s with a trace, whose arrivals are kept"}
	}
	return r.Mean(), nil
}

// Validate reports every setting that is out of range, as [Config.Validate] does. A zero setting is "not set".
func (a EngineArgs) Validate() error { return errors.Join(a.checks()...) }

func (a EngineArgs) checks() checks {
	v := checks{}
	v.whole("max_num_batched_tokens", a.MaxNumBatchedTokens, 0, maxTokens)
	v.whole("max_num_seqs", a.MaxNumSeqs, 0, maxRequests)
	v.whole("block_size", a.BlockSize, 0, 1<<16)
	v.whole("max_model_len", a.MaxModelLen, 0, maxTokens)
	v.whole("num_gpu_blocks_override", a.NumGPUBlocksOverride, 0, maxTokens)
	v.whole("long_prefill_token_threshold", a.LongPrefillTokenThreshold, 0, maxTokens)
	v.whole("max_num_scheduled_tokens", a.MaxNumScheduledTokens, 0, maxTokens)
	v.whole("max_num_active_seqs", a.MaxNumActiveSeqs, 0, maxRequests)
	v.whole("max_num_queued_reqs", a.MaxNumQueuedReqs, 0, maxRequests)
	v.whole("max_num_queued_tokens", a.MaxNumQueuedTokens, 0, maxTokens)
	v.whole("stream_interval", a.StreamInterval, 0, maxTokens)
	v.whole("tensor_parallel_size", a.TensorParallelSize, 0, 1<<10)
	v.number("gpu_memory_utilization", a.GPUMemoryUtilization, 0, 1, "above 0, up to 1")
	v.number("swap_space", a.SwapSpace, 0, 1<<20, "from 0 to 1048576 GiB")
	v.number("kv_offloading_size", a.KVOffloadingSize, 0, 1<<20, "from 0 to 1048576 GiB")
	v.number("watermark", a.Watermark, 0, math.Nextafter(1, 0), "from 0 to below 1")
	if a.SchedulingPolicy != "" {
		v.oneOf("scheduling_policy", a.SchedulingPolicy, "fcfs", "priority")
	}
	// vLLM refuses both at start (vLLM 0.18 to 0.33, vllm/config/scheduler.py).
	if a.MaxNumBatchedTokens > 0 && a.MaxNumSeqs > a.MaxNumBatchedTokens {
		v.refuse("max_num_batched_tokens", a.MaxNumBatchedTokens, fmt.Sprintf("at least max_num_seqs, %d", a.MaxNumSeqs))
	}
	if chunked := a.EnableChunkedPrefill; chunked != nil && !*chunked && a.MaxNumBatchedTokens > 0 &&
		a.MaxNumBatchedTokens < a.MaxModelLen {
		v.refuse("max_num_batched_tokens", a.MaxNumBatchedTokens,
			fmt.Sprintf("at least max_model_len, %d, without chunked prefill: a prompt must fit one step", a.MaxModelLen))
	}
	return v
}

// checks collects refusals.
type checks []error

func (v *checks) refuse(field string, value any, allowed string) {
	*v = append(*v, &FieldError{Field: field, Value: value, Allowed: allowed})
}

func (v *checks) whole(field string, value, from, to int) {
	if value < from || value > to {
		v.refuse(field, value, fmt.Sprintf("from %d to %d", from, to))
	}
}

func (v *checks) number(field string, value, from, to float64, allowed string) {
	if !(value >= from && value <= to) { // NaN is refused too
		v.refuse(field, value, allowed)
	}
}

func (v *checks) oneOf(field, value string, allowed ...string) {
	for _, a := range allowed {
		if value == a {
			return
		}
	}
	v.refuse(field, value, strings.Join(allowed, ", "))
}
