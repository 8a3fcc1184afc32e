// Package workflow joins an endpoint with the planner: it profiles configurations, fits the cost model, plans, verifies
// the plan on a server started with it, and keeps every stage's files so that an interrupted run can go on.
//
// Read [Run] for the whole loop; [Profile], [Plan] and [Verify] are its stages, each usable alone. A [Source] says where
// servers come from: the embedded engine, a running vLLM, or one that is launched per configuration.
package workflow

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/load"
	"kvtune/harness/profile"
	"kvtune/harness/vllmflags"
	"kvtune/planner"
	"kvtune/planner/analysis"
	"kvtune/planner/report"
	"kvtune/planner/spec"
)

// Files that a workflow writes beside those of each run. The analysis and the plans without a run's name in front are
// those of the chosen configuration.
const (
	CostFile     = "kvtune_cost.json"
	AnalysisFile = "performance_analysis.json"
	PlansFile    = "custom_schedule_plans.json"
	PictureFile  = "vllm_performance_analysis.png"
	ReportFile   = "report.html"
	probesName   = "probes"
)

// Setup is what every stage needs to know.
type Setup struct {
	Source Source
	// Folder keeps the files; nil keeps none.
	Folder *archive.Folder
	Model  spec.Model
	GPU    spec.GPU
	// Vocab bounds the token ids of prompts; 0 is the client's default.
	Vocab int
	// Command and Tool go into the conditions of every result.
	Command []string
	Tool    string
	// OnStage is told what happens; OnProgress follows the requests of the present stage. Both may be nil.
	OnStage    func(string)
	OnProgress func(load.Progress)
}

func (s *Setup) stage(format string, args ...any) {
	if s.OnStage != nil {
		s.OnStage(fmt.Sprintf(format, args...))
	}
}

// Options are a whole workflow.
type Options struct {
	Setup
	Configs []harness.Config
	Target  planner.Strategy
	SLOs    []harness.SLO
	// Current are the settings in use (the baseline); zero: each configuration's own settings are.
	Current harness.EngineArgs
	// Fixed pins settings in every plan.
	Fixed harness.EngineArgs
	// Quick makes the probes and the search small and verifies only the chosen plan.
	Quick bool
	// Resume takes over what an interrupted workflow left in Folder.
	Resume bool
}

// Run profiles every configuration, fits, analyses, plans for the target, verifies the chosen plan and writes the report.
// Configurations without a name get one. When the run ends early the outcome holds what was measured and says so.
func Run(ctx context.Context, opt Options) (*Outcome, error) {
	if len(opt.Configs) == 0 {
		return nil, errors.New("no configuration to profile")
	}
	for i := range opt.Configs {
		if opt.Configs[i].Name == "" {
			opt.Configs[i].Name = fmt.Sprintf("config%d", i+1)
		}
	}
	out := &Outcome{Chosen: -1}
	runs, err := opt.profileAll(ctx, out)
	if err != nil {
		return nil, err
	}
	if len(runs) == 0 || len(out.Runs) == 0 {
		out.Partial = true
		return out, nil
	}

	opt.stage("fitting the cost model")
	out.Cost, err = FitFrom(ctx, opt.Model, opt.GPU, runs)
	if err != nil {
		return nil, fmt.Errorf("fit: %w", err)
	}
	if opt.Folder != nil {
		if err := opt.Folder.WriteJSON(CostFile, out.Cost); err != nil {
			return nil, err
		}
	}
	if err := opt.planAll(ctx, out); err != nil {
		return nil, err
	}
	if out.Partial {
		out.NotVerified = "the run was cut short"
	} else if err := opt.verifyChosen(ctx, out); err != nil {
		return nil, err
	}
	return out, opt.write(out)
}

