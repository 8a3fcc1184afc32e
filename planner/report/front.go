package report

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"kvtune/harness"
	"kvtune/planner"
)

// frontPanel draws the Pareto front of throughput against latency, the plans and the baselines beside it, and what was
// measured of them.
func frontPanel(ps *planner.Plans) panel {
	p := panel{subject: "Pareto front, every candidate that none beats in both", xLabel: "E2EL p99, s",
		legend: []string{"Pareto front", "plan", "measured", "knee", string(ps.Baseline.Strategy)},
		head:   []string{"point", "E2EL p99, s", "total token/s", "settings"}}
	if len(ps.Front) == 0 {
		p.missing = "no front was searched"
		return p
	}
	chart := newPlot("total throughput, token/s")
	lowX, highX, lowY, highY := math.Inf(1), 0.0, math.Inf(1), 0.0
	see := func(xy plotter.XY) {
		lowX, highX, lowY, highY = min(lowX, xy.X), max(highX, xy.X), min(lowY, xy.Y), max(highY, xy.Y)
	}
	var front, knees plotter.XYs
	for _, f := range ps.Front {
		xy := plotter.XY{X: f.Latency, Y: f.Throughput}
		see(xy)
		front = append(front, xy)
		what := "front"
		if f.Knee {
			knees, what = append(knees, xy), "front, knee"
		}
		p.rows = append(p.rows, []string{what, fmt.Sprintf("%.4g", f.Latency), scaleFor("token/s").digits(f.Throughput, 0),
			frontSettings(f)})
	}
	stairs := &plotter.Line{XYs: front, LineStyle: draw.LineStyle{Color: palette.series[0], Width: 1.6},
		StepStyle: plotter.PostStep}
	chart.Add(stairs)
	dots := func(xys plotter.XYs, c int, shape draw.GlyphDrawer, radius vg.Length) {
		if len(xys) > 0 {
			chart.Add(&plotter.Scatter{XYs: xys,
				GlyphStyle: draw.GlyphStyle{Color: palette.series[c], Radius: radius, Shape: shape}})
		}
	}
	dots(front, 0, draw.CircleGlyph{}, 3)
	dots(knees, 3, draw.RingGlyph{}, 8)
	of := func(ms harness.Metrics) (plotter.XY, bool) {
		y, okY := ms.Value(harness.MetricTotalThroughput, "")
		x, okX := ms.Value(harness.MetricE2EL, harness.StatP99)
		return plotter.XY{X: x, Y: y}, okX && okY
	}
	row := func(what string, xy plotter.XY, settings string) {
		see(xy)
		p.rows = append(p.rows, []string{what, fmt.Sprintf("%.4g", xy.X), scaleFor("token/s").digits(xy.Y, 0), settings})
	}
	if xy, ok := of(ps.Baseline.Predicted); ok {
		row(string(ps.Baseline.Strategy), xy, "")
		dots(plotter.XYs{xy}, 4, draw.CircleGlyph{}, 6)
	}
	var chosen, measured plotter.XYs
	var names []string
	for i := range ps.Plans {
		plan := &ps.Plans[i]
		if xy, ok := of(plan.Predicted); ok {
			row("plan "+string(plan.Strategy), xy, changesText(plan.Changed))
			chosen, names = append(chosen, xy), append(names, string(plan.Strategy))
		}
		if xy, ok := of(plan.Measured); ok {
			row("measured "+string(plan.Strategy), xy, "")
			measured = append(measured, xy)
		}
	}
	dots(chosen, 1, draw.PyramidGlyph{}, 6)
	dots(measured, 2, draw.BoxGlyph{}, 4)
	if len(ps.Plans) > 1 {
		nameDots(chart, chosen, names)
	}
	padX, padY := max((highX-lowX)*0.08, highX*0.02), max((highY-lowY)*0.08, highY*0.02)
	chart.X.Min, chart.X.Max = max(0, lowX-padX), highX+padX*2
	chart.Y.Min, chart.Y.Max = max(0, lowY-padY), highY+padY
	p.title = fmt.Sprintf("%d settings trade throughput for latency", len(front))
	if len(front) == 1 {
		p.title = "One setting is best in throughput and in latency"
	}
	if len(ps.Plans) > 0 {
		p.says = "PREDICTED"
	}
	p.plots = []*plot.Plot{chart}
	return p
}

