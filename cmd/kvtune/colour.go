package main

import (
	"bytes"
	"io"
	"os"
	"regexp"
)

// Colours say again what the words say: the verdict is bold, what must not be overlooked is yellow or red.
const (
	bold   = "\x1b[1m"
	yellow = "\x1b[33m"
	red    = "\x1b[31m"
	plain  = "\x1b[0m"
)

// alarming and cautioning are the words that a reader must not overlook.
var (
	alarming   = regexp.MustCompile(`\b(MISSED|PARTIAL|FAILED REQUESTS|WORSE|slower)\b`)
	cautioning = regexp.MustCompile(`\b(SIMULATED|not verified|NOT VERIFIED)\b`)
)

// coloured reports whether w is a terminal that is to have colours (https://no-color.org).
func coloured(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && isTerminal(f) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// painter colours a command's text, line by line.
type painter struct {
	w     io.Writer
	rest  []byte // a line that has not ended
	lines int
}

func (p *painter) Write(text []byte) (int, error) {
	p.rest = append(p.rest, text...)
	for {
		line, rest, whole := bytes.Cut(p.rest, []byte("\n"))
		if !whole {
			return len(text), nil
		}
		if _, err := io.WriteString(p.w, p.paint(string(line))+"\n"); err != nil {
			return 0, err
		}
		p.rest = rest
	}
}

// flush writes a last line that has no end.
func (p *painter) flush() error {
	if len(p.rest) == 0 {
		return nil
	}
	_, err := io.WriteString(p.w, p.paint(string(p.rest)))
	p.rest = nil
	return err
}

func (p *painter) paint(line string) string {
	p.lines++
	base := ""
	switch {
	case p.lines == 1:
		base = bold
	case len(line) > 1 && line[:2] == "! ":
		base = yellow
	}
	back := plain + base
	line = alarming.ReplaceAllString(line, red+"$0"+back)
	if base != yellow {
		line = cautioning.ReplaceAllString(line, yellow+"$0"+back)
	}
	if base == "" {
		return line
	}
	return base + line + plain
}
