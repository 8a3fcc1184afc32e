package workload

import "slices"

// BlockHashes are the chained content hashes of a prompt's full blocks of blockSize tokens: block i of two prompts has
// the same hash if and only if the prompts agree in every token up to the end of block i (but for collisions of 64
// bits). A last partial block has none, as in vLLM (vllm/v1/core/kv_cache_utils.py, get_request_block_hasher).
func BlockHashes(prompt []Segment, blockSize int) []uint64 {
	tokens := 0
	for _, s := range prompt {
		tokens += s.Tokens
	}
	if blockSize < 1 || tokens < blockSize {
		return nil
	}
	c := NewBlockChain(blockSize)
	c.Append(prompt...)
	return c.hashes
}

// BlockChain is [BlockHashes] of a prompt that grows. A copy goes on from the same prompt; of several copies one at
// most may be appended to, since they share memory.
type BlockChain struct {
	blockSize int
	hashes    []uint64
	h         uint64
	room      int // of the last block
}

// NewBlockChain is the chain of an empty prompt; blockSize is at least 1.
func NewBlockChain(blockSize int) BlockChain {
	return BlockChain{blockSize: blockSize, room: blockSize}
}

// Append makes the prompt longer. Tokens are never looked at: a run of n tokens from position p of segment ID is told
// by (ID, p, n), and every sequence of tokens splits into such runs in one way only, because a segment begins at its
// position 0.
func (c *BlockChain) Append(segments ...Segment) {
	tokens := c.blockSize - c.room
	for _, s := range segments {
		tokens += s.Tokens
	}
	c.hashes = slices.Grow(c.hashes, tokens/c.blockSize)
	for _, s := range segments {
		for at := 0; at < s.Tokens; {
			n := min(c.room, s.Tokens-at)
			c.h = mix(mix(c.h, s.ID), uint64(at)<<32|uint64(n))
			at, c.room = at+n, c.room-n
			if c.room == 0 {
				c.hashes, c.room = append(c.hashes, c.h), c.blockSize
			}
		}
	}
}

// Hashes are those of the full blocks. They stay as they are when the prompt grows.
func (c *BlockChain) Hashes() []uint64 { return c.hashes[:len(c.hashes):len(c.hashes)] }

// Hasher names the blocks that requests may share by small numbers, from 1 in the order in which it first sees them:
// equal numbers are equal prefixes. It fills [Record].PrefixHashes. It is not safe for concurrent use.
type Hasher struct {
	blockSize int
	numbers   map[uint64]uint64
}

// NewHasher makes a Hasher for blocks of blockSize tokens; with blockSize 0 there are no blocks.
func NewHasher(blockSize int) *Hasher { return &Hasher{blockSize, make(map[uint64]uint64)} }

// Prefix is the numbers of the full blocks within the tokens that r may share with others.
func (h *Hasher) Prefix(r *Request) []uint64 {
	hashes := BlockHashes(head(r.Prompt, r.SharedTokens), h.blockSize)
	for i, x := range hashes {
		number, ok := h.numbers[x]
		if !ok {
			number = uint64(len(h.numbers)) + 1
			h.numbers[x] = number
		}
		hashes[i] = number
	}
	return hashes
}

// head is the first tokens of a prompt. It does not change prompt, but shares its memory where it can.
func head(prompt []Segment, tokens int) []Segment {
	for i, s := range prompt {
		if tokens < s.Tokens {
			prompt = prompt[:i:i]
			if tokens > 0 {
				prompt = append(prompt, Segment{s.ID, tokens})
			}
			return prompt
		}
		tokens -= s.Tokens
	}
	return prompt
}
