package report

import (
	"fmt"
	"math"
)

// heat is a [HeatMap] as a table of a page: it is its own data.
type heat struct {
	Title, Says, XLabel, YLabel string
	X                           []string
	Rows                        []heatRow
}

type heatRow struct {
	Label string
	Cells []heatCell
}

// heatCell has the class of its colour.
type heatCell struct{ Text, Class string }

// heats are maps for the page, each on a scale of its own.
func heats(maps []HeatMap) ([]heat, error) {
	var all []heat
	for i := range maps {
		m := &maps[i]
		if err := m.validate(); err != nil {
			return nil, err
		}
		h := heat{Title: m.Title, Says: m.Says, XLabel: m.XLabel, YLabel: m.YLabel, X: m.X}
		scale := m.scale()
		for y, label := range m.Y {
			row := heatRow{Label: label}
			for x, v := range m.Values[y] {
				cell := heatCell{Text: m.Texts[y][x], Class: "none"}
				if !math.IsNaN(v) {
					cell.Class = fmt.Sprintf("h%d", int(math.Round(v/scale*(shades-1))))
				}
				row.Cells = append(row.Cells, cell)
			}
			h.Rows = append(h.Rows, row)
		}
		all = append(all, h)
	}
	return all, nil
}
