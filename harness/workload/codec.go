package workload

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"
)

// NewRecord is the record of a request that has not been sent: what is known of it beforehand.
func NewRecord(r *Request) Record {
	return Record{
		Index: r.Index, Probe: r.Probe, Phase: r.Phase,
		PromptTokens: r.PromptTokens(), SharedPrefixTokens: r.SharedTokens, AskedTokens: r.OutputTokens,
		Session: r.Session, Turn: r.Turn, Think: r.Think,
		Class: r.Class, Priority: r.Priority, LoRA: r.LoRA,
	}
}

// MarshalJSON writes one line of a requests file, without a line end. Times are decimal seconds, exact to 1 ns.
// due_s, cached_tokens, finish_reason and error are null where there is none; other keys without a value are left out.
func (r Record) MarshalJSON() ([]byte, error) {
	b := make([]byte, 0, 256+16*len(r.Tokens))
	b = append(b, `{"index":`...)
	b = strconv.AppendInt(b, int64(r.Index), 10)
	b = appendText(b, "probe", r.Probe)
	b = appendText(b, "phase", string(r.Phase))
	b = append(b, `,"due_s":`...)
	if r.Due != nil {
		b = appendSeconds(b, *r.Due)
	} else {
		b = append(b, "null"...)
	}
	b = append(b, `,"sent_s":`...)
	b = appendSeconds(b, r.Sent)
	b = append(b, `,"prompt_tokens":`...)
	b = strconv.AppendInt(b, int64(r.PromptTokens), 10)
	b = append(b, `,"cached_tokens":`...)
	if r.CachedTokens != nil {
		b = strconv.AppendInt(b, int64(*r.CachedTokens), 10)
	} else {
		b = append(b, "null"...)
	}
	b = appendCount(b, "shared_prefix_tokens", r.SharedPrefixTokens)
	b = appendCount(b, "asked_tokens", r.AskedTokens)
	b = append(b, `,"output_tokens":`...)
	b = strconv.AppendInt(b, int64(r.OutputTokens), 10)
	b = append(b, `,"token_times_s":[`...)
	for i, e := range r.Tokens {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '[')
		b = appendSeconds(b, e.At)
		b = append(b, ',')
		b = strconv.AppendInt(b, int64(e.Tokens), 10)
		b = append(b, ']')
	}
	b = append(b, ']')
	if r.EndsOnly {
		b = append(b, `,"ends_only":true`...)
	}
	b = append(b, `,"finish_reason":`...)
	b = appendNullable(b, r.FinishReason)
	b = append(b, `,"error":`...)
	b = appendNullable(b, r.Error)
	b = appendCount(b, "retries", r.Retries)
	b = appendText(b, "session", r.Session)
	b = appendCount(b, "turn", r.Turn)
	if r.Think != 0 {
		b = append(b, `,"think_s":`...)
		b = appendSeconds(b, r.Think)
	}
	if len(r.PrefixHashes) > 0 {
		b = append(b, `,"prefix_hashes":[`...)
		for i, h := range r.PrefixHashes {
			if i > 0 {
				b = append(b, ',')
			}
			b = strconv.AppendUint(b, h, 10)
		}
		b = append(b, ']')
	}
	b = appendCount(b, "hash_block", r.HashBlock)
	b = appendText(b, "class", r.Class)
	b = appendCount(b, "priority", r.Priority)
	b = appendText(b, "lora", r.LoRA)
	return append(b, '}'), nil
}

// appendSeconds writes d in seconds, exactly, without trailing zeros.
func appendSeconds(b []byte, d time.Duration) []byte {
	n := uint64(d)
	if d < 0 {
		b, n = append(b, '-'), -n
	}
	b = strconv.AppendUint(b, n/1e9, 10)
	n %= 1e9
	if n == 0 {
		return b
	}
	digits := [10]byte{'.'}
	for i := 9; i > 0; i-- {
		digits[i] = byte('0' + n%10)
		n /= 10
	}
	end := 10
	for digits[end-1] == '0' {
		end--
	}
	return append(b, digits[:end]...)
}