// nameDots writes a name beside each dot, those of dots in one place below each other.
func nameDots(chart *plot.Plot, dots plotter.XYs, names []string) {
	const lineHeight = 12
	for i, dot := range dots {
		texts, err := plotter.NewLabels(plotter.XYLabels{XYs: plotter.XYs{dot}, Labels: names[i : i+1]})
		if err != nil {
			continue
		}
		texts.Offset.X = 6
		for _, other := range dots[:i] {
			if math.Abs(other.X-dot.X) < 0.01*dot.X && math.Abs(other.Y-dot.Y) < 0.01*dot.Y {
				texts.Offset.Y -= lineHeight
			}
		}
		texts.TextStyle[0] = textStyle(11, false, palette.ink)
		chart.Add(texts)
	}
}

func frontSettings(f planner.FrontPoint) string {
	text := fmt.Sprintf("max_num_batched_tokens %d, max_num_seqs %d, block_size %d", f.Args.MaxNumBatchedTokens,
		f.Args.MaxNumSeqs, f.Args.BlockSize)
	if f.Args.EnableChunkedPrefill != nil && !*f.Args.EnableChunkedPrefill {
		text += ", no chunked prefill"
	}
	return text
}

// rangePanel draws how far each strategy's choice is from the best settings of every rate.
func rangePanel(ps *planner.Plans) panel {
	p := panel{subject: "regret: what the choice loses against each rate's own best", xLabel: "arrival rate, request/s",
		legend: []string{}, head: []string{"plan", "request/s", "regret", "best settings of this rate alone"}}
	chart := newPlot("regret, %")
	rates := ps.Range.Rates
	top, worst := 0.5, -1
	for i, c := range ps.Range.Choices {
		p.legend = append(p.legend, string(c.Strategy))
		if worst < 0 || c.WorstRegret > ps.Range.Choices[worst].WorstRegret {
			worst = i
		}
		var xys plotter.XYs
		for _, pt := range c.Points {
			regret, winner := rangeTexts(ps, pt)
			p.rows = append(p.rows, []string{string(c.Strategy), fmt.Sprintf("%.4g", pt.Rate), regret, winner})
			if pt.Regret != nil {
				xys = append(xys, plotter.XY{X: pt.Rate, Y: 100 * *pt.Regret})
				top = max(top, 100**pt.Regret)
			}
		}
		if i < len(palette.series) && len(xys) > 0 {
			line(chart, xys, palette.series[i], false)
			chart.Add(&plotter.Scatter{XYs: xys, GlyphStyle: draw.GlyphStyle{Color: palette.series[i], Radius: 3,
				Shape: draw.CircleGlyph{}}})
		}
	}
	if worst < 0 || len(rates) == 0 {
		p.missing = "no range of rates was planned for"
		return p
	}
	var misses plotter.XYs
	for _, c := range ps.Range.Choices {
		for _, pt := range c.Points {
			if !pt.Met {
				misses = append(misses, plotter.XY{X: pt.Rate, Y: top * 1.1})
			}
		}
	}
	if len(misses) > 0 {
		chart.Add(&plotter.Scatter{XYs: misses, GlyphStyle: draw.GlyphStyle{Color: palette.alarm, Radius: 4, Shape: cross{}}})
		p.says = "cross: misses the SLOs"
	}
	pad := (rates[len(rates)-1] - rates[0]) * 0.03
	chart.X.Min, chart.X.Max, chart.Y.Min, chart.Y.Max = rates[0]-pad, rates[len(rates)-1]+pad, 0, top*1.15
	w := ps.Range.Choices[worst]
	where := "at every rate"
	if slices.ContainsFunc(w.Points, func(pt planner.RatePoint) bool { return !pt.Met }) {
		where = "where it meets the SLOs"
	}
	p.title = fmt.Sprintf("%s is within %s of the best %s", w.Strategy, harness.Percent(w.WorstRegret, false), where)
	p.plots = []*plot.Plot{chart}
	return p
}

