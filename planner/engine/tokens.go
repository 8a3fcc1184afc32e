package engine

// Text here is only a means to count: the engine has no vocabulary, so it cuts text into pieces of four bytes, and each
// piece is one token whose id is a hash of it. What the engine generates is such pieces, so that an answer sent back in
// the next turn of a conversation has the same token ids, and its blocks are found in the prefix cache.
const (
	pieceBytes = 4
	// reserved ids are never a piece of text: chat markers are taken from them.
	reserved = 16
)

// Markers begin each message of a chat.
const (
	markerOther = 1 + iota
	markerSystem
	markerUser
	markerAssistant
	markerTool
)

func marker(role string) int32 {
	switch role {
	case "system", "developer":
		return markerSystem
	case "user":
		return markerUser
	case "assistant":
		return markerAssistant
	case "tool":
		return markerTool
	}
	return markerOther
}

// mix folds v into the hash h (splitmix64's finisher).
func mix(h, v uint64) uint64 {
	x := h ^ v + 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// pieceID is the token id of up to four bytes of text, in [reserved, vocab).
func pieceID[T string | []byte](piece T, vocab int) int32 {
	h := uint64(len(piece))
	for i := range len(piece) {
		h = h<<8 | uint64(piece[i])
	}
	return int32(reserved + mix(0, h)%uint64(vocab-reserved))
}

// tokenize appends the token ids of text.
func tokenize(ids []int32, text string, vocab int) []int32 {
	for len(text) > pieceBytes {
		ids = append(ids, pieceID(text[:pieceBytes], vocab))
		text = text[pieceBytes:]
	}
	if text != "" {
		ids = append(ids, pieceID(text, vocab))
	}
	return ids
}

// appendPiece appends the text of a request's i-th output token: a syllable and a space, decided by the prompt (seed)
// and the position.
func appendPiece(text []byte, seed uint64, i int) []byte {
	const consonants, vowels = "bcdfghjklmnpqrstvwxyz", "aeiou"
	h := mix(seed, uint64(i))
	return append(text, consonants[h%21], vowels[h>>16%5], consonants[h>>32%21], ' ')
}

// outputID is the id of a request's i-th output token.
func outputID(seed uint64, i, vocab int) int32 {
	var piece [pieceBytes]byte
	return pieceID(appendPiece(piece[:0], seed, i), vocab)
}

// promptSeed is what decides a request's output: the whole prompt.
func promptSeed(prompt []int32) uint64 {
	h := uint64(len(prompt))
	for _, id := range prompt {
		h = mix(h, uint64(id))
	}
	return h
}

// blockHashes gives the chained content hash of each full block of prompt and output, as vLLM chains them: a salt
// enters the first block, and with it all others.
func blockHashes(prompt []int32, output, blockSize, vocab int, seed uint64, salt string) []uint64 {
	h := uint64(0)
	for i := range len(salt) {
		h = mix(h, uint64(salt[i])+1)
	}
	hashes := make([]uint64, 0, (len(prompt)+output)/blockSize)
	for i := range cap(hashes) * blockSize {
		id := int32(0)
		if i < len(prompt) {
			id = prompt[i]
		} else {
			id = outputID(seed, i-len(prompt), vocab)
		}
		h = mix(h, uint64(id))
		if (i+1)%blockSize == 0 {
			hashes = append(hashes, h)
		}
	}
	return hashes
}