func appendCount(b []byte, key string, n int) []byte {
	if n == 0 {
		return b
	}
	b = append(b, `,"`...)
	b = append(b, key...)
	b = append(b, `":`...)
	return strconv.AppendInt(b, int64(n), 10)
}

func appendText(b []byte, key, value string) []byte {
	if value == "" {
		return b
	}
	b = append(b, `,"`...)
	b = append(b, key...)
	b = append(b, `":`...)
	return appendNullable(b, value)
}

func appendNullable(b []byte, s string) []byte {
	if s == "" {
		return append(b, "null"...)
	}
	quoted, _ := json.Marshal(s) // a string always marshals
	return append(b, quoted...)
}

// line is the JSON form of a Record.
type line struct {
	Index        int      `json:"index"`
	Probe        string   `json:"probe"`
	Phase        Phase    `json:"phase"`
	Due          *seconds `json:"due_s"`
	Sent         *seconds `json:"sent_s"`
	Prompt       *int     `json:"prompt_tokens"`
	Cached       *int     `json:"cached_tokens"`
	Shared       int      `json:"shared_prefix_tokens"`
	Asked        int      `json:"asked_tokens"`
	Output       *int     `json:"output_tokens"`
	Tokens       events   `json:"token_times_s"`
	EndsOnly     bool     `json:"ends_only"`
	FinishReason string   `json:"finish_reason"`
	Error        string   `json:"error"`
	Retries      int      `json:"retries"`
	Session      string   `json:"session"`
	Turn         int      `json:"turn"`
	Think        seconds  `json:"think_s"`
	PrefixHashes []uint64 `json:"prefix_hashes"`
	HashBlock    int      `json:"hash_block"`
	Class        string   `json:"class"`
	Priority     int      `json:"priority"`
	LoRA         string   `json:"lora"`
}

// UnmarshalJSON reads one line of a requests file. prompt_tokens must be there, and due_s or sent_s; every other key
// may be missing, and keys that it does not know are ignored. It fails on counts below 0 and on token times that go
// back.
func (r *Record) UnmarshalJSON(data []byte) error {
	var l line
	if err := json.Unmarshal(data, &l); err != nil {
		return err
	}
	switch {
	case l.Prompt == nil:
		return errors.New("no prompt_tokens: not a line of a requests file")
	case l.Due == nil && l.Sent == nil:
		return errors.New("neither due_s nor sent_s: not a line of a requests file")
	}
	*r = Record{
		Index: l.Index, Probe: l.Probe, Phase: l.Phase, PromptTokens: *l.Prompt, CachedTokens: l.Cached,
		SharedPrefixTokens: l.Shared, AskedTokens: l.Asked, Tokens: l.Tokens, EndsOnly: l.EndsOnly,
		FinishReason: l.FinishReason, Error: l.Error, Retries: l.Retries,
		Session: l.Session, Turn: l.Turn, Think: time.Duration(l.Think), PrefixHashes: l.PrefixHashes, HashBlock: l.HashBlock,
		Class: l.Class, Priority: l.Priority, LoRA: l.LoRA,
	}
	if l.Due != nil {
		due := time.Duration(*l.Due)
		r.Due, r.Sent = &due, due
	}
	if l.Sent != nil {
		r.Sent = time.Duration(*l.Sent)
	}
	if l.Output != nil {
		r.OutputTokens = *l.Output
	} else {
		for _, e := range l.Tokens {
			r.OutputTokens += e.Tokens
		}
	}
	return r.checkCounts()
}

// checkCounts says which count of a record that was read is none.
func (r *Record) checkCounts() error {
	for _, c := range []struct {
		key string
		n   int
	}{
		{"prompt_tokens", r.PromptTokens}, {"shared_prefix_tokens", r.SharedPrefixTokens}, {"asked_tokens", r.AskedTokens},
		{"output_tokens", r.OutputTokens}, {"turn", r.Turn}, {"hash_block", r.HashBlock},
	} {
		if c.n < 0 || c.n > maxCount {
			return fmt.Errorf("%s is %d, expected from 0 to %d", c.key, c.n, maxCount)
		}
	}
	if c := r.CachedTokens; c != nil && (*c < 0 || *c > maxCount) {
		return fmt.Errorf("cached_tokens is %d, expected from 0 to %d, or null", *c, maxCount)
	}
	return nil
}

