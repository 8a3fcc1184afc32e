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
	const margin = 18
	c.SetColor(palette.ground)
	c.Fill(c.Rectangle.Path())
	c = draw.Crop(c, margin, -margin, margin, -margin)
	head := drawHead(c, in)

	body := draw.Crop(c, 0, 0, 0, -head)
	panels := panelsOf(in)
	tiles := draw.Tiles{Rows: 2, Cols: 3, PadX: 26, PadY: 24}
	for i, p := range panels {
		p.draw(tiles.At(body, i%tiles.Cols, i/tiles.Cols))
	}
}

// drawHead writes title, verdict, legend and, where it applies, the stamp, and returns the height of these.
func drawHead(c draw.Canvas, in Input) vg.Length {
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
	head, verdict := textStyle(19, true, palette.ink), textStyle(13, false, palette.ink)
	head.YAlign, verdict.YAlign = draw.YTop, draw.YTop
	c.FillText(head, vg.Point{X: c.Min.X, Y: c.Max.Y}, fit(title, head, right-c.Min.X))
	height := vg.Length(30)
	for _, line := range headLines(in.Verdict, verdict, right-c.Min.X) {
		c.FillText(verdict, vg.Point{X: c.Min.X, Y: c.Max.Y - height}, line)
		height += 20
	}
	height += 14
	var names []string
	for _, r := range in.Runs {
		names = append(names, r.Result.Name)
	}
	drawLegend(draw.Crop(c, 0, 0, 0, -height), names)
	return height + 8 + legendLine*vg.Length(len(legendLines(names, c.Max.X-c.Min.X)))
}

// legendText is the look of a legend.
func legendText() text.Style {
	sty := textStyle(13, false, palette.ink)
	sty.YAlign = draw.YCenter
	return sty
}

const swatch, legendGap = 28, 18

// legendLines breaks the names that are drawn, each with a swatch, into lines of a width; what is beyond the colours
// that there are is one name that says so.
func legendLines(names []string, width vg.Length) (lines [][]string) {
	most := len(palette.series)
	used, sty := vg.Length(0), legendText()
	for i, name := range names {
		name = clean(name, 40)
		if i == most {
			name = fmt.Sprintf("and %d more, not drawn", len(names)-i)
		}
		w := swatch + sty.Width(name)
		if len(lines) == 0 || used+legendGap+w > width {
			lines, used = append(lines, nil), -legendGap
		}
		last := len(lines) - 1
		lines[last] = append(lines[last], name)
		if used += legendGap + w; i == most {
			break
		}
	}
	return lines
}

// drawLegend names series beside their colours, on as many lines as it takes.
func drawLegend(c draw.Canvas, names []string) {
	sty := legendText()
	y, i := c.Max.Y-10, 0
	for _, line := range legendLines(names, c.Max.X-c.Min.X) {
		x := c.Min.X
		for _, name := range line {
			if i < len(palette.series) {
				c.SetColor(palette.series[i])
				c.Fill(vg.Rectangle{Min: vg.Point{X: x, Y: y - 5}, Max: vg.Point{X: x + 22, Y: y + 5}}.Path())
			}
			c.FillText(sty, vg.Point{X: x + swatch, Y: y}, fit(name, sty, c.Max.X-x-swatch))
			x += swatch + sty.Width(name) + legendGap
			i++
		}
		y -= legendLine
	}
}

// panel is one chart with the figures behind it.
type panel struct {
	// subject is what is drawn, title what to see in it, says how to read it.
	subject, title, says string
	// plots lie one over the other and share x, whose label is xLabel.
	plots  []*plot.Plot
	xLabel string
	// quantile: x is 1 / (1 - q), legend are the names of the series where they are not the runs'.
	quantile bool
	legend   []string
	// missing says why there is nothing to draw.
	missing string
	// stamped marks a chart of a simulated server.
	stamped bool
	// head and rows are the figures as a table.
	head []string
	rows [][]string
	// note says what the table leaves out.
	note string
	// height is that on a page, 0 for the usual one.
	height vg.Length
	// still: there is nothing to read off by pointing.
	still bool
}

