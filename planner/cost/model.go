// Package cost predicts how long one engine step takes and how many KV blocks fit: a roofline prior from a GPU and a
// model's shape, corrected by measurements, with intervals.
//
// Read [Step] (what a step does), then [Model] (what it costs): [Prior] makes one from datasheets, [Fit] corrects it by
// [Observation]s. [Capacity] is the memory side.
package cost

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"kvtune/harness"
)

// Step is the work of one engine step, as sums over the scheduled requests.
type Step struct {
	// PrefillSeqs and PrefillTokens count requests that compute prompt tokens and those tokens.
	PrefillSeqs, PrefillTokens int
	// PrefillAttention is the sum over prefill chunks of chunk x (history + chunk/2), in token^2.
	PrefillAttention float64
	// MaxChunk is the longest prefill chunk in tokens. Attention kernels launch as many query rows for every sequence.
	MaxChunk int
	// DecodeSeqs counts requests that generate one token; DecodeContext sums their context lengths in tokens.
	DecodeSeqs, DecodeContext int
	// SharedContext is the part of DecodeContext in KV blocks that another sequence of the step reads, too, and that is
	// read from memory once.
	SharedContext int
	// Heat is how much the device has computed of late, 0 after idling to 1 ([Heat]).
	Heat float64
}

// Tokens is the number of new tokens in the step.
func (s Step) Tokens() int { return s.PrefillTokens + s.DecodeSeqs }

// seqs is the number of requests in the step.
func (s Step) seqs() int { return s.PrefillSeqs + s.DecodeSeqs }

// emptyRows counts the query rows that an attention launch covers beyond the step's tokens.
func (s Step) emptyRows() int { return max(0, s.MaxChunk*s.seqs()-s.Tokens()) }

// Timer tells how long a step takes. [Model] is one; the embedded engine's hidden model is another.
type Timer interface {
	// StepTime is how long the device is busy with the step.
	StepTime(Step) time.Duration
	// HostTime is how long the host prepares a step, before the device can begin with it, and then launches it, while the
	// device works, which does not end before. Under asynchronous scheduling the host does both while the step before
	// runs.
	HostTime(Step) (prepare, launch time.Duration)
}

// FrontEnd is what the API server adds to a request. It is one thread: what it is busy with makes others wait.
type FrontEnd struct {
	// Request is the time from the send of a lone request until the scheduler sees it, without its prompt's tokens;
	// Handle is the part of it in which the server's thread is busy.
	Request, Handle time.Duration
	// PromptToken is how long the thread is busy with one token of a prompt.
	PromptToken time.Duration
	// Token is the time from the end of a step until its first token is at the client, Event how long the thread is busy
	// with each token that it sends.
	Token, Event time.Duration
}

// Arrival is the time from the send of a lone request of n prompt tokens until the scheduler sees it.
func (f FrontEnd) Arrival(n int) time.Duration { return f.Request + time.Duration(n)*f.PromptToken }

// Coefficient is one non-negative term of the step time.
type Coefficient struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	// Low and High bound the 95 % interval.
	Low     float64 `json:"low"`
	High    float64 `json:"high"`
	Unit    string  `json:"unit"`
	Meaning string  `json:"meaning"`
}

// Kind says how a model came about.
type Kind string

const (
	// KindPrior is from datasheets alone.
	KindPrior Kind = "prior"
	// KindFitted was corrected by measurements.
	KindFitted Kind = "fitted"
)

