package workflow

import (
	"fmt"
	"slices"
	"strings"

	"kvtune/harness"
	"kvtune/harness/vllmflags"
	"kvtune/planner"
	"kvtune/planner/analysis"
	"kvtune/planner/report"
)

// RecommendedPlans makes plans of one recommendation of an analysis (n from 1), so that it is verified as a plan is:
// the baseline is the settings that were in force.
func RecommendedPlans(r *analysis.Report, n int) (*planner.Plans, error) {
	if n < 1 || n > len(r.Recommendations) {
		return nil, fmt.Errorf("recommendation %d: the analysis of %s has %d", n, r.Result, len(r.Recommendations))
	}
	rec := &r.Recommendations[n-1]
	strategy := planner.Throughput
	if !harness.HigherIsBetter(rec.Gain.Metric) {
		strategy = planner.Latency
	}
	plan := planner.Plan{
		Strategy: strategy, Args: rec.Args, Gain: rec.Gain, Effects: rec.Effects, Why: rec.Why, Launch: rec.Command,
		Binding: analysis.NotObserved,
		Changed: []planner.Change{{Flag: rec.Flag, From: rec.From, To: rec.Value, Modelled: true}},
	}
	for _, also := range rec.Also {
		plan.Changed = append(plan.Changed, planner.Change{Flag: also.Flag, From: also.From, To: also.To, Modelled: true})
	}
	base := planner.Plan{Strategy: planner.Current, Args: r.Args, Changed: []planner.Change{},
		Why: "the settings in force", Binding: r.Binding, Limit: r.Limit, BindingWhy: r.Why()}
	for _, e := range rec.Effects {
		before, after := e.Before, e.After
		base.Predicted = append(base.Predicted, harness.Metric{Name: e.Metric, Stat: e.Stat, Unit: e.Unit, Value: &before})
		plan.Predicted = append(plan.Predicted, harness.Metric{Name: e.Metric, Stat: e.Stat, Unit: e.Unit, Value: &after})
	}
	return &planner.Plans{
		Schema: planner.Schema, Origin: harness.OriginSimulated, Model: r.Config.Model, Seed: r.Config.Seed, Config: r.Config,
		Verdict:  fmt.Sprintf("CHANGE %s=%s, recommended by the analysis of %s; SIMULATED", rec.Flag, rec.Value, r.Result),
		Baseline: base, Plans: []planner.Plan{plan},
	}, nil
}

// endpointFlag says whether a flag of kvtune says where a server comes from or how it is spoken to, and whether it
// takes a value.
func endpointFlag(name string) (known, takes bool) {
	switch name {
	case "launch", "shared-server", "text":
		return true, false
	case "endpoint", "launch-arg", "stop-arg", "budget", "gpu", "api", "connect-timeout", "first-token-timeout",
		"token-timeout", "request-timeout", "retries", "vocab", "model", "seed":
		return true, true
	}
	return false, false
}

// endpointWords are those words of the command line that took a run which say where its server came from: with them
// another command gets such a server. A GPU that the command did not name is that of the basis.
func (b *Basis) endpointWords(command []string) (words []string) {
	rest := command
	var passed []string // on to the server
	if i := slices.Index(command, "--"); i >= 0 {
		rest, passed = command[:i], command[i+1:]
		// Settings that were passed on are in force, and a recommendation sets them all.
		if _, _, others, err := vllmflags.ParseServeCommand("vllm serve model " + report.ShellLine(passed)); err == nil {
			passed = others
		}
	}
	gpu := false
	for i := 0; i < len(rest); i++ {
		name, ok := strings.CutPrefix(rest[i], "--")
		name, _, joined := strings.Cut(name, "=")
		known, takes := endpointFlag(name)
		if !ok || !known {
			continue
		}
		gpu = gpu || name == "gpu"
		words = append(words, rest[i])
		if takes && !joined && i+1 < len(rest) {
			i++
			words = append(words, rest[i])
		}
	}
	if !gpu && b.Server.GPU != nil {
		words = append(words, "--gpu", b.Server.GPU.Name)
	}
	if len(passed) == 0 {
		return words
	}
	return append(append(words, "--"), passed...)
}
