// Package fit turns what a run left behind, the token times of its requests and its engine steps where they were
// logged, into a cost model, without knowing how the run was made.
//
// Read [FromRuns], then [Observations]: which steps ran between two moments follows from the requests themselves,
// because every running request gets one token per step and the token budget decides how prompts are cut.
package fit

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"kvtune/harness"
	"kvtune/harness/workload"
	"kvtune/planner/cost"
)

// Run is one measured or simulated run on an endpoint.
type Run struct {
	Name string
	// Records are the requests, of every phase; those of several probes may share a timeline or start at zero each.
	Records []workload.Record
	// Steps are engine steps, if any, in order. Those of a server's log (T below 0) must be of synchronous scheduling.
	Steps []harness.StepRecord
	// PromptsShare is set when requests share prefixes: a logged step then hides how much of a prompt was there, and only
	// steps without prompts are used.
	PromptsShare bool
	// DecodesOnly leaves out every step with prompts: of requests that were sent at one moment to fill the KV cache, whose
	// prompts fill step upon step at one mix that no server sees.
	DecodesOnly bool
	// Args are the settings in force; MaxNumBatchedTokens must be set, BlockSize too where there are Steps.
	Args harness.EngineArgs
	// NumGPUBlocks is the size of the KV cache, needed to read contexts out of the steps' KV usage; 0 is unknown.
	NumGPUBlocks int
}

// Options tune FromRuns; the zero value is right.
type Options struct {
	Seed uint64
}

// FromRuns fits a cost model to runs of one server: the prior corrected by every moment of the runs whose engine steps
// are unambiguous. Runs with another block size than the first one's tell what attention takes at theirs. It fails when
// the runs show no such moment, and says what to measure; and with a *AsyncLogError where logged steps are no steps'
// times.
func FromRuns(ctx context.Context, prior *cost.Model, runs []Run, opt Options) (*cost.Model, error) {
	type sized struct {
		size int
		name string
		all  []cost.Observation
	}
	var others []sized // runs of the server with other block sizes
	var all []cost.Observation
	var lines []*timeline
	var names []string
	for _, run := range runs {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		names = append(names, run.Name)
		if err := synchronous(prior, run); err != nil {
			return nil, err
		}
		o, t, err := observe(run)
		if err != nil {
			return nil, err
		}
		if size := run.Args.BlockSize; size != runs[0].Args.BlockSize {
			others = append(others, sized{size, run.Name, o})
			continue
		}
		all, lines = append(all, o...), append(lines, t...)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no engine step can be told from the requests of %s; measure with fewer interruptions "+
			"(profiling types prefill and decode, or the probes), streaming one token per event",
			strings.Join(names, ", "))
	}
	m, err := cost.Fit(prior, all, cost.FitOptions{Seed: opt.Seed})
	if err != nil {
		return nil, fmt.Errorf("fitting %s: %w", strings.Join(names, ", "), err)
	}
	m.BlockSize = runs[0].Args.BlockSize
	m = frontEnd(m, lines)
	for _, o := range others {
		m = m.Probe(o.size, o.all, o.name)
	}
	return m, nil
}

// observe gives the step times that a run shows, in the order of its records and then of its steps.
func observe(run Run) ([]cost.Observation, []*timeline, error) {
	if run.Args.MaxNumBatchedTokens <= 0 {
		return nil, nil, fmt.Errorf("run %s: max_num_batched_tokens is not known; it is needed to tell how prompts were cut",
			run.Name)
	}
	if slices.ContainsFunc(run.Records, func(r workload.Record) bool { return r.EndsOnly }) {
		return nil, nil, fmt.Errorf("run %s: of its requests only the first and the last token are kept; the times of all "+
			"are needed to tell its steps", run.Name)
	}
	var out []cost.Observation
	var lines []*timeline
	for _, records := range timelines(run.Records) {
		t := newTimeline(records, run.Args)
		lines = append(lines, t)
		out = append(out, t.observations(run.Name)...)
	}
	if run.DecodesOnly {
		out = slices.DeleteFunc(out, func(o cost.Observation) bool {
			return slices.ContainsFunc(o.Steps, func(s cost.Step) bool { return s.PrefillTokens > 0 })
		})
		lines = nil // nor do their arrivals say what the front end takes
	}
	if len(run.Steps) > 0 {
		out = append(out, fromSteps(run)...)
	}
	graph := cost.MaxGraph(run.Args)
	if graph == 0 {
		graph = -1
	}
	for i := range out {
		out[i].MaxGraph = graph
	}
	return out, lines, nil
}