// Model is the step time of one (GPU, model, parallelism, dtype, vLLM version). The device is busy for
//
//	step = base
//	     + sum_k seqs_above_k x max(0, B - k)              B sequences; k at CUDA-graph capture sizes
//	     + tokens x T + tokens_above_knee x max(0, T' - knee)    T new tokens; knee: weight-bound to compute-bound
//	     + tokens_far_above_knee x max(0, T' - 8 knee)     large batches: slower clocks, larger intermediates
//	     + hot_step x heat                                 lower clocks after much arithmetic
//	     + throttled x heat x max(0, T - knee)
//	     + prefill_step                                    with prompt tokens
//	     + prefill_attention x sum chunk x (history + chunk/2)
//	     + decode_context x (sum context - shared) + shared_context x shared     shared: read by another sequence, too
//	     + mixed_context x sum context x [the step computes prompt tokens]
//	     + empty_rows x (longest chunk x B - T)            query rows that attention launches for nothing
//
// The host is busy for prepare before that, and at the same time for launch_piecewise or launch_eager where no full
// CUDA graph covers the step: a step with prompt tokens, of up to MaxGraph tokens or more. T, and in a step of decodes
// alone B, are padded to the next capture size, as vLLM does up to MaxGraph. T' is T in whole tiles: where arithmetic
// sets the pace, matrix products compute a tile of Tile rows whole.
//
// All coefficients are seconds per unit and at least 0, so time never falls when a step has more work. A Model comes
// from [Prior], [Fit], [Model.With], [Model.Sample] or JSON ("kvtune.cost/1") and is read-only: StepTime works on a
// table made then, so an edit of Coefficients has no effect.
type Model struct {
	Kind Kind
	// GPU and Model name what the model is of; Tensor is the number of tensor-parallel ranks, at least 1.
	GPU, Model string
	Tensor     int
	// Coefficients in the order of the formula; the seqs terms one per entry of Knots.
	Coefficients []Coefficient
	// Knots are the k of the seqs terms, ascending from 0. Knee is in tokens.
	Knots []int
	Knee  int
	// Tile is how many tokens a matrix product computes at once, 1 where that does not show.
	Tile int
	// MaxGraph is the largest captured batch of the server's settings, 0 where every step is eager ([Model.For]).
	MaxGraph int
	// BlockSize is that of the server, 0 for 16; Blocks is what attention takes at others, ascending.
	BlockSize int
	Blocks    []BlockCost
	// FrontEnd is the API server's part. Requests show only the sum of Request and Token (what a first token takes besides
	// its steps); [Fit] takes Token from the prior and puts the rest into Request.
	FrontEnd FrontEnd
	// FittedOn names the runs behind a fitted model; Range is what their steps covered; Errors how well it held.
	FittedOn []string
	Range    Range
	Errors   *Errors
	// Limits are the datasheet's bounds and the work per unit, for Roofline.
	Limits Limits
	// Draws are equally likely alternatives to the coefficients' values, for Sample; rows in the order of Coefficients.
	Draws [][]float64
	// FrontDraws are the factors on FrontEnd's times per request and per prompt token that go with each of Draws.
	FrontDraws [][2]float64

	// The compiled form, in ns. bySeqs holds base and the seqs terms for 0..len-1 sequences, pad the capture size of
	// 0..MaxGraph tokens.
	bySeqs                                                                                        []float64
	pad                                                                                           []int32
	slope, tokens, above, far, hotStep, hot, knee, prefill, attention, kv, kvShared, kvMix, empty float64
	prepare, piecewise, eager                                                                     time.Duration
}

// Errors tell how far predictions are from measurements: |predicted - measured| / measured over the observations.
type Errors struct {
	// Observations is how many were used, Dropped how many were not, Why the reason.
	Observations int    `json:"observations"`
	Dropped      int    `json:"dropped"`
	Why          string `json:"why,omitempty"`
	// Median, Mean and P95 are cross-validated: each observation is predicted by a fit that has not seen its
	// composition. InSample is the mean over the observations that the final fit has seen, Prior that of the prior.
	Median   float64 `json:"median"`
	Mean     float64 `json:"mean"`
	P95      float64 `json:"p95"`
	InSample float64 `json:"in_sample_mean"`
	Prior    float64 `json:"prior_mean"`
}

// far is how many times the knee a step's tokens are from which on each may take longer still.
const far = 8

const (
	nBase = iota
	nSeqs // the first of len(Knots)
)

// The terms behind the seqs terms, as offsets from nSeqs + len(Knots). Those from oPrepare on are the host's.
const (
	oTokens = iota
	oAbove
	oFar
	oHot
	oThrottled
	oPrefillStep
	oAttention
	oContext
	oShared
	oMixed
	oEmpty
	oPrepare
	oPiecewise
	oEager
	oEnd
)

