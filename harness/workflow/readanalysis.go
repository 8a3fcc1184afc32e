package workflow

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/profile"
	"kvtune/planner/analysis"
	"kvtune/planner/cost"
	"kvtune/planner/report"
	"kvtune/planner/spec"
)

// Server is what an archive may not say of the server its runs were taken on; what is zero is what the archive says.
type Server struct {
	Model, GPU string
	// Cost is a model of its steps, Kernels a benchmark of its device, whose ceilings hold for it.
	Cost    *cost.Model
	Kernels *harness.Bench
}

// analyze says what binds the runs of an archive that hold no analysis, with the cost model that was given, the
// archive's where that is of the run's model and GPU, else with one that is fitted from the archive's runs of both.
// Without the model's shape and the GPU there is none, and what then cannot be told is not observed; the notes name
// what is missing. probes is nil where the archive has none.
func (s Server) analyze(ctx context.Context, folder *archive.Folder, in *report.Input, probes *profile.Output) {
	fitted := map[served]*cost.Model{}
	if in.Cost != nil {
		fitted[served{in.Cost.Model, in.Cost.GPU, in.Cost.Tensor}] = in.Cost
	}
	var slos []harness.SLO
	if in.Plans != nil {
		for _, text := range in.Plans.SLOs {
			if slo, err := harness.ParseSLO(text); err == nil { // one of a later version is not judged
				slos = append(slos, slo)
			}
		}
	}
	for i := range in.Runs {
		run := &in.Runs[i]
		if run.Analysis != nil && s == (Server{}) || len(run.Records) == 0 {
			continue
		}
		run.NewAnalysis = true
		model, gpu, err := s.shapes(run, in.Cost)
		var m *cost.Model
		if err == nil {
			of := servedBy(run, model, gpu)
			if m = cmp.Or(s.Cost, fitted[of]); m == nil {
				m, err = s.fit(ctx, in, probes, of)
				fitted[of] = m
			}
		}
		if err == nil {
			basis := BasisOf(run.Result, model, gpu, m)
			basis.SLOs, basis.Kernels, basis.File = slos, in.Kernels, folder.Path(analysisOf(run.Result.Name))
			run.Analysis = basis.Analyze(ctx, run)
			in.Cost = cmp.Or(in.Cost, m)
			continue
		}
		server := run.Result.Conditions.Server
		run.Analysis = analysis.Analyze(ctx, analysis.Input{Result: run.Result, Records: run.Records, Steps: run.Steps,
			Series: run.Series, SLOs: slos, Server: analysis.Server{Args: server.Args, NumGPUBlocks: server.NumGPUBlocks}})
		run.Analysis.Notes = append(run.Analysis.Notes, "there is no cost model: "+err.Error())
	}
}

// served is what a cost model is of.
type served struct {
	model, gpu string
	tensor     int
}

func servedBy(run *report.Run, model spec.Model, gpu spec.GPU) served {
	return served{model.Name, gpu.Name, max(1, run.Result.Conditions.Server.Args.TensorParallelSize)}
}

// shapes are the model and the GPU of a run's server.
func (s Server) shapes(run *report.Run, m *cost.Model) (model spec.Model, gpu spec.GPU, err error) {
	server := run.Result.Conditions.Server
	if model, err = spec.FindModel(cmp.Or(s.Model, server.Model, run.Result.Config.Model)); err != nil {
		return model, gpu, fmt.Errorf("%w (kvtune report --model says which it is)", err)
	}
	name := cmp.Or(s.GPU, server.GPU)
	if name == "" && m != nil {
		name = m.GPU
	}
	if name == "" {
		return model, gpu, errors.New("the archive does not name the server's GPU (kvtune report --gpu says which it is)")
	}
	if gpu, err = spec.FindGPU(name); err != nil {
		err = fmt.Errorf("%w (kvtune report --gpu says which it is)", err)
	}
	return model, gpu, err
}

// fit corrects the prior by all runs of the archive that the model is of.
func (s Server) fit(ctx context.Context, in *report.Input, probes *profile.Output, of served) (*cost.Model, error) {
	var model spec.Model
	var gpu spec.GPU
	var outs []*profile.Output
	add := func(run *report.Run) {
		if m, g, err := s.shapes(run, in.Cost); err == nil && servedBy(run, m, g) == of {
			model, gpu = m, g
			outs = append(outs, &profile.Output{Result: run.Result, Records: run.Records, Series: run.Series, Steps: run.Steps})
		}
	}
	for i := range in.Runs {
		add(&in.Runs[i])
	}
	if probes != nil {
		add(&report.Run{Result: probes.Result, Records: probes.Records, Series: probes.Series, Steps: probes.Steps})
	}
	return FitFrom(ctx, model, gpu, outs)
}
