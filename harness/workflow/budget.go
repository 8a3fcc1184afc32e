package workflow

import (
	"context"
	"fmt"
	"time"

	"kvtune/harness"
	"kvtune/harness/profile"
	"kvtune/harness/workload"
)

// Work is what is to be done on servers.
type Work struct {
	// Configs are measured, each on a server of its own.
	Configs []harness.Config
	// Probes says that the probes are measured, too, Quick that they are the small ones.
	Probes, Quick bool
}

// Estimate is what some work is expected to take.
type Estimate struct {
	// Starts is the number of servers that are started, Starting how long they take to answer, all together: meanwhile
	// nothing is served.
	Starts   int
	Starting time.Duration
	// Requests is how long the requests take, simulated with the GPU's prior. What cannot be simulated counts as nothing.
	Requests time.Duration
}

// Total is the whole time.
func (e Estimate) Total() time.Duration { return e.Starting + e.Requests }

// String is e.g. "3 server starts, about 6m0s in all: 4m30s in which no server answers (90 s per start), 1m30s of
// requests".
func (e Estimate) String() string {
	if e.Starts == 0 {
		return fmt.Sprintf("about %v of requests", round(e.Requests))
	}
	starts := "1 server start"
	if e.Starts > 1 {
		starts = fmt.Sprintf("%d server starts", e.Starts)
	}
	return fmt.Sprintf("%s, about %v in all: %v in which no server answers (%.0f s per start), %v of requests", starts,
		round(e.Total()), round(e.Starting), (e.Starting / time.Duration(e.Starts)).Seconds(), round(e.Requests))
}

// round is up to whole seconds.
func round(d time.Duration) time.Duration { return (d + time.Second - 1).Truncate(time.Second) }

// BudgetError says that work was not begun because it would take too long.
type BudgetError struct {
	Budget time.Duration
	Needed Estimate
}

func (e *BudgetError) Error() string {
	return fmt.Sprintf("a budget of %v is too small, nothing was started: %v; allow at least %v, or ask for less (fewer "+
		"configurations, a quick test)", e.Budget, e.Needed, round(e.Needed.Total()))
}

// Begin refuses work that cannot be done as asked (*vllm.ConflictError, *BudgetError) before anything is started, and
// tells OnStage how many servers it will start and how long that takes. The context that it returns ends with the
// budget; the caller calls done when the work is.
func (s *Setup) Begin(ctx context.Context, w Work) (_ context.Context, done context.CancelFunc, err error) {
	estimate, err := s.check(ctx, w)
	if err != nil {
		return nil, nil, err
	}
	if estimate.Starts > 0 {
		s.stage("%v", estimate)
	}
	if s.Budget == 0 {
		return ctx, func() {}, nil
	}
	ctx, done = context.WithTimeoutCause(ctx, s.Budget, fmt.Errorf("the budget of %v is used up", s.Budget))
	return ctx, done, nil
}

// check is Begin without beginning.
func (s *Setup) check(ctx context.Context, w Work) (Estimate, error) {
	for _, cfg := range w.Configs {
		if err := s.Source.Check(cfg.EngineArgs); err != nil {
			return Estimate{}, err
		}
	}
	var e Estimate
	start := s.Source.StartTime()
	if start == 0 && s.Budget == 0 {
		return e, nil // nobody asks
	}
	if start > 0 {
		e.Starts = len(w.Configs)
		e.Starting = time.Duration(e.Starts) * start
	}
	for i, cfg := range w.Configs {
		e.Requests += s.expected(ctx, cfg, w.Probes && i == 0, w.Quick)
	}
	if s.Budget > 0 && e.Total() > s.Budget {
		return e, &BudgetError{Budget: s.Budget, Needed: e}
	}
	return e, nil
}

// expected is how long a configuration's requests take on the device's prior, with the probes before them if asked; 0
// for what cannot be simulated.
func (s *Setup) expected(ctx context.Context, cfg harness.Config, probes, quick bool) time.Duration {
	basis, err := OnPaper(cfg, s.Model, s.GPU, nil)
	if err != nil {
		return 0
	}
	var work []*workload.Workload
	if w, err := basis.workload(cfg.Seed); err == nil {
		work = append(work, w)
	}
	if probes {
		work = append(work, profile.Probes(basis.Info, cfg.Seed, quick))
	}
	total := time.Duration(0)
	for _, w := range work {
		run, err := basis.simulate(ctx, w)
		if err != nil {
			continue
		}
		last := time.Duration(0)
		for i := range run.Records {
			last = max(last, run.Records[i].End())
		}
		total += last
	}
	return total
}
