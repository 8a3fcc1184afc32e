package main

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/urfave/cli/v2"
)

// page is what there is to say about a command: help prints it, the manual page is made of it. It is read from the
// command's definition, so that a flag is described in one place.
type page struct {
	name, usage, args string
	about             string
	examples          []string
	groups            []flagGroup
}

// flagGroup is a command's flags of one category, in the order of their definition.
type flagGroup struct {
	title string
	flags []flagText
}

// flagText is a flag: its spelling with its value's name, and what it does.
type flagText struct{ spelling, about string }

func pageOf(cmd *cli.Command) page {
	p := page{name: cmd.Name, usage: cmd.Usage, args: cmd.ArgsUsage}
	about, examples, _ := strings.Cut(cmd.Description, "Examples:\n")
	p.about = strings.Join(strings.Fields(about), " ")
	for line := range strings.Lines(examples) {
		p.examples = append(p.examples, strings.TrimSpace(line))
	}
	has := map[string]bool{}
	for _, f := range cmd.Flags {
		has[f.Names()[0]] = true
	}
	for _, f := range cmd.Flags {
		name := f.Names()[0]
		if positive, ok := strings.CutPrefix(name, "no-"); ok && has[positive] {
			continue // it stands with the flag that it negates
		}
		if f == cli.HelpFlag {
			continue // package cli adds it to the command that runs
		}
		title := f.(cli.CategorizableFlag).GetCategory()
		i := slices.IndexFunc(p.groups, func(g flagGroup) bool { return g.title == title })
		if i < 0 {
			i, p.groups = len(p.groups), append(p.groups, flagGroup{title: title})
		}
		p.groups[i].flags = append(p.groups[i].flags, describeFlag(f, has["no-"+name]))
	}
	for i := range p.groups {
		if g := &p.groups[i]; g.title == catProgram {
			g.flags = append(g.flags, flagText{"-h, --help", "show this help"})
		}
	}
	// What every command has comes last, whatever was defined between.
	slices.SortStableFunc(p.groups, func(a, b flagGroup) int { return lateness(a.title) - lateness(b.title) })
	return p
}

func lateness(title string) int { return slices.Index([]string{catOutput, catProgram}, title) }

func describeFlag(f cli.Flag, negated bool) flagText {
	doc := f.(cli.DocGenerationFlag)
	value, about := placeholder(doc.GetUsage())
	spelling := "--" + f.Names()[0]
	if negated {
		spelling = "--[no-]" + f.Names()[0]
	}
	for _, alias := range f.Names()[1:] {
		if len(alias) == 1 {
			spelling = "-" + alias + ", " + spelling
		} else {
			spelling += ", --" + alias
		}
	}
	if doc.TakesValue() {
		spelling += " " + value
	}
	if c, ok := f.(choice); ok {
		about += " (" + strings.Join(c.values, ", ") + ")"
	}
	if r, ok := f.(cli.RequiredFlag); ok && r.IsRequired() {
		about += " (required)"
	}
	if d := strings.Trim(doc.GetDefaultText(), `"`); doc.TakesValue() && d != "" && d != "0" && d != "0s" {
		about += " (default: " + d + ")"
	}
	return flagText{spelling, about}
}

// placeholder is the name of a flag's value, which stands in back quotes in its usage, and the usage without the
// quotes.
func placeholder(usage string) (value, text string) {
	before, rest, ok := strings.Cut(usage, "`")
	if !ok {
		return "value", usage
	}
	value, after, _ := strings.Cut(rest, "`")
	return value, before + value + after
}

const (
	pageWidth  = 100
	flagColumn = 34 // where a flag's text begins
)

// helpTemplate is a help text in the form that package cli wants.
func helpTemplate(text string) string { return "{{print " + strconv.Quote(text) + "}}" }

