package compare

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/perf/benchfmt"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/workload"
)

// Read reads a side: an archive folder or one of its files, the result file of another load generator
// ([workload.ReadForeign]), or a file in Go's benchmark format.
func Read(path string) (*Side, error) {
	f, err := archive.Open(path)
	if err != nil {
		if info, e := os.Stat(path); e == nil && info.Mode().IsRegular() {
			if side, err := readForeign(path); !errors.Is(err, workload.ErrNotForeign) {
				return side, err
			}
			return readGoFile(path)
		}
		return nil, err
	}
	if len(f.Benches()) > 0 {
		return readBench(path)
	}
	return readProfiles(f, path)
}

// readBench takes the samples of a kernel benchmark that are not gated, in seconds, as one series per case, and one
// more in clock cycles where the case is compute-bound.
func readBench(path string) (*Side, error) {
	b, samples, err := archive.ReadBench(path)
	if err != nil {
		return nil, err
	}
	side := &Side{Name: path, OneRun: b.Rounds < 2, Warnings: b.Warnings}
	if b.Partial {
		side.Warnings = append(side.Warnings, "it ended early: "+b.Why)
	}
	gated := 0
	values, cycles := map[string][]float64{}, map[string][]float64{}
	for _, s := range samples {
		switch {
		case s.Gate != "":
			gated++
		case s.Seconds > 0:
			values[s.Case] = append(values[s.Case], s.Seconds)
			if s.Counted {
				cycles[s.Case] = append(cycles[s.Case], s.Seconds**s.Clock)
			}
		}
	}
	if gated > 0 {
		side.Warnings = append(side.Warnings, fmt.Sprintf("%d of %d samples are left out: the device was throttled",
			gated, len(samples)))
	}
	for i := range b.Cases {
		c := &b.Cases[i]
		name, v := c.Case, values[c.Case]
		if b.Cold {
			name += "/cold"
		}
		if len(v) > 0 {
			side.Series = append(side.Series, Series{Case: name, Unit: "s", Values: v})
		}
		// Where the processors bind, cycles tell a slower clock from slower work; elsewhere they follow the clock.
		if w := cycles[c.Case]; len(w) == len(v) && b.ComputeBound(c) {
			side.Series = append(side.Series, Series{Case: name, Unit: "cycle", Values: w})
		}
	}
	if len(side.Series) == 0 {
		return nil, fmt.Errorf("%s holds no sample of a device that was not throttled", path)
	}
	return side, nil
}

// readProfiles takes the latencies of every run in an archive, one value per request.
func readProfiles(f *archive.Folder, path string) (*Side, error) {
	side := &Side{Name: path, OneRun: true}
	names := f.Results()
	var partials, simulated []string
	for _, name := range names {
		result, err := f.Result(name)
		if err != nil {
			return nil, err
		}
		records, partial, err := f.ReadRequests(name)
		if err != nil {
			return nil, err
		}
		if partial || result.Partial {
			partials = append(partials, name)
		}
		if result.Origin != harness.OriginMeasured {
			simulated = append(simulated, name)
		}
		prefix := name + " "
		if len(names) == 1 {
			prefix = "" // the only run of a folder has a partner whatever its name is
		}
		side.addLatencies(prefix, records)
	}
	side.warn("partial", partials, len(names))
	side.warn("SIMULATED", simulated, len(names))
	side.Simulated = len(simulated) > 0
	if len(side.Series) == 0 {
		return nil, fmt.Errorf("%s holds no kernel benchmark and no run with answered requests", path)
	}
	return side, nil
}

// warn says what some of n runs are.
func (s *Side) warn(what string, runs []string, n int) {
	switch {
	case len(runs) == 0:
	case len(runs) == 1:
		s.Warnings = append(s.Warnings, runs[0]+" is "+what)
	case len(runs) == n:
		s.Warnings = append(s.Warnings, fmt.Sprintf("all %d runs are %s", n, what))
	default:
		s.Warnings = append(s.Warnings, strings.Join(runs, ", ")+" are "+what)
	}
}

// addLatencies adds one series per latency metric, one value per request.
func (s *Side) addLatencies(prefix string, records []workload.Record) {
	for _, metric := range []string{harness.MetricTTFT, harness.MetricTPOT, harness.MetricE2EL} {
		if v := positive(harness.Samples(records, metric)); len(v) > 0 {
			s.Series = append(s.Series, Series{Case: prefix + metric, Unit: "s", Values: v})
		}
	}
}

// readForeign takes the latencies of the runs in another tool's file. What was due when is not known of all of them, so
// that all count from the send.
func readForeign(path string) (*Side, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	runs, err := workload.ReadForeign(path, file)
	if err != nil {
		return nil, err
	}
	side := &Side{Name: path, OneRun: true}
	for _, run := range runs {
		prefix := ""
		if run.Name != "" {
			prefix = run.Name + " "
		}
		for i := range run.Records {
			run.Records[i].Due = nil
		}
		side.addLatencies(prefix, run.Records)
		for _, note := range run.Notes {
			if !slices.Contains(side.Warnings, note) {
				side.Warnings = append(side.Warnings, note)
			}
		}
	}
	if len(side.Series) == 0 {
		return nil, fmt.Errorf("%s holds no request that was answered", path)
	}
	return side, nil
}

func positive(values []float64) []float64 {
	var out []float64
	for _, v := range values {
		if v > 0 && !math.IsInf(v, 1) {
			out = append(out, v)
		}
	}
	return out
}

func readGoFile(path string) (*Side, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	side, err := ReadGo(file, path)
	if err != nil {
		return nil, err
	}
	if len(side.Series) == 0 {
		return nil, fmt.Errorf("%s holds no benchmark: expected an archive of kvtune, or lines of Go's benchmark format",
			path)
	}
	return side, nil
}

// ReadGo reads Go's benchmark format: one value per line and benchmark, its time where it has one, all its units
// otherwise. A line that is not in the format is passed over, as tests print other things too; one that looks like a
// benchmark and cannot be read is a warning.
func ReadGo(r io.Reader, name string) (*Side, error) {
	side := &Side{Name: name}
	at := map[[2]string]int{}
	lines := benchfmt.NewReader(r, filepath.Base(name))
	for lines.Scan() {
		switch record := lines.Result().(type) {
		case *benchfmt.SyntaxError:
			side.Warnings = append(side.Warnings, record.Error())
		case *benchfmt.Result:
			values := record.Values
			if v, ok := record.Value("sec/op"); ok {
				values = []benchfmt.Value{{Value: v, Unit: "sec/op"}}
			}
			for _, v := range values {
				if !(v.Value > 0) {
					continue
				}
				s := Series{Case: record.Name.String(), Unit: v.Unit, Higher: higher(lines.Units(), v.Unit)}
				i, seen := at[s.key()]
				if !seen {
					i = len(side.Series)
					at[s.key()] = i
					side.Series = append(side.Series, s)
				}
				side.Series[i].Values = append(side.Series[i].Values, v.Value)
			}
		}
	}
	return side, lines.Err()
}

// higher says whether larger values of a unit are better: as the file says, rates otherwise.
func higher(units benchfmt.UnitMetadataMap, unit string) bool {
	if better := units.GetBetter(unit); better != 0 {
		return better > 0
	}
	return strings.HasSuffix(unit, "/s")
}
