package workload

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
)

// TraceOptions say how a trace is replayed.
type TraceOptions struct {
	// MaxModelLen is the context limit in tokens; a prompt, then an output, that does not fit is cut. 0 is none.
	MaxModelLen int
	// NumRequests keeps the first measured requests only; 0 keeps all.
	NumRequests int
	// Speed divides all times; 0 is 1.
	Speed float64
	// Rate stretches or shrinks all times so that the measured requests arrive at that mean rate per second; 0 leaves
	// them.
	Rate float64
	// Concurrency above 0 replays in a closed loop of that many requests (conversations) in flight, by Clients: the
	// requests keep their order and lose their times.
	Concurrency, Clients int
	// BlockSize is the server's, in tokens; 0 is unknown.
	BlockSize int
	Seed      uint64
}

// Formats names the trace formats that [ReadTrace] knows, each with what it looks like.
func Formats() []string {
	names := make([]string, len(formats), len(formats)+1)
	for i, f := range formats {
		names[i] = f.name + ": " + f.shape
	}
	return append(names, "results: what vllm bench serve --save-detailed, guidellm or aiperf wrote")
}

// format is one kind of trace file.
type format struct {
	name, shape string
	// is tells the format by the first line that is not empty.
	is   func(first []byte) bool
	read func(s *source, each func(row) error) error
	// anywhere says that times count from anywhere: they are made to begin at 0.
	anywhere bool
}

var formats = [...]format{
	{"azure", "CSV with the columns TIMESTAMP, ContextTokens, GeneratedTokens", isAzure, readAzure, true},
	{"mooncake", `lines of {"timestamp": ms, "input_length": ..., "output_length": ..., "hash_ids": [one per 512 tokens]}`,
		isMooncake, readMooncake, false},
	{"vidur", "CSV with the columns arrived_at (s), num_prefill_tokens, num_decode_tokens", isVidur, readVidur, true},
	{"requests", `lines of {"due_s" or "sent_s": ..., "prompt_tokens": ..., "output_tokens": ...} as kvtune writes them`,
		isRequests, readRequests, false},
	{"log", "CSV with a column each for time (time, timestamp, arrived_at, ...), input (prompt_tokens, input_tokens, " +
		"...) and output (output_tokens, completion_tokens, ...), and optionally session", isLog, readLog, true},
}

// row is one request of a trace.
type row struct {
	index          int
	at             time.Duration // due, from any origin
	prompt, output int           // tokens
	// Leading blocks of hashBlock tokens that are equal where their hashes are; the last may be cut by the prompt's end.
	hashes    []uint64
	hashBlock int
	// shared counts leading tokens of which only their number is known to be shared.
	shared int

	session string
	turn    int
	think   time.Duration
	end     time.Duration // of the last token, by the same origin as at; or unknown

	phase    Phase
	probe    string
	class    string
	priority int
	lora     string
}

// unknown is the end of a request of which the trace does not say it.
const unknown time.Duration = -1

// ReadTrace reads a trace file, as it is or compressed with zstd, and makes the workload that replays it. The format is
// told by the first line; see [Formats]. name is for errors, which give the line and what was expected.
//
// Content that the trace says is shared is shared again: equal hash blocks, and in conversations (session and turn) a
// turn's prompt is the one before with its output and fresh tokens behind. Everything else is fresh. What had to be
// changed - cut to the context, no output tokens, a file that ends in the middle - is counted in the Notes; no request
// is left out silently.
//
// A requests file is replayed by due_s, or by sent_s where nothing was due; priming, warm-up and each probe are waves.
func ReadTrace(name string, r io.Reader, opt TraceOptions) (*Workload, error) {
	if !(opt.Speed >= 0 && opt.Rate >= 0 && opt.Speed <= maxRate && opt.Rate <= maxRate) {
		return nil, fmt.Errorf("trace speed %g and rate %g: expected from 0 (as recorded) to %g", opt.Speed, opt.Rate,
			maxRate)
	}
	s, err := open(name, r)
	if err != nil {
		return nil, err
	}
	defer s.close()
	var rows []row
	anywhere, err := s.read(func(x row) error {
		rows = append(rows, x)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if anywhere {
		rows = fromZero(rows)
	}
	if len(rows) == 0 {
		return nil, fmt.Errorf("%s has no requests", name)
	}
	w, err := replay(rows, opt)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	w.Notes = append(w.Notes, s.notes()...)
	return w, nil
}

// Replay makes the workload that replays records, as [ReadTrace] makes it of their file.
func Replay(records []Record, opt TraceOptions) (*Workload, error) {
	if len(records) == 0 {
		return nil, errors.New("no requests to replay")
	}
	rows := make([]row, len(records))
	for i := range records {
		rows[i] = rowOf(&records[i])
	}
	return replay(rows, opt)
}

func replay(rows []row, opt TraceOptions) (*Workload, error) {
	t := newTrace(opt)
	t.rows = rows
	return t.workload()
}

// source gives the lines of a trace file.
type source struct {
	name  string
	r     *bufio.Reader
	close func()
	first []byte // the beginning of the first line that is not empty
	head  []byte // the beginning of the file from there on
	line  int    // how many lines were consumed
	count int    // rows given out
	cut   bool   // the file ended in the middle
}

// maxWindow and maxLine bound the memory that a file can ask for.
const (
	maxWindow = 128 << 20
	maxLine   = 256 << 20
)

func open(name string, r io.Reader) (*source, error) {
	s := &source{name: name, r: bufio.NewReaderSize(r, 1<<16), close: func() {}}
	if head, _ := s.r.Peek(4); bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}) {
		// One goroutine and no decoding in advance: the lines before a cut must come out.
		z, err := zstd.NewReader(s.r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow),
			zstd.WithDecodeBuffersBelow(0))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		s.r, s.close = bufio.NewReaderSize(z, 1<<16), z.Close
	}
	if head, _ := s.r.Peek(3); bytes.Equal(head, []byte{0xef, 0xbb, 0xbf}) { // a byte order mark
		_, _ = s.r.Discard(3)
	}
	return s, nil
}

