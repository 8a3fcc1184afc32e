// Package report turns results into what people look at: tables for a terminal ([Text] and its parts), one picture
// ([Picture]) and one self-contained page ([HTML]). Every one of them says "SIMULATED" where a figure does not come
// from a real server, shows each metric with its unit, and says "not observed" where there is none. The same input
// gives the same bytes.
package report

import (
	"fmt"
	"image/color"
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
}

// Input is what a report is made of. Every part may be empty.
type Input struct {
	Title string
	// Verdict is the sentence that comes first.
	Verdict string
	Runs    []Run
	Plans   *planner.Plans
	// Kernels is a kernel benchmark of this machine, always measured.
	Kernels *harness.Bench
	// Cost is the model behind the plans and the roofline's ceilings.
	Cost *cost.Model
	// Files are the files written, Commands the command lines that repeat the report.
	Files    []string
	Commands []string
}

// palette is every colour of pictures and page. Series are told apart by the first six (Okabe and Ito's colours,
// which people with any colour vision tell apart), by dashes and by name. The page in the dark swaps ink and ground
// for night's.
var palette = struct {
	series                          [6]color.NRGBA
	ink, faint, grid, alarm, ground color.NRGBA
	night                           struct{ ink, faint, grid, ground color.NRGBA }
}{
	series: [...]color.NRGBA{
		{0, 114, 178, 255},   // blue
		{213, 94, 0, 255},    // vermilion
		{0, 158, 115, 255},   // green
		{204, 121, 167, 255}, // purple
		{86, 180, 233, 255},  // sky
		{230, 159, 0, 255},   // orange
	},
	ink:    color.NRGBA{34, 34, 34, 255},
	faint:  color.NRGBA{102, 102, 102, 255},
	grid:   color.NRGBA{214, 214, 214, 255},
	alarm:  color.NRGBA{176, 0, 32, 255},
	ground: color.NRGBA{255, 255, 255, 255},
	night: struct{ ink, faint, grid, ground color.NRGBA }{
		ink:    color.NRGBA{230, 230, 230, 255},
		faint:  color.NRGBA{165, 165, 165, 255},
		grid:   color.NRGBA{70, 70, 70, 255},
		ground: color.NRGBA{25, 25, 25, 255},
	},
}

// Stamp is what marks every table, picture and page with figures of a simulated server.
const Stamp = "SIMULATED SERVER"

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
		if failed, _ := r.Result.Metrics.Value(harness.MetricRequests, harness.StatFail); failed > 0 {
			ws = append(ws, fmt.Sprintf("FAILED REQUESTS: %s: %.0f failed; latencies and throughput are over the others.",
				r.Result.Name, failed))
		}
		for _, w := range r.Result.Warnings {
			ws = append(ws, r.Result.Name+": "+w)
		}
	}
	return ws
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
