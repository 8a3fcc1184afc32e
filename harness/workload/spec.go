package workload

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Spec describes a workload by numbers; [Spec.Build] makes the requests. A request is a prefix of M x BlockSize tokens,
// then C fresh tokens that occur once in the run, then the generated tokens.
//
// What is measured is, by the first that is set:
//
//   - Users: conversations. Users of them at once, each of Turns requests; a turn's prompt is everything before it (the
//     prefix, earlier prompts and their outputs) and C fresh tokens, ThinkTime after the end of the turn before.
//   - Concurrency: a closed loop of that many requests in flight.
//   - Rate: an open loop; requests arrive whether or not the ones before have ended.
//   - Type mixed: a closed loop of B requests in flight, whose different output lengths let prompts arrive while others
//     decode.
//   - else: NumMeasurements batches of B requests, each batch sent at once when the one before has ended.
//
// Before that come, in waves of their own, the priming requests (when M > 0; prefix and one token, so that every block
// of the prefix is full and stays computed) and NumWarmup batches that are not measured.
type Spec struct {
	// C is the number of fresh prompt tokens, M the number of prefix blocks that are already computed, B the batch size.
	C, M, B int
	// BlockSize is in tokens, at least 1 when M > 0.
	BlockSize int
	// Type is prefill (1 output token), decode or mixed; "" is mixed.
	Type string
	// Prefix is shared (one prefix for all), own (one for each of the requests in flight, used again by those that
	// follow) or groups=G (G prefixes, dealt round-robin); "" is shared.
	Prefix string
	// OutputLen is a distribution for [ParseDist]. "" is 128, and 64 to 192 uniformly for mixed. prefill has 1 always.
	OutputLen string
	// NumWarmup and NumMeasurements count batches of requests in flight.
	NumWarmup, NumMeasurements int
	// Rate is for [ParseRate]. Burstiness is the gamma shape of the gaps; 0 and 1 are Poisson.
	Rate       string
	Burstiness float64
	// Clients is the number of independent closed loops that share Concurrency; 0 is 1.
	Concurrency, Clients int
	Users, Turns         int
	// ThinkTime is the pause before a user's next turn, or before a slot of Concurrency is filled again.
	ThinkTime time.Duration
	// NumRequests is the number of measured requests; 0 is NumMeasurements batches, and with a Duration as many as arrive,
	// or [MostInDuration] where completions set the pace. Conversations are not cut: it is rounded up to whole ones.
	NumRequests int
	// Duration ends sending; see [Workload]. 0 is no limit.
	Duration time.Duration
	// MaxModelLen is the context limit in tokens, prompt and output together; 0 is none.
	MaxModelLen int
	Seed        uint64
}

// MostInDuration is how many measured requests a closed loop of a given duration has at most, unless their number is
// given too.
const MostInDuration = 100_000

// Output lengths where none were asked for, and the range of mixed: [N/2, 3N/2].
const (
	defaultOutput      = "128"
	defaultMixedOutput = "64:192"
)

// FieldError says that a field's value is not allowed.
type FieldError struct {
	// Field is the name as in a configuration file: "C", "output_len".
	Field string
	// Value is what it was set to.
	Value any
	// Allowed is the allowed range or list, e.g. "at least 1".
	Allowed string
}

// Error is e.g. "B is 0: allowed is at least 1".
func (e *FieldError) Error() string {
	if s, ok := e.Value.(string); ok {
		return fmt.Sprintf("%s is %q: allowed is %s", e.Field, s, e.Allowed)
	}
	return fmt.Sprintf("%s is %v: allowed is %s", e.Field, e.Value, e.Allowed)
}

// Separate streams of random numbers, so that another rate leaves the lengths as they are.
const (
	streamLengths = iota + 1
	streamArrivals
)

