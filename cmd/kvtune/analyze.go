package main

import (
	"fmt"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"kvtune/harness/archive"
	"kvtune/harness/workflow"
	"kvtune/planner/report"
)

func analyzeCommand() *cli.Command {
	return &cli.Command{
		Name:  "analyze",
		Usage: "say what binds a run: compute, memory, scheduling or the prefix cache, with the evidence",
		Description: "Without --profiling-results the workload is profiled first.\n\nExamples:\n" +
			"   kvtune analyze --profiling-results results --save-plots\n" +
			"   kvtune analyze --C 1024 --M 64 --B 64 --save-plots --analysis-file detailed_analysis.json",
		Flags: join(in(catInput,
			&cli.PathFlag{Name: "profiling-results", Usage: "result `FILE` or archive folder"},
			&cli.PathFlag{Name: "cost", Usage: "cost model `FILE`; without it one is fitted from the run"},
			&cli.PathFlag{Name: "kernels", Usage: "benchmark `FILE` of the server's GPU, for its measured ceilings"},
		), endpointFlags(), workloadFlags(), []cli.Flag{sloFlag()}, serverFlags(), in(catOutput,
			&cli.BoolFlag{Name: "save-plots", Usage: "draw " + workflow.PictureFile},
			&cli.PathFlag{Name: "analysis-file",
				Usage: "write the analysis to `FILE` (default: " + workflow.AnalysisFile + " in --output-dir)"},
			outputDirFlag("results"),
		)),
		Action: analyze,
	}
}

func analyze(c *cli.Context) error {
	s := &setup{screen: newScreen(c.App.ErrWriter)}
	if c.Path("profiling-results") == "" {
		configs, err := configsOf(c, "profiling")
		if err != nil {
			return err
		}
		if s, err = setupOf(c, configs[0].Model); err != nil {
			return err
		}
		if err := check(s.GPU, configs...); err != nil {
			return err
		}
		if err := s.open(c.Path("output-dir")); err != nil {
			return err
		}
		if _, err := s.Profile(c.Context, configs[0]); err != nil {
			return err
		}
		if err := c.Set("profiling-results", s.Folder.Dir()); err != nil {
			return err
		}
	}
	defer s.screen.close()
	basis, err := basisOf(c)
	if err != nil {
		return err
	}
	if basis.SLOs, err = slosOf(c); err != nil {
		return err
	}
	runs, err := workflow.ReadRuns(c.Path("profiling-results"))
	if err != nil {
		return usageError{fmt.Errorf("--profiling-results: %w", err)}
	}
	if s.Folder == nil {
		if err := s.open(c.Path("output-dir")); err != nil {
			return err
		}
	}
	s.screen.stage("analysing")
	if kernels := c.Path("kernels"); kernels != "" {
		if basis.Kernels, _, err = archive.ReadBench(kernels); err != nil {
			return usageError{fmt.Errorf("--kernels: %w", err)}
		}
	}
	file := c.Path("analysis-file")
	if file == "" {
		file = s.Folder.Path(workflow.AnalysisFile)
	}
	basis.File = file
	run := report.Run{Result: runs[0].Result, Records: runs[0].Records, Steps: runs[0].Steps, Series: runs[0].Series}
	run.Analysis = basis.Analyze(c.Context, &run)
	write := archive.WriteJSON
	if filepath.Dir(file) == filepath.Clean(s.Folder.Dir()) {
		write = func(file string, v any) error { return s.Folder.WriteJSON(filepath.Base(file), v) }
	}
	if err := write(file, run.Analysis); err != nil {
		return err
	}
	input := report.Input{Title: run.Result.Name, Verdict: run.Analysis.Verdict, Runs: []report.Run{run},
		Cost: basis.Server.Cost}
	if c.Bool("save-plots") {
		if err := workflow.WritePicture(s.Folder, input); err != nil {
			return err
		}
	}
	s.screen.close()
	input.Files = s.files()
	return printAnalysis(c, input)
}
