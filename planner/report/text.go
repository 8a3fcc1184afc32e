package report

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"kvtune/harness"
	"kvtune/planner"
	"kvtune/planner/analysis"
)

// width is the number of columns that no line of a table exceeds; command lines are never broken.
const width = harness.TextWidth

// VerdictLine is the first line that a command prints: the verdict in one line, marked where it rests on a simulated
// server or a run that ended early.
func VerdictLine(verdict string, origin harness.Origin, partial bool) string {
	if verdict == "" {
		verdict = "no verdict"
	}
	verdict = clean(verdict, 1000)
	if partial && !strings.Contains(verdict, "PARTIAL") {
		verdict += "; PARTIAL: the run ended early"
	}
	if origin != harness.OriginMeasured && !strings.Contains(verdict, "SIMULATED") {
		verdict += "; SIMULATED"
	}
	return verdict
}

// Headline is the report's first line: [VerdictLine] of its runs and plans.
func (in *Input) Headline() string {
	origin, partial := harness.OriginMeasured, false
	if in.simulated() {
		origin = harness.OriginSimulated
	}
	for _, r := range in.Runs {
		partial = partial || r.Result.Partial
	}
	return VerdictLine(in.Verdict, origin, partial)
}

// Section is a part of what a terminal gets.
type Section func(b *bufio.Writer)

// Text writes what a terminal gets: the verdict, the warnings, the sections apart from each other, and the files. Where
// there is a page, remarks on runs that change no figure are in it and only counted here.
func Text(w io.Writer, in Input, sections ...Section) error {
	b := bufio.NewWriter(w)
	fmt.Fprintln(b, in.Headline())
	alarms, remarks := in.alarms()
	for _, alarm := range alarms {
		wrap(b, "! ", "  ", alarm)
	}
	if in.Page != "" && len(remarks) > 0 {
		fmt.Fprintf(b, "! remarks on the runs in the page: %d\n", len(remarks))
		remarks = nil
	}
	for _, remark := range remarks {
		wrap(b, "! ", "  ", remark)
	}
	for _, section := range sections {
		fmt.Fprintln(b)
		section(b)
	}
	if in.Page != "" {
		fmt.Fprintf(b, "\nthe rest: %s (%d files in all)\n", clean(in.Page, 1<<20), len(in.Files))
	} else {
		list(b, "\nfiles", fewFiles(in.Files))
	}
	return b.Flush()
}

// fewFiles names files one by one, or the folder of many.
func fewFiles(files []string) []string {
	const few = 8
	if len(files) <= few {
		return files
	}
	folder := filepath.Dir(files[0])
	if slices.ContainsFunc(files, func(f string) bool { return filepath.Dir(f) != folder }) {
		return files
	}
	return []string{fmt.Sprintf("%s (%d)", folder, len(files))}
}

// Lines is a section of lines, each broken where it is too wide.
func Lines(texts ...string) Section {
	return func(b *bufio.Writer) {
		for _, text := range texts {
			wrap(b, "", "  ", text)
		}
	}
}

// RunTable is the table of runs; brief leaves all but a few rows out.
func RunTable(runs []Run, brief bool) Section {
	rows := rowsOf(runs)
	if brief {
		rows = slices.DeleteFunc(rows, func(r row) bool { return !slices.Contains(briefRows, r.label) })
	}
	return func(b *bufio.Writer) { runTable(b, runs, rows) }
}

// briefRows are those of the table of runs beside plans.
var briefRows = []string{"origin", "workload C / M / B", "throughput, total", "TTFT p99", "TPOT mean", "E2EL p50",
	"KV usage peak", "what binds"}

func runTable(b *bufio.Writer, runs []Run, rows []row) {
	const labels, units, most = 20, 9, 22
	widths := make([]int, len(runs))
	for i, r := range runs {
		widths[i] = min(most, utf8.RuneCountInString(r.Result.Name))
		for _, row := range rows {
			widths[i] = max(widths[i], min(most, utf8.RuneCountInString(row.cells[i].text)))
		}
	}
	for from := 0; from < len(runs); {
		to, used := from, labels+1+units
		for to < len(runs) && (to == from || used+2+widths[to] <= width) {
			used += 2 + widths[to]
			to++
		}
		if from > 0 {
			fmt.Fprintln(b)
		}
		line := func(label, unit string, text func(i int) string) {
			s := pad(label, labels) + " " + pad(unit, units)
			for i := from; i < to; i++ {
				s += "  " + padLeft(clean(text(i), widths[i]), widths[i])
			}
			fmt.Fprintln(b, strings.TrimRight(s, " "))
		}
		line("run", "unit", func(i int) string { return runs[i].Result.Name })
		fmt.Fprintln(b, strings.Repeat("-", used))
		for _, row := range rows {
			line(row.label, row.unit, func(i int) string { return row.cells[i].text })
		}
		from = to
	}
}

