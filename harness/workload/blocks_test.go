package workload

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestTokensFollowTheSegment(t *testing.T) {
	long := Tokens(Segment{7, 1000}, 3, 4000, nil)
	seen := make(map[int32]int)
	for _, id := range long {
		if id < 16 || id >= 4000 {
			t.Fatalf("token id %d, want 16 to 3999", id)
		}
		seen[id]++
	}
	if len(seen) < 800 { // 1000 draws of 3984: about 885 different ones
		t.Errorf("only %d different ids in 1000", len(seen))
	}
	if short := Tokens(Segment{7, 10}, 3, 4000, []int32{1}); short[0] != 1 || !slices.Equal(short[1:], long[:10]) {
		t.Errorf("a shorter segment is %v, want %v behind what was there", short, long[:10])
	}
	for _, other := range [][]int32{Tokens(Segment{8, 1000}, 3, 4000, nil), Tokens(Segment{7, 1000}, 4, 4000, nil)} {
		same := 0
		for i := range other {
			if other[i] == long[i] {
				same++
			}
		}
		if same > 10 {
			t.Errorf("%d of 1000 tokens are those of another segment or salt", same)
		}
	}
	for vocab := range 20 {
		for _, id := range Tokens(Segment{1, 50}, 0, vocab, nil) {
			if id < 0 || id >= int32(max(vocab, 1)) {
				t.Errorf("token id %d of a vocabulary of %d", id, vocab)
			}
		}
	}
}

// The hashes of two prompts agree exactly as far as their tokens do, block for block.
func TestBlockHashesAgreeWithTokens(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for trial := range 2000 {
		blockSize := 1 + rng.IntN(8)
		var prompts [2][]Segment
		for i := range prompts {
			if i == 1 { // begin like the other one, often
				prompts[1] = slices.Clone(prompts[0][:rng.IntN(len(prompts[0])+1)])
			}
			for range 1 + rng.IntN(4) {
				prompts[i] = append(prompts[i], Segment{uint64(rng.IntN(3)), 1 + rng.IntN(12)})
			}
		}
		var tokens [2][]int32
		var hashes [2][]uint64
		for i, p := range prompts {
			for _, s := range p {
				tokens[i] = Tokens(s, 0, 1<<30, tokens[i])
			}
			if hashes[i] = BlockHashes(p, blockSize); len(hashes[i]) != len(tokens[i])/blockSize {
				t.Fatalf("%d hashes of %d tokens in blocks of %d", len(hashes[i]), len(tokens[i]), blockSize)
			}
		}
		for k := range min(len(hashes[0]), len(hashes[1])) {
			n := (k + 1) * blockSize
			if (hashes[0][k] == hashes[1][k]) != slices.Equal(tokens[0][:n], tokens[1][:n]) {
				t.Fatalf("trial %d, block %d of %d tokens: %v and %v", trial, k, blockSize, prompts[0], prompts[1])
			}
		}
	}
}

func TestHasherCountsSharedBlocksOnly(t *testing.T) {
	h := NewHasher(16)
	for i, c := range []struct {
		r    Request
		want []uint64
	}{
		{Request{Prompt: []Segment{{1, 40}, {2, 100}}, SharedTokens: 40}, []uint64{1, 2}},
		{Request{Prompt: []Segment{{1, 40}, {3, 100}}, SharedTokens: 40}, []uint64{1, 2}},
		{Request{Prompt: []Segment{{1, 40}, {2, 100}}, SharedTokens: 48}, []uint64{1, 2, 3}},
		{Request{Prompt: []Segment{{4, 40}}, SharedTokens: 40}, []uint64{4, 5}},
		{Request{Prompt: []Segment{{4, 40}}, SharedTokens: 15}, nil},
	} {
		if got := h.Prefix(&c.r); !slices.Equal(got, c.want) {
			t.Errorf("request %d: blocks %v, want %v", i, got, c.want)
		}
	}
	if got := NewHasher(0).Prefix(&Request{Prompt: []Segment{{1, 40}}, SharedTokens: 40}); got != nil {
		t.Errorf("blocks %v without a block size", got)
	}
}

func TestHeadLeavesThePromptAlone(t *testing.T) {
	prompt := []Segment{{1, 10}, {2, 10}}
	for tokens, want := range []string{"[]", "[{1 1}]"} {
		if got := fmt.Sprint(head(prompt, tokens)); got != want {
			t.Errorf("head of %d tokens: %s, want %s", tokens, got, want)
		}
	}
	if got := fmt.Sprint(head(prompt, 15), head(prompt, 30), prompt); got != "[{1 10} {2 5}] [{1 10} {2 10}] [{1 "+
		"10} {2 10}]" {
		t.Error(got)
	}
}
