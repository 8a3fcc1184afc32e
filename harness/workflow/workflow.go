// Package workflow joins an endpoint with the planner: it profiles configurations, fits the cost model, plans, verifies
// the plan on a server started with it, and keeps every stage's files so that an interrupted run can go on.
//
// Read [Run] for the whole loop; [Setup.Profile], [Basis.Plan] and [Setup.Verify] are its stages, each usable alone. A
// [Source] says where servers come from: the embedded engine, a running vLLM, or one that is launched per
// configuration.
package workflow

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/profile"
	"kvtune/harness/vllm"
	"kvtune/harness/workload"
	"kvtune/planner"
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
	vectorFile   = "vllm_performance_analysis.svg"
	probesName   = "probes"
)

// Setup is what every stage needs to know.
type Setup struct {
	Source Source
	// Folder keeps the files; nil keeps none.
	Folder *archive.Folder
	Model  spec.Model
	GPU    spec.GPU
	// Client says how requests are sent, Limits how long one may take and how often it is sent.
	Client vllm.ClientOptions
	Limits profile.Limits
	// SharedServer lets probes run on a server that is busy with others' requests; else they are refused (*BusyError).
	SharedServer bool
	// Shard is the share of the configuration's load that is sent, StartAt when its measured requests begin
	// ([profile.Options]).
	Shard   harness.Shard
	StartAt time.Time
	// Budget is how long everything may take, 0 for no limit: work that is expected to take longer is not begun
	// (*BudgetError), and work that does take longer is cut short like an interrupted one.
	Budget time.Duration
	// Command and Tool go into the conditions of every result.
	Command []string
	Tool    string
	// OnStage is told what happens; OnProgress follows the requests of the present stage. Both may be nil.
	OnStage    func(string)
	OnProgress func(profile.Progress)
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
	// Extra are the user's own server flags, kept in every command line of a plan.
	Extra []string
	// Kernels is a kernel benchmark, whose ceilings are taken where it is of the server's device; nil for none.
	Kernels *harness.Bench
	// Quick makes the probes and the search small and verifies only the chosen plan.
	Quick bool
	// Resume takes over what an interrupted workflow left in Folder.
	Resume bool
}

// Run profiles every configuration, fits, analyses, plans for the target, verifies the chosen plan and writes the
// report. Configurations without a name get one. When the run ends early the outcome holds what was measured and says
// so; a configuration that cannot be measured does not cost the others. The error is for a suite that [Options.Check]
// refuses, files that cannot be written, and a suite of which nothing could be measured.
func Run(ctx context.Context, opt Options) (*Outcome, error) {
	if err := opt.prepare(); err != nil {
		return nil, err
	}
	ctx, done, err := opt.Begin(ctx, opt.work())
	if err != nil {
		return nil, err
	}
	defer done()
	out := &Outcome{Chosen: -1}
	runs, err := opt.profileAll(ctx, out)
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		out.cut(ctx)
		return out, nil
	}
	if len(runs) == 0 {
		return out, nil
	}
	opt.stage("fitting the cost model")
	if out.Cost, err = FitFrom(ctx, opt.Model, opt.GPU, runs); err == nil {
		err = opt.conclude(ctx, out)
	} else { // the measurements stand without it
		out.note("fit", err.Error())
		err = nil
	}
	if ctx.Err() != nil {
		out.cut(ctx)
		err = nil
	}
	return out, errors.Join(err, opt.write(out))
}

// conclude plans and verifies, with the fitted cost model.
func (opt *Options) conclude(ctx context.Context, out *Outcome) error {
	if opt.Folder != nil {
		if err := opt.Folder.WriteJSON(CostFile, out.Cost); err != nil {
			return err
		}
	}
	if err := opt.planAll(ctx, out); err != nil {
		return err
	}
	return opt.verifyAll(ctx, out)
}

