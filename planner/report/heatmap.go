package report

import (
	"fmt"
	"image/color"
	"io"
	"math"

	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
)

// HeatMap is a table drawn as coloured cells: the larger the value, the darker.
type HeatMap struct {
	// Title is what is drawn, Says what to see in it.
	Title, Says string
	// X and Y label the columns and rows, XLabel and YLabel say what they are.
	X, Y           []string
	XLabel, YLabel string
	// Values are those of rows from the top, 0 or more each; NaN is a cell that was not measured. Texts are written into
	// the cells.
	Values [][]float64
	Texts  [][]string
	// Least is the least that the darkest colour stands for, so that a map of differences that matter to nobody looks it.
	Least float64
}

// The measures of a heat map.
const mapMargin, mapHead, mapLeft, mapFoot, cellWidth, cellHeight, mapLeast = 18, 52, 90, 40, 78, 40, 700

// HeatMaps draws maps one above the other as a PNG, on one scale of colour.
func HeatMaps(w io.Writer, maps []HeatMap) error {
	if len(maps) == 0 {
		return fmt.Errorf("no heat map to draw")
	}
	width, height, scale := vg.Length(0), vg.Length(mapMargin), 0.0
	for i := range maps {
		m := &maps[i]
		if err := m.validate(); err != nil {
			return err
		}
		w, h := m.size()
		width, height, scale = max(width, w), height+h, max(scale, m.scale())
	}
	canvas := vgimg.NewWith(vgimg.UseWH(width, height), vgimg.UseDPI(pictureDPI))
	c := draw.New(canvas)
	c.SetColor(palette.ground)
	c.Fill(c.Rectangle.Path())
	top := c.Max.Y - mapMargin
	for i := range maps {
		_, h := maps[i].size()
		maps[i].draw(c, top, scale)
		top -= h
	}
	_, err := vgimg.PngCanvas{Canvas: canvas}.WriteTo(w)
	return err
}

func (m *HeatMap) validate() error {
	if len(m.Values) != len(m.Y) || len(m.Texts) != len(m.Y) {
		return fmt.Errorf("heat map %s: %d rows of values and %d of texts for %d labels", m.Title, len(m.Values),
			len(m.Texts), len(m.Y))
	}
	for y, row := range m.Values {
		if len(row) != len(m.X) || len(m.Texts[y]) != len(m.X) {
			return fmt.Errorf("heat map %s: row %s has %d values and %d texts for %d columns", m.Title, m.Y[y], len(row),
				len(m.Texts[y]), len(m.X))
		}
	}
	return nil
}

// size is what the map takes, without the margin above it.
func (m *HeatMap) size() (width, height vg.Length) {
	return max(mapLeast, mapLeft+cellWidth*vg.Length(len(m.X))+2*mapMargin),
		mapHead + cellHeight*vg.Length(len(m.Y)) + mapFoot + mapMargin
}

// scale is the value of the darkest colour.
func (m *HeatMap) scale() float64 {
	largest := max(m.Least, math.SmallestNonzeroFloat64)
	for _, row := range m.Values {
		for _, v := range row {
			if v > largest { // not so for NaN
				largest = v
			}
		}
	}
	return largest
}

// draw draws the map below top, its colours for values up to scale.
func (m *HeatMap) draw(c draw.Canvas, top vg.Length, scale float64) {
	put := func(s string, x, y vg.Length, size vg.Length, bold bool, ink color.Color, xAlign, yAlign float64,
		room vg.Length) {
		sty := textStyle(size, bold, ink)
		sty.XAlign, sty.YAlign = draw.XAlignment(xAlign), draw.YAlignment(yAlign)
		c.FillText(sty, vg.Point{X: x, Y: y}, fit(s, sty, room))
	}
	room := c.Max.X - c.Min.X - 2*mapMargin
	put(m.Title, c.Min.X+mapMargin, top, 14, true, palette.ink, 0, -1, room)
	put(m.Says, c.Min.X+mapMargin, top-20, 11, false, palette.faint, 0, -1, room)
	x0, y := c.Min.X+mapMargin+mapLeft, top-mapHead
	for row := range m.Y {
		put(m.Y[row], x0-8, y-cellHeight/2, 12, false, palette.ink, -1, -0.5, mapLeft-8)
		for col, v := range m.Values[row] {
			cell := vg.Rectangle{Min: vg.Point{X: x0 + vg.Length(col)*cellWidth, Y: y - cellHeight}}
			cell.Max = cell.Min.Add(vg.Point{X: cellWidth - 2, Y: cellHeight - 2})
			fill, ink := palette.shade(v / scale)
			c.SetColor(fill)
			c.Fill(cell.Path())
			c.StrokeLines(draw.LineStyle{Color: palette.grid, Width: 0.5}, corners(cell))
			put(m.Texts[row][col], cell.Min.X+cellWidth/2-1, y-cellHeight/2-1, 12, false, ink, -0.5, -0.5, cellWidth-6)
		}
		y -= cellHeight
	}
	for col, label := range m.X {
		put(label, x0+(vg.Length(col)+0.5)*cellWidth, y-4, 12, false, palette.ink, -0.5, -1, cellWidth)
	}
	put(m.XLabel, x0+vg.Length(len(m.X))*cellWidth/2, y-21, 12, false, palette.faint, -0.5, -1, room)
	put(m.YLabel, x0-8, y-4, 12, false, palette.faint, -1, -1, mapLeft)
}
