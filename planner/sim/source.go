package sim

import (
	"fmt"
	"time"

	"kvtune/harness/workload"
)

// source is where requests come from and where their records go.
type source interface {
	// Next, Pop, Done and Intended are as those of [workload.Schedule].
	Next() (index int, due time.Duration, ok bool)
	Pop()
	Done(index int, at time.Duration)
	Intended(index int) bool
	// begin makes the record of the request that Next gave, with what is known of it, and its Hashes.
	begin(index int) (*progress, []uint64)
	// finish takes the record of a request that has ended.
	finish(*progress) error
}

// planned is a workload in memory.
type planned struct {
	*workload.Schedule
	m *Runner
	w *workload.Workload
}

func (s *planned) begin(index int) (*progress, []uint64) {
	p := &s.m.progress[index]
	p.rec = &s.m.records[index]
	return p, s.m.prefixes.hashes(index, &s.w.Requests[index])
}

func (s *planned) finish(*progress) error { return nil }

// streamed is an open loop that is read while it is served.
type streamed struct {
	pull      func() (workload.Request, error, bool)
	done      func(*workload.Record) error
	hash      bool
	blockSize int

	head  workload.Request // due next
	ok    bool
	err   error
	index int
	spare []*progress

	wave   int
	start  time.Duration // of the wave
	latest time.Duration // end so far
	left   int           // requests sent that have not ended
}

// advance reads the next request. A request that cannot be served ends the stream.
func (s *streamed) advance() {
	due, wave := s.head.Due, s.head.Wave
	r, err, ok := s.pull()
	s.head, s.ok = r, ok && err == nil
	if !s.ok {
		s.err = err
		return
	}
	switch {
	case r.After >= 0:
		s.err = fmt.Errorf("request %d of a stream waits for request %d: expected After -1", s.index, r.After)
	case r.Wave < wave || r.Wave == wave && r.Due < due:
		s.err = fmt.Errorf("request %d of a stream is due at %v of wave %d, before the one before it: expected order of time",
			s.index, r.Due, r.Wave)
	case len(r.Prompt) == 0 || r.OutputTokens < 1:
		s.err = fmt.Errorf("request %d of a stream has %d prompt and %d output tokens: expected at least 1 each", s.index,
			r.PromptTokens(), r.OutputTokens)
	}
	s.ok = s.err == nil
	s.nextWave()
}

// nextWave begins the wave of the next request when the one before it has ended.
func (s *streamed) nextWave() {
	if s.ok && s.left == 0 && s.head.Wave != s.wave {
		s.wave, s.start = s.head.Wave, s.latest
	}
}

func (s *streamed) Next() (int, time.Duration, bool) {
	return s.index, s.start + s.head.Due, s.ok && s.head.Wave == s.wave
}

func (s *streamed) Pop() {
	s.index++
	s.left++
	s.advance()
}

func (s *streamed) Done(_ int, at time.Duration) {
	s.left--
	s.latest = max(s.latest, at)
	s.nextWave()
}

func (s *streamed) Intended(int) bool { return true }

func (s *streamed) begin(index int) (*progress, []uint64) {
	var p *progress
	if n := len(s.spare); n > 0 {
		p, s.spare = s.spare[n-1], s.spare[:n-1]
	} else {
		p = &progress{rec: &workload.Record{Tokens: make([]workload.TokenEvent, 0, 256)}}
	}
	rec, tokens := p.rec, p.rec.Tokens[:0]
	*rec = workload.NewRecord(&s.head)
	rec.Index, rec.Tokens = index, tokens
	*p = progress{rec: rec}
	return p, s.hashes()
}

// hashes are those of the blocks that the head may share with others.
func (s *streamed) hashes() []uint64 {
	if !s.hash || s.head.SharedTokens < s.blockSize {
		return nil
	}
	var prompt []workload.Segment
	left := s.head.SharedTokens
	for _, seg := range s.head.Prompt {
		if seg.Tokens = min(seg.Tokens, left); seg.Tokens == 0 {
			break
		}
		left -= seg.Tokens
		prompt = append(prompt, seg)
	}
	return workload.BlockHashes(prompt, s.blockSize)
}

func (s *streamed) finish(p *progress) error {
	err := s.done(p.rec)
	s.spare = append(s.spare, p)
	return err
}

// arena gives out pieces of memory for token events, all of which are free again after reset.
type arena struct {
	chunks [][]workload.TokenEvent
	at     int // the chunk in use
	used   int // of it
}

const arenaChunk = 1 << 13

func (a *arena) reset() { a.at, a.used = 0, 0 }

// room is an empty slice with space for n events.
func (a *arena) room(n int) []workload.TokenEvent {
	for a.at < len(a.chunks) && a.used+n > len(a.chunks[a.at]) {
		a.at, a.used = a.at+1, 0
	}
	if a.at == len(a.chunks) {
		a.chunks = append(a.chunks, make([]workload.TokenEvent, max(n, arenaChunk)))
	}
	from := a.used
	a.used += n
	return a.chunks[a.at][from:from:a.used]
}
