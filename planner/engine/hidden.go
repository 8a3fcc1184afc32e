package engine

import (
	"math"
	"math/rand/v2"
	"strings"
	"time"

	"kvtune/harness"
	"kvtune/planner/cost"
	"kvtune/planner/spec"
)

// hidden is the step time of the simulated device when no cost model is given. It is what the planner has to find out:
// each coefficient of the roofline prior is moved by up to 30 % within the datasheet's limits, and there are terms that
// the planner's form does not have. Nothing outside this package can read it: the type and its fields are
// unexported, no answer of the server depends on it but through time, and a test holds the package to that.
type hidden struct {
	// moved is the prior with other coefficients and another knee.
	moved *cost.Model
	// eager is set when every step runs without CUDA graphs.
	eager bool
	// launch is what a step outside a CUDA graph costs beyond one inside, in s.
	launch float64
	// tile is the number of tokens that a matrix kernel's row tile holds; a wave of tiles is computed whole.
	tile int
	// reach is the decode context in tokens up to which the TLB and the L2 cache help; walk is by how much a KV read
	// grows far beyond it; read is the time of a context token, in s.
	reach, walk, read float64
	// bend is the relative growth of a prompt token's time at bendTokens of them in a step, half of what it comes to in
	// the end (slower clocks under full load, larger intermediates).
	bend float64
}

const (
	// maxMove is by how much a coefficient may differ from the prior.
	maxMove = 0.3
	// noise is the relative standard deviation of a step, cut at three of them.
	noise      = 0.02
	bendTokens = 8192
	// maxGraph is the largest batch that vLLM captures by default (vllm/config/vllm.py, _set_cudagraph_sizes).
	maxGraph = 512
)

// newHidden draws a device and its API server from the seed.
func newHidden(gpu spec.GPU, model spec.Model, args harness.EngineArgs, seed uint64) (*hidden, *cost.FrontEnd, error) {
	rng := rand.New(rand.NewPCG(seed, 0x6b7674756e65)) // "kvtune"
	between := func(low, high float64) float64 { return low + rng.Float64()*(high-low) }
	move := func() float64 { return between(1-maxMove, 1+maxMove) }

	prior := cost.Prior(gpu, model, args)
	limits := prior.Limits
	h := &hidden{eager: args.EnforceEager != nil && *args.EnforceEager}
	values := make([]float64, len(prior.Coefficients))
	slope := 0.0
	for i, c := range prior.Coefficients {
		v := c.Value * move()
		switch {
		case c.Name == "base":
			v = max(v, limits.WeightBytes/limits.Bandwidth)
		case strings.HasPrefix(c.Name, "seqs_above_"):
		case c.Name == "tokens":
			slope = v
		case c.Name == "tokens_above_knee":
			v = max(v, limits.FlopsPerToken/limits.Flops-slope)
		case c.Name == "launch_eager":
			h.launch = v
		case c.Name == "prefill_attention":
			v = max(v, limits.AttentionFlops/limits.Flops)
		case c.Name == "decode_context":
			v = max(v, limits.KVBytesPerToken/limits.Bandwidth)
			h.read = v
		}
		values[i] = v
	}
	kneed := *prior
	kneed.Knee = max(1, int(float64(prior.Knee)*move()))
	moved, err := kneed.With(values)
	if err != nil {
		return nil, nil, err
	}
	h.moved = moved
	h.tile = []int{32, 64, 128}[rng.IntN(3)]
	h.reach = between(4e9, 32e9) / max(1, limits.KVBytesPerToken)
	h.walk = between(0.05, 0.2)
	h.bend = between(0.02, 0.08)
	scaled := func(d time.Duration) time.Duration { return time.Duration(float64(d) * move()) }
	front := prior.FrontEnd
	front.Request, front.Token = scaled(front.Request), scaled(front.Token)
	front.PromptToken = time.Duration(between(200, 1000))
	return h, &front, nil
}

// graphSize is the captured batch size that n sequences are padded to: 1, 2, 4, then steps of 8 to 256, then of 16.
func graphSize(n int) int {
	switch {
	case n <= 2:
		return n
	case n <= 4:
		return 4
	case n <= 256:
		return (n + 7) / 8 * 8
	}
	return (n + 15) / 16 * 16
}

// mean is the step time without noise.
func (h *hidden) mean(s cost.Step) time.Duration {
	if s.Tokens() == 0 {
		return 0
	}
	padded, extra := s, 0.0
	graph := s.PrefillTokens == 0 && !h.eager && s.DecodeSeqs <= maxGraph
	if graph {
		padded.DecodeSeqs = graphSize(s.DecodeSeqs)
	}
	if n := padded.Tokens(); n > h.tile && padded.PrefillTokens > 0 {
		padded.PrefillTokens += (n+h.tile-1)/h.tile*h.tile - n
	}
	t := h.moved.StepTime(padded).Seconds()
	if s.PrefillTokens == 0 && !graph {
		extra += h.launch
	}
	far := float64(s.DecodeContext) / h.reach
	extra += h.walk * far / (1 + far) * h.read * float64(s.DecodeContext)
	n := float64(s.PrefillTokens)
	extra += 2 * h.bend * n / (n + bendTokens) * t
	compute, memory := h.moved.Roofline(s)
	return max(time.Duration((t+extra)*1e9), compute, memory)
}

// HostTime is the host's, as the moved prior has it.
func (h *hidden) HostTime(s cost.Step) (prepare, launch time.Duration) { return h.moved.HostTime(s) }

// device is a hidden model with its noise. It is not safe for concurrent use.
type device struct {
	*hidden
	rng *rand.Rand
}

func (h *hidden) device(seed uint64) *device {
	return &device{h, rand.New(rand.NewPCG(seed, 0x6e6f697365))} // "noise"
}

// StepTime is one step's time with noise, never below what the datasheet allows.
func (d *device) StepTime(s cost.Step) time.Duration {
	z := min(max(d.rng.NormFloat64(), -3), 3)
	compute, memory := d.moved.Roofline(s)
	return max(time.Duration(float64(d.mean(s))*math.Exp(noise*z)), compute, memory)
}
