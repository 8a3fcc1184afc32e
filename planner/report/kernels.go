package report

import (
	"bufio"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg/draw"

	"kvtune/harness"
)

// mapWorst is where the colours of KernelMaps end, twice the fastest's time: what is far worse would leave no colour to
// tell the others apart.
const mapWorst = 1

// KernelMaps are heat maps of a kernel benchmark, one for every group that has more than one layout or block size: what
// each costs against the fastest.
func KernelMaps(b *harness.Bench) []HeatMap {
	temperature := "warm"
	if b.Cold {
		temperature = "cold"
	}
	var maps []HeatMap
	for _, group := range kernelGroups(b) {
		m := HeatMap{Title: temperature + " " + group, Least: 0.1,
			Says:   "time above the fastest's (~ not significant); measured, " + b.Device,
			XLabel: "block_size", YLabel: "layout"}
		var members []*harness.BenchCase
		for i := range b.Cases {
			if c := &b.Cases[i]; c.Group() == group {
				members = append(members, c)
				if !slices.Contains(m.X, c.Axes["block_size"]) {
					m.X = append(m.X, c.Axes["block_size"])
				}
				if !slices.Contains(m.Y, c.Axes["layout"]) {
					m.Y = append(m.Y, c.Axes["layout"])
				}
			}
		}
		if len(m.X)*len(m.Y) < 2 {
			continue
		}
		slices.SortFunc(m.X, func(a, b string) int {
			x, _ := strconv.Atoi(a)
			y, _ := strconv.Atoi(b)
			return x - y
		})
		for _, layout := range m.Y {
			values, texts := make([]float64, len(m.X)), make([]string, len(m.X))
			for i, size := range m.X {
				values[i], texts[i] = math.NaN(), "-"
				for _, c := range members {
					if c.Axes["layout"] != layout || c.Axes["block_size"] != size {
						continue
					}
					if texts[i], values[i] = c.Cost(), 0; c.Slower != nil {
						values[i] = min(max(0, *c.Slower-1), mapWorst)
					}
				}
			}
			m.Values, m.Texts = append(m.Values, values), append(m.Texts, texts)
		}
		maps = append(maps, m)
	}
	return maps
}

// kernelGroups are the different groups of a benchmark's cases, in order.
func kernelGroups(b *harness.Bench) (groups []string) {
	for i := range b.Cases {
		if g := b.Cases[i].Group(); !slices.Contains(groups, g) {
			groups = append(groups, g)
		}
	}
	return groups
}

// kernelRows are the cells of a table of the benchmark, below kernelHead.
func kernelRows(b *harness.Bench) (rows [][]string) {
	for i := range b.Cases {
		c := &b.Cases[i]
		share := notObserved
		if b.ReadCeiling != nil {
			share = fmt.Sprintf("%.0f", 100*c.Bandwidth() / *b.ReadCeiling)
		}
		rows = append(rows, []string{c.Axes["op"], c.Axes["block_size"], c.Axes["layout"],
			fmt.Sprintf("%.*f", decimals(c.Median*1e6), c.Median*1e6), fmt.Sprintf("%.4g", c.Bandwidth()/1e9), share, c.Cost()})
	}
	return rows
}

// decimals are those that four digits leave.
func decimals(v float64) int {
	for d, limit := 0, 1000.0; d < 3; d, limit = d+1, limit/10 {
		if v >= limit {
			return d
		}
	}
	return 3
}

var kernelHead = [...]string{"op", "block_size", "layout", "time us", "GB/s", "% of read", "against the best"}

// kernelVerdict is what a benchmark is and on what.
func kernelVerdict(b *harness.Bench) string {
	verdict := "measured on " + b.Device + " (" + b.Backend + " backend)"
	if b.Partial {
		verdict += "; PARTIAL: " + b.Why
	}
	return verdict
}

// KernelTable is what block sizes and layouts cost.
func KernelTable(b *harness.Bench) Section {
	return func(w *bufio.Writer) { kernelTable(w, b) }
}

