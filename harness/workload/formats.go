package workload

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
)

// mooncakeBlock is the number of tokens behind one of Mooncake's hash_ids (FAST'25 release, README of the traces).
const mooncakeBlock = 512

func isMooncake(first []byte) bool {
	return bytes.HasPrefix(first, []byte{'{'}) && bytes.Contains(first, []byte(`"input_length"`))
}

// readMooncake reads Mooncake's traces: lines of timestamp (ms), input_length, output_length and hash_ids. A hash id
// stands for a block of 512 tokens and everything before it; the last block of a prompt may be shorter.
func readMooncake(s *source, each func(row) error) error {
	type request struct {
		Timestamp *float64 `json:"timestamp"`
		Input     *int     `json:"input_length"`
		Output    *int     `json:"output_length"`
		HashIDs   []uint64 `json:"hash_ids"`
	}
	return readJSON(s, each, func(line []byte) (row, error) {
		var q request
		if err := json.Unmarshal(line, &q); err != nil {
			return row{}, err
		}
		if q.Timestamp == nil || q.Input == nil || q.Output == nil {
			return row{}, errors.New("expected timestamp, input_length, output_length and hash_ids")
		}
		if !(*q.Timestamp >= 0 && *q.Timestamp < maxSeconds*1e3) {
			return row{}, fmt.Errorf("timestamp is %g, expected milliseconds from 0 on", *q.Timestamp)
		}
		return row{
			at: time.Duration(math.Round(*q.Timestamp * 1e6)), prompt: *q.Input, output: *q.Output, hashes: q.HashIDs,
			hashBlock: mooncakeBlock, end: unknown,
		}, nil
	})
}

func isRequests(first []byte) bool {
	return bytes.HasPrefix(first, []byte{'{'}) && bytes.Contains(first, []byte(`"prompt_tokens"`)) &&
		(bytes.Contains(first, []byte(`"due_s"`)) || bytes.Contains(first, []byte(`"sent_s"`)))
}

// readRequests reads kvtune's own requests files; see [Record].
func readRequests(s *source, each func(row) error) error {
	return readJSON(s, each, func(line []byte) (row, error) {
		var r Record
		if err := json.Unmarshal(line, &r); err != nil {
			return row{}, err
		}
		return rowOf(&r), nil
	})
}

// rowOf is the request that a record tells of.
func rowOf(r *Record) row {
	x := row{
		index: r.Index, at: r.Start(), prompt: r.PromptTokens, output: r.OutputTokens, shared: r.SharedPrefixTokens,
		session: r.Session, turn: r.Turn, think: r.Think, end: unknown, phase: r.Phase, probe: r.Probe, class: r.Class,
		priority: r.Priority, lora: r.LoRA,
	}
	if r.AskedTokens > 0 { // a request that failed half-way is asked for again in full
		x.output = r.AskedTokens
	}
	if len(r.Tokens) > 0 {
		x.end = max(0, r.End())
	}
	if r.HashBlock > 0 {
		x.hashes, x.hashBlock = r.PrefixHashes, r.HashBlock
	}
	return x
}

// readJSON reads one object per line. A last line without its end that is no JSON was cut.
func readJSON(s *source, each func(row) error, parse func(line []byte) (row, error)) error {
	for {
		line, whole, err := s.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		x, err := parse(line)
		if err != nil {
			if !whole && s.count > 0 && !json.Valid(line) {
				s.cut = true
				return nil
			}
			return s.fail("%w", err)
		}
		if err := s.give(x, each); err != nil {
			return err
		}
	}
}

// give checks a row's counts before it is handed on.
func (s *source) give(x row, each func(row) error) error {
	if x.prompt < 0 || x.output < 0 || x.prompt > maxCount || x.output > maxCount {
		return s.fail("%d input and %d output tokens, expected from 0 to %d", x.prompt, x.output, maxCount)
	}
	if s.count++; s.count > maxRequests {
		return s.fail("more than %d requests: cut the file", maxRequests)
	}
	return each(x)
}