// draw draws the panel and returns the places of its plots.
func (p *panel) draw(c draw.Canvas) []draw.Canvas {
	const head = 48
	title, says := textStyle(16, true, palette.ink), textStyle(13, false, palette.faint)
	title.YAlign, says.YAlign = draw.YTop, draw.YTop
	text, right := p.title, c.Max.X
	if text == "" {
		text = p.subject
	}
	if p.stamped {
		sty := textStyle(12, true, palette.alarm)
		sty.XAlign, sty.YAlign = draw.XRight, draw.YTop
		c.FillText(sty, vg.Point{X: c.Max.X, Y: c.Max.Y - 23}, panelStamp)
		right -= sty.Width(panelStamp) + 10
	}
	text, title = squeezed(text, title, c.Max.X-c.Min.X)
	c.FillText(title, vg.Point{X: c.Min.X, Y: c.Max.Y}, text)
	text, says = squeezed(join(p.subject, p.says), says, right-c.Min.X)
	c.FillText(says, vg.Point{X: c.Min.X, Y: c.Max.Y - 23}, text)
	body := draw.Crop(c, 0, 0, 0, -head)
	if p.missing != "" {
		sty := textStyle(13, false, palette.faint)
		sty.XAlign, sty.YAlign = draw.XCenter, draw.YCenter
		body.StrokeLines(draw.LineStyle{Color: palette.grid, Width: 1}, corners(body.Rectangle))
		body.FillText(sty, body.Center(), fit(notObserved+": "+p.missing, sty, body.Max.X-body.Min.X-10))
		return nil
	}
	grid := make([][]*plot.Plot, len(p.plots))
	for i := range p.plots {
		grid[i] = p.plots[i : i+1]
	}
	if p.xLabel != "" { // gonum's own label moves the plot's edge on a log axis
		sty := textStyle(13, false, palette.ink)
		sty.XAlign, sty.YAlign = draw.XCenter, draw.YBottom
		c.FillText(sty, vg.Point{X: body.Center().X, Y: body.Min.Y}, p.xLabel)
		body = draw.Crop(body, 0, 0, 18, 0)
	}
	canvases := plot.Align(grid, draw.Tiles{Rows: len(grid), Cols: 1, PadY: 8}, body)
	places := make([]draw.Canvas, len(p.plots))
	for i, one := range p.plots {
		places[i] = canvases[i][0]
		one.Draw(places[i])
	}
	return places
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

// headLines breaks a text at a space into two lines of a width; what is still too long is cut.
func headLines(s string, sty text.Style, width vg.Length) []string {
	s = clean(s, 400)
	first, words := "", strings.Fields(s)
	for len(words) > 0 && sty.Width(strings.TrimSpace(first+" "+words[0])) <= width {
		first, words = strings.TrimSpace(first+" "+words[0]), words[1:]
	}
	switch {
	case first == "":
		return []string{fit(s, sty, width)}
	case len(words) == 0:
		return []string{first}
	}
	return []string{first, fit(strings.Join(words, " "), sty, width)}
}

// squeezed is a text in a style that lets it fit a width: smaller where a fifth less is enough, else cut.
func squeezed(s string, sty text.Style, width vg.Length) (string, text.Style) {
	s = clean(s, 400)
	if w := sty.Width(s); w > width && 0.8*w <= width {
		sty.Font.Size *= 0.99 * width / w
	}
	return fit(s, sty, width), sty
}

// newPlot is an empty plot in the report's look.
func newPlot(yLabel string) *plot.Plot {
	p := plot.New()
	p.BackgroundColor = nil
	for _, a := range []*plot.Axis{&p.X, &p.Y} {
		a.Label.TextStyle.Font = textStyle(13, false, palette.ink).Font
		a.Label.TextStyle.Color = palette.ink
		a.Tick.Label.Font = textStyle(13, false, palette.ink).Font
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
			exact, _ := strconv.ParseFloat(strconv.FormatFloat(ticks[i].Value, 'g', 9, 64), 64) // without what sums left
			ticks[i].Label = grouped(strconv.FormatFloat(exact, 'f', -1, 64))
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

// cross is a mark that is seen from afar, where gonum's is a hair.
type cross struct{}

func (cross) DrawGlyph(c *draw.Canvas, sty draw.GlyphStyle, at vg.Point) {
	c.SetLineStyle(draw.LineStyle{Color: sty.Color, Width: 2})
	r := sty.Radius
	for _, sign := range []vg.Length{1, -1} {
		var path vg.Path
		path.Move(vg.Point{X: at.X - r, Y: at.Y - sign*r})
		path.Line(vg.Point{X: at.X + r, Y: at.Y + sign*r})
		c.Stroke(path)
	}
}