// profileAll measures the probes and every configuration. It returns the runs to fit from, probes first.
func (opt *Options) profileAll(ctx context.Context, out *Outcome) ([]*profile.Output, error) {
	var fitFrom []*profile.Output
	for i, cfg := range opt.Configs {
		if run := opt.resumed(cfg.Name, cfg); run != nil {
			opt.stage("%s: taken over from the interrupted run", cfg.Name)
			fitFrom = append(fitFrom, run)
			out.Runs = append(out.Runs, reportRun(run))
			if i == 0 {
				if probes := opt.resumed(probesName, harness.Config{Name: probesName}); probes != nil {
					fitFrom = append([]*profile.Output{probes}, fitFrom...)
				}
			}
			continue
		}
		opt.stage("%s: starting the server", cfg.Name)
		var measured []*profile.Output
		var err error
		if i == 0 {
			measured, err = opt.ProfileWithProbes(ctx, cfg, opt.Quick)
		} else {
			measured = make([]*profile.Output, 1)
			measured[0], err = opt.Profile(ctx, cfg)
		}
		if err != nil {
			if i > 0 && ctx.Err() == nil {
				// One configuration that cannot run does not cost the others.
				out.Runs = append(out.Runs, failedRun(cfg, err))
				continue
			}
			return nil, err
		}
		fitFrom = append(fitFrom, measured...)
		last := measured[len(measured)-1]
		out.Runs = append(out.Runs, reportRun(last))
		if last.Result.Partial {
			out.Partial, out.Why = true, last.Result.Why
			return fitFrom, nil
		}
	}
	return fitFrom, nil
}

// resumed reads back a run that an interrupted workflow finished; nil where there is none of this configuration.
func (opt *Options) resumed(name string, cfg harness.Config) *profile.Output {
	if !opt.Resume || opt.Folder == nil {
		return nil
	}
	part, ok := opt.Folder.Part(name)
	if !ok || part.State != archive.Done {
		return nil
	}
	run, err := ReadRun(opt.Folder, name)
	if err != nil || !sameRequest(run.Result.Config, cfg) {
		return nil // measured again: what is there is not what was asked for
	}
	return run
}

// sameRequest compares what was asked for.
func sameRequest(a, b harness.Config) bool { return reflect.DeepEqual(a, b) }

func reportRun(run *profile.Output) report.Run {
	return report.Run{Result: run.Result, Records: run.Records, Series: run.Series}
}

func failedRun(cfg harness.Config, err error) report.Run {
	return report.Run{Result: &harness.Result{
		Schema: harness.ResultSchema, Name: cfg.Name, Config: cfg, Partial: true, Why: err.Error(),
		Conditions: harness.Conditions{Started: time.Now()},
	}}
}

// planAll analyses and plans every measured configuration and chooses the one whose plan gains most.
func (opt *Options) planAll(ctx context.Context, out *Outcome) error {
	best := 0.0
	for i := range out.Runs {
		run := &out.Runs[i]
		out.Plans = append(out.Plans, &planner.Plans{Schema: planner.Schema})
		if run.Records == nil {
			continue
		}
		opt.stage("%s: what binds", run.Result.Name)
		basis := BasisOf(run.Result, opt.Model, opt.GPU, out.Cost)
		run.Analysis = Analyze(ctx, run, basis.Server)
		opt.stage("%s: planning", run.Result.Name)
		plans, err := basis.Plan(ctx, PlanOptions{
			Current: opt.Current, Fixed: opt.Fixed, SLOs: opt.SLOs, Strategies: []planner.Strategy{opt.Target}, Quick: opt.Quick,
		})
		if err != nil {
			return fmt.Errorf("%s: plan: %w", run.Result.Name, err)
		}
		out.Plans[i] = plans
		if len(plans.Plans) == 0 {
			continue
		}
		gain := 0.0
		if g := plans.Plans[0].Gain; g != nil && !plans.Plans[0].Keep {
			gain = g.Change
		}
		if out.Chosen < 0 || gain > best {
			out.Chosen, best = i, gain
		}
	}
	return nil
}

