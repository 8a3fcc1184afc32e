package report

import (
	"bufio"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"kvtune/harness"
	"kvtune/planner"
)

// frontTable writes the Pareto front, the knee marked.
func frontTable(b *bufio.Writer, ps *planner.Plans) {
	if len(ps.Front) < 2 {
		return
	}
	fmt.Fprintln(b, "Pareto front of throughput against p99 latency (the knee is what balanced takes)")
	fmt.Fprintf(b, "  %14s %12s  %s\n", "total token/s", "E2EL p99 ms", "settings")
	for _, f := range ps.Front {
		mark := ""
		if f.Knee {
			mark = "  <- knee"
		}
		fmt.Fprintf(b, "  %14s %12.4g  %s%s\n", grouped(strconv.FormatFloat(f.Throughput, 'f', 0, 64)), 1e3*f.Latency,
			frontSettings(f), mark)
	}
}

// rangeTable writes how far the choices are from the best at every rate.
func rangeTable(b *bufio.Writer, ps *planner.Plans) {
	if ps.Range == nil {
		return
	}
	for _, c := range ps.Range.Choices {
		wrap(b, "", "  ", rangeFact(ps, &c))
		fmt.Fprintf(b, "  %9s %14s  %s\n", "request/s", "regret", "best settings of this rate alone")
		for _, p := range c.Points {
			regret, winner := rangeTexts(ps, p)
			fmt.Fprintf(b, "  %9.4g %14s  %s\n", p.Rate, regret, winner)
		}
		for _, s := range c.Switches {
			wrap(b, "  ", "    ", switchFact(ps, s))
		}
	}
}

// SweepHeatMaps draws total throughput over C (rows) and B (columns) of a sweep's first target, one map for each M and
// block size. A cell without a plan is empty.
func SweepHeatMaps(sweep *planner.SweepResult) []HeatMap {
	if len(sweep.Rows) == 0 {
		return nil
	}
	type key struct{ m, blockSize int }
	target := sweep.Rows[0].Strategy
	var keys []key
	var cs, bs []int
	add := func(all *[]int, v int) {
		if !slices.Contains(*all, v) {
			*all = append(*all, v)
		}
	}
	for i := range sweep.Rows {
		r := &sweep.Rows[i]
		if k := (key{r.M, r.BlockSize}); !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
		add(&cs, r.C)
		add(&bs, r.B)
	}
	var maps []HeatMap
	for _, k := range keys {
		m := HeatMap{
			Title:  fmt.Sprintf("M %d blocks, block_size %d: total throughput in token/s", k.m, k.blockSize),
			Says:   fmt.Sprintf("PREDICTED (SIMULATED) with the best settings for %s", target),
			XLabel: "B, requests", YLabel: "C, tokens",
		}
		for _, b := range bs {
			m.X = append(m.X, strconv.Itoa(b))
		}
		for _, c := range cs {
			m.Y = append(m.Y, strconv.Itoa(c))
			values, texts := make([]float64, len(bs)), make([]string, len(bs))
			for i := range values {
				values[i] = math.NaN()
			}
			for i := range sweep.Rows {
				r := &sweep.Rows[i]
				if r.Strategy != target || r.C != c || (key{r.M, r.BlockSize}) != k || r.Plan == nil {
					continue
				}
				if v, ok := r.Plan.Predicted.Value(harness.MetricTotalThroughput, ""); ok {
					at := slices.Index(bs, r.B)
					values[at], texts[at] = v, strings.TrimSpace(short(v))
				}
			}
			m.Values, m.Texts = append(m.Values, values), append(m.Texts, texts)
		}
		maps = append(maps, m)
	}
	return maps
}

// short writes a count in three digits: 12.3k.
func short(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.3gM", v/1e6)
	case v >= 1e3:
		return fmt.Sprintf("%.3gk", v/1e3)
	}
	return fmt.Sprintf("%.3g", v)
}
