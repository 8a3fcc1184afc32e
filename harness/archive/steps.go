package archive

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"kvtune/harness"
)

// stepColumns are the columns of a steps file in the order in which they are written. A file must have the first
// stepRequired; the others may be missing, and any cell of theirs empty.
var stepColumns = [...]string{"context_requests", "context_tokens", "generation_requests", "generation_tokens",
	"elapsed_ms", "kv_usage_pct", "t_s", "running", "waiting", "preemptions"}

const stepRequired = 5

// WriteSteps writes `<name>_steps.csv`: elapsed_ms in milliseconds, kv_usage_pct in percent, t_s in seconds. What is
// unknown (negative in the record) is empty.
func (f *Folder) WriteSteps(name string, steps []harness.StepRecord) error {
	return f.WriteFile(name+StepsSuffix, func(w io.Writer) error {
		b := bufio.NewWriterSize(w, 1<<16)
		b.WriteString(strings.Join(stepColumns[:], ","))
		b.WriteByte('\n')
		var row []byte
		for i := range steps {
			row = appendStep(row[:0], &steps[i])
			if _, err := b.Write(row); err != nil {
				return err
			}
		}
		return b.Flush()
	})
}

func appendStep(row []byte, s *harness.StepRecord) []byte {
	count := func(n int) {
		if n >= 0 {
			row = strconv.AppendInt(row, int64(n), 10)
		}
		row = append(row, ',')
	}
	number := func(v float64, known bool) {
		if known {
			row = strconv.AppendFloat(row, v, 'f', -1, 64)
		}
		row = append(row, ',')
	}
	count(s.ContextRequests)
	count(s.ContextTokens)
	count(s.GenerationRequests)
	count(s.GenerationTokens)
	number(float64(s.Elapsed)/1e6, true)
	number(math.Round(s.KVUsage*1e8)/1e6, s.KVUsage >= 0) // to 1e-8: beyond any block count, and free of float noise
	number(s.T.Seconds(), s.T >= 0)
	count(s.Running)
	count(s.Waiting)
	count(s.Preemptions)
	row[len(row)-1] = '\n'
	return row
}

// ReadSteps reads a steps file; columns are found by their names in the first line, others are ignored. A row without
// its line end is left out, because a cut number still looks like one, and the file is partial.
func ReadSteps(r io.Reader) (steps []harness.StepRecord, partial bool, err error) {
	var at [len(stepColumns)]int // position of each column, -1 where missing
	header := false
	partial, err = readLines(r, func(number int, line []byte, whole bool) error {
		cells := strings.Split(string(line), ",")
		if !whole {
			return fmt.Errorf("steps file, line %d: no line end", number)
		}
		if !header {
			header = true
			return stepHeader(cells, &at)
		}
		s, err := parseStep(cells, &at)
		if err != nil {
			return fmt.Errorf("steps file, line %d: %w", number, err)
		}
		steps = append(steps, s)
		return nil
	})
	if err == nil && !header {
		partial = true
	}
	return steps, partial, err
}

func stepHeader(cells []string, at *[len(stepColumns)]int) error {
	for i, column := range stepColumns {
		at[i] = -1
		for j, cell := range cells {
			if strings.TrimSpace(cell) == column {
				at[i] = j
			}
		}
		if at[i] < 0 && i < stepRequired {
			return fmt.Errorf("steps file: no column %s in its first line: expected %s", column,
				strings.Join(stepColumns[:stepRequired], ","))
		}
	}
	return nil
}

func parseStep(cells []string, at *[len(stepColumns)]int) (harness.StepRecord, error) {
	var v [len(stepColumns)]float64
	for i, column := range stepColumns {
		v[i] = -1
		if at[i] >= len(cells) {
			return harness.StepRecord{}, fmt.Errorf("%d cells, expected at least %d", len(cells), at[i]+1)
		}
		if at[i] < 0 {
			continue
		}
		cell := strings.TrimSpace(cells[at[i]])
		if cell == "" && i >= stepRequired {
			continue
		}
		n, err := strconv.ParseFloat(cell, 64)
		if err != nil || !(n >= 0 && n < 1e12) {
			return harness.StepRecord{}, fmt.Errorf("%s is %q: expected a number from 0", column, cell)
		}
		v[i] = n
	}
	s := harness.StepRecord{
		ContextRequests: int(v[0]), ContextTokens: int(v[1]), GenerationRequests: int(v[2]), GenerationTokens: int(v[3]),
		Elapsed: time.Duration(math.Round(min(v[4], 9e12) * 1e6)), KVUsage: v[5], T: -1,
		Running: int(v[7]), Waiting: int(v[8]), Preemptions: int(v[9]),
	}
	if v[5] >= 0 {
		s.KVUsage = v[5] / 100
	}
	if v[6] >= 0 {
		s.T = nanoseconds(min(v[6], 9e9))
	}
	return s, nil
}

// ReadSteps reads the steps of a part.
func (f *Folder) ReadSteps(name string) (steps []harness.StepRecord, partial bool, err error) {
	return Read(f.Path(name+StepsSuffix), ReadSteps)
}
