package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"kvtune/harness"
	"kvtune/harness/workflow"
	"kvtune/planner"
)

// slowStart is the embedded engine with the price of a real server's start, and a log of the starts.
type slowStart struct {
	workflow.Embedded
	started *[]int
}

func (s slowStart) StartTime() time.Duration { return 90 * time.Second }

func (s slowStart) Start(ctx context.Context, args harness.EngineArgs) (*workflow.Endpoint, error) {
	*s.started = append(*s.started, args.MaxNumSeqs)
	return s.Embedded.Start(ctx, args)
}

// trialPlans are a baseline of 4 sequences, a plan of 64 and one of 32, and one that keeps the baseline.
func trialPlans(t *testing.T) *planner.Plans {
	t.Helper()
	cfg := small("trial", 64)
	cfg.B, cfg.NumMeasurements = 16, 2
	basis, err := workflow.OnPaper(cfg, gpt2(t), gpu(t, "L4"), nil)
	if err != nil {
		t.Fatal(err)
	}
	plan := func(s planner.Strategy, seqs int) planner.Plan {
		args := basis.Server.Args
		args.MaxNumSeqs = seqs
		return planner.Plan{Strategy: s, Args: args}
	}
	return &planner.Plans{Config: cfg, Baseline: plan(planner.Current, 4), Plans: []planner.Plan{
		plan(planner.Throughput, 64), plan(planner.Latency, 32), plan(planner.Balanced, 4),
	}}
}

func TestTrialsTakeTurns(t *testing.T) {
	plans, started := trialPlans(t), []int{}
	setup := workflow.Setup{Model: gpt2(t), GPU: gpu(t, "L4"),
		Source: slowStart{workflow.Embedded{Model: gpt2(t), GPU: gpu(t, "L4"),
			Seed: 1}, &started}}
	var said []string
	setup.OnStage = func(text string) { said = append(said, text) }
	trials, err := setup.Trials(t.Context(), plans, nil, 2)
	if err != nil {
		t.Fatal(err)
	}
	if len(started) > 0 {
		t.Fatal("preparing starts servers")
	}
	if err := trials.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := []int{4, 64, 32, 32, 64, 4}; !slices.Equal(started, want) {
		t.Errorf("started servers of %v sequences, want %v", started, want)
	}
	if !strings.Contains(said[0], "6 server starts, about 9m") {
		t.Errorf("first said: %q", said[0])
	}
	for _, p := range append([]planner.Plan{plans.Baseline}, plans.Plans...) {
		if len(p.Measured) == 0 {
			t.Errorf("%s was not measured", p.Strategy)
		}
		if compared := p.MeasuredGain != nil; compared != (p.Args.MaxNumSeqs != 4) {
			t.Errorf("%s: measured gain %+v", p.Strategy, p.MeasuredGain)
		}
	}
	// How much better is a busy machine's to say: it must have been compared request by request.
	if l := plans.Plan(planner.Latency); l.GainVerdict == "" || l.MeasuredGain == nil || l.MeasuredGain.Low == nil ||
		l.MeasuredOver != planner.Current {
		t.Errorf("latency: %+v %q", l.MeasuredGain, l.GainVerdict)
	}
}

func TestTrialsFitTheBudget(t *testing.T) {
	for _, c := range []struct {
		budget time.Duration
		starts int
		left   string
	}{
		{time.Hour, 6, ""},
		{5 * time.Minute, 3, "round 2 of all"},
		{200 * time.Second, 2, "latency: the budget"},
	} {
		plans, started := trialPlans(t), []int{}
		setup := workflow.Setup{Model: gpt2(t), GPU: gpu(t, "L4"), Budget: c.budget,
			Source: slowStart{workflow.Embedded{Model: gpt2(t),
				GPU: gpu(t, "L4"), Seed: 1}, &started}}
		trials, err := setup.Trials(t.Context(), plans, nil, 2)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(trials.Trials) * trials.Rounds; n != c.starts ||
			!strings.Contains(fmt.Sprint(trials.NotVerified), c.left) {
			t.Errorf("%v: %d starts, not verified %q", c.budget, n, trials.NotVerified)
		}
	}
	setup := workflow.Setup{Model: gpt2(t), GPU: gpu(t, "L4"), Budget: time.Minute,
		Source: slowStart{workflow.Embedded{Model: gpt2(t),
			GPU: gpu(t, "L4")}, new([]int)}}
	var small *workflow.BudgetError
	if _, err := setup.Trials(t.Context(), trialPlans(t), nil, 2); !errors.As(err, &small) {
		t.Errorf("error %v", err)
	}
}
