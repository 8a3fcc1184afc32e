//go:build chromium

package report

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kvtune/harness"
	"kvtune/harness/compare"
	"kvtune/harness/workload"
	"kvtune/planner"
)

// fullDemo is [demo] with everything else that a page may have, and names that want to be markup.
func fullDemo(t *testing.T) Input {
	in := demo(t)
	in.Verdict += " " + hostile
	in.Runs[1].Result.Conditions.GeneratorLimited = "its processor was busy"
	in.Runs[2].Result.Name = hostile
	for k := range in.Runs[2].Records {
		if k%9 == 0 {
			in.Runs[2].Records[k].Error = hostile
		}
	}
	in.Sweep = &planner.SweepResult{}
	for _, c := range []int{2048, 256, 1024, 512} {
		for b := range 8 {
			row := planner.SweepRow{Cell: planner.Cell{C: c, M: 16, B: 1 << b, BlockSize: 16}, Strategy: planner.Balanced,
				Why: "no plan"}
			if b > 0 {
				plan := in.Plans.Plans[0]
				plan.Predicted = harness.Metrics{{Name: harness.MetricTotalThroughput, Unit: "token/s", Value: new(float64(c * b))}}
				row.Plan = &plan
			}
			in.Sweep.Rows = append(in.Sweep.Rows, row)
		}
	}
	in.Kernels = &harness.Bench{Origin: harness.OriginMeasured, Backend: "host", Device: hostile, ReadCeiling: new(20e9)}
	for i, size := range []string{"16", "1", "64"} {
		in.Kernels.Cases = append(in.Kernels.Cases, harness.BenchCase{Case: "decode/layout=NHD/block_size=" + size,
			Best: i == 0, Axes: map[string]string{"op": "decode", "layout": "NHD", "block_size": size},
			Median: 0.1 * float64(i+1), Bytes: 1e9, Slower: map[bool]*float64{false: new(float64(i + 1))}[i == 0], P: new(1e-6)})
	}
	return in
}

func written(t *testing.T, name string, write func(io.Writer) error) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := write(f); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return file
}

