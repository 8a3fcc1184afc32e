package report

import (
	"fmt"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"kvtune/harness"
)

// stepTimePanels draw what a run's step time goes to; none where no cost model said it.
func stepTimePanels(r Run) []panel {
	if r.Analysis == nil || len(r.Analysis.StepTime) == 0 {
		return nil
	}
	parts := r.Analysis.StepTime
	p := panel{subject: "parts of the step time, by the fitted model", xLabel: "share of the time in steps, %",
		legend: []string{}, head: []string{"part", "share", "per step", "meaning"}}
	chart := newPlot("")
	var ticks plot.ConstantTicks
	largest, low, high := 0, 0.0, 1.0
	for i, part := range parts {
		y := float64(len(parts) - i)
		ticks = append(ticks, plot.Tick{Value: y, Label: clean(part.Name, 30)})
		low, high = min(low, 105*part.Share), max(high, 105*part.Share)
		if part.Share > parts[largest].Share {
			largest = i
		}
		chart.Add(&plotter.Line{XYs: plotter.XYs{{X: 0, Y: y}, {X: 100 * part.Share, Y: y}},
			LineStyle: draw.LineStyle{Color: palette.series[0], Width: 12}})
		p.rows = append(p.rows, []string{part.Name, harness.Percent(part.Share, false), seconds(part.Seconds), part.Meaning})
	}
	chart.Y.Min, chart.Y.Max, chart.Y.Tick.Marker = 0.4, float64(len(parts))+0.6, ticks
	chart.X.Min, chart.X.Max = low, high
	p.title = fmt.Sprintf("%s of the step time is %s", harness.Percent(parts[largest].Share, false), parts[largest].Name)
	p.height, p.plots, p.still = vg.Length(22*len(parts)+100), []*plot.Plot{chart}, true
	return []panel{p}
}
