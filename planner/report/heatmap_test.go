package report

import (
	"bytes"
	"image/color"
	"image/png"
	"math"
	"strings"
	"testing"
)

func TestHeatMaps(t *testing.T) {
	m := HeatMap{Title: "decode", X: []string{"1", "16"}, Y: []string{"NHD"}, XLabel: "block_size", YLabel: "layout",
		Values: [][]float64{{0.2, math.NaN()}}, Texts: [][]string{{"+20 %", "-"}}}
	var b bytes.Buffer
	if err := HeatMaps(&b, []HeatMap{m, m}); err != nil {
		t.Fatal(err)
	}
	picture, err := png.Decode(&b)
	if err != nil {
		t.Fatal(err)
	}
	// The largest value is drawn in the first series' colour; what was not measured in the grid's.
	found := map[color.NRGBA]int{}
	for y := range picture.Bounds().Dy() {
		for x := range picture.Bounds().Dx() {
			found[color.NRGBAModel.Convert(picture.At(x, y)).(color.NRGBA)]++
		}
	}
	if found[palette.series[0]] < 1000 || found[palette.grid] < 1000 {
		t.Errorf("%d pixels of the largest value, %d of the missing one", found[palette.series[0]], found[palette.grid])
	}
	// A map of small differences is pale where its scale does not end below them.
	m.Values[0][0], m.Least = 0.02, 0.1
	if h, err := heats([]HeatMap{m}); err != nil || h[0].Rows[0].Cells[0].Class != "h2" {
		t.Errorf("2 %% of a scale to 10 %%: %+v, %v", h, err)
	}
	m.Texts = [][]string{{"+20 %"}}
	if err := HeatMaps(&b, []HeatMap{m}); err == nil || !strings.Contains(err.Error(), "1 texts for 2 columns") {
		t.Errorf("a row that is too short: %v", err)
	}
	if err := HeatMaps(&b, nil); err == nil {
		t.Error("nothing to draw")
	}
}