// Names of columns, as column sees them.
var (
	timeColumns = []string{"timestamp", "time", "ts", "arrivedat", "arrivaltime", "arrival", "arrivaltimestamp",
		"datetime", "starttime", "start", "requesttime", "createdat", "date", "timestampms", "timems"}
	inputColumns = []string{"prompttokens", "inputtokens", "contexttokens", "numprefilltokens", "numprompttokens",
		"numinputtokens", "promptlen", "promptlength", "inputlen", "inputlength", "requesttokens", "inputtoks", "tokensin"}
	outputColumns = []string{"outputtokens", "completiontokens", "generatedtokens", "numdecodetokens", "numoutputtokens",
		"numcompletiontokens", "generationtokens", "responsetokens", "outputlen", "outputlength", "completionlen",
		"completionlength", "outputtoks", "tokensout"}
	sessionColumns = []string{"session", "sessionid", "conversation", "conversationid", "chatid", "threadid"}
)

// column is a column's name in lower case, without spaces, underscores and dashes.
func column(name string) string {
	return strings.NewReplacer("_", "", "-", "", " ", "", ".", "").Replace(strings.ToLower(strings.TrimSpace(name)))
}

// find is the position of the first of names that the header has, -1 for none.
func find(header, names []string) int {
	for _, n := range names {
		for i, h := range header {
			if column(h) == n {
				return i
			}
		}
	}
	return -1
}

// header splits a CSV's first line at the separator that it uses.
func header(first []byte) (names []string, separator rune) {
	separator = ','
	for _, c := range []rune{';', '\t'} {
		if bytes.ContainsRune(first, c) && !bytes.ContainsRune(first, ',') {
			separator = c
		}
	}
	r := csv.NewReader(bytes.NewReader(first))
	r.Comma = separator
	names, err := r.Read()
	if err != nil {
		return nil, separator
	}
	return names, separator
}

func isColumns(first []byte, names ...string) bool {
	h, _ := header(first)
	for _, n := range names {
		if find(h, []string{n}) < 0 {
			return false
		}
	}
	return true
}

func isAzure(first []byte) bool {
	return isColumns(first, "timestamp", "contexttokens", "generatedtokens")
}

func isVidur(first []byte) bool {
	return isColumns(first, "arrivedat", "numprefilltokens", "numdecodetokens")
}

// isLog takes any text with a time column, so that a missing other column can be named.
func isLog(first []byte) bool {
	h, _ := header(first)
	return !bytes.HasPrefix(first, []byte{'{'}) && find(h, timeColumns) >= 0
}

// readAzure reads the Azure LLM inference traces (2023 and 2024).
func readAzure(s *source, each func(row) error) error {
	return readCSV(s, each, []string{"timestamp"}, []string{"contexttokens"}, []string{"generatedtokens"}, nil)
}

// readVidur reads Vidur's processed traces.
func readVidur(s *source, each func(row) error) error {
	return readCSV(s, each, []string{"arrivedat"}, []string{"numprefilltokens"}, []string{"numdecodetokens"}, nil)
}

// readLog reads an access log, its columns found by their names.
func readLog(s *source, each func(row) error) error {
	return readCSV(s, each, timeColumns, inputColumns, outputColumns, sessionColumns)
}

// readCSV reads a table with a header.
func readCSV(s *source, each func(row) error, timeNames, inputNames, outputNames, sessionNames []string) error {
	names, separator := header(s.first)
	at, in, out, session := find(names, timeNames), find(names, inputNames), find(names, outputNames),
		find(names, sessionNames)
	for _, c := range []struct {
		at    int
		what  string
		names []string
	}{{at, "the time", timeNames}, {in, "input tokens", inputNames}, {out, "output tokens", outputNames}} {
		if c.at < 0 {
			s.line++
			return s.fail("no column for %s in %q: expected one of %s", c.what, names, strings.Join(c.names, ", "))
		}
	}
	clock := clock{milliseconds: strings.HasSuffix(column(names[at]), "ms")}
	turns := make(map[string]int)
	return s.table(len(names), separator, false, func(fields []string) (err error) {
		x := row{end: unknown, index: s.count}
		if x.at, err = clock.parse(fields[at]); err != nil {
			return s.fail("%s: %w", names[at], err)
		}
		if x.prompt, err = parseCount(fields[in]); err != nil {
			return s.fail("%s: %w", names[in], err)
		}
		if x.output, err = parseCount(fields[out]); err != nil {
			return s.fail("%s: %w", names[out], err)
		}
		if session >= 0 && fields[session] != "" {
			x.session = strings.Clone(fields[session])
			x.turn = turns[x.session]
			turns[x.session]++
		}
		return s.give(x, each)
	})
}

