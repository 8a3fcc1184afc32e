package main

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
)

func manCommand() *cli.Command {
	return &cli.Command{
		Name:  "man",
		Usage: "the manual page, made of what --help says",
		Description: "Examples:\n" +
			"   kvtune man | man -l -\n" +
			"   kvtune man > /usr/local/share/man/man1/kvtune.1",
		Action: func(c *cli.Context) error {
			_, err := c.App.Writer.Write(manual(c.App))
			return err
		},
	}
}

// manual is the manual page in man(7)'s language.
func manual(app *cli.App) []byte {
	b := new(bytes.Buffer)
	fmt.Fprint(b, ".TH KVTUNE 1\n.SH NAME\nkvtune \\- "+roff(app.Usage)+"\n")
	fmt.Fprint(b, ".SH SYNOPSIS\n.B kvtune\n.I COMMAND\n.RI [ flags ]\n")
	fmt.Fprint(b, ".SH DESCRIPTION\n")
	var sections []string // of the notes that have a heading
	for _, note := range notes {
		if head, text, ok := strings.Cut(note, ": "); ok {
			sections = append(sections, fmt.Sprintf(".SH %s\n%s\n", strings.ToUpper(head), roff(text)))
			continue
		}
		fmt.Fprintf(b, "%s\n.PP\n", roff(note))
	}
	fmt.Fprint(b, "Start with:\n")
	for _, line := range firstCommands {
		fmt.Fprintf(b, ".TP\n.B %s\n%s\n", roff(line[0]), roff(line[1]))
	}
	fmt.Fprint(b, ".SH COMMANDS\n")
	for _, cmd := range app.Commands {
		if cmd.Hidden {
			continue
		}
		p := pageOf(cmd)
		usage := p.usage
		if !strings.HasSuffix(usage, "?") {
			usage += "."
		}
		fmt.Fprintf(b, ".SS %s\n%s\n", strings.TrimSpace("kvtune "+roff(p.name)+" "+roff(p.args)), roff(usage))
		if p.about != "" {
			fmt.Fprintf(b, ".PP\n%s\n", roff(p.about))
		}
		for _, g := range p.groups {
			if g.title == catProgram {
				continue // they are the same in every command
			}
			fmt.Fprintf(b, ".PP\n.I %s\n", roff(g.title))
			writeFlags(b, g.flags)
		}
		if len(p.examples) > 0 {
			fmt.Fprint(b, ".PP\nExamples:\n.PP\n.nf\n.RS 4\n")
			for _, e := range p.examples {
				for i, line := range commandLines(e, 70) {
					fmt.Fprintf(b, "%*s%s\n", 2*min(i, 1), "", roff(line))
				}
			}
			fmt.Fprint(b, ".RE\n.fi\n")
		}
	}
	fmt.Fprint(b, ".SH FLAGS OF EVERY COMMAND\n")
	for _, g := range pageOf(app.Commands[0]).groups {
		if g.title == catProgram {
			writeFlags(b, g.flags)
		}
	}
	fmt.Fprint(b, strings.Join(sections, ""))
	return b.Bytes()
}

func writeFlags(b *bytes.Buffer, flags []flagText) {
	for _, f := range flags {
		fmt.Fprintf(b, ".TP\n.B %s\n%s\n", roff(f.spelling), roff(f.about))
	}
}

// roff is text that means itself: no character of it is one of roff's.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", "\\`", "^", `\(ha`, "~", `\(ti`).Replace(text)
	if strings.HasPrefix(text, ".") {
		text = `\&` + text
	}
	return text
}