// read finds the format and gives every row to each, in the file's order. anywhere is the format's.
func (s *source) read(each func(row) error) (anywhere bool, err error) {
	if err := s.peek(); err != nil {
		return false, err
	}
	if isForeign(s.head) {
		return false, readForeignRows(s, each)
	}
	for _, f := range formats {
		if f.is(s.first) {
			return f.anywhere, f.read(s, each)
		}
	}
	s.line++
	return false, s.fail("not a trace: found %q, expected one of\n  %s", s.first[:min(len(s.first), 80)],
		strings.Join(Formats(), "\n  "))
}

// peek finds the first line that is not empty, and keeps its first 64 KiB. Empty lines are consumed.
func (s *source) peek() error {
	for {
		head, err := s.r.Peek(1)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return fmt.Errorf("%s is empty: expected a trace", s.name)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if len(bytes.TrimSpace(head)) > 0 {
			break
		}
		if head[0] == '\n' {
			s.line++
		}
		_, _ = s.r.Discard(1)
	}
	head, _ := s.r.Peek(1 << 16) // all there is, when the file is shorter
	s.head = bytes.Clone(head)
	line, _, _ := bytes.Cut(head, []byte{'\n'})
	s.first = bytes.TrimSpace(bytes.Clone(line))
	return nil
}

// next is the next line that is not empty. whole is false for a last line without its end. It returns io.EOF at the
// end, and sets cut where compressed data ends early.
func (s *source) next() (line []byte, whole bool, err error) {
	for {
		var long []byte
		piece, err := s.r.ReadSlice('\n')
		for err == bufio.ErrBufferFull {
			if long = append(long, piece...); len(long) > maxLine {
				s.line++
				return nil, false, s.fail("the line is longer than %d MiB", maxLine>>20)
			}
			piece, err = s.r.ReadSlice('\n')
		}
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return nil, false, fmt.Errorf("%s: %w", s.name, err)
		}
		s.cut = s.cut || err == io.ErrUnexpectedEOF
		if long != nil {
			piece = append(long, piece...)
		}
		s.line++
		if line = bytes.TrimSpace(piece); len(line) > 0 {
			return line, err == nil, nil
		}
		if err != nil {
			return nil, false, io.EOF
		}
	}
}

// notes say that the file ended in the middle.
func (s *source) notes() []string {
	if !s.cut {
		return nil
	}
	return []string{fmt.Sprintf("%s ends in the middle of a line: its %d whole ones are replayed", s.name, s.count)}
}

// fail is an error that names the file and the line.
func (s *source) fail(format string, args ...any) error {
	return fmt.Errorf("%s, line %d: %w", s.name, max(s.line, 1), fmt.Errorf(format, args...))
}

// trace turns rows into a workload.
type trace struct {
	opt  TraceOptions
	rows []row

	next   uint64            // the last segment ID given out
	blocks map[uint64]uint64 // segment IDs of hash blocks
	uses   map[uint64]int    // how many requests begin with which hash blocks
	common map[string]uint64 // segment IDs of prefixes of which only the length is known
	last   map[string]int    // the request that is a session's latest turn

	wave                                     int
	added                                    int // requests
	noOutput, noPrompt, cutPrompt, cutOutput int
	lengthOnly, broken                       int
}

