package workload

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
	hashes := make([]uint64, 0, tokens/blockSize)
	// Tokens are never looked at: a run of n tokens from position p of segment ID is told by (ID, p, n), and every
	// sequence of tokens splits into such runs in one way only, because a segment begins at its position 0.
	var h uint64
	room := blockSize
	for _, s := range prompt {
		for at := 0; at < s.Tokens; {
			n := min(room, s.Tokens-at)
			h = mix(mix(h, s.ID), uint64(at)<<32|uint64(n))
			at, room = at+n, room-n
			if room == 0 {
				hashes, room = append(hashes, h), blockSize
			}
		}
	}
	return hashes
}

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