// rangeTexts are a rate's regret and the best settings of the rate alone, in words.
func rangeTexts(ps *planner.Plans, pt planner.RatePoint) (regret, winner string) {
	regret, winner = "misses the SLOs", string(ps.Baseline.Strategy)
	switch {
	case !pt.Possible:
		regret, winner = "-", "none meets the SLOs"
	case pt.Regret != nil:
		regret = harness.Percent(*pt.Regret, false)
	}
	if len(pt.Winner) > 0 {
		winner = changesText(pt.Winner)
	}
	return regret, winner
}

// rangeFact is how far a strategy's choice is from the best over the whole range, in a sentence.
func rangeFact(ps *planner.Plans, c *planner.RateChoice) string {
	text := fmt.Sprintf("%s from %.4g to %.4g request/s: worst regret %s (%s to %s) at %.4g request/s; %s ", c.Strategy,
		ps.Range.Rates[0], ps.Range.Rates[len(ps.Range.Rates)-1], harness.Percent(c.WorstRegret, false),
		harness.Percent(c.Low, false), harness.Percent(c.High, false), c.At, ps.Baseline.Strategy)
	if c.BaselineRegret == nil {
		var rates []string
		for _, rate := range c.BaselineMisses {
			rates = append(rates, fmt.Sprintf("%.4g", rate))
		}
		return text + "misses the SLOs, or meets them in fewer draws, at " + strings.Join(rates, ", ")
	}
	return text + harness.Percent(*c.BaselineRegret, false)
}

// switchFact says between which rates the best settings change.
func switchFact(ps *planner.Plans, s planner.Switch) string {
	to := string(ps.Baseline.Strategy)
	if len(s.To) > 0 {
		to = changesText(s.To)
	}
	return fmt.Sprintf("the best settings change between %.4g and %.4g request/s to: %s", s.Above, s.Below, to)
}

// predictedPanel draws, for every metric of a verified plan, where the measurement was expected and where it came out,
// both against the prediction.
func predictedPanel(plan *planner.Plan) panel {
	p := panel{subject: "predicted with its 95 % range, against measured (the line at 0)",
		xLabel: "error of the prediction, % of what was measured", legend: []string{"predicted"}}
	rows, inside := predictedRows(plan)
	if len(rows) == 0 {
		p.missing = "nothing could be compared"
		return p
	}
	p.title = fmt.Sprintf("%d of %d metrics were within the predicted range", inside, len(rows))
	p.forest(rows)
	return p
}

// predictedRows are what was predicted of each metric as shares of what was measured, and how many were measured inside
// the predicted range or have none.
func predictedRows(plan *planner.Plan) (rows []forestRow, inside int) {
	for _, c := range plan.Compared {
		label := labelOf(c.Metric, c.Stat)
		if label == "" || c.Error == nil {
			continue
		}
		r := forestRow{label: label, marks: []float64{*c.Error}}
		if m := plan.Predicted.Get(c.Metric, c.Stat); m != nil && m.Low != nil && m.High != nil {
			r.low, r.high = new((*m.Low-c.Measured)/c.Measured), new((*m.High-c.Measured)/c.Measured)
		}
		if c.Inside == nil || *c.Inside {
			inside++
		}
		rows = append(rows, r)
	}
	return rows, inside
}

// forestRow is one line of a forest plot: marks and an interval as shares.
type forestRow struct {
	label     string
	marks     []float64
	low, high *float64
}

