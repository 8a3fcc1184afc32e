package vllm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	"kvtune/harness/workload"
)

const (
	// A read from the network begins with minRead bytes, a dozen events, and may become maxRead where reads fill it: every
	// stream in flight has such a buffer.
	minRead, maxRead = 4 << 10, 64 << 10
	// maxEvent bounds one event, and eventBase with eventToken what one may have for the tokens of its request: a stream's
	// first repeats the prompt's token ids, 8 bytes each, and one that a slow reader gets late may hold the whole output.
	maxEvent, eventBase, eventToken = 32 << 20, 1 << 20, 64
	// maxKept bounds what a scanner that is used again keeps of the memory that long events took.
	maxKept = 64 << 10
)

// errEventTooBig is returned for an event above the scanner's limit: the peer does not speak this protocol.
var errEventTooBig = errors.New("streamed event too large")

// eventLimit bounds an event of a request's stream, so that many hostile streams at once take little memory.
func eventLimit(r *workload.Request) int {
	return min(maxEvent, eventBase+eventToken*(r.PromptTokens()+r.OutputTokens))
}

// eventScanner cuts a server-sent event stream into events (WHATWG HTML, section 9.2.6): lines end in LF, CRLF or CR,
// comments and fields other than data are ignored, several data lines are joined by LF, a blank line ends the event.
// It differs in one point: at a clean end of the stream an event that lacks its blank line still counts, since proxies
// cut it off.
type eventScanner struct {
	r     io.Reader
	now   func() time.Time
	limit int

	buf    []byte // what one read gave
	rest   []byte // the part of buf that is not yet consumed
	at     time.Time
	line   []byte // a line whose end has not arrived
	data   []byte // the data lines of the event so far
	any    bool   // a data line was seen since the last blank line
	skipLF bool   // the last line ended in CR: an LF that follows belongs to it
	first  bool   // nothing was read yet: a byte order mark may stand here
	err    error
	full   bool // the last read filled buf
}

// reset makes the scanner read r. Its memory is used again.
func (s *eventScanner) reset(r io.Reader, now func() time.Time, limit int) {
	if cap(s.line) > maxKept || cap(s.data) > maxKept {
		s.line, s.data = nil, nil
	}
	*s = eventScanner{r: r, now: now, limit: limit, buf: s.buf, line: s.line[:0], data: s.data[:0], first: true}
	if s.buf == nil {
		s.buf = make([]byte, minRead)
	}
}

// next returns the next event's data, valid until the next call, and when its end arrived: now is asked right after the
// read that brought it, before anything is parsed. It ends with io.EOF after a clean end of the stream.
func (s *eventScanner) next() (data []byte, at time.Time, err error) {
	s.data, s.any = s.data[:0], false
	if data, ok := s.whole(); ok {
		return data, s.at, nil
	}
	for {
		for len(s.rest) > 0 {
			if s.skipLF {
				s.skipLF = false
				if s.rest[0] == '\n' {
					s.rest = s.rest[1:]
					continue
				}
			}
			end := lineEnd(s.rest)
			if end < 0 {
				s.line = append(s.line, s.rest...)
				s.rest = nil
				break
			}
			line := s.rest[:end]
			s.skipLF = s.rest[end] == '\r'
			s.rest = s.rest[end+1:]
			if len(s.line) > 0 {
				s.line = append(s.line, line...)
				line = s.line
				s.line = s.line[:0]
			}
			if done := s.take(line); done {
				return s.data, s.at, nil
			}
			if len(s.data) > s.limit {
				break
			}
		}
		if len(s.line) > s.limit || len(s.data) > s.limit {
			return nil, s.at, fmt.Errorf("%w: over %d bytes without an end", errEventTooBig, s.limit)
		}
		if s.err != nil {
			if s.err == io.EOF && len(s.line) > 0 {
				s.take(s.line)
				s.line = s.line[:0]
			}
			if s.err == io.EOF && s.any {
				s.any = false
				return s.data, s.at, nil
			}
			return nil, s.at, s.err
		}
		if s.full && len(s.buf) < maxRead {
			s.buf = make([]byte, 4*len(s.buf))
		}
		n, err := s.r.Read(s.buf)
		if n > 0 {
			s.at = s.now()
		}
		s.rest, s.err, s.full = s.buf[:n], err, n == len(s.buf)
	}
}

// whole is an event that lies in one piece as nearly all do: one data line and a blank one, ended by LF. It is not
// copied.
func (s *eventScanner) whole() (data []byte, ok bool) {
	const field = "data: "
	if s.first || s.skipLF || len(s.line) > 0 || len(s.rest) < len(field) || string(s.rest[:len(field)]) != field {
		return nil, false
	}
	end := bytes.IndexByte(s.rest, '\n')
	if end < 0 || end+1 >= len(s.rest) || s.rest[end+1] != '\n' || bytes.IndexByte(s.rest[:end], '\r') >= 0 ||
		end-len(field) > s.limit {
		return nil, false
	}
	data, s.rest = s.rest[len(field):end], s.rest[end+2:]
	return data, true
}

// take handles one line and reports whether it ended an event.
func (s *eventScanner) take(line []byte) (done bool) {
	if s.first {
		s.first = false
		line = bytes.TrimPrefix(line, []byte("\xef\xbb\xbf"))
	}
	if len(line) == 0 {
		return s.any
	}
	rest, ok := bytes.CutPrefix(line, []byte("data"))
	if !ok || (len(rest) > 0 && rest[0] != ':') {
		return false // a comment, or a field that says nothing here
	}
	if len(rest) > 0 {
		rest = bytes.TrimPrefix(rest[1:], []byte(" "))
	}
	if s.any {
		s.data = append(s.data, '\n')
	}
	s.data = append(s.data, rest...)
	s.any = true
	return false
}

// lineEnd is the index of the first CR or LF, -1 when there is none.
func lineEnd(b []byte) int {
	lf := bytes.IndexByte(b, '\n')
	head := b
	if lf >= 0 {
		head = b[:lf]
	}
	if cr := bytes.IndexByte(head, '\r'); cr >= 0 {
		return cr
	}
	return lf
}
