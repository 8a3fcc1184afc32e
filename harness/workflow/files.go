package workflow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/profile"
	"kvtune/planner/cost"
	"kvtune/planner/fit"
	"kvtune/planner/report"
	"kvtune/planner/spec"
)

// ReadRun reads a run back from its files. A result alone is enough; requests and series that are not there are empty.
func ReadRun(folder *archive.Folder, name string) (*profile.Output, error) {
	result, err := folder.Result(name)
	if err != nil {
		return nil, err
	}
	records, partial, err := folder.ReadRequests(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if partial && !result.Partial {
		result.Partial, result.Why = true, "the requests file is cut short"
	}
	series, _, err := folder.ReadSeries(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return &profile.Output{Result: result, Records: records, Series: series}, nil
}

// ReadRuns reads the run that path names (one of its files, or a folder: its first), and after it the probes that lie in
// the same folder.
func ReadRuns(path string) ([]*profile.Output, error) {
	named, err := archive.Open(path)
	if err != nil {
		return nil, err
	}
	folder, err := archive.Open(named.Dir())
	if err != nil {
		return nil, err
	}
	var names []string
	for _, n := range named.Results() {
		if n != probesName {
			names = append(names, n)
			break
		}
	}
	for _, n := range folder.Results() {
		if n == probesName {
			names = append(names, n)
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%s holds no result; `kvtune profile --output-dir %s` makes one", path, named.Dir())
	}
	runs := make([]*profile.Output, len(names))
	for i, n := range names {
		if runs[i], err = ReadRun(folder, n); err != nil {
			return nil, err
		}
	}
	return runs, nil
}

// ReadFit reads what a cost model can be fitted from: results with their requests, bare requests files, and engine steps.
func ReadFit(results, steps []string, model spec.Model, gpu spec.GPU) ([]fit.Run, error) {
	var runs []fit.Run
	for _, path := range results {
		if strings.HasSuffix(path, archive.RequestsSuffix) {
			if name := strings.TrimSuffix(path, archive.RequestsSuffix) + archive.ResultSuffix; !exists(name) {
				// A requests file alone is a profile on vLLM's defaults.
				f, err := os.Open(path)
				if err != nil {
					return nil, err
				}
				records, _, err := archive.ReadRequests(f)
				if err = errors.Join(err, f.Close()); err != nil {
					return nil, fmt.Errorf("%s: %w", path, err)
				}
				basis, err := OnPaper(harness.Config{}, model, gpu, nil)
				if err != nil {
					return nil, err
				}
				runs = append(runs, fit.Run{Name: filepath.Base(path), Records: records, Args: basis.Server.Args,
					NumGPUBlocks: basis.Server.NumGPUBlocks})
				continue
			}
		}
		outs, err := ReadRuns(path)
		if err != nil {
			return nil, err
		}
		runs = append(runs, fitRuns(outs, model, gpu)...)
	}
	for _, path := range steps {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		rows, _, err := archive.ReadSteps(f)
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		basis, err := OnPaper(harness.Config{}, model, gpu, nil)
		if err != nil {
			return nil, err
		}
		runs = append(runs, fit.Run{Name: filepath.Base(path), Steps: rows, Args: basis.Server.Args,
			NumGPUBlocks: basis.Server.NumGPUBlocks})
	}
	return runs, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Fit is the cost model of a GPU and model, corrected by what was measured.
func Fit(ctx context.Context, model spec.Model, gpu spec.GPU, runs []fit.Run) (*cost.Model, error) {
	return fit.FromRuns(ctx, cost.Prior(gpu, model, runs[0].Args), runs, fit.Options{})
}

func fitRuns(outs []*profile.Output, model spec.Model, gpu spec.GPU) []fit.Run {
	runs := make([]fit.Run, len(outs))
	for i, out := range outs {
		server := BasisOf(out.Result, model, gpu, nil).Server
		runs[i] = fit.Run{Name: out.Result.Name, Records: out.Records, Args: server.Args, NumGPUBlocks: server.NumGPUBlocks}
	}
	return runs
}

// FitFrom fits from runs that were measured or read back. Runs without requests leave the prior.
func FitFrom(ctx context.Context, model spec.Model, gpu spec.GPU, outs []*profile.Output) (*cost.Model, error) {
	runs := fitRuns(outs, model, gpu)
	for _, r := range runs {
		if len(r.Records) > 0 {
			return Fit(ctx, model, gpu, runs)
		}
	}
	return cost.Prior(gpu, model, runs[0].Args), nil
}

// WriteRun keeps a simulated run: the same files as a profile's, and its steps.
func WriteRun(folder *archive.Folder, run *report.Run) error {
	name := run.Result.Name
	return errors.Join(
		folder.WriteRequests(name, run.Records),
		folder.WriteSteps(name, run.Steps),
		folder.WriteSeries(name, run.Series),
		folder.WriteHistograms(name, run.Result.Conditions.Started, profile.Histograms(run.Records)),
		folder.WriteResult(run.Result),
		folder.SetPart(name, archive.Done),
	)
}

// WriteReport draws the picture and writes the page.
func WriteReport(folder *archive.Folder, in report.Input) error {
	return errors.Join(
		WritePicture(folder, in),
		folder.WriteFile(ReportFile, func(w io.Writer) error { return report.HTML(w, in) }),
	)
}

// WritePicture draws [PictureFile].
func WritePicture(folder *archive.Folder, in report.Input) error {
	return folder.WriteFile(PictureFile, func(w io.Writer) error { return report.Picture(w, in, "png") })
}
