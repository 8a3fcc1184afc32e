package layout

import "math/rand/v2"

// BlockTable lists the blocks of every sequence, in the order of their tokens: token t of sequence i is in slot
// t % BlockSize of block table[i][t/BlockSize].
type BlockTable [][]int32

// BlocksFor is how many blocks the given number of tokens takes.
func BlocksFor(tokens, blockSize int) int { return (tokens + blockSize - 1) / blockSize }

// Ordered gives sequence i the next counts[i] blocks, beginning with block 0.
func Ordered(counts []int) BlockTable { return deal(counts, func(i int) int32 { return int32(i) }) }

// Permuted deals counts[i] blocks to sequence i at random, none twice, out of the given number of blocks, which is at
// least the sum of counts. The same seed deals the same blocks.
func Permuted(counts []int, blocks int, seed uint64) BlockTable {
	order := rand.New(rand.NewPCG(seed, 0)).Perm(blocks)
	return deal(counts, func(i int) int32 { return int32(order[i]) })
}

// deal cuts the sequence of blocks at(0), at(1), ... into rows of counts.
func deal(counts []int, at func(int) int32) BlockTable {
	table, next := make(BlockTable, len(counts)), 0
	for i, n := range counts {
		table[i] = make([]int32, n)
		for j := range table[i] {
			table[i][j] = at(next)
			next++
		}
	}
	return table
}

// Find is the block and the slot in it of a sequence's token.
func (t BlockTable) Find(sequence, token, blockSize int) (block, slot int) {
	return int(t[sequence][token/blockSize]), token % blockSize
}

// SlotMapping lists the slots of tokens from up to but not including to of a sequence, counted through the whole cache:
// block x blockSize + slot, which is vLLM's slot_mapping.
func (t BlockTable) SlotMapping(sequence, from, to, blockSize int) []int64 {
	slots := make([]int64, 0, to-from)
	for token := from; token < to; token++ {
		block, slot := t.Find(sequence, token, blockSize)
		slots = append(slots, int64(block)*int64(blockSize)+int64(slot))
	}
	return slots
}
