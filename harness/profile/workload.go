package profile

import (
	"fmt"
	"os"

	"kvtune/harness"
	"kvtune/harness/workload"
)

// Workload makes what a configuration describes, for a server. The block size is the server's. A workload that does not
// fit the server's context is scaled down, M first and then C, and says so in its Notes - unless the configuration sets
// max_model_len itself: then it is an error.
func Workload(cfg harness.Config, info harness.ServerInfo) (*workload.Workload, error) {
	limit := info.MaxModelLen
	if cfg.MaxModelLen > 0 && (limit == 0 || cfg.MaxModelLen < limit) {
		limit = cfg.MaxModelLen
	}
	if info.BlockSize > 0 {
		cfg.BlockSize = info.BlockSize
	}
	if cfg.Trace != "" {
		return readTrace(cfg, limit)
	}
	spec, err := cfg.Spec()
	if err != nil {
		return nil, err
	}
	var notes []string
	if cfg.MaxModelLen == 0 && limit > 0 {
		spec, notes = spec.Fit(limit)
	}
	spec.MaxModelLen = limit
	w, err := spec.Build()
	if err != nil {
		return nil, err
	}
	w.Notes = append(notes, w.Notes...)
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
		BlockSize: cfg.BlockSize, Seed: cfg.Seed,
	}
	if cfg.Rate != "" {
		if opt.Rate, err = cfg.RequestRate(); err != nil {
			return nil, err
		}
	}
	return workload.ReadTrace(cfg.Trace, f, opt)
}