// verifyChosen runs the chosen plan (every plan unless Quick) and puts measured beside predicted.
func (opt *Options) verifyChosen(ctx context.Context, out *Outcome) error {
	if out.Chosen < 0 {
		out.NotVerified = "there is no plan to verify"
		return nil
	}
	for i := range out.Plans {
		if len(out.Plans[i].Plans) == 0 || (opt.Quick && i != out.Chosen) {
			continue
		}
		plan := &out.Plans[i].Plans[0]
		if !plan.Keep && !opt.Source.Restartable() {
			if i == out.Chosen {
				out.NotVerified = ErrNotRestartable.Error()
			}
			continue
		}
		// Also a plan that changes nothing is measured anew: the model has seen the run that it was fitted on.
		name := out.Runs[i].Result.Name
		cfg, err := opt.verification(out.Plans[i].Config, plan)
		if err != nil {
			return err
		}
		run := opt.resumed(cfg.Name, cfg)
		if run == nil {
			opt.stage("%s: verifying the plan", name)
			if run, err = opt.Profile(ctx, cfg); err != nil {
				return fmt.Errorf("%s: verify: %w", name, err)
			}
		}
		plan.SetMeasured(run.Result)
		verified := reportRun(run)
		verified.Analysis = Analyze(ctx, &verified, BasisOf(run.Result, opt.Model, opt.GPU, out.Cost).Server)
		out.Runs = append(out.Runs, verified)
		if run.Result.Partial {
			out.Partial, out.Why = true, run.Result.Why
			return nil
		}
	}
	return nil
}

// ErrNotRestartable says that a plan cannot be verified on a server that keeps its settings.
var ErrNotRestartable = errors.New("the running server keeps its settings; start one with the planned flags and point " +
	"`kvtune verify --endpoint` at it, or use --launch")

// verification is the configuration that measures a plan: the workload it was made for, and those of the plan's settings
// that are not vLLM's defaults, so that flags which the user passes on unchanged stay free.
func (s *Setup) verification(cfg harness.Config, plan *planner.Plan) (harness.Config, error) {
	device := DeviceOf(s.GPU)
	defaults := vllmflags.Resolve(harness.EngineArgs{MaxModelLen: plan.Args.MaxModelLen}, "", device)
	cfg.EngineArgs, cfg.Name = harness.EngineArgs{MaxModelLen: plan.Args.MaxModelLen}, cfg.Name+"_verify"
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
// measured when it has the planned settings as far as it states them; else the error is [ErrNotRestartable].
func (s *Setup) Verify(ctx context.Context, cfg harness.Config, plan *planner.Plan) (*profile.Output, error) {
	cfg, err := s.verification(cfg, plan)
	if err != nil {
		return nil, err
	}
	ep, err := s.Source.Start(ctx, cfg.EngineArgs)
	if err != nil {
		return nil, err
	}
	if info := ep.Info(); !s.Source.Restartable() &&
		((info.BlockSize > 0 && info.BlockSize != plan.Args.BlockSize) ||
			(!info.Args.Equal(harness.EngineArgs{}) && !info.Args.Equal(plan.Args))) {
		return nil, errors.Join(ErrNotRestartable, ep.Close())
	}
	run, err := s.Measure(ctx, ep, cfg)
	if err = errors.Join(err, ep.Close()); err != nil {
		return nil, err
	}
	plan.SetMeasured(run.Result)
	return run, nil
}

// write keeps the analyses and plans; the pictures and the page are written by [WriteReport], which knows the verdict.
func (opt *Options) write(out *Outcome) error {
	if opt.Folder == nil {
		return nil
	}
	var errs []error
	for i := range out.Plans {
		name := out.Runs[i].Result.Name
		if a := out.Runs[i].Analysis; a != nil {
			errs = append(errs, opt.Folder.WriteJSON(name+"_analysis.json", a))
			if i == out.Chosen {
				errs = append(errs, opt.Folder.WriteJSON(AnalysisFile, a))
			}
		}
		if len(out.Plans[i].Plans) > 0 || out.Plans[i].Infeasible != nil {
			errs = append(errs, opt.Folder.WriteJSON(name+"_plans.json", out.Plans[i]))
			if i == out.Chosen {
				errs = append(errs, opt.Folder.WriteJSON(PlansFile, out.Plans[i]))
			}
		}
	}
	return errors.Join(errs...)
}

// Analyze says what binds a run; see [analysis.Analyze].
func Analyze(ctx context.Context, run *report.Run, server analysis.Server) *analysis.Report {
	return analysis.Analyze(ctx, analysis.Input{
		Result: run.Result, Records: run.Records, Steps: run.Steps, Series: run.Series, Server: server,
	})
}
