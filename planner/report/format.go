package report

import (
	"math"
	"strconv"
	"strings"

	"kvtune/harness"
)

// scale is a unit for people: a value in base units divided by per reads in unit.
type scale struct {
	unit string
	per  float64
	// least is the number of significant digits that no interval takes away; 0 is 2.
	least int
}

// scaleFor picks the unit in which the largest of values reads best.
func scaleFor(unit string, values ...float64) scale {
	largest := 0.0
	for _, v := range values {
		largest = max(largest, math.Abs(v))
	}
	switch unit {
	case "s":
		switch {
		case largest == 0 || largest >= 1:
			return scale{unit: "s", per: 1}
		case largest >= 1e-3:
			return scale{unit: "ms", per: 1e-3}
		}
		return scale{unit: "us", per: 1e-6}
	case "B":
		if largest >= 1<<30 || largest == 0 {
			return scale{unit: "GiB", per: 1 << 30}
		}
		return scale{unit: "MiB", per: 1 << 20}
	case "ratio":
		return scale{unit: "%", per: 0.01}
	}
	return scale{unit: unit, per: 1}
}

// number writes a metric's value in a unit, with as many digits as its interval bears out: the last digit is the first
// one that the interval's half width touches, within 2 to 4 significant digits; 3 where there is no interval. Whole
// counts are written in full.
func (s scale) number(m harness.Metric) string {
	if m.Value == nil {
		return notObserved
	}
	half := 0.0
	if m.Low != nil && m.High != nil {
		half = (*m.High - *m.Low) / 2
	}
	return s.digits(*m.Value, half)
}

func (s scale) digits(value, half float64) string {
	v, h := value/s.per, math.Abs(half/s.per)
	if v == 0 {
		return "0"
	}
	if v == math.Trunc(v) && math.Abs(v) < 1e15 && h == 0 {
		return grouped(strconv.FormatFloat(v, 'f', -1, 64))
	}
	significant := 3
	exponent := int(math.Floor(math.Log10(math.Abs(v))))
	if h > 0 {
		significant = min(4, max(2, s.least, exponent-int(math.Floor(math.Log10(h)))+1))
	}
	decimals := significant - 1 - exponent
	if decimals < 0 {
		p := math.Pow(10, float64(-decimals))
		return grouped(strconv.FormatFloat(math.Round(v/p)*p, 'f', 0, 64))
	}
	return grouped(strconv.FormatFloat(v, 'f', decimals, 64))
}

// interval writes "low to high" in a unit, "" where the interval has no two ends.
func (s scale) interval(m harness.Metric) string {
	if m.Value == nil || m.Low == nil || m.High == nil {
		return ""
	}
	half := (*m.High - *m.Low) / 2
	return s.digits(*m.Low, half) + " to " + s.digits(*m.High, half)
}

// grouped puts a comma at every thousand of a number from 10,000 up.
func grouped(number string) string {
	whole, fraction, _ := strings.Cut(number, ".")
	sign := ""
	if strings.HasPrefix(whole, "-") {
		sign, whole = "-", whole[1:]
	}
	if len(whole) > 4 {
		for i := len(whole) - 3; i > 0; i -= 3 {
			whole = whole[:i] + "," + whole[i:]
		}
	}
	if fraction != "" {
		whole += "." + fraction
	}
	return sign + whole
}