func newTrace(opt TraceOptions) *trace {
	return &trace{opt: opt, next: finish(opt.Seed+1) &^ (1<<40 - 1)}
}

func (t *trace) workload() (*Workload, error) {
	t.order()
	t.keep()
	scale, err := t.scale()
	if err != nil {
		return nil, err
	}
	t.blocks, t.uses = make(map[uint64]uint64), make(map[uint64]int)
	t.common, t.last = make(map[string]uint64), make(map[string]int)
	for i := range t.rows {
		for _, h := range t.rows[i].hashes {
			t.uses[h]++
		}
	}
	w := &Workload{Concurrency: t.opt.Concurrency, Clients: t.opt.Clients, Requests: make([]Request, 0, len(t.rows))}
	var origin time.Duration // the first wave keeps its times
	end := unknown
	for i := range t.rows {
		x := &t.rows[i]
		if i > 0 && !sameWave(x, &t.rows[i-1]) {
			// The wave began when the one before had ended; where that is not known, with its first request.
			t.wave++
			if origin = end; end < 0 || end > x.at {
				origin = x.at
			}
			end = unknown
		}
		end = max(end, x.end)
		t.add(w, x, scale, origin)
		if w.Requests[i].SharedTokens > 0 {
			w.BlockSize = cmp.Or(t.opt.BlockSize, x.hashBlock)
		}
	}
	w.Notes = t.notes()
	return w, w.Validate()
}

// sameWave reports whether two rows belong to the same part of a run: probes, priming and warm-up were waves.
func sameWave(a, b *row) bool { return a.probe == b.probe && a.phase == b.phase }

// order brings the rows into waves, in the order in which these appear, and sorts each: by time, or by index for a
// closed loop, whose clients took the requests in that order.
func (t *trace) order() {
	type part struct {
		probe string
		phase Phase
	}
	parts := make(map[part]int)
	wave := make([]int, len(t.rows))
	order := make([]int, len(t.rows))
	for i := range t.rows {
		p := part{t.rows[i].probe, t.rows[i].phase}
		if _, ok := parts[p]; !ok {
			parts[p] = len(parts)
		}
		wave[i], order[i] = parts[p], i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		x, y := &t.rows[a], &t.rows[b]
		if t.opt.Concurrency > 0 {
			return cmp.Or(cmp.Compare(wave[a], wave[b]), cmp.Compare(x.index, y.index))
		}
		return cmp.Or(cmp.Compare(wave[a], wave[b]), cmp.Compare(x.at, y.at), cmp.Compare(x.index, y.index))
	})
	sorted := make([]row, len(t.rows))
	for i, k := range order {
		sorted[i] = t.rows[k]
	}
	t.rows = sorted
}

// keep drops the measured rows beyond NumRequests.
func (t *trace) keep() {
	if t.opt.NumRequests == 0 {
		return
	}
	kept, measured := t.rows[:0], 0
	for _, x := range t.rows {
		if x.phase == Measured {
			if measured++; measured > t.opt.NumRequests {
				continue
			}
		}
		kept = append(kept, x)
	}
	t.rows = kept
}

// scale is by what times are multiplied.
func (t *trace) scale() (float64, error) {
	n, from, to := 0, time.Duration(math.MaxInt64), time.Duration(math.MinInt64)
	for i := range t.rows {
		if x := &t.rows[i]; x.phase == Measured {
			n, from, to = n+1, min(from, x.at), max(to, x.at)
		}
	}
	return t.opt.scale(n, to-from)
}

// scale is by what the times of n measured requests are multiplied, the last of which comes so long after the first.
func (opt *TraceOptions) scale(n int, span time.Duration) (float64, error) {
	switch {
	case opt.Rate == 0 || opt.Concurrency > 0:
		return 1 / cmp.Or(opt.Speed, 1), nil
	case n < 2 || span == 0:
		return 0, fmt.Errorf("all requests arrive at once: they cannot be brought to a rate of %g/s", opt.Rate)
	}
	return float64(n-1) / span.Seconds() / opt.Rate, nil
}

func stretch(d time.Duration, scale float64) time.Duration {
	return time.Duration(math.Min(float64(max(0, d))*scale, maxSeconds*1e9))
}

func (t *trace) fresh(tokens int) Segment {
	t.next++
	return Segment{t.next, tokens}
}