// terms adds the factor of each of the device's coefficients in s to f, of length nSeqs + len(Knots) + oEnd.
func (m *Model) terms(f []float64, s Step) {
	tokens, seqs := m.padded(s)
	f[nBase]++
	for i, k := range m.Knots {
		f[nSeqs+i] += float64(max(0, seqs-k))
	}
	o := f[nSeqs+len(m.Knots):]
	o[oTokens] += float64(tokens)
	whole := m.whole(tokens)
	o[oAbove] += float64(max(0, whole-m.Knee))
	o[oFar] += float64(max(0, whole-far*m.Knee))
	o[oHot] += s.Heat
	o[oThrottled] += s.Heat * float64(max(0, whole-m.Knee))
	o[oContext] += float64(s.DecodeContext - s.SharedContext)
	o[oShared] += float64(s.SharedContext)
	if s.PrefillTokens > 0 {
		o[oPrefillStep]++
		o[oAttention] += s.PrefillAttention
		o[oMixed] += float64(s.DecodeContext)
		o[oEmpty] += float64(s.emptyRows())
	}
}

// launch is the index of the coefficient that is the host's time for s, -1 where a full CUDA graph covers it.
func (m *Model) launch(s Step) int {
	o := nSeqs + len(m.Knots)
	switch {
	case s.Tokens() > m.MaxGraph:
		return o + oEager
	case s.PrefillTokens > 0:
		return o + oPiecewise
	}
	return -1
}

// padded are the tokens and sequences that the device computes for s.
func (m *Model) padded(s Step) (tokens, seqs int) {
	tokens, seqs = s.Tokens(), s.seqs()
	if tokens < len(m.pad) {
		tokens = int(m.pad[tokens])
		if s.PrefillTokens == 0 {
			seqs = tokens
		}
	}
	return tokens, seqs
}

// whole is a number of tokens in whole tiles.
func (m *Model) whole(tokens int) int {
	if m.Tile <= 1 {
		return tokens
	}
	return (tokens + m.Tile - 1) / m.Tile * m.Tile
}

// defaultMaxGraph is vLLM's largest capture size where the settings do not lower it.
const defaultMaxGraph = 512

// MaxGraph is the largest batch that vLLM captures a CUDA graph for under args, 0 for none: the least of 512,
// max_num_batched_tokens and twice max_num_seqs, the last rounded down to a capture size (vllm/config/vllm.py,
// _set_cudagraph_sizes).
func MaxGraph(args harness.EngineArgs) int {
	if args.EnforceEager != nil && *args.EnforceEager {
		return 0
	}
	n := defaultMaxGraph
	if args.MaxNumSeqs > 0 {
		n = min(n, 2*args.MaxNumSeqs)
	}
	if b := args.MaxNumBatchedTokens; b > 0 && b <= n {
		return b // captured whatever its size
	}
	switch {
	case n < 4:
		return min(n, 2)
	case n < 8:
		return 4
	case n < 256:
		return n / 8 * 8
	}
	return n / 16 * 16
}

// For is the model of the same server started with other settings: which batches it has CUDA graphs for (a model of a
// server without graphs knows no time with them, and stays as it is), and what attention takes at their block size.
func (m *Model) For(args harness.EngineArgs) *Model {
	n := MaxGraph(args)
	if n == 0 {
		n = -1
	}
	return m.withGraphs(n).withBlockSize(args.BlockSize)
}

// withGraphs is the model with n as MaxGraph; itself where that is 0, without graphs where it is below.
func (m *Model) withGraphs(n int) *Model {
	if n == 0 || m.MaxGraph == 0 || max(n, 0) == m.MaxGraph {
		return m
	}
	c := *m
	c.MaxGraph, c.pad = max(n, 0), nil
	if n > 0 {
		c.pad = graphSizes(n)
	}
	return &c
}

