package report

import (
	"bufio"
	"fmt"
	"html/template"
	"math"
	"slices"
	"strconv"

	"kvtune/harness"
)

// KernelMaps are heat maps of a kernel benchmark, one for every group that has more than one layout or block size: what
// each costs against the fastest.
func KernelMaps(b *harness.Bench) []HeatMap {
	temperature := "warm"
	if b.Cold {
		temperature = "cold"
	}
	var maps []HeatMap
	for _, group := range kernelGroups(b) {
		m := HeatMap{Title: temperature + " " + group, Says: "time above the fastest's (~ not significant); measured, " +
			b.Device, XLabel: "block_size", YLabel: "layout"}
		var members []*harness.BenchCase
		for i := range b.Cases {
			if c := &b.Cases[i]; c.Group() == group {
				members = append(members, c)
				if !slices.Contains(m.X, c.Axes["block_size"]) {
					m.X = append(m.X, c.Axes["block_size"])
				}
				if !slices.Contains(m.Y, c.Axes["layout"]) {
					m.Y = append(m.Y, c.Axes["layout"])
				}
			}
		}
		if len(m.X)*len(m.Y) < 2 {
			continue
		}
		slices.SortFunc(m.X, func(a, b string) int {
			x, _ := strconv.Atoi(a)
			y, _ := strconv.Atoi(b)
			return x - y
		})
		for _, layout := range m.Y {
			values, texts := make([]float64, len(m.X)), make([]string, len(m.X))
			for i, size := range m.X {
				values[i], texts[i] = math.NaN(), "-"
				for _, c := range members {
					if c.Axes["layout"] != layout || c.Axes["block_size"] != size {
						continue
					}
					if texts[i], values[i] = c.Cost(), 0; c.Slower != nil {
						values[i] = max(0, *c.Slower-1)
					}
				}
			}
			m.Values, m.Texts = append(m.Values, values), append(m.Texts, texts)
		}
		maps = append(maps, m)
	}
	return maps
}

// kernelGroups are the different groups of a benchmark's cases, in order.
func kernelGroups(b *harness.Bench) (groups []string) {
	for i := range b.Cases {
		if g := b.Cases[i].Group(); !slices.Contains(groups, g) {
			groups = append(groups, g)
		}
	}
	return groups
}

// kernelRows are the cells of a table of the benchmark, below kernelHead.
func kernelRows(b *harness.Bench) (rows [][]string) {
	for i := range b.Cases {
		c := &b.Cases[i]
		share := notObserved
		if b.ReadCeiling != nil {
			share = fmt.Sprintf("%.0f", 100*c.Bandwidth() / *b.ReadCeiling)
		}
		rows = append(rows, []string{c.Axes["op"], c.Axes["block_size"], c.Axes["layout"], fmt.Sprintf("%.*f", decimals(c.Median*1e6), c.Median*1e6),
			fmt.Sprintf("%.4g", c.Bandwidth()/1e9), share, c.Cost()})
	}
	return rows
}

// decimals are those that four digits leave.
func decimals(v float64) int {
	for d, limit := 0, 1000.0; d < 3; d, limit = d+1, limit/10 {
		if v >= limit {
			return d
		}
	}
	return 3
}

var kernelHead = [...]string{"op", "block_size", "layout", "time us", "GB/s", "% of read", "against the best"}

// kernelVerdict is what a benchmark is and on what.
func kernelVerdict(b *harness.Bench) string {
	verdict := "measured on " + b.Device + " (" + b.Backend + " backend)"
	if b.Partial {
		verdict += "; PARTIAL: " + b.Why
	}
	return verdict
}

// kernelTable writes what block sizes and layouts cost.
func kernelTable(w *bufio.Writer, b *harness.Bench) {
	fmt.Fprintln(w, "what a block size costs in a kernel, MEASURED")
	wrap(w, "", "", kernelVerdict(b))
	widths := [len(kernelHead)]int{8, 10, 9, 10, 9, 9, 16}
	line := func(cells []string) {
		for i, cell := range cells {
			if i > 0 {
				fmt.Fprint(w, "  ")
			}
			fmt.Fprint(w, padLeft(clean(cell, widths[i]), widths[i]))
		}
		fmt.Fprintln(w)
	}
	line(kernelHead[:])
	for _, row := range kernelRows(b) {
		line(row)
	}
}

// kernelPage is a benchmark on the page.
type kernelPage struct {
	Verdict string
	Maps    []template.HTML
	Head    []string
	Rows    [][]string
}

func kernelPageOf(b *harness.Bench) (*kernelPage, error) {
	p := &kernelPage{Verdict: kernelVerdict(b), Head: kernelHead[:], Rows: kernelRows(b)}
	for _, m := range KernelMaps(b) {
		svg, err := m.svg()
		if err != nil {
			return nil, err
		}
		p.Maps = append(p.Maps, template.HTML(svg)) // drawn here; its texts were escaped
	}
	return p, nil
}
