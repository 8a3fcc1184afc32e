package archive

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"

	"kvtune/harness"
)

// sampleOfCase is a line of a samples file.
type sampleOfCase struct {
	Case    string   `json:"case"`
	Round   int      `json:"round,omitempty"`
	T       float64  `json:"t_s"`
	Seconds *float64 `json:"s"`
	Clock   *float64 `json:"sm_clock_hz,omitempty"`
	Counted bool     `json:"counted,omitempty"`
	Gate    string   `json:"gate,omitempty"`
	Capped  bool     `json:"power_capped,omitempty"`
	Outlier bool     `json:"outlier,omitempty"`
}

// WriteBench writes `<b.Name>_bench.json`, with the schema of this version, and its samples.
func (f *Folder) WriteBench(b *harness.Bench, samples []harness.BenchSample) error {
	err := f.WriteFile(b.Name+SamplesSuffix, compressed(func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		for _, s := range samples {
			if math.IsNaN(s.Seconds) || math.IsInf(s.Seconds, 0) {
				return fmt.Errorf("a sample of %s is %v s: expected a finite number", s.Case, s.Seconds)
			}
			err := e.Encode(sampleOfCase{s.Case, s.Round, s.At.Seconds(), &s.Seconds, s.Clock, s.Counted, s.Gate, s.Capped,
				s.Outlier})
			if err != nil {
				return err
			}
		}
		return nil
	}))
	if err != nil {
		return err
	}
	out := *b
	out.Schema = harness.BenchSchema
	return f.WriteJSON(b.Name+BenchSuffix, &out)
}

// ReadBench reads a kernel benchmark and its samples: a `_bench.json` file, any other file of the same part, or a
// folder that holds exactly one. Samples that are not there are empty; a file of them that was cut short is a warning.
func ReadBench(path string) (*harness.Bench, []harness.BenchSample, error) {
	f, err := Open(path)
	if err != nil {
		return nil, nil, err
	}
	names := f.Benches()
	if len(names) != 1 {
		return nil, nil, fmt.Errorf("%s holds %d files that end in %s: name the one that is meant", path, len(names),
			BenchSuffix)
	}
	b := new(harness.Bench)
	if err := ReadJSON(f.Path(names[0]+BenchSuffix), harness.BenchSchema, b); err != nil {
		return nil, nil, err
	}
	samples, partial, err := Read(f.Path(names[0]+SamplesSuffix), readSamples)
	if errors.Is(err, fs.ErrNotExist) { // the medians alone are enough for most readers
		return b, nil, nil
	}
	if partial {
		b.Warnings = append(b.Warnings, fmt.Sprintf("%s was cut short: only %d samples are left", names[0]+SamplesSuffix,
			len(samples)))
	}
	return b, samples, err
}

// Benches are the names of the parts that have a kernel benchmark, sorted.
func (f *Folder) Benches() []string { return f.partsWith(BenchSuffix) }

func readSamples(r io.Reader) (samples []harness.BenchSample, partial bool, err error) {
	partial, err = readLines(r, func(number int, line []byte, _ bool) error {
		var s sampleOfCase
		if err := json.Unmarshal(line, &s); err != nil {
			return fmt.Errorf("samples file, line %d: %w", number, err)
		}
		if s.Case == "" || s.Seconds == nil || !(math.Abs(s.T) < 9e9) {
			return fmt.Errorf("samples file, line %d: expected case, t_s (seconds) and s (seconds)", number)
		}
		samples = append(samples, harness.BenchSample{Case: s.Case, Round: s.Round, At: nanoseconds(s.T), Seconds: *s.Seconds,
			Clock: s.Clock, Counted: s.Counted, Gate: s.Gate, Capped: s.Capped, Outlier: s.Outlier})
		return nil
	})
	return samples, partial, err
}
