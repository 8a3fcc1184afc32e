package workload

// BlockHashes are the chained content hashes of a prompt's full blocks of blockSize tokens: block i of two prompts has
// the same hash exactly when the prompts agree in every token up to the end of block i (but for collisions of 64 bits).
// A last partial block has none, as in vLLM (vllm/v1/core/kv_cache_utils.py, get_request_block_hasher).
func BlockHashes(prompt []Segment, blockSize int) []uint64 {
	total := 0
	for _, s := range prompt {
		total += s.Tokens
	}
	if blockSize < 1 || total < blockSize {
		return nil
	}
	hashes := make([]uint64, 0, total/blockSize)
	chain, room := uint64(0), blockSize
	for _, s := range prompt {
		for offset := 0; offset < s.Tokens; {
			n := min(room, s.Tokens-offset)
			// A piece is known by its segment, where in it it begins and how long it is.
			chain = mix(chain ^ mix(s.ID^mix(uint64(offset)<<32|uint64(n))))
			offset += n
			if room -= n; room == 0 {
				hashes = append(hashes, chain)
				room = blockSize
			}
		}
	}
	return hashes
}

// mix is the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) on x + golden ratio: a bijection of 64 bits.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Hasher names the blocks that requests of one file may share by small numbers, in the order in which they are first
// seen: the form of Record.PrefixHashes.
type Hasher struct {
	blockSize int
	names     map[uint64]uint64
}

// NewHasher names blocks of blockSize tokens.
func NewHasher(blockSize int) *Hasher {
	return &Hasher{blockSize: blockSize, names: map[uint64]uint64{}}
}

// Prefix names the full blocks within the request's shared tokens.
func (h *Hasher) Prefix(r *Request) []uint64 {
	n := 0
	if h.blockSize > 0 {
		n = r.SharedTokens / h.blockSize
	}
	if n == 0 {
		return nil
	}
	hashes := BlockHashes(r.Prompt, h.blockSize)
	names := make([]uint64, min(n, len(hashes)))
	for i := range names {
		name, ok := h.names[hashes[i]]
		if !ok {
			name = uint64(len(h.names)) + 1
			h.names[hashes[i]] = name
		}
		names[i] = name
	}
	return names
}