// timelines splits records by probe, in order of appearance: probes run one after the other and may each start at zero.
func timelines(records []workload.Record) [][]workload.Record {
	index := map[string]int{}
	var out [][]workload.Record
	for _, r := range records {
		i, ok := index[r.Probe]
		if !ok {
			i = len(out)
			index[r.Probe] = i
			out = append(out, nil)
		}
		out[i] = append(out[i], r)
	}
	return out
}

// An AsyncLogError is a log of engine steps under asynchronous scheduling: what it calls elapsed is how long the engine
// waited for the step before, less what it did meanwhile, and not how long a step took.
type AsyncLogError struct {
	Run string
	// Short of Steps took less than the device can; both are 0 where the settings say it.
	Short, Steps int
}

func (e *AsyncLogError) Error() string {
	how := "its server had asynchronous scheduling"
	if e.Steps > 0 {
		how = fmt.Sprintf("%d of its %d steps took less than the device can, as they seem to under asynchronous scheduling",
			e.Short, e.Steps)
	}
	return fmt.Sprintf("%s: %s: the log's elapsed time is that of the engine's loop then, not of a step; log a "+
		"server with --no-async-scheduling, or fit from the times of its requests' tokens (--profiling-results)", e.Run, how)
}

// synchronous refuses a log of steps under asynchronous scheduling, which the settings say, or, where they are not
// known, steps that are faster than the device can be: the loop does not wait for the first one after a pause.
func synchronous(prior *cost.Model, run Run) error {
	if !slices.ContainsFunc(run.Steps, func(s harness.StepRecord) bool { return s.T < 0 }) {
		return nil // of a simulation
	}
	if async := run.Args.AsyncScheduling; async != nil && *async {
		return &AsyncLogError{Run: run.Name}
	}
	if prior.Limits.Guess {
		return nil
	}
	const share = 0.05
	e := &AsyncLogError{Run: run.Name, Steps: len(run.Steps)}
	for _, s := range run.Steps {
		step := cost.Step{PrefillSeqs: s.ContextRequests, PrefillTokens: s.ContextTokens, MaxChunk: s.ContextTokens,
			DecodeSeqs: s.GenerationRequests}
		compute, memory := prior.Roofline(step)
		if _, launch := prior.HostTime(step); s.Elapsed+launch < max(compute, memory) {
			e.Short++
		}
	}
	if float64(e.Short) > share*float64(e.Steps) {
		return e
	}
	return nil
}

// idle is more than long enough for a device to cool down.
const idle = 10 * time.Second

// fromSteps reads logged steps of synchronous scheduling. They carry no context lengths: those of decodes follow from
// the KV blocks in use before the step, and prompts are used only where they cannot have a history (one prompt, none in
// the step before). With prefixes shared between running requests the KV usage counts them once and contexts come out
// too short.
func fromSteps(run Run) []cost.Observation {
	var out []cost.Observation
	slots := float64(run.NumGPUBlocks-1) * float64(run.Args.BlockSize)
	usage, contextBefore := 0.0, false
	var heat cost.Heat
	var now time.Duration
	for _, s := range run.Steps {
		before, continued := usage, contextBefore
		if usage == 0 {
			now += idle // nothing was running, for how long the log does not say
		}
		all := cost.Step{PrefillTokens: s.ContextTokens, DecodeSeqs: s.GenerationRequests}
		level := heat.During(all, now, s.Elapsed)
		now += s.Elapsed
		usage, contextBefore = s.KVUsage, s.ContextRequests > 0
		if before < 0 || slots <= 0 || s.Elapsed <= 0 || s.ContextRequests > 1 ||
			s.ContextRequests == 1 && (continued || run.PromptsShare) ||
			s.GenerationTokens != s.GenerationRequests || s.Preemptions > 0 {
			continue
		}
		step := cost.Step{
			PrefillSeqs: s.ContextRequests, PrefillTokens: s.ContextTokens,
			PrefillAttention: float64(s.ContextTokens) * float64(s.ContextTokens) / 2,
			MaxChunk:         s.ContextTokens,
			Heat:             level,
			DecodeSeqs:       s.GenerationRequests,
		}
		if step.DecodeSeqs > 0 {
			// A request's last block is half empty on average.
			step.DecodeContext = max(step.DecodeSeqs, int(before*slots)-step.DecodeSeqs*run.Args.BlockSize/2)
		}
		out = append(out, cost.Observation{
			Steps: []cost.Step{step}, Time: s.Elapsed, Logged: s.T < 0, Source: run.Name,
		})
	}
	return out
}
