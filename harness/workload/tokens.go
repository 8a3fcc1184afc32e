package workload

// firstToken leaves out the ids that models reserve for special tokens.
const firstToken = 16

// Tokens appends the token ids of a segment to out. The ids depend on the segment's ID, the position in it and the salt
// alone; they lie in [16, vocab), with vocab at least 17.
func Tokens(seg Segment, salt uint64, vocab int, out []int32) []int32 {
	span := uint64(max(vocab, firstToken+1) - firstToken)
	key := mix(seg.ID ^ mix(salt))
	for i := range seg.Tokens {
		out = append(out, int32(firstToken+mix(key^uint64(i))%span))
	}
	return out
}
