// Package report turns results into what people look at: tables for a terminal ([Text] and its parts), one picture
// ([Picture]) and one self-contained page ([HTML]). Every one of them says "SIMULATED" where a figure does not come
// from a real server, shows each metric with its unit, and says "not observed" where there is none. The same input
// gives the same bytes.
package report

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"kvtune/harness"
	"kvtune/harness/workload"
	"kvtune/planner"
	"kvtune/planner/analysis"
	"kvtune/planner/cost"
)

// Run is one run with all that is known of it. Only Result is required.
type Run struct {
	Result   *harness.Result
	Records  []workload.Record
	Steps    []harness.StepRecord
	Series   []harness.Sample
	Analysis *analysis.Report
	// NewAnalysis says that Analysis was made for the report and is in no file yet.
	NewAnalysis bool
}

// Input is what a report is made of. Every part may be empty.
type Input struct {
	Title string
	// Verdict is the sentence that comes first.
	Verdict string
	Runs    []Run
	Plans   *planner.Plans
	// Sweep is a parameter sweep's best settings.
	Sweep *planner.SweepResult
	// Kernels is a kernel benchmark of this machine, always measured.
	Kernels *harness.Bench
	// Cost is the model behind the plans and the roofline's ceilings.
	Cost *cost.Model
	// Notes are what a reader must know beside what the parts say of themselves.
	Notes []string
	// Files are the files written, Page the page among them, Commands the command lines that repeat the report.
	Files    []string
	Page     string
	Commands []string
}

// Stamp is what marks every table, picture and page with figures of a simulated server.
const Stamp = "SIMULATED SERVER"

// panelStamp is the same on a chart.
const panelStamp = "SIMULATED"

const notObserved = "not observed"

// simulated reports whether any run, or the measurement of any plan, comes from a simulated server.
func (in *Input) simulated() bool {
	for _, r := range in.Runs {
		if r.Result.Origin != harness.OriginMeasured {
			return true
		}
	}
	if in.Plans != nil {
		for _, p := range in.Plans.Plans {
			if len(p.Measured) > 0 && p.MeasuredOrigin != harness.OriginMeasured {
				return true
			}
		}
	}
	return false
}

// Warnings are what a reader must know before believing the numbers, the worst first.
func (in *Input) Warnings() []string {
	var ws []string
	if in.simulated() {
		ws = append(ws, Stamp+": figures come from kvtune's embedded engine or simulator, not from a GPU.")
	}
	if in.Plans != nil {
		for _, t := range in.Plans.Foreseen {
			ws = append(ws, t.String())
		}
		ws = append(ws, in.Plans.Widened...)
	}
	for _, r := range in.Runs {
		res := r.Result
		if res.Partial {
			why := res.Why
			if why == "" {
				why = "the run ended early"
			}
			ws = append(ws, fmt.Sprintf("PARTIAL: %s: %s. Its figures cover only what was measured until then.",
				res.Name, strings.TrimSuffix(why, ".")))
		}
	}
	for _, r := range in.Runs {
		res := r.Result
		if why := res.Conditions.GeneratorLimited; why != "" {
			ws = append(ws, fmt.Sprintf("GENERATOR-LIMITED: %s: %s. Its figures are the load generator's, not the server's.",
				res.Name, why))
		}
		if n := r.samples(analysis.EventThrottle); n > 0 {
			ws = append(ws, fmt.Sprintf("THROTTLED: %s: the GPU's clocks were held down in %d samples.", res.Name, n))
		}
		if n := r.samples(analysis.EventPowerCap); n > 0 {
			ws = append(ws, fmt.Sprintf("%s: the GPU drew as much power as it may in %d samples: its clocks fall then, here as "+
				"under any such load.", res.Name, n))
		}
		if failed, _ := res.Metrics.Value(harness.MetricRequests, harness.StatFail); failed > 0 {
			ws = append(ws, fmt.Sprintf("FAILED REQUESTS: %s: %.0f failed; latencies and throughput are over the others.",
				res.Name, failed))
		}
		for _, w := range res.Warnings {
			if res.Conditions.GeneratorLimited != "" && strings.HasPrefix(w, "generator-limited") {
				continue // said above, louder
			}
			ws = append(ws, res.Name+": "+w)
		}
	}
	if b := in.Kernels; b != nil {
		if b.Partial {
			ws = append(ws, "PARTIAL: kernel benchmark: "+b.Why+".")
		}
		if n := gatedSamples(b); n > 0 {
			ws = append(ws, fmt.Sprintf("THROTTLED: kernel benchmark: the device was not fit in %d samples, which are left out.",
				n))
		}
		for _, w := range b.Warnings {
			ws = append(ws, "kernel benchmark: "+w)
		}
	}
	return append(ws, in.Notes...)
}

