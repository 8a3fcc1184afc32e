package cost

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"kvtune/harness"
)

// Schema is the schema of `<name>_cost.json` that this version writes.
const Schema = "kvtune.cost/1"

// The table behind StepTime has an entry per batch size up to the last knot.
const maxKnots, maxKnot = 64, 4096

// No coefficient of a file is more than an hour per unit, in seconds.
const hour = 3600.0

// wire is a Model as JSON. Times are seconds.
type wire struct {
	Schema       string        `json:"schema"`
	Kind         Kind          `json:"kind"`
	GPU          string        `json:"gpu,omitempty"`
	Model        string        `json:"model,omitempty"`
	Tensor       int           `json:"tensor_parallel_size"`
	FittedOn     []string      `json:"fitted_on,omitempty"`
	Errors       *Errors       `json:"errors,omitempty"`
	Range        *Range        `json:"range,omitempty"`
	Knee         int           `json:"knee_tokens"`
	Tile         int           `json:"tile_tokens,omitempty"`
	Knots        []int         `json:"knots_seqs"`
	Coefficients []Coefficient `json:"coefficients"`
	MaxGraph     int           `json:"max_cudagraph_capture_size"`
	BlockSize    int           `json:"block_size,omitempty"`
	Blocks       []BlockCost   `json:"block_sizes,omitempty"`
	FrontEnd     wireFrontEnd  `json:"front_end"`
	Limits       Limits        `json:"limits"`
	Draws        [][]float64   `json:"draws,omitempty"`
	FrontDraws   [][2]float64  `json:"front_end_draws,omitempty"`
}

// wireFrontEnd is a FrontEnd as JSON.
type wireFrontEnd struct {
	Request     float64 `json:"request_s"`
	Handle      float64 `json:"handle_s"`
	PromptToken float64 `json:"prompt_token_s"`
	Token       float64 `json:"token_s"`
	Event       float64 `json:"event_s"`
}

// MarshalJSON writes the schema "kvtune.cost/1".
func (m *Model) MarshalJSON() ([]byte, error) {
	w := wire{
		Schema: Schema, Kind: m.Kind, GPU: m.GPU, Model: m.Model, Tensor: m.Tensor, FittedOn: m.FittedOn,
		Errors: m.Errors, Knee: m.Knee, Tile: m.Tile, Knots: m.Knots, Coefficients: m.Coefficients,
		MaxGraph: m.MaxGraph, BlockSize: m.BlockSize, Blocks: m.Blocks, Limits: m.Limits,
		Draws: m.Draws, FrontDraws: m.FrontDraws,
		FrontEnd: wireFrontEnd{
			m.FrontEnd.Request.Seconds(), m.FrontEnd.Handle.Seconds(), m.FrontEnd.PromptToken.Seconds(),
			m.FrontEnd.Token.Seconds(), m.FrontEnd.Event.Seconds(),
		},
	}
	if m.Kind == KindFitted {
		w.Range = &m.Range
	}
	return json.Marshal(w)
}

// UnmarshalJSON reads the schema "kvtune.cost/1". A newer major version, coefficients that are not those of the
// formula, and values that are negative or of more than an hour are errors; unknown fields are ignored.
func (m *Model) UnmarshalJSON(data []byte) error {
	var w wire
	if err := json.Unmarshal(data, &w); err != nil {
		return fmt.Errorf("not a cost model: %w", err)
	}
	if err := w.check(); err != nil {
		return err
	}
	*m = Model{
		Kind: w.Kind, GPU: w.GPU, Model: w.Model, Tensor: max(1, w.Tensor), FittedOn: w.FittedOn, Errors: w.Errors,
		Knee: w.Knee, Tile: max(1, w.Tile), Knots: w.Knots, Coefficients: w.Coefficients, MaxGraph: w.MaxGraph,
		Limits: w.Limits, Draws: w.Draws, FrontDraws: w.FrontDraws, BlockSize: w.BlockSize, Blocks: w.Blocks,
		FrontEnd: FrontEnd{
			seconds(w.FrontEnd.Request), seconds(w.FrontEnd.Handle), seconds(w.FrontEnd.PromptToken),
			seconds(w.FrontEnd.Token), seconds(w.FrontEnd.Event),
		},
	}
	if w.Range != nil {
		m.Range = *w.Range
	}
	m.compile()
	return nil
}

func seconds(s float64) time.Duration { return time.Duration(math.Round(s * 1e9)) }

