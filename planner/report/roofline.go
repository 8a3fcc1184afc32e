package report

import (
	"fmt"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg/draw"

	"kvtune/harness"
	"kvtune/harness/stats"
)

// rooflinePanel places engine steps under the device's two ceilings. Steps that had to be rebuilt from the arrival of
// tokens scatter, even above the ceilings: tokens that were held up arrive together.
func rooflinePanel(in Input, runs []Run) panel {
	p := panel{
		subject: "roofline, a dot per step",
		head:    []string{"run", "steps drawn", "memory-bound side", "median of the nearer ceiling"},
	}
	flops, bandwidth := 1.0, 1.0
	chart := newPlot("share of peak arithmetic")
	p.xLabel = "arithmetic intensity / the device's balance"
	const tera = 1e12
	for _, r := range runs { // all of one device
		if r.Analysis != nil && r.Analysis.Roofline != nil && r.Analysis.Roofline.Flops > 0 &&
			r.Analysis.Roofline.Bandwidth > 0 {
			flops, bandwidth = r.Analysis.Roofline.Flops/tera, r.Analysis.Roofline.Bandwidth/tera
			break
		}
	}
	if bandwidth == 1 && in.Cost != nil && in.Cost.Limits.Flops > 0 && in.Cost.Limits.Bandwidth > 0 {
		flops, bandwidth = in.Cost.Limits.Flops/tera, in.Cost.Limits.Bandwidth/tera
	}
	if bandwidth != 1 {
		p.xLabel, chart.Y.Label.Text = "arithmetic intensity of a step, flop/B", "Tflop/s"
	}
	ridge := flops / bandwidth
	low, high := ridge/10, ridge*10
	bottom := flops / 10
	left, dots, rebuilt := 0, 0, false
	for i, r := range runs {
		var xys plotter.XYs
		var reached []float64
		runLeft := 0
		if r.Analysis != nil && r.Analysis.Roofline != nil {
			if len(r.Steps) == 0 {
				rebuilt = true
			}
			for _, pt := range r.Analysis.Roofline.Points {
				if !(pt.Compute > 0 && pt.Memory > 0 && pt.Elapsed > 0) {
					continue
				}
				xy := plotter.XY{X: pt.Compute / pt.Memory * ridge, Y: pt.Compute / pt.Elapsed * flops}
				xys = append(xys, xy)
				low, high, bottom = min(low, xy.X/1.5), max(high, xy.X*1.5), min(bottom, xy.Y/1.5)
				reached = append(reached, max(pt.Compute, pt.Memory)/pt.Elapsed)
				if pt.Compute < pt.Memory {
					runLeft++
				}
			}
		}
		row := []string{clean(r.Result.Name, 40), strconv.Itoa(len(xys)), notObserved, notObserved}
		if len(xys) > 0 {
			row[2] = harness.Percent(float64(runLeft)/float64(len(xys)), false)
			row[3] = harness.Percent(stats.New(reached).Percentile(50), false)
			c := palette.series[i]
			c.A = 120
			chart.Add(&plotter.Scatter{XYs: xys, GlyphStyle: draw.GlyphStyle{Color: c, Radius: 2.2, Shape: draw.BoxGlyph{}}})
		}
		left, dots = left+runLeft, dots+len(xys)
		p.rows = append(p.rows, row)
	}
	if dots == 0 {
		p.missing = "no cost model, or no engine step"
		return p
	}
	ceiling := plotter.XYs{{X: low, Y: low * bandwidth}, {X: ridge, Y: flops}, {X: high, Y: flops}}
	line(chart, ceiling, palette.ink, false)
	logAxis(&chart.X, low, high)
	logAxis(&chart.Y, bottom, flops*2)
	memorySide := harness.Percent(float64(left)/float64(dots), false)
	p.title = memorySide + " of the steps are on the memory side"
	if bandwidth != 1 {
		p.says = fmt.Sprintf("%.3g TB/s, %.0f Tflop/s", bandwidth, flops)
	}
	if rebuilt {
		p.xLabel += "; steps rebuilt from tokens"
	}
	p.plots = []*plot.Plot{chart}
	return p
}
