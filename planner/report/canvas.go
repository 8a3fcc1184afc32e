package report

import (
	"bytes"
	"fmt"
	"html"
	"image/color"
	"io"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	xfont "golang.org/x/image/font"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"
)

// The picture's size: 1,760 x 1,100 pixels.
const (
	pictureWidth  = 16 * vg.Inch
	pictureHeight = 10 * vg.Inch
	pictureDPI    = 110
)

// Picture draws latency distributions, throughput, KV usage over time and the roofline into one picture of 1,760 x
// 1,100 pixels. format is "png" or "svg".
func Picture(w io.Writer, in Input, format string) error {
	switch format {
	case "png":
		c := vgimg.NewWith(vgimg.UseWH(pictureWidth, pictureHeight), vgimg.UseDPI(pictureDPI))
		drawPicture(draw.New(c), in)
		_, err := vgimg.PngCanvas{Canvas: c}.WriteTo(w)
		return err
	case "svg":
		c := vgsvg.New(pictureWidth, pictureHeight)
		drawPicture(draw.New(c), in)
		var b bytes.Buffer
		if _, err := c.WriteTo(&b); err != nil {
			return err
		}
		_, err := io.WriteString(w, withFonts(b.String()))
		return err
	}
	return fmt.Errorf("picture format is %q: it must be png or svg", format)
}

// svgText is a text as vgsvg writes it: weight, size in px, and what is drawn.
var svgText = regexp.MustCompile(`<text ([^>]*font-weight:(\w+);[^>]*font-size:([0-9.]+)px[^>]*)>([^<]*)</text>`)

// withFonts lets a viewer without the fonts that the text was measured with take others, squeezed to the same width.
func withFonts(svg string) string {
	svg = svgText.ReplaceAllStringFunc(svg, func(element string) string {
		m := svgText.FindStringSubmatch(element)
		size, err := strconv.ParseFloat(m[3], 64)
		if err != nil || m[4] == "" {
			return element
		}
		width := textStyle(vg.Length(size), m[2] == "bold", palette.ink).Width(html.UnescapeString(m[4]))
		return fmt.Sprintf(`<text %s textLength="%.1f" lengthAdjust="spacingAndGlyphs">%s</text>`,
			m[1], width.Points(), m[4])
	})
	const ours = "font-family:Liberation Sans"
	return strings.ReplaceAll(svg, ours, "font-family:'Liberation Sans',Arial,Helvetica,sans-serif")
}

func drawPicture(c draw.Canvas, in Input) {
	const margin, head = 18, 92
	c.SetColor(palette.ground)
	c.Fill(c.Rectangle.Path())
	c = draw.Crop(c, margin, -margin, margin, -margin)
	drawHead(draw.Crop(c, 0, 0, c.Max.Y-c.Min.Y-head, 0), in)

	body := draw.Crop(c, 0, 0, 0, -head)
	panels := panelsOf(in)
	tiles := draw.Tiles{Rows: 2, Cols: 3, PadX: 26, PadY: 24}
	for i, p := range panels {
		p.draw(tiles.At(body, i%tiles.Cols, i/tiles.Cols))
	}
}

// drawHead writes title, verdict, legend and, where it applies, the stamp.
func drawHead(c draw.Canvas, in Input) {
	right := c.Max.X
	if in.simulated() {
		sty := textStyle(15, true, palette.ground)
		sty.XAlign, sty.YAlign = draw.XCenter, draw.YCenter
		w := sty.Width(Stamp) + 28
		box := vg.Rectangle{Min: vg.Point{X: c.Max.X - w, Y: c.Max.Y - 30}, Max: c.Max}
		c.SetColor(palette.alarm)
		c.Fill(box.Path())
		c.FillText(sty, vg.Point{X: c.Max.X - w/2, Y: c.Max.Y - 15}, Stamp)
		right -= w + 16
	}
	title := in.Title
	if title == "" {
		title = "kvtune"
	}
	y := c.Max.Y
	for _, t := range []struct {
		text string
		sty  text.Style
	}{
		{title, textStyle(19, true, palette.ink)},
		{in.Verdict, textStyle(13, false, palette.ink)},
	} {
		t.sty.YAlign = draw.YTop
		c.FillText(t.sty, vg.Point{X: c.Min.X, Y: y}, fit(t.text, t.sty, right-c.Min.X))
		y -= 30
	}
	drawLegend(draw.Crop(c, 0, 0, 0, -64), in.Runs)
}

