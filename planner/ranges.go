package planner

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// maxRange is the largest number of values that a range may have.
const maxRange = 4096

// ParseRange reads a list of whole numbers of at least 0: "256" one value, "16,32,64" a list, "1..4" every number,
// "0:64:16" from, to and step, "256:2048:x2" from, to and factor. Parts may be joined by commas. The values come in the
// order written, without repetition. The error names the part and what was expected.
func ParseRange(text string) ([]int, error) {
	var all []int
	for _, part := range strings.Split(text, ",") {
		part = strings.TrimSpace(part)
		values, err := parsePart(part)
		if err != nil {
			return nil, fmt.Errorf("range %q: %w", text, err)
		}
		for _, v := range values {
			if !slices.Contains(all, v) {
				all = append(all, v)
			}
		}
		if len(all) > maxRange {
			return nil, fmt.Errorf("range %q: more than %d values; use a larger step or a factor (256:2048:x2)", text, maxRange)
		}
	}
	return all, nil
}

const rangeForms = "a number, from..to, from:to:step or from:to:xfactor (256:2048:x2)"

func parsePart(part string) ([]int, error) {
	number := func(s string) (int, error) {
		s = strings.TrimSpace(s)
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 || n > math.MaxInt32 {
			return 0, fmt.Errorf("%q is not a whole number from 0 to %d; expected %s", s, math.MaxInt32, rangeForms)
		}
		return n, nil
	}
	from, to, step, factor := part, part, "1", false
	switch fields := strings.Split(part, ":"); {
	case len(fields) == 3:
		from, to = fields[0], fields[1]
		step, factor = strings.CutPrefix(strings.TrimSpace(fields[2]), "x")
	case len(fields) != 1:
		return nil, fmt.Errorf("%q has %d parts; expected %s", part, len(fields), rangeForms)
	default:
		if a, b, ok := strings.Cut(part, ".."); ok {
			from, to = a, b
		}
	}
	low, err := number(from)
	if err != nil {
		return nil, err
	}
	high, err := number(to)
	if err != nil {
		return nil, err
	}
	by, err := number(step)
	if err != nil {
		return nil, err
	}
	switch {
	case low > high:
		return nil, fmt.Errorf("%q goes down from %d to %d; write the smaller number first", part, low, high)
	case factor && (by < 2 || low < 1):
		return nil, fmt.Errorf("%q never ends: a factor must be at least 2 and start at 1 or above", part)
	case by < 1:
		return nil, fmt.Errorf("%q never ends: a step must be at least 1", part)
	case !factor && (high-low)/by >= maxRange:
		return nil, fmt.Errorf("%q has more than %d values; use a larger step or a factor", part, maxRange)
	}
	var values []int
	for v := low; v <= high; {
		values = append(values, v)
		if factor {
			v *= by
		} else {
			v += by
		}
	}
	return values, nil
}
