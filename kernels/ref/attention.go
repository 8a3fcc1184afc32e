package ref

import (
	"math"
	"sync"

	"gonum.org/v1/gonum/floats"

	"kvtune/kernels"
)

// attention computes softmax(q k / sqrt(head size)) v for every query and head, with the keys and values of the query
// head's group, over the tokens that the query sees.
func attention(in *kernels.Inputs, out []float32) {
	c := in.Case
	group := c.Heads / c.KVHeads
	first := 0 // the sequence's first query
	var wg sync.WaitGroup
	for i, s := range in.Sequences {
		queries, tokens := s.New, s.Context+s.New
		seen := func(query int) int { return s.Context + query + 1 }
		if c.Op == kernels.OpDecode {
			queries, tokens = 1, s.Context
			seen = func(int) int { return s.Context }
		}
		for kvHead := range c.KVHeads {
			at := first * c.Heads * c.HeadSize // of the sequence's first query
			wg.Go(func() {
				keys, values := rows(in, i, kvHead, tokens)
				for query := range queries {
					for head := kvHead * group; head < (kvHead+1)*group; head++ {
						at := at + (query*c.Heads+head)*c.HeadSize
						n := seen(query)
						row, _ := attend(queryRow(in, at), keys[:n], values[:n])
						for dim, v := range row {
							out[at+dim] = float32(v)
						}
					}
				}
			})
		}
		first += queries
	}
	wg.Wait()
}

// queryRow reads one head of a query, which begins at a number of the queries.
func queryRow(in *kernels.Inputs, at int) []float64 {
	q := make([]float64, in.Case.HeadSize)
	for dim := range q {
		q[dim] = float64(in.Case.QueryDType().Get(in.Query, at+dim))
	}
	return q
}

// rows reads one head's keys and values of a sequence's tokens out of the cache, and nothing else of it.
func rows(in *kernels.Inputs, sequence, head, tokens int) (keys, values [][]float64) {
	s := in.Shape
	read := func(array []byte, scale float32, offset func(block, slot, head, dim int) int) [][]float64 {
		list, numbers := make([][]float64, tokens), make([]float64, tokens*s.HeadSize)
		for token := range list {
			block, slot := in.Table.Find(sequence, token, s.BlockSize)
			row := numbers[token*s.HeadSize : (token+1)*s.HeadSize]
			for dim := range row {
				row[dim] = float64(s.DType.Get(array, offset(block, slot, head, dim))) * float64(scale)
			}
			list[token] = row
		}
		return list
	}
	return read(in.Key, in.KeyScale, s.KeyOffset), read(in.Value, in.ValueScale, s.ValueOffset)
}

// attend is attention of one query over the given tokens, at least one, and the logarithm of the sum of the
// exponentials of the scores, which weighs this part where another part of the tokens is attended to separately.
func attend(q []float64, keys, values [][]float64) (out []float64, logSum float64) {
	scores, most := make([]float64, len(keys)), math.Inf(-1)
	for i, k := range keys {
		scores[i] = floats.Dot(q, k) / math.Sqrt(float64(len(q)))
		most = max(most, scores[i])
	}
	out = make([]float64, len(q))
	total := 0.0
	for i, score := range scores {
		p := math.Exp(score - most)
		total += p
		floats.AddScaled(out, p, values[i])
	}
	floats.Scale(1/total, out)
	return out, most + math.Log(total)
}
