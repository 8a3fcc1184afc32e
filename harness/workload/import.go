package workload

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Columns say where an access log has what a trace needs. A name is a CSV column's, or the path of a JSON field with
// dots between its keys ("usage.prompt_tokens"). Time, Input and Output are needed; what is "" is looked for under the
// names that logs commonly use, except for the last three, which are then left out.
type Columns struct {
	// Time is when a request arrived: seconds, a Unix time in s, ms, us or ns, or a date.
	Time string
	// Input and Output are token counts.
	Input, Output string
	// Session is the conversation's id.
	Session string
	// Class is the service class, Priority vLLM's priority and LoRA the adapter.
	Class, Priority, LoRA string
}

// ParseColumns reads "time=ts,in=prompt_tokens,out=completion_tokens,session=conv_id".
func ParseColumns(text string) (Columns, error) {
	var c Columns
	to := map[string]*string{"time": &c.Time, "in": &c.Input, "out": &c.Output, "session": &c.Session, "class": &c.Class,
		"priority": &c.Priority, "lora": &c.LoRA}
	for _, pair := range strings.Split(text, ",") {
		if strings.TrimSpace(pair) == "" {
			continue
		}
		key, column, ok := strings.Cut(pair, "=")
		at := to[strings.TrimSpace(key)]
		column = strings.TrimSpace(column)
		switch {
		case !ok || at == nil || column == "":
			return c, fmt.Errorf("%q: expected KEY=COLUMN with a key of %s", pair,
				strings.Join(slices.Sorted(maps.Keys(to)), ", "))
		case *at != "":
			return c, fmt.Errorf("%s is given twice, as %s and %s", key, *at, column)
		}
		*at = column
	}
	return c, nil
}

// Imported is an access log as a trace: records that say when each request came, how long it was and to which
// conversation it belonged. Nothing else of the log is in it: no text, and conversations have names of their own.
type Imported struct {
	Records []Record
	// Skipped counts lines that say no token counts: refused requests, other paths.
	Skipped int
	// Notes say what a reader of the trace must know, one sentence each.
	Notes []string
}

// Import reads an access log, a CSV with a header or lines of JSON objects, plain or compressed with zstd. Requests are
// put in order of time, which begins at 0. Errors give the line and what was expected; name is for them.
func Import(name string, r io.Reader, columns Columns) (*Imported, error) {
	s, err := open(name, r)
	if err != nil {
		return nil, err
	}
	defer s.close()
	if err := s.peek(); err != nil {
		return nil, err
	}
	im := importer{source: s, sessions: map[string]string{}}
	if s.head[0] == '{' {
		err = im.readLines(columns)
	} else {
		err = im.readTable(columns)
	}
	if err != nil {
		return nil, err
	}
	if len(im.rows) == 0 {
		return nil, fmt.Errorf("%s has no requests: %d lines say no token counts", name, im.skipped)
	}
	return im.trace(), nil
}

// importer collects rows.
type importer struct {
	*source
	clock    clock
	sessions map[string]string
	rows     []row
	skipped  int
}

// wanted are the columns in the order of [importer.add]'s values.
func (c *Columns) wanted() [7]*string {
	return [...]*string{&c.Time, &c.Input, &c.Output, &c.Session, &c.Class, &c.Priority, &c.LoRA}
}

// complete finds the columns that were not named among those that the log has.
func (c *Columns) complete(has []string) error {
	for i, known := range [...]struct {
		key, what string
		names     []string
	}{{"time", "the time", timeColumns}, {"in", "input tokens", inputColumns}, {"out", "output tokens", outputColumns},
		{"session", "", sessionColumns}} {
		at := c.wanted()[i]
		if *at != "" {
			continue
		}
		for _, path := range has {
			if last := path[strings.LastIndexByte(path, '.')+1:]; slices.Contains(known.names, column(last)) {
				*at = path
				break
			}
		}
		if *at == "" && known.what != "" {
			return fmt.Errorf("no column for %s in %q: name it with %s=COLUMN", known.what, has, known.key)
		}
	}
	for _, at := range c.wanted() {
		if *at != "" && !slices.Contains(has, *at) {
			return fmt.Errorf("no column %q: there are %q", *at, has)
		}
	}
	return nil
}