// overview is the help of the program, no line wider than pageWidth.
func overview(app *cli.App) string {
	b := new(bytes.Buffer)
	fill(b, 0, 0, "kvtune: "+app.Usage)
	fmt.Fprint(b, "\nUsage: kvtune COMMAND [flags]\n\nCommands:\n")
	for _, cmd := range app.Commands {
		if cmd.Hidden {
			continue
		}
		fmt.Fprintf(b, "  %-12s", cmd.Name)
		fill(b, 14, 14, cmd.Usage)
	}
	fmt.Fprintln(b, "\nStart with:")
	for _, line := range firstCommands {
		fmt.Fprintf(b, "  %-50s%s\n", line[0], line[1])
	}
	fmt.Fprintln(b)
	for _, note := range notes {
		fill(b, 0, 0, note)
	}
	return b.String()
}

// firstCommands and notes are what a newcomer wants to know of all commands; help and the manual page have them.
var (
	firstCommands = [][2]string{
		{"kvtune workflow --quick-test", "no GPU, no vLLM: the whole loop, SIMULATED"},
		{"kvtune workflow --endpoint http://HOST:8000", "the same on your server"},
		{"kvtune COMMAND --help", "the flags of a command, with examples"},
	}
	notes = []string{
		"The first line that a command prints is its verdict. Results go to stdout, progress and messages to stderr.",
		"Exit status: 0 done; 1 error; 2 wrong usage or input; 3 the verdict is no (SLO missed, no feasible plan, a " +
			"regression); 130 interrupted, and what was measured is saved.",
		"Environment: VLLM_API_KEY or VLLM_API_KEY_FILE for servers that want a key; NO_COLOR for no colours.",
	}
)

// help is the page for a terminal, no line wider than pageWidth.
func (p *page) help() string {
	b := new(bytes.Buffer)
	synopsis := "kvtune " + p.name + " [flags]"
	if p.args != "" {
		synopsis += " " + p.args
	}
	fill(b, 0, 0, "kvtune "+p.name+": "+p.usage)
	fmt.Fprintf(b, "\nUsage: %s\n", synopsis)
	if p.about != "" {
		fmt.Fprintln(b)
		fill(b, 0, 0, p.about)
	}
	if len(p.examples) > 0 {
		fmt.Fprintln(b, "\nExamples:")
		for _, e := range p.examples {
			for i, line := range commandLines(e, pageWidth-4) {
				fmt.Fprintf(b, "%*s%s\n", 2+min(i, 1)*2, "", line)
			}
		}
	}
	for _, g := range p.groups {
		fmt.Fprintf(b, "\n%s:\n", g.title)
		for _, f := range g.flags {
			fmt.Fprintf(b, "  %s", f.spelling)
			at := 2 + utf8.RuneCountInString(f.spelling)
			if at+2 > flagColumn {
				fmt.Fprintln(b)
				at = 0
			}
			fill(b, at, flagColumn, f.about)
		}
	}
	return b.String()
}

// fill writes words between a left margin and pageWidth; the line is at column `at` already.
func fill(b *bytes.Buffer, at, margin int, text string) {
	if at < margin {
		fmt.Fprintf(b, "%*s", margin-at, "")
		at = margin
	}
	for i, word := range strings.Fields(text) {
		n := utf8.RuneCountInString(word)
		switch {
		case i == 0:
		case at+1+n > pageWidth:
			fmt.Fprintf(b, "\n%*s", margin, "")
			at = margin
		default:
			b.WriteByte(' ')
			at++
		}
		b.WriteString(word)
		at += n
	}
	b.WriteByte('\n')
}

// commandLines breaks a command line before its flags, as a shell takes it, so that no line is wider than width.
func commandLines(command string, width int) []string {
	var lines []string
	line := ""
	for i, part := range strings.Split(command, " -") {
		if i > 0 {
			part = "-" + part
		}
		switch {
		case line == "":
			line = part
		case len(line)+1+len(part)+2 > width:
			lines = append(lines, line+` \`)
			line = part
		default:
			line += " " + part
		}
	}
	return append(lines, line)
}