// The page renders, says nothing on the console, asks nothing of the network, runs no name; tables sort and filter; a
// chart is read with the arrow keys; the keyboard goes from the top to the end in order; text has contrast in both
// themes; nothing sticks out of a narrow window.
func TestPageInBrowser(t *testing.T) {
	in := fullDemo(t)
	b := open(t, written(t, "report.html", func(w io.Writer) error { return HTML(w, in) }), 1280, 900)
	b.shot("light")

	if charts := b.eval("document.querySelectorAll('figure.chart svg').length"); charts.(float64) < 10 {
		t.Errorf("%v charts", charts)
	}
	if flat := b.texts(`[...document.querySelectorAll('figure.chart svg')]
		.filter(s => s.getBoundingClientRect().height < 60).map(s => s.ariaLabel)`); len(flat) > 0 {
		t.Errorf("charts that are not drawn: %q", flat)
	}
	if bare := b.texts(`[...document.querySelectorAll('figure.chart')]
		.filter(f => f.querySelector('svg[data-chart]') && !f.querySelector('table'))
		.map(f => f.textContent)`); len(bare) > 0 {
		t.Errorf("charts without a table: %q", bare)
	}
	if n := b.eval("document.scripts.length"); n.(float64) != 1 {
		t.Errorf("%v scripts", n)
	}
	if stamp := b.eval("document.querySelector('.stamp').innerText"); !strings.Contains(stamp.(string), Stamp) ||
		!strings.Contains(stamp.(string), "GENERATOR-LIMITED") {
		t.Errorf("the stamp is %q", stamp)
	}
	t.Run("keyboard", func(t *testing.T) {
		b.t = t
		b.press("Tab", "Tab", 9)
		if first := b.eval("document.activeElement.textContent"); first != "Skip to the report" {
			t.Errorf("the first stop is %q", first)
		}
		var tops []float64
		for range 40 {
			b.press("Tab", "Tab", 9)
			tops = append(tops, b.eval("document.activeElement.getBoundingClientRect().top + scrollY").(float64))
			if ring := b.eval("getComputedStyle(document.activeElement).outlineStyle"); ring == "none" {
				t.Errorf("no ring around %v", b.eval("document.activeElement.outerHTML.slice(0, 200)"))
			}
		}
		for i := 1; i < len(tops); i++ {
			if tops[i] < tops[i-1]-600 { // the chart beside another begins where that one does
				t.Errorf("stop %d goes up from %v to %v: %v", i, tops[i-1], tops[i],
					b.eval("document.activeElement.outerHTML.slice(0, 200)"))
			}
		}
		button := "document.querySelector('nav button')"
		b.eval(button + ".focus()")
		b.press("Enter", "Enter", 13)
		b.press("Enter", "Enter", 13)
		if theme := b.eval("document.documentElement.dataset.theme"); theme != "dark" {
			t.Errorf("twice on: theme %v", theme)
		}
		b.press("Enter", "Enter", 13)
		named := b.texts(`[...document.querySelectorAll('svg, input, button, a, summary, .wide[tabindex]')].filter(e =>
			!(e.ariaLabel || e.textContent.trim() || e.labels?.[0]?.textContent)).map(e => e.outerHTML.slice(0, 200))`)
		if len(named) > 0 {
			t.Errorf("without a name: %q", named)
		}
		levels := b.texts("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => h.tagName)")
		if levels[0] != "H1" || slices.Index(levels[1:], "H1") >= 0 || levels[1] != "H2" {
			t.Errorf("headings %v", levels)
		}
	})

	b.t = t
	b.eval("scrollTo(0, 4000)")
	if top := b.eval("document.querySelector('.stamp').getBoundingClientRect().top"); top.(float64) != 0 {
		t.Errorf("the stamp is out of sight: %v", top)
	}

	t.Run("sort", func(t *testing.T) {
		b.t = t
		const table = `[...document.querySelectorAll('table')]
			.find(t => t.caption?.textContent.startsWith('Parameter sweep'))`
		column := func(i int) []string {
			return b.texts(fmt.Sprintf("[...%s.tBodies[0].rows].map(r => r.cells[%d].textContent)", table, i))
		}
		click := func(i int) {
			b.eval(fmt.Sprintf("%s.tHead.rows[0].cells[%d].querySelector('button').click()", table, i))
		}
		click(0)
		if got := strings.Join(slices.Compact(column(0)), " "); got != "256 512 1024 2048" {
			t.Errorf("sorted by C: %s", got)
		}
		click(0)
		if got := strings.Join(slices.Compact(column(0)), " "); got != "2048 1024 512 256" {
			t.Errorf("sorted down: %s", got)
		}
		if said := b.eval(table + ".tHead.rows[0].cells[0].ariaSort"); said != "descending" {
			t.Errorf("aria-sort is %v", said)
		}
		for range 2 { // what is missing comes last in both directions
			click(5)
			if got := column(5); got[len(got)-1] != "-" || got[0] == "-" {
				t.Errorf("sorted by throughput: %q", got)
			}
		}
		if got := column(5)[0]; !strings.HasPrefix(got, "14,3") { // 2048 x 7
			t.Errorf("the largest throughput is %s", got)
		}
		b.eval(`(() => { const i = ` + table + `.parentElement.previousElementSibling.querySelector('input');
			i.value = '512 no plan'; i.dispatchEvent(new Event('input')); })()`)
		shown := b.texts("[..." + table + ".tBodies[0].rows].filter(r => r.offsetParent).map(r => r.textContent)")
		if len(shown) != 1 || !strings.HasPrefix(shown[0], "512") {
			t.Errorf("rows with 512 and no plan: %q", shown)
		}
		if said := b.eval(table +
			".parentElement.previousElementSibling.querySelector('output').textContent"); said != "1 of 32 rows" {
			t.Errorf("it says %v", said)
		}
	})

	t.Run("read", func(t *testing.T) {
		b.t = t
		b.eval("document.querySelector('svg[data-chart]').focus()")
		for range 25 {
			b.press("ArrowRight", "ArrowRight", 39)
		}
		said := b.eval("document.querySelector('svg[data-chart]').nextElementSibling.textContent").(string)
		if !strings.Contains(said, "low-latency") || !strings.Contains(said, "%") {
			t.Errorf("in the middle of the first chart it says %q", said)
		}
		// The figure that is read is the sample's: at the middle of the axis, by its own table's columns.
		at := strings.Fields(said)[1]
		var q, read float64
		if _, err := fmt.Sscanf(at, "%g", &q); err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(said, "low-latency ")
		var unit string
		if _, err := fmt.Sscanf(rest, "%g %s", &read, &unit); err != nil {
			t.Fatalf("%q: %v", said, err)
		}
		if unit == "ms" {
			read /= 1000
		}
		values := harness.Samples(in.Runs[0].Records, harness.MetricTTFT)
		slices.Sort(values)
		want := values[min(len(values)-1, int(q/100*float64(len(values))))]
		if read < want*0.9 || read > want*1.1 {
			t.Errorf("%q, but the sample has %g s there", said, want)
		}
	})

	for _, theme := range []string{"light", "dark"} {
		t.Run("contrast "+theme, func(t *testing.T) {
			b.t = t
			b.call("Emulation.setEmulatedMedia",
				map[string]any{"features": []any{map[string]string{"name": "prefers-color-scheme", "value": theme}}})
			if theme == "dark" {
				b.shot("dark")
			}
			b.eval("document.querySelectorAll('details').forEach(d => d.open = true)")
			if poor := b.texts(poorContrast); len(poor) > 0 {
				t.Errorf("%d texts, such as %q", len(poor), poor[:min(5, len(poor))])
			}
			b.eval("document.querySelectorAll('details').forEach(d => d.open = false)")
			want := palette.ground
			if theme == "dark" {
				want = night.ground
			}
			if got := b.eval("getComputedStyle(document.body).backgroundColor"); got != fmt.Sprintf("rgb(%d, %d, %d)", want.R,
				want.G, want.B) {
				t.Errorf("the ground is %v", got)
			}
		})
	}

	b.t = t
	b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": 400, "height": 800, "deviceScaleFactor": 1,
		"mobile": false})
	b.eval("dispatchEvent(new Event('resize'))")
	if wide := b.eval("document.documentElement.scrollWidth"); wide.(float64) > 400 {
		t.Errorf("the page is %v px wide in a window of 400", wide)
	}
	b.shot("narrow")
	b.call("Emulation.clearDeviceMetricsOverride", nil)

	b.call("Emulation.setEmulatedMedia",
		map[string]any{"media": "print",
			"features": []any{map[string]string{"name": "prefers-color-scheme", "value": "dark"}}})
	if got := b.eval("getComputedStyle(document.body).color"); got != fmt.Sprintf("rgb(%d, %[1]d, %[1]d)", palette.ink.R) {
		t.Errorf("on paper the ink is %v", got)
	}
	if said := b.complaints(); len(said) > 0 {
		t.Errorf("the browser complains: %s", strings.Join(said, "\n"))
	}
}

