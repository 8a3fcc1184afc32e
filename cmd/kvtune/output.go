package main

import (
	"encoding/json"
	"io"

	"github.com/urfave/cli/v2"

	"kvtune/harness"
	"kvtune/harness/compare"
	"kvtune/harness/telemetry"
	"kvtune/planner"
	"kvtune/planner/analysis"
	"kvtune/planner/cost"
	"kvtune/planner/report"
)

// outputSchema is the schema of what --format json prints.
const outputSchema = "kvtune.output/1"

// output is what a command prints with --format json: one object, the same for every command. A part that a command has
// nothing for is left out.
type output struct {
	// Schema is "kvtune.output/1". Later versions may add fields; a new major version may change them.
	Schema string `json:"schema"`
	// Command is the command's name.
	Command string `json:"command"`
	// Verdict is the sentence that the text begins with. It says SIMULATED where the figures do not come from a server.
	Verdict string `json:"verdict"`
	// Warnings are what a reader must know before believing the numbers, the worst first.
	Warnings []string `json:"warnings,omitempty"`
	// Runs are what was measured or simulated (profile, simulate, analyze, verify, workflow).
	Runs []runOutput `json:"runs,omitempty"`
	// SLOs say which objectives the runs kept (profile, verify).
	SLOs []sloOutput `json:"slos,omitempty"`
	// Search is the search for the highest rate (profile --rate R..R2 --slo).
	Search *searchOutput `json:"search,omitempty"`
	// DryRun is what would be measured (profile --dry-run).
	DryRun []dryRunOutput `json:"dry_run,omitempty"`
	// Cost is the step-time model (fit, workflow).
	Cost *cost.Model `json:"cost,omitempty"`
	// Plans are the plans with what was predicted and, where they were verified, measured (plan, verify, workflow).
	Plans *planner.Plans `json:"plans,omitempty"`
	// NotVerified says which plans were not measured, and why (verify, workflow).
	NotVerified []string `json:"not_verified,omitempty"`
	// Sweep is the parameter sweep (plan --generate-parameter-sweep).
	Sweep *planner.SweepResult `json:"sweep,omitempty"`
	// Export is the first plan in the form that --export names (plan).
	Export string `json:"export,omitempty"`
	// Kernels is a kernel benchmark (bench, workflow --bench).
	Kernels *harness.Bench `json:"kernels,omitempty"`
	// Comparison is two sides compared (compare).
	Comparison *compare.Report `json:"comparison,omitempty"`
	// Environment is the machine, and what makes it unfit to measure (env).
	Environment *telemetry.Environment `json:"environment,omitempty"`
	// Trace is an imported log (import).
	Trace *traceOutput `json:"trace,omitempty"`
	// Server is the simulated server that now listens (serve).
	Server *serverOutput `json:"server,omitempty"`
	// Repeat is the command line that repeats the run (workflow).
	Repeat []string `json:"repeat,omitempty"`
	// Files are the files written.
	Files []string `json:"files,omitempty"`
}

// runOutput is a run.
type runOutput struct {
	Result *harness.Result `json:"result"`
	// Analysis is what binds the run, where it was analysed.
	Analysis *analysis.Report `json:"analysis,omitempty"`
}

// sloOutput is an objective and a run.
type sloOutput struct {
	// Run is the run's name, or the strategy of the plan that was run.
	Run string `json:"run"`
	// SLO is the objective, such as "p99 TTFT <= 200ms".
	SLO   string   `json:"slo"`
	State sloState `json:"state"`
	// Why says what was measured.
	Why string `json:"why,omitempty"`
}

type sloState string

const (
	sloKept        sloState = "kept"
	sloMissed      sloState = "missed"
	sloNotObserved sloState = "not observed"
)

// searchOutput is what a search for the highest rate found.
type searchOutput struct {
	// BestRate is the highest rate that kept the objectives in requests/s, null when none did.
	BestRate *float64 `json:"best_rate"`
	// MissedRate is the lowest rate above it that did not, null when the upper bound kept them.
	MissedRate *float64 `json:"missed_rate"`
	// Ended says why the search could not go on.
	Ended string `json:"ended,omitempty"`
}

// dryRunOutput is a profile that would be measured.
type dryRunOutput struct {
	Name string `json:"name"`
	// Requests is how many requests would be sent, the probes' not counted.
	Requests int           `json:"requests"`
	Probes   []probeOutput `json:"probes,omitempty"`
	// Foreseen is what will go wrong.
	Foreseen []analysis.Trouble `json:"foreseen,omitempty"`
	// Notes say what was changed to make the workload possible.
	Notes []string `json:"notes,omitempty"`
}

// probeOutput is a probe that would be measured.
type probeOutput struct {
	Name         string `json:"name"`
	Requests     int    `json:"requests"`
	PromptTokens int    `json:"prompt_tokens"`
	OutputTokens int    `json:"output_tokens"`
	// Expected is how long it takes with the device's prior.
	Expected float64 `json:"expected_s"`
	// Isolates says what it is for.
	Isolates string `json:"isolates"`
}

// traceOutput is what an imported log holds.
type traceOutput struct {
	Requests int `json:"requests"`
	// Duration is from the first request to the last.
	Duration float64 `json:"duration_s"`
	// PromptTokens and OutputTokens are means.
	PromptTokens float64 `json:"mean_prompt_tokens"`
	OutputTokens float64 `json:"mean_output_tokens"`
	// Conversations is how many different sessions there are.
	Conversations int `json:"conversations"`
}

// serverOutput is a simulated server.
type serverOutput struct {
	URL   string `json:"url"`
	Model string `json:"model"`
	GPU   string `json:"gpu"`
	// Version is the version of vLLM whose scheduler it has.
	Version string `json:"vllm_version"`
	// Settings are its settings under vLLM's names.
	Settings harness.EngineArgs `json:"settings"`
}

// outputOf is a report as output.
func outputOf(in report.Input) output {
	out := output{
		Verdict: in.Headline(), Warnings: in.Warnings(), Cost: in.Cost, Plans: in.Plans, Kernels: in.Kernels,
		Repeat: in.Commands, Files: in.Files,
	}
	for i := range in.Runs {
		out.Runs = append(out.Runs, runOutput{Result: in.Runs[i].Result, Analysis: in.Runs[i].Analysis})
	}
	return out
}

// show prints a command's results on stdout: out with --format json, else what text writes, with colours where that is
// a terminal.
func show(c *cli.Context, out output, text func(w io.Writer) error) error {
	if c.String("format") == "json" {
		out.Schema, out.Command = outputSchema, c.Command.Name
		e := json.NewEncoder(c.App.Writer)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		return e.Encode(out)
	}
	w := c.App.Writer
	if !coloured(w) {
		return text(w)
	}
	p := &painter{w: w}
	if err := text(p); err != nil {
		return err
	}
	return p.flush()
}
