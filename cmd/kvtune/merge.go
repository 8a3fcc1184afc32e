package main

import (
	"fmt"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"kvtune/bench"
	"kvtune/harness/archive"
	"kvtune/harness/profile"
	"kvtune/harness/workflow"
)

func mergeCommand() *cli.Command {
	return &cli.Command{
		Name:      "merge",
		Usage:     "unite the shards of a benchmark, a sweep, configurations or a load",
		ArgsUsage: "DIR...",
		Description: "DIR is the --output-dir in which the shards lie (shard-0-of-3, ...), or each of them. A sweep, " +
			"configurations and a benchmark\n" +
			"become what one process would have written. Of a load request lines are united in the order in which they were " +
			"due, on one\n" +
			"clock, metrics are computed anew and histograms added.\n\nExamples:\n" +
			"   kvtune merge results\n" +
			"   kvtune merge --output-dir whole node0/shard-0-of-2 node1/shard-1-of-2",
		Flags: []cli.Flag{
			&cli.PathFlag{Name: "output-dir", Usage: "`folder` for the whole (default: the one in which the shards lie)",
				Category: catOutput},
		},
		Action: merge,
	}
}

func merge(c *cli.Context) error {
	paths := c.Args().Slice()
	if len(paths) == 0 {
		return usagef("nothing to merge: expected the output folder of shards, kvtune merge results")
	}
	if err := flagsBehind(c, "the folders"); err != nil {
		return err
	}
	shards, err := archive.OpenShards(paths)
	if err != nil {
		return usageError{err}
	}
	dir := c.Path("output-dir")
	if dir == "" {
		dir = filepath.Dir(shards[0].Dir())
		for _, s := range shards {
			if filepath.Dir(s.Dir()) != dir {
				return usagef("the shards lie in different folders: --output-dir says where the whole goes")
			}
		}
	}
	kind := shards[0].Shard().Kind
	if kind == archive.ShardedSweep { // whose files are no archive
		plans, sweep, files, err := workflow.MergeSweep(shards, dir)
		if err != nil {
			return usageError{err}
		}
		return printPlans(c, plans, sweep, files)
	}
	into, err := archive.Create(dir)
	if err != nil {
		return usageError{fmt.Errorf("--output-dir: %w", err)}
	}
	s := &setup{}
	s.Folder = into
	var runs []*profile.Output
	switch kind {
	case archive.ShardedCases:
		out, err := bench.Merge(shards)
		if err != nil {
			return usageError{err}
		}
		if err := out.Save(into); err != nil {
			return err
		}
		return printBench(c, out, into)
	case archive.ShardedConfigs:
		if runs, err = workflow.MergeConfigs(shards, into); err != nil {
			return usageError{err}
		}
	case archive.ShardedLoad:
		run, err := workflow.MergeLoad(shards, into)
		if err != nil {
			return usageError{err}
		}
		runs = append(runs, run)
	default:
		return usagef("%s is a share of %s, which this kvtune does not know: use a newer one", shards[0].Dir(), kind)
	}
	return printRuns(c, reportRuns(runs...), nil, s.files())
}
