package profile

import (
	"fmt"
	"os"
	"time"

	"kvtune/harness"
	"kvtune/harness/workload"
)

// Workload makes what a configuration describes, for a server. The block size is the server's; where the configuration
// wishes for another one and has M blocks, the Notes say so. A workload that does not fit the server's context is
// scaled down, M first and then C, and says so in its Notes - unless the configuration sets max_model_len itself: then
// it is a [*harness.FieldError].
func Workload(cfg harness.Config, info harness.ServerInfo) (*workload.Workload, error) {
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

func readTrace(cfg harness.Config, limit int) (*workload.Workload, error) {
	f, err := os.Open(cfg.Trace)
	if err != nil {
		return nil, fmt.Errorf("trace: %w", err)
	}
	defer f.Close()
	opt := workload.TraceOptions{
		MaxModelLen: limit, NumRequests: cfg.NumRequests, Concurrency: cfg.Concurrency, Clients: cfg.Clients,
		BlockSize: cfg.BlockSize, Seed: cfg.Seed, Speed: cfg.Speed,
	}
	if cfg.Rate != "" {
		if opt.Rate, err = cfg.RequestRate(); err != nil {
			return nil, err
		}
	}
	w, err := workload.ReadTrace(cfg.Trace, f, opt)
	if err == nil {
		w.Duration = time.Duration(cfg.Duration * float64(time.Second))
	}
	return w, err
}
