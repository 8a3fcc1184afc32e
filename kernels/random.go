package kernels

import (
	"math"
	"runtime"
	"sync"

	"kvtune/kernels/layout"
)

// The independent streams of random numbers.
const (
	streamQuery uint64 = iota
	streamKey
	streamValue
)

// quantileBits is how many random bits choose one number.
const quantileBits = 12

// source makes random rows of normally distributed numbers, already coded: each is one of 4096 quantiles, looked up.
// That is coarse for statistics, but a cache of gigabytes is filled in seconds, and is not the row of zeros that lets
// a GPU clock higher.
type source struct {
	codes [1 << quantileBits]uint16
	seed  uint64
}

func newSource(dtype layout.DType, scale float32, seed, stream uint64) *source {
	s := &source{seed: mix(seed ^ stream<<56)}
	for i := range s.codes {
		p := (float64(i) + 0.5) / float64(len(s.codes))
		s.codes[i] = dtype.Encode(float32(math.Sqrt2*math.Erfinv(2*p-1)) / scale)
	}
	return s
}

// row fills dst with the codes of one head of one token of a sequence.
func (s *source) row(dst []uint16, sequence, token, head int) {
	state := mix(mix(s.seed+uint64(sequence)) + uint64(token)<<20 + uint64(head))
	var bits uint64
	for i := range dst {
		if i%5 == 0 { // 5 x 12 bits of each 64
			state += 0x9e3779b97f4a7c15
			bits = mix(state)
		}
		dst[i] = s.codes[bits&(1<<quantileBits-1)]
		bits >>= quantileBits
	}
}

// mix is the finaliser of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// rows makes the queries, or the tokens to append: for every new token of every sequence (one for decode) a row per
// head.
func (in *Inputs) rows(s *source, heads int) []byte {
	dtype, size := in.Case.QueryDType(), in.Case.HeadSize
	out := make([]byte, in.Queries()*heads*size*dtype.Bytes())
	codes, at := make([]uint16, size), 0
	for i, sequence := range in.Sequences {
		added := sequence.New
		if in.Case.Op == OpDecode {
			added = 1
		}
		for token := sequence.Context; token < sequence.Context+added; token++ {
			for head := range heads {
				s.row(codes, i, token, head)
				dtype.PutCodes(out, at, codes...)
				at += size
			}
		}
	}
	return out
}

// fillCache makes the cache: the tokens of all sequences, NaN elsewhere. With append the new tokens are not in it yet.
func (in *Inputs) fillCache() {
	size := int(in.Shape.Bytes() / 2)
	in.Key, in.Value = poisoned(size), poisoned(size)
	c := in.Case
	keys := newSource(c.DType, in.cacheScale(in.KeyScale), c.Seed, streamKey)
	values := newSource(c.DType, in.cacheScale(in.ValueScale), c.Seed, streamValue)
	var wg sync.WaitGroup
	workers := runtime.GOMAXPROCS(0)
	for worker := range workers {
		wg.Go(func() {
			codes := make([]uint16, c.HeadSize)
			for i, blocks := range in.Table {
				tokens := in.Sequences[i].Context
				if c.Op == OpPrefill {
					tokens += in.Sequences[i].New
				}
				for b := worker; b < len(blocks); b += workers {
					for token := b * c.BlockSize; token < min((b+1)*c.BlockSize, tokens); token++ {
						for head := range c.KVHeads {
							keys.row(codes, i, token, head)
							in.putRow(in.Key, in.Shape.KeyOffset, in.Shape.KeyRun(), codes, i, token, head)
							values.row(codes, i, token, head)
							in.putRow(in.Value, in.Shape.ValueOffset, in.Shape.ValueRun(), codes, i, token, head)
						}
					}
				}
			}
		})
	}
	wg.Wait()
}

// cacheScale is the scale that the numbers in the cache are coded with: quantize starts from a cache without one.
func (in *Inputs) cacheScale(scale float32) float32 {
	if in.Case.Op == OpQuantize {
		return 1
	}
	return scale
}

// putRow writes one head's row of a token to where the layout has it, run by run.
func (in *Inputs) putRow(array []byte, offset func(block, slot, head, dim int) int, run int, codes []uint16,
	sequence, token, head int) {
	block, slot := in.Table.Find(sequence, token, in.Case.BlockSize)
	for dim := 0; dim < len(codes); dim += run {
		in.Shape.DType.PutCodes(array, offset(block, slot, head, dim), codes[dim:dim+run]...)
	}
}
