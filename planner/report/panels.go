package report

import (
	"fmt"
	"image/color"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"

	"kvtune/harness"
)

// points is how many points of a line are drawn at most.
const points = 300

// drawn are the runs that there are colours for.
func drawn(runs []Run) []Run { return runs[:min(len(runs), len(palette.series))] }

// panelsOf are the charts of the picture, in order.
func panelsOf(in Input) []panel {
	runs := drawn(in.Runs)
	ps := latencyPanels(runs)
	if len(runs) == 1 {
		ps = append(ps, throughputOverTime(runs))
	} else {
		ps = append(ps, throughputPerRun(runs))
	}
	last := rooflinePanel(in, runs)
	if last.missing != "" { // there is always something to see instead
		last = arrivalPanel(runs)
	}
	return stamped(append(ps, usagePanel(runs), last), in.simulated())
}

// pagePanels are the charts of the page about its runs: the picture's, and those that need room.
func pagePanels(in Input) []panel {
	runs := drawn(in.Runs)
	ps := append(latencyPanels(runs), arrivalPanel(runs), throughputOverTime(runs))
	if len(runs) > 1 {
		ps = append(ps, throughputPerRun(runs))
	}
	return stamped(append(ps, usagePanel(runs), rooflinePanel(in, runs)), in.simulated())
}

func stamped(ps []panel, simulated bool) []panel {
	for i := range ps {
		ps[i].stamped = simulated
	}
	return ps
}

// throughputPerRun draws prompt and output tokens per second as bars.
func throughputPerRun(runs []Run) panel {
	p := panel{subject: "throughput per run", head: []string{"run", "total", "output", "requests"}}
	chart := newPlot("token/s")
	best, seen := 0, false
	value := func(i int, name string) float64 { v, _ := runs[i].Result.Metrics.Value(name, ""); return v }
	highest, reach := 0.0, 0.0
	names := make([]string, len(runs))
	var errs struct {
		plotter.XYs
		plotter.YErrors
	}
	for i, r := range runs {
		names[i] = twoLines(clean(r.Result.Name, 40), max(6, 44/len(runs)-1))
		row := []string{clean(r.Result.Name, 40)}
		for _, name := range []string{
			harness.MetricTotalThroughput, harness.MetricOutputThroughput, harness.MetricRequestThroughput,
		} {
			text := notObserved
			if m := r.Result.Metrics.Get(name, ""); m != nil && m.Value != nil {
				text = scaleFor(m.Unit).number(*m) + " " + m.Unit
			}
			row = append(row, text)
		}
		p.rows = append(p.rows, row)
		m := r.Result.Metrics.Get(harness.MetricTotalThroughput, "")
		if m == nil || m.Value == nil {
			continue
		}
		seen = true
		if *m.Value > value(best, harness.MetricTotalThroughput) {
			best = i
		}
		highest = max(highest, *m.Value)
		c := palette.series[i]
		pale := c
		pale.A = 110
		bar(chart, i, *m.Value, pale)
		bar(chart, i, value(i, harness.MetricOutputThroughput), c)
		if m.Low != nil && m.High != nil {
			errs.XYs = append(errs.XYs, plotter.XY{X: float64(i), Y: *m.Value})
			down, up := *m.Value-max(0, *m.Low), *m.High-*m.Value
			errs.YErrors = append(errs.YErrors, struct{ Low, High float64 }{max(0, down), max(0, up)})
			reach = max(reach, *m.High)
		}
	}
	if !seen {
		p.missing = "no request was answered"
		return p
	}
	top := min(max(1.1*highest, 1.05*reach), 1.6*highest) // a wide interval must not flatten the bars: it is cut
	for i := range errs.YErrors {
		errs.YErrors[i].High = min(errs.YErrors[i].High, top-errs.XYs[i].Y)
	}
	if bars, err := plotter.NewYErrorBars(errs); err == nil {
		bars.Color, bars.Width = palette.ink, 1.2
		chart.Add(bars)
	}
	chart.NominalX(names...)
	chart.Y.Padding = 3
	chart.X.Min, chart.X.Max = -0.6, float64(len(runs))-0.4
	chart.Y.Min, chart.Y.Max = 0, top
	p.title = fmt.Sprintf("%s token/s at most (%s)", scaleFor("token/s").digits(highest, highest/20),
		clean(runs[best].Result.Name, 22))
	p.says = "dark: output, pale: prompts too"
	if len(errs.XYs) > 0 {
		p.says = "dark: output; bars: 95 %"
	}
	p.plots = []*plot.Plot{chart}
	return p
}

// twoLines breaks a name that is longer than limit behind its last "-" or "_" within it.
func twoLines(name string, limit int) string {
	if len([]rune(name)) <= limit {
		return name
	}
	if at := strings.LastIndexAny(name[:min(len(name), limit)], "-_ "); at > 0 {
		return name[:at+1] + "\n" + clean(name[at+1:], limit)
	}
	return clean(name, limit)
}

func bar(chart *plot.Plot, at int, value float64, c color.Color) {
	chart.Add(&plotter.BarChart{Values: plotter.Values{value}, Width: 46, Color: c, XMin: float64(at)})
}
