package workflow

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"kvtune/harness"
	"kvtune/harness/profile"
	"kvtune/planner"
	"kvtune/planner/report"
)

// Trial is one configuration that a verification measures: the baseline, or the settings of one or more plans.
type Trial struct {
	// Plans are those that have the settings, the baseline first where it is among them; each gets what was measured.
	Plans []*planner.Plan
	// Runs are its runs, one per round.
	Runs []*profile.Output

	configs []harness.Config // one per round
}

// name is the strategies' names.
func (t *Trial) name() string {
	var names []string
	for _, p := range t.Plans {
		names = append(names, string(p.Strategy))
	}
	return strings.Join(names, "+")
}

// Trials are a verification before and after it ran.
type Trials struct {
	// Trials are in the order in which a round measures them, the baseline first.
	Trials []*Trial
	Rounds int
	// NotVerified names what was left out and why, one sentence each.
	NotVerified []string

	setup *Setup
	base  *planner.Plan
}

// Trials prepares the verification of plans: the baseline and every plan asked for (strategies nil: all) are run by
// turns, in reverse order every other round, so that a drift of the machine reaches both alike. Plans with equal
// settings are one trial. A running server is measured in the configuration that it has. Where the budget is too small
// for all of it, there are fewer rounds, then fewer plans (from the last on), and NotVerified says so; a *BudgetError
// when not even one round of one plan fits.
func (s *Setup) Trials(ctx context.Context, plans *planner.Plans, strategies []planner.Strategy,
	rounds int) (*Trials, error) {
	t := &Trials{Rounds: rounds, setup: s, base: &plans.Baseline}
	t.add(&plans.Baseline)
	if plans.Default != nil && (slices.Contains(strategies, planner.Default) || strategies == nil) {
		t.add(plans.Default)
	}
	for i := range plans.Plans {
		if p := &plans.Plans[i]; strategies == nil || slices.Contains(strategies, p.Strategy) {
			t.add(p)
		}
	}
	if !s.Source.Restartable() {
		t.Rounds = 1
	}
	for _, trial := range t.Trials {
		for round := range t.Rounds {
			cfg, err := s.Verification(plans.Config, trial.Plans[0])
			if err != nil {
				return nil, err
			}
			cfg.Name = fmt.Sprintf("%s_%s_%d", cfg.Name, trial.Plans[0].Strategy, round+1)
			if round > 0 {
				cfg.Seed += uint64(round) // other prompts, the same for every trial of the round
			}
			trial.configs = append(trial.configs, cfg)
		}
	}
	if !s.Source.Restartable() {
		return t, nil
	}
	for {
		_, err := s.check(ctx, t.work())
		var small *BudgetError
		switch {
		case !errors.As(err, &small):
			return t, err
		case t.Rounds > 1:
			t.Rounds--
			t.NotVerified = append(t.NotVerified, fmt.Sprintf("round %d of all: the budget of %v is too small for it",
				t.Rounds+1, s.Budget))
		case len(t.Trials) > 2:
			last := t.Trials[len(t.Trials)-1]
			t.Trials = t.Trials[:len(t.Trials)-1]
			t.NotVerified = append(t.NotVerified, fmt.Sprintf("%s: the budget of %v is too small for it", last.name(), s.Budget))
		default:
			return nil, err
		}
	}
}

// add puts a plan to the trial with its settings.
func (t *Trials) add(p *planner.Plan) {
	for _, trial := range t.Trials {
		if trial.Plans[0].Args.Equal(p.Args) {
			if !slices.Contains(trial.Plans, p) {
				trial.Plans = append(trial.Plans, p)
			}
			return
		}
	}
	t.Trials = append(t.Trials, &Trial{Plans: []*planner.Plan{p}})
}

// order is the trials of a round.
func (t *Trials) order(round int) []*Trial {
	order := slices.Clone(t.Trials)
	if round%2 == 1 {
		slices.Reverse(order)
	}
	return order
}

