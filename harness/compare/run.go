package compare

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"

	"kvtune/harness/stats"
)

// Run measures two programs that print Go's benchmark format on stdout by running them by turns, A B B A in every
// round, so that what changes on the machine meanwhile changes both alike. A value is the median of one run of the
// program: what is alike within a run (where its memory lies, how the device's clocks were) is not taken for noise.
// args are given to both. progress, if not nil, is called after every run with how many of all were made.
//
// rounds is at least 1; among k cases, a difference can be significant at 0.01 with 2 rounds for k = 1 not yet, with 3
// for k up to 4, with 4 for k up to 64.
func Run(ctx context.Context, a, b string, args []string, rounds int, progress func(made, of int)) (sideA, sideB *Side,
	err error) {
	if rounds < 1 {
		return nil, nil, fmt.Errorf("rounds is %d: allowed is from 1", rounds)
	}
	sideA, sideB = &Side{Name: a}, &Side{Name: b}
	made := 0
	for range rounds {
		for _, side := range []*Side{sideA, sideB, sideB, sideA} {
			if err := side.add(ctx, args); err != nil {
				return nil, nil, err
			}
			if made++; progress != nil {
				progress(made, 4*rounds)
			}
		}
	}
	return sideA, sideB, nil
}

// add runs the program that the side is named after and adds one value per benchmark.
func (s *Side) add(ctx context.Context, args []string) error {
	var out, errs bytes.Buffer
	command := exec.CommandContext(ctx, s.Name, args...)
	command.Stdout, command.Stderr = &out, &errs
	if err := command.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("run %s %s: %w%s", s.Name, strings.Join(args, " "), err, lastLine(errs.String()+out.String()))
	}
	got, err := ReadGo(&out, s.Name)
	if err != nil {
		return err
	}
	if len(got.Series) == 0 {
		return fmt.Errorf("%s %s printed no benchmark: a test binary needs `-- -test.run=NONE -test.bench=.`", s.Name,
			strings.Join(args, " "))
	}
	for _, series := range got.Series {
		one := stats.New(series.Values).Median()
		i := 0
		for i < len(s.Series) && s.Series[i].key() != series.key() {
			i++
		}
		if i == len(s.Series) {
			series.Values = nil
			s.Series = append(s.Series, series)
		}
		s.Series[i].Values = append(s.Series[i].Values, one)
	}
	return nil
}

// lastLine is the end of what a program said, to be put behind an error.
func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if last := strings.TrimSpace(lines[len(lines)-1]); last != "" {
		return ": " + last
	}
	return ""
}