// graphSizes are the capture sizes that 0..limit tokens are padded to: 1, 2, 4, then steps of 8 to 256, then of 16, and
// limit itself (max_num_batched_tokens is captured at any size).
func graphSizes(limit int) []int32 {
	pad := make([]int32, limit+1)
	for n := range pad {
		size := n
		switch {
		case n <= 2:
		case n <= 4:
			size = 4
		case n <= 256:
			size = (n + 7) / 8 * 8
		default:
			size = (n + 15) / 16 * 16
		}
		pad[n] = int32(min(size, limit))
	}
	return pad
}

// describe gives the coefficients their names, units and meanings.
func describe(knots []int) []Coefficient {
	cs := []Coefficient{{Name: "base", Unit: "s", Meaning: "every step: weights read once, kernel boundaries, host"}}
	for _, k := range knots {
		cs = append(cs, Coefficient{
			Name: fmt.Sprintf("seqs_above_%d", k), Unit: "s/seq", Meaning: fmt.Sprintf("each sequence beyond %d", k),
		})
	}
	return append(cs,
		Coefficient{Name: "tokens", Unit: "s/token", Meaning: "each new token"},
		Coefficient{Name: "tokens_above_knee", Unit: "s/token", Meaning: "each token beyond the knee: compute-bound"},
		Coefficient{Name: "tokens_far_above_knee", Unit: "s/token",
			Meaning: "the same, added beyond 8 times the knee: large batches"},
		Coefficient{Name: "hot_step", Unit: "s", Meaning: "a step after the device has computed without pause: lower clocks"},
		Coefficient{Name: "throttled", Unit: "s/token", Meaning: "the same per token beyond the knee"},
		Coefficient{Name: "prefill_step", Unit: "s", Meaning: "a step with prompt tokens: kernels outside a full CUDA graph"},
		Coefficient{Name: "prefill_attention", Unit: "s/token^2", Meaning: "attention of prompt tokens"},
		Coefficient{Name: "decode_context", Unit: "s/token", Meaning: "KV read per token of decode context"},
		Coefficient{Name: "shared_context", Unit: "s/token",
			Meaning: "the same of context that another sequence reads, too: from the L2 cache"},
		Coefficient{Name: "mixed_context", Unit: "s/token", Meaning: "the same, added when the step has prompt tokens"},
		Coefficient{Name: "empty_rows", Unit: "s/row",
			Meaning: "query rows that attention launches beyond the step's tokens"},
		Coefficient{Name: "prepare", Unit: "s", Meaning: "host: scheduling and preparing a step, before the device begins"},
		Coefficient{Name: "launch_piecewise", Unit: "s", Meaning: "host: launching prompt tokens within the captured sizes"},
		Coefficient{Name: "launch_eager", Unit: "s", Meaning: "host: launching a step beyond the captured sizes"},
	)
}

// compile makes the table behind StepTime; the model is complete but for it.
func (m *Model) compile() {
	const ns = 1e9
	v := func(i int) float64 { return m.Coefficients[i].Value * ns }
	last := m.Knots[len(m.Knots)-1]
	m.bySeqs = make([]float64, last+1)
	for b := range m.bySeqs {
		m.bySeqs[b] = v(nBase)
		for i, k := range m.Knots {
			m.bySeqs[b] += v(nSeqs+i) * float64(max(0, b-k))
		}
	}
	m.slope = 0
	for i := range m.Knots {
		m.slope += v(nSeqs + i)
	}
	o := nSeqs + len(m.Knots)
	m.tokens, m.above, m.far, m.knee = v(o+oTokens), v(o+oAbove), v(o+oFar), float64(m.Knee)
	m.hotStep, m.hot = v(o+oHot), v(o+oThrottled)
	m.prefill, m.attention, m.kv, m.kvShared = v(o+oPrefillStep), v(o+oAttention), v(o+oContext), v(o+oShared)
	m.kvMix, m.empty = v(o+oMixed), v(o+oEmpty)
	m.prepare = time.Duration(v(o + oPrepare))
	m.piecewise, m.eager = time.Duration(v(o+oPiecewise)), time.Duration(v(o+oEager))
	m.pad = nil
	if m.MaxGraph > 0 {
		m.pad = graphSizes(m.MaxGraph)
	}
}

