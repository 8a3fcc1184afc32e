package compare

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kvtune/harness"
	"kvtune/harness/archive"
)

// side has cases of n values around 1 ms with relative noise sd, of which each keeps rho of the one before; factor
// makes the last case slower.
func side(seed uint64, cases, n int, sd, rho, factor float64) *Side {
	rng := rand.New(rand.NewPCG(seed, 4))
	s := &Side{Name: fmt.Sprintf("side %d", seed)}
	for c := range cases {
		values, v := make([]float64, n), rng.NormFloat64()
		for i := range values {
			v = rho*v + math.Sqrt(1-rho*rho)*rng.NormFloat64()
			values[i] = 1e-3 * (1 + sd*v)
			if c == cases-1 {
				values[i] *= factor
			}
		}
		s.Series = append(s.Series, Series{Case: fmt.Sprintf("case%d", c), Unit: "s", Values: values})
	}
	return s
}

func compare(t *testing.T, a, b *Side, o Options) *Report {
	t.Helper()
	r, err := Compare(a, b, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestPlanted: 1 % is found in one of ten cases at a threshold of half a percent, and nothing else is flagged; the same
// the other way round.
func TestPlanted(t *testing.T) {
	if testing.Short() {
		t.Skip("statistics over many runs: without -short")
	}
	o := Options{Threshold: 0.005}
	for seed := range uint64(10) {
		a, b := side(seed, 10, 400, 0.01, 0.3, 1), side(seed+100, 10, 400, 0.01, 0.3, 1.01)
		r := compare(t, a, b, o)
		if r.Count(Worse) != 1 || r.Rows[9].Verdict != Worse || !strings.HasPrefix(r.Verdict(), "REGRESSION: 1 of 10") {
			t.Errorf("seed %d: %s", seed, r.Verdict())
		}
		if *r.Rows[9].Low > 1.01 || *r.Rows[9].High < 1.01 {
			t.Errorf("seed %d: the interval %v to %v does not hold 1.01", seed, *r.Rows[9].Low, *r.Rows[9].High)
		}
		if back := compare(t, b, a, o); back.Count(Better) != 1 || back.Count(Worse) != 0 {
			t.Errorf("seed %d, turned round: %s", seed, back.Verdict())
		}
	}
}

// TestFalseAlarms: of 150 comparisons of equal sides with 4 cases each, 1 % may show any difference; neighbours depend
// on each other, and no threshold helps.
func TestFalseAlarms(t *testing.T) {
	if testing.Short() {
		t.Skip("statistics over many runs: without -short")
	}
	const runs = 150
	alarms := 0
	for seed := range uint64(runs) {
		r := compare(t, side(2*seed, 4, 300, 0.02, 0.6, 1), side(2*seed+1, 4, 300, 0.02, 0.6, 1), Options{Threshold: 1e-9})
		if r.Count(Worse)+r.Count(Better) > 0 {
			alarms++
		}
	}
	if alarms > 6 { // 1.5 are expected; more than 6 have a chance of 0.1 %
		t.Errorf("%d of %d comparisons of equal sides show a difference", alarms, runs)
	}
}

func TestVerdicts(t *testing.T) {
	one := func(a, b *Side, o Options) Row { return compare(t, a, b, o).Rows[0] }
	if v := one(side(1, 1, 500, 0.001, 0, 1), side(2, 1, 500, 0.001, 0, 1), Options{}).Verdict; v != Same {
		t.Errorf("equal and quiet: %s", v)
	}
	if v := one(side(1, 1, 500, 0.001, 0, 1), side(2, 1, 500, 0.001, 0, 1.003),
		Options{Threshold: 0.003}).Verdict; v != Small && v != Worse {
		t.Errorf("0.3 %% at a threshold of 0.3 %%: %s", v)
	}
	if v := one(side(1, 1, 20, 0.1, 0, 1), side(2, 1, 20, 0.1, 0, 1), Options{}).Verdict; v != Unclear {
		t.Errorf("noisy: %s", v)
	}
	few := one(side(1, 1, 3, 0.001, 0, 1), side(2, 1, 3, 0.001, 0, 2), Options{})
	if few.Verdict != Unclear || !strings.Contains(few.Note, "cannot be significant") {
		t.Errorf("three values against three, twice as slow: %s, %q", few.Verdict, few.Note)
	}
	up := func(factor float64) *Side {
		s := side(uint64(10*factor), 1, 100, 0.01, 0, factor)
		s.Series[0].Unit, s.Series[0].Higher = "B/s", true
		return s
	}
	if v := one(up(1), up(1.2), Options{}).Verdict; v != Better {
		t.Errorf("a rate that is higher: %s", v)
	}
	if v := one(up(1.2), up(1), Options{}).Verdict; v != Worse {
		t.Errorf("a rate that is lower: %s", v)
	}
}

func TestPairing(t *testing.T) {
	a, b := side(1, 3, 50, 0.01, 0, 1), side(2, 2, 50, 0.01, 0, 1)
	b.Series[1].Case = "other"
	r := compare(t, a, b, Options{})
	if len(r.Rows) != 1 || strings.Join(r.OnlyA, " ") != "case1 case2" || strings.Join(r.OnlyB, " ") != "other" {
		t.Errorf("%d rows, only A %q, only B %q", len(r.Rows), r.OnlyA, r.OnlyB)
	}
	b.Series = b.Series[1:]
	if _, err := Compare(a, b, Options{}); err == nil || !strings.Contains(err.Error(), "no case in common") {
		t.Errorf("nothing in common: %v", err)
	}
	if _, err := Compare(a, a, Options{Threshold: 5}); err == nil || !strings.Contains(err.Error(), "threshold is 5") {
		t.Errorf("a threshold of 500 %%: %v", err)
	}
}

const goOutput = `goos: linux
Unit widgets better=higher
BenchmarkSum/n=10-2   	 1000	      1234 ns/op	  512.0 MB/s
ok, something else is printed here
BenchmarkSum/n=10-2   	 1000	      1300 ns/op
BenchmarkMake         	 1	      7 widgets
BenchmarkBroken       	 1	      x ns/op
PASS
`

func TestReadGo(t *testing.T) {
	s, err := ReadGo(strings.NewReader(goOutput), "out.txt")
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Series) != 2 || s.Series[0].Unit != "sec/op" || len(s.Series[0].Values) != 2 || s.Series[0].Higher ||
		math.Abs(s.Series[0].Values[0]-1.234e-6) > 1e-12 {
		t.Errorf("series %+v", s.Series)
	}
	if !s.Series[1].Higher || s.Series[1].Values[0] != 7 {
		t.Errorf("a unit that says what is better: %+v", s.Series[1])
	}
	if len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], "out.txt:7") {
		t.Errorf("warnings %q", s.Warnings)
	}
}