func kernelTable(w *bufio.Writer, b *harness.Bench) {
	fmt.Fprintln(w, "what a block size costs in a kernel, MEASURED")
	wrap(w, "", "", kernelVerdict(b))
	widths := [len(kernelHead)]int{8, 10, 9, 10, 9, 9, 16}
	line := func(cells []string) {
		for i, cell := range cells {
			if i > 0 {
				fmt.Fprint(w, "  ")
			}
			fmt.Fprint(w, padLeft(clean(cell, widths[i]), widths[i]))
		}
		fmt.Fprintln(w)
	}
	line(kernelHead[:])
	rows := kernelRows(b)
	for _, row := range rows {
		line(row)
	}
	if slices.ContainsFunc(rows, func(row []string) bool { return strings.HasSuffix(row[len(row)-1], "~") }) {
		fmt.Fprintln(w, "(~ not significant)")
	}
}

// kernels lays out a kernel benchmark: maps of what layouts and block sizes cost, a roofline under the ceilings that
// were measured in the same run, and every case.
func (p *page) kernels(in Input) error {
	b := in.Kernels
	if b == nil {
		return nil
	}
	hs, err := heats(KernelMaps(b))
	if err != nil {
		return err
	}
	origin := "Measured"
	if b.Origin != harness.OriginMeasured {
		origin = "SIMULATED"
	}
	blocks := []block{{Text: []string{fmt.Sprintf("%s on %s (%s backend).", origin, b.Device, b.Backend)}, Heats: hs}}
	if roof := kernelRoofline(b); roof.missing == "" {
		cs, err := charts([]panel{roof}, nil)
		if err != nil {
			return err
		}
		cs[0].Table = table{} // the cases below are its figures
		blocks = append(blocks, block{Charts: cs})
	}
	blocks = append(blocks, block{Tables: []table{caseTable(b)}})
	p.add("kernels", "What a block size costs in a kernel", blocks...)
	return nil
}

// caseTable has a row for every case.
func caseTable(b *harness.Bench) table {
	t := table{Caption: "All cases: medians of one launch", Sort: true, Filter: true,
		Head: []string{"op", "case", "block_size", "layout", "time, us", "GB/s", "% of ceiling", "TFLOP/s", "% of matrix",
			"against the best", "p (Holm)", "significant", "samples"},
		Note: fmt.Sprintf("Small figures are 95 %% intervals, of the comparison with the best 99 %%. Significant: "+
			"Mann-Whitney test on nearly independent values, p below %v after Holm's correction. The ceiling is that of "+
			"reading, or of the link for swaps, measured in the same run.", harness.BenchSignificance)}
	varying, constant := varyingAxes(b)
	if constant != "" {
		t.Note = "All cases: " + constant + ". " + t.Note
	}
	for i := range b.Cases {
		c := &b.Cases[i]
		micro := scale{unit: "us", per: 1e-6}
		half := 0.0
		took := cellText{Value: number(c.Median)}
		if c.Low != nil && c.High != nil {
			half = (*c.High - *c.Low) / 2
			took.Small = micro.digits(*c.Low, half) + " to " + micro.digits(*c.High, half)
		}
		took.Text = micro.digits(c.Median, half)
		if len(c.Warnings) > 0 {
			took.Note, took.Mark = strings.Join(c.Warnings, "; "), true
		}
		ceiling := b.ReadCeiling
		if link := b.Link(c.Axes["op"]); link != nil {
			ceiling = link
		}
		of := func(v float64, ceiling *float64) cellText {
			if ceiling == nil || v == 0 {
				return cellText{Text: "-", Missing: true}
			}
			return cellText{Text: fmt.Sprintf("%.0f", 100*v / *ceiling)}
		}
		rate, flops := cellText{Text: fmt.Sprintf("%.4g", c.Bandwidth()/1e9)}, cellText{Text: "-", Missing: true}
		if c.Flops > 0 {
			flops = cellText{Text: fmt.Sprintf("%.3g", c.Flops/c.Median/1e12)}
		}
		against, chance, significant := cellText{Text: "best", Value: "0"}, cellText{Text: "-"},
			cellText{Text: "-", Words: true}
		if c.Slower != nil {
			against = cellText{Text: fmt.Sprintf("%+.1f %%", 100*(*c.Slower-1)), Value: number(*c.Slower - 1)}
			if c.SlowerLow != nil && c.SlowerHigh != nil {
				against.Small = fmt.Sprintf("%+.1f to %+.1f", 100*(*c.SlowerLow-1), 100*(*c.SlowerHigh-1))
			}
			if c.P != nil {
				chance.Text, significant.Text = fmt.Sprintf("%.2g", *c.P), "no"
			}
			if c.Significant() {
				significant.Text = "yes"
			}
		}
		t.Rows = append(t.Rows, []cellText{{Text: c.Axes["op"]}, {Text: varying(c), Words: true},
			{Text: c.Axes["block_size"]}, {Text: c.Axes["layout"], Words: true}, took, rate, of(c.Bandwidth(), ceiling), flops,
			of(c.Flops/c.Median, b.MatrixCeiling), against, chance, significant,
			{Text: fmt.Sprintf("%d x %d", c.Samples, c.Launches)}})
	}
	return t
}

