package sim

import "time"

// timeline is a queue in order of time; what has the same time stays in the order of push. What is pushed is nearly
// always the latest, or close to it.
type timeline[T any] struct {
	items []timed[T]
	head  int
}

type timed[T any] struct {
	at time.Duration
	x  T
}

func (q *timeline[T]) emptied() timeline[T] {
	clear(q.items)
	return timeline[T]{items: q.items[:0]}
}

// next is the time of the first element.
func (q *timeline[T]) next() (at time.Duration, ok bool) {
	if q.head == len(q.items) {
		return 0, false
	}
	return q.items[q.head].at, true
}

func (q *timeline[T]) push(at time.Duration, x T) {
	if q.head > 16 && 2*q.head > len(q.items) {
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	q.items = append(q.items, timed[T]{at, x})
	for i := len(q.items) - 1; i > q.head && q.items[i-1].at > at; i-- {
		q.items[i-1], q.items[i] = q.items[i], q.items[i-1]
	}
}

// pop takes the first element out.
func (q *timeline[T]) pop() T {
	q.head++
	return q.items[q.head-1].x
}
