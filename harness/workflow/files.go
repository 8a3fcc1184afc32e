package workflow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/profile"
	"kvtune/harness/workload"
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
	steps, _, err := folder.ReadSteps(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return &profile.Output{Result: result, Records: records, Series: series, Steps: steps}, nil
}

// ReadRuns reads the run that path names (one of its files, or a folder: its first), and after it the probes that lie
// in the same folder, that of the KV cache's capacity last.
func ReadRuns(path string) ([]*profile.Output, error) {
	folder, names, err := runsIn(path)
	if err != nil {
		return nil, err
	}
	probes := slices.DeleteFunc(slices.Clone(names[1:]), func(n string) bool { return !isProbes(n) })
	return readAll(folder, append(names[:1:1], probes...))
}

// OtherRuns names the runs of a folder that [ReadRuns] passes over.
func OtherRuns(path string) []string {
	_, names, err := runsIn(path)
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(names[1:], isProbes)
}

// isProbes tells the runs that say what a server is from those that say how it serves a load.
func isProbes(name string) bool { return name == probesName || name == capacityName }

// runsIn names the runs of the folder that path is or lies in: the probes last, and no other run than the one whose
// file it is.
func runsIn(path string) (folder *archive.Folder, names []string, err error) {
	named, err := archive.Open(path)
	if err != nil {
		return nil, nil, err
	}
	if folder, err = archive.Open(named.Dir()); err != nil {
		return nil, nil, err
	}
	names = slices.DeleteFunc(named.Results(), isProbes)
	for _, in := range []*archive.Folder{named, folder} { // a file of probes comes before others
		for _, n := range []string{probesName, capacityName} {
			if slices.Contains(in.Results(), n) && !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
	}
	if len(names) == 0 {
		return nil, nil, fmt.Errorf("%s holds no result; `kvtune profile --output-dir %s` makes one", path, named.Dir())
	}
	return folder, names, nil
}

func readAll(folder *archive.Folder, names []string) ([]*profile.Output, error) {
	runs := make([]*profile.Output, len(names))
	for i, n := range names {
		var err error
		if runs[i], err = ReadRun(folder, n); err != nil {
			return nil, err
		}
	}
	return runs, nil
}

// ReadFit reads what a cost model can be fitted from: results with their requests and the probes beside them (all
// results of a folder, none twice), bare requests files - also what a killed process left of one -, the result files of
// other load generators, and engine steps: a file of them, or the folder whose launched servers logged some. What has
// no result beside it says nothing of its server, which is taken to have vLLM's defaults, and where it is steps,
// synchronous scheduling. Steps of runs whose requests share
// prefixes and decode are left out: their KV usage counts the blocks of a prefix once.
func ReadFit(results, steps []string, model spec.Model, gpu spec.GPU) ([]fit.Run, error) {
	var runs []fit.Run
	bare := func(path string, read func(*fit.Run) error) error {
		basis, err := OnPaper(harness.Config{}, model, gpu, nil)
		if err != nil {
			return err
		}
		run := fit.Run{Name: filepath.Base(path), Args: basis.Server.Args, NumGPUBlocks: basis.Server.NumGPUBlocks}
		if err := read(&run); err != nil {
			return err
		}
		runs = append(runs, run)
		return nil
	}
	read := map[string]bool{}
	for _, path := range results {
		name, isRequests := strings.CutSuffix(strings.TrimSuffix(path, archive.PartialSuffix), archive.RequestsSuffix)
		if isRequests && !exists(name+archive.ResultSuffix) {
			err := bare(path, func(run *fit.Run) (err error) {
				run.Records, _, err = archive.Read(path, archive.ReadRequests)
				return err
			})
			if err != nil {
				return nil, err
			}
			continue
		}
		foreign, err := readForeign(path)
		if err == nil {
			for _, run := range foreign {
				err := bare(path, func(r *fit.Run) error {
					r.Records = run.Records
					return nil
				})
				if err != nil {
					return nil, err
				}
			}
			continue
		}
		if !errors.Is(err, workload.ErrNotForeign) {
			return nil, err
		}
		folder, names, err := runsIn(path)
		if err != nil {
			return nil, err
		}
		names = slices.DeleteFunc(names, func(n string) bool {
			file := folder.Path(n)
			twice := read[file]
			read[file] = true
			return twice
		})
		outs, err := readAll(folder, names)
		if err != nil {
			return nil, err
		}
		runs = append(runs, fitRuns(outs, model, gpu)...)
	}
	for _, path := range steps {
		logged, err := loggedSteps(path, model, gpu)
		if err != nil {
			return nil, err
		}
		if len(logged) > 0 {
			runs = append(runs, logged...)
			continue
		}
		err = bare(path, func(run *fit.Run) (err error) {
			off := false // unless the times say otherwise: nothing else in the file does
			run.Args.AsyncScheduling = &off
			run.Steps, _, err = archive.Read(path, archive.ReadSteps)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return runs, nil
}

// readForeign reads another load generator's result file.
func readForeign(path string) ([]workload.Foreign, error) {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() {
		return nil, workload.ErrNotForeign // for who reads archives to say
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return workload.ReadForeign(path, f)
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
		runs[i] = fit.Run{Name: out.Result.Name, Records: out.Records, Args: server.Args,
			NumGPUBlocks: server.NumGPUBlocks, DecodesOnly: out.Result.Name == capacityName}
	}
	return runs
}

// loggedSteps are the engine steps of a folder's runs, or of the run that a file of steps lies beside, with the
// settings of their servers; none where path is a file without a result.
func loggedSteps(path string, model spec.Model, gpu spec.GPU) ([]fit.Run, error) {
	name, isSteps := strings.CutSuffix(path, archive.StepsSuffix)
	info, err := os.Stat(path)
	if err != nil || !info.IsDir() && !(isSteps && exists(name+archive.ResultSuffix)) {
		return nil, err
	}
	if isSteps {
		path = name + archive.ResultSuffix
	}
	named, err := archive.Open(path)
	if err != nil {
		return nil, err
	}
	outs, err := readAll(named, named.Results())
	if err != nil {
		return nil, err
	}
	var runs []fit.Run
	for i, run := range fitRuns(outs, model, gpu) {
		decodes := false
		for k := range run.Records {
			if r := &run.Records[k]; r.SharedPrefixTokens > 0 {
				run.PromptsShare, decodes = true, decodes || r.AskedTokens > 1
			}
		}
		if run.Steps = outs[i].Steps; len(run.Steps) > 0 && !decodes {
			run.Name, run.Records = run.Name+archive.StepsSuffix, nil
			runs = append(runs, run)
		}
	}
	if len(runs) == 0 {
		return nil, fmt.Errorf("%s holds no engine steps that a model can be fitted from: servers that kvtune launches "+
			"log them (kvtune profile --launch --probes), and of requests that share prefixes and decode they do not tell "+
			"the context", path)
	}
	return runs, nil
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

// WriteReport draws the pictures, where there is a run to draw, and writes the page.
func WriteReport(folder *archive.Folder, in report.Input) error {
	err := folder.WriteFile(ReportFile, func(w io.Writer) error { return report.HTML(w, in) })
	if len(in.Runs) == 0 {
		return err
	}
	return errors.Join(WritePicture(folder, in), err)
}

// WritePicture draws [PictureFile], and the same as SVG beside it.
func WritePicture(folder *archive.Folder, in report.Input) error {
	return errors.Join(
		folder.WriteFile(PictureFile, func(w io.Writer) error { return report.Picture(w, in, "png") }),
		folder.WriteFile(vectorFile, func(w io.Writer) error { return report.Picture(w, in, "svg") }),
	)
}
