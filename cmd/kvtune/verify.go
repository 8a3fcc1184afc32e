package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"kvtune/harness"
	"kvtune/harness/workflow"
	"kvtune/planner"
)

func verifyCommand() *cli.Command {
	return &cli.Command{
		Name:  "verify",
		Usage: "run a plan on a server and put measured beside predicted",
		Description: "The workload is the one the plan was made for. --launch and the embedded engine start a server with the plan's\n" +
			"settings; on --endpoint only the settings that the server has can be verified.\n\nExamples:\n" +
			"   kvtune verify --plan custom_schedule_plans.json --strategy balanced\n" +
			"   kvtune verify --plan custom_schedule_plans.json --strategy throughput --launch --model ./my-model",
		Flags: join(endpointFlags(), []cli.Flag{
			&cli.PathFlag{Name: "plan", Usage: "plans `FILE` written by plan or workflow", Required: true, Category: catObjective},
			&cli.StringFlag{Name: "strategy", Usage: "`throughput|latency|memory|cache|balanced|current|default`; default: the first plan",
				Category: catObjective},
			&cli.StringFlag{Name: "model", Usage: "`name` or path; default: the plan's", Category: catWorkload},
			&cli.Uint64Flag{Name: "seed", Usage: "`seed` of the embedded engine's hidden model", Value: 1, Category: catEndpoint},
			outputDirFlag("results"),
		}),
		Action: verify,
	}
}

func verify(c *cli.Context) error {
	plans, err := readPlans(c.Path("plan"))
	if err != nil {
		return usageError{fmt.Errorf("--plan: %w", err)}
	}
	plan, err := planOf(plans, planner.Strategy(c.String("strategy")))
	if err != nil {
		return err
	}
	model := c.String("model")
	if model == "" {
		model = plans.Config.Model
	}
	s, err := setupOf(c, model)
	if err != nil {
		return err
	}
	defer s.screen.close()
	planned, err := s.Verification(plans.Config, plan)
	if err != nil {
		return err
	}
	ctx, done, err := s.Begin(c.Context, workflow.Work{Configs: []harness.Config{planned}})
	if err != nil {
		return err
	}
	defer done()
	if err := s.open(c.Path("output-dir")); err != nil {
		return err
	}
	s.screen.stage("verifying the plan for " + string(plan.Strategy))
	run, err := s.Verify(ctx, plans.Config, plan)
	if err != nil {
		return err
	}
	if err := s.Folder.WriteJSON(workflow.PlansFile, plans); err != nil {
		return err
	}
	s.screen.close()
	return printVerified(c, plan, run, s.files())
}

func planOf(plans *planner.Plans, strategy planner.Strategy) (*planner.Plan, error) {
	var names []string
	for i := range plans.Plans {
		if p := &plans.Plans[i]; p.Strategy == strategy || strategy == "" {
			return p, nil
		}
		names = append(names, string(plans.Plans[i].Strategy))
	}
	if strategy == planner.Current || strategy == planner.Default {
		if plans.Baseline.Strategy == strategy {
			return &plans.Baseline, nil
		}
		if plans.Default != nil && strategy == planner.Default {
			return plans.Default, nil
		}
	}
	if len(names) == 0 {
		return nil, usagef("--plan: the file holds no plan: %s", plans.Verdict)
	}
	return nil, usagef("--strategy %s: the file has %s", strategy, strings.Join(names, ", "))
}

func readPlans(path string) (*planner.Plans, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	plans, err := planner.ReadPlans(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return plans, nil
}
