package vllm

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// scan reads all events of r, with an upper bound on one event.
func scan(r io.Reader, limit int) (events []string, err error) {
	var s eventScanner
	s.reset(r, func() time.Time { return time.Time{} }, limit)
	for {
		data, _, err := s.next()
		if err != nil {
			return events, err
		}
		events = append(events, string(data))
	}
}

func TestEvents(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     []string
	}{
		{"lf", "data: a\n\ndata: b\n\n", []string{"a", "b"}},
		{"crlf", "data: a\r\n\r\ndata: b\r\n\r\n", []string{"a", "b"}},
		{"cr", "data: a\r\rdata: b\r\r", []string{"a", "b"}},
		{"mixed ends", "data: a\r\n\ndata: b\n\r\ndata: c\r\r\n", []string{"a", "b", "c"}},
		{"no space, or two", "data:a\n\ndata:  b\n\n", []string{"a", " b"}},
		{"several data lines", "data: a\ndata:\ndata: c\n\n", []string{"a\n\nc"}},
		{"data without a colon", "data\n\n", []string{""}},
		{"comments and other fields", ": ping\n\nevent: token\nid: 7\nretry: 5\ndata: a\n: more\n\ndatabase: x\n\n",
			[]string{"a"}},
		{"byte order mark", "\xef\xbb\xbfdata: a\n\n", []string{"a"}},
		{"blank lines only", "\n\r\n\r\n\n", nil},
		{"last blank line missing", "data: a\n\ndata: [DONE]\n", []string{"a", "[DONE]"}},
		{"last line end missing", "data: a\n\ndata: [DONE]", []string{"a", "[DONE]"}},
		{"empty", "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			for how, r := range map[string]io.Reader{
				"at once":        strings.NewReader(c.in),
				"byte by byte":   iotest.OneByteReader(strings.NewReader(c.in)),
				"error with end": iotest.DataErrReader(strings.NewReader(c.in)),
			} {
				got, err := scan(r, 1<<10)
				if err != io.EOF || !slices.Equal(got, c.want) {
					t.Errorf("%s: %q, %v; want %q and EOF", how, got, err, c.want)
				}
			}
		})
	}
}

// An event that a failing connection cut off is not given out: its text may be half a number.
func TestEventsCutByAnError(t *testing.T) {
	broken := errors.New("connection reset")
	for _, in := range []string{"data: a\n\ndata: {\"half", "data: a\n\ndata: whole\n"} {
		got, err := scan(io.MultiReader(strings.NewReader(in), iotest.ErrReader(broken)), 1<<10)
		if !errors.Is(err, broken) || !slices.Equal(got, []string{"a"}) {
			t.Errorf("%q: %q, %v; want only the first event and the error", in, got, err)
		}
	}
}

func TestEventLimit(t *testing.T) {
	for name, in := range map[string]string{
		"one endless line": "data: " + strings.Repeat("x", 4<<20),
		"many lines":       strings.Repeat("data: "+strings.Repeat("x", 100)+"\n", 1<<15),
	} {
		if got, err := scan(strings.NewReader(in), 1<<16); !errors.Is(err, errEventTooBig) || len(got) != 0 {
			t.Errorf("%s: %d events, %v; want %v", name, len(got), err, errEventTooBig)
		}
	}
	exact := strings.Repeat("y", 1<<16)
	if got, err := scan(strings.NewReader("data: "+exact+"\n\n"), 1<<17); err != io.EOF || len(got) != 1 ||
		got[0] != exact {
		t.Errorf("an event below the limit and above one read is not whole: %d events, %v", len(got), err)
	}
}

// The stamp belongs to the read that brought the event's end: events of one read share it, and the clock is not asked
// again while events are handed out.
func TestEventStamp(t *testing.T) {
	reads := []string{"data: a\n\ndata: b\n\ndata: c", "\n", "\ndata: d\n\n"}
	clock := 0
	var rs []io.Reader
	for _, r := range reads {
		rs = append(rs, strings.NewReader(r))
	}
	var s eventScanner
	s.reset(io.MultiReader(rs...), func() time.Time {
		clock++
		return time.Unix(int64(clock), 0)
	}, 1<<10)
	var got []int64
	for {
		_, at, err := s.next()
		if err != nil {
			break
		}
		got = append(got, at.Unix())
	}
	if want := []int64{1, 1, 3, 3}; !slices.Equal(got, want) {
		t.Errorf("stamps %v, want %v: a, b come with read 1, c and d end in read 3", got, want)
	}
}

// plainEvents is the format said in another way: normalise line ends, split at blank lines.
func plainEvents(in []byte) (events []string) {
	in = bytes.TrimPrefix(in, []byte("\xef\xbb\xbf"))
	text := strings.ReplaceAll(strings.ReplaceAll(string(in), "\r\n", "\n"), "\r", "\n")
	var data []string
	for _, line := range append(strings.Split(text, "\n"), "") {
		name, value, colon := strings.Cut(line, ":")
		switch {
		case line == "" && data != nil:
			events = append(events, strings.Join(data, "\n"))
			data = nil
		case name == "data" && colon:
			data = append(data, strings.TrimPrefix(value, " "))
		case line == "data":
			data = append(data, "")
		}
	}
	return events
}

func FuzzEvents(f *testing.F) {
	for _, seed := range []string{
		"data: {\"choices\":[]}\n\ndata: [DONE]\n\n", "data: a\r\n\r\n: c\r\rdata:b", "data\r\ndata: \n\n\n",
		"\xef\xbb\xbfdata: x\n\n",
	} {
		f.Add([]byte(seed), 3)
	}
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		want := plainEvents(in)
		got, err := scan(&chunkReader{in, 1 + max(0, size)%7}, 1<<20)
		if err != io.EOF || !slices.Equal(got, want) {
			t.Fatalf("%q in chunks of %d: %q, %v; want %q", in, 1+max(0, size)%7, got, err, want)
		}
	})
}

// chunkReader gives at most size bytes a read.
type chunkReader struct {
	rest []byte
	size int
}

func (r *chunkReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.rest[:min(len(r.rest), r.size)])
	r.rest = r.rest[n:]
	return n, nil
}