// drawLegend names the runs beside their colours on one line.
func drawLegend(c draw.Canvas, runs []Run) {
	sty := textStyle(13, false, palette.ink)
	sty.YAlign = draw.YCenter
	x, y := c.Min.X, c.Max.Y-8
	for i, r := range runs {
		name := clean(r.Result.Name, 26)
		if i == len(palette.series) {
			c.FillText(sty, vg.Point{X: x, Y: y}, fmt.Sprintf("and %d more, not drawn", len(runs)-i))
			return
		}
		c.SetColor(palette.series[i])
		c.Fill(vg.Rectangle{Min: vg.Point{X: x, Y: y - 5}, Max: vg.Point{X: x + 22, Y: y + 5}}.Path())
		c.FillText(sty, vg.Point{X: x + 28, Y: y}, name)
		x += 28 + sty.Width(name) + 24
	}
}

// panel is one chart with the figures behind it.
type panel struct {
	// title is what is drawn, says what to see in it.
	title, says string
	// plots lie one over the other and share x, whose label is xLabel.
	plots  []*plot.Plot
	xLabel string
	// missing says why there is nothing to draw.
	missing string
	// stamped marks a chart of a simulated server.
	stamped bool
	// head and rows are the figures as a table.
	head []string
	rows [][]string
}

func (p *panel) draw(c draw.Canvas) {
	const head = 44
	title, says := textStyle(15, true, palette.ink), textStyle(12, false, palette.faint)
	title.YAlign, says.YAlign = draw.YTop, draw.YTop
	right := c.Max.X
	if p.stamped {
		sty := textStyle(10, true, palette.alarm)
		sty.XAlign, sty.YAlign = draw.XRight, draw.YTop
		c.FillText(sty, vg.Point{X: c.Max.X, Y: c.Max.Y - 2}, Stamp)
		right -= sty.Width(Stamp) + 10
	}
	c.FillText(title, c.Rectangle.Min.Add(vg.Point{Y: c.Max.Y - c.Min.Y}), fit(p.title, title, right-c.Min.X))
	c.FillText(says, vg.Point{X: c.Min.X, Y: c.Max.Y - 21}, fit(p.says, says, c.Max.X-c.Min.X))
	body := draw.Crop(c, 0, 0, 0, -head)
	if p.missing != "" {
		sty := textStyle(13, false, palette.faint)
		sty.XAlign, sty.YAlign = draw.XCenter, draw.YCenter
		body.StrokeLines(draw.LineStyle{Color: palette.grid, Width: 1}, corners(body.Rectangle))
		body.FillText(sty, body.Center(), fit(notObserved+": "+p.missing, sty, body.Max.X-body.Min.X-10))
		return
	}
	grid := make([][]*plot.Plot, len(p.plots))
	for i := range p.plots {
		grid[i] = p.plots[i : i+1]
	}
	if p.xLabel != "" { // gonum's own label moves the plot's edge on a log axis
		sty := textStyle(12, false, palette.ink)
		sty.XAlign, sty.YAlign = draw.XCenter, draw.YBottom
		c.FillText(sty, vg.Point{X: body.Center().X, Y: body.Min.Y}, p.xLabel)
		body = draw.Crop(body, 0, 0, 17, 0)
	}
	canvases := plot.Align(grid, draw.Tiles{Rows: len(grid), Cols: 1, PadY: 8}, body)
	for i, one := range p.plots {
		one.Draw(canvases[i][0])
	}
}

// svg draws the panel with its legend as an element for a page: without prologue and without names from elsewhere.
func (p *panel) svg(runs []Run) (string, error) {
	const w, h, legend = 560, 400, 30
	canvas := vgsvg.New(w, h)
	c := draw.New(canvas)
	drawLegend(draw.Crop(c, 6, -6, h-legend, 0), runs)
	p.draw(draw.Crop(c, 6, -6, 2, -legend))
	return svgElement(canvas, p.title, w, h)
}

// svgElement is what was drawn, as an element with a label for those who cannot see it.
func svgElement(canvas *vgsvg.Canvas, label string, w, h vg.Length) (string, error) {
	var b bytes.Buffer
	if _, err := canvas.WriteTo(&b); err != nil {
		return "", err
	}
	_, rest, ok := strings.Cut(b.String(), "<svg ")
	if !ok {
		return "", fmt.Errorf("no svg element was drawn")
	}
	_, inner, _ := strings.Cut(rest, ">")
	return fmt.Sprintf(`<svg viewBox="0 0 %.0f %.0f" role="img" aria-label="%s">`, w.Points(), h.Points(),
		html.EscapeString(label)) + withFonts(inner), nil
}

