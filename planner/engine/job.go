package engine

import (
	"sync"
	"time"
)

// Why a request ended, in vLLM's words.
const (
	endLength = "length"
	endAbort  = "abort"
)

// job is one request inside the engine. The step loop owns it; what the HTTP side may see is behind mu.
type job struct {
	// Set before submission and then only read.
	id       int
	prompt   []int32
	max      int // tokens that will be generated
	priority int
	interval int // tokens per streamed event
	streamed bool
	hashes   []uint64
	seed     uint64    // decides the output tokens
	arrived  time.Time // at the API server
	due      time.Time // when the scheduler may see it

	// The step loop's own.
	queued, scheduled, first, last time.Time
	made, preemptions              int

	mu     sync.Mutex
	ready  int // tokens that may be sent
	cached int // prompt tokens from the prefix cache, known with the first token
	end    string
	// notify has room for one: tokens that come while the HTTP side is busy are merged, as vLLM's
	// RequestOutputCollector does.
	notify chan struct{}
}

// deliver lets the HTTP side have n tokens in all, and the reason of the end when there is one.
func (j *job) deliver(n, cached int, end string) {
	j.mu.Lock()
	j.ready, j.cached, j.end = n, cached, end
	j.mu.Unlock()
	select {
	case j.notify <- struct{}{}:
	default:
	}
}

// state is what deliver said last.
func (j *job) state() (ready, cached int, end string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.ready, j.cached, j.end
}