// maxCount bounds what a file may claim, so that sums and products stay within an int.
const maxCount = 1 << 30

// maxSeconds is about what a [time.Duration] holds.
const maxSeconds = 9e9

// seconds is a duration that JSON gives in seconds.
type seconds time.Duration

func (s *seconds) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		return nil
	}
	d, ok := parseSeconds(data)
	if !ok {
		return fmt.Errorf("%s is not a time in seconds", data)
	}
	*s = seconds(d)
	return nil
}

// parseSeconds reads a decimal number of seconds, rounded to 1 ns. Plain decimals of up to 9 digits behind the point
// are read without a detour over floating point.
func parseSeconds(b []byte) (d time.Duration, ok bool) {
	var n, scale uint64 = 0, 1e9
	digits, point, i := 0, false, 0
	negative := len(b) > 0 && b[0] == '-'
	if negative {
		i = 1
	}
	for ; i < len(b); i++ {
		switch c := b[i]; {
		case '0' <= c && c <= '9' && digits < 19 && (!point || scale > 1):
			n, digits = n*10+uint64(c-'0'), digits+1
			if point {
				scale /= 10
			}
		case c == '.' && !point && digits > 0:
			point = true
		default:
			return parseFloatSeconds(string(b))
		}
	}
	if digits == 0 || n > maxSeconds*(1e9/scale) {
		return 0, false
	}
	if d = time.Duration(n * scale); negative {
		d = -d
	}
	return d, true
}

func parseFloatSeconds(s string) (time.Duration, bool) {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || !(math.Abs(f) < maxSeconds) {
		return 0, false
	}
	return time.Duration(math.Round(f * 1e9)), true
}

// events reads [[seconds, tokens], ...]: most of a requests file, so it is read by hand.
type events []TokenEvent

func (es *events) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		return nil
	}
	// The caller has checked that data is valid JSON; what is left is its shape.
	s := eventScanner{data: data}
	if !s.take('[') {
		return errShape
	}
	if s.take(']') {
		return nil
	}
	list := make(events, 0, len(data)/12)
	for {
		if !s.take('[') {
			return errShape
		}
		at, ok := parseSeconds(s.number())
		if !ok || !s.take(',') {
			return errShape
		}
		n, err := strconv.Atoi(string(s.number()))
		if err != nil || !s.take(']') {
			return errShape
		}
		if n < 1 || n > maxCount {
			return fmt.Errorf("token_times_s: event %d has %d tokens, expected at least 1", len(list), n)
		}
		if len(list) > 0 && at < list[len(list)-1].At {
			return fmt.Errorf("token_times_s: event %d is earlier than the one before", len(list))
		}
		list = append(list, TokenEvent{at, n})
		if s.take(']') {
			*es = list
			return nil
		}
		if !s.take(',') {
			return errShape
		}
	}
}

var errShape = errors.New("token_times_s: expected a list of [seconds from sent, tokens]")

type eventScanner struct {
	data []byte
	pos  int
}

func (s *eventScanner) space() {
	for s.pos < len(s.data) && (s.data[s.pos] == ' ' || s.data[s.pos] == '\t' || s.data[s.pos] == '\n' ||
		s.data[s.pos] == '\r') {
		s.pos++
	}
}

func (s *eventScanner) take(c byte) bool {
	s.space()
	if s.pos == len(s.data) || s.data[s.pos] != c {
		return false
	}
	s.pos++
	return true
}

// number is everything up to the next delimiter.
func (s *eventScanner) number() []byte {
	s.space()
	from := s.pos
	for s.pos < len(s.data) {
		switch s.data[s.pos] {
		case ',', ']', '[', ' ', '\t', '\n', '\r':
			return s.data[from:s.pos]
		}
		s.pos++
	}
	return s.data[from:]
}