func corners(r vg.Rectangle) []vg.Point {
	return []vg.Point{r.Min, {X: r.Max.X, Y: r.Min.Y}, r.Max, {X: r.Min.X, Y: r.Max.Y}, r.Min}
}

func textStyle(size vg.Length, bold bool, c color.Color) text.Style {
	f := font.Font{Typeface: "Liberation", Variant: "Sans", Size: size}
	if bold {
		f.Weight = xfont.WeightBold
	}
	return text.Style{Color: c, Font: f, Handler: plot.DefaultTextHandler}
}

// fit makes a text safe to draw on one line of a width, cut where it is longer.
func fit(s string, sty text.Style, width vg.Length) string {
	s = clean(s, 400)
	for n := len([]rune(s)); sty.Width(s) > width && n > 1; n -= 2 {
		s = clean(s, n-1)
	}
	return s
}

// newPlot is an empty plot in the report's look.
func newPlot(yLabel string) *plot.Plot {
	p := plot.New()
	p.BackgroundColor = color.Transparent
	for _, a := range []*plot.Axis{&p.X, &p.Y} {
		a.Label.TextStyle.Font = textStyle(12, false, palette.ink).Font
		a.Label.TextStyle.Color = palette.ink
		a.Tick.Label.Font = textStyle(12, false, palette.ink).Font
		a.Tick.Label.Color = palette.ink
		a.Color, a.Tick.Color = palette.faint, palette.faint
		a.Padding = 3
		a.Tick.Marker = linearTicks{}
	}
	p.Y.Label.Text = yLabel
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = palette.grid, palette.grid
	p.Add(grid)
	return p
}

// line adds a line in a run's colour. dashes tell a second quantity of the same run.
func line(p *plot.Plot, xys plotter.XYs, c color.Color, steps bool, dashes ...vg.Length) {
	l := &plotter.Line{XYs: xys, LineStyle: draw.LineStyle{Color: c, Width: 1.8, Dashes: dashes}}
	if steps {
		l.StepStyle = plotter.PostStep
	}
	p.Add(l)
}

// linearTicks are gonum's, with grouped thousands and without minor labels.
type linearTicks struct{}

func (linearTicks) Ticks(low, high float64) []plot.Tick {
	ticks := plot.DefaultTicks{}.Ticks(low, high)
	for i := range ticks {
		if ticks[i].Label != "" {
			ticks[i].Label = grouped(strconv.FormatFloat(ticks[i].Value, 'f', -1, 64))
			if v := math.Abs(ticks[i].Value); v > 0 && v < 1 {
				ticks[i].Label = strconv.FormatFloat(ticks[i].Value, 'g', 3, 64)
			}
		}
	}
	return ticks
}

// logTicks are round numbers: the fewer decades, the more of them within one. At least two are labelled.
type logTicks struct{}

func (logTicks) Ticks(low, high float64) []plot.Tick {
	mantissas := []float64{1, 2, 3, 5, 7}
	switch {
	case high/low > 150:
		mantissas = []float64{1}
	case high/low > 8:
		mantissas = []float64{1, 2, 5}
	}
	var ticks []plot.Tick
	for e := math.Floor(math.Log10(low)); e <= math.Ceil(math.Log10(high)); e++ {
		for k := 1.0; k < 10; k++ {
			v := k * math.Pow(10, e)
			if v < low*0.999 || v > high*1.001 {
				continue
			}
			t := plot.Tick{Value: v}
			if slices.Contains(mantissas, k) {
				t.Label = grouped(strconv.FormatFloat(v, 'f', max(0, -int(e)), 64))
			}
			ticks = append(ticks, t)
		}
	}
	return ticks
}

// logAxis makes an axis logarithmic over a range that is widened to a factor of 3 at least.
func logAxis(a *plot.Axis, low, high float64) {
	if high/low < 3 {
		middle := math.Sqrt(low * high)
		low, high = min(low, middle/math.Sqrt(3)), max(high, middle*math.Sqrt(3))
	}
	a.Scale, a.Tick.Marker = plot.LogScale{}, logTicks{}
	a.Min, a.Max = low, high
}