// varyingAxes tells the axes of a case in which the benchmark's cases differ, beside operation, layout and block size;
// constant are those in which they do not.
func varyingAxes(b *harness.Bench) (varying func(*harness.BenchCase) string, constant string) {
	values := map[string]map[string]bool{}
	for i := range b.Cases {
		for part := range strings.SplitSeq(b.Cases[i].Case, "/") {
			if axis, value, ok := strings.Cut(part, "="); ok {
				if values[axis] == nil {
					values[axis] = map[string]bool{}
				}
				values[axis][value] = true
			}
		}
	}
	tell := func(c *harness.BenchCase, one bool) string {
		var parts []string
		for part := range strings.SplitSeq(c.Group(), " ") {
			axis, _, ok := strings.Cut(part, "=")
			if ok && (len(values[axis]) == 1) == one {
				parts = append(parts, part)
			}
		}
		return strings.Join(parts, " ")
	}
	if len(b.Cases) > 0 {
		constant = tell(&b.Cases[0], true)
	}
	return func(c *harness.BenchCase) string { return tell(c, false) }, constant
}

// kernelRoofline places the cases that compute under the ceilings of the same run.
func kernelRoofline(b *harness.Bench) panel {
	p := panel{subject: "roofline, one dot per case", xLabel: "arithmetic intensity, flop/B", legend: []string{}}
	if b.ReadCeiling == nil || b.MatrixCeiling == nil {
		p.missing = "the machine's ceilings were not measured"
		return p
	}
	const tera = 1e12
	flops, bandwidth := *b.MatrixCeiling/tera, *b.ReadCeiling/tera
	ridge := flops / bandwidth
	low, high, bottom, best := ridge/10, ridge*10, flops/10, 0.0
	chart := newPlot("Tflop/s")
	for i := range b.Cases {
		c := &b.Cases[i]
		if !(c.Flops > 0 && c.Bytes > 0) {
			continue
		}
		at := slices.Index(p.legend, c.Axes["op"])
		if at < 0 {
			at, p.legend = len(p.legend), append(p.legend, c.Axes["op"])
		}
		xy := plotter.XY{X: c.Flops / float64(c.Bytes), Y: c.Flops / c.Median / tera}
		low, high, bottom = min(low, xy.X/1.5), max(high, xy.X*1.5), min(bottom, xy.Y/1.5)
		best = max(best, xy.Y/min(flops, xy.X*bandwidth))
		chart.Add(&plotter.Scatter{XYs: plotter.XYs{xy},
			GlyphStyle: draw.GlyphStyle{Color: palette.series[at%len(palette.series)], Radius: 3, Shape: draw.BoxGlyph{}}})
	}
	if best == 0 {
		p.missing = "no case computes"
		return p
	}
	line(chart, plotter.XYs{{X: low, Y: low * bandwidth}, {X: ridge, Y: flops}, {X: high, Y: flops}}, palette.ink, false)
	logAxis(&chart.X, low, high)
	logAxis(&chart.Y, bottom, flops*2)
	p.title = fmt.Sprintf("The best case reaches %.0f %% of its ceiling", 100*best)
	p.says = fmt.Sprintf("%.3g TB/s and %.3g Tflop/s measured", bandwidth, flops)
	p.plots, p.still = []*plot.Plot{chart}, true
	return p
}