// planned are the columns of the table of plans.
var planned = [...]struct{ label, name, stat string }{
	{"throughput", harness.MetricTotalThroughput, ""},
	{"TTFT p99", harness.MetricTTFT, harness.StatP99},
	{"TPOT mean", harness.MetricTPOT, harness.StatMean},
	{"E2EL mean", harness.MetricE2EL, harness.StatMean},
	{"hit rate", harness.MetricCacheHitRate, ""},
	{"KV peak", harness.MetricKVUsage, harness.StatPeak},
}

// allPlans are the baselines, then the plans, then what comes closest when none meets the SLOs.
func allPlans(ps *planner.Plans) []*planner.Plan {
	all := []*planner.Plan{&ps.Baseline}
	if ps.Default != nil {
		all = append(all, ps.Default)
	}
	for i := range ps.Plans {
		all = append(all, &ps.Plans[i])
	}
	if ps.Infeasible != nil {
		all = append(all, &ps.Infeasible.Closest)
	}
	return all
}

// planScales gives each column of the table of plans its unit.
func planScales(all []*planner.Plan) []scale {
	scales := make([]scale, len(planned))
	for i, c := range planned {
		unit, values := "", []float64(nil)
		for _, p := range all {
			if m := p.Predicted.Get(c.name, c.stat); m != nil {
				unit = m.Unit
				if m.Value != nil {
					values = append(values, *m.Value)
				}
			}
		}
		scales[i] = scaleFor(unit, values...)
	}
	return scales
}

// planDetails are the sentences about one plan.
func planDetails(p *planner.Plan) []string {
	var ds []string
	if p.Gain != nil {
		ds = append(ds, "predicted gain: "+gainText(*p.Gain))
	}
	if p.MeasuredGain != nil {
		ds = append(ds, "measured gain: "+gainText(*p.MeasuredGain)+", over "+string(p.MeasuredOver))
	}
	switch {
	case p.Keep:
		ds = append(ds, "keep your settings: the gain is within noise")
	case len(p.Changed) > 0:
		ds = append(ds, "change: "+changesText(p.Changed))
	}
	if p.Binding != "" {
		ds = append(ds, "binds: "+analysis.Binds(p.Binding, p.Limit))
	}
	for _, c := range p.SLOs {
		ds = append(ds, "SLO "+sloText(c))
	}
	ds = append(ds, capacityTexts(p)...)
	if r := p.DefaultRegret; r != nil && p.Gain != nil && *r != *p.Gain {
		ds = append(ds, "over vLLM's defaults: "+gainText(*r))
	}
	if text := sensitivityText(p.Sensitivity); text != "" {
		ds = append(ds, text)
	}
	if p.Extrapolated != "" {
		ds = append(ds, "EXTRAPOLATED: "+p.Extrapolated)
	}
	for _, r := range p.Replaced {
		ds = append(ds, "replaced: "+r)
	}
	for i := range ds {
		ds[i] = clean(ds[i], 1000)
	}
	return ds
}

// sensitivityText is what flags would change alone: those that matter, by how much, then the others.
func sensitivityText(all []planner.Sensitivity) string {
	var matter, rest []string
	for _, s := range all {
		to := s.Flag + "=" + s.To
		switch {
		case s.Refused != "":
			matter = append(matter, to+" would not start")
		case len(s.Misses) > 0:
			matter = append(matter, to+" misses "+strings.Join(s.Misses, ", "))
		case s.Change == nil:
		case math.Abs(*s.Change) >= 0.001:
			matter = append(matter, to+" "+harness.Percent(*s.Change, true))
		default:
			rest = append(rest, to)
		}
	}
	if len(rest) > 0 {
		matter = append(matter, "no difference: "+strings.Join(rest, ", "))
	}
	if len(matter) == 0 {
		return ""
	}
	return "alone: " + strings.Join(matter, "; ")
}

func gainText(g analysis.Gain) string {
	s := scaleFor(g.Unit, g.Before, g.After)
	return g.String() + ", " + s.digits(g.Before, 0) + " -> " + s.digits(g.After, 0) + " " + s.unit
}

func changesText(changes []planner.Change) string {
	parts := make([]string, len(changes))
	for i, c := range changes {
		from := c.From
		if from == "" {
			from = "unset"
		}
		to := c.To
		if to == "" {
			to = "unset"
		}
		parts[i] = fmt.Sprintf("%s %s -> %s", c.Flag, from, to)
		if !c.Modelled {
			parts[i] += " [emitted, not modelled]"
		}
	}
	return strings.Join(parts, ", ")
}

