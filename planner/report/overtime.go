package report

import (
	"cmp"
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
	"kvtune/harness/workload"
	"kvtune/planner/analysis"
)

const startX = "time from the run's start, s"

// throughputParts is in how many parts throughput over time is counted.
const throughputParts = 40

// throughputOverTime draws the tokens that arrive, and the prompt tokens that are answered, per second in forty parts
// of the time.
func throughputOverTime(runs []Run) panel {
	p := panel{subject: "tokens per second over time, of measured requests", xLabel: startX, head: []string{"from, s"}}
	begin, end := math.Inf(1), 0.0
	for _, r := range runs {
		for i := range r.Records {
			if rec := &r.Records[i]; rec.OK() && rec.Phase == workload.Measured {
				begin, end = min(begin, rec.Sent.Seconds()), max(end, rec.End().Seconds())
			}
		}
	}
	if end <= begin {
		p.missing = "no request was answered"
		return p
	}
	if begin < (end-begin)/20 {
		begin = 0
	}
	each := (end - begin) / throughputParts
	in := func(t float64) int { return min(throughputParts-1, max(0, int((t-begin)/each))) }
	output, prompt := newPlot("output token/s"), newPlot("prompt token/s")
	outputs, prompts := make([][throughputParts]float64, len(runs)), make([][throughputParts]float64, len(runs))
	highest, at, highestPrompt := 0.0, 0, 0.0
	for i, r := range runs {
		p.head = append(p.head, clean(r.Result.Name, 40)+", output token/s", "prompt token/s")
		for k := range r.Records {
			rec := &r.Records[k]
			if !rec.OK() || rec.Phase != workload.Measured {
				continue
			}
			prompts[i][in((rec.Sent + rec.Tokens[0].At).Seconds())] += float64(rec.PromptTokens) / each
			for _, e := range rec.Tokens {
				outputs[i][in((rec.Sent + e.At).Seconds())] += float64(e.Tokens) / each
			}
		}
		for _, one := range []struct {
			chart  *plot.Plot
			values [throughputParts]float64
		}{{output, outputs[i]}, {prompt, prompts[i]}} {
			var xys plotter.XYs
			for part, v := range one.values {
				xys = append(xys, plotter.XY{X: begin + float64(part)*each, Y: v})
			}
			line(one.chart, append(xys, plotter.XY{X: end, Y: one.values[throughputParts-1]}), palette.series[i], true)
		}
		if m := slices.Max(outputs[i][:]); m > highest {
			highest, at = m, i
		}
		highestPrompt = max(highestPrompt, slices.Max(prompts[i][:]))
	}
	for part := range throughputParts {
		row := []string{strconv.FormatFloat(begin+float64(part)*each, 'g', 4, 64)}
		for i := range runs {
			s := scaleFor("token/s")
			row = append(row, s.digits(outputs[i][part], 0), s.digits(prompts[i][part], 0))
		}
		p.rows = append(p.rows, row)
	}
	for _, one := range []struct {
		chart *plot.Plot
		top   float64
	}{{output, highest}, {prompt, highestPrompt}} {
		one.chart.X.Min, one.chart.X.Max, one.chart.Y.Min, one.chart.Y.Max = begin, end, 0, max(1, 1.1*one.top)
	}
	p.title = fmt.Sprintf("Up to %s output token/s (%s)", scaleFor("token/s").digits(highest, highest/20),
		clean(runs[at].Result.Name, 24))
	p.says = "prompts at their first token"
	p.plots = []*plot.Plot{output, prompt}
	return p
}

// usagePanel draws KV usage, and requests running and waiting, of all runs over time.
func usagePanel(runs []Run) panel {
	p := panel{
		subject: "KV cache and requests over time",
		head:    []string{"run", "KV usage peak", "running peak", "waiting peak"},
		xLabel:  startX,
	}
	cache, requests := newPlot("KV in use, %"), newPlot("requests")
	highest, end := 0.0, 0.0
	fullest, seen, waits := 0, false, false
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
			{harness.SeriesKVUsage, cache, 0.01, nil},
			{harness.SeriesRunning, requests, 1, nil},
			{harness.SeriesWaiting, requests, 1, []vg.Length{2, 3}},
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
			waits = waits || g.metric == harness.SeriesWaiting && peak > 0
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
	for i, r := range runs {
		p.event(cache, r, i, min(100, max(1, peaks[fullest]*1.1)))
	}
	cache.X.Min, cache.X.Max, requests.X.Min, requests.X.Max = 0, max(end, 1e-9), 0, max(end, 1e-9)
	cache.Y.Min, cache.Y.Max = 0, min(100, max(1, peaks[fullest]*1.1))
	requests.Y.Min, requests.Y.Max = 0, max(1, highest*1.1)
	p.title = fmt.Sprintf("KV cache at most %.3g %% full (%s)", peaks[fullest], clean(runs[fullest].Result.Name, 18))
	waiting := "waiting is dotted"
	if !waits {
		waiting = "no request waits"
	}
	p.says = join(waiting, p.says)
	p.plots = []*plot.Plot{cache, requests}
	return p
}