// Check refuses, before anything is started or written, a suite that cannot be run as asked: two configurations of one
// name (*harness.FieldError), settings that conflict with flags passed on unchanged (*vllm.ConflictError), a budget
// that is too small (*BudgetError).
func (opt Options) Check(ctx context.Context) error {
	if err := opt.prepare(); err != nil {
		return err
	}
	_, err := opt.check(ctx, opt.work())
	return err
}

// prepare names the configurations, and pins the settings that cannot change.
func (opt *Options) prepare() error {
	if len(opt.Configs) == 0 {
		return errors.New("no configuration to profile")
	}
	opt.Configs = slices.Clone(opt.Configs)
	taken := map[string]bool{probesName: true, capacityName: true}
	for i := range opt.Configs {
		cfg := &opt.Configs[i]
		if cfg.Name == "" {
			cfg.Name = fmt.Sprintf("config%d", i+1)
		}
		name := strings.ToLower(cfg.Name)
		if taken[name] {
			return &harness.FieldError{Field: "name", Value: cfg.Name,
				Allowed: "a name that no other configuration has, and not " + probesName + " or " + capacityName +
					": files are named after it"}
		}
		taken[name] = true
	}
	switch source := opt.Source.(type) {
	case Running: // has what is in use
		source.Opts.Args = source.Opts.Args.Merge(opt.Current)
		opt.Source = source
	case *Launched:
		pinned, err := source.Pinned()
		if err != nil {
			return err
		}
		opt.Fixed = pinned.Merge(opt.Fixed)
	}
	return nil
}

// work is what Run will do on servers: what was not taken over, and the verifications.
func (opt *Options) work() Work {
	w := Work{Quick: opt.Quick, Probes: len(opt.resumedProbes(opt.Configs[0])) == 0}
	for _, cfg := range opt.Configs {
		if opt.resumed(cfg) == nil {
			w.Configs = append(w.Configs, cfg)
		}
	}
	w.Probes = w.Probes && len(w.Configs) > 0
	if !opt.Source.Restartable() {
		return w
	}
	verified := opt.Configs
	if opt.Quick {
		verified = verified[:1] // which one is not known yet
	}
	for _, cfg := range verified {
		cfg.EngineArgs = cfg.Merge(opt.Fixed)
		w.Configs = append(w.Configs, cfg)
	}
	return w
}

// profileAll measures the probes and every configuration. It returns the runs to fit from, probes first.
func (opt *Options) profileAll(ctx context.Context, out *Outcome) ([]*profile.Output, error) {
	probes := opt.resumedProbes(opt.Configs[0])
	var runs []*profile.Output
	var failure error
	for _, cfg := range opt.Configs {
		if run := opt.resumed(cfg); run != nil {
			opt.stage("%s: taken over from the interrupted run", cfg.Name)
			runs, out.Runs = append(runs, run), append(out.Runs, reportRun(run))
			continue
		}
		if ctx.Err() != nil {
			break
		}
		outs, err := opt.profileOne(ctx, cfg, len(probes) == 0)
		if err != nil && len(outs) > 0 {
			return nil, err // measured, but not kept, or the server does not stop: the next one would meet the same
		}
		var run *profile.Output
		last := len(outs) - 1
		if last >= 0 && outs[last].Result.Name == cfg.Name {
			run = outs[last]
		}
		if len(probes) == 0 && len(outs) > 0 && !outs[0].Result.Partial {
			probes = slices.DeleteFunc(slices.Clone(outs), func(o *profile.Output) bool { return !isProbes(o.Result.Name) })
		}
		why := ""
		switch {
		case err != nil:
			why = err.Error()
		case run == nil: // only the probes, and not all of them
			why = "the probes were cut short: " + cmp.Or(outs[last].Result.Why, "interrupted")
			err = errors.New(why)
		default:
			runs, out.Runs = append(runs, run), append(out.Runs, reportRun(run))
			if run.Result.Partial {
				out.note(cfg.Name, run.Result.Why)
			}
			continue
		}
		failure = errors.Join(failure, fmt.Errorf("%s: %w", cfg.Name, err))
		out.Runs = append(out.Runs, failedRun(cfg, why))
		out.note(cfg.Name, why)
		if opt.Folder != nil {
			if err := opt.Folder.SetPart(cfg.Name, archive.Failed); err != nil {
				return nil, errors.Join(failure, err)
			}
		}
	}
	if len(runs) == 0 && ctx.Err() == nil {
		return nil, failure
	}
	return slices.DeleteFunc(append(probes, runs...), func(o *profile.Output) bool {
		return !slices.ContainsFunc(o.Records, func(r workload.Record) bool { return r.Phase == workload.Measured && r.OK() })
	}), nil
}

