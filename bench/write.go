package bench

import (
	"bufio"
	"encoding/csv"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/hist"
	"kvtune/harness/stats"
	"kvtune/kernels"
	"kvtune/planner/report"
)

// HeatMapSuffix ends the name of the heat map's file.
const HeatMapSuffix = "_heatmap.png"

// Save writes the benchmark, its samples, the histograms of its times per launch (tagged with the cases) and its heat
// map into an archive.
func (out *Outcome) Save(f *archive.Folder) error {
	b := out.Bench
	if err := f.WriteBench(b, out.Samples); err != nil {
		return err
	}
	recorders := map[string]*hist.Recorder{}
	var intervals []hist.Interval
	for _, s := range out.Samples {
		if recorders[s.Case] == nil {
			recorders[s.Case] = hist.New()
			intervals = append(intervals, hist.Interval{Tag: hist.Tag(s.Case), Length: seconds(b.Conditions.Duration),
				Hist: recorders[s.Case]})
		}
		recorders[s.Case].Record(seconds(s.Seconds))
	}
	if len(out.Series) > 0 {
		if err := f.WriteSeries(b.Name, out.Series); err != nil {
			return err
		}
	}
	if err := f.WriteHistograms(b.Name, b.Conditions.Started, intervals); err != nil {
		return err
	}
	maps := report.KernelMaps(b)
	if len(maps) == 0 {
		return nil
	}
	return f.WriteFile(b.Name+HeatMapSuffix, func(w io.Writer) error { return report.HeatMaps(w, maps) })
}

func seconds(s float64) time.Duration { return time.Duration(math.Round(s * 1e9)) }

// name is the name of a group.
func (out *Outcome) name(g kernels.Case) string {
	for i, c := range out.cases {
		if group(c) == g {
			return out.Bench.Cases[i].Group()
		}
	}
	return g.Name()
}

// Verdict is what the run says, in one line: the best of every group, and what the slowest costs against it.
func (out *Outcome) Verdict() string {
	const most = 4 // groups; the tables have them all
	var says []string
	groups := out.groups()
	for at, g := range groups {
		if at == most {
			says = append(says, fmt.Sprintf("and %d more groups", len(groups)-most))
			break
		}
		var best, worst *harness.BenchCase
		var bestCase, worstCase kernels.Case
		n := 0
		for i, c := range out.cases {
			if group(c) != g {
				continue
			}
			n++
			row := &out.Bench.Cases[i]
			if row.Best {
				best, bestCase = row, c
			} else if worst == nil || *row.Slower > *worst.Slower {
				worst, worstCase = row, c
			}
		}
		text := fmt.Sprintf("%s: %s", g.Op, rate(best.Bandwidth()))
		if n > 1 {
			text = fmt.Sprintf("%s: block_size %d %s is fastest (%s); block_size %d %s costs %+.1f %%", g.Op, bestCase.BlockSize,
				bestCase.Layout, rate(best.Bandwidth()), worstCase.BlockSize, worstCase.Layout, 100*(*worst.Slower-1))
			if !worst.Significant() {
				text += ", which is not significant"
			}
		}
		says = append(says, text)
	}
	verdict := strings.Join(says, "; ") + fmt.Sprintf(" (measured, %s backend)", out.Bench.Backend)
	if out.Bench.Partial {
		verdict += "; PARTIAL: " + out.Bench.Why
	}
	return verdict
}

// rate is a bandwidth for people.
func rate(v float64) string {
	if v >= 1e12 {
		return fmt.Sprintf("%.2f TB/s", v/1e12)
	}
	return fmt.Sprintf("%.2f GB/s", v/1e9)
}

// share is a bandwidth as a share of a ceiling in percent, "" without one.
func share(v float64, ceiling *float64) string {
	if ceiling == nil {
		return ""
	}
	return fmt.Sprintf("%.0f", 100*v / *ceiling)
}

