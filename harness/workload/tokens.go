package workload

// reservedIDs are left out of made-up prompts: the first ids of a vocabulary are special tokens (end of text, padding).
const reservedIDs = 16

// Tokens appends the token ids of a segment to out. They lie in [16, vocab), or in [0, vocab) for a vocabulary of at
// most 16, and depend on the segment's ID, the position and salt only: a shorter segment of the same ID is a prefix of
// a longer one.
func Tokens(seg Segment, salt uint64, vocab int, out []int32) []int32 {
	low := uint64(reservedIDs)
	if vocab <= reservedIDs {
		low = 0
	}
	n := uint64(max(vocab, 1)) - low
	state := mix(mix(0, salt), seg.ID)
	for range seg.Tokens {
		state += golden
		out = append(out, int32(low+(finish(state)>>32*n)>>32)) // a multiplication instead of a division
	}
	return out
}

// golden is the increment of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), finish its finalizer.
const golden = 0x9e3779b97f4a7c15

func finish(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// mix folds v into the hash h.
func mix(h, v uint64) uint64 { return finish(finish(h+golden) + v) }