// maxStep keeps sums over millions of steps within a [time.Duration], whatever the coefficients of a file are.
const maxStep = float64(time.Hour)

// StepTime is how long the device is busy with a step: 0 for one without tokens, an hour at most.
func (m *Model) StepTime(s Step) time.Duration {
	if s.Tokens() <= 0 {
		return 0
	}
	n, seqs := m.padded(s)
	tokens, last := float64(n), len(m.bySeqs)-1
	ns := m.bySeqs[min(seqs, last)] + m.slope*float64(max(0, seqs-last)) +
		m.tokens*tokens + m.kv*float64(s.DecodeContext-s.SharedContext) + m.kvShared*float64(s.SharedContext) +
		m.hotStep*s.Heat
	if whole := float64(m.whole(n)); whole > m.knee {
		ns += (m.above+m.hot*s.Heat)*(whole-m.knee) + m.far*max(0, whole-far*m.knee)
	}
	if s.PrefillTokens > 0 {
		ns += m.prefill + m.attention*s.PrefillAttention + m.kvMix*float64(s.DecodeContext) +
			m.empty*float64(s.emptyRows())
	}
	return time.Duration(min(ns, maxStep))
}

// HostTime is how long the host prepares and launches a step. The launch of one that a full CUDA graph covers takes no
// time to speak of.
func (m *Model) HostTime(s Step) (prepare, launch time.Duration) {
	switch tokens := s.Tokens(); {
	case tokens >= len(m.pad):
		launch = m.eager
	case s.PrefillTokens > 0:
		launch = m.piecewise
	}
	return m.prepare, launch
}

// Parts are what the device's time of a step consists of, in seconds. They add up to StepTime, but for rounding.
type Parts struct {
	// Fixed is every step's, of one with prompt tokens too; Seqs grows with the sequences, Tokens with the new tokens,
	// Attention with the work of prompt attention, KV with the decodes' contexts; Heat is what lower clocks add.
	Fixed, Seqs, Tokens, Attention, KV, Heat float64
}

// Parts takes a step's time apart; zero for a step without tokens.
func (m *Model) Parts(s Step) Parts {
	if s.Tokens() <= 0 {
		return Parts{}
	}
	f := make([]float64, len(m.Coefficients))
	m.terms(f, s)
	for i := range f {
		f[i] *= m.Coefficients[i].Value
	}
	o := f[nSeqs+len(m.Knots):]
	p := Parts{
		Fixed: f[nBase] + o[oPrefillStep], Tokens: o[oTokens] + o[oAbove] + o[oFar], Attention: o[oAttention] + o[oEmpty],
		KV: o[oContext] + o[oShared] + o[oMixed], Heat: o[oHot] + o[oThrottled],
	}
	for _, v := range f[nSeqs : nSeqs+len(m.Knots)] {
		p.Seqs += v
	}
	return p
}

// Reached are the rates to which the coefficients come where much work hides everything else: arithmetic of new tokens
// beyond the knee (flop/s) and KV read by decodes (B/s). 0 where the model has no such cost.
func (m *Model) Reached() (flops, bandwidth float64) {
	o := m.Coefficients[nSeqs+len(m.Knots):]
	if perToken := o[oTokens].Value + o[oAbove].Value; perToken > 0 {
		flops = m.Limits.FlopsPerToken / perToken
	}
	if perContext := o[oContext].Value; perContext > 0 {
		bandwidth = m.Limits.KVBytesPerToken / perContext
	}
	return flops, bandwidth
}

// WithCeilings is the model with measured peaks of the ranks together in place of the datasheet's, for Roofline; what
// is 0 stays the datasheet's.
func (m *Model) WithCeilings(flops, bandwidth float64) *Model {
	c := *m
	if flops > 0 {
		c.Limits.Flops = flops
	}
	if bandwidth > 0 {
		c.Limits.Bandwidth = bandwidth
	}
	c.Limits.Guess = c.Limits.Guess && (flops <= 0 || bandwidth <= 0)
	return &c
}

