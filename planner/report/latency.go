package report

import (
	"fmt"
	"math"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"kvtune/harness"
	"kvtune/harness/stats"
	"kvtune/harness/workload"
)

// latencyPanels are the distributions of the three latencies that users feel.
func latencyPanels(runs []Run) []panel {
	return []panel{
		latencyPanel(runs, "TTFT", "time to first token", harness.MetricTTFT, "no request was answered"),
		latencyPanel(runs, "ITL", "time between tokens", harness.MetricITL, "no request has two tokens"),
		latencyPanel(runs, "E2EL", "time to the last token", harness.MetricE2EL, "no request was answered"),
	}
}

// quantileTicks label x = 1/(1-q) by q, as HdrHistogram's percentile plots do.
var quantileTicks = plot.ConstantTicks{
	{Value: 1, Label: "0"}, {Value: 2, Label: "50"}, {Value: 10, Label: "90"}, {Value: 100, Label: "99"},
	{Value: 1e3, Label: "99.9"}, {Value: 1e4, Label: "99.99"}, {Value: 1e5, Label: "99.999"},
}

// latencyPanel draws each run's distribution: the latency that a share of the requests (or gaps) does not exceed, the
// share on an axis that gives every further nine the same room, as HdrHistogram's plots do.
func latencyPanel(runs []Run, short, long, metric, missing string) panel {
	p := panel{subject: long + " by percentile", title: short, head: []string{"percentile"}, xLabel: "percentile",
		quantile: true}
	all := make([]stats.Sample, len(runs))
	low, high, last := math.Inf(1), 0.0, 10.0
	for i, r := range runs {
		all[i] = stats.New(harness.Samples(r.Records, metric))
		p.head = append(p.head, clean(r.Result.Name, 40))
		if all[i].N() > 0 {
			// The few shortest of many would take half of the axis: they are drawn at its edge, and the table has them.
			low, high = min(low, all[i].Percentile(1)), max(high, all[i].Max())
			last = max(last, float64(all[i].N()))
		}
	}
	if high == 0 {
		p.missing = missing
		return p
	}
	low = max(low, high/1e5)                     // a log axis has no 0
	unit := scaleFor("s", 3*math.Sqrt(low*high)) // what suits the middle of the axis
	low /= unit.per
	high /= unit.per
	chart := newPlot(short + ", " + unit.unit)
	chart.X.Scale, chart.X.Min, chart.X.Max = plot.LogScale{}, 1, last
	chart.X.Tick.Marker = quantileTicks
	logAxis(&chart.Y, low, high*1.05)
	best, worst := -1, -1
	for i, s := range all {
		if s.N() == 0 {
			continue
		}
		line(chart, quantiles(s, unit.per, chart.Y.Min), palette.series[i], true)
		if best < 0 || s.Percentile(99) < all[best].Percentile(99) {
			best = i
		}
		if worst < 0 || s.Percentile(99) > all[worst].Percentile(99) {
			worst = i
		}
	}
	counts := []string{"values"}
	for _, s := range all {
		counts = append(counts, grouped(strconv.Itoa(s.N())))
	}
	for _, q := range tabled {
		if q > 99 && q < 100 && last*(100-q) < 100 {
			continue // no value is expected beyond it
		}
		row := []string{strconv.FormatFloat(q, 'f', -1, 64)}
		for _, s := range all {
			if s.N() == 0 {
				row = append(row, notObserved)
				continue
			}
			row = append(row, seconds(s.Percentile(q)))
		}
		p.rows = append(p.rows, row)
	}
	p.rows = append(p.rows, counts)
	p99 := func(i int) string { return seconds(all[i].Percentile(99)) }
	if best == worst {
		p.title = fmt.Sprintf("%s: half within %s, 99 %% within %s", short, seconds(all[best].Percentile(50)), p99(best))
	} else {
		p.title = fmt.Sprintf("%s p99: %s to %s (%s)", short, p99(best), p99(worst), clean(runs[worst].Result.Name, 20))
	}
	p.plots = []*plot.Plot{chart}
	return p
}

// seconds writes one latency with the unit that suits it.
func seconds(v float64) string {
	s := scaleFor("s", v)
	return s.digits(v, 0) + " " + s.unit
}

// quantiles are the points (1/(1-q), value) of a sample at evenly spaced places of the axis.
func quantiles(s stats.Sample, per, floor float64) plotter.XYs {
	n := float64(s.N())
	at := make([]float64, 0, points)
	if s.N() <= points {
		for i := range s.N() {
			at = append(at, float64(i)/n)
		}
	} else {
		for i := range points {
			at = append(at, 1-math.Pow(n, -float64(i)/(points-1)))
		}
	}
	xys := make(plotter.XYs, 0, len(at)+1)
	for _, q := range at {
		xys = append(xys, plotter.XY{X: 1 / (1 - q), Y: max(floor, s.Percentile(100*q)/per)})
	}
	return append(xys, plotter.XY{X: n, Y: max(floor, s.Max()/per)})
}

