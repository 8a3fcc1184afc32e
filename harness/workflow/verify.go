package workflow

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"kvtune/harness"
	"kvtune/harness/profile"
	"kvtune/harness/vllmflags"
	"kvtune/planner"
)

// ErrNotRestartable says that a plan cannot be verified on a server that keeps its settings.
var ErrNotRestartable = errors.New("the running server keeps its settings; start one with the planned flags and " +
	"point `kvtune verify --endpoint` at it, or use --launch")

// verifyAll runs the chosen plan (every plan unless Quick) and puts measured beside predicted. Also a plan that changes
// nothing is measured anew: the model has seen the run that it was fitted on.
func (opt *Options) verifyAll(ctx context.Context, out *Outcome) error {
	if out.Chosen < 0 {
		out.NotVerified = "there is no plan to verify"
		return nil
	}
	var fixed []string // what a running server cannot show
	for i := range out.Plans {
		if len(out.Plans[i].Plans) == 0 || (opt.Quick && i != out.Chosen) {
			continue
		}
		plan, name := &out.Plans[i].Plans[0], out.Runs[i].Result.Name
		if !plan.Keep && !opt.Source.Restartable() {
			fixed = append(fixed, name)
			continue
		}
		run, err := opt.verifyOne(ctx, out.Plans[i].Config, plan)
		switch {
		case err != nil && (run != nil || ctx.Err() != nil):
			return fmt.Errorf("%s: verify: %w", name, err)
		case err != nil: // the measurements stand without it
			out.note(name+"_verify", err.Error())
			if i == out.Chosen {
				out.NotVerified = err.Error()
			}
			continue
		}
		verified := reportRun(run)
		basis := BasisOf(run.Result, opt.Model, opt.GPU, out.Cost)
		basis.SLOs = opt.SLOs
		verified.Analysis = basis.Analyze(ctx, &verified)
		out.Runs = append(out.Runs, verified)
		if run.Result.Partial {
			out.note(run.Result.Name, run.Result.Why)
		}
	}
	if len(fixed) > 0 {
		out.NotVerified = strings.Join(fixed, ", ") + ": " + ErrNotRestartable.Error()
	}
	return nil
}

// verifyOne measures a plan, or takes the measurement over from an interrupted workflow.
func (opt *Options) verifyOne(ctx context.Context, cfg harness.Config, plan *planner.Plan) (*profile.Output, error) {
	planned, err := opt.Verification(cfg, plan)
	if err != nil {
		return nil, err
	}
	if run := opt.resumed(planned); run != nil {
		plan.SetMeasured(measured(run)...)
		return run, nil
	}
	opt.stage("%s: verifying the plan", cfg.Name)
	return opt.Verify(ctx, cfg, plan)
}

// Verification is the configuration that measures a plan: the workload it was made for, and those of the plan's
// settings that are not vLLM's defaults, so that flags which the user passes on unchanged stay free.
func (s *Setup) Verification(cfg harness.Config, plan *planner.Plan) (harness.Config, error) {
	device := DeviceOf(s.GPU)
	defaults := vllmflags.Resolve(harness.EngineArgs{MaxModelLen: plan.Args.MaxModelLen}, "", device)
	cfg.EngineArgs, cfg.Name = harness.EngineArgs{MaxModelLen: plan.Args.MaxModelLen},
		strings.TrimPrefix(cfg.Name+"_verify", "_")
	for _, f := range vllmflags.Known("", device) {
		if v := vllmflags.Get(plan.Args, f.Name); v != vllmflags.Get(defaults, f.Name) {
			if err := vllmflags.Set(&cfg.EngineArgs, f.Name, v); err != nil {
				return cfg, fmt.Errorf("plan %s: %w", plan.Strategy, err)
			}
		}
	}
	return cfg, nil
}

// Verify measures a plan on a server started with its settings and puts the figures into the plan. A running server is
// measured when it has the planned settings as far as it states them - the result's warnings name the others - and the
// error wraps [ErrNotRestartable] when it has not.
func (s *Setup) Verify(ctx context.Context, cfg harness.Config, plan *planner.Plan) (*profile.Output, error) {
	cfg, err := s.Verification(cfg, plan)
	if err != nil {
		return nil, err
	}
	asked := cfg.EngineArgs
	if !s.Source.Restartable() {
		asked = harness.EngineArgs{}
	}
	ep, err := s.Source.Start(ctx, asked)
	if err != nil {
		return nil, err
	}
	if !s.Source.Restartable() {
		unlike, unstated := differences(plan.Args, ep.Info().Args)
		if len(unlike) > 0 {
			return nil, errors.Join(fmt.Errorf("%s: %w", strings.Join(unlike, ", "), ErrNotRestartable), ep.Close())
		}
		if len(unstated) > 0 {
			ep.Notes = append(ep.Notes, fmt.Sprintf("the running server does not state its %s: taken to be as planned",
				strings.Join(unstated, ", ")))
		}
	}
	run, err := s.Measure(ctx, ep, cfg)
	if run != nil {
		plan.SetMeasured(measured(run)...)
	}
	return run, errors.Join(err, ep.Close())
}
