package bench

import (
	"cmp"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/stats"
)

// TestTable: the tables of what a block size and a layout cost (table.cases) that are committed are whole: every shape
// was timed in the same layouts and block sizes, one of them is the best. What each costs against the best is printed,
// for every shape and as the median over the shapes; ~ stands before what is not significant.
func TestTable(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("results", "*", "table", "*_bench.json"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Error("no table is committed")
	}
	for _, file := range files {
		b, _, err := archive.ReadBench(file)
		if err != nil {
			t.Fatal(err)
		}
		if b.Partial || b.Origin != harness.OriginMeasured {
			t.Errorf("%s: partial %v, origin %s", file, b.Partial, b.Origin)
		}
		var text strings.Builder
		all := tables(b)
		for _, dtype := range slices.Sorted(maps.Keys(all)) {
			laws(t, file, all[dtype])
			fmt.Fprintf(&text, "%s\n", dtype)
			print(&text, all[dtype])
		}
		t.Logf("%s: %s, %s\n%s", filepath.Base(file), b.Device, b.Conditions.Started.Format("2006-01-02"), &text)
	}
}

// place is a layout and a block size.
type place struct {
	layout string
	block  int
}

// shape is what table.cases times in every layout and block size.
type shape struct {
	name  string
	cases map[place]*harness.BenchCase
}

// tables are the shapes of a file by dtype, in order.
func tables(b *harness.Bench) map[string][]shape {
	all := map[string][]shape{}
	for i := range b.Cases {
		c := &b.Cases[i]
		a := c.Axes
		name := fmt.Sprintf("%s x %s + %s, %s/%s heads", a["batch"], a["context"], cmp.Or(a["new"], "1"), a["heads"],
			a["kv_heads"])
		shapes := all[a["dtype"]]
		at := slices.IndexFunc(shapes, func(s shape) bool { return s.name == name })
		if at < 0 {
			at = len(shapes)
			shapes = append(shapes, shape{name, map[place]*harness.BenchCase{}})
			all[a["dtype"]] = shapes
		}
		block, _ := strconv.Atoi(a["block_size"])
		shapes[at].cases[place{a["layout"], block}] = c
	}
	return all
}

func laws(t *testing.T, file string, shapes []shape) {
	for _, s := range shapes {
		best := 0
		for at, c := range s.cases {
			if c.Best {
				best++
			} else if c.Slower == nil || *c.Slower < 0.9 {
				t.Errorf("%s, %s: %v costs %v", file, s.name, at, c.Slower)
			}
			if shapes[0].cases[at] == nil {
				t.Errorf("%s: %v is in %s only", file, at, s.name)
			}
		}
		if best != 1 || len(s.cases) != len(shapes[0].cases) {
			t.Errorf("%s, %s: %d best of %d cases", file, s.name, best, len(s.cases))
		}
	}
}

// print writes a table: a row for each shape and layout, a column for each block size.
func print(text *strings.Builder, shapes []shape) {
	w := tabwriter.NewWriter(text, 0, 0, 2, ' ', tabwriter.AlignRight)
	defer w.Flush()
	var layouts []string
	var blocks []int
	for at := range shapes[0].cases {
		if !slices.Contains(layouts, at.layout) {
			layouts = append(layouts, at.layout)
		}
		if !slices.Contains(blocks, at.block) {
			blocks = append(blocks, at.block)
		}
	}
	slices.Sort(layouts)
	slices.Sort(blocks)
	fmt.Fprint(w, "shape\tlayout\tbest us\t")
	for _, b := range blocks {
		fmt.Fprintf(w, "%d\t", b)
	}
	fmt.Fprintln(w)
	costs := map[place][]float64{}
	for _, s := range shapes {
		best := 0.0
		for _, c := range s.cases {
			if c.Best {
				best = c.Median
			}
		}
		for _, l := range layouts {
			fmt.Fprintf(w, "%s\t%s\t%.1f\t", s.name, l, best*1e6)
			for _, b := range blocks {
				c := s.cases[place{l, b}]
				cost := 100 * (c.Median/best - 1)
				costs[place{l, b}] = append(costs[place{l, b}], cost)
				mark := ""
				if !c.Best && !c.Significant() {
					mark = "~"
				}
				fmt.Fprintf(w, "%s%+.1f %%\t", mark, cost)
			}
			fmt.Fprintln(w)
		}
	}
	for _, l := range layouts {
		fmt.Fprintf(w, "median over %d shapes\t%s\t\t", len(shapes), l)
		for _, b := range blocks {
			fmt.Fprintf(w, "%+.1f %%\t", stats.New(costs[place{l, b}]).Median())
		}
		fmt.Fprintln(w)
	}
}
