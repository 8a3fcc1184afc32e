package sim

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"
)

// oracleCase is a line that testdata/vllm_scheduler.py wrote: what vLLM 0.32.0's own scheduler decided.
type oracleCase struct {
	BlockSize     int     `json:"block_size"`
	MaxModelLen   int     `json:"max_model_len"`
	Seqs          int     `json:"seqs"`
	BatchedTokens int     `json:"batched_tokens"`
	Chunked       bool    `json:"chunked"`
	Blocks        int     `json:"blocks"`
	PrefixCaching bool    `json:"prefix_caching"`
	Threshold     int     `json:"threshold"`
	Priority      bool    `json:"priority"`
	Async         bool    `json:"async"`
	Watermark     float64 `json:"watermark"`
	FullISL       bool    `json:"full_isl"`
	Requests      []struct {
		At        int      `json:"at"`
		Prompt    [][2]int `json:"prompt"`
		Tokens    int      `json:"prompt_tokens"`
		MaxTokens int      `json:"max_tokens"`
		Out       int      `json:"out"`
		Priority  int      `json:"priority"`
		Abort     int      `json:"abort"`
	} `json:"requests"`
	// Steps holds [[id, tokens], ...], [preempted ...], free blocks, running, waiting.
	Steps   [][5]json.RawMessage `json:"steps"`
	Queries int64                `json:"queries"`
	Hits    int64                `json:"hits"`
	Free    int                  `json:"free"`
}

// chain hashes the full blocks of a content given as [segment, tokens] runs.
func chain(block int, runs ...[2]int) []uint64 {
	var hashes []uint64
	h, n := uint64(14695981039346656037), 0
	for _, run := range runs {
		for o := range run[1] {
			h = (h ^ uint64(run[0])<<32 ^ uint64(o)) * 1099511628211
			h ^= h >> 29
			if n++; n%block == 0 {
				hashes = append(hashes, h)
			}
		}
	}
	return hashes
}

func TestSchedulerDecidesAsVLLM(t *testing.T) {
	f, err := os.Open("testdata/vllm_scheduler.jsonl.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(z)
	lines.Buffer(nil, 1<<24)
	preempted, hits := 0, int64(0)
	for n := 0; lines.Scan(); n++ {
		var c oracleCase
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			p := c.replay(t)
			preempted += p
			hits += c.Hits
		})
	}
	if preempted < 100 || hits < 1000 {
		t.Errorf("the cases hold %d preemptions and %d hit tokens: too few to show anything", preempted, hits)
	}
}

func (c *oracleCase) replay(t *testing.T) (preempted int) {
	s, err := New(Config{
		MaxNumBatchedTokens: c.BatchedTokens, MaxNumSeqs: c.Seqs, BlockSize: c.BlockSize, NumGPUBlocks: c.Blocks,
		MaxModelLen: c.MaxModelLen, EnableChunkedPrefill: c.Chunked, EnablePrefixCaching: c.PrefixCaching,
		LongPrefillTokenThreshold: c.Threshold, Priority: c.Priority, AsyncScheduling: c.Async, Watermark: c.Watermark,
		ReserveFullISL: c.FullISL, StreamInterval: 1, Release: 32,
	})
	if err != nil {
		t.Fatal(err)
	}
	depth := 1
	if c.Async {
		depth = 2
	}
	var flight []*Batch
	for k, want := range c.Steps {
		for i, r := range c.Requests {
			if r.At == k {
				err := s.Add(Request{ID: i, PromptTokens: r.Tokens, MaxTokens: r.MaxTokens, Priority: r.Priority,
					Arrival: time.Duration(i) * time.Second,
					Hashes:  chain(c.BlockSize, append(slices.Clone(r.Prompt), [2]int{r.Out, r.MaxTokens})...)})
				if err != nil {
					t.Fatal(err)
				}
			}
			if r.Abort == k {
				s.Abort(i)
			}
		}
		b := s.Schedule()
		items := [][2]int{}
		for _, it := range b.Items {
			items = append(items, [2]int{it.ID, it.Tokens})
		}
		victims := append([]int{}, b.Preempted...)
		slices.SortFunc(victims, cmp.Compare)
		preempted += len(victims)
		got, _ := json.Marshal([]any{items, victims, s.pool.free, s.Running(), s.Waiting()})
		exp, _ := json.Marshal(want)
		if string(got) != string(exp) {
			t.Fatalf("step %d:\ngot  %s\nvllm %s", k, got, exp)
		}
		flight = append(flight, b)
		if len(flight) < depth && s.Running()+s.Waiting() > 0 {
			continue
		}
		s.Update(flight[0])
		flight = flight[1:]
	}
	if st := s.Stats(); st.PrefixQueries != c.Queries || st.PrefixHits != c.Hits {
		t.Errorf("prefix queries %d, hits %d; vLLM counted %d, %d", st.PrefixQueries, st.PrefixHits, c.Queries, c.Hits)
	}
	if s.pool.free != c.Free || c.Free != c.Blocks-1 {
		t.Errorf("free blocks at the end: %d, vLLM %d, of %d", s.pool.free, c.Free, c.Blocks-1)
	}
	return preempted
}
