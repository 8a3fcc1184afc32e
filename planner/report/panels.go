package report

import (
	"cmp"
	"fmt"
	"image/color"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"kvtune/harness"
	"kvtune/harness/stats"
	"kvtune/harness/workload"
)

// points is how many points of a line are drawn at most.
const points = 300

// panelsOf are the charts of picture and page, in order.
func panelsOf(in Input) []panel {
	runs := in.Runs[:min(len(in.Runs), len(palette.series))]
	ps := []panel{
		latencyPanel(runs, "Time to first token (TTFT)", harness.MetricTTFT, "no request was answered"),
		latencyPanel(runs, "Time between tokens (ITL)", harness.MetricITL, "no request has two tokens"),
		latencyPanel(runs, "Time to the last token (E2EL)", harness.MetricE2EL, "no request was answered"),
	}
	if len(runs) == 1 {
		ps = append(ps, throughputOverTime(runs[0]))
	} else {
		ps = append(ps, throughputPerRun(runs))
	}
	ps = append(ps, usagePanel(runs), rooflinePanel(in, runs))
	for i := range ps {
		ps[i].stamped = in.simulated()
	}
	return ps
}

// quantileTicks label x = 1/(1-q) by q, as HdrHistogram's percentile plots do.
var quantileTicks = plot.ConstantTicks{
	{Value: 1, Label: "0"}, {Value: 2, Label: "50"}, {Value: 10, Label: "90"}, {Value: 100, Label: "99"},
	{Value: 1e3, Label: "99.9"}, {Value: 1e4, Label: "99.99"}, {Value: 1e5, Label: "99.999"},
}

