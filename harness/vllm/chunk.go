package vllm

import (
	"bytes"
	"errors"
)

// chunk is one event of a stream, as far as it is used: vLLM's CompletionStreamResponse and
// ChatCompletionStreamResponse (entrypoints/openai/{completion,chat_completion}/protocol.py), and the two forms of an
// error object. Slices point into the event.
type chunk struct {
	// choices is set when there is a choice; the fields up to finish are the first one's.
	choices bool
	// hasText is set when the choice has text, or a delta with content (reasoning included).
	hasText bool
	text    []byte // a JSON string's inside, with its escapes
	// tokens is how many token_ids there are, -1 when none are given.
	tokens int
	ids    []byte // the list, without its brackets
	finish []byte

	usage              bool
	prompt, completion int
	cached             int // -1 when the server does not say

	err     []byte // the value of "error" when it is not null, as it stands
	object  []byte
	message []byte

	id      []byte
	created int // Unix seconds, -1 when the event does not say
}

var errNotJSON = errors.New("not a JSON object")

// parse reads an event in one pass without allocating. What is not asked for is skipped, and checked only as far as
// skipping needs: everything that encoding/json accepts is read, and with the same meaning (keys in exact case, the
// last of equal keys counts), as long as nesting stays below 100 levels.
func (c *chunk) parse(data []byte) error {
	*c = chunk{tokens: -1, cached: -1, created: -1}
	s := jsonScanner{b: data}
	s.object(func(key []byte) {
		switch string(key) {
		case "choices":
			c.parseChoices(&s)
		case "usage":
			c.parseUsage(&s)
		case "error":
			if c.err = s.raw(); string(c.err) == "null" {
				c.err = nil
			}
		case "object":
			c.object = s.text()
		case "message":
			c.message = s.text()
		case "id":
			c.id = s.text()
		case "created":
			c.created = -1
			if n, ok := s.count(); ok {
				c.created = n
			}
		default:
			s.skip()
		}
	})
	if s.space(); s.bad || s.i != len(s.b) {
		return errNotJSON
	}
	return nil
}

func (c *chunk) parseChoices(s *jsonScanner) {
	c.choices, c.hasText, c.text, c.tokens, c.ids, c.finish = false, false, nil, -1, nil, nil
	s.array(func() {
		if c.choices {
			s.skip() // only the first choice is asked for
			return
		}
		c.choices = true
		s.object(func(key []byte) {
			switch string(key) {
			case "text":
				c.setText(s.text())
			case "delta":
				s.object(func(key []byte) {
					switch string(key) {
					case "content", "reasoning", "reasoning_content":
						c.setText(s.text())
					default:
						s.skip()
					}
				})
			case "token_ids":
				c.tokens, c.ids = s.numbers()
			case "finish_reason":
				c.finish = s.text()
			default:
				s.skip()
			}
		})
	})
}

func (c *chunk) setText(text []byte) {
	if len(text) > 0 {
		c.hasText, c.text = true, text
	}
}

func (c *chunk) parseUsage(s *jsonScanner) {
	c.usage, c.prompt, c.completion, c.cached = false, 0, 0, -1
	if s.space(); s.peek() != '{' {
		s.skip()
		return
	}
	c.usage = true
	s.object(func(key []byte) {
		switch string(key) {
		case "prompt_tokens":
			c.prompt, _ = s.count()
		case "completion_tokens":
			c.completion, _ = s.count()
		case "prompt_tokens_details":
			c.cached = -1
			s.object(func(key []byte) {
				if string(key) != "cached_tokens" {
					s.skip()
				} else if n, ok := s.count(); ok {
					c.cached = n
				} else {
					c.cached = -1
				}
			})
		default:
			s.skip()
		}
	})
}

// jsonScanner walks over one JSON text. bad is set, and everything stops, where it does not parse.
type jsonScanner struct {
	b     []byte
	i     int
	depth int
	bad   bool
}

// maxDepth bounds nesting; an honest event has five levels.
const maxDepth = 100

func (s *jsonScanner) space() {
	for s.i < len(s.b) && (s.b[s.i] == ' ' || s.b[s.i] == '\n' || s.b[s.i] == '\t' || s.b[s.i] == '\r') {
		s.i++
	}
}

// peek is the next byte, 0 at the end.
func (s *jsonScanner) peek() byte {
	if s.i < len(s.b) {
		return s.b[s.i]
	}
	return 0
}

