package report

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"kvtune/harness"
	"kvtune/harness/compare"
)

// Comparison is two reports side by side with what a test says of their difference.
type Comparison struct {
	Title string
	// Result is the verdict on every case that both sides have.
	Result *compare.Report
	// A and B are the sides' reports, empty where a side is no archive.
	A, B Input
	// Commands repeat the comparison.
	Commands []string
}

// forestRows is how many cases are drawn at most.
const forestRows = 24

// CompareHTML writes a page like [HTML]'s about two sides: the verdict, every case with interval and p-value, the runs
// of both in the same table and charts, and their conditions beside each other with what differs marked, and what the
// servers said of requests that failed.
func CompareHTML(w io.Writer, c Comparison) error {
	both := Input{Title: c.Title, Verdict: c.Result.Verdict(), Runs: sideBySide(c.A.Runs, c.B.Runs), Commands: c.Commands}
	p := &page{Title: c.Title, Verdict: c.Result.Verdict(), Simulated: both.simulated()}
	if p.Simulated {
		p.Verdict = VerdictLine(p.Verdict, harness.OriginSimulated, false)
	}
	for i, in := range []Input{c.A, c.B} {
		p.warn(in, string(rune('A'+i))+": ")
	}
	known := func(side string, in Input, w string) bool { // the side's own report has said it
		return (len(in.Runs) > 0 || in.Kernels != nil) && strings.HasPrefix(w, side+": ")
	}
	for _, w := range c.Result.Warnings {
		if !known(c.Result.A, c.A, w) && !known(c.Result.B, c.B, w) {
			p.Warnings = append(p.Warnings, w)
		}
	}
	if err := p.comparison(c.Result); err != nil {
		return err
	}
	if len(both.Runs) > 0 {
		p.add("runs", "Runs", block{Tables: []table{differences(both.Runs)}})
	}
	if err := p.charts(both); err != nil {
		return err
	}
	var maps []block
	for i, in := range []Input{c.A, c.B} {
		if in.Kernels == nil {
			continue
		}
		hs, err := heats(KernelMaps(in.Kernels))
		if err != nil {
			return err
		}
		maps = append(maps, block{Heading: string(rune('A'+i)) + ": " + in.Kernels.Device, Heats: hs})
	}
	p.add("kernels", "What a block size costs in a kernel", maps...)
	conditions := block{Tables: conditionTables(c)}
	for i := range both.Runs {
		for _, e := range both.Runs[i].errors() {
			conditions.List = append(conditions.List, both.Runs[i].Result.Name+": error of requests: "+e)
		}
	}
	p.add("conditions", "Conditions", conditions)
	p.closing(both)
	return p.write(w)
}

// sideBySide are the runs of two sides, those of the same name next to each other.
func sideBySide(a, b []Run) (runs []Run) {
	named := func(side string, r Run) Run {
		result := *r.Result
		result.Name = side + ": " + result.Name
		r.Result = &result
		return r
	}
	left := slices.Clone(b)
	for _, x := range a {
		runs = append(runs, named("A", x))
		i := slices.IndexFunc(left, func(y Run) bool { return y.Result.Name == x.Result.Name })
		if i < 0 && len(a) == 1 && len(b) == 1 {
			i = 0
		}
		if i >= 0 {
			runs = append(runs, named("B", left[i]))
			left = slices.Delete(left, i, i+1)
		}
	}
	for _, y := range left {
		runs = append(runs, named("B", y))
	}
	return runs
}

// differences is the table of runs; of two runs with what the second changes.
func differences(runs []Run) table {
	t := runsTable(runs, "All runs, with 95 % intervals")
	if len(runs) != 2 {
		return t
	}
	t.Head = append(t.Head, "B against A")
	for i, row := range t.Rows {
		cell := cellText{}
		for _, s := range shown {
			if s.label != row[0].Text {
				continue
			}
			a, okA := runs[0].Result.Metrics.Value(s.name, s.stat)
			b, okB := runs[1].Result.Metrics.Value(s.name, s.stat)
			if okA && okB && a != 0 {
				cell.Text = harness.Percent(b/a-1, true)
			}
		}
		t.Rows[i] = append(row, cell)
	}
	return t
}

// caseLabels give a case's name in the words in which the cases differ, without the names of axes: for a chart.
func caseLabels(rows []compare.Row) func(name string) string {
	counts := map[string]int{}
	for i := range rows {
		for part := range strings.SplitSeq(rows[i].Case, "/") {
			counts[part]++
		}
	}
	return func(name string) string {
		var words []string
		for part := range strings.SplitSeq(name, "/") {
			if counts[part] < len(rows) || len(rows) == 1 {
				words = append(words, part[strings.Index(part, "=")+1:])
			}
		}
		if len(words) == 0 {
			return name
		}
		return strings.Join(words, " ")
	}
}

