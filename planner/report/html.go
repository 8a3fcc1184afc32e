package report

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"reflect"
	"slices"
	"strings"
	"unicode"
)

//go:embed page.html
var pageSource string

//go:embed page.css
var pageStyle string

//go:embed page.js
var pageScript string

// page is what the template shows: a verdict, warnings, and sections in order.
type page struct {
	Title, Verdict string
	// Stamps are the words that stay in sight, Alarms and Warnings what stands below the verdict.
	Stamps, Alarms, Warnings []string
	Simulated                bool
	Style                    template.CSS
	Script                   template.JS
	// StyleHash and ScriptHash are all that the page's policy allows.
	StyleHash, ScriptHash string
	Sections              []section
}

// section is a chapter of the page.
type section struct {
	ID, Title string
	Blocks    []block
}

// block is a part of a section; what is set of it is shown in the order of the fields.
type block struct {
	Heading string
	// Fold is the line under which everything below it is folded away.
	Fold   string
	Alarms []string
	Text   []string
	List   []string
	Code   []string
	Facts  [][2]string
	Tables []table
	Heats  []heat
	Charts []chart
	Terms  []term
	Notes  []string
}

// table is rows of cells; the first cell of a row names it.
type table struct {
	Caption string
	Head    []string
	Rows    [][]cellText
	// Sort lets the reader order the rows, Filter search them.
	Sort, Filter bool
	Note         string
}

// Columns are the heads of the columns, words like the cells below them.
func (t table) Columns() []cellText {
	heads := make([]cellText, len(t.Head))
	for i, text := range t.Head {
		heads[i].Text = text
		heads[i].Words = len(t.Rows) > 0 && i < len(t.Rows[0]) && t.Rows[0][i].Words
	}
	return heads
}

// Filled is the table without the columns that have nothing in any row.
func (t table) Filled() table {
	full := t
	full.Head, full.Rows = nil, make([][]cellText, len(t.Rows))
	for i, head := range t.Head {
		if !slices.ContainsFunc(t.Rows, func(row []cellText) bool { return row[i] != cellText{Words: row[i].Words} }) {
			continue
		}
		full.Head = append(full.Head, head)
		for j, row := range t.Rows {
			full.Rows[j] = append(full.Rows[j], row[i])
		}
	}
	return full
}

// cellText is a cell of a table.
type cellText struct {
	Text string
	// Small stands below the text; Note is there for who points at it.
	Small, Note string
	// Value is what the rows are sorted by instead of the text.
	Value string
	// Term is the definition that the text links to.
	Term string
	// Words is text and not a figure, Missing what was not observed, Mark what must be seen.
	Words, Missing, Mark bool
}

// chart is a panel as an element of the page.
type chart struct {
	Subject, Missing string
	SVG              template.HTML
	Table            table
}

// term is the definition of a metric.
type term struct{ ID, Name, Text string }

// HTML writes one page that holds everything and loads nothing: verdict and warnings first, then plans, predicted
// beside measured, the table of runs, charts with their figures, what binds, conditions and the commands to repeat. All
// text of the input is escaped; the page's policy forbids loading anything and running anything but its own script,
// without which it can be read in full.
func HTML(w io.Writer, in Input) error {
	p, err := pageOf(in)
	if err != nil {
		return err
	}
	return p.write(w)
}

// pageOf lays a report out.
func pageOf(in Input) (*page, error) {
	p := &page{Title: in.Title, Simulated: in.simulated()}
	p.warn(in, "")
	if p.Title == "" {
		p.Title = "kvtune report"
	}
	p.Verdict = in.Headline()
	for _, add := range []func(Input) error{p.plans, p.runs, p.charts, p.binds, p.search, p.kernels} {
		if err := add(in); err != nil {
			return nil, err
		}
	}
	p.costModel(in.Cost)
	p.conditions(in)
	p.closing(in)
	return p, nil
}

// warn takes the warnings of a report over, those that stamp it apart.
func (p *page) warn(in Input, side string) {
	for _, stamp := range in.stamps() {
		if !slices.Contains(p.Stamps, stamp) {
			p.Stamps = append(p.Stamps, stamp)
		}
	}
	alarms, remarks := in.alarms()
	for _, w := range alarms {
		p.Alarms = append(p.Alarms, side+w)
	}
	for _, w := range remarks {
		p.Warnings = append(p.Warnings, side+w)
	}
}

// add appends a section unless it is empty.
func (p *page) add(id, title string, blocks ...block) {
	empty := func(b block) bool { return reflect.ValueOf(b).IsZero() }
	if blocks = slices.DeleteFunc(blocks, empty); len(blocks) > 0 {
		p.Sections = append(p.Sections, section{id, title, blocks})
	}
}

// write renders the page.
func (p *page) write(w io.Writer) error {
	t, err := template.New("page").Parse(pageSource)
	if err != nil {
		return err
	}
	style := styleSheet()
	p.Style, p.StyleHash = template.CSS(style), sourceHash(style)
	p.Script, p.ScriptHash = template.JS(pageScript), sourceHash(pageScript)
	var b bytes.Buffer
	if err := t.Execute(&b, p); err != nil {
		return err
	}
	_, err = w.Write(bytes.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' && r != '\t' {
			return '?'
		}
		return r
	}, b.Bytes()))
	return err
}

// sourceHash names an element's text in a content security policy.
func sourceHash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// styleSheet is the page's style with the colours of both themes: the reader's system chooses, unless the reader does
// on the page; paper is always light.
func styleSheet() string {
	var classes strings.Builder
	for _, n := range palette.names() {
		if n.name[0] == 'h' {
			continue
		}
		if n.name[0] == 'i' && n.name != "ink" {
			fmt.Fprintf(&classes, ".h%s{background:var(--h%[1]s);color:var(--i%[1]s)}", n.name[1:])
			continue
		}
		fmt.Fprintf(&classes, ".f-%[1]s{fill:var(--%[1]s)}.k-%[1]s{stroke:var(--%[1]s)}", n.name)
	}
	return fmt.Sprintf(":root{%s}\n@media screen and (prefers-color-scheme:dark){:root:not([data-theme=light]){%s}}\n"+
		"@media screen{:root[data-theme=dark]{%[2]s}}\n%[3]s\n%[4]s", palette.style(), night.style(), classes.String(),
		pageStyle)
}

// tableOf is a table of plain cells.
func tableOf(caption string, head []string, rows [][]string) table {
	t := table{Caption: caption, Head: head, Sort: len(rows) > 2, Filter: len(rows) > 20}
	for _, row := range rows {
		cells := make([]cellText, len(row))
		for i, text := range row {
			cells[i] = cellText{Text: text, Words: i > 0 && !figure(text), Missing: text == notObserved}
		}
		t.Rows = append(t.Rows, cells)
	}
	return t
}

// figure says that a text is a number, with or without a unit.
func figure(text string) bool {
	return text == "" || text == "-" || strings.ContainsRune("+-0123456789", rune(text[0])) && len(text) < 24
}

// charts draws panels for the page.
func charts(panels []panel, runs []Run) ([]chart, error) {
	var cs []chart
	for i := range panels {
		p := &panels[i]
		c := chart{Subject: p.subject, Missing: p.missing}
		if p.missing == "" {
			svg, err := p.svg(runs)
			if err != nil {
				return nil, err
			}
			c.SVG = template.HTML(svg) // drawn here; its texts were escaped
		}
		c.Table = tableOf(p.subject, p.head, p.rows)
		c.Table.Note = p.note
		cs = append(cs, c)
	}
	return cs, nil
}