// event marks a run's events at the upper edge of a plot and says how many there are of each kind.
func (p *panel) event(chart *plot.Plot, r Run, at int, top float64) {
	if r.Analysis == nil || len(r.Analysis.Utilization.Events) == 0 {
		return
	}
	counts := map[analysis.EventKind]int{}
	marks := map[analysis.EventKind]plotter.XYs{}
	for _, e := range r.Analysis.Utilization.Events {
		counts[e.Kind] += e.Count
		marks[e.Kind] = append(marks[e.Kind], plotter.XY{X: e.T, Y: top})
	}
	for _, k := range eventKinds {
		if counts[k.kind] == 0 {
			continue
		}
		glyph := draw.GlyphStyle{Color: palette.alarm, Radius: 4, Shape: k.glyph}
		chart.Add(&plotter.Scatter{XYs: thinned(marks[k.kind], 100), GlyphStyle: glyph})
		if at == 0 || !strings.Contains(p.says, k.sign) {
			p.says = join(p.says, fmt.Sprintf("%s: %d x %s", k.sign, counts[k.kind], k.kind))
		}
	}
}

// eventKinds are how events are marked; a GPU at its power limit is no event but how it works, and its power is drawn.
var eventKinds = [...]struct {
	kind  analysis.EventKind
	glyph draw.GlyphDrawer
	sign  string
}{
	{analysis.EventPreemption, draw.PyramidGlyph{}, "triangle"},
	{analysis.EventThrottle, draw.BoxGlyph{}, "square"},
	{analysis.EventError, cross{}, "cross"},
}

// usageColumn is a quantity of use over time.
type usageColumn struct {
	name   string
	value  func(*analysis.UsagePoint) *float64
	per    float64
	unit   string
	dashed bool
}

// usagePlots are the plots of [useOverTime], one above the other, and what is drawn in each.
var usagePlots = [...]struct {
	label   string
	columns []usageColumn
}{
	{"KV, %", []usageColumn{
		{"KV blocks", func(u *analysis.UsagePoint) *float64 { return u.KVUsage }, 0.01, "%", false}}},
	{"requests", []usageColumn{
		{"running", func(u *analysis.UsagePoint) *float64 { return u.Running }, 1, "requests", false},
		{"waiting", func(u *analysis.UsagePoint) *float64 { return u.Waiting }, 1, "requests", true}}},
	{"token/step", []usageColumn{
		{"mean step", func(u *analysis.UsagePoint) *float64 { return u.StepTokens }, 1, "token", false},
		{"largest step", func(u *analysis.UsagePoint) *float64 { return u.StepTokensPeak }, 1, "token", true}}},
	{"model, %", []usageColumn{
		{"compute", func(u *analysis.UsagePoint) *float64 { return u.Compute }, 0.01, "%", false},
		{"bandwidth", func(u *analysis.UsagePoint) *float64 { return u.Bandwidth }, 0.01, "%", true}}},
	{"GPU, %", []usageColumn{
		{"SM", func(u *analysis.UsagePoint) *float64 { return u.SMActive }, 0.01, "%", false},
		{"memory", func(u *analysis.UsagePoint) *float64 { return u.MemoryActive }, 0.01, "%", true}}},
	{"power, W", []usageColumn{
		{"power", func(u *analysis.UsagePoint) *float64 { return u.Power }, 1, "W", false}}},
	{"CPU, %", []usageColumn{
		{"host CPU", func(u *analysis.UsagePoint) *float64 { return u.HostCPU }, 0.01, "%", false}}},
	{"RAM, GiB", []usageColumn{
		{"host memory", func(u *analysis.UsagePoint) *float64 { return u.HostMemory }, 1 << 30, "GiB", false}}},
}

