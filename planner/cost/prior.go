package cost

import (
	"math"
	"time"

	"kvtune/harness"
	"kvtune/planner/spec"
)

// What a real kernel reaches of the datasheet, and what the datasheet does not know. The fractions are quotients of
// public operator timings (ai-dynamo/aiconfigurator, vLLM 0.24.0 on one H200, Llama-3.1-8B's shapes in bf16) and the
// datasheet; the host's costs are read off client-side token gaps of vLLM 0.26.0 on one H200. Other parts are assumed
// to do alike, which is why a prior's intervals are wide.
const (
	// matmulFraction: 2 x 6.98e9 flop x 8192 tokens in 158.8 ms is 720e12 of 989.5e12 flop/s.
	matmulFraction = 0.73
	// attentionFraction: causal attention of 8192 tokens x 32 layers, 17.6e12 flop in 30.0 ms.
	attentionFraction = 0.59
	// weightFraction: 13.96e9 B of layer weights in 4.13 ms at one token is 3.38e12 of 4.8e12 B/s.
	weightFraction = 0.70
	// kvFraction: decode attention at 32 x 4096 to 128 x 4096 context tokens runs at 0.83 to 0.91 of the bandwidth.
	kvFraction = 0.85
	// belowKnee: between 1 and 128 tokens the matrix products grow by 4 us a token, a fifth of the compute-bound slope.
	belowKnee = 0.2
	// throttle is by how much a token takes longer when the device has computed without pause, hotStep by how much the
	// rest of a step does.
	throttle = 0.08
	hotStep  = 0.05
	// sharedFraction: what other sequences have just read comes from the L2 cache, whose bandwidth is about 1.7 times the
	// memory's on H100 and H200.
	sharedFraction = 0.6
	// mixedFraction: decode attention beside prompt tokens costs 1.4 to 1.8 times that alone on RTX PRO 6000 at 64
	// and 128 decodes, 0.8 to 0.95 at one (LLMServingSim's kernel tables); between.
	mixedFraction = 0.3
	// layerGap is norms, rotary embedding, cache write and kernel boundaries of one layer inside a CUDA graph.
	layerGap = 10 * time.Microsecond
	// prefillLayer is what a layer of prompt tokens takes beside that: kernel boundaries outside a graph.
	prefillLayer = 20 * time.Microsecond
	// piecewiseLayer and eagerLayer are the host's time to launch one layer's graphs and attention, and one layer without
	// graphs: on 32 layers a lone prompt of 16 to 256 tokens has its first token after 15 ms, one beyond 512 tokens 20 ms
	// later than the log's elapsed time says.
	piecewiseLayer = 300 * time.Microsecond
	eagerLayer     = 400 * time.Microsecond
	// prepareTime is the host's for scheduling a step, preparing its inputs and applying its result: tokens of a running
	// batch come late by that and a launch before a step with prompt tokens.
	prepareTime = 3500 * time.Microsecond
	// emptyTile is what a tile of tileRows query rows without any costs a multiprocessor: a thread block that starts,
	// finds nothing to do and ends.
	emptyTile = 330 * time.Nanosecond
	tileRows  = 128
	// seqLayer is a decode's cost per layer that does not depend on context (grid scheduling, 1.8 ms at 256 over 32
	// layers); seqHost the sampler's and the scheduler's share per sequence.
	seqLayer = 220 * time.Nanosecond
	seqHost  = 3 * time.Microsecond
	// allReduce is the latency of one all-reduce over NVLink; a layer has two.
	allReduce = 10 * time.Microsecond
	// The API server's: a lone request until the scheduler sees it, the part in which its thread is busy, a prompt's
	// token; a token's way back, and what each event keeps the thread busy.
	requestLatency     = 4 * time.Millisecond
	handleTime         = 650 * time.Microsecond
	promptTokenLatency = 500 * time.Nanosecond
	tokenLatency       = 300 * time.Microsecond
	eventTime          = 36 * time.Microsecond
	// priorSpread is the factor by which a prior's coefficient may be off, up or down (95 %).
	priorSpread = 1.6
)

// graphKnots are batch sizes at which vLLM's captured graphs or the kernels' tiles change.
func graphKnots() []int { return []int{0, 8, 16, 32, 64, 128, 256} }

