package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"kvtune/harness/archive"
	"kvtune/harness/workflow"
	"kvtune/planner/report"
)

func reportCommand() *cli.Command {
	return &cli.Command{
		Name:      "report",
		Usage:     "write the page and the picture of an archive: runs, plans, a kernel benchmark",
		ArgsUsage: "ARCHIVE",
		Description: "ARCHIVE is a folder that any command wrote, or a file of one run or benchmark. The page is one " +
			"file that\n" +
			"loads nothing; `kvtune workflow` writes it by itself. A run that was not analysed is, as far as the\n" +
			"archive allows, and its analysis is written beside it; one that was is again where a flag says more of its " +
			"server.\n\nExamples:\n" +
			"   kvtune report results\n" +
			"   kvtune report --html h200.html bench/results/h200/tuned/first\n" +
			"   kvtune report --model meta-llama/Llama-3.1-8B --gpu H200 --kernels bench/results/h200/tuned/first " +
			"bench/results/h200/loop/conversation",
		Flags: join(in(catInput,
			&cli.StringFlag{Name: "model", Usage: "`name` or path of the runs' model, where the archive does not tell it"},
			&cli.StringFlag{Name: "gpu", Usage: "`device` of the runs' server, where the archive does not tell it"},
			&cli.PathFlag{Name: "cost", Usage: "cost model `FILE` of that server; without it the archive's, or one that is " +
				"fitted from the runs"},
			&cli.PathFlag{Name: "kernels", Usage: "benchmark `FILE` of that device, for its measured ceilings; without it the " +
				"archive's"},
		), in(catOutput,
			&cli.PathFlag{Name: "html", Usage: "write the page alone, to `FILE` (default: " + workflow.ReportFile +
				" and the pictures, in the archive)"},
		)),
		Action: reportAction,
	}
}

func reportAction(c *cli.Context) error {
	if err := flagsBehind(c, "the archive"); err != nil {
		return err
	}
	if c.NArg() != 1 {
		return usagef("%d things to report on: expected one archive, kvtune report ARCHIVE", c.NArg())
	}
	path := c.Args().First()
	server := workflow.Server{Model: c.String("model"), GPU: c.String("gpu")}
	var err error
	if file := c.Path("cost"); file != "" {
		if server.Cost, err = readCost(file); err != nil {
			return usageError{fmt.Errorf("--cost: %w", err)}
		}
	}
	if file := c.Path("kernels"); file != "" {
		if server.Kernels, _, err = archive.ReadBench(file); err != nil {
			return usageError{fmt.Errorf("--kernels: %w", err)}
		}
	}
	content, err := workflow.ReadReport(c.Context, path, server)
	if err != nil {
		return usageError{err}
	}
	files := []string{c.Path("html")}
	if files[0] != "" {
		for i := range content.Runs {
			if run := &content.Runs[i]; run.NewAnalysis && len(run.Analysis.Recommendations) > 0 {
				run.Analysis.Notes = append(run.Analysis.Notes,
					"kvtune verify reads an analysis that `kvtune report` writes without --html")
			}
		}
		err = archive.WriteFile(files[0], func(w io.Writer) error { return report.HTML(w, content) })
	} else {
		files, err = workflow.WriteReportBeside(path, content)
	}
	if err != nil {
		return err
	}
	content.Page, content.Files = files[0], files
	return showReport(c, content, outputOf(content), gist(content)...)
}