// useOverTime draws one run's use of every resource that was observed, with what happened marked at the upper edge.
func useOverTime(r Run) panel {
	p := panel{subject: "use over time", xLabel: startX, head: []string{"from, s"}, legend: []string{}}
	if r.Analysis == nil {
		p.missing = "the run was not analysed"
		return p
	}
	u := &r.Analysis.Utilization
	end := 0.0
	for i := range u.Points {
		end = max(end, u.Points[i].T+u.Interval)
	}
	var columns []usageColumn
	for _, one := range usagePlots {
		chart, top, before := newPlot(one.label), 0.0, len(columns)
		for k, c := range one.columns {
			var xys plotter.XYs
			for i := range u.Points {
				if v := c.value(&u.Points[i]); v != nil {
					xys = append(xys, plotter.XY{X: u.Points[i].T, Y: *v / c.per})
					top = max(top, *v/c.per)
				}
			}
			if len(xys) == 0 {
				continue
			}
			var dashes []vg.Length
			if c.dashed {
				dashes = []vg.Length{3, 3}
			}
			line(chart, append(xys, plotter.XY{X: max(end, xys[len(xys)-1].X), Y: xys[len(xys)-1].Y}), palette.series[k], true,
				dashes...)
			columns = append(columns, c)
		}
		if len(columns) == before {
			continue
		}
		limit := 0.0
		switch one.label {
		case "requests":
			limit = float64(u.MaxNumSeqs)
		case "token/step":
			limit = float64(u.MaxNumBatchedTokens)
		}
		if limit > 0 && limit < 4*top {
			line(chart, plotter.XYs{{X: 0, Y: limit}, {X: end, Y: limit}}, palette.faint, false, 6, 4)
			top = max(top, limit)
		}
		chart.X.Min, chart.X.Max = 0, max(end, 1e-9)
		chart.Y.Min, chart.Y.Max = 0, max(1, top*1.1)
		if strings.HasSuffix(one.label, "%") {
			chart.Y.Max = min(100, chart.Y.Max)
		}
		chart.Y.Tick.Marker = fewTicks{}
		p.plots = append(p.plots, chart)
	}
	if len(p.plots) == 0 {
		p.missing = "neither steps nor gauges were observed"
		return p
	}
	p.event(p.plots[0], r, 0, p.plots[0].Y.Max)
	p.height = vg.Length(92*len(p.plots) + 80)
	p.title = "What " + clean(r.Result.Name, 30) + " used"
	if r.Analysis.Limit != "" {
		p.title += ": " + r.Analysis.Limit + " binds"
	}
	p.says = join("dashed: "+strings.Join(dashedOf(columns), ", "), p.says)
	p.usageRows(u, columns)
	return p
}

func dashedOf(columns []usageColumn) (names []string) {
	for _, c := range columns {
		if c.dashed {
			names = append(names, c.name)
		}
	}
	return append(names, "limits")
}

// usageRowsMost is how many rows the table of use over time has at most.
const usageRowsMost = 80

func (p *panel) usageRows(u *analysis.Utilization, columns []usageColumn) {
	for _, c := range columns {
		p.head = append(p.head, c.name+", "+c.unit)
	}
	p.head = append(p.head, "events")
	each := 1 + (len(u.Points)-1)/usageRowsMost
	for i := 0; i < len(u.Points); i += each {
		group := u.Points[i:min(len(u.Points), i+each)]
		from, to := group[0].T, group[len(group)-1].T+u.Interval
		row := []string{strconv.FormatFloat(from, 'g', 4, 64)}
		for _, c := range columns {
			largest := math.NaN()
			for k := range group {
				if v := c.value(&group[k]); v != nil {
					largest = max(*v/c.per, max(largest, *v/c.per))
					if math.IsNaN(largest) {
						largest = *v / c.per
					}
				}
			}
			text := notObserved
			if !math.IsNaN(largest) {
				text = strconv.FormatFloat(largest, 'g', 3, 64)
				if largest >= 1000 {
					text = grouped(strconv.FormatFloat(largest, 'f', 0, 64))
				}
			}
			row = append(row, text)
		}
		var events []string
		for _, e := range u.Events {
			if e.T >= from && (e.T < to || i+each >= len(u.Points)) {
				events = append(events, fmt.Sprintf("%d x %s", e.Count, e.Kind))
			}
		}
		p.rows = append(p.rows, append(row, strings.Join(events, ", ")))
	}
	if each > 1 {
		p.note = fmt.Sprintf("A row is the largest of %d points.", each)
	}
}

// fewTicks are two or three, for plots that are not high.
type fewTicks struct{}

func (fewTicks) Ticks(low, high float64) []plot.Tick {
	step := math.Pow(10, math.Floor(math.Log10(high-low)))
	for _, by := range []float64{0.2, 0.5, 1, 2, 5} {
		if (high-low)/(by*step) <= 2.99 {
			step *= by
			break
		}
	}
	var ticks []plot.Tick
	for v := math.Ceil(low/step) * step; v <= high; v += step {
		ticks = append(ticks, plot.Tick{Value: v, Label: grouped(strconv.FormatFloat(v, 'g', 10, 64))})
	}
	return ticks
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
			v := map[string]*float64{harness.SeriesKVUsage: u.KVUsage, harness.SeriesRunning: u.Running,
				harness.SeriesWaiting: u.Waiting}[metric]
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