// Prior is the step time that the roofline predicts for a model on a GPU: the larger of weight traffic and
// arithmetic, KV traffic, attention, and the host's launches, at the fractions of peak that public operator timings
// show. args gives kv_cache_dtype and tensor_parallel_size. A mixture of experts is taken to read the experts that 16
// tokens touch.
func Prior(gpu spec.GPU, model spec.Model, args harness.EngineArgs) *Model {
	tp := float64(max(1, args.TensorParallelSize))
	flops, bandwidth := gpu.BF16*tp, gpu.Bandwidth*tp
	if model.DTypeBytes == 1 && gpu.FP8 > 0 {
		flops = gpu.FP8 * tp
	}
	active, head := float64(model.ActiveLayerParams()), float64(model.HeadParams())
	layers := float64(model.Layers)
	read := active
	if model.Experts > 0 {
		// Of E experts, n tokens that choose k each touch E x (1 - (1 - k/E)^n).
		const tokens = 16
		e, k := float64(model.Experts), float64(model.ExpertsPerToken)
		one := (float64(model.LayerParams()) - active) / (e - k)
		if e > k {
			read += one * (e*(1-math.Pow(1-k/e, tokens)) - k)
		}
	}
	m := &Model{
		Kind: KindPrior, GPU: gpu.Name, Model: model.Name, Tensor: int(tp), Knots: graphKnots(), Tile: 1,
		BlockSize: args.BlockSize, MaxGraph: defaultMaxGraph,
		FrontEnd: FrontEnd{
			Request: requestLatency, Handle: handleTime, PromptToken: promptTokenLatency, Token: tokenLatency, Event: eventTime,
		},
		Limits: Limits{
			Flops: flops, Bandwidth: bandwidth, Guess: gpu.CPU, FlopsPerToken: 2 * active, FlopsPerSeq: 2 * head,
			AttentionFlops:  4 * layers * float64(model.Heads*model.HeadDim),
			WeightBytes:     (active + head) * model.DTypeBytes,
			KVBytesPerToken: float64(model.KVBytesPerToken(args.KVCacheDType, int(tp))) * tp,
		},
	}
	l := m.Limits
	weights := (read + head) * model.DTypeBytes / (bandwidth * weightFraction)
	base := weights + layers*layerGap.Seconds()
	perToken := l.FlopsPerToken / (flops * matmulFraction)
	if tp > 1 {
		base += 2 * layers * allReduce.Seconds()
		perToken += 2 * layers * float64(model.Hidden) * 2 * 2 * (tp - 1) / tp / gpu.Link
	}
	m.Knee = max(1, int(weights/perToken))
	kv := l.KVBytesPerToken / (bandwidth * kvFraction)

	m.Coefficients = describe(m.Knots)
	set := func(i int, v float64) {
		c := &m.Coefficients[i]
		c.Value, c.Low, c.High = v, v/priorSpread, v*priorSpread
	}
	o := nSeqs + len(m.Knots)
	set(nBase, base)
	set(nSeqs, layers*seqLayer.Seconds()+seqHost.Seconds())
	set(o+oTokens, belowKnee*perToken)
	set(o+oAbove, (1-belowKnee)*perToken)
	set(o+oHot, hotStep*base)
	set(o+oThrottled, throttle*perToken)
	set(o+oPrefillStep, layers*prefillLayer.Seconds())
	set(o+oAttention, l.AttentionFlops/(flops*attentionFraction))
	if model.DTypeBytes == 1 {
		set(o+oAttention, l.AttentionFlops/(gpu.BF16*tp*attentionFraction)) // attention stays in bf16
	}
	set(o+oContext, kv)
	set(o+oShared, sharedFraction*kv)
	set(o+oMixed, mixedFraction*kv)
	set(o+oPrepare, prepareTime.Seconds())
	if gpu.CPU {
		m.MaxGraph = 0
		set(o+oHot, 0)
		set(o+oThrottled, 0)
	} else {
		heads := layers * float64(model.Heads) / tp
		set(o+oEmpty, heads/tileRows*emptyTile.Seconds()/float64(gpu.SMs))
		set(o+oPiecewise, layers*piecewiseLayer.Seconds())
		set(o+oEager, layers*eagerLayer.Seconds())
		m.MaxGraph = MaxGraph(args)
	}
	m.compile()
	return m
}