// alarms are the warnings about what makes figures something else than they seem, and those about plans; remarks are
// the others.
func (in *Input) alarms() (alarms, remarks []string) {
	stamps := in.stamps()
	var ofPlans []string
	if in.Plans != nil {
		ofPlans = append(ofPlans, in.Plans.Widened...)
		for _, t := range in.Plans.Foreseen {
			ofPlans = append(ofPlans, t.String())
		}
	}
	for _, w := range in.Warnings() {
		loud := slices.ContainsFunc(stamps, func(stamp string) bool { return strings.HasPrefix(w, stamp) })
		if loud || slices.Contains(ofPlans, w) {
			alarms = append(alarms, w)
		} else {
			remarks = append(remarks, w)
		}
	}
	return alarms, remarks
}

// samples counts those in which something was so with the run's GPU.
func (r *Run) samples(kind analysis.EventKind) (n int) {
	if r.Analysis != nil {
		for _, e := range r.Analysis.Utilization.Events {
			if e.Kind == kind {
				n += e.Count
			}
		}
	}
	return n
}

// stamps are the words of the warnings that a page keeps in sight.
func (in *Input) stamps() (words []string) {
	for _, word := range []string{Stamp, "GENERATOR-LIMITED", "THROTTLED", "PARTIAL", "FAILED REQUESTS"} {
		if slices.ContainsFunc(in.Warnings(), func(w string) bool { return strings.HasPrefix(w, word) }) {
			words = append(words, word)
		}
	}
	return words
}

// errorsOf are the different errors of a run's requests with how often each came, in order of first appearance.
func (r *Run) errors() []string {
	var texts []string
	count := map[string]int{}
	for i := range r.Records {
		if e := r.Records[i].Error; e != "" {
			if count[e] == 0 {
				texts = append(texts, e)
			}
			count[e]++
		}
	}
	for i, e := range texts {
		texts[i] = fmt.Sprintf("%d x %s", count[e], e)
	}
	return texts
}

// describe is a run's workload in a few words: "C 256, M 16, B 16, prefill".
func describe(c harness.Config) string {
	var parts []string
	if c.Trace != "" {
		parts = append(parts, "trace "+c.Trace)
	} else {
		parts = append(parts, fmt.Sprintf("C %d, M %d, B %d", c.C, c.M, c.B))
	}
	if c.BlockSize > 0 {
		parts = append(parts, fmt.Sprintf("block_size %d", c.BlockSize))
	}
	if c.ProfilingType != "" {
		parts = append(parts, string(c.ProfilingType))
	}
	if c.Rate != "" {
		parts = append(parts, c.Rate+" request/s")
	}
	if c.Concurrency > 0 {
		parts = append(parts, fmt.Sprintf("concurrency %d", c.Concurrency))
	}
	if c.Users > 0 {
		parts = append(parts, fmt.Sprintf("%d users x %d turns", c.Users, c.Turns))
	}
	return strings.Join(parts, ", ")
}

// clean makes a text of unknown origin safe to show on one line: control characters, line ends and what is not UTF-8
// become "?"; longer texts than width runes are cut with an ellipsis.
func clean(s string, width int) string {
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) && r != ' ' {
			return '?'
		}
		return r
	}, s)
	if utf8.RuneCountInString(s) > width {
		s = string([]rune(s)[:width-1]) + "…"
	}
	return s
}

// ShellLine writes words as one command line that a POSIX shell splits back.
func ShellLine(words []string) string {
	const plainRunes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-"
	quoted := make([]string, len(words))
	for i, w := range words {
		plain := w != "" && strings.Trim(w, plainRunes) == ""
		if !plain {
			w = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		quoted[i] = w
	}
	return strings.Join(quoted, " ")
}
