package report

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"kvtune/planner"
	"kvtune/planner/analysis"
	"kvtune/planner/cost"
)

// CostTable writes a cost model's coefficients with intervals and meaning.
func CostTable(w io.Writer, m *cost.Model) error {
	b := bufio.NewWriter(w)
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "coefficient\tvalue\t95 % interval\tunit\tmeaning")
	for _, c := range m.Coefficients {
		fmt.Fprintf(t, "%s\t%.3g\t%.3g to %.3g\t%s\t%s\n", c.Name, c.Value, c.Low, c.High, c.Unit, c.Meaning)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(b, "knee %d tokens, CUDA graphs up to %d tokens\n", m.Knee, m.MaxGraph)
	f := m.FrontEnd
	fmt.Fprintf(b, "front end: %v per request (thread busy for %v and %v per prompt token), %v to the client, %v per event\n",
		f.Request, f.Handle, f.PromptToken, f.Token, f.Event)
	return b.Flush()
}

// BottleneckTable writes the verdict on each of the four bottlenecks, and what is recommended.
func BottleneckTable(w io.Writer, r *analysis.Report) error {
	b := bufio.NewWriter(w)
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "bottleneck\tshare\tbinds above\tlimit\tbinds")
	for _, k := range r.Bottlenecks {
		binds := ""
		if k.Binds {
			binds = "yes"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", k.Kind, share(k.Share), share(k.Threshold), k.Limit, binds)
	}
	if r.Light != nil {
		fmt.Fprintf(t, "light load\t%s\t\t\t\n", share(r.Light))
	}
	if r.Idle != nil {
		fmt.Fprintf(t, "idle\t%s\t\t\t\n", share(r.Idle))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, k := range r.Bottlenecks {
		wrap(b, string(k.Kind)+": ", "  ", k.Why)
	}
	for _, c := range r.Counterfactuals {
		for _, g := range c.Gains {
			wrap(b, "what if: ", "  ", c.Name+": "+gainText(g))
		}
	}
	for _, rec := range r.Recommendations {
		gain := "not simulated"
		if rec.Gain != nil {
			gain = gainText(*rec.Gain)
		}
		flag := strings.ReplaceAll(rec.Flag, "_", "-")
		wrap(b, "try: ", "  ", fmt.Sprintf("--%s %s: %s (%s)", flag, rec.Value, rec.Why, gain))
	}
	for _, n := range r.Notes {
		wrap(b, "note: ", "  ", n)
	}
	return b.Flush()
}

func share(v *float64) string {
	if v == nil {
		return notObserved
	}
	return percent(*v, false)
}

// sweepRows is how many rows of a sweep a terminal gets.
const sweepRows = 24

// SweepTable writes the best settings of the first cells for the first target; the CSV has them all.
func SweepTable(w io.Writer, sweep *planner.SweepResult) error {
	b := bufio.NewWriter(w)
	if len(sweep.Rows) == 0 {
		return nil
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
			fmt.Fprintf(t, "\t\t\t\t%s\n", clean(r.Why, 60))
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
		fmt.Fprintf(t, "\t%s\n", clean(change, 80))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if left > 0 {
		fmt.Fprintf(b, "%d more rows (other cells and targets) are in the CSV file\n", left)
	}
	return b.Flush()
}