// forest draws rows from the top, each with its interval and its marks in the colours of the legend, the last one
// large. Ends beyond three times what the marks need are cut.
func (p *panel) forest(rows []forestRow) {
	chart := newPlot("")
	reach := 0.02
	for _, r := range rows {
		for _, m := range r.marks {
			reach = max(reach, math.Abs(m))
		}
	}
	low, high := -reach, reach
	for _, r := range rows {
		if r.low != nil {
			low = min(low, max(*r.low, -2*reach))
		}
		if r.high != nil {
			high = max(high, min(*r.high, 2*reach))
		}
	}
	var ticks plot.ConstantTicks
	n := float64(len(rows))
	for i, r := range rows {
		y := n - float64(i)
		ticks = append(ticks, plot.Tick{Value: y, Label: clean(r.label, 40)})
		if r.low != nil || r.high != nil {
			from, to := low, high
			if r.low != nil {
				from = max(low, *r.low)
			}
			if r.high != nil {
				to = min(high, *r.high)
			}
			c := palette.series[0]
			c.A = 110
			chart.Add(&plotter.Line{XYs: plotter.XYs{{X: 100 * from, Y: y}, {X: 100 * to, Y: y}},
				LineStyle: draw.LineStyle{Color: c, Width: 6}})
		}
		for k, m := range r.marks {
			shape, radius := draw.GlyphDrawer(draw.BoxGlyph{}), vg.Length(2)
			if k == len(r.marks)-1 {
				shape, radius = draw.CircleGlyph{}, 4
			}
			chart.Add(&plotter.Scatter{XYs: plotter.XYs{{X: 100 * m, Y: y}},
				GlyphStyle: draw.GlyphStyle{Color: palette.series[k], Radius: radius, Shape: shape}})
		}
	}
	chart.Y.Min, chart.Y.Max, chart.Y.Tick.Marker = 0.4, n+0.6, ticks
	pad := (high - low) * 0.04
	chart.X.Min, chart.X.Max = 100*(low-pad), 100*(high+pad)
	line(chart, plotter.XYs{{X: 0, Y: 0.4}, {X: 0, Y: n + 0.6}}, palette.faint, false)
	p.height = vg.Length(22*len(rows) + 100)
	p.plots, p.still = []*plot.Plot{chart}, true
}

// sweepTable are the rows of a sweep for the page.
func sweepTable(sweep *planner.SweepResult) table {
	t := table{Caption: "Parameter sweep (PREDICTED: SIMULATED in virtual time)", Sort: true, Filter: true,
		Head: []string{"C", "M", "B", "block_size", "target", "total token/s", "TTFT p99, ms", "TPOT mean, ms",
			"E2EL mean, ms", "change"}}
	columns := [...]struct {
		name, stat string
		per        float64
	}{{harness.MetricTotalThroughput, "", 1}, {harness.MetricTTFT, harness.StatP99, 1e-3},
		{harness.MetricTPOT, harness.StatMean, 1e-3}, {harness.MetricE2EL, harness.StatMean, 1e-3}}
	for i := range sweep.Rows {
		r := &sweep.Rows[i]
		row := []cellText{{Text: strconv.Itoa(r.C)}, {Text: strconv.Itoa(r.M)}, {Text: strconv.Itoa(r.B)},
			{Text: strconv.Itoa(r.BlockSize)}, {Text: string(r.Strategy), Words: true}}
		for _, c := range columns {
			cell := cellText{Text: "-", Missing: true}
			if r.Plan != nil {
				if m := r.Plan.Predicted.Get(c.name, c.stat); m != nil && m.Value != nil {
					s := scale{per: c.per}
					cell = cellText{Text: s.number(*m), Small: s.interval(*m), Value: number(*m.Value)}
				}
			}
			row = append(row, cell)
		}
		change := cellText{Text: "keep", Words: true}
		switch {
		case r.Plan == nil:
			change.Text, change.Missing = r.Why, true
		case len(r.Plan.Changed) > 0:
			change.Text = changesText(r.Plan.Changed)
		}
		t.Rows = append(t.Rows, append(row, change))
	}
	return t
}

// number is a value for the page's script to sort by.
func number(v float64) string { return strconv.FormatFloat(v, 'g', 6, 64) }
