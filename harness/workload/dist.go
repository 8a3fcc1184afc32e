package workload

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
)

// Dist is a distribution of whole numbers of at least 1: output lengths, for example. The zero Dist is not valid;
// [ParseDist] makes one.
type Dist struct {
	kind     string // "uniform" (a constant is one), "normal", "lognormal", "exp"
	a, b     float64
	min, max int
	mean     float64
}

// distForms is what ParseDist takes.
const distForms = "N, min:max, uniform:min:max, normal:mean:sd, lognormal:median:sigma or exp:mean, " +
	"the last three also with :min:max behind"

// ParseDist reads a distribution: "128", "64:256" or "uniform:64:256" (every whole number from 64 to 256 alike),
// "normal:mean:sd", "lognormal:median:sigma" (sigma of the natural logarithm), "exp:mean"; the last three optionally
// followed by ":min:max". Draws outside the bounds, or below 1, become the bound. All numbers are at most 2^30.
func ParseDist(s string) (Dist, error) {
	fail := func(why string) (Dist, error) {
		return Dist{}, fmt.Errorf("%q is not a distribution (%s): expected %s", s, why, distForms)
	}
	kind, rest, named := strings.Cut(s, ":")
	if _, err := strconv.ParseFloat(kind, 64); err == nil || !named {
		kind, rest = "uniform", s
		if !named {
			rest = s + ":" + s
		}
	}
	fields := strings.Split(rest, ":")
	nums := make([]float64, len(fields))
	for i, f := range fields {
		x, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return fail(fmt.Sprintf("%q is not a number", f))
		}
		if !(x >= 0 && x <= maxCount) {
			return fail(fmt.Sprintf("%s is not within 0 and 2^30", f))
		}
		nums[i] = x
	}
	params := map[string]int{"uniform": 0, "normal": 2, "lognormal": 2, "exp": 1}
	n, ok := params[kind]
	if !ok {
		return fail(fmt.Sprintf("no kind %q", kind))
	}
	d := Dist{kind: kind, min: 1, max: math.MaxInt}
	switch len(nums) {
	case n:
		if kind == "uniform" {
			return fail("no bounds")
		}
	case n + 2:
		d.min, d.max = int(nums[n]), int(nums[n+1])
		if nums[n] != math.Trunc(nums[n]) || nums[n+1] != math.Trunc(nums[n+1]) || d.min < 1 || d.max < d.min {
			return fail("bounds are whole numbers of at least 1, the lower one first")
		}
	default:
		return fail(fmt.Sprintf("%d numbers", len(nums)))
	}
	if n > 0 {
		if d.a = nums[0]; kind != "normal" && d.a == 0 {
			return fail("mean and median are above 0")
		}
	}
	if n > 1 {
		if d.b = nums[1]; kind == "lognormal" && d.b > 10 {
			return fail("sigma is at most 10")
		}
	}
	d.mean = d.average()
	return d, nil
}

// Draw takes one value.
func (d Dist) Draw(rng *rand.Rand) int {
	if d.kind == "uniform" {
		return d.min + rng.IntN(d.max-d.min+1)
	}
	return d.value(rng.NormFloat64())
}

// value is the value at the same quantile as z of the standard normal distribution.
func (d Dist) value(z float64) int {
	x := d.a
	switch d.kind {
	case "normal":
		x += d.b * z
	case "lognormal":
		x *= math.Exp(d.b * z)
	case "exp":
		x *= -math.Log(math.Erfc(z/math.Sqrt2) / 2)
	}
	// Compared as floats: x may be far beyond an int.
	switch x = math.Round(x); {
	case !(x > float64(d.min)):
		return d.min
	case x >= float64(d.max):
		return d.max
	}
	return int(x)
}

// average integrates over z with the trapezoidal rule.
func (d Dist) average() float64 {
	if d.kind == "uniform" {
		return (float64(d.min) + float64(d.max)) / 2
	}
	const step = 1.0 / 64
	sum := 0.0
	for z := -10.0; z <= 20; z += step { // e^(sigma z) moves the weight up to z = sigma
		sum += float64(d.value(z)) * math.Exp(-z*z/2)
	}
	mean := sum * step / math.Sqrt(2*math.Pi)
	return min(max(mean, float64(d.min)), float64(d.max)) // the sum rounds
}

// Mean is the mean of what is drawn, bounds included.
func (d Dist) Mean() float64 { return d.mean }

// Max is the largest value that can be drawn, [math.MaxInt] when there is no bound.
func (d Dist) Max() int { return d.max }
