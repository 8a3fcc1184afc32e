package workflow

import (
	"context"
	"errors"
	"fmt"
	"time"

	"kvtune/harness"
	"kvtune/harness/profile"
	"kvtune/harness/vllm"
	"kvtune/harness/workload"
)

// Profile starts a server for a configuration, measures it and stops the server.
func (s *Setup) Profile(ctx context.Context, cfg harness.Config) (*profile.Output, error) {
	ep, err := s.Source.Start(ctx, cfg.EngineArgs)
	if err != nil {
		return nil, err
	}
	s.stage("%s: profiling", cfg.Name)
	out, err := s.Measure(ctx, ep, cfg)
	return out, errors.Join(err, ep.Close())
}

// ProfileWithProbes is Profile with the probes of a cost model first, on the same server. The last output is the
// configuration's; there are only the probes' when these were cut short. Unless quick is set, the KV cache is filled in
// between, which is an output of its own.
func (s *Setup) ProfileWithProbes(ctx context.Context, cfg harness.Config, quick bool) ([]*profile.Output, error) {
	ep, err := s.Source.Start(ctx, cfg.EngineArgs)
	if err != nil {
		return nil, err
	}
	outs, err := s.measureBoth(ctx, ep, cfg, quick)
	return outs, errors.Join(err, ep.Close())
}

func (s *Setup) measureBoth(ctx context.Context, ep *Endpoint, cfg harness.Config, quick bool) (
	[]*profile.Output, error) {
	s.stage("probing what a step costs")
	if plan, err := s.PlanProbes(ctx, ep.Info(), cfg, quick); err == nil {
		requests, expected := ProbesTotal(plan)
		s.stage("%d probes, %d requests, about %v", len(plan), requests, round(expected))
	}
	probes, err := s.MeasureProbes(ctx, ep, cfg, quick)
	if err != nil {
		return nil, err
	}
	outs := []*profile.Output{probes}
	if probes.Result.Partial {
		return outs, nil
	}
	if !quick {
		filled, err := s.MeasureCapacity(ctx, ep, cfg)
		if filled != nil {
			outs = append(outs, filled)
		}
		if err != nil || ctx.Err() != nil {
			return outs, err
		}
	}
	s.stage("%s: profiling", cfg.Name)
	run, err := s.Measure(ctx, ep, cfg)
	if run != nil {
		outs = append(outs, run)
	}
	return outs, err
}

// Measure measures a configuration on an endpoint.
func (s *Setup) Measure(ctx context.Context, ep *Endpoint, cfg harness.Config) (*profile.Output, error) {
	w, err := profile.Workload(cfg, ep.Info())
	if err != nil {
		return nil, err
	}
	if !s.Shard.Whole() {
		if w, err = w.Shard(s.Shard.Index, s.Shard.Count, s.StartAt.IsZero()); err != nil {
			return nil, fmt.Errorf("%s: %w", cfg.Name, err)
		}
	}
	return s.measure(ctx, ep, cfg, w)
}

func (s *Setup) measure(ctx context.Context, ep *Endpoint, cfg harness.Config, w *workload.Workload) (
	*profile.Output, error) {
	info := ep.Info()
	return profile.Run(ctx, profile.Options{
		Server: ep.Server, Config: cfg, Workload: w, Name: cfg.Name, Folder: s.Folder, Client: s.Client, Limits: s.Limits,
		Notes: ep.Notes, KVBytesPerToken: s.Model.KVBytesPerToken(info.CacheDType, max(1, info.Args.TensorParallelSize)),
		Shard: s.Shard, StartAt: s.StartAt,
		Command: s.Command, Tool: s.Tool, Steps: ep.Steps, OnProgress: s.OnProgress,
	})
}

// MeasureProbes runs the probes of a cost model on an endpoint, for a configuration's model and seed; see
// [profile.Probes]. A server that is busy with others is refused with a [*BusyError] unless SharedServer is set.
func (s *Setup) MeasureProbes(ctx context.Context, ep *Endpoint, cfg harness.Config, quick bool) (
	*profile.Output, error) {
	if !s.SharedServer {
		if err := idle(ctx, ep.Server); err != nil {
			return nil, err
		}
	}
	return s.measure(ctx, ep, probesConfig(cfg), profile.Probes(ep.Info(), cfg.Seed, quick))
}

// probesConfig is the configuration under which the probes are kept.
func probesConfig(cfg harness.Config) harness.Config {
	return harness.Config{Name: probesName, Model: cfg.Model, Seed: cfg.Seed}
}

// capacityConfig is the same for the probe that fills the KV cache.
func capacityConfig(cfg harness.Config) harness.Config {
	return harness.Config{Name: capacityName, Model: cfg.Model, Seed: cfg.Seed}
}

// BusyError says that a server has requests that are not ours, beside which no probe tells what a step costs.
type BusyError struct {
	URL      string
	Requests int
}

func (e *BusyError) Error() string {
	return fmt.Sprintf("%s is busy with %d requests of others, and probes need it alone: wait until it is idle, take "+
		"another server, or let the probes share it (--shared-server), whose results then say \"contaminated\"",
		e.URL, e.Requests)
}

// idle looks at a server's requests until it has none, for at most a second: its gauges lag behind what was just
// aborted.
func idle(ctx context.Context, srv *vllm.Server) error {
	for try := 1; ; try++ {
		c, err := srv.Scrape(ctx)
		if err != nil {
			return err
		}
		n := int(c["vllm:num_requests_running"] + c["vllm:num_requests_waiting"])
		if n == 0 {
			return nil
		}
		if try == 5 {
			return &BusyError{URL: srv.URL(), Requests: n}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(250 * time.Millisecond):
		}
	}
}