// sloText is one objective under a plan, as measured where it was, and as predicted.
func sloText(c planner.SLOCheck) string {
	state := func(met bool) string {
		if met {
			return "met, "
		}
		return "MISSED, "
	}
	text := c.SLO + ": "
	if c.MeasuredMet != nil {
		text += state(*c.MeasuredMet) + SLOMeasured(c) + "; "
	}
	if c.Value == nil {
		return text + notObserved
	}
	text += state(c.Met) + "predicted " + sloValue(c, *c.Value)
	if c.Probability != nil {
		text += fmt.Sprintf(" (met in %s of the draws)", harness.Percent(*c.Probability, false))
	}
	return text
}

// SLOMeasured is what a measurement showed of an objective: "measured 80.7 ms".
func SLOMeasured(c planner.SLOCheck) string {
	if c.Measured == nil {
		return notObserved
	}
	return "measured " + sloValue(c, *c.Measured)
}

// sloValue is a value in the unit of the metric that the objective names.
func sloValue(c planner.SLOCheck, v float64) string {
	unit := ""
	if slo, err := harness.ParseSLO(c.SLO); err == nil {
		unit = slo.Unit()
	}
	s := scaleFor(unit, v)
	return strings.TrimRight(s.digits(v, 0)+" "+s.unit, " ")
}

// comparison is a planner.Comparison as people read it.
type comparison struct{ metric, unit, predicted, interval, measured, err, inside string }

func (c comparison) cells() []string {
	return []string{c.metric, c.unit, c.predicted, c.interval, c.measured, c.err, c.inside}
}

// comparisonsOf are a plan's comparisons in order; those of the table of runs only unless all are asked for.
func comparisonsOf(p *planner.Plan, all bool) []comparison {
	var cs []comparison
	for _, c := range p.Compared {
		label := labelOf(c.Metric, c.Stat)
		if label == "" && !all {
			continue
		}
		if label == "" {
			label = strings.TrimSpace(c.Metric + " " + c.Stat)
		}
		s := scaleFor(c.Unit, c.Predicted, c.Measured)
		out := comparison{metric: label, unit: s.unit,
			predicted: s.digits(c.Predicted, 0), measured: s.digits(c.Measured, 0), err: "-", interval: "-", inside: "-"}
		if m := p.Predicted.Get(c.Metric, c.Stat); m != nil {
			out.predicted = s.number(*m)
			if text := s.interval(*m); text != "" {
				out.interval = text
			}
		}
		if m := p.Measured.Get(c.Metric, c.Stat); m != nil {
			out.measured = s.number(*m)
		}
		if c.Error != nil {
			out.err = harness.Percent(*c.Error, true)
		}
		if c.Inside != nil {
			out.inside = "no"
			if *c.Inside {
				out.inside = "yes"
			}
		}
		cs = append(cs, out)
	}
	return cs
}

// measuredOn is where a verified plan was measured.
func measuredOn(p *planner.Plan) string {
	if p.MeasuredOrigin == harness.OriginMeasured {
		return "a real server"
	}
	return "a SIMULATED server"
}

func predictedMeasured(b *bufio.Writer, p *planner.Plan) {
	fmt.Fprintf(b, "plan %s: predicted beside measured on %s\n", clean(string(p.Strategy), 20), measuredOn(p))
	line := func(c comparison) {
		s := pad(clean(c.metric, 22), 22) + " " + pad(c.unit, 9) + " " + padLeft(c.predicted, 12) + "  "
		s += padLeft(c.interval, 22) + " " + padLeft(c.measured, 12) + " " + padLeft(c.err, 9) + " " + padLeft(c.inside, 6)
		fmt.Fprintln(b, s)
	}
	line(comparison{"metric", "unit", "predicted", "95 % range", "measured", "error", "inside"})
	fmt.Fprintln(b, strings.Repeat("-", width))
	for _, c := range comparisonsOf(p, false) {
		line(c)
	}
}

func list(b *bufio.Writer, head string, items []string) {
	if len(items) == 0 {
		return
	}
	fmt.Fprintln(b, head)
	for _, item := range items {
		fmt.Fprintln(b, "  "+clean(item, 1<<20))
	}
}

// wrap writes words within width columns: first before the first line, rest before the others.
func wrap(b *bufio.Writer, first, rest, text string) {
	b.WriteString(harness.Wrap(first, rest, clean(text, 1<<20)))
}

func pad(s string, n int) string {
	return s + strings.Repeat(" ", max(0, n-utf8.RuneCountInString(s)))
}

func padLeft(s string, n int) string {
	return strings.Repeat(" ", max(0, n-utf8.RuneCountInString(s))) + s
}