// comparison lays out the verdict on every case.
func (p *page) comparison(r *compare.Report) error {
	share := func(ratio float64) string { return fmt.Sprintf("%+.2f %%", 100*(ratio-1)) }
	interval := func(low, high *float64) string {
		switch {
		case low != nil && high != nil:
			return share(*low) + " to " + share(*high)
		case low != nil:
			return "above " + share(*low)
		case high != nil:
			return "below " + share(*high)
		}
		return "too few values for an interval"
	}
	t := table{Caption: "Every case: medians of A and B", Sort: true, Filter: len(r.Rows) > 20,
		Head: []string{"case", "unit", "A", "B", "B against A", "better is", "p (Holm)", "verdict"},
		Note: fmt.Sprintf("Small figures are %.3g %% intervals. A difference counts when it is significant (Mann-Whitney "+
			"test on nearly independent values, Holm's correction, chance of any false alarm %.3g) and larger than %.3g %%.",
			100*(1-r.Alpha), r.Alpha, 100*r.Threshold)}
	for i := range r.Rows {
		row := &r.Rows[i]
		s, better := scaleFor(row.Unit, row.A, row.B), "lower"
		if row.Higher {
			better = "higher"
		}
		verdict := cellText{Text: string(row.Verdict), Words: true, Note: row.Note}
		if row.Verdict == compare.Worse {
			verdict.Text, verdict.Mark = "WORSE", true
		}
		t.Rows = append(t.Rows, []cellText{{Text: strings.ReplaceAll(row.Case, "/", " ")}, {Text: s.unit, Words: true},
			{Text: fmt.Sprintf("%.4g", row.A/s.per), Value: number(row.A), Note: fmt.Sprintf("%d values", row.NA)},
			{Text: fmt.Sprintf("%.4g", row.B/s.per), Value: number(row.B), Note: fmt.Sprintf("%d values", row.NB)},
			{Text: share(row.Ratio), Small: interval(row.Low, row.High), Value: number(row.Ratio)}, {Text: better, Words: true},
			{Text: fmt.Sprintf("%.2g", row.P)}, verdict})
	}
	chart := panel{subject: "change of B against A (the line at 0), with its interval", legend: []string{"B"},
		xLabel: "difference of B to A, %"}
	order := make([]*compare.Row, len(r.Rows))
	for i := range r.Rows {
		order[i] = &r.Rows[i]
	}
	slices.SortStableFunc(order, func(a, b *compare.Row) int {
		return -cmp.Compare(math.Abs(math.Log(a.Ratio)), math.Abs(math.Log(b.Ratio)))
	})
	label := caseLabels(r.Rows)
	var rows []forestRow
	for _, row := range order[:min(len(order), forestRows)] {
		f := forestRow{label: label(row.Case), marks: []float64{row.Ratio - 1}}
		if row.Low != nil {
			f.low = new(*row.Low - 1)
		}
		if row.High != nil {
			f.high = new(*row.High - 1)
		}
		rows = append(rows, f)
	}
	chart.title = fmt.Sprintf("%d of %d cases worse, %d better", r.Count(compare.Worse), len(r.Rows),
		r.Count(compare.Better))
	if len(order) > forestRows {
		chart.says = fmt.Sprintf("the %d largest of %d", forestRows, len(order))
	}
	chart.stamped = p.Simulated
	chart.forest(rows)
	cs, err := charts([]panel{chart}, nil)
	if err != nil {
		return err
	}
	b := block{Facts: [][2]string{{"A", r.A}, {"B", r.B}}, Tables: []table{t}}
	for i, cases := range [][]string{r.OnlyA, r.OnlyB} {
		for _, name := range cases {
			b.List = append(b.List, fmt.Sprintf("only in %c: %s", 'A'+i, name))
		}
	}
	p.add("comparison", "Is B different from A?", block{Charts: cs}, b)
	return nil
}

// conditionTables put the circumstances of both sides beside each other, run by run in order.
func conditionTables(c Comparison) (tables []table) {
	beside := func(caption string, a, b [][2]string) {
		t := table{Caption: caption, Head: []string{"condition", "A", "B"}}
		value := func(facts [][2]string, name string) string {
			for _, f := range facts {
				if f[0] == name {
					return f[1]
				}
			}
			return "-"
		}
		seen := map[string]bool{}
		for _, f := range append(slices.Clone(a), b...) {
			if seen[f[0]] {
				continue
			}
			seen[f[0]] = true
			x, y := value(a, f[0]), value(b, f[0])
			t.Rows = append(t.Rows, []cellText{{Text: f[0]}, {Text: x, Words: true}, {Text: y, Words: true, Mark: x != y}})
		}
		tables = append(tables, t)
	}
	for i := range max(len(c.A.Runs), len(c.B.Runs)) {
		var a, b [][2]string
		name := ""
		if i < len(c.B.Runs) {
			b, name = factsOf(c.B.Runs[i]), c.B.Runs[i].Result.Name
		}
		if i < len(c.A.Runs) {
			a, name = factsOf(c.A.Runs[i]), c.A.Runs[i].Result.Name
		}
		beside(name, a, b)
	}
	if c.A.Kernels != nil && c.B.Kernels != nil {
		beside("kernel benchmark", benchFacts(c.A.Kernels), benchFacts(c.B.Kernels))
	}
	return tables
}
