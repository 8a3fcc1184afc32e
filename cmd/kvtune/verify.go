package main

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"kvtune/harness/archive"
	"kvtune/harness/load"
	"kvtune/harness/workflow"
	"kvtune/planner"
	"kvtune/planner/analysis"
)

func verifyCommand() *cli.Command {
	return &cli.Command{
		Name:  "verify",
		Usage: "run plans and their baseline by turns, put measured beside predicted",
		Description: "The workload is the one the plans were made for. --launch and the embedded engine start a server " +
			"with each plan's\n" +
			"settings and with the baseline's, by turns; on --endpoint only the settings that the server has can be " +
			"verified.\n\nExamples:\n" +
			"   kvtune verify --plan custom_schedule_plans.json\n" +
			"   kvtune verify --plan custom_schedule_plans.json --strategy throughput --rounds 3 --launch --model ./my-model " +
			"--budget 45m\n" +
			"   kvtune verify --analysis-file results/performance_analysis.json --recommendation 1",
		Flags: join(in(catInput,
			&cli.PathFlag{Name: "plan", Usage: "plans `FILE` written by plan or workflow"},
			&cli.PathFlag{Name: "analysis-file", Usage: "instead of --plan: `FILE` of analyze or workflow, which recommends"},
			&cli.IntFlag{Name: "recommendation", Usage: "`N`: which of its recommendations is verified, from 1", Value: 1},
			oneOf(append(planner.Strategies(), planner.Current, planner.Default), &cli.StringFlag{Name: "strategy",
				Usage: "verify this `plan`; default: every plan"}),
			&cli.IntFlag{Name: "rounds", Usage: "how often each is run; the gain is compared within `N` rounds", Value: 2},
		), endpointFlags(), in(catEndpoint,
			&cli.StringFlag{Name: "model", Usage: "`name` or path; default: the plan's"},
			&cli.Uint64Flag{Name: "seed", Usage: "`seed` of the embedded engine's hidden model", Value: 1},
		), in(catOutput, detailsFlag(), outputDirFlag("results"))),
		Action: verify,
	}
}

func verify(c *cli.Context) error {
	plans, err := plansToVerify(c)
	if err != nil {
		return usageError{err}
	}
	if c.Int("rounds") < 1 {
		return usagef("--rounds %d: expected a whole number of at least 1", c.Int("rounds"))
	}
	var strategies []planner.Strategy
	if name := planner.Strategy(c.String("strategy")); name != "" || len(plans.Plans) == 0 {
		if _, err := planOf(plans, name); err != nil {
			return err
		}
		strategies = []planner.Strategy{name}
	}
	model := c.String("model")
	if model == "" {
		model = plans.Config.Model
	}
	defer load.Quiet()()
	s, err := setupOf(c, model)
	if err != nil {
		return err
	}
	defer s.screen.close()
	trials, err := s.Trials(c.Context, plans, strategies, c.Int("rounds"))
	if err != nil {
		return err
	}
	if err := s.open(c.Path("output-dir")); err != nil {
		return err
	}
	s.screen.stage("verifying")
	if err = trials.Run(c.Context); err != nil && len(trials.Verified()) == 0 {
		return err
	}
	s.screen.close()
	return errors.Join(s.Folder.WriteJSON(workflow.PlansFile, plans), printVerified(c, plans, trials, s.files()), err)
}

// plansToVerify are those of --plan, or the recommendation of --analysis-file.
func plansToVerify(c *cli.Context) (*planner.Plans, error) {
	file, analysed := c.Path("plan"), c.Path("analysis-file")
	if (file == "") == (analysed == "") {
		return nil, errors.New("expected one of --plan (written by kvtune plan) and --analysis-file (written by kvtune " +
			"analyze)")
	}
	if file != "" {
		plans, err := readPlans(file)
		if err != nil {
			return nil, fmt.Errorf("--plan: %w", err)
		}
		return plans, nil
	}
	r := new(analysis.Report)
	if err := archive.ReadJSON(analysed, analysis.Schema, r); err != nil {
		return nil, fmt.Errorf("--analysis-file: %w", err)
	}
	return workflow.RecommendedPlans(r, c.Int("recommendation"))
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
	data, err := archive.ReadFile(path)
	if err != nil {
		return nil, err
	}
	plans, err := planner.ReadPlans(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return plans, nil
}