func (w *wire) check() error {
	if err := harness.CheckSchema(w.Schema, Schema); err != nil {
		return fmt.Errorf("not a cost model: %w", err)
	}
	switch {
	case w.Kind != KindPrior && w.Kind != KindFitted:
		return fmt.Errorf("kind is %q, expected %q or %q", w.Kind, KindPrior, KindFitted)
	case w.MaxGraph < 0 || w.MaxGraph > maxKnot:
		return fmt.Errorf("max_cudagraph_capture_size is %d, expected 0 to %d", w.MaxGraph, maxKnot)
	case w.BlockSize < 0:
		return fmt.Errorf("block_size is %d, expected at least 1", w.BlockSize)
	case w.Tile < 0 || w.Tile > maxKnot:
		return fmt.Errorf("tile_tokens is %d, expected 1 to %d", w.Tile, maxKnot)
	case w.Knee < 1:
		return fmt.Errorf("knee_tokens is %d, expected at least 1", w.Knee)
	case len(w.Knots) == 0 || len(w.Knots) > maxKnots || w.Knots[0] != 0 || w.Knots[len(w.Knots)-1] > maxKnot:
		return fmt.Errorf("knots_seqs has %d entries, expected 1 to %d ascending batch sizes from 0 to at most %d",
			len(w.Knots), maxKnots, maxKnot)
	}
	for i := 1; i < len(w.Knots); i++ {
		if w.Knots[i] <= w.Knots[i-1] {
			return fmt.Errorf("knots_seqs is %v, expected ascending batch sizes", w.Knots)
		}
	}
	want := describe(w.Knots)
	same := func(a, b Coefficient) bool { return a.Name == b.Name && a.Unit == b.Unit }
	if !slices.EqualFunc(w.Coefficients, want, same) {
		var names []string
		for _, c := range want {
			names = append(names, c.Name)
		}
		return fmt.Errorf("coefficients are not those of this version: fit again, from the profile; "+
			"expected, in order and in s per unit: %s", strings.Join(names, ", "))
	}
	for _, c := range w.Coefficients {
		if !finite(c.Value, c.Low, c.High) || c.Value > hour {
			return fmt.Errorf("coefficient %s is %g (%g to %g), expected numbers of at least 0, and of at most an hour",
				c.Name, c.Value, c.Low, c.High)
		}
	}
	for i, d := range w.Draws {
		if len(d) != len(want) || !finite(d...) || slices.Max(d) > hour {
			return fmt.Errorf("draws[%d] has %d values, expected %d numbers from 0 to %g", i, len(d), len(want), hour)
		}
	}
	if n := len(w.FrontDraws); n > 0 && n != len(w.Draws) {
		return fmt.Errorf("front_end_draws has %d entries, expected one for each of %d draws", n, len(w.Draws))
	}
	for i, d := range w.FrontDraws {
		if !finite(d[:]...) || max(d[0], d[1]) > 1e3 {
			return fmt.Errorf("front_end_draws[%d] is %v, expected factors of at least 0", i, d)
		}
	}
	for i, b := range w.Blocks {
		if b.BlockSize < 1 || i > 0 && b.BlockSize <= w.Blocks[i-1].BlockSize || b.Origin.weight() < 0 {
			return fmt.Errorf("block_sizes[%d] is %d from %q, expected ascending sizes of a known origin", i, b.BlockSize,
				b.Origin)
		}
		for _, r := range []*Ratio{b.Decode, b.Prefill} {
			if r != nil && !(finite(r.Value, r.Low, r.High) && r.Low > 0 && r.Low <= r.Value && r.Value <= r.High) {
				return fmt.Errorf("block_sizes[%d] has the ratio %g (%g to %g), expected one above 0 within its interval", i,
					r.Value, r.Low, r.High)
			}
		}
	}
	l := w.Limits
	fe := w.FrontEnd
	latencies := []float64{fe.Request, fe.Handle, fe.PromptToken, fe.Token, fe.Event}
	if !finite(latencies...) || slices.Max(latencies) > hour || !finite(l.Flops, l.Bandwidth, l.FlopsPerToken,
		l.FlopsPerSeq, l.AttentionFlops, l.WeightBytes, l.KVBytesPerToken) {
		return fmt.Errorf("latencies and limits must be numbers of at least 0 (latencies at most an hour)")
	}
	return nil
}

// finite reports whether all values are numbers of at least 0.
func finite(values ...float64) bool {
	for _, v := range values {
		if !(v >= 0) || math.IsInf(v, 0) {
			return false
		}
	}
	return true
}
