package workload

import (
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"
)

// gamma draws from the gamma distribution with scale 1 (Marsaglia and Tsang, ACM TOMS 26(3), 2000).
func gamma(shape float64, rng *rand.Rand) float64 {
	boost := 1.0
	if shape < 1 {
		boost = math.Pow(1-rng.Float64(), 1/shape) // their section 6: Gamma(shape) = Gamma(shape+1) U^(1/shape)
		shape++
	}
	d := shape - 1.0/3
	c := 1 / math.Sqrt(9*d)
	for {
		x := rng.NormFloat64()
		v := 1 + c*x
		if v <= 0 {
			continue
		}
		v = v * v * v
		if math.Log(1-rng.Float64()) < x*x/2+d-d*v+d*math.Log(v) {
			return d * v * boost
		}
	}
}

// Rate is an arrival rate in requests per second: constant, or rising or falling evenly from From to To over a run.
type Rate struct {
	From, To float64
	// Even asks for evenly spaced arrivals instead of random ones.
	Even bool
}

// ParseRate reads "8", "4..24" (from 4/s at the beginning to 24/s at the end), or either with "fixed:" in front for
// evenly spaced arrivals.
func ParseRate(s string) (Rate, error) {
	var r Rate
	rest, even := strings.CutPrefix(s, "fixed:")
	from, to, ramp := strings.Cut(rest, "..")
	if !ramp {
		to = from
	}
	var errs [2]error
	r.From, errs[0] = strconv.ParseFloat(from, 64)
	r.To, errs[1] = strconv.ParseFloat(to, 64)
	r.Even = even
	if errs[0] != nil || errs[1] != nil || !(r.From > 0 && r.To > 0 && r.From <= maxRate && r.To <= maxRate) {
		return Rate{}, &FieldError{"rate", s,
			fmt.Sprintf("R or R..R2 requests/s, above 0 and up to %g, fixed:R for even gaps", maxRate)}
	}
	return r, nil
}

const maxRate = 1e6

// Mean is the mean rate over the run.
func (r Rate) Mean() float64 { return (r.From + r.To) / 2 }

// Arrivals are moments in ascending order, from 0 on: n of them, or with over above 0 those before it, and not more
// than n unless n is 0. A rate that changes does so over that time, else over the n requests. They are never stretched
// to fit a total duration, which would make the counts more regular than the process.
//
// Even arrivals have equal gaps, the first at 0. Else a burstiness of 0 or 1 gives Poisson arrivals: independent
// exponential gaps, the number of arrivals in a window has variance equal to its mean. Any other burstiness, above 0,
// is the shape of independent gamma gaps, whose coefficient of variation is 1/sqrt(burstiness): below 1 is burstier
// than Poisson and above 1 more even (the same parameter as in `vllm bench serve`).
func (r Rate) Arrivals(burstiness float64, n int, over time.Duration, rng *rand.Rand) iter.Seq[time.Duration] {
	length := over.Seconds()
	if over == 0 {
		length = float64(n) / r.Mean()
	} else if n == 0 {
		n = math.MaxInt
	}
	// The k-th arrival of a constant rate becomes that of the ramp where the same number is expected:
	// From t + (To - From) t^2 / 2T = x, with x = mean rate x (the moment at the constant rate).
	slope := (r.To - r.From) / length
	return func(yield func(time.Duration) bool) {
		sum := 0.0 // in mean gaps
		for k := range n {
			switch {
			case r.Even:
				sum = float64(k)
			case burstiness == 0 || burstiness == 1:
				sum += rng.ExpFloat64()
			default:
				sum += gamma(burstiness, rng) / burstiness
			}
			t := sum / r.Mean()
			if r.From != r.To {
				root := max(0, r.From*r.From+2*slope*sum) // below 0 behind the end of a ramp that falls to nearly nothing
				t = 2 * sum / (r.From + math.Sqrt(root))
			}
			next := time.Duration(math.Min(t, maxSeconds) * 1e9)
			if over > 0 && next >= over || !yield(next) {
				return
			}
		}
	}
}