func (im *importer) readTable(c Columns) error {
	names, separator := header(im.first)
	for i := range names {
		names[i] = strings.TrimSpace(names[i])
	}
	if err := c.complete(names); err != nil {
		im.line++
		return im.fail("%w", err)
	}
	var at [7]int
	for i, want := range c.wanted() {
		at[i] = slices.Index(names, *want)
	}
	im.clock.milliseconds = strings.HasSuffix(column(c.Time), "ms")
	return im.table(len(names), separator, true, func(fields []string) error {
		var values [7]string
		for i, k := range at {
			if k >= 0 {
				values[i] = strings.TrimSpace(fields[k])
			}
		}
		return im.add(&c, values)
	})
}

func (im *importer) readLines(c Columns) error {
	completed := false
	for {
		line, whole, err := im.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		fields := map[string]string{}
		var object map[string]json.RawMessage
		if err := json.Unmarshal(line, &object); err != nil {
			if !whole && len(im.rows) > 0 && !json.Valid(line) {
				im.cut = true
				return nil
			}
			return im.fail("%w: expected a JSON object per line", err)
		}
		flatten("", object, fields, 0)
		if !completed {
			trial := c
			if err := trial.complete(slices.Sorted(maps.Keys(fields))); err != nil {
				if im.skipped++; im.skipped < 1000 && !hasCounts(&c, fields) { // a line of another kind stands first
					continue
				}
				return im.fail("%w", err)
			}
			c, completed = trial, true
			im.clock.milliseconds = strings.HasSuffix(column(c.Time), "ms")
		}
		var values [7]string
		for i, want := range c.wanted() {
			values[i] = fields[*want]
		}
		if err := im.add(&c, values); err != nil {
			return err
		}
	}
}

// hasCounts reports whether a JSON line has the counts that were named.
func hasCounts(c *Columns, fields map[string]string) bool {
	return c.Input == "" || c.Output == "" || fields[c.Input] != "" || fields[c.Output] != ""
}

// maxDepth bounds how deep the paths of a JSON line go.
const maxDepth = 8

// flatten writes an object's numbers, strings and booleans under their paths; null and lists are left out.
func flatten(prefix string, object map[string]json.RawMessage, to map[string]string, depth int) {
	for key, raw := range object {
		path := prefix + key
		switch {
		case len(raw) == 0 || raw[0] == '[' || string(raw) == "null":
		case raw[0] == '{':
			var inner map[string]json.RawMessage
			if depth < maxDepth && json.Unmarshal(raw, &inner) == nil {
				flatten(path+".", inner, to, depth+1)
			}
		case raw[0] == '"':
			var text string
			if json.Unmarshal(raw, &text) == nil {
				to[path] = text
			}
		default:
			to[path] = string(raw)
		}
	}
}

// add takes a line's values.
func (im *importer) add(c *Columns, v [7]string) (err error) {
	if v[1] == "" || v[2] == "" {
		im.skipped++
		return nil
	}
	x := row{index: len(im.rows), end: unknown, class: strings.Clone(v[4]), lora: strings.Clone(v[6])}
	if x.at, err = im.clock.parse(v[0]); err != nil {
		return im.fail("%s: %w", c.Time, err)
	}
	if x.prompt, err = parseCount(v[1]); err != nil {
		return im.fail("%s: %w", c.Input, err)
	}
	if x.output, err = parseCount(v[2]); err != nil {
		return im.fail("%s: %w", c.Output, err)
	}
	if v[3] != "" {
		x.session = alias(im.sessions, strings.Clone(v[3]))
	}
	if v[5] != "" {
		if x.priority, err = strconv.Atoi(v[5]); err != nil {
			return im.fail("%s: %q is not a whole number", c.Priority, v[5])
		}
	}
	return im.give(x, func(x row) error {
		im.rows = append(im.rows, x)
		return nil
	})
}

// trace puts the rows in order of time and numbers the turns.
func (im *importer) trace() *Imported {
	rows := fromZero(im.rows)
	slices.SortStableFunc(rows, func(a, b row) int { return cmp.Compare(a.at, b.at) })
	out := &Imported{Skipped: im.skipped, Records: make([]Record, len(rows))}
	turns := map[string]int{}
	for i := range rows {
		x := &rows[i]
		out.Records[i] = Record{Index: i, Due: &x.at, Sent: x.at, PromptTokens: x.prompt, AskedTokens: x.output,
			OutputTokens: x.output, Session: x.session, Class: x.class, Priority: x.priority, LoRA: x.lora}
		if x.session != "" {
			out.Records[i].Turn = turns[x.session]
			turns[x.session]++
		}
	}
	if im.skipped > 0 {
		out.Notes = append(out.Notes, fmt.Sprintf("%d lines without token counts are left out", im.skipped))
	}
	if im.cut {
		out.Notes = append(out.Notes, fmt.Sprintf("%s ends in the middle of a line", im.name))
	}
	return out
}