// plan is a Spec with nothing left open.
type plan struct {
	Spec
	output Dist
	rate   Rate
	// places is the number of requests in flight: of a batch, a closed loop, or users.
	places int
	// prefixes is the number of different prefixes, 0 when M is 0.
	prefixes int
	turns    int
	// measured counts requests, conversations when there are users.
	measured int
	notes    []string
}

// Validate reports the first field that is not allowed, as [*FieldError]; the context limit is checked by [Spec.Build].
func (s Spec) Validate() error {
	_, err := s.resolve()
	return err
}

// resolve checks everything but the context limit.
func (s Spec) resolve() (*plan, error) {
	p := &plan{Spec: s, places: s.B, turns: 1}
	for _, c := range []struct {
		field    string
		value    int
		from, to int
	}{
		{"C", s.C, 1, maxCount}, {"M", s.M, 0, maxCount}, {"num_warmup", s.NumWarmup, 0, maxRequests},
		{"concurrency", s.Concurrency, 0, maxRequests}, {"clients", s.Clients, 0, max(1, s.Concurrency)},
		{"users", s.Users, 0, maxRequests}, {"num_requests", s.NumRequests, 0, maxRequests},
	} {
		if c.value < c.from || c.value > c.to {
			return nil, &FieldError{c.field, c.value, fmt.Sprintf("from %d to %d", c.from, c.to)}
		}
	}
	switch {
	case s.M > 0 && s.BlockSize < 1:
		return nil, &FieldError{"block_size", s.BlockSize, "at least 1 with M blocks"}
	case s.M > 0 && s.BlockSize > maxCount/s.M:
		return nil, &FieldError{"M", s.M, fmt.Sprintf("up to %d, for M x block_size tokens", maxCount/s.BlockSize)}
	case s.Duration < 0 || s.Duration > maxSeconds*time.Second/1000:
		return nil, &FieldError{"duration", s.Duration, "above 0, up to 100 days"}
	case s.Duration > 0 && s.Users == 0 && s.Concurrency == 0 && s.Rate == "" && s.Type != "mixed" && s.Type != "":
		return nil, &FieldError{"duration", s.Duration,
			"0 (unset) for batches, which have a number: set a rate, concurrency or users"}
	case s.NumMeasurements < 1 && s.NumRequests == 0 && s.Duration == 0:
		return nil, &FieldError{"num_measurements", s.NumMeasurements, "at least 1"}
	case s.ThinkTime < 0:
		return nil, &FieldError{"think_time", s.ThinkTime, "at least 0"}
	case !(s.Burstiness >= 0 && s.Burstiness <= maxRate):
		return nil, &FieldError{"burstiness", s.Burstiness, fmt.Sprintf("above 0 and up to %g", maxRate)}
	}
	switch {
	case s.Users > 0:
		p.places, p.turns = s.Users, s.Turns
		if s.Turns < 1 {
			return nil, &FieldError{"turns", s.Turns, "at least 1 with users"}
		}
	case s.Concurrency > 0:
		p.places = s.Concurrency
	case s.Rate != "":
		var err error
		if p.rate, err = ParseRate(s.Rate); err != nil {
			return nil, err
		}
	}
	if p.places < 1 || p.places > maxRequests {
		return nil, &FieldError{"B", s.B, fmt.Sprintf("from 1 to %d", maxRequests)}
	}
	p.measured = (s.NumRequests + p.turns - 1) / p.turns
	switch {
	case s.NumRequests > 0:
	case s.Duration > 0 && p.rate != (Rate{}):
		if most := maxRequests / 2 / p.rate.Mean(); s.Duration.Seconds() > most {
			return nil, &FieldError{"duration", s.Duration, fmt.Sprintf("up to %.0fs at rate %s", most, s.Rate)}
		}
	case s.Duration > 0:
		p.measured = max(MostInDuration, p.places) / p.turns
	default:
		if s.NumMeasurements > maxRequests/p.places/p.turns {
			return nil, &FieldError{"num_measurements", s.NumMeasurements,
				fmt.Sprintf("up to %d, for the requests of all batches",
					maxRequests/p.places/p.turns)}
		}
		p.measured = s.NumMeasurements * p.places
	}
	if s.NumWarmup > maxRequests/p.places {
		return nil, &FieldError{"num_warmup", s.NumWarmup, fmt.Sprintf("up to %d, for the requests of all batches",
			maxRequests/p.places)}
	}
	if err := p.resolvePrefix(); err != nil {
		return nil, err
	}
	return p, p.resolveOutput()
}

