package workflow

import (
	"context"
	"errors"

	"kvtune/harness"
	"kvtune/harness/profile"
	"kvtune/harness/workload"
)

// Profile starts a server for a configuration, measures it and stops the server.
func (s *Setup) Profile(ctx context.Context, cfg harness.Config) (*profile.Output, error) {
	ep, err := s.Source.Start(ctx, cfg.EngineArgs)
	if err != nil {
		return nil, err
	}
	out, err := s.Measure(ctx, ep, cfg)
	return out, errors.Join(err, ep.Close())
}

// ProfileWithProbes is Profile with the probes of a cost model first, on the same server. The last output is the
// configuration's; there is only the probes' when these were cut short.
func (s *Setup) ProfileWithProbes(ctx context.Context, cfg harness.Config, quick bool) ([]*profile.Output, error) {
	ep, err := s.Source.Start(ctx, cfg.EngineArgs)
	if err != nil {
		return nil, err
	}
	outs, err := s.measureBoth(ctx, ep, cfg, quick)
	return outs, errors.Join(err, ep.Close())
}

func (s *Setup) measureBoth(ctx context.Context, ep *Endpoint, cfg harness.Config, quick bool) ([]*profile.Output, error) {
	s.stage("probing what a step costs")
	probes, err := s.MeasureProbes(ctx, ep, cfg.Seed, quick)
	if err != nil {
		return nil, err
	}
	outs := []*profile.Output{probes}
	if probes.Result.Partial {
		return outs, nil
	}
	s.stage("%s: profiling", cfg.Name)
	run, err := s.Measure(ctx, ep, cfg)
	if err != nil {
		return nil, err
	}
	return append(outs, run), nil
}

// Measure measures a configuration on an endpoint.
func (s *Setup) Measure(ctx context.Context, ep *Endpoint, cfg harness.Config) (*profile.Output, error) {
	w, err := profile.Workload(cfg, ep.Info())
	if err != nil {
		return nil, err
	}
	return s.measure(ctx, ep, cfg, w)
}

func (s *Setup) measure(ctx context.Context, ep *Endpoint, cfg harness.Config, w *workload.Workload) (*profile.Output, error) {
	return profile.Run(ctx, profile.Options{
		Server: ep.Server, Config: cfg, Workload: w, Name: cfg.Name, Folder: s.Folder, Vocab: s.Vocab, Notes: ep.Notes,
		KVBytesPerToken: s.Model.KVBytesPerToken(ep.Info().CacheDType, max(1, ep.Info().Args.TensorParallelSize)), Command: s.Command, Tool: s.Tool, OnProgress: s.OnProgress,
	})
}

// MeasureProbes runs the probes of a cost model on an endpoint; see [profile.Probes].
func (s *Setup) MeasureProbes(ctx context.Context, ep *Endpoint, seed uint64, quick bool) (*profile.Output, error) {
	return s.measure(ctx, ep, harness.Config{Name: probesName}, profile.Probes(ep.Info(), seed, quick))
}