// benchFacts are the circumstances of a kernel benchmark.
func benchFacts(b *harness.Bench) (facts [][2]string) {
	add := func(name, value string) {
		if value != "" {
			facts = append(facts, [2]string{name, value})
		}
	}
	rate := func(name string, v *float64, per float64, unit string) {
		if v != nil {
			add(name, fmt.Sprintf("%.4g %s", *v/per, unit))
		}
	}
	temperature := "warm: data may be in a cache"
	if b.Cold {
		temperature = "cold: data of a launch is in no cache"
	}
	add("device", b.Device)
	add("backend", b.Backend)
	add("caches", temperature)
	add("rounds", strconv.Itoa(b.Rounds))
	rate("ceiling of reading", b.ReadCeiling, 1e9, "GB/s")
	rate("ceiling of copying", b.CopyCeiling, 1e9, "GB/s")
	rate("ceiling of matrix products", b.MatrixCeiling, 1e12, "Tflop/s")
	rate("link, to the host", b.ToHost, 1e9, "GB/s")
	rate("link, to the device", b.ToDevice, 1e9, "GB/s")
	rate("an empty launch", b.LaunchFloor, 1e-6, "us")
	if gated := gatedSamples(b); gated > 0 {
		add("throttled samples", strconv.Itoa(gated)+", left out")
	}
	if !b.Conditions.Started.IsZero() {
		add("started", b.Conditions.Started.UTC().Format("2006-01-02 15:04:05 UTC"))
	}
	add("host", b.Conditions.Host)
	add("tool", b.Conditions.Tool)
	if len(b.Conditions.Command) > 0 {
		add("command", ShellLine(b.Conditions.Command))
	}
	return facts
}

// gatedSamples counts the samples of a device that was not fit.
func gatedSamples(b *harness.Bench) (n int) {
	for i := range b.Cases {
		n += b.Cases[i].Gated
	}
	return n
}

// BenchVerdict is what a kernel benchmark alone says: where the choice of block size and layout matters, and how much
// it costs at most.
func BenchVerdict(b *harness.Bench) string {
	choices := 0
	var worst, best *harness.BenchCase
	for _, g := range kernelGroups(b) {
		members := 0
		var fastest *harness.BenchCase
		for i := range b.Cases {
			c := &b.Cases[i]
			if c.Group() != g {
				continue
			}
			members++
			if fastest == nil || c.Median < fastest.Median {
				fastest = c
			}
		}
		if members < 2 {
			continue
		}
		choices++
		for i := range b.Cases {
			c := &b.Cases[i]
			if c.Group() == g && c.Significant() && c.Slower != nil && (worst == nil || *c.Slower > *worst.Slower) {
				worst, best = c, fastest
			}
		}
	}
	var says string
	switch {
	case choices == 0:
		says = fmt.Sprintf("%d cases, none of them with a choice of block_size or layout", len(b.Cases))
	case worst == nil:
		says = fmt.Sprintf("no block_size or layout is slower than the best beyond chance, in %d groups of cases", choices)
	default:
		says = fmt.Sprintf("%s: block_size %s %s costs %s against %s %s", worst.Axes["op"], worst.Axes["block_size"],
			worst.Axes["layout"], worst.Cost(), best.Axes["block_size"], best.Axes["layout"])
		if choices > 1 {
			says += fmt.Sprintf(", the most of %d groups of cases", choices)
		}
	}
	return says + "; measured, " + b.Backend + " backend"
}
