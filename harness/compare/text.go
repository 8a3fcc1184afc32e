package compare

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"text/tabwriter"

	"kvtune/harness"
)

// Verdict is the whole comparison in one line.
func (r *Report) Verdict() string {
	if r.Simulated {
		return r.verdict() + "; SIMULATED"
	}
	return r.verdict()
}

func (r *Report) verdict() string {
	over := fmt.Sprintf("by more than %.3g %%", 100*r.Threshold)
	worse, better := r.extreme(Worse), r.extreme(Better)
	switch {
	case worse != nil && better != nil:
		return fmt.Sprintf("REGRESSION: %d of %d cases are worse %s (most: %s, %s), %d better", r.Count(Worse),
			len(r.Rows), over,
			worse.Case, worse.change(), r.Count(Better))
	case worse != nil:
		return fmt.Sprintf("REGRESSION: %d of %d cases are worse %s (most: %s, %s)", r.Count(Worse), len(r.Rows), over,
			worse.Case,
			worse.change())
	case better != nil:
		return fmt.Sprintf("better: %d of %d cases %s (most: %s, %s), none worse", r.Count(Better), len(r.Rows), over,
			better.Case,
			better.change())
	case r.Count(Unclear) > 0:
		return fmt.Sprintf("no regression shown; %d of %d cases are too noisy to exclude one of %.3g %%", r.Count(Unclear),
			len(r.Rows), 100*r.Threshold)
	}
	return fmt.Sprintf("no difference: %d cases are the same within %.3g %%", len(r.Rows), 100*r.Threshold)
}

// extreme is the row with a verdict whose ratio is furthest from 1, nil for none.
func (r *Report) extreme(v Verdict) *Row {
	var most *Row
	for i := range r.Rows {
		row := &r.Rows[i]
		if row.Verdict == v && (most == nil || math.Abs(math.Log(row.Ratio)) > math.Abs(math.Log(most.Ratio))) {
			most = row
		}
	}
	return most
}

func (r *Row) change() string { return fmt.Sprintf("%+.2f %%", 100*(r.Ratio-1)) }

// interval is that of the change in percent, "" where neither end is known.
func (r *Row) interval() string {
	end := func(v *float64) string {
		if v == nil {
			return "?"
		}
		return fmt.Sprintf("%+.2f", 100*(*v-1))
	}
	if r.Low == nil && r.High == nil {
		return ""
	}
	return end(r.Low) + " to " + end(r.High)
}

// Text writes the verdict and a table with one row per case.
func (r *Report) Text(w io.Writer) error {
	b := bufio.NewWriter(w)
	fmt.Fprintln(b, r.Verdict())
	for _, warning := range r.Warnings {
		fmt.Fprint(b, harness.Wrap("! ", "  ", warning))
	}
	fmt.Fprintf(b, "\nA: %s\nB: %s\n\n", r.A, r.B)
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "case\tunit\tA\tB\tB against A\t%.3g %% interval\tp (Holm)\tverdict\n", 100*(1-r.Alpha))
	for i := range r.Rows {
		row := &r.Rows[i]
		fmt.Fprintf(t, "%s\t%s\t%.4g\t%.4g\t%s\t%s\t%.2g\t%s\n", row.Case, row.Unit, row.A, row.B, row.change(),
			row.interval(), row.P,
			row.Verdict)
	}
	t.Flush()
	for i := range r.Rows {
		if row := &r.Rows[i]; row.Note != "" {
			fmt.Fprint(b, harness.Wrap("", "  ", row.Case+": "+row.Note))
		}
	}
	for _, only := range []struct {
		side  string
		cases []string
	}{{"A", r.OnlyA}, {"B", r.OnlyB}} {
		for _, name := range only.cases {
			fmt.Fprintf(b, "only in %s: %s\n", only.side, name)
		}
	}
	fmt.Fprintf(b, "\nMann-Whitney test on nearly independent values, Holm's correction, chance of any false "+
		"alarm %.3g.\n", r.Alpha)
	return b.Flush()
}