func TestReadBench(t *testing.T) {
	f, err := archive.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	b := &harness.Bench{Name: "kernels", Cold: true, Cases: []harness.BenchCase{{Case: "decode/block_size=1"}}}
	samples := []harness.BenchSample{
		{Case: "decode/block_size=1", Seconds: 3}, {Case: "decode/block_size=1", Seconds: 9, Gate: "power cap"},
		{Case: "decode/block_size=1", Seconds: 2},
	}
	if err := f.WriteBench(b, samples); err != nil {
		t.Fatal(err)
	}
	s, err := Read(f.Dir())
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Series) != 1 || s.Series[0].Case != "decode/block_size=1/cold" || fmt.Sprint(s.Series[0].Values) != "[3 2]" ||
		len(s.Warnings) != 1 {
		t.Errorf("side %+v", s)
	}
	path := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(path, []byte("nothing\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); err == nil || !strings.Contains(err.Error(), "holds no benchmark") {
		t.Errorf("a file without benchmarks: %v", err)
	}
}

// program writes a script that prints a benchmark, appends its name to a log, and is slower by a factor.
func program(t *testing.T, dir, name, factor string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	script := fmt.Sprintf("#!/bin/sh\nprintf %s >>%s/log\nn=$(wc -c <%s/log)\n"+
		"awk -v n=$n 'BEGIN { print \"BenchmarkX 1 \" %s * (1000 + n %% 7) \" ns/op\" }'\n", name, dir, dir, factor)
	if err := os.WriteFile(path, []byte(script), 0o777); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestRun: programs run by turns, A B B A, and a slowdown of 5 % is found.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	a, b := program(t, dir, "a", "1"), program(t, dir, "b", "1.05")
	runs := 0
	sideA, sideB, err := Run(t.Context(), a, b, nil, 5, func(made, of int) { runs = made })
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	if string(log) != strings.Repeat("abba", 5) || runs != 20 {
		t.Errorf("order %s, %d runs", log, runs)
	}
	r := compare(t, sideA, sideB, Options{})
	if r.Count(Worse) != 1 || math.Abs(r.Rows[0].Ratio-1.05) > 0.01 {
		t.Errorf("%s", r.Verdict())
	}
	if _, _, err := Run(t.Context(), "false", b, nil, 1, nil); err == nil || !strings.Contains(err.Error(), "run false") {
		t.Errorf("a program that fails: %v", err)
	}
	if _, _, err := Run(t.Context(), "true", b, nil, 1, nil); err == nil || !strings.Contains(err.Error(), "-test.bench") {
		t.Errorf("a program that prints nothing: %v", err)
	}
}
