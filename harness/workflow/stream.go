package workflow

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/profile"
	"kvtune/harness/workload"
	"kvtune/planner/cost"
	"kvtune/planner/report"
	"kvtune/planner/sim"
)

// Stream is a simulation whose requests are made, served and written one after the other, in memory that does not grow
// with their number.
type Stream struct {
	// Command and Tool become those of the result's conditions.
	Command []string
	Tool    string

	basis    *Basis
	requests *workload.Stream
	notes    []string
}

// Stream is the basis's workload as a Stream; nil where it has fewer than least requests, where its requests wait for
// others, or where an objective is about single requests or those of a class: then [Basis.Simulate] is for it.
func (b *Basis) Stream(least int) (*Stream, error) {
	single := func(s harness.SLO) bool { return s.Class != "" || s.Metric == harness.MetricGoodput }
	if slices.ContainsFunc(b.SLOs, single) {
		return nil, nil
	}
	requests, notes, err := profile.Stream(b.Config, b.Info, least)
	if err != nil || requests == nil {
		return nil, err
	}
	return &Stream{basis: b, requests: requests, notes: notes}, nil
}

// Expected is how many requests there will be, about.
func (s *Stream) Expected() int { return s.requests.Expected }

// Run simulates and writes the files of the run to a folder: those of [WriteRun], but that each line of the requests
// file, in the order in which they ended, has the first and the last token only, and that no steps are kept. onRequest,
// unless nil, is told how many requests have ended. The run has no records.
func (s *Stream) Run(ctx context.Context, folder *archive.Folder, onRequest func(ended int)) (*report.Run, error) {
	b := s.basis
	cfg, err := b.Server.Config(b.Server.Args)
	if err != nil {
		return nil, err
	}
	timer := &cost.Watched{Model: b.Server.Cost.For(b.Server.Args)}
	meter := harness.NewMeter()
	name, ended := b.Config.Name, 0
	var out *sim.Outcome
	err = folder.StreamRequests(name, func(add func(*workload.Record) error) (err error) {
		out, err = new(sim.Runner).Stream(ctx, cfg, timer, s.requests.Requests, func(r *workload.Record) error {
			meter.Add(r)
			if ended++; onRequest != nil {
				onRequest(ended)
			}
			return add(ends(r))
		}, sim.Options{Series: true})
		return err
	})
	if err != nil {
		return nil, err
	}
	notes := slices.Concat(s.notes, s.requests.Notes(),
		[]string{fmt.Sprintf("%d requests are too many to keep: of each the "+
			"requests file has the first and the last token, in the order in which they ended; engine steps, the decode "+
			"latency and what binds are left out; percentiles are exact to 3 digits", ended)})
	run := &report.Run{Result: b.simulated(meter.Metrics(), out, timer, notes), Series: out.Series}
	run.Result.Conditions.Command, run.Result.Conditions.Tool = s.Command, s.Tool
	return run, errors.Join(
		folder.WriteSteps(name, nil), // in place of an earlier run's
		folder.WriteSeries(name, run.Series),
		folder.WriteHistograms(name, run.Result.Conditions.Started, meter.Histograms()),
		folder.WriteResult(run.Result),
		folder.SetPart(name, archive.Done),
	)
}

// ends keeps the first and the last token event of a record, in place.
func ends(r *workload.Record) *workload.Record {
	n := len(r.Tokens)
	if n <= 2 {
		return r
	}
	behind := 0
	for _, e := range r.Tokens[1:] {
		behind += e.Tokens
	}
	r.Tokens[1] = workload.TokenEvent{At: r.Tokens[n-1].At, Tokens: behind}
	r.Tokens, r.EndsOnly = r.Tokens[:2], true
	return r
}