// tabled quantiles are the rows of a distribution's table, in percent.
var tabled = [...]float64{0, 10, 25, 50, 75, 90, 95, 99, 99.9, 99.99, 100}

// arrivals is how many requests of all runs are drawn by their arrival at most; arrivalParts the rows per run of their
// table.
const arrivals, arrivalParts = 1500, 12

// arrivalPanel draws every request's TTFT at the moment from which its user waits, failed ones at the upper edge: a
// queue that builds up is a slope.
func arrivalPanel(runs []Run) panel {
	p := panel{subject: "TTFT by arrival, one dot per request", xLabel: "arrival from the run's start, s",
		head: []string{"run", "from, s", "to, s", "requests", "TTFT p50", "largest TTFT", "failed"}}
	type one struct {
		at, ttft float64
		failed   bool
	}
	all := make([][]one, len(runs))
	low, high, end, n, failures := math.Inf(1), 0.0, 0.0, 0, 0
	for i, r := range runs {
		for k := range r.Records {
			rec := &r.Records[k]
			if rec.Phase != workload.Measured {
				continue
			}
			o := one{at: rec.Start().Seconds(), failed: !rec.OK()}
			if !o.failed {
				o.ttft = (rec.Sent + rec.Tokens[0].At - rec.Start()).Seconds()
				low, high = min(low, o.ttft), max(high, o.ttft)
			} else {
				failures++
			}
			end = max(end, o.at)
			all[i] = append(all[i], o)
			n++
		}
	}
	if high == 0 {
		p.missing = "no request was answered"
		return p
	}
	low = max(low, high/1e5)
	unit := scaleFor("s", 3*math.Sqrt(low*high))
	chart := newPlot("TTFT, " + unit.unit)
	logAxis(&chart.Y, low/unit.per*0.9, high/unit.per*1.15)
	chart.X.Min, chart.X.Max = 0, max(end*1.02, 1e-3)
	worst, worstRun := 0.0, 0
	each := 1 + (n-1)/arrivals
	for i, os := range all {
		var dots, crosses plotter.XYs
		slowest := -1 // of every few requests the slowest is drawn
		for k, o := range os {
			switch {
			case o.failed:
				crosses = append(crosses, plotter.XY{X: o.at, Y: chart.Y.Max})
			case slowest < 0 || o.ttft > os[slowest].ttft:
				slowest = k
			}
			if (k+1)%each == 0 || k == len(os)-1 {
				if slowest >= 0 {
					dots = append(dots, plotter.XY{X: os[slowest].at, Y: max(chart.Y.Min, os[slowest].ttft/unit.per)})
				}
				slowest = -1
			}
			if !o.failed && o.ttft > worst {
				worst, worstRun = o.ttft, i
			}
		}
		c := palette.series[i]
		c.A = 150
		glyph := draw.GlyphStyle{Color: c, Radius: vg.Points(2), Shape: draw.BoxGlyph{}}
		chart.Add(&plotter.Scatter{XYs: dots, GlyphStyle: glyph})
		failure := draw.GlyphStyle{Color: palette.alarm, Radius: vg.Points(3.5), Shape: cross{}}
		chart.Add(&plotter.Scatter{XYs: thinned(crosses, 200), GlyphStyle: failure})

		name, parts := clean(runs[i].Result.Name, 40), min(arrivalParts, max(1, len(os)))
		for part := range parts {
			from, to := end*float64(part)/float64(parts), end*float64(part+1)/float64(parts)
			var ttfts []float64
			failed := 0
			for _, o := range os {
				if o.at < from || o.at >= to && (part < parts-1 || o.at > to) {
					continue
				}
				if o.failed {
					failed++
				} else {
					ttfts = append(ttfts, o.ttft)
				}
			}
			if len(ttfts)+failed == 0 {
				continue
			}
			s := stats.New(ttfts)
			row := []string{name, fmt.Sprintf("%.4g", from), fmt.Sprintf("%.4g", to), strconv.Itoa(len(ttfts) + failed), "-",
				"-", strconv.Itoa(failed)}
			if s.N() > 0 {
				row[4], row[5] = seconds(s.Percentile(50)), seconds(s.Max())
			}
			p.rows = append(p.rows, row)
		}
	}
	p.title = fmt.Sprintf("Slowest first token: %s (%s)", seconds(worst), clean(runs[worstRun].Result.Name, 24))
	if each > 1 {
		p.says = fmt.Sprintf("the slowest of every %d", each)
	}
	if failures > 0 {
		p.says = join(p.says, fmt.Sprintf("crosses: %d failed", failures))
	}
	p.plots = []*plot.Plot{chart}
	return p
}

// join puts "; " between what is not empty.
func join(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "; " + b
}

// thinned keeps at most n of the points, evenly spaced, the first among them.
func thinned(xys plotter.XYs, n int) plotter.XYs {
	if len(xys) <= n {
		return xys
	}
	out := make(plotter.XYs, n)
	for i := range out {
		out[i] = xys[i*len(xys)/n]
	}
	return out
}
