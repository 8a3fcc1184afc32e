// Package compare says whether one set of measurements differs from another, and by how much: two kernel benchmarks,
// two profiles, two files in Go's benchmark format, or two programs that it runs by turns.
//
// [Read] reads a side, [Run] measures two by running programs, [Compare] gives the verdict on every case that both
// sides have. A difference counts when it is both significant (a Mann-Whitney test after Holm's correction for the
// number of cases) and larger than a threshold that matters.
package compare

import (
	"fmt"
	"math"

	"kvtune/harness/stats"
)

// Side is one set of measurements.
type Side struct {
	Name   string
	Series []Series
	// OneRun: all values of a case were taken in one go, so that what is alike within a run and different between two
	// (where memory lies, how warm the machine is) looks like a difference between the sides.
	OneRun bool
	// Warnings are what a reader must know of it.
	Warnings []string
	// Simulated is set where a run of it is of no real server.
	Simulated bool
}

// Series are the measured values of one case.
type Series struct {
	// Case names what was measured; the sides are paired by it.
	Case string
	// Unit is the base unit, Higher says that larger values are better.
	Unit   string
	Higher bool
	// Values are in the order in which they were taken, all above 0. Neighbours may depend on each other.
	Values []float64
}

// Verdict is what a comparison says of a case.
type Verdict string

const (
	// Worse and Better: significant, and beyond the threshold.
	Worse  Verdict = "worse"
	Better Verdict = "better"
	// Same: whatever the difference is, its interval lies within the threshold.
	Same Verdict = "same"
	// Small: significant and not beyond the threshold, but its interval is.
	Small Verdict = "small"
	// Unclear: not significant, and the interval reaches beyond the threshold.
	Unclear Verdict = "unclear"
)

// Options of a comparison. The zero value of a field is its default.
type Options struct {
	// Threshold is the relative difference that matters: 0.01.
	Threshold float64
	// Alpha is the chance of any false alarm among all cases: 0.01.
	Alpha float64
}

// Row is the comparison of one case.
type Row struct {
	Case   string `json:"case"`
	Unit   string `json:"unit"`
	Higher bool   `json:"higher_is_better,omitempty"`
	// A and B are the medians of the sides, NA and NB how many values they have.
	A  float64 `json:"a"`
	B  float64 `json:"b"`
	NA int     `json:"n_a"`
	NB int     `json:"n_b"`
	// UsedA and UsedB are how many nearly independent values the test had: medians of blocks of neighbours.
	UsedA int `json:"used_a"`
	UsedB int `json:"used_b"`
	// Ratio is by how much B is larger than A, with its interval at 1 - alpha (for this case alone); an end that the
	// values cannot bound is nil.
	Ratio float64  `json:"ratio"`
	Low   *float64 `json:"ratio_low"`
	High  *float64 `json:"ratio_high"`
	// P is after Holm's correction.
	P       float64 `json:"p_holm"`
	Verdict Verdict `json:"verdict"`
	Note    string  `json:"note,omitempty"`
}