// profileOne measures a configuration on a server of its own, after the probes where they are still wanted.
func (opt *Options) profileOne(ctx context.Context, cfg harness.Config, probes bool) ([]*profile.Output, error) {
	opt.stage("%s: starting the server", cfg.Name)
	if probes {
		return opt.ProfileWithProbes(ctx, cfg, opt.Quick)
	}
	run, err := opt.Profile(ctx, cfg)
	if run == nil {
		return nil, err
	}
	return []*profile.Output{run}, err
}

// resumed reads back a run that an interrupted workflow finished; nil where there is none of this configuration, on
// such a device.
func (opt *Options) resumed(cfg harness.Config) *profile.Output {
	if !opt.Resume || opt.Folder == nil {
		return nil
	}
	part, ok := opt.Folder.Part(cfg.Name)
	if !ok || part.State != archive.Done {
		return nil
	}
	run, err := ReadRun(opt.Folder, cfg.Name)
	// What is there may not be what is asked for: then it is measured again.
	if err != nil || run.Result.Partial || !reflect.DeepEqual(run.Result.Config, cfg) {
		return nil
	}
	if gpu := run.Result.Conditions.Server.GPU; gpu != "" && gpu != opt.GPU.Name {
		return nil
	}
	return run
}

// resumedProbes is resumed for the probes, which have another design when Quick is another; the one that filled the KV
// cache follows where it was finished, too.
func (opt *Options) resumedProbes(cfg harness.Config) []*profile.Output {
	run := opt.resumed(probesConfig(cfg))
	if run == nil || len(run.Records) != len(profile.Probes(run.Result.Conditions.Server, cfg.Seed, opt.Quick).Requests) {
		return nil
	}
	if filled := opt.resumed(capacityConfig(cfg)); filled != nil {
		return []*profile.Output{run, filled}
	}
	return []*profile.Output{run}
}

func reportRun(run *profile.Output) report.Run {
	return report.Run{Result: run.Result, Records: run.Records, Series: run.Series, Steps: run.Steps}
}

// failedRun stands for a configuration that could not be measured.
func failedRun(cfg harness.Config, why string) report.Run {
	return report.Run{Result: &harness.Result{
		Schema: harness.ResultSchema, Name: cfg.Name, Config: cfg, Partial: true, Why: why,
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
		basis.Kernels, basis.SLOs = opt.Kernels, opt.SLOs
		if opt.Folder != nil {
			basis.File = opt.Folder.Path(analysisOf(run.Result.Name))
		}
		run.Analysis = basis.Analyze(ctx, run)
		opt.stage("%s: planning", run.Result.Name)
		plans, err := basis.Plan(ctx, PlanOptions{
			Current: opt.Current, Fixed: opt.Fixed, SLOs: opt.SLOs, Strategies: []planner.Strategy{opt.Target},
			Extra: opt.Extra, Quick: opt.Quick,
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

// write keeps the analyses and plans; the pictures and the page are written by [WriteReport], which knows the verdict.
func (opt *Options) write(out *Outcome) error {
	if opt.Folder == nil {
		return nil
	}
	var errs []error
	for i := range out.Plans {
		name := out.Runs[i].Result.Name
		if a := out.Runs[i].Analysis; a != nil {
			errs = append(errs, opt.Folder.WriteJSON(analysisOf(name), a))
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