// work is what is to be started.
func (t *Trials) work() Work {
	var w Work
	for round := range t.Rounds {
		for _, trial := range t.order(round) {
			w.Configs = append(w.Configs, trial.configs[round])
		}
	}
	return w
}

// Run measures the trials and puts the figures into the plans: predicted beside measured, and each plan's gain over the
// baseline in paired runs. It tells OnStage before the first start how many there will be and how long nothing is
// served. What was measured when something fails stays in the trials.
func (t *Trials) Run(ctx context.Context) error {
	if !t.setup.Source.Restartable() {
		return t.runningServer(ctx)
	}
	ctx, done, err := t.setup.Begin(ctx, t.work())
	if err != nil {
		return err
	}
	defer done()
	defer t.conclude()
	for round := range t.Rounds {
		for _, trial := range t.order(round) {
			t.setup.stage("round %d of %d: %s", round+1, t.Rounds, trial.name())
			cfg := trial.configs[round]
			ep, err := t.setup.Source.Start(ctx, cfg.EngineArgs)
			if err != nil {
				return fmt.Errorf("%s: %w", trial.name(), err)
			}
			run, err := t.setup.Measure(ctx, ep, cfg)
			if run != nil {
				trial.Runs = append(trial.Runs, run)
			}
			if err = errors.Join(err, ep.Close()); err != nil {
				return fmt.Errorf("%s: %w", trial.name(), err)
			}
			if run.Result.Partial {
				return nil
			}
		}
	}
	return nil
}

// runningServer measures the one trial whose settings the server has.
func (t *Trials) runningServer(ctx context.Context) error {
	ep, err := t.setup.Source.Start(ctx, harness.EngineArgs{})
	if err != nil {
		return err
	}
	defer t.conclude()
	var found *Trial
	var why []string
	for _, trial := range t.Trials {
		unlike, unstated := differences(trial.Plans[0].Args, ep.Info().Args)
		if len(unlike) > 0 || found != nil {
			why = append(why, fmt.Sprintf("%s: %s", trial.name(), strings.Join(append(unlike, ErrNotRestartable.Error()), ", ")))
			continue
		}
		found = trial
		if len(unstated) > 0 {
			ep.Notes = append(ep.Notes, fmt.Sprintf("the running server does not state its %s: taken to be as planned",
				strings.Join(unstated, ", ")))
		}
	}
	t.NotVerified = append(t.NotVerified, why...)
	if found == nil {
		return errors.Join(fmt.Errorf("%s: %w", strings.Join(why, "; "), ErrNotRestartable), ep.Close())
	}
	run, err := t.setup.Measure(ctx, ep, found.configs[0])
	if run != nil {
		found.Runs = append(found.Runs, run)
	}
	return errors.Join(err, ep.Close())
}

// conclude puts what was measured into the plans.
func (t *Trials) conclude() {
	base := t.Trials[0]
	for _, trial := range t.Trials {
		for _, p := range trial.Plans {
			if len(trial.Runs) > 0 {
				p.SetMeasured(measured(trial.Runs...)...)
			}
			if trial != base && len(base.Runs) > 0 && len(trial.Runs) > 0 {
				p.SetMeasuredGain(t.base.Strategy, measured(base.Runs...), measured(trial.Runs...))
			}
		}
	}
}

// measured are runs as a plan takes them.
func measured(runs ...*profile.Output) []planner.Measured {
	var out []planner.Measured
	for _, r := range runs {
		out = append(out, planner.Measured{Origin: r.Result.Origin, Metrics: r.Result.Metrics, Records: r.Records})
	}
	return out
}

// Report are the runs as a report shows them.
func (t *Trials) Report() (runs []report.Run) {
	for _, trial := range t.Trials {
		for _, r := range trial.Runs {
			runs = append(runs, reportRun(r))
		}
	}
	return runs
}

// Verified are the plans that were measured, the baseline first, plans with equal settings one after the other.
func (t *Trials) Verified() (plans []*planner.Plan) {
	for _, trial := range t.Trials {
		if len(trial.Runs) > 0 {
			plans = append(plans, trial.Plans...)
		}
	}
	return plans
}