// With is a copy with other coefficient values, in the order of Coefficients. It fails when the count differs or a
// value is negative or not finite.
func (m *Model) With(values []float64) (*Model, error) {
	if len(values) != len(m.Coefficients) {
		return nil, fmt.Errorf("%d coefficient values, expected %d", len(values), len(m.Coefficients))
	}
	c := *m
	c.Coefficients = slices.Clone(m.Coefficients)
	for i, v := range values {
		if !finite(v) {
			return nil, fmt.Errorf("coefficient %s is %g, expected a number of at least 0", c.Coefficients[i].Name, v)
		}
		c.Coefficients[i].Value = v
	}
	c.compile()
	return &c, nil
}

// Sample is a model drawn from the coefficients' uncertainty: one of Draws, or, where there are none, each coefficient
// log-normal with its interval as the central 95 %. The front end's times per request and per prompt token move with
// them.
func (m *Model) Sample(rng *rand.Rand) *Model {
	values, front := make([]float64, len(m.Coefficients)), [2]float64{1, 1}
	if len(m.Draws) > 0 {
		i := rng.IntN(len(m.Draws))
		copy(values, m.Draws[i])
		if i < len(m.FrontDraws) {
			front = m.FrontDraws[i]
		}
	} else {
		for i := range front {
			front[i] = math.Exp(rng.NormFloat64() * math.Log(priorSpread) / 1.96)
		}
		for i, c := range m.Coefficients {
			z := rng.NormFloat64()
			values[i] = c.Value
			if c.Low > 0 && c.Value > 0 {
				values[i] *= math.Exp(z * math.Log(c.High/c.Low) / (2 * 1.96))
			}
		}
	}
	c := *m
	c.Coefficients = slices.Clone(m.Coefficients)
	for i := range c.Coefficients {
		c.Coefficients[i].Value = values[i]
	}
	c.draw(rng)
	times := func(d time.Duration, by float64) time.Duration { return time.Duration(float64(d) * by) }
	fe := &c.FrontEnd
	fe.Request, fe.Handle, fe.PromptToken = times(fe.Request, front[0]), times(fe.Handle, front[0]),
		times(fe.PromptToken, front[1])
	c.compile()
	return &c
}

// Limits are datasheet peaks of the ranks together and the least work per unit of a step.
type Limits struct {
	// Flops is in flop/s, Bandwidth in B/s.
	Flops     float64 `json:"flops"`
	Bandwidth float64 `json:"bandwidth"`
	// Guess is set where the peaks are no datasheet's (a CPU): a measurement may be faster.
	Guess bool `json:"guess,omitempty"`
	// FlopsPerToken is the matrix work of a token in the layers, FlopsPerSeq that of the output projection,
	// AttentionFlops that of one query-key pair.
	FlopsPerToken  float64 `json:"flops_per_token"`
	FlopsPerSeq    float64 `json:"flops_per_seq"`
	AttentionFlops float64 `json:"attention_flops"`
	// WeightBytes are read once per step by one token, KVBytesPerToken per token of decode context.
	WeightBytes     float64 `json:"weight_bytes"`
	KVBytesPerToken float64 `json:"kv_bytes_per_token"`
}

// Roofline is the least time that the step's arithmetic and its memory traffic take at the datasheet's peaks. The
// longer one binds; no correct measurement is below it, unless the limits are a Guess.
func (m *Model) Roofline(s Step) (compute, memory time.Duration) {
	l := m.Limits
	if l.Flops <= 0 || l.Bandwidth <= 0 || s.Tokens() <= 0 {
		return 0, 0
	}
	flops := l.FlopsPerToken*float64(s.Tokens()) + l.FlopsPerSeq*float64(s.DecodeSeqs) +
		l.AttentionFlops*(s.PrefillAttention+float64(s.DecodeContext))
	bytes := l.WeightBytes + l.KVBytesPerToken*float64(s.DecodeContext-s.SharedContext)
	return time.Duration(1e9 * flops / l.Flops), time.Duration(1e9 * bytes / l.Bandwidth)
}
