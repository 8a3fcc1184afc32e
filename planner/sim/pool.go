package sim

import "math/bits"

// block is one KV block.
type block struct {
	hash       uint64
	prev, next int32 // in the queue of freed blocks
	twin       int32 // the next block with the same hash, in order of registration; 0 is none
	ref        int32 // requests that hold it
	indexed    bool  // findable under hash, until evicted
}

// pool is vLLM's BlockPool: reference counts, the free queue and the index from content hash to block.
//
// The free queue has three parts, taken from in this order: the stack, the blocks that were never used, and the queue.
// A new pool is all never used, so it costs nothing to make, however large the cache.
//
// Source: vllm/v1/core/block_pool.py and kv_cache_utils.py (FreeKVCacheBlockQueue), vLLM 0.24 to 0.33.
type pool struct {
	// pages hold the blocks below used: those that were ever used. The others up to size follow in ascending order. Block
	// 0 is the null block: never free and never held, its links are the ends of the queue.
	pages []*[pageSize]block
	used  int32
	size  int32
	free  int
	// stack holds freed blocks without a hash, the last of them used next. They cannot be hit, so they leave in no other
	// way.
	stack []int32
	// fifo is the order before vLLM 0.24: every freed block goes to the tail of the queue, hashed or not.
	fifo bool
	// index is an open-addressing table of first blocks, 0 is empty; made at the first registration, since many runs
	// share nothing.
	index []int32
	shift int
}

const pageSize = 256

// newPool makes a pool of n blocks, the null block included.
func newPool(n int, fifo bool) pool {
	return pool{pages: []*[pageSize]block{new([pageSize]block)}, used: 1, size: int32(n), free: n - 1, fifo: fifo}
}

func (p *pool) at(b int32) *block { return &p.pages[uint32(b)/pageSize][uint32(b)%pageSize] }

// unlink takes a block out of the queue.
func (p *pool) unlink(b int32) {
	x := p.at(b)
	p.at(x.prev).next, p.at(x.next).prev = x.next, x.prev
	p.free--
}

// pushBack puts a block at the tail of the queue.
func (p *pool) pushBack(b int32) {
	last := p.at(0).prev
	p.at(b).prev, p.at(b).next = last, 0
	p.at(last).next, p.at(0).prev = b, b
	p.free++
}

// take removes the head of the free queue for a new holder. Content that it still had is evicted here, lazily.
// The caller has checked that a block is free.
func (p *pool) take() int32 {
	var b int32
	switch n := len(p.stack); {
	case n > 0:
		b, p.stack = p.stack[n-1], p.stack[:n-1]
		p.free--
	case p.used < p.size:
		if b = p.used; b%pageSize == 0 {
			p.pages = append(p.pages, new([pageSize]block))
		}
		p.used++
		p.free--
	default:
		b = p.at(0).next
		p.unlink(b)
		if p.at(b).indexed {
			p.forget(b)
			p.at(b).indexed = false
		}
	}
	p.at(b).ref = 1
	return b
}

// touch adds a holder to a block that was hit; a block nobody held leaves the free queue.
func (p *pool) touch(b int32) {
	if p.at(b).ref == 0 {
		p.unlink(b)
	}
	p.at(b).ref++
}

// release gives back a request's blocks. The first full of them are full and hashed (none without prefix caching).
// Later blocks are evicted before earlier ones; blocks without a hash are reused first, the last of them at once.
func (p *pool) release(held []int32, full int) {
	if !p.fifo {
		for _, b := range held[full:] {
			p.at(b).ref--
			p.stack = append(p.stack, b)
			p.free++
		}
		held = held[:full]
	}
	for i := len(held) - 1; i >= 0; i-- {
		b := held[i]
		if p.at(b).ref--; p.at(b).ref == 0 {
			p.pushBack(b)
		}
	}
}

// slot is where a hash is, or would be, in the index.
func (p *pool) slot(hash uint64) int {
	mask := len(p.index) - 1
	i := int(hash * 0x9e3779b97f4a7c15 >> p.shift)
	for p.index[i] != 0 && p.at(p.index[i]).hash != hash {
		i = (i + 1) & mask
	}
	return i
}

// find is the block registered first under a hash; 0 when there is none.
func (p *pool) find(hash uint64) int32 {
	if p.index == nil {
		return 0
	}
	return p.index[p.slot(hash)]
}

// register makes a full block findable. Equal content may be held twice: vLLM does not merge blocks.
func (p *pool) register(b int32, hash uint64) {
	if p.index == nil {
		n := bits.Len(uint(2 * p.size))
		p.index, p.shift = make([]int32, 1<<n), 64-n
	}
	x := p.at(b)
	x.hash, x.twin, x.indexed = hash, 0, true
	i := p.slot(hash)
	if p.index[i] == 0 {
		p.index[i] = b
		return
	}
	last := p.index[i]
	for p.at(last).twin != 0 {
		last = p.at(last).twin
	}
	p.at(last).twin = b
}

// forget takes an indexed block out of the index.
func (p *pool) forget(b int32) {
	i := p.slot(p.at(b).hash)
	if first := p.index[i]; first != b {
		for p.at(first).twin != b {
			first = p.at(first).twin
		}
		p.at(first).twin = p.at(b).twin
		return
	}
	if t := p.at(b).twin; t != 0 {
		p.index[i] = t
		return
	}
	// Close the gap, so that later probes of the run need no tombstones.
	mask := len(p.index) - 1
	for j := (i + 1) & mask; p.index[j] != 0; j = (j + 1) & mask {
		home := int(p.at(p.index[j]).hash * 0x9e3779b97f4a7c15 >> p.shift)
		if (j-home)&mask >= (j-i)&mask {
			p.index[i] = p.index[j]
			i = j
		}
	}
	p.index[i] = 0
}
