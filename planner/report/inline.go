package report

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"html"
	"regexp"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// The size of a chart on a page, in CSS pixels at full width. Its smallest text is 12 px of these.
const chartWidth, chartHeight, legendLine = 520, 390, 20

// axes are one plot's place in a drawing and its scales, for the page's script to turn a pointer's place into values.
type axes struct {
	// Box is left, top, right and bottom in the drawing's own units, from its top left.
	Box [4]float64 `json:"box"`
	// X and Y are the values at the ends of the box.
	X    [2]float64 `json:"x"`
	Y    [2]float64 `json:"y"`
	LogX bool       `json:"logx,omitempty"`
	LogY bool       `json:"logy,omitempty"`
	// Quantile: x is 1 / (1 - q).
	Quantile bool   `json:"quantile,omitempty"`
	XName    string `json:"xname"`
	YName    string `json:"yname"`
}

// svg draws the panel with its legend as an element for a page.
func (p *panel) svg(runs []Run) (string, error) {
	names := p.legend
	if names == nil {
		for _, r := range runs {
			names = append(names, r.Result.Name)
		}
	}
	const side = 4
	lines := legendLines(names, chartWidth-2*side)
	legend := vg.Length(len(lines)*legendLine + 6)
	height := cmp.Or(p.height, chartHeight) + legend
	canvas := vgsvg.New(chartWidth, height)
	c := draw.New(canvas)
	drawLegend(draw.Crop(c, side, -side, height-legend, 0), names)
	places := p.draw(draw.Crop(c, side, -side, 2, -legend))
	var scales []axes
	for i, place := range places {
		if p.still {
			break
		}
		one := p.plots[i]
		dc := one.DataCanvas(place)
		_, logX := one.X.Scale.(plot.LogScale)
		_, logY := one.Y.Scale.(plot.LogScale)
		scales = append(scales, axes{
			Box: [4]float64{dc.Min.X.Points(), (height - dc.Max.Y).Points(), dc.Max.X.Points(), (height - dc.Min.Y).Points()},
			X:   [2]float64{one.X.Min, one.X.Max}, Y: [2]float64{one.Y.Min, one.Y.Max}, LogX: logX, LogY: logY,
			Quantile: p.quantile, XName: p.xLabel, YName: one.Y.Label.Text,
		})
	}
	if len(scales) == 0 {
		return svgElement(canvas, p.subject+": "+p.title, "", chartWidth, height)
	}
	data, err := json.Marshal(struct {
		Names []string `json:"names"`
		Plots []axes   `json:"plots"`
	}{names[:min(len(names), len(palette.series))], scales})
	if err != nil {
		return "", err
	}
	return svgElement(canvas, p.subject+": "+p.title, string(data), chartWidth, height)
}

// svgElement is what was drawn, as an element with a label for those who cannot see it and data for the script: without
// prologue, without names from elsewhere, without style attributes (the page's policy forbids them); colours are
// classes.
func svgElement(canvas *vgsvg.Canvas, label, data string, w, h vg.Length) (string, error) {
	var b bytes.Buffer
	if _, err := canvas.WriteTo(&b); err != nil {
		return "", err
	}
	_, rest, ok := strings.Cut(b.String(), "<svg ")
	if !ok {
		return "", fmt.Errorf("no svg element was drawn")
	}
	_, inner, _ := strings.Cut(rest, ">")
	if data != "" {
		data = fmt.Sprintf(` data-chart="%s"`, html.EscapeString(data))
	}
	return fmt.Sprintf(`<svg viewBox="0 0 %.0f %.0f" role="img" aria-label="%s"%s>`, w.Points(), h.Points(),
		html.EscapeString(clean(label, 400)), data) + withClasses(withFonts(inner)), nil
}

var svgStyle = regexp.MustCompile(`\s+style="([^"]*)"`)

// withClasses replaces the style attributes of a drawing by classes (f-NAME fills, k-NAME strokes, b is bold) and by
// attributes of their own for what is no colour.
func withClasses(svg string) string {
	svg = svgStyle.ReplaceAllStringFunc(svg, func(attribute string) string {
		var classes, rest []string
		for _, pair := range strings.Split(svgStyle.FindStringSubmatch(attribute)[1], ";") {
			key, value, _ := strings.Cut(pair, ":")
			switch {
			case key == "fill" && value == "none":
				classes = append(classes, "n")
			case key == "fill" && classOf(value) != "":
				classes = append(classes, "f-"+classOf(value))
			case key == "stroke" && classOf(value) != "":
				classes = append(classes, "k-"+classOf(value))
			case key == "font-weight" && value == "bold":
				classes = append(classes, "b")
			case key == "font-size":
				rest = append(rest, fmt.Sprintf(`font-size="%s"`, strings.TrimSuffix(value, "px")))
			case strings.HasPrefix(key, "font-"):
			default:
				rest = append(rest, fmt.Sprintf(`%s="%s"`, key, value))
			}
		}
		if len(classes) > 0 {
			rest = append(rest, fmt.Sprintf(`class="%s"`, strings.Join(classes, " ")))
		}
		return " " + strings.Join(rest, " ")
	})
	return strings.ReplaceAll(svg, ">\n<", "><")
}
