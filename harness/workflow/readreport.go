package workflow

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/profile"
	"kvtune/planner"
	"kvtune/planner/analysis"
	"kvtune/planner/cost"
	"kvtune/planner/report"
)

// ReadReport makes a report of what lies in an archive: the runs with their analyses, the plans, the cost model, a
// kernel benchmark. path is a folder, or a file of one run or benchmark, which is then shown alone. A run without an
// analysis, and every run where something is said of its server, is
// analysed as far as the archive and what is known of its server allow. What is not there is not shown; an archive that
// holds neither a run nor plans nor a benchmark is an error.
func ReadReport(ctx context.Context, path string, server Server) (report.Input, error) {
	in := report.Input{Title: "kvtune report on " + filepath.Base(path)}
	named, err := archive.Open(path)
	if err != nil {
		return in, err
	}
	folder, err := archive.Open(named.Dir())
	if err != nil {
		return in, err
	}
	var probes *profile.Output // what cost models are fitted on
	for _, name := range named.Results() {
		if name == probesName && len(named.Results()) > 1 {
			if probes, err = ReadRun(folder, name); err != nil {
				return in, err
			}
			continue
		}
		run, err := readReportRun(folder, name)
		if err != nil {
			return in, err
		}
		in.Runs = append(in.Runs, *run)
	}
	// In the order in which they were taken, those of unknown time last.
	slices.SortStableFunc(in.Runs, func(a, b report.Run) int {
		x, y := a.Result.Conditions.Started, b.Result.Conditions.Started
		if x.IsZero() || y.IsZero() {
			return cmp.Compare(btoi(x.IsZero()), btoi(y.IsZero()))
		}
		return x.Compare(y)
	})
	if benches := named.Benches(); len(benches) > 0 {
		if in.Kernels, _, err = archive.ReadBench(folder.Path(benches[0] + archive.BenchSuffix)); err != nil {
			return in, err
		}
	}
	if whole := filepath.Clean(path) == filepath.Clean(named.Dir()); whole {
		if err := readPlansAndCost(folder, &in); err != nil {
			return in, err
		}
	}
	if len(in.Runs) == 0 && in.Kernels == nil && in.Plans == nil {
		return in, fmt.Errorf("%s holds no run, no plan and no kernel benchmark to report on", path)
	}
	if server.Kernels != nil {
		in.Kernels = server.Kernels
	}
	if server.Cost != nil {
		in.Cost = server.Cost
	}
	server.analyze(ctx, folder, &in, probes)
	in.Verdict = reportVerdict(&in)
	in.Commands, in.Files = reportCommands(&in), folder.Files()
	return in, nil
}

// WriteReportBeside writes page, pictures and the analyses that were made for them into the archive that path is or
// lies in, and names the files.
func WriteReportBeside(path string, in report.Input) ([]string, error) {
	named, err := archive.Open(path)
	if err != nil {
		return nil, err
	}
	folder, err := archive.Open(named.Dir())
	if err != nil {
		return nil, err
	}
	files := ReportFiles(folder, in)
	for i := range in.Runs {
		if run := &in.Runs[i]; run.NewAnalysis {
			name := analysisOf(run.Result.Name)
			if err := folder.WriteJSON(name, run.Analysis); err != nil {
				return nil, err
			}
			files = append(files, folder.Path(name))
		}
	}
	return files, WriteReport(folder, in)
}

// analysisOf is the file of a run's analysis.
func analysisOf(run string) string { return run + "_analysis.json" }

// ReportFiles are the files that [WriteReport] writes.
func ReportFiles(folder *archive.Folder, in report.Input) []string {
	files := []string{folder.Path(ReportFile)}
	if len(in.Runs) > 0 {
		files = append(files, folder.Path(PictureFile), folder.Path(vectorFile))
	}
	return files
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// readReportRun reads a run with its steps and its analysis, where these are there.
func readReportRun(folder *archive.Folder, name string) (*report.Run, error) {
	out, err := ReadRun(folder, name)
	if err != nil {
		return nil, err
	}
	run := &report.Run{Result: out.Result, Records: out.Records, Series: out.Series}
	if run.Steps, _, err = folder.ReadSteps(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, file := range []string{analysisOf(name), AnalysisFile} {
		var a analysis.Report
		err := archive.ReadJSON(folder.Path(file), analysis.Schema, &a)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, err
		case a.Result == name:
			run.Analysis = &a
			return run, nil
		}
	}
	return run, nil
}

// readPlansAndCost reads what a workflow or verify left beside the runs.
func readPlansAndCost(folder *archive.Folder, in *report.Input) error {
	data, err := archive.ReadFile(folder.Path(PlansFile))
	if err == nil {
		in.Plans, err = planner.ReadPlans(bytes.NewReader(data))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var m cost.Model
	err = archive.ReadJSON(folder.Path(CostFile), cost.Schema, &m)
	if err == nil {
		in.Cost = &m
	} else if !errors.Is(err, fs.ErrNotExist) { // another version's: the rest of the archive says as much without it
		in.Notes = append(in.Notes, "the cost model is not shown: "+err.Error())
	}
	return nil
}

// reportVerdict is what the most telling part of an archive says.
func reportVerdict(in *report.Input) string {
	if in.Plans != nil {
		return report.PlansVerdict(in.Plans)
	}
	if len(in.Runs) == 1 && in.Runs[0].Analysis != nil {
		return report.AnalysisVerdict(&in.Runs[0])
	}
	if len(in.Runs) > 0 {
		return report.RunsVerdict(in.Runs)
	}
	return report.BenchVerdict(in.Kernels)
}

// reportCommands are the command lines that the parts were made with.
func reportCommands(in *report.Input) (commands []string) {
	add := func(c harness.Conditions) {
		if line := report.ShellLine(c.Command); len(c.Command) > 0 && !slices.Contains(commands, line) {
			commands = append(commands, line)
		}
	}
	for _, r := range in.Runs {
		add(r.Result.Conditions)
	}
	if in.Kernels != nil {
		add(in.Kernels.Conditions)
	}
	return commands
}
