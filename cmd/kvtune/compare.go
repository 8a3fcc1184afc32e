package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"kvtune/harness/archive"
	"kvtune/harness/compare"
	"kvtune/harness/workflow"
	"kvtune/planner/report"
)

func compareCommand() *cli.Command {
	return &cli.Command{
		Name:      "compare",
		Usage:     "did B get slower than A, and is that significant?",
		ArgsUsage: "A B",
		Description: "A and B are archives of kvtune bench or kvtune profile, or files in Go's benchmark format. With\n" +
			"--run they are programs that print Go's benchmark format; they are run by turns with what stands behind --. Exit " +
			"status 3 is a\n" +
			"significant regression beyond the threshold.\n\nExamples:\n" +
			"   kvtune compare results/old results/new\n" +
			"   kvtune compare --html difference.html results/old results/new\n" +
			"   kvtune compare --threshold 0.005 --run ./old ./new -- bench --op decode --format bench\n" +
			"   kvtune compare --run old.test new.test -- -test.run=NONE -test.bench=.",
		Flags: in("Comparison",
			&cli.BoolFlag{Name: "run", Usage: "run A and B by turns, A B B A"},
			&cli.IntFlag{Name: "rounds", Usage: "`times` A B B A", Value: 10},
			&cli.Float64Flag{Name: "threshold", Usage: "relative `difference` that matters", Value: 0.01},
			&cli.Float64Flag{Name: "alpha", Usage: "`chance` of any false alarm among all cases", Value: 0.01},
			&cli.PathFlag{Name: "html", Usage: "also write both sides, side by side, as a page to `FILE`", Category: catOutput},
		),
		Action: compareAction,
	}
}

func compareAction(c *cli.Context) error {
	args := c.Args().Slice()
	if err := flagsBehind(c, "the things to compare"); err != nil {
		return err
	}
	if len(args) != 2 {
		return usagef("%d things to compare: expected two, kvtune compare A B", len(args))
	}
	if c.Int("rounds") < 1 {
		return usagef("--rounds %d: expected a whole number of at least 1", c.Int("rounds"))
	}
	a, b, err := sides(c, args[0], args[1])
	if err != nil {
		return err
	}
	result, err := compare.Compare(a, b, compare.Options{Threshold: c.Float64("threshold"), Alpha: c.Float64("alpha")})
	if err != nil {
		return usageError{err}
	}
	out := output{Verdict: result.Verdict(), Warnings: result.Warnings, Comparison: result}
	if file := c.Path("html"); file != "" {
		if err := comparePage(c, file, result, args); err != nil {
			return err
		}
		out.Files = []string{file}
	}
	err = show(c, out, func(w io.Writer) error {
		err := result.Text(w)
		for _, file := range out.Files {
			fmt.Fprintf(w, "\nfiles\n  %s\n", file)
		}
		return err
	})
	if err == nil && result.Count(compare.Worse) > 0 {
		return errNegative
	}
	return err
}

// comparePage writes both sides as a page; a side that is no archive is shown by its cases alone.
func comparePage(c *cli.Context, file string, result *compare.Report, args []string) error {
	page := report.Comparison{Title: "kvtune compare", Result: result,
		Commands: []string{report.ShellLine(c.App.Metadata["command"].([]string))}}
	for i, side := range []*report.Input{&page.A, &page.B} {
		if _, err := archive.Open(args[i]); err != nil || c.Bool("run") {
			continue
		}
		var err error
		if *side, err = workflow.ReadReport(c.Context, args[i], workflow.Server{}); err != nil {
			return usageError{err}
		}
	}
	return archive.WriteFile(file, func(w io.Writer) error { return report.CompareHTML(w, page) })
}

// sides reads the two sides, or measures them.
func sides(c *cli.Context, a, b string) (*compare.Side, *compare.Side, error) {
	extra := c.App.Metadata["extra"].([]string)
	if c.Bool("run") {
		scr := newScreen(c.App.ErrWriter)
		defer scr.close()
		return compare.Run(c.Context, a, b, extra, c.Int("rounds"), func(made, of int) {
			scr.stage(fmt.Sprintf("%d/%d runs of the programs", made, of))
		})
	}
	if len(extra) > 0 {
		return nil, nil, usagef("what stands behind -- is for the programs of --run")
	}
	sideA, err := compare.Read(a)
	if err != nil {
		return nil, nil, usageError{err}
	}
	sideB, err := compare.Read(b)
	if err != nil {
		return nil, nil, usageError{err}
	}
	return sideA, sideB, nil
}