// take consumes the byte c.
func (s *jsonScanner) take(c byte) bool {
	if s.space(); s.bad || s.peek() != c {
		return false
	}
	s.i++
	return true
}

func (s *jsonScanner) fail() { s.bad, s.i = true, len(s.b) }

// object calls value for every key, to consume its value. A value that is no object is skipped.
func (s *jsonScanner) object(value func(key []byte)) {
	if !s.take('{') {
		s.skip()
		return
	}
	if s.take('}') {
		return
	}
	if s.depth++; s.depth > maxDepth {
		s.fail()
	}
	for !s.bad {
		s.space()
		key, ok := s.str()
		if !ok || !s.take(':') {
			s.fail()
			return
		}
		value(key)
		if !s.take(',') {
			break
		}
	}
	if s.depth--; !s.take('}') {
		s.fail()
	}
}

// array calls value for every element, to consume it. A value that is no array is skipped.
func (s *jsonScanner) array(value func()) {
	if !s.take('[') {
		s.skip()
		return
	}
	if s.take(']') {
		return
	}
	if s.depth++; s.depth > maxDepth {
		s.fail()
	}
	for !s.bad {
		value()
		if !s.take(',') {
			break
		}
	}
	if s.depth--; !s.take(']') {
		s.fail()
	}
}

// str is a string's inside, with its escapes.
func (s *jsonScanner) str() (inside []byte, ok bool) {
	if s.peek() != '"' {
		return nil, false
	}
	from := s.i + 1
	for at := from; ; {
		n := bytes.IndexByte(s.b[at:], '"')
		if n < 0 {
			s.fail()
			return nil, false
		}
		at += n
		escapes := 0
		for k := at - 1; k >= from && s.b[k] == '\\'; k-- {
			escapes++
		}
		if at++; escapes%2 == 0 {
			s.i = at
			return s.b[from : at-1], true
		}
	}
}

// text is a string's inside; nil for any other value, which is skipped.
func (s *jsonScanner) text() []byte {
	s.space()
	if s.peek() != '"' {
		s.skip()
		return nil
	}
	inside, _ := s.str()
	return inside
}

// count is a whole number from 0 on; ok is false for any other value, which is skipped.
func (s *jsonScanner) count() (n int, ok bool) {
	s.space()
	from := s.i
	for s.i < len(s.b) && s.b[s.i]-'0' <= 9 {
		if n = 10*n + int(s.b[s.i]-'0'); n > 1<<40 {
			n = 1 << 40
		}
		s.i++
	}
	if s.i == from {
		s.skip()
		return 0, false
	}
	if c := s.peek(); c == '.' || c == 'e' || c == 'E' {
		s.literal()
		return 0, false
	}
	return n, true
}

// numbers is how many elements a list has, and its inside without the space around it; -1 and nil for any other
// value, which is skipped.
func (s *jsonScanner) numbers() (n int, inside []byte) {
	if s.space(); s.peek() != '[' {
		s.skip()
		return -1, nil
	}
	from := s.i + 1
	s.array(func() {
		s.skip()
		n++
	})
	if s.bad {
		return -1, nil
	}
	return n, bytes.TrimSpace(s.b[from : s.i-1])
}

// raw is a value as it stands.
func (s *jsonScanner) raw() []byte {
	s.space()
	from := s.i
	s.skip()
	return s.b[from:s.i]
}

// skip consumes a value.
func (s *jsonScanner) skip() {
	switch s.space(); s.peek() {
	case '"':
		s.str()
	case '{':
		s.object(func([]byte) { s.skip() })
	case '[':
		s.array(s.skip)
	default:
		s.literal()
	}
}

// literal consumes a number, true, false or null.
func (s *jsonScanner) literal() {
	from := s.i
	for s.i < len(s.b) {
		if c := s.b[s.i]; c-'0' > 9 && c-'a' > 25 && c != '.' && c != '-' && c != '+' && c != 'E' {
			break
		}
		s.i++
	}
	if s.i == from {
		s.fail()
	}
}

// appendIDs appends the numbers of a list's inside; what is no number becomes 0.
func appendIDs(ids []int32, inside []byte) []int32 {
	for len(inside) > 0 {
		one, rest, _ := bytes.Cut(inside, []byte{','})
		n := int32(0)
		for _, c := range one {
			if c-'0' <= 9 {
				n = 10*n + int32(c-'0')
			}
		}
		ids, inside = append(ids, n), rest
	}
	return ids
}