// Text writes the verdict, the warnings, and a table per group that says what a layout and a block size cost against
// the best, and whether that is significant.
func (out *Outcome) Text(w io.Writer) error {
	b := out.Bench
	o := bufio.NewWriter(w)
	fmt.Fprintln(o, out.Verdict())
	for _, warning := range b.Warnings {
		fmt.Fprintf(o, "! %s\n", warning)
	}
	out.caseWarnings(o)
	fmt.Fprintf(o, "\n%s\n", b.Device)
	if b.ReadCeiling != nil && b.CopyCeiling != nil {
		fmt.Fprintf(o, "ceilings measured in this run: read %s, copy %s (read and written bytes)", rate(*b.ReadCeiling),
			rate(*b.CopyCeiling))
		for _, c := range []struct {
			what  string
			value *float64
		}{{"to the host", b.ToHost}, {"to the device", b.ToDevice}} {
			if c.value != nil {
				fmt.Fprintf(o, ", %s %s", c.what, rate(*c.value))
			}
		}
		if b.MatrixCeiling != nil {
			fmt.Fprintf(o, ", matrix %.3g TFLOP/s", *b.MatrixCeiling/1e12)
		}
		if b.LaunchFloor != nil {
			fmt.Fprintf(o, "; an empty launch takes %.2f us", *b.LaunchFloor*1e6)
		}
		fmt.Fprintln(o)
	}
	for _, g := range out.groups() {
		fmt.Fprintf(o, "\n%s\n", out.name(g))
		t := tabwriter.NewWriter(o, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprint(t, "block_size\tlayout\ttime us\t+-%\tGB/s\t")
		if b.Link(string(g.Op)) != nil {
			fmt.Fprint(t, "% of link\t")
		} else {
			fmt.Fprint(t, "% of read\t% of copy\t")
		}
		if g.Flops() > 0 {
			fmt.Fprint(t, "TFLOP/s\t% of matrix\t")
		}
		fmt.Fprint(t, "against the best\tp (Holm)\tsignificant\tsamples\tstopped\t\n")
		for i, c := range out.cases {
			if group(c) == g {
				out.line(t, g, c, &b.Cases[i])
			}
		}
		t.Flush()
	}
	fmt.Fprintf(o, "\nMedians of one launch; significant: Mann-Whitney test on nearly independent values,\n"+
		"p below %v after Holm's correction.\n", harness.BenchSignificance)
	return o.Flush()
}

// caseWarnings writes the first warning of a single case and says how many more there are.
func (out *Outcome) caseWarnings(w io.Writer) {
	n := 0
	for _, c := range out.Bench.Cases {
		for _, warning := range c.Warnings {
			if n == 0 {
				fmt.Fprintf(w, "! %s: %s\n", c.Case, warning)
			}
			n++
		}
	}
	if n > 1 {
		fmt.Fprintf(w, "! and %d more warnings of single cases, in %s%s\n", n-1, out.Bench.Name, archive.BenchSuffix)
	}
}

func (out *Outcome) line(w io.Writer, g, c kernels.Case, r *harness.BenchCase) {
	half := ""
	if r.Low != nil {
		half = fmt.Sprintf("%.2f", 100*(*r.High-*r.Low)/2/r.Median)
	}
	fmt.Fprintf(w, "%d\t%s\t%.4g\t%s\t%.4g\t", c.BlockSize, c.Layout, r.Median*1e6, half, r.Bandwidth()/1e9)
	if link := out.Bench.Link(string(g.Op)); link != nil {
		fmt.Fprintf(w, "%s\t", share(r.Bandwidth(), link))
	} else {
		fmt.Fprintf(w, "%s\t%s\t", share(r.Bandwidth(), out.Bench.ReadCeiling), share(r.Bandwidth(), out.Bench.CopyCeiling))
	}
	if g.Flops() > 0 {
		fmt.Fprintf(w, "%.3g\t%s\t", r.Flops/r.Median/1e12, share(r.Flops/r.Median, out.Bench.MatrixCeiling))
	}
	against, p, yes := "best", "", ""
	if r.Slower != nil {
		against = fmt.Sprintf("%+.1f %%", 100*(*r.Slower-1))
		if r.SlowerLow != nil {
			against += fmt.Sprintf(" (%+.1f to %+.1f)", 100*(*r.SlowerLow-1), 100*(*r.SlowerHigh-1))
		}
		p, yes = fmt.Sprintf("%.2g", *r.P), "no"
		if r.Significant() {
			yes = "yes"
		}
	}
	fmt.Fprintf(w, "%s\t%s\t%s\t%d x %d\t%s\t\n", against, p, yes, r.Samples, r.Launches, r.Stop)
}

// CSV writes one line per case: its axes, then what was measured, in base units. What was not observed is empty.
func (out *Outcome) CSV(w io.Writer) error {
	c := csv.NewWriter(w)
	axes := kernels.Axes()
	c.Write(append(append([]string{"op"}, axes...), "cold", "median_s", "low_s", "high_s", "median_cycles",
		"samples", "launches", "bytes", "flops", "read_ceiling_bytes_per_s", "copy_ceiling_bytes_per_s",
		"matrix_ceiling_flop_per_s", "slower", "p_holm"))
	number := func(v *float64) string {
		if v == nil {
			return ""
		}
		return strconv.FormatFloat(*v, 'g', -1, 64)
	}
	for i := range out.Bench.Cases {
		r := &out.Bench.Cases[i]
		line := []string{r.Axes["op"]}
		for _, axis := range axes {
			line = append(line, r.Axes[axis])
		}
		c.Write(append(line, strconv.FormatBool(out.Bench.Cold), number(&r.Median), number(r.Low), number(r.High),
			number(r.Cycles), strconv.Itoa(r.Samples), strconv.Itoa(r.Launches), strconv.FormatInt(r.Bytes, 10),
			number(&r.Flops), number(out.Bench.ReadCeiling), number(out.Bench.CopyCeiling), number(out.Bench.MatrixCeiling),
			number(r.Slower), number(r.P)))
	}
	c.Flush()
	return c.Error()
}

// GoBench writes Go's benchmark format, for benchstat and `kvtune compare`: up to 20 lines per case, each the median of
// a stretch of samples that is nearly independent of the next.
func (out *Outcome) GoBench(w io.Writer) error {
	b := out.Bench
	o := bufio.NewWriter(w)
	temperature := "warm"
	if b.Cold {
		temperature = "cold"
	}
	fmt.Fprintf(o, "pkg: kvtune/bench\nbackend: %s\ndevice: %s\nUnit B/s better=higher\nUnit %%read better=higher\n",
		b.Backend, b.Device)
	values := out.values()
	for _, c := range b.Cases {
		v := values[c.Case]
		for _, v := range stats.Blocks(v, min(stats.Effective(v), 20)) {
			fmt.Fprintf(o, "Benchmark%s/cache=%s\t%d\t%.6g ns/op\t%.6g B/s", goName(c.Case), temperature, c.Launches, v*1e9,
				float64(c.Bytes)/v)
			if b.ReadCeiling != nil {
				fmt.Fprintf(o, "\t%.4g %%read", 100*float64(c.Bytes)/v / *b.ReadCeiling)
			}
			fmt.Fprintln(o)
		}
	}
	return o.Flush()
}

// goName makes a case's name that of a Go benchmark, which begins with a capital.
func goName(name string) string { return strings.ToUpper(name[:1]) + name[1:] }
