package report

import (
	"image/color"
	"math"
	"testing"
)

// Text has a contrast of 4.5 to its ground, lines and marks 3 (WCAG 2.2, 1.4.3 and 1.4.11), in both themes.
func TestContrast(t *testing.T) {
	white, stamp := color.NRGBA{255, 255, 255, 255}, color.NRGBA{0xb0, 0x00, 0x20, 255} // page.css: .stamp
	for name, theme := range map[string]*theme{"light": &palette, "dark": &night} {
		least := func(what string, on, c color.NRGBA, ratio float64) {
			if got := contrast(on, c); got < ratio {
				t.Errorf("%s: %s has a contrast of %.2f, wants %.1f", name, what, got, ratio)
			}
		}
		least("text", theme.ground, theme.ink, 4.5)
		least("faint text", theme.ground, theme.faint, 4.5)
		least("alarm", theme.ground, theme.alarm, 4.5)
		least("link", theme.ground, theme.link, 4.5)
		least("a cell that was not measured", theme.grid, theme.ink, 4.5)
		least("the stamp", stamp, white, 4.5)
		for i, c := range theme.series {
			least("series "+string(rune('0'+i)), theme.ground, c, 3)
		}
		for i := range shades {
			fill, text := theme.shade(float64(i) / (shades - 1))
			least("a heat map's cell", fill, text, 4.5)
		}
	}
	if got := contrast(color.NRGBA{0, 0, 0, 255}, white); math.Abs(got-21) > 1e-9 {
		t.Errorf("black on white: %g", got)
	}
}

// Any two series differ for normal vision and for people who lack one kind of cone: by 20 in CIE 1976 at least, where
// 2.3 is a difference that is just noticed. The matrices, on linear RGB, are for the strongest degree in G. M. Machado,
// M. M. Oliveira and L. A. F. Fernandes, A Physiologically-based Model for Simulation of Color Vision Deficiency
// (2009).
func TestColourBlindSafe(t *testing.T) {
	visions := map[string][3][3]float64{
		"normal":       {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}},
		"protanopia":   {{0.152286, 1.052583, -0.204868}, {0.114503, 0.786281, 0.099216}, {-0.003882, -0.048116, 1.051998}},
		"deuteranopia": {{0.367322, 0.860646, -0.227968}, {0.280085, 0.672501, 0.047413}, {-0.011820, 0.042940, 0.968881}},
		"tritanopia":   {{1.255528, -0.076749, -0.178779}, {-0.078411, 0.930809, 0.147602}, {0.004733, 0.691367, 0.303900}},
	}
	for name, theme := range map[string]*theme{"light": &palette, "dark": &night} {
		for vision, m := range visions {
			for i, a := range theme.series {
				for k, b := range theme.series[:i] {
					if d := labDistance(a, b, m); d < 20 {
						t.Errorf("%s: with %s, series %d and %d differ by %.1f", name, vision, i, k, d)
					}
				}
			}
		}
	}
}

func labDistance(a, b color.NRGBA, vision [3][3]float64) float64 {
	x, y := lab(a, vision), lab(b, vision)
	return math.Sqrt((x[0]-y[0])*(x[0]-y[0]) + (x[1]-y[1])*(x[1]-y[1]) + (x[2]-y[2])*(x[2]-y[2]))
}

// lab is a colour, as it is seen, in CIE L*a*b* under D65.
func lab(c color.NRGBA, vision [3][3]float64) [3]float64 {
	rgb := [3]float64{linear(c.R), linear(c.G), linear(c.B)}
	var seen [3]float64
	for i, row := range vision {
		seen[i] = min(1, max(0, row[0]*rgb[0]+row[1]*rgb[1]+row[2]*rgb[2]))
	}
	f := func(t float64) float64 {
		if t > 0.008856 {
			return math.Cbrt(t)
		}
		return 7.787*t + 16.0/116
	}
	x := f((0.4124*seen[0] + 0.3576*seen[1] + 0.1805*seen[2]) / 0.9505)
	y := f(0.2126*seen[0] + 0.7152*seen[1] + 0.0722*seen[2])
	z := f((0.0193*seen[0] + 0.1192*seen[1] + 0.9505*seen[2]) / 1.089)
	return [3]float64{116*y - 16, 500 * (x - y), 200 * (y - z)}
}
