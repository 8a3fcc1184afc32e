package profile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/workload"
)

// Workload makes what a configuration describes, for a server. The block size is the server's; where the configuration
// wishes for another one and has M blocks, the Notes say so. A workload that does not fit the server's context is
// scaled down, M first and then C, and says so in its Notes - unless the configuration sets max_model_len itself: then
// it is a [*harness.FieldError], as are LoRA adapters that a server which was asked does not serve. Priorities that the
// server will not, or may not, obey are noted.
func Workload(cfg harness.Config, info harness.ServerInfo) (*workload.Workload, error) {
	w, err := build(cfg, info)
	if err != nil {
		return nil, err
	}
	if err := adaptersServed(w, info); err != nil {
		return nil, err
	}
	if note := priorities(w, info); note != "" {
		w.Notes = append(w.Notes, note)
	}
	return w, nil
}

// adaptersServed refuses adapters that the server does not serve: every request for one would be answered with 404.
func adaptersServed(w *workload.Workload, info harness.ServerInfo) error {
	if info.Model == "" || info.Kind == harness.KindSimulator {
		return nil // nobody was asked
	}
	for i := range w.Requests {
		if name := w.Requests[i].LoRA; name != "" && !slices.Contains(info.Adapters, name) {
			serves := "none"
			if len(info.Adapters) > 0 {
				serves = strings.Join(info.Adapters, ", ")
			}
			return &harness.FieldError{Field: "lora", Value: name, Allowed: fmt.Sprintf("an adapter that the server serves (%s); "+
				"vLLM serves those of --enable-lora --lora-modules NAME=PATH", serves)}
		}
	}
	return nil
}

// priorities says what becomes of a workload's priorities. A vLLM that schedules fcfs answers a request with a priority
// as any other (0.32.0, seen; vllm/v1/core/sched/scheduler.py does not look at it), so that nothing in its answers tells.
func priorities(w *workload.Workload, info harness.ServerInfo) string {
	differ := false
	for i := range w.Requests {
		r := &w.Requests[i]
		differ = differ || r.Phase == workload.Measured && r.Priority != 0
	}
	switch policy := info.Args.SchedulingPolicy; {
	case !differ || policy == "priority":
		return ""
	case policy == "":
		return "the server does not state its scheduling_policy: under fcfs, vLLM's default, it ignores the requests' " +
			"priorities and says nothing (--scheduling-policy priority beside --endpoint states that it has it)"
	default:
		return fmt.Sprintf("the requests' priorities have no effect: the server's scheduling_policy is %s (priority obeys them)",
			policy)
	}
}

// build is Workload before it is held against what the server has.
func build(cfg harness.Config, info harness.ServerInfo) (*workload.Workload, error) {
	limit := info.MaxModelLen
	if cfg.MaxModelLen > 0 && (limit == 0 || cfg.MaxModelLen < limit) {
		limit = cfg.MaxModelLen
	}
	var notes []string
	if wish := cfg.BlockSize; info.BlockSize > 0 {
		if cfg.BlockSize = info.BlockSize; cfg.M > 0 && wish > 0 && wish != info.BlockSize && cfg.Trace == "" {
			notes = append(notes, fmt.Sprintf("M counts blocks of %d tokens, the server's block_size, not of %d as asked for",
				info.BlockSize, wish))
		}
	}
	classes, err := workload.ParseClasses(cfg.Classes)
	if err != nil {
		return nil, err
	}
	if cfg.Trace != "" {
		w, err := readTrace(cfg, limit)
		if err == nil {
			w.Classify(classes, cfg.Seed)
		}
		return w, err
	}
	spec, err := cfg.Spec()
	if err != nil {
		return nil, err
	}
	if cfg.MaxModelLen == 0 && limit > 0 {
		var scaled []string
		spec, scaled = spec.Fit(limit)
		notes = append(notes, scaled...)
	}
	spec.MaxModelLen = limit
	w, err := spec.Build()
	if err != nil {
		return nil, err
	}
	w.Notes = append(notes, w.Notes...)
	w.Classify(classes, cfg.Seed)
	return w, nil
}

// readTrace reads a trace; one that is a file of an archive is checked against the sum that its manifest has.
func readTrace(cfg harness.Config, limit int) (*workload.Workload, error) {
	opt := workload.TraceOptions{
		MaxModelLen: limit, NumRequests: cfg.NumRequests, Concurrency: cfg.Concurrency, Clients: cfg.Clients,
		BlockSize: cfg.BlockSize, Seed: cfg.Seed, Speed: cfg.Speed,
	}
	if cfg.Rate != "" {
		rate, err := cfg.RequestRate()
		if err != nil {
			return nil, err
		}
		opt.Rate = rate
	}
	var w *workload.Workload
	partial, err := archive.ReadWith(cfg.Trace, func(r io.Reader) (err error) {
		w, err = workload.ReadTrace(cfg.Trace, r, opt)
		return err
	})
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		err = fmt.Errorf("trace: %w", err)
	}
	if err != nil {
		return nil, err
	}
	if partial {
		w.Notes = append(w.Notes, fmt.Sprintf("%s has lost its end: what is left of it is replayed", cfg.Trace))
	}
	w.Duration = time.Duration(cfg.Duration * float64(time.Second))
	return w, nil
}
