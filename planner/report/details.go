package report

import (
	"bufio"
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"unicode/utf8"

	"kvtune/harness"
	"kvtune/planner"
	"kvtune/planner/analysis"
	"kvtune/planner/cost"
)

// CostTable is a cost model's coefficients with intervals and meaning.
func CostTable(m *cost.Model) Section {
	return func(b *bufio.Writer) { costTable(b, m) }
}

func costTable(b *bufio.Writer, m *cost.Model) {
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "coefficient\tvalue\t95 % interval\tunit\tmeaning")
	for _, c := range m.Coefficients {
		fmt.Fprintf(t, "%s\t%.3g\t%.3g to %.3g\t%s\t%s\n", c.Name, c.Value, c.Low, c.High, c.Unit, c.Meaning)
	}
	t.Flush()
	fmt.Fprintf(b, "knee %d tokens, tiles of %d, CUDA graphs up to %d tokens\n", m.Knee, m.Tile, m.MaxGraph)
	for _, k := range m.Blocks {
		text := func(what string, r *cost.Ratio) {
			if r != nil {
				fmt.Fprintf(b, "block_size %d: %s takes %.3f of that at 16 (%.3f to %.3f), from %s\n", k.BlockSize, what, r.Value,
					r.Low, r.High, k.Origin)
			}
		}
		text("decode attention", k.Decode)
		text("prefill attention", k.Prefill)
	}
	f := m.FrontEnd
	fmt.Fprintf(b, "front end: %v per request (thread busy for %v and %v per prompt token), %v to the client, %v "+
		"per event\n", f.Request, f.Handle, f.PromptToken, f.Token, f.Event)
}

// BottleneckTable is what each bottleneck takes of the time and what lifting it would give, why, what the time of a
// step goes to, how far resources are used with the definitions of that, and what is recommended.
func BottleneckTable(r *analysis.Report) Section {
	return func(b *bufio.Writer) { bottleneckTable(b, r) }
}

func bottleneckTable(b *bufio.Writer, r *analysis.Report) {
	const kinds = 17
	lifts := ""
	if len(r.Counterfactuals) > 0 {
		lifts = "  simulated, if it were lifted"
	}
	focus := func(v *float64) string { return "" }
	if r.Focus != nil {
		focus = func(v *float64) string { return "  " + padLeft(share(v), len(r.Focus.Name())) }
		lifts = "  " + r.Focus.Name() + lifts
	}
	fmt.Fprintf(b, "%s  %6s%s\n%s\n", pad("what binds", kinds), "share", lifts, strings.Repeat("-", width))
	for _, k := range r.Bottlenecks {
		mark := "  "
		if k.Binds {
			mark = " *"
		}
		first := fmt.Sprintf("%s%s %6s%s  ", pad(string(k.Kind), kinds), mark, share(k.Share), focus(k.FocusShare))
		var lifted []string
		for _, c := range r.Counterfactuals {
			if c.Kind == k.Kind && len(c.Gains) > 0 {
				lifted = append(lifted, c.Name+": "+changeText(c.Gains[0]))
			}
		}
		wrap(b, first, strings.Repeat(" ", utf8.RuneCountInString(first)), strings.Join(lifted, "; "))
	}
	for _, k := range []struct {
		label string
		share *float64
	}{{"nothing", r.Light}, {"no request", r.Idle}} {
		if k.share != nil {
			fmt.Fprintf(b, "%s   %6s\n", pad(k.label, kinds), share(k.share))
		}
	}
	if len(r.Counterfactuals) > 0 && len(r.Counterfactuals[0].Gains) > 0 {
		g := r.Counterfactuals[0].Gains[0]
		fmt.Fprintf(b, "(* binds; changes are of %s, above 0 is better, ranges are 95 %%)\n", metricName(g.Metric, g.Stat))
	}
	fmt.Fprintln(b)
	for _, k := range r.Bottlenecks {
		if k.Binds || k.Share == nil || *k.Share >= 0.01 {
			wrap(b, string(k.Kind)+": ", "  ", k.Why)
		}
	}
	if text := stepText(r); text != "" {
		wrap(b, "a step's time: ", "  ", text)
	}
	useText(b, r.Use)
	for i := range r.Recommendations {
		recommended(b, i+1, &r.Recommendations[i])
	}
	for _, n := range r.Notes {
		wrap(b, "note: ", "  ", n)
	}
}

// changeText is a change with its interval: "+38 % (+35 to +41 %)".
func changeText(g analysis.Gain) string {
	text := harness.Percent(g.Change, true)
	if g.Low != nil && g.High != nil && *g.High-*g.Low > 0.002 {
		text += fmt.Sprintf(" (%s to %s)", strings.TrimSuffix(harness.Percent(*g.Low, true), " %"),
			harness.Percent(*g.High, true))
	}
	return text
}

