package report

import (
	"bytes"
	"html"
	"math"
	"strings"
	"testing"

	"kvtune/harness"
)

// TestKernels: a kernel benchmark is shown as measured, in text and on the page, also beside simulated runs; maps have
// a cell for every layout and block size, those that were not measured empty.
func TestKernels(t *testing.T) {
	row := func(size, layout string, median float64, slower *float64, p float64) harness.BenchCase {
		return harness.BenchCase{Case: "decode/layout=" + layout + "/block_size=" + size + "/dtype=bf16",
			Axes:   map[string]string{"op": "decode", "layout": layout, "block_size": size},
			Median: median, Bytes: 1e9, Slower: slower, P: &p, Best: slower == nil}
	}
	b := &harness.Bench{Origin: harness.OriginMeasured, Backend: "host", Device: "a <b>processor</b>", Cold: true,
		ReadCeiling: new(20e9), Cases: []harness.BenchCase{row("16", "NHD", 0.1, nil, 1),
			row("1", "NHD", 0.15, new(1.5), 1e-6), row("16", "HND", 0.1001, new(1.001), 0.4)}}
	maps := KernelMaps(b)
	if len(maps) != 1 || strings.Join(maps[0].X, " ") != "1 16" || strings.Join(maps[0].Y, " ") != "NHD HND" {
		t.Fatalf("maps %+v", maps)
	}
	if m := maps[0]; m.Values[0][0] != 0.5 || m.Texts[0][1] != "best" || !math.IsNaN(m.Values[1][0]) ||
		m.Texts[1][1] != "+0.1 % ~" || m.Title != "cold decode dtype=bf16" {
		t.Errorf("map %+v", m)
	}
	var text, page bytes.Buffer
	in := Input{Verdict: "keep", Kernels: b}
	if err := Text(&text, in, KernelTable(b)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"MEASURED", "(host backend)", "100000", "+50.0 %", "best"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the text lacks %q:\n%s", want, &text)
		}
	}
	for line := range strings.Lines(text.String()) {
		if len(strings.TrimSpace(line)) > width {
			t.Errorf("a line of %d columns: %s", len(line), line)
		}
	}
	if err := HTML(&page, in); err != nil {
		t.Fatal(err)
	}
	if s := html.UnescapeString(page.String()); !strings.Contains(s, "Measured on") || !strings.Contains(s, "+50.0 %") ||
		strings.Contains(page.String(), "<b>processor") || strings.Count(s, `<figure class="heat">`) != 1 {
		t.Errorf("the page:\n%.2000s", s)
	}
}