// add appends the request that replays x.
func (t *trace) add(w *Workload, x *row, scale float64, origin time.Duration) {
	r := Request{
		Index: t.added, After: -1, Wave: t.wave, Phase: x.phase, Probe: x.probe, Session: x.session, Turn: x.turn,
		Class: x.class, Priority: x.priority, LoRA: x.lora, OutputTokens: x.output,
	}
	if x.output == 0 {
		t.noOutput++
		r.OutputTokens = 1
	}
	prompt := x.prompt
	if prompt == 0 {
		t.noPrompt++
		prompt = 1
	}
	if limit := t.opt.MaxModelLen; limit > 0 && prompt+r.OutputTokens > limit {
		if to := max(1, limit-r.OutputTokens); to < prompt {
			t.cutPrompt++
			prompt = to
		}
		if to := max(1, limit-prompt); to < r.OutputTokens {
			t.cutOutput++
			r.OutputTokens = to
		}
	}
	before := t.turnBefore(w, x)
	continues := before != nil && before.PromptTokens()+before.OutputTokens <= x.prompt
	if before != nil && !continues {
		t.broken++ // the client shortened the conversation: what it kept is not known
	}
	switch {
	case continues:
		if before.OutputID == 0 {
			before.OutputID = t.fresh(1).ID
		}
		history := append(slices.Clip(before.Prompt), Segment{before.OutputID, before.OutputTokens})
		r.Prompt = slices.Clip(head(history, prompt))
		r.SharedTokens = r.PromptTokens()
	case len(x.hashes) > 0:
		r.Prompt, r.SharedTokens = t.hashed(x, prompt)
	case x.shared > 0 && x.turn == 0:
		t.lengthOnly++
		r.SharedTokens = min(x.shared, prompt)
		r.Prompt = []Segment{{t.commonID(x.probe), r.SharedTokens}}
	}
	if rest := prompt - r.PromptTokens(); rest > 0 {
		r.Prompt = append(r.Prompt, t.fresh(rest))
	}
	if t.opt.Concurrency == 0 {
		r.Due = stretch(x.at-origin, scale)
	}
	if before != nil {
		t.follow(&r, x, before, scale)
	}
	if x.session != "" {
		t.last[x.session] = r.Index
	}
	w.Requests = append(w.Requests, r)
	t.added++
}

// turnBefore is the request that x continues, nil for none.
func (t *trace) turnBefore(w *Workload, x *row) *Request {
	if i, ok := t.last[x.session]; ok && x.session != "" && x.turn == w.Requests[i].Turn+1 &&
		w.Requests[i].Wave == t.wave {
		return &w.Requests[i]
	}
	return nil
}

// follow makes r wait for the turn before, where it is known how long its user thought; else its own time holds. In a
// closed loop there are no times.
func (t *trace) follow(r *Request, x *row, before *Request, scale float64) {
	think, known := x.think, x.think > 0
	if end := t.rows[before.Index].end; !known && end != unknown {
		think, known = max(0, x.at-end), true
	}
	if known || t.opt.Concurrency > 0 {
		r.After, r.Think, r.Due = before.Index, stretch(think, scale), 0
	}
}

// hashed is the part of a prompt that hash blocks describe, and how many of its leading tokens other requests have.
func (t *trace) hashed(x *row, prompt int) (segments []Segment, shared int) {
	segments = make([]Segment, 0, len(x.hashes)+1)
	open := true
	for _, h := range x.hashes {
		n := min(x.hashBlock, prompt)
		if n <= 0 {
			break
		}
		id, ok := t.blocks[h]
		if !ok {
			id = t.fresh(n).ID
			t.blocks[h] = id
		}
		segments = append(segments, Segment{id, n})
		prompt -= n
		if open = open && t.uses[h] > 1; open {
			shared += n
		}
	}
	return segments, shared
}

func (t *trace) commonID(probe string) uint64 {
	id, ok := t.common[probe]
	if !ok {
		id = t.fresh(1).ID
		t.common[probe] = id
	}
	return id
}

func (t *trace) notes() []string {
	var notes []string
	note := func(n int, format string, args ...any) {
		if n > 0 {
			notes = append(notes, fmt.Sprintf("%d of %d "+format, append([]any{n, t.added}, args...)...))
		}
	}
	note(t.cutPrompt, "prompts cut to fit max_model_len %d", t.opt.MaxModelLen)
	note(t.cutOutput, "outputs cut to fit max_model_len %d", t.opt.MaxModelLen)
	note(t.noOutput, "requests have no output tokens: replayed with 1")
	note(t.noPrompt, "requests have no prompt tokens: replayed with 1")
	note(t.broken, "turns have a shorter prompt than the conversation before them: replayed with a fresh prompt")
	note(t.lengthOnly, "requests share a prefix of which only the length is known: replayed with one prefix for all")
	return notes
}
