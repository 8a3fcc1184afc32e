package engine

import "sync"

// inbox is how the HTTP side reaches the step loop.
type inbox struct {
	// wake has room for one and is filled by every message.
	wake chan struct{}

	mu          sync.Mutex
	added       []*job
	aborted     []int
	drain, kill bool
	closed      bool
}

func newInbox() *inbox { return &inbox{wake: make(chan struct{}, 1)} }

// add submits a job; false when the engine is shutting down.
func (b *inbox) add(j *job) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.drain || b.kill || b.closed {
		return false
	}
	b.added = append(b.added, j)
	b.ping()
	return true
}

// abort ends a job that nobody waits for any more.
func (b *inbox) abort(id int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.aborted = append(b.aborted, id)
		b.ping()
	}
}

// stop refuses new jobs; with kill it also ends those that live.
func (b *inbox) stop(kill bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drain, b.kill = true, b.kill || kill
	b.ping()
}

// take empties the inbox.
func (b *inbox) take() (added []*job, aborted []int, kill, drain bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	added, aborted = b.added, b.aborted
	b.added, b.aborted = nil, nil
	return added, aborted, b.kill, b.drain
}

// close refuses everything from now on and gives what was not taken.
func (b *inbox) close() []*job {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	return b.added
}

func (b *inbox) ping() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}
