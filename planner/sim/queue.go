package sim

// queue holds the waiting requests by slot: first come, first served with returns to the front, or a heap.
type queue struct {
	// less orders the heap; nil is first come, first served.
	less func(a, b int32) bool
	// ring holds the elements: a heap from index 0, or a ring of n elements from head. Its length is a power of two.
	ring []int32
	head int
	n    int
}

func (q *queue) at(i int) *int32 { return &q.ring[(q.head+i)&(len(q.ring)-1)] }

func (q *queue) grow() {
	if q.n < len(q.ring) {
		return
	}
	bigger := make([]int32, max(16, 2*len(q.ring)))
	for i := range q.n {
		bigger[i] = *q.at(i)
	}
	q.ring, q.head = bigger, 0
}

func (q *queue) peek() int32 { return *q.at(0) }

// push adds a request that has just come.
func (q *queue) push(x int32) {
	q.grow()
	q.n++
	*q.at(q.n - 1) = x
	if q.less != nil {
		q.up(q.n - 1)
	}
}

// prepend puts a request back in front of all others; in a heap, at its rank.
func (q *queue) prepend(x int32) {
	if q.less != nil {
		q.push(x)
		return
	}
	q.grow()
	q.head = (q.head - 1) & (len(q.ring) - 1)
	q.n++
	*q.at(0) = x
}

func (q *queue) pop() int32 {
	x := q.peek()
	if q.less != nil {
		q.removeAt(0)
		return x
	}
	q.head = (q.head + 1) & (len(q.ring) - 1)
	q.n--
	return x
}

// remove takes out a request that waits somewhere in the queue.
func (q *queue) remove(x int32) {
	for i := range q.n {
		if *q.at(i) == x {
			q.removeAt(i)
			return
		}
	}
}

func (q *queue) removeAt(i int) {
	q.n--
	if q.less == nil {
		for ; i < q.n; i++ {
			*q.at(i) = *q.at(i + 1)
		}
		return
	}
	*q.at(i) = *q.at(q.n)
	if i < q.n {
		q.down(i)
		q.up(i)
	}
}

func (q *queue) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		a, b := q.at(i), q.at(parent)
		if !q.less(*a, *b) {
			return
		}
		*a, *b = *b, *a
		i = parent
	}
}

func (q *queue) down(i int) {
	for {
		child := 2*i + 1
		if child >= q.n {
			return
		}
		if child+1 < q.n && q.less(*q.at(child + 1), *q.at(child)) {
			child++
		}
		a, b := q.at(child), q.at(i)
		if !q.less(*a, *b) {
			return
		}
		*a, *b = *b, *a
		i = child
	}
}