// table gives the fields of every line of a CSV that was peeked at, behind its header of so many columns; fields is
// used again for the next line. lazy lets quotes stand within fields.
func (s *source) table(columns int, separator rune, lazy bool, each func(fields []string) error) error {
	before := s.line // empty lines
	r := csv.NewReader(s.r)
	r.Comma, r.ReuseRecord, r.FieldsPerRecord, r.LazyQuotes = separator, true, columns, lazy
	for header := true; ; header = false {
		fields, err := r.Read()
		var bad *csv.ParseError
		switch {
		case err == io.EOF:
			return nil
		case errors.Is(err, io.ErrUnexpectedEOF):
			s.cut = true
			return nil
		case errors.As(err, &bad):
			s.line = before + bad.Line
			return s.fail("%w, expected %d columns as in the header", bad.Err, columns)
		case err != nil:
			return fmt.Errorf("%s: %w", s.name, err)
		case header:
			continue
		}
		line, _ := r.FieldPos(0)
		s.line = before + line
		if err := each(fields); err != nil {
			return err
		}
	}
}

// fromZero makes times count from the earliest.
func fromZero(rows []row) []row {
	from := time.Duration(math.MaxInt64)
	for i := range rows {
		from = min(from, rows[i].at)
	}
	for i := range rows {
		rows[i].at -= from
	}
	return rows
}

// parseCount reads a number of tokens; tables written by pandas have whole numbers as 12.0.
func parseCount(s string) (int, error) {
	s = strings.TrimSpace(s)
	if n, err := strconv.Atoi(s); err == nil {
		return n, nil
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || f != math.Trunc(f) || !(math.Abs(f) <= maxCount) {
		return 0, fmt.Errorf("%q is not a whole number of tokens", s)
	}
	return int(f), nil
}

// clock reads the times of one column: seconds from anywhere, a Unix time in s, ms, us or ns, or a date and time. The
// first row decides between the numbers' units.
type clock struct {
	milliseconds bool  // by the column's name
	unit         int64 // ns of a number's unit; 0 until the first number
	base         time.Time
}

var dateLayouts = [...]string{time.RFC3339Nano, "2006-01-02 15:04:05.999999999", "2006-01-02T15:04:05.999999999",
	"2006-01-02 15:04:05.999999999Z07:00", "2006/01/02 15:04:05.999999999", "02/Jan/2006:15:04:05 -0700"}

// maxOffset keeps the difference of two times within a [time.Duration].
const maxOffset = time.Duration(maxSeconds / 2 * 1e9)

var errTime = errors.New("expected seconds, a Unix time, or a date such as 2023-11-16 18:17:03.97996")

func (c *clock) parse(s string) (time.Duration, error) {
	s = strings.TrimSpace(s)
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		for _, layout := range dateLayouts {
			t, err := time.Parse(layout, s)
			if err != nil {
				continue
			}
			if c.base.IsZero() {
				c.base = t
			}
			if d := t.Sub(c.base); d.Abs() <= maxOffset {
				return d, nil
			}
			return 0, fmt.Errorf("%q is a century off: %w", s, errTime)
		}
		return 0, fmt.Errorf("%q is not a time: %w", s, errTime)
	}
	if c.unit == 0 {
		// A Unix time of this century in seconds has 10 digits, and 3 more for each finer unit.
		switch a := math.Abs(f); {
		case c.milliseconds:
			c.unit = 1e6
		case a >= 1e17:
			c.unit = 1
		case a >= 1e14:
			c.unit = 1e3
		case a >= 1e11:
			c.unit = 1e6
		default:
			c.unit = 1e9
		}
	}
	if !(math.Abs(f)*float64(c.unit) <= float64(maxOffset)) {
		return 0, fmt.Errorf("%q is out of range: %w", s, errTime)
	}
	// A float of a Unix time would lose the last digits.
	whole, fraction, _ := strings.Cut(s, ".")
	n, err := strconv.ParseInt(whole, 10, 64)
	if part, e := strconv.ParseUint(fraction, 10, 64); err == nil && n >= 0 && (e == nil || fraction == "") {
		return time.Duration(n*c.unit) + time.Duration(math.Round(float64(part)/math.Pow10(len(fraction))*float64(c.unit))),
			nil
	}
	return time.Duration(math.Round(f * float64(c.unit))), nil
}