const maxRequests = 1 << 24

func (p *plan) resolvePrefix() error {
	groups := 1
	switch text, grouped := strings.CutPrefix(p.Prefix, "groups="); {
	case grouped:
		var err error
		if groups, err = strconv.Atoi(text); err != nil || groups < 1 || groups > maxRequests {
			return &FieldError{"prefix", p.Prefix, fmt.Sprintf("groups=G with G from 1 to %d", maxRequests)}
		}
	case p.Prefix == "own":
		groups = p.places
	case p.Prefix != "" && p.Prefix != "shared":
		return &FieldError{"prefix", p.Prefix, "shared, own, groups=G"}
	}
	if p.M > 0 {
		p.prefixes = groups
	}
	return nil
}

func (p *plan) resolveOutput() error {
	text := p.OutputLen
	switch p.Type {
	case "prefill":
		if text != "" && text != "1" {
			p.notes = append(p.notes, fmt.Sprintf("output_len %s does not apply to a prefill profile: 1 token is generated",
				text))
		}
		text = "1"
	case "decode":
		if text == "" {
			text = defaultOutput
		}
	case "mixed", "":
		if text == "" {
			text = defaultMixedOutput
		}
	default:
		return &FieldError{"profiling_type", p.Type, "prefill, decode, mixed"}
	}
	var err error
	if p.output, err = ParseDist(text); err != nil {
		return &FieldError{"output_len", text, distForms}
	}
	p.OutputLen = text
	return nil
}

// longest is the largest context that a request reaches with outputs of n tokens.
func (p *plan) longest(n int) int { return p.M*p.BlockSize + p.turns*(p.C+n) }

// reserve is the output length that the context must have room for. An unbounded distribution is cut to what is left.
func (p *plan) reserve() int {
	if p.output.Max() <= maxCount {
		return p.output.Max()
	}
	return max(1, int(p.output.Mean()))
}

// Fit scales M, and when that is not enough C, down to a context of maxModelLen tokens, and says what it changed. It
// changes nothing else; a Spec that Build refuses for other reasons comes back as it is.
func (s Spec) Fit(maxModelLen int) (Spec, []string) {
	p, err := s.resolve()
	if err != nil {
		return s, nil
	}
	n := p.reserve()
	if p.longest(n) <= maxModelLen {
		return s, nil
	}
	var notes []string
	need := fmt.Sprintf("M x block_size + C + output = %d tokens", p.longest(n))
	if p.turns > 1 {
		need = fmt.Sprintf("M x block_size + %d turns x (C + output) = %d tokens", p.turns, p.longest(n))
	}
	scale := func(field string, from, to int) {
		notes = append(notes, fmt.Sprintf("%s scaled from %d to %d: %s would not fit max_model_len %d", field, from, to, need,
			maxModelLen))
	}
	if p.M > 0 {
		to := max(0, maxModelLen-p.turns*(p.C+n)) / p.BlockSize
		scale("M", p.M, to)
		p.M = to
	}
	if p.longest(n) > maxModelLen {
		to := max(1, (maxModelLen-p.M*p.BlockSize)/p.turns-n)
		scale("C", p.C, to)
		p.C = to
	}
	s.M, s.C = p.M, p.C
	return s, notes
}