// latencyPanel draws each run's distribution: the latency that a share of the requests (or gaps) does not exceed, the
// share on an axis that gives every further nine the same room.
func latencyPanel(runs []Run, title, metric, missing string) panel {
	p := panel{title: title, head: []string{"run", "values", "p50", "p90", "p99", "largest"}}
	samples := make([]stats.Sample, len(runs))
	low, high, last := math.Inf(1), 0.0, 10.0
	for i, r := range runs {
		s := stats.New(harness.Samples(r.Records, metric))
		samples[i] = s
		if s.N() > 0 {
			low, high = min(low, s.Percentile(0)), max(high, s.Max())
			last = max(last, float64(s.N()))
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
	chart := newPlot(unit.unit)
	p.xLabel = "percentile"
	chart.X.Scale, chart.X.Min, chart.X.Max = plot.LogScale{}, 1, last
	chart.X.Tick.Marker = quantileTicks
	logAxis(&chart.Y, low, high*1.05)
	best, worst := -1, -1
	for i, s := range samples {
		name := clean(runs[i].Result.Name, 40)
		if s.N() == 0 {
			p.rows = append(p.rows, []string{name, "0", notObserved, notObserved, notObserved, notObserved})
			continue
		}
		line(chart, quantiles(s, unit.per, chart.Y.Min), palette.series[i], true)
		row := []string{name, grouped(strconv.Itoa(s.N()))}
		for _, q := range []float64{50, 90, 99, 100} {
			row = append(row, seconds(s.Percentile(q)))
		}
		p.rows = append(p.rows, row)
		if best < 0 || s.Percentile(99) < samples[best].Percentile(99) {
			best = i
		}
		if worst < 0 || s.Percentile(99) > samples[worst].Percentile(99) {
			worst = i
		}
	}
	p99 := func(i int) string { return seconds(samples[i].Percentile(99)) }
	if best == worst {
		p.says = fmt.Sprintf("half within %s, 99 %% within %s", seconds(samples[best].Percentile(50)), p99(best))
	} else {
		p.says = fmt.Sprintf("99 %% within %s (%s) to %s (%s)", p99(best), clean(runs[best].Result.Name, 18),
			p99(worst), clean(runs[worst].Result.Name, 18))
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

// throughputPerRun draws prompt and output tokens per second as bars.
func throughputPerRun(runs []Run) panel {
	p := panel{title: "Throughput", head: []string{"run", "total", "output", "requests"}}
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
	p.says = fmt.Sprintf("most: %s; dark: output, pale: prompt too; bars: 95 %%", clean(runs[best].Result.Name, 22))
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

// throughputOverTime draws the tokens that arrive per second in forty parts of one run.
func throughputOverTime(r Run) panel {
	const parts = 40
	p := panel{title: "Throughput over time", head: []string{"from, s", "output token/s", "prompt token/s"}}
	end := time.Duration(0)
	for i := range r.Records {
		end = max(end, r.Records[i].End())
	}
	if end <= 0 {
		p.missing = "no request was answered"
		return p
	}
	var output, prompt [parts]float64
	each := end.Seconds() / parts
	in := func(t time.Duration) int { return min(parts-1, max(0, int(t.Seconds()/each))) }
	for i := range r.Records {
		rec := &r.Records[i]
		if !rec.OK() || rec.Phase != workload.Measured {
			continue
		}
		prompt[in(rec.Sent+rec.Tokens[0].At)] += float64(rec.PromptTokens) / each
		for _, e := range rec.Tokens {
			output[in(rec.Sent+e.At)] += float64(e.Tokens) / each
		}
	}
	chart := newPlot("token/s")
	p.xLabel = "time from the run's start, s"
	var out, all plotter.XYs
	for i := range parts {
		t := float64(i) * each
		out = append(out, plotter.XY{X: t, Y: output[i]})
		all = append(all, plotter.XY{X: t, Y: output[i] + prompt[i]})
		p.rows = append(p.rows, []string{strconv.FormatFloat(t, 'g', 4, 64), scaleFor("token/s").digits(output[i], 0),
			scaleFor("token/s").digits(prompt[i], 0)})
	}
	edge := func(xys plotter.XYs) plotter.XYs { return append(xys, plotter.XY{X: end.Seconds(), Y: xys[parts-1].Y}) }
	pale := palette.series[0]
	pale.A = 90
	chart.Add(&plotter.Line{XYs: edge(all), StepStyle: plotter.PostStep, FillColor: pale})
	line(chart, edge(out), palette.series[0], true)
	chart.Y.Min = 0
	p.says = "of measured requests; line: output, area: prompt too"
	p.plots = []*plot.Plot{chart}
	return p
}

// usagePanel draws KV usage, and requests running and waiting, over time.
func usagePanel(runs []Run) panel {
	p := panel{
		title: "KV cache and requests over time",
		head:  []string{"run", "KV usage peak", "running peak", "waiting peak"},
	}
	cache, requests := newPlot("KV in use, %"), newPlot("requests")
	p.xLabel = "time from the run's start, s"
	highest, end := 0.0, 0.0
	fullest, seen := 0, false
	peaks := make([]float64, len(runs))
	for i, r := range runs {
		c := palette.series[i]
		row := []string{clean(r.Result.Name, 40)}
		for _, g := range []struct {
			metric string
			chart  *plot.Plot
			per    float64
			dashes []vg.Length
		}{
			{"vllm:kv_cache_usage_perc", cache, 0.01, nil},
			{"vllm:num_requests_running", requests, 1, nil},
			{"vllm:num_requests_waiting", requests, 1, []vg.Length{2, 3}},
		} {
			xys := gauge(r, g.metric, g.per)
			if len(xys) == 0 {
				row = append(row, notObserved)
				continue
			}
			seen = true
			line(g.chart, xys, c, true, g.dashes...)
			peak := slices.MaxFunc(xys, func(a, b plotter.XY) int { return cmp.Compare(a.Y, b.Y) }).Y
			end = max(end, xys[len(xys)-1].X)
			if g.chart == cache {
				peaks[i] = peak
				row = append(row, strconv.FormatFloat(peak, 'f', 1, 64)+" %")
			} else {
				highest = max(highest, peak)
				row = append(row, strconv.FormatFloat(peak, 'f', -1, 64)+" requests")
			}
		}
		if peaks[i] > peaks[fullest] {
			fullest = i
		}
		p.rows = append(p.rows, row)
	}
	if !seen {
		p.missing = "the server's gauges were not sampled"
		return p
	}
	cache.X.Min, cache.X.Max, requests.X.Min, requests.X.Max = 0, max(end, 1e-9), 0, max(end, 1e-9)
	cache.Y.Min, cache.Y.Max = 0, min(100, max(1, peaks[fullest]*1.1))
	requests.Y.Min, requests.Y.Max = 0, max(1, highest*1.1)
	p.says = fmt.Sprintf("fullest: %s, %.3g %%; waiting is dotted", clean(runs[fullest].Result.Name, 18),
		peaks[fullest])
	p.plots = []*plot.Plot{cache, requests}
	return p
}

// gauge is one of the server's gauges over time, thinned to the largest value in each part of the run; from the
// analysis where the run has no samples.
func gauge(r Run, metric string, per float64) plotter.XYs {
	var all plotter.XYs
	for _, s := range r.Series {
		if s.Metric == metric {
			all = append(all, plotter.XY{X: s.T.Seconds(), Y: s.Value / per})
		}
	}
	if len(all) == 0 && r.Analysis != nil {
		for _, u := range r.Analysis.Utilization.Points {
			v := map[string]*float64{"vllm:kv_cache_usage_perc": u.KVUsage, "vllm:num_requests_running": u.Running,
				"vllm:num_requests_waiting": u.Waiting}[metric]
			if v != nil {
				all = append(all, plotter.XY{X: u.T, Y: *v / per})
			}
		}
	}
	if len(all) <= points {
		return all
	}
	from, to := all[0].X, all[len(all)-1].X
	var thin plotter.XYs
	part := -1
	for _, xy := range all {
		at := min(points-1, int((xy.X-from)/(to-from)*points))
		if at != part {
			thin = append(thin, xy)
			part = at
		} else {
			thin[len(thin)-1].Y = max(thin[len(thin)-1].Y, xy.Y)
		}
	}
	return thin
}

// rooflinePanel places engine steps under the device's two ceilings. Steps that had to be rebuilt from the arrival of
// tokens scatter, even above the ceilings: tokens that were held up arrive together.
func rooflinePanel(in Input, runs []Run) panel {
	p := panel{
		title: "Roofline",
		head:  []string{"run", "steps drawn", "memory-bound side", "median of the nearer ceiling"},
	}
	flops, bandwidth := 1.0, 1.0
	chart := newPlot("share of peak arithmetic")
	p.xLabel = "arithmetic intensity / the device's balance"
	if in.Cost != nil && in.Cost.Limits.Flops > 0 && in.Cost.Limits.Bandwidth > 0 {
		const tera = 1e12
		flops, bandwidth = in.Cost.Limits.Flops/tera, in.Cost.Limits.Bandwidth/tera
		p.xLabel, chart.Y.Label.Text = "arithmetic intensity of a step, flop/B", "Tflop/s"
	}
	ridge := flops / bandwidth
	low, high := ridge/10, ridge*10
	bottom := flops / 10
	left, drawn, rebuilt := 0, 0, ""
	for i, r := range runs {
		var xys plotter.XYs
		var reached []float64
		runLeft := 0
		if r.Analysis != nil && r.Analysis.Roofline != nil {
			if len(r.Steps) == 0 {
				rebuilt = "; steps rebuilt"
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
			row[2] = percent(float64(runLeft)/float64(len(xys)), false)
			row[3] = percent(stats.New(reached).Percentile(50), false)
			c := palette.series[i]
			c.A = 120
			dot := draw.GlyphStyle{Color: c, Radius: 2.6, Shape: draw.CircleGlyph{}}
			chart.Add(&plotter.Scatter{XYs: xys, GlyphStyle: dot})
		}
		left, drawn = left+runLeft, drawn+len(xys)
		p.rows = append(p.rows, row)
	}
	if drawn == 0 {
		p.missing = "no cost model, or no engine step"
		return p
	}
	ceiling := plotter.XYs{{X: low, Y: low * bandwidth}, {X: ridge, Y: flops}, {X: high, Y: flops}}
	line(chart, ceiling, palette.ink, false)
	logAxis(&chart.X, low, high)
	logAxis(&chart.Y, bottom, flops*2)
	memorySide := percent(float64(left)/float64(drawn), false)
	p.says = memorySide + " of the steps (dots) on the memory side of the ridge"
	if bandwidth != 1 {
		p.says = fmt.Sprintf("%.3g TB/s, %.0f Tflop/s; %s on the memory side%s", bandwidth, flops, memorySide, rebuilt)
	}
	p.plots = []*plot.Plot{chart}
	return p
}
