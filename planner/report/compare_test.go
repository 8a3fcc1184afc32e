package report

import (
	"bytes"
	"html"
	"strings"
	"testing"

	"kvtune/harness"
	"kvtune/harness/compare"
)

// A comparison shows the verdict, every case, both sides' runs beside each other under names that tell them apart, what
// one side alone has, and marks conditions that differ; names stay text.
func TestCompareHTML(t *testing.T) {
	side := func(name string, factor float64) *compare.Side {
		s := &compare.Side{Name: name}
		for _, c := range []string{"ttft", "case/<b>bold"} {
			one := compare.Series{Case: c, Unit: "s"}
			for i := range 60 {
				one.Values = append(one.Values, factor*(1+float64(i%7)/1000))
			}
			s.Series = append(s.Series, one)
			factor = 1 // the second case is the same on both sides
		}
		s.Series = append(s.Series, compare.Series{Case: "only " + name, Unit: "s", Values: []float64{1, 1, 1}})
		return s
	}
	result, err := compare.Compare(side("old", 1), side("new", 1.2), compare.Options{})
	if err != nil {
		t.Fatal(err)
	}
	in := demo(t)
	a, b := Input{Runs: in.Runs[:1]}, Input{Runs: in.Runs[1:2]}
	a.Runs[0].Result.Conditions.Seed, b.Runs[0].Result.Conditions.Seed = 11, 22
	var page bytes.Buffer
	if err := CompareHTML(&page, Comparison{Title: "t", Result: result, A: a, B: b,
		Commands: []string{"kvtune compare a b"}}); err != nil {
		t.Fatal(err)
	}
	s := html.UnescapeString(page.String())
	for _, want := range []string{"<h1>REGRESSION", "WORSE", "A: low-latency", "B: high-throughput", "B against A",
		"only in A: only old", "only in B: only new", `<td class="w mark">22</td>`, "kvtune compare a b",
		`<div class="stamp"`, "+20.00 %", "same"} {
		if !strings.Contains(s, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if strings.Contains(page.String(), "<b>bold") || a.Runs[0].Result.Name != "low-latency" {
		t.Error("markup of a case reached the page, or a side's run was renamed")
	}
	// Of sides that are no archives the cases are there.
	page.Reset()
	if err := CompareHTML(&page, Comparison{Result: result}); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(page.String(), `<div class="stamp"`) || strings.Contains(page.String(), "TTFT by arrival") {
		t.Error("a page without runs has what belongs to runs")
	}
}

// Runs of two sides stand in pairs.
func TestSideBySide(t *testing.T) {
	runs := func(names ...string) (rs []Run) {
		for _, n := range names {
			rs = append(rs, Run{Result: &harness.Result{Name: n}})
		}
		return rs
	}
	for _, c := range []struct {
		a, b []Run
		want string
	}{
		{runs("x"), runs("y"), "A: x, B: y"},
		{runs("x", "y"), runs("y", "z"), "A: x, A: y, B: y, B: z"},
		{runs("x", "y"), runs("x", "y"), "A: x, B: x, A: y, B: y"},
		{nil, runs("y"), "B: y"},
	} {
		var names []string
		for _, r := range sideBySide(c.a, c.b) {
			names = append(names, r.Result.Name)
		}
		if got := strings.Join(names, ", "); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
}