// KVBlocks is the number of KV blocks that a batch holds at its peak: each prefix once, and for each of the requests in
// flight (B, Concurrency or Users) the blocks behind its prefix when its last token is generated. The last token of an
// output never gets a slot in the cache (vLLM V1). It is 0 without a block size, or when Build would refuse the Spec.
func (s Spec) KVBlocks() int {
	p, err := s.resolve()
	if err != nil || s.BlockSize < 1 {
		return 0
	}
	behind := p.turns*(p.C+p.reserve()) - 1
	return min(p.prefixes, p.places)*p.M + p.places*((behind+p.BlockSize-1)/p.BlockSize)
}

// Build makes the requests. The same Spec gives the same Workload. Every refusal is a [*FieldError].
func (s Spec) Build() (*Workload, error) {
	p, err := s.plan()
	if err != nil {
		return nil, err
	}
	w := &Workload{Duration: s.Duration}
	if s.M > 0 {
		w.BlockSize = s.BlockSize
	}
	switch {
	case s.Users > 0:
		w.Concurrency = s.Users
	case s.Concurrency > 0:
		w.Concurrency, w.Clients, w.Think = s.Concurrency, s.Clients, s.ThinkTime
	case s.Rate == "" && (s.Type == "mixed" || s.Type == ""):
		w.Concurrency = s.B
	}
	w.Notes = p.build(func(r Request) bool {
		w.Requests = append(w.Requests, r)
		return true
	})
	return w, nil
}

// plan is resolve with the context limit checked.
func (s Spec) plan() (*plan, error) {
	p, err := s.resolve()
	if err != nil {
		return nil, err
	}
	if n := p.reserve(); s.MaxModelLen > 0 && p.longest(n) > s.MaxModelLen {
		return nil, p.tooLong(n)
	}
	return p, nil
}

// tooLong names the field to change: the one that takes most of the context.
func (p *plan) tooLong(n int) error {
	turns := ""
	if p.turns > 1 {
		turns = fmt.Sprintf("%d turns x ", p.turns)
	}
	sum := fmt.Sprintf("so that %d x %d + %s(%d + %d) tokens (M x block_size + %s(C + output)) fit max_model_len %d",
		p.M, p.BlockSize, turns, p.C, n, turns, p.MaxModelLen)
	prefix, rest := p.M*p.BlockSize, p.MaxModelLen-p.turns*(p.C+n)
	switch {
	case prefix >= max(p.turns*p.C, p.turns*n) && rest >= 0:
		return &FieldError{"M", p.M, fmt.Sprintf("from 0 to %d, %s", rest/p.BlockSize, sum)}
	case p.C >= n && (p.MaxModelLen-prefix)/p.turns-n >= 1:
		return &FieldError{"C", p.C, fmt.Sprintf("from 1 to %d, %s", (p.MaxModelLen-prefix)/p.turns-n, sum)}
	case (p.MaxModelLen-prefix)/p.turns-p.C >= 1:
		return &FieldError{"output_len", p.OutputLen, fmt.Sprintf("up to %d, %s", (p.MaxModelLen-prefix)/p.turns-p.C, sum)}
	}
	return &FieldError{"max_model_len", p.MaxModelLen, fmt.Sprintf("at least %d, %s", p.longest(n), sum)}
}

// builder makes requests, one after the other.
type builder struct {
	*plan
	put     func(Request) bool
	made    int
	stopped bool   // put wants no more
	next    uint64 // the last segment ID given out
	wave    int
	shared  []Segment // the prefixes
	lengths *rand.Rand
	cut     int
}

// build gives every request to put, until that returns false, and returns the workload's notes.
func (p *plan) build(put func(Request) bool) (notes []string) {
	b := builder{
		plan: p, put: put, next: finish(p.Seed) &^ (1<<40 - 1), lengths: rand.New(rand.NewPCG(p.Seed, streamLengths)),
	}
	b.prime()
	for range b.NumWarmup {
		for k := range b.places {
			b.give(b.request(k, Warmup, nil))
		}
		b.wave++
	}
	b.measure()
	notes = slices.Clone(p.notes)
	if b.cut > 0 {
		notes = append(notes, fmt.Sprintf("%d outputs of %s cut to fit max_model_len %d", b.cut, p.OutputLen, p.MaxModelLen))
	}
	return notes
}

