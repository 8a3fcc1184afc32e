//go:build !race

// Without the race detector, which makes five searches and a sweep slow; the other tests take the same ways with it.

package workflow_test

import (
	"context"
	"fmt"

	"kvtune/harness"
	"kvtune/harness/workflow"
	"kvtune/planner"
	"kvtune/planner/spec"
)

// A configuration is profiled on a server, plans are made for it, the workload is varied, and a suite runs over several
// configurations. Here the embedded engine serves; workflow.Running and workflow.Launched are real servers.
func Example() {
	ctx := context.Background()
	model, _ := spec.FindModel("microsoft/DialoGPT-medium")
	gpu, _ := spec.FindGPU("H200")
	setup := workflow.Setup{Source: workflow.Embedded{Model: model, GPU: gpu, Seed: 1}, Model: model, GPU: gpu}

	cfg := harness.DefaultConfig() // mixed profiling
	cfg.Name, cfg.C, cfg.M, cfg.B, cfg.NumMeasurements = "chat", 128, 4, 8, 1
	run, err := setup.Profile(ctx, cfg)
	if err != nil {
		panic(err)
	}
	basis := workflow.BasisOf(run.Result, model, gpu, nil) // nil: the prior's step times
	plans, _ := basis.Plan(ctx, workflow.PlanOptions{Quick: true})
	sweep, _, _ := basis.Sweep(ctx, workflow.PlanOptions{Strategies: []planner.Strategy{planner.Throughput}},
		workflow.Grid{C: []int{64, 128}, M: []int{4}, B: []int{8}, BlockSize: []int{16}}, nil)
	second := cfg
	second.Name, second.B = "chat-16", 16
	suite, _ := workflow.Run(ctx, workflow.Options{Setup: setup, Configs: []harness.Config{cfg, second},
		Target: planner.Balanced, Quick: true})
	fmt.Println(run.Result.Origin, "plans:", len(plans.Plans), "rows:", len(sweep.Rows), "suite:", len(suite.Plans))
	// Output: simulated plans: 5 rows: 2 suite: 2
}
