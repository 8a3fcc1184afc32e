package report

import (
	"fmt"
	"image/color"
	"math"
	"strings"
)

// theme is a set of colours for one ground.
type theme struct {
	// series tell runs apart, for people with any colour vision, and beside the ground. Every series also has its name,
	// and dashes where they mean something.
	series [6]color.NRGBA
	// ink is for text, faint for what matters less, grid for lines and empty cells, alarm for what must not be missed,
	// link for what can be followed.
	ink, faint, grid, alarm, ground, link color.NRGBA
}

// Pictures are drawn in daylight's colours; a page names them by class ([classOf]), so that it can be read in the dark
// and on paper. The series are Okabe and Ito's, moved until each has a contrast of 3 to the ground (WCAG 2.2, 1.4.11)
// and any two differ for every colour vision; a test computes both.
var (
	palette = theme{
		series: [...]color.NRGBA{
			{0x00, 0x68, 0xa8, 255}, // blue
			{0xe8, 0x71, 0x1b, 255}, // orange
			{0x00, 0xa7, 0x6e, 255}, // green
			{0xcc, 0x79, 0xa7, 255}, // pink
			{0x22, 0x22, 0x22, 255}, // black
			{0x83, 0x52, 0x00, 255}, // brown
		},
		ink:    color.NRGBA{0x21, 0x21, 0x21, 255},
		faint:  color.NRGBA{0x60, 0x60, 0x60, 255},
		grid:   color.NRGBA{0xd6, 0xd6, 0xd6, 255},
		alarm:  color.NRGBA{0xb0, 0x00, 0x20, 255},
		ground: color.NRGBA{0xff, 0xff, 0xff, 255},
		link:   color.NRGBA{0x00, 0x5a, 0x9c, 255},
	}
	night = theme{
		series: [...]color.NRGBA{
			{0x2b, 0x8b, 0xd6, 255},
			{0xe8, 0x70, 0x2a, 255},
			{0x47, 0xcc, 0x91, 255},
			{0xef, 0x98, 0xce, 255},
			{0xff, 0xff, 0xff, 255},
			{0xfb, 0xdb, 0x41, 255},
		},
		ink:    color.NRGBA{0xe6, 0xe6, 0xe6, 255},
		faint:  color.NRGBA{0xab, 0xab, 0xab, 255},
		grid:   color.NRGBA{0x46, 0x46, 0x46, 255},
		alarm:  color.NRGBA{0xff, 0x8d, 0x96, 255},
		ground: color.NRGBA{0x19, 0x19, 0x19, 255},
		link:   color.NRGBA{0x86, 0xbd, 0xf0, 255},
	}
)

// shades is in how many steps a heat map on a page goes from the ground to the first series' colour.
const shades = 9

// names are the theme's colours by the name that a page's style gives them.
func (t *theme) names() []struct {
	name  string
	color color.NRGBA
} {
	type named = struct {
		name  string
		color color.NRGBA
	}
	all := []named{{"ink", t.ink}, {"faint", t.faint}, {"grid", t.grid}, {"alarm", t.alarm}, {"ground", t.ground},
		{"link", t.link}}
	for i, c := range t.series {
		all = append(all, named{fmt.Sprintf("s%d", i), c})
	}
	for i := range shades {
		fill, ink := t.shade(float64(i) / (shades - 1))
		all = append(all, named{fmt.Sprintf("h%d", i), fill}, named{fmt.Sprintf("i%d", i), ink})
	}
	return all
}

// style declares the theme's colours for a page.
func (t *theme) style() string {
	var b strings.Builder
	for _, n := range t.names() {
		fmt.Fprintf(&b, "--%s:%s;", n.name, hex(n.color))
	}
	return b.String()
}

// classOf is the name of a daylight colour as drawings have it (#rrggbb), "" where it has none.
func classOf(rgb string) string {
	for _, n := range palette.names() {
		if strings.EqualFold(hex(n.color), rgb) {
			return n.name
		}
	}
	return ""
}

func hex(c color.NRGBA) string { return fmt.Sprintf("#%02x%02x%02x", c.R, c.G, c.B) }

// shade is the colour of a heat map's cell, from the ground at 0 to the first series' colour at 1, and that of the text
// on it: black or white, whichever contrasts more. NaN is a cell that was not measured.
func (t *theme) shade(share float64) (fill, text color.NRGBA) {
	if math.IsNaN(share) {
		return t.grid, t.ink
	}
	mix := func(from, to uint8) uint8 {
		return uint8(math.Round(float64(from) + share*(float64(to)-float64(from))))
	}
	from, to := t.ground, t.series[0]
	fill = color.NRGBA{mix(from.R, to.R), mix(from.G, to.G), mix(from.B, to.B), 255}
	black, white := color.NRGBA{A: 255}, color.NRGBA{255, 255, 255, 255}
	if contrast(fill, black) >= contrast(fill, white) {
		return fill, black
	}
	return fill, white
}

// contrast is WCAG's ratio of the luminances of two opaque colours, 1 to 21.
func contrast(a, b color.NRGBA) float64 {
	x, y := luminance(a)+0.05, luminance(b)+0.05
	return max(x, y) / min(x, y)
}

// luminance is WCAG's relative luminance.
func luminance(c color.NRGBA) float64 {
	return 0.2126*linear(c.R) + 0.7152*linear(c.G) + 0.0722*linear(c.B)
}

// linear undoes sRGB's transfer function.
func linear(v uint8) float64 {
	s := float64(v) / 255
	if s <= 0.04045 {
		return s / 12.92
	}
	return math.Pow((s+0.055)/1.055, 2.4)
}