// fresh is a segment that occurs nowhere else yet.
func (b *builder) fresh(tokens int) Segment {
	b.next++
	return Segment{b.next, tokens}
}

// give hands out a request, which has its place then.
func (b *builder) give(r Request) Request {
	r.Index, r.Wave = b.made, b.wave
	b.made++
	b.stopped = b.stopped || !b.put(r)
	return r
}

// prime gives one request per prefix. The token behind the prefix keeps the last block of the prefix from being the
// last block of the prompt, which no later request could take from the cache whole.
func (b *builder) prime() {
	if b.prefixes == 0 {
		return
	}
	for range b.prefixes {
		prefix := b.fresh(b.M * b.BlockSize)
		b.shared = append(b.shared, prefix)
		b.give(Request{
			After: -1, Phase: Prime, Prompt: []Segment{prefix, b.fresh(1)}, SharedTokens: prefix.Tokens, OutputTokens: 1,
		})
	}
	b.wave++
}

// request makes the k-th request of its kind. before is the turn before it, nil for none.
func (b *builder) request(k int, phase Phase, before *Request) Request {
	r := Request{After: -1, Phase: phase}
	switch {
	case before != nil:
		r.After, r.Think = before.Index, b.ThinkTime
		r.Prompt = make([]Segment, 0, len(before.Prompt)+2)
		r.Prompt = append(append(r.Prompt, before.Prompt...), Segment{before.OutputID, before.OutputTokens})
		r.SharedTokens = before.PromptTokens() + before.OutputTokens
	case b.prefixes > 0:
		prefix := b.shared[k%b.prefixes]
		r.Prompt = append(make([]Segment, 0, 2), prefix)
		r.SharedTokens = prefix.Tokens
	}
	r.Prompt = append(r.Prompt, b.fresh(b.C))
	r.OutputTokens = b.output.Draw(b.lengths)
	if b.MaxModelLen > 0 {
		// Every turn that follows keeps room for its own.
		if room := (b.MaxModelLen-b.M*b.BlockSize)/b.turns - b.C; r.OutputTokens > room {
			r.OutputTokens = room
			b.cut++
		}
	}
	return r
}

// measure gives the measured requests.
func (b *builder) measure() {
	switch {
	case b.Users > 0:
		for k := range b.measured {
			b.converse(k)
		}
	case b.rate != (Rate{}):
		b.arrive()
	default:
		batches := b.Concurrency == 0 && b.Type != "mixed" && b.Type != ""
		for k := range b.measured {
			if batches && k > 0 && k%b.places == 0 {
				b.wave++
			}
			b.give(b.request(k, Measured, nil))
		}
	}
}

// arrive gives the requests of an open loop.
func (b *builder) arrive() {
	k := 0
	for due := range b.rate.Arrivals(b.Burstiness, b.measured, b.Duration, rand.New(rand.NewPCG(b.Seed, streamArrivals))) {
		r := b.request(k, Measured, nil)
		r.Due = due
		b.give(r)
		if k++; b.stopped {
			return
		}
	}
	if k == 0 { // a short time at a low rate: one request is the least
		b.give(b.request(0, Measured, nil))
	}
}

// converse gives the k-th conversation.
func (b *builder) converse(k int) {
	var before *Request
	for turn := range b.turns {
		r := b.request(k, Measured, before)
		r.Session, r.Turn = fmt.Sprintf("user-%d", k), turn
		if turn < b.turns-1 {
			r.OutputID = b.fresh(1).ID
		}
		r = b.give(r)
		before = &r
	}
}
