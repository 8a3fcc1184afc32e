package cost

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"kvtune/harness"
	"kvtune/harness/stats"
	"kvtune/planner/spec"
)

// KernelOrigin says where it is known from what attention costs at a block size.
type KernelOrigin string

// From the least telling to the most: the first never replaces the second, nor both the third.
const (
	// OurKernels: kvtune's own kernels, timed by kvtune bench; the server's are others.
	OurKernels KernelOrigin = "our kernels"
	// ServersKernel: the server's own attention kernel, timed by kvtune bench.
	ServersKernel KernelOrigin = "server's kernel"
	// Probed: the server itself was measured at this block size.
	Probed KernelOrigin = "probe"
)

func (o KernelOrigin) weight() int {
	return slices.Index([]KernelOrigin{OurKernels, ServersKernel, Probed}, o)
}

// Ratio is a quotient of two times, with its 95 % interval.
type Ratio struct {
	Value float64 `json:"value"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
}

// BlockCost is what attention takes at a block size over what it takes at the block size [ratioBase].
type BlockCost struct {
	BlockSize int `json:"block_size"`
	// Decode is of the KV read, Prefill of the attention of prompt tokens; nil is not known and taken to be 1.
	Decode  *Ratio       `json:"decode,omitempty"`
	Prefill *Ratio       `json:"prefill,omitempty"`
	Origin  KernelOrigin `json:"origin"`
	// Source is the device or the run.
	Source string `json:"source,omitempty"`
}

// ratioBase is the block size that ratios are to: vLLM's own on a GPU.
const ratioBase = 16

// By how much (95 %) the ratios of another backend's kernels may differ from ours, as shares: twice what is seen beside
// vLLM 0.26's FlashAttention 3 on one H100 in the same run in decode at blocks of 1 to 256 tokens (0.9 %), and what is
// seen in prefill (4.5 %). Where the heads are others than the server's, twice that.
const decodeDiffers, prefillDiffers = 0.02, 0.05

// atBlockSize gives the ratios of a block size, 1 where nothing is known.
func (m *Model) atBlockSize(size int) (decode, prefill float64) {
	decode, prefill = 1, 1
	for _, b := range m.Blocks {
		if b.BlockSize == size {
			if b.Decode != nil {
				decode = b.Decode.Value
			}
			if b.Prefill != nil {
				prefill = b.Prefill.Value
			}
		}
	}
	return decode, prefill
}

// knows reports whether something is known of a block size beyond the fit.
func (m *Model) knows(size int) bool {
	return size == ratioBase || slices.ContainsFunc(m.Blocks, func(b BlockCost) bool { return b.BlockSize == size })
}

// withBlockSize is the model of the server with another block size; itself where of one of the two nothing is known.
func (m *Model) withBlockSize(size int) *Model {
	own := cmp.Or(m.BlockSize, ratioBase)
	if size == 0 || size == own || len(m.Blocks) == 0 || !m.knows(size) || !m.knows(own) {
		return m
	}
	decode, prefill := m.atBlockSize(size)
	ownDecode, ownPrefill := m.atBlockSize(own)
	c := *m
	c.Coefficients, c.BlockSize = slices.Clone(m.Coefficients), size
	o := nSeqs + len(m.Knots)
	c.Coefficients[o+oContext].Value *= decode / ownDecode
	c.Coefficients[o+oShared].Value *= decode / ownDecode
	c.Coefficients[o+oMixed].Value *= decode / ownDecode
	c.Coefficients[o+oAttention].Value *= prefill / ownPrefill
	c.compile()
	return &c
}

// BlockOrigin is where it is known from what attention costs at a block size beside that of the fit; "" where it is
// not.
func (m *Model) BlockOrigin(size int) KernelOrigin {
	for _, b := range m.Blocks {
		if b.BlockSize == size {
			return b.Origin
		}
	}
	return ""
}

// learn takes what is known of a block size, unless something more telling is known.
func (m *Model) learn(b BlockCost) {
	m.Blocks = slices.Clone(m.Blocks)
	at := slices.IndexFunc(m.Blocks, func(o BlockCost) bool { return o.BlockSize == b.BlockSize })
	switch {
	case at < 0:
		m.Blocks = append(m.Blocks, b)
		slices.SortFunc(m.Blocks, func(x, y BlockCost) int { return x.BlockSize - y.BlockSize })
	case b.Origin.weight() >= m.Blocks[at].Origin.weight():
		m.Blocks[at] = b
	}
}

// draw moves the ratios within their intervals, those of one origin together: another backend's kernels are others at
// every block size.
func (m *Model) draw(rng *rand.Rand) {
	if len(m.Blocks) == 0 {
		return
	}
	zs := [3]float64{rng.NormFloat64(), rng.NormFloat64(), rng.NormFloat64()}
	m.Blocks = slices.Clone(m.Blocks)
	for i := range m.Blocks {
		b := &m.Blocks[i]
		for _, r := range []**Ratio{&b.Decode, &b.Prefill} {
			if *r != nil && (*r).Low > 0 {
				moved := **r
				moved.Value *= math.Exp(zs[b.Origin.weight()] * math.Log(moved.High/moved.Low) / (2 * 1.96))
				*r = &moved
			}
		}
	}
}

// WithKernels is the model with what a kernel benchmark says of block sizes: the time of attention at each over that at
// 16, of the same kernel in the same run. It breaks ties between block sizes, with an interval that knows that the
// server's kernels are others; a probe of the server, or its own kernel (backend "vllm"), is not outvoted by it. What a
// block size does to the cache is no part of a step's time. The error says what the benchmark lacks: another device
// than the model's, or no decode at 16 and another block size with the model's head size and KV dtype.
func (m *Model) WithKernels(bench *harness.Bench, model spec.Model, args harness.EngineArgs) (*Model, error) {
	device := bench.Device
	if gpu, err := spec.FindGPU(device); err == nil {
		device = gpu.Name
	}
	if device != m.GPU {
		return nil, fmt.Errorf("kernels were timed on %s, the cost model is of %s: what block sizes cost there says "+
			"nothing here", bench.Device, m.GPU)
	}
	dtype := "bf16"
	if strings.HasPrefix(args.KVCacheDType, "fp8") {
		dtype = "fp8"
	}
	origin := OurKernels
	if bench.Backend == "vllm" {
		origin = ServersKernel
	}
	k := kernelTimes{bench: bench, dtype: dtype, headSize: model.HeadDim, heads: model.Heads / m.Tensor,
		kvHeads: max(1, model.KVHeads/m.Tensor)}
	decode, prefill := k.ratios("decode", decodeDiffers, origin), k.ratios("prefill", prefillDiffers, origin)
	if len(decode) == 0 {
		return nil, fmt.Errorf("the benchmark %s holds no decode in %s with heads of %d at block_size 16 and at "+
			"another one: kvtune bench --op decode --axis block_size=16,32,64,128 --axis dtype=%s --axis head_size=%d",
			bench.Name, dtype, model.HeadDim, dtype, model.HeadDim)
	}
	c := *m
	for size, r := range decode {
		b := BlockCost{BlockSize: size, Decode: &r, Origin: origin, Source: bench.Device}
		if p, ok := prefill[size]; ok {
			b.Prefill = &p
		}
		c.learn(b)
	}
	return &c, nil
}

// kernelTimes looks for the cases of a server's shape.
type kernelTimes struct {
	bench                    *harness.Bench
	dtype                    string
	headSize, heads, kvHeads int
}

// ratios are those of an operation by block size: the geometric mean over what else the cases differ in.
func (k *kernelTimes) ratios(op string, differs float64, origin KernelOrigin) map[int]Ratio {
	type sized struct {
		size int
		c    *harness.BenchCase
	}
	groups := map[string][]sized{}
	exact := false
	like := func(c *harness.BenchCase) bool {
		return c.Axes["heads"] == strconv.Itoa(k.heads) && c.Axes["kv_heads"] == strconv.Itoa(k.kvHeads)
	}
	for i := range k.bench.Cases {
		c := &k.bench.Cases[i]
		size, err := strconv.Atoi(c.Axes["block_size"])
		// NHD is the layout of vLLM's attention backends, and a server's block tables are in no order.
		if err != nil || !strings.HasPrefix(c.Case, op+"/") || c.Axes["layout"] != "NHD" || c.Axes["dtype"] != k.dtype ||
			c.Axes["head_size"] != strconv.Itoa(k.headSize) || c.Axes["table"] == "ordered" || !(c.Median > 0) {
			continue
		}
		exact = exact || like(c)
		groups[c.Group()] = append(groups[c.Group()], sized{size, c})
	}
	logs, widths := map[int][]float64{}, map[int]float64{}
	for _, group := range groups {
		at := slices.IndexFunc(group, func(s sized) bool { return s.size == ratioBase })
		if at < 0 || exact && !like(group[at].c) {
			continue
		}
		base := group[at].c
		for _, s := range group {
			logs[s.size] = append(logs[s.size], math.Log(s.c.Median/base.Median))
			widths[s.size] = max(widths[s.size], math.Hypot(halfWidth(s.c), halfWidth(base)))
		}
	}
	if origin == ServersKernel {
		differs = 0
	}
	if !exact {
		differs = 2 * max(differs, decodeDiffers)
	}
	out := map[int]Ratio{}
	for size, l := range logs {
		if size != ratioBase {
			mean, half := stats.New(l).Mean(), math.Hypot(widths[size], math.Log1p(differs))
			out[size] = Ratio{math.Exp(mean), math.Exp(mean - half), math.Exp(mean + half)}
		}
	}
	return out
}

// halfWidth is that of the median's interval, relative; where the samples cannot bound it, a hundredth.
func halfWidth(c *harness.BenchCase) float64 {
	if c.Low == nil || c.High == nil || !(*c.Low > 0) {
		return 0.01
	}
	return math.Log(*c.High / *c.Low) / 2
}

// Probe is the model with what decode steps of the same server with another block size show: by how much the time
// beyond the model's other terms is longer than that of the KV read. It is the model itself where the steps are too few
// or their context too short to tell.
func (m *Model) Probe(size int, observations []Observation, source string) *Model {
	const share, enough = 0.2, 8
	var ratios []float64
	o := nSeqs + len(m.Knots)
	for _, ob := range observations {
		if len(ob.Steps) != 1 || ob.Steps[0].PrefillTokens > 0 || ob.Prompt > 0 {
			continue
		}
		all, read := m.StepTime(ob.Steps[0]).Seconds(), m.Coefficients[o+oContext].Value*float64(ob.Steps[0].DecodeContext)
		if read > share*all {
			ratios = append(ratios, (ob.Time.Seconds()-(all-read))/read)
		}
	}
	if len(ratios) < enough {
		return m
	}
	s := stats.New(ratios)
	iv := s.PercentileInterval(50, 0.95, len(ratios))
	r := Ratio{s.Median(), min(iv.Low, s.Median()), max(iv.High, s.Median())}
	if !(r.Low > 0) {
		return m
	}
	c := *m
	own := cmp.Or(m.BlockSize, ratioBase)
	if !m.knows(own) { // then 16 is taken to be as its own
		c.learn(BlockCost{BlockSize: own, Decode: &Ratio{1, 1, 1}, Origin: Probed, Source: source})
	}
	scale, _ := c.atBlockSize(own)
	r.Value, r.Low, r.High = r.Value*scale, r.Low*scale, r.High*scale
	c.learn(BlockCost{BlockSize: size, Decode: &r, Origin: Probed, Source: source})
	return &c
}