// poorContrast are the texts in sight whose contrast to what is painted behind them is below WCAG's 4.5.
const poorContrast = `(() => {
	const numbers = (c) => c.match(/[\d.]+/g).map(Number);
	const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
		.map((s) => s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4)
		.reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
	const behind = (e) => {
		for (; e; e = e.parentElement) {
			const c = numbers(getComputedStyle(e).backgroundColor);
			if (c.length === 3 || c[3] === 1) return c;
		}
		return [255, 255, 255];
	};
	const poor = [];
	const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
	for (let node = walk.nextNode(); node; node = walk.nextNode()) {
		const e = node.parentElement;
		if (!node.textContent.trim() || e.closest('script') || !e.getClientRects().length) continue;
		const style = getComputedStyle(e);
		const a = light(numbers(e.closest('svg') ? style.fill : style.color)) + 0.05, b = light(behind(e)) + 0.05;
		if (Math.max(a, b) / Math.min(a, b) < 4.5)
			poor.push(node.textContent.trim().slice(0, 40) + ' ' + style.color + ' on ' + behind(e));
	}
	return poor;
})()`

// Two reports side by side are a page of the same kind.
func TestComparisonInBrowser(t *testing.T) {
	in := fullDemo(t)
	side := func(name string, factor float64) *compare.Side {
		s := &compare.Side{Name: name}
		for i := range 30 {
			values := make([]float64, 40)
			for k := range values {
				values[k] = factor * float64(i+1) * (1 + float64(k%7)/1000)
			}
			s.Series = append(s.Series, compare.Series{Case: fmt.Sprintf("case %d", i), Unit: "s", Values: values})
		}
		return s
	}
	result, err := compare.Compare(side("a", 1), side("b", 1.1), compare.Options{})
	if err != nil {
		t.Fatal(err)
	}
	c := Comparison{Title: "compare", Result: result, A: Input{Runs: in.Runs[:2], Kernels: in.Kernels},
		B: Input{Runs: in.Runs[:2], Kernels: in.Kernels}}
	b := open(t, written(t, "compare.html", func(w io.Writer) error { return CompareHTML(w, c) }), 1280, 900)
	b.shot("compare")
	heads := b.texts("[...[...document.querySelectorAll('table')].find(t => t.caption?.textContent.startsWith('All " +
		"runs')).tHead.rows[0].cells].map(c => c.textContent)")
	if got := strings.Join(heads, "|"); got != "metric|unit|A: low-latency|B: low-latency|A: high-throughput|B: "+
		"high-throughput" {
		t.Errorf("side by side stand %s", got)
	}
	if n := b.eval("[...document.querySelectorAll('.mark')].filter(e => e.textContent === " +
		"'WORSE').length"); n.(float64) != 30 {
		t.Errorf("%v cases are worse", n)
	}
	if said := b.complaints(); len(said) > 0 {
		t.Errorf("the browser complains: %s", strings.Join(said, "\n"))
	}
}

// A page of 10,000 requests stays below 3 MB.
func TestPageOfManyRequests(t *testing.T) {
	in := fullDemo(t)
	for i := range in.Runs {
		few := in.Runs[i].Records
		var many []workload.Record
		for len(many) < 10_000 {
			for _, r := range few {
				r.Index, r.Sent = len(many), r.Sent+time.Duration(len(many))*10*time.Millisecond
				if r.Due != nil {
					due := r.Sent
					r.Due = &due
				}
				many = append(many, r)
			}
		}
		in.Runs[i].Records = many[:10_000]
	}
	file := written(t, "many.html", func(w io.Writer) error { return HTML(w, in) })
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("three runs of 10,000 requests: %d bytes", info.Size())
	if info.Size() > 3e6 {
		t.Errorf("the page has %d bytes", info.Size())
	}
	if said := open(t, file, 1280, 900).complaints(); len(said) > 0 {
		t.Errorf("the browser complains: %s", strings.Join(said, "\n"))
	}
}