// Report is the outcome of a comparison.
type Report struct {
	A         string  `json:"a"`
	B         string  `json:"b"`
	Threshold float64 `json:"threshold"`
	Alpha     float64 `json:"alpha"`
	Rows      []Row   `json:"cases"`
	// OnlyA and OnlyB are the cases that have no partner.
	OnlyA    []string `json:"only_a,omitempty"`
	OnlyB    []string `json:"only_b,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
	// Simulated is set where a run of either side is of no real server.
	Simulated bool `json:"simulated,omitempty"`
}

// Count is the number of cases with a verdict.
func (r *Report) Count(v Verdict) int {
	n := 0
	for i := range r.Rows {
		if r.Rows[i].Verdict == v {
			n++
		}
	}
	return n
}

// most is how many blocks a test uses at most: what its exact distribution is known for.
const most = 50

// Compare pairs the cases of two sides and tests every pair. It fails when there is none.
func Compare(a, b *Side, o Options) (*Report, error) {
	if o.Threshold == 0 {
		o.Threshold = 0.01
	}
	if o.Alpha == 0 {
		o.Alpha = 0.01
	}
	if !(o.Threshold > 0 && o.Threshold < 1) {
		return nil, fmt.Errorf("threshold is %v: it must be above 0 and below 1 (0.01 is one percent)", o.Threshold)
	}
	if !(o.Alpha > 0 && o.Alpha < 1) {
		return nil, fmt.Errorf("alpha is %v: it must be above 0 and below 1 (0.01 is a chance of one in a hundred)", o.Alpha)
	}
	r := &Report{A: a.Name, B: b.Name, Threshold: o.Threshold, Alpha: o.Alpha, Rows: []Row{}}
	for _, side := range []*Side{a, b} {
		r.Simulated = r.Simulated || side.Simulated
		for _, w := range side.Warnings {
			r.Warnings = append(r.Warnings, side.Name+": "+w)
		}
	}
	partner := map[[2]string]*Series{}
	for i := range b.Series {
		partner[b.Series[i].key()] = &b.Series[i]
	}
	var ps []float64
	for i := range a.Series {
		x := &a.Series[i]
		y := partner[x.key()]
		if y == nil {
			r.OnlyA = append(r.OnlyA, x.Case)
			continue
		}
		delete(partner, x.key())
		row, p := pair(x, y, o)
		r.Rows, ps = append(r.Rows, row), append(ps, p)
	}
	for i := range b.Series {
		if partner[b.Series[i].key()] != nil {
			r.OnlyB = append(r.OnlyB, b.Series[i].Case)
		}
	}
	if len(r.Rows) == 0 {
		return nil, fmt.Errorf("%s and %s have no case in common: %s beside %s", a.Name, b.Name, first(r.OnlyA),
			first(r.OnlyB))
	}
	for i, p := range stats.Holm(ps) {
		r.Rows[i].P = p
		r.Rows[i].judge(o, len(ps))
	}
	if (a.OneRun || b.OneRun) && r.Count(Worse)+r.Count(Better) > 0 {
		r.Warnings = append(r.Warnings, "every case was measured in one go, and two runs of the same program may differ "+
			"as much: repeat it, or compare with --run, which runs both by turns")
	}
	return r, nil
}

func (s *Series) key() [2]string { return [2]string{s.Case, s.Unit} }

func first(cases []string) string {
	switch len(cases) {
	case 0:
		return "nothing"
	case 1:
		return cases[0]
	}
	return fmt.Sprintf("%s and %d more", cases[0], len(cases)-1)
}

// Blocks are the values of a series that a test takes as independent: medians of as many blocks of neighbours as there
// are independent values in it, at most 50.
func Blocks(values []float64) []float64 {
	return stats.Blocks(values, min(stats.Effective(values), most))
}

// pair compares two series and returns the p-value before any correction.
func pair(x, y *Series, o Options) (Row, float64) {
	u, v := Blocks(x.Values), Blocks(y.Values)
	row := Row{Case: x.Case, Unit: x.Unit, Higher: x.Higher, A: stats.New(x.Values).Median(),
		B:  stats.New(y.Values).Median(),
		NA: len(x.Values), NB: len(y.Values), UsedA: len(u), UsedB: len(v)}
	ratio, iv := stats.Ratio(u, v, 1-o.Alpha)
	row.Ratio = ratio
	if iv.Low > 0 {
		row.Low = &iv.Low
	}
	if !math.IsInf(iv.High, 1) {
		row.High = &iv.High
	}
	return row, stats.MannWhitney(u, v).P
}

// judge gives the verdict, of so many cases tested.
func (r *Row) judge(o Options, tests int) {
	worse := r.Ratio
	if r.Higher {
		worse = 1 / r.Ratio
	}
	low, high := 1-o.Threshold, 1+o.Threshold
	switch {
	case r.P < o.Alpha && worse > high:
		r.Verdict = Worse
	case r.P < o.Alpha && worse < 1/high:
		r.Verdict = Better
	case r.Low != nil && r.High != nil && *r.Low >= low && *r.High <= high:
		r.Verdict = Same
	case r.P < o.Alpha:
		r.Verdict = Small
	default:
		r.Verdict = Unclear
	}
	if r.Verdict != Unclear {
		return
	}
	// The smallest p-value that so few values can give, all of one side below all of the other.
	if best := 2 / choose(r.UsedA+r.UsedB, r.UsedA) * float64(tests); best >= o.Alpha {
		r.Note = fmt.Sprintf("%d and %d independent values cannot be significant among %d cases: measure more often", r.UsedA,
			r.UsedB, tests)
	}
}

// choose is the number of ways to choose k of n.
func choose(n, k int) float64 {
	c := 1.0
	for i := range k {
		c *= float64(n-i) / float64(i+1)
	}
	return c
}