// stepText is what a step's time goes to, the largest part first.
func stepText(r *analysis.Report) string {
	parts := slices.Clone(r.StepTime)
	slices.SortStableFunc(parts, func(a, b analysis.StepPart) int { return cmp.Compare(b.Share, a.Share) })
	var texts []string
	for _, p := range parts {
		if math.Abs(p.Share) >= 0.01 {
			texts = append(texts, p.Name+" "+harness.Percent(p.Share, false))
		}
	}
	return strings.Join(texts, ", ")
}

// useText writes the use of resources, each with its definition.
func useText(b *bufio.Writer, use harness.Metrics) {
	first := true
	for _, m := range use {
		if m.Value == nil || m.Stat == harness.StatMean {
			continue
		}
		if first {
			fmt.Fprintln(b, "\nuse")
			first = false
		}
		s := scaleFor(m.Unit, *m.Value)
		cell := s.number(m) + " " + s.unit
		if m.Stat != "" {
			cell += ", " + m.Stat
		}
		wrap(b, fmt.Sprintf("  %s  ", padLeft(cell, 14)), strings.Repeat(" ", 18),
			harness.Words(m.Name, "")+": "+harness.Definition(m.Name))
	}
}

// recommended writes one recommendation: what to set, its gain, why, every effect, the risk, and the two commands.
func recommended(b *bufio.Writer, n int, rec *analysis.Recommendation) {
	if n == 1 {
		fmt.Fprintln(b, "\nrecommended, by simulated gain; each alone")
	}
	from := rec.From
	if from == "" {
		from = "unset"
	}
	flag, value := "--"+strings.ReplaceAll(rec.Flag, "_", "-"), rec.Value
	if value == "" {
		value = "unset"
	}
	wrap(b, fmt.Sprintf("%d. ", n), "   ", fmt.Sprintf("%s %s (now %s): %s", flag, value, from, gainText(*rec.Gain)))
	wrap(b, "   why: ", "     ", rec.Why)
	for _, also := range rec.Also {
		wrap(b, "   with it: ", "     ", fmt.Sprintf("--%s %s (now %s)", strings.ReplaceAll(also.Flag, "_", "-"), also.To,
			also.From))
	}
	var effects []string
	for _, e := range rec.Effects {
		s := scaleFor(e.Unit, e.Before, e.After)
		effects = append(effects, fmt.Sprintf("%s %s -> %s %s", metricName(e.Metric, e.Stat), s.digits(e.Before, 0),
			s.digits(e.After, 0), s.unit))
	}
	wrap(b, "   effect: ", "     ", strings.Join(effects, ", "))
	wrap(b, "   risk: ", "     ", rec.Risk)
	fmt.Fprintln(b, "   $ "+clean(ShellLine(rec.Command), 1<<20))
	fmt.Fprintln(b, "   $ "+clean(ShellLine(rec.Verify), 1<<20))
}

// metricName is the table's name for a metric where it has one, else its own.
func metricName(name, stat string) string {
	if label := labelOf(name, stat); label != "" {
		return label
	}
	for _, p := range planned {
		if p.name == name && p.stat == stat {
			return p.label
		}
	}
	return harness.Words(name, stat)
}

func share(v *float64) string {
	if v == nil {
		return notObserved
	}
	return harness.Percent(*v, false)
}

// sweepRows is how many rows of a sweep a terminal gets.
const sweepRows = 24

// SweepTable is the best settings of the first cells for the first target; the CSV has them all.
func SweepTable(sweep *planner.SweepResult) Section {
	return func(b *bufio.Writer) { writeSweep(b, sweep) }
}

func writeSweep(b *bufio.Writer, sweep *planner.SweepResult) {
	if len(sweep.Rows) == 0 {
		return
	}
	target, shown, left := sweep.Rows[0].Strategy, 0, 0
	fmt.Fprintf(b, "parameter sweep for %s (PREDICTED: SIMULATED in virtual time)\n", target)
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "C\tM\tB\tblock_size\tthroughput\tTTFT p99\tE2EL mean\tchange")
	for i := range sweep.Rows {
		r := &sweep.Rows[i]
		if r.Strategy != target || shown == sweepRows {
			left++
			continue
		}
		shown++
		fmt.Fprintf(t, "%d\t%d\t%d\t%d", r.C, r.M, r.B, r.BlockSize)
		if r.Plan == nil {
			fmt.Fprintf(t, "\t%s\n", clean(r.Why, 70)) // the last cell of its line: no column becomes wider
			continue
		}
		for _, c := range []int{0, 1, 3} {
			cell := notObserved
			if m := r.Plan.Predicted.Get(planned[c].name, planned[c].stat); m != nil && m.Value != nil {
				s := scaleFor(m.Unit, *m.Value)
				cell = s.number(*m) + " " + s.unit
			}
			fmt.Fprintf(t, "\t%s", cell)
		}
		change := "keep"
		if len(r.Plan.Changed) > 0 {
			change = changesText(r.Plan.Changed)
		}
		fmt.Fprintf(t, "\t%s\n", clean(change, 36))
	}
	t.Flush()
	if left > 0 {
		fmt.Fprintf(b, "%d more rows (other cells and targets) are in the CSV file\n", left)
	}
}
