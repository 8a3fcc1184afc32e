package report

import (
	"bytes"
	"html"
	"regexp"
	"slices"
	"strings"
	"testing"

	"kvtune/harness/compare"
)

// What a server, a file or a device says of itself stays text where two sides stand beside each other, and is shown:
// each text has a word of its own behind it.
func TestHostileComparison(t *testing.T) {
	in := demo(t)
	a, b := Input{Runs: slices.Clone(in.Runs[:1])}, Input{Runs: slices.Clone(in.Runs[1:2])}
	side := func(name, unit, only string) *compare.Side {
		series := func(name string) compare.Series {
			return compare.Series{Case: name, Unit: unit, Values: []float64{1, 1.01, 1.02, 1, 1.01, 1.02}}
		}
		return &compare.Side{Name: hostile + name, Warnings: []string{hostile + name + "warns"},
			Series: []compare.Series{series(hostile + "case"), series(hostile + only)}}
	}
	result, err := compare.Compare(side("sideA", "s", "onlyA"), side("sideB", "s", "onlyB"), compare.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range result.Rows {
		result.Rows[i].Note = hostile + "note"
	}
	for i, in := range []Input{a, b} {
		mark := "AB"[i : i+1]
		r := in.Runs[0].Result
		r.Name, r.Warnings, r.Partial, r.Why = hostile+"name"+mark, []string{hostile + "remark" + mark},
			true, hostile+"why"+mark
		r.Conditions.Server.Model, r.Conditions.Host = hostile+"model"+mark, hostile+"host"+mark
		r.Conditions.Server.Version, r.Config.Trace = hostile+"version"+mark, hostile+"trace"+mark
		for k := range in.Runs[0].Records[:3] {
			in.Runs[0].Records[k].Error = hostile + "error" + mark
		}
	}
	var page bytes.Buffer
	if err := CompareHTML(&page, Comparison{Title: hostile + "title", Result: result, A: a, B: b,
		Commands: []string{hostile + "command"}}); err != nil {
		t.Fatal(err)
	}
	got := page.String()
	staysText(t, got)
	text := html.UnescapeString(got)
	for _, word := range []string{"title", "command", "sideA", "sideB", "case", "onlyA", "onlyB", "note", "nameA", "nameB",
		"whyA", "whyB", "remarkA", "remarkB", "errorA", "errorB", "modelA", "modelB", "hostA", "versionA", "traceA"} {
		if !strings.Contains(text, "<b>"+word) {
			t.Errorf("the page does not show the %s", word)
		}
	}
}

// staysText: of all texts that a page shows none became markup or a control character.
func staysText(t *testing.T, page string) {
	t.Helper()
	if strings.Count(page, "<script") != 1 || strings.Contains(page, "<script src") ||
		regexp.MustCompile(`<b>[a-z]`).MatchString(page) {
		t.Error("markup of a text reached the page")
	}
	if strings.Count(page, "</svg>") != strings.Count(page, "<svg ") {
		t.Error("markup of a text reached a drawing")
	}
	if strings.ContainsAny(page, "\x1b\x00") {
		t.Error("a control character reached the page")
	}
}
