package sim

import "math/bits"

// pool is vLLM's BlockPool: the free queue, reference counts and the index from content hash to block.
//
// A block that cannot be found by its content has no identity here: only how many such blocks a request holds, and
// where they stand in the free queue, makes a difference. A block gets a node when it is registered, and loses it when
// it is evicted. So a cache without shared content costs nothing, however large it is.
//
// The free queue has three parts, taken from in this order: returned, fresh, and the queue, a list of nodes.
//
// Source: vllm/v1/core/block_pool.py and kv_cache_utils.py (FreeKVCacheBlockQueue), vLLM 0.24 to 0.33.
type pool struct {
	free int // blocks in the free queue
	// returned are freed blocks without a hash, used again before all others; fresh were never used.
	returned, fresh int
	// nodes are registered blocks, and runs of others in the queue. Node 0 is the ends of the queue.
	nodes []node
	spare []int32 // nodes not in use
	// fifo is the order before vLLM 0.24: every freed block goes to the tail of the queue, hashed or not.
	fifo bool
	// index is an open-addressing table of first blocks, 0 is empty; made at the first registration, since many runs
	// share nothing.
	index []int32
	shift int
	size  int
	// again is how many blocks its holders hold beyond one holder each.
	again int
}

// node is a registered block, findable until it is evicted, or a run of blocks that cannot be found.
type node struct {
	hash       uint64
	prev, next int32 // in the queue
	twin       int32 // the next block with the same hash, in order of registration; 0 is none
	ref        int32 // requests that hold it
	run        int32 // length of the run; 0 is a registered block
}

// reset makes a pool of n blocks, the null block included, none of them used. It keeps memory.
func (p *pool) reset(n int, fifo bool) {
	*p = pool{
		free: n - 1, fresh: n - 1, size: n, fifo: fifo,
		nodes: append(p.nodes[:0], node{}), spare: p.spare[:0], index: p.index[:0],
	}
}

func (p *pool) add(x node) int32 {
	if n := len(p.spare); n > 0 {
		b := p.spare[n-1]
		p.spare = p.spare[:n-1]
		p.nodes[b] = x
		return b
	}
	p.nodes = append(p.nodes, x)
	return int32(len(p.nodes) - 1)
}

// unlink takes a node out of the queue.
func (p *pool) unlink(b int32) {
	x := &p.nodes[b]
	p.nodes[x.prev].next, p.nodes[x.next].prev = x.next, x.prev
}

// pushBack puts a node at the tail of the queue.
func (p *pool) pushBack(b int32) {
	last := p.nodes[0].prev
	p.nodes[b].prev, p.nodes[b].next = last, 0
	p.nodes[last].next, p.nodes[0].prev = b, b
}

// take removes n blocks from the head of the free queue. Content that they still had is evicted here, lazily. The
// caller has checked that they are free.
func (p *pool) take(n int) {
	p.free -= n
	k := min(n, p.returned)
	p.returned -= k
	n -= k
	k = min(n, p.fresh)
	p.fresh -= k
	for n -= k; n > 0; {
		b := p.nodes[0].next
		if x := &p.nodes[b]; int(x.run) > n {
			x.run -= int32(n)
			return
		} else if x.run > 0 {
			n -= int(x.run)
		} else {
			p.forget(b)
			n--
		}
		p.unlink(b)
		p.spare = append(p.spare, b)
	}
}

// touch adds a holder to a block that was hit; a block nobody held leaves the free queue.
func (p *pool) touch(b int32) {
	if p.nodes[b].ref == 0 {
		p.unlink(b)
		p.free--
	} else {
		p.again++
	}
	p.nodes[b].ref++
}

// release gives back a request's blocks: the registered ones, in order, behind them hashed ones of private content, and
// the rest without a hash. Later blocks are evicted before earlier ones; blocks without a hash are used again first.
func (p *pool) release(registered []int32, private, unhashed int) {
	p.free += private + unhashed
	if p.fifo {
		private += unhashed
	} else {
		p.returned += unhashed
	}
	if private > 0 {
		if last := p.nodes[0].prev; p.nodes[last].run > 0 {
			p.nodes[last].run += int32(private)
		} else {
			p.pushBack(p.add(node{run: int32(private)}))
		}
	}
	for i := len(registered) - 1; i >= 0; i-- {
		b := registered[i]
		if p.nodes[b].ref--; p.nodes[b].ref == 0 {
			p.pushBack(b)
			p.free++
		} else {
			p.again--
		}
	}
}

// slot is where a hash is, or would be, in the index.
func (p *pool) slot(hash uint64) int {
	mask := len(p.index) - 1
	i := int(hash * 0x9e3779b97f4a7c15 >> p.shift)
	for p.index[i] != 0 && p.nodes[p.index[i]].hash != hash {
		i = (i + 1) & mask
	}
	return i
}

// find is the block registered first under a hash; 0 when there is none.
func (p *pool) find(hash uint64) int32 {
	if len(p.index) == 0 {
		return 0
	}
	return p.index[p.slot(hash)]
}

// register makes a block that one request holds findable. Equal content may be held twice: vLLM does not merge blocks.
func (p *pool) register(hash uint64) int32 {
	if len(p.index) == 0 {
		n := bits.Len(uint(2 * p.size))
		p.shift = 64 - n
		if cap(p.index) < 1<<n {
			p.index = make([]int32, 1<<n)
		}
		p.index = p.index[:1<<n]
		clear(p.index)
	}
	b := p.add(node{hash: hash, ref: 1})
	i := p.slot(hash)
	if p.index[i] == 0 {
		p.index[i] = b
		return b
	}
	last := p.index[i]
	for p.nodes[last].twin != 0 {
		last = p.nodes[last].twin
	}
	p.nodes[last].twin = b
	return b
}

// forget takes a registered block out of the index.
func (p *pool) forget(b int32) {
	i := p.slot(p.nodes[b].hash)
	twin := p.nodes[b].twin
	if first := p.index[i]; first != b {
		for p.nodes[first].twin != b {
			first = p.nodes[first].twin
		}
		p.nodes[first].twin = twin
		return
	}
	if twin != 0 {
		p.index[i] = twin
		return
	}
	// Close the gap, so that later probes of the run need no tombstones.
	mask := len(p.index) - 1
	for j := (i + 1) & mask; p.index[j] != 0; j = (j + 1) & mask {
		home := int(p.nodes[p.index[j]].hash * 0x9e3779b97f4a7c15 >> p.shift)
		if (j-home)&mask >= (j-i)&mask {
			p.index[i] = p.index[j]
			i = j
		}
	}
	p.index[i] = 0
}
