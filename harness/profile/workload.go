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
	b, err := builderOf(cfg, info)
	if err != nil {
		return nil, err
	}
	w, err := b.build()
	if err != nil {
		return nil, err
	}
	if err := adaptersServed(w, info); err != nil {
		return nil, err
	}
	differ := slices.ContainsFunc(w.Requests, func(r workload.Request) bool {
		return r.Phase == workload.Measured && r.Priority != 0
	})
	if note := priorities(differ, info); note != "" {
		w.Notes = append(w.Notes, note)
	}
	return w, nil
}

// Stream is Workload for an open loop of at least so many requests; nil for any other workload. Nothing is held against
// the adapters that a server has. notes are those that do not depend on the requests.
func Stream(cfg harness.Config, info harness.ServerInfo, least int) (s *workload.Stream, notes []string, err error) {
	if cfg.NumRequests > 0 && cfg.NumRequests < least {
		return nil, nil, nil
	}
	b, err := builderOf(cfg, info)
	if err != nil {
		return nil, nil, err
	}
	if cfg.Trace != "" {
		s, err = b.streamTrace()
	} else {
		s, err = b.spec.Stream()
	}
	if err != nil || s == nil || s.Expected < least {
		return nil, nil, err
	}
	s.Classify(b.classes, cfg.Seed)
	if note := priorities(s.Priorities, info); note != "" {
		b.notes = append(b.notes, note)
	}
	return s, b.notes, nil
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
			return &harness.FieldError{Field: "lora", Value: name,
				Allowed: fmt.Sprintf("an adapter that the server serves (%s); "+
					"vLLM serves those of --enable-lora --lora-modules NAME=PATH", serves)}
		}
	}
	return nil
}

// priorities says what becomes of a workload's priorities, where they differ from 0. A vLLM that schedules fcfs answers
// a request with a priority as any other (0.32.0, seen; vllm/v1/core/sched/scheduler.py does not look at it), so that
// nothing in its answers tells.
func priorities(differ bool, info harness.ServerInfo) string {
	switch policy := info.Args.SchedulingPolicy; {
	case !differ || policy == "priority":
		return ""
	case policy == "":
		return "the server does not state its scheduling_policy: under fcfs, vLLM's default, it ignores the requests' " +
			"priorities and says nothing (--scheduling-policy priority beside --endpoint states that it has it)"
	default:
		return fmt.Sprintf("the requests' priorities have no effect: the server's scheduling_policy is %s (priority "+
			"obeys them)", policy)
	}
}

// builder is a configuration held against a server.
type builder struct {
	cfg     harness.Config
	classes []workload.Class
	spec    workload.Spec // without a trace
	limit   int           // of the context
	notes   []string      // of what was changed
}

func builderOf(cfg harness.Config, info harness.ServerInfo) (*builder, error) {
	b := &builder{limit: info.MaxModelLen}
	if cfg.MaxModelLen > 0 && (b.limit == 0 || cfg.MaxModelLen < b.limit) {
		b.limit = cfg.MaxModelLen
	}
	if wish := cfg.BlockSize; info.BlockSize > 0 {
		if cfg.BlockSize = info.BlockSize; cfg.M > 0 && wish > 0 && wish != info.BlockSize && cfg.Trace == "" {
			b.notes = append(b.notes, fmt.Sprintf("M counts blocks of %d tokens, the server's block_size, not of %d as "+
				"asked for", info.BlockSize, wish))
		}
	}
	b.cfg = cfg
	var err error
	if b.classes, err = workload.ParseClasses(cfg.Classes); err != nil || cfg.Trace != "" {
		return b, err
	}
	if b.spec, err = cfg.Spec(); err != nil {
		return nil, err
	}
	if cfg.MaxModelLen == 0 && b.limit > 0 {
		var scaled []string
		b.spec, scaled = b.spec.Fit(b.limit)
		b.notes = append(b.notes, scaled...)
	}
	b.spec.MaxModelLen = b.limit
	return b, nil
}

func (b *builder) build() (w *workload.Workload, err error) {
	if b.cfg.Trace != "" {
		w, err = b.readTrace()
	} else {
		w, err = b.spec.Build()
	}
	if err != nil {
		return nil, err
	}
	w.Notes = slices.Concat(b.notes, w.Notes)
	w.Classify(b.classes, b.cfg.Seed)
	return w, nil
}

func (b *builder) traceOptions() (opt workload.TraceOptions, err error) {
	cfg := &b.cfg
	opt = workload.TraceOptions{
		MaxModelLen: b.limit, NumRequests: cfg.NumRequests, Concurrency: cfg.Concurrency, Clients: cfg.Clients,
		BlockSize: cfg.BlockSize, Seed: cfg.Seed, Speed: cfg.Speed,
	}
	if cfg.Rate != "" {
		opt.Rate, err = cfg.RequestRate()
	}
	return opt, err
}

func (b *builder) duration() time.Duration {
	return time.Duration(b.cfg.Duration * float64(time.Second))
}

// readTrace reads a trace; one that is a file of an archive is checked against the sum that its manifest has.
func (b *builder) readTrace() (w *workload.Workload, err error) {
	opt, err := b.traceOptions()
	if err != nil {
		return nil, err
	}
	err = b.openTrace(func(r io.Reader) (err error) {
		w, err = workload.ReadTrace(b.cfg.Trace, r, opt)
		return err
	})
	if err != nil {
		return nil, err
	}
	w.Duration = b.duration()
	return w, nil
}

func (b *builder) streamTrace() (*workload.Stream, error) {
	opt, err := b.traceOptions()
	if err != nil {
		return nil, err
	}
	return workload.StreamTrace(b.cfg.Trace, b.openTrace, opt, b.duration())
}

// openTrace gives the trace to read, and notes that the file has lost its end.
func (b *builder) openTrace(read func(io.Reader) error) error {
	partial, err := archive.ReadWith(b.cfg.Trace, read)
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		err = fmt.Errorf("trace: %w", err)
	}
	note := fmt.Sprintf("%s has lost its end: what is left of it is replayed", b.cfg.Trace)
	if partial && !slices.Contains(b.notes, note) {
		b.notes = append(b.notes, note)
	}
	return err
}
