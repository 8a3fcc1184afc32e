package main

import (
	"embed"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"kvtune/kernels"
	"kvtune/kernels/layout"
	"kvtune/planner/spec"
)

// completions are what a word may become.
type completions struct {
	words []candidate
	// files is set where a file's or folder's name is expected, which the shell knows best.
	files bool
}

// candidate is a word with what it means, "" where that needs no words.
type candidate struct{ word, about string }

// filesWord stands for the names of files in what the shells read.
const filesWord = ":files"

// complete says what the last of the words behind "kvtune" may become. It knows the flags of package cli's commands:
// their names, the values of those that have a list, and where a file is expected.
func complete(app *cli.App, words []string) completions {
	last := words[len(words)-1]
	if slices.Contains(words[:len(words)-1], "--") {
		return completions{files: true} // another program's words
	}
	if len(words) == 1 {
		var all completions
		for _, cmd := range app.Commands {
			if !cmd.Hidden {
				all.words = append(all.words, candidate{cmd.Name, cmd.Usage})
			}
		}
		for _, f := range []string{"--help", "--version"} {
			if strings.HasPrefix(last, "-") {
				all.words = append(all.words, candidate{f, ""})
			}
		}
		return all.startingWith(last)
	}
	cmd := app.Command(words[0])
	if cmd == nil {
		return completions{}
	}
	if name, value, ok := strings.Cut(last, "="); ok && strings.HasPrefix(name, "-") {
		return valuesOf(flagNamed(cmd, name), value).behind(name + "=")
	}
	if f := flagNamed(cmd, words[len(words)-2]); f != nil && f.TakesValue() {
		return valuesOf(f, last)
	}
	if strings.HasPrefix(last, "-") {
		return flagsOf(cmd, words[1:]).startingWith(last)
	}
	return argumentsOf(cmd).startingWith(last)
}

func (c completions) startingWith(prefix string) completions {
	c.words = slices.DeleteFunc(c.words, func(w candidate) bool { return !strings.HasPrefix(w.word, prefix) })
	return c
}

func (c completions) behind(prefix string) completions {
	for i := range c.words {
		c.words[i].word = prefix + c.words[i].word
	}
	return c
}

// flagNamed finds a flag by how it was typed, nil for none.
func flagNamed(cmd *cli.Command, typed string) cli.DocGenerationFlag {
	name := strings.TrimLeft(typed, "-")
	if name == typed {
		return nil
	}
	for _, f := range cmd.Flags {
		if slices.Contains(f.Names(), name) {
			return f.(cli.DocGenerationFlag)
		}
	}
	return nil
}

// flagsOf are a command's flags, without those that were given already and cannot be repeated.
func flagsOf(cmd *cli.Command, given []string) (all completions) {
	for _, f := range cmd.Flags {
		doc := f.(cli.DocGenerationFlag)
		_, repeated := f.(*cli.StringSliceFlag)
		name := "--" + f.Names()[0]
		if !repeated && slices.Contains(given[:len(given)-1], name) {
			continue
		}
		_, about := placeholder(doc.GetUsage())
		all.words = append(all.words, candidate{name, about})
	}
	all.words = append(all.words, candidate{"--help", "show help"})
	return all
}

// valuesOf are the values of a flag that begin like typed.
func valuesOf(f cli.DocGenerationFlag, typed string) completions {
	if f == nil {
		return completions{}
	}
	var values []string
	switch f := f.(type) {
	case choice:
		values = f.values
	case *cli.PathFlag:
		return completions{files: true}
	}
	switch f.Names()[0] {
	case "profiling-results", "steps", "configs": // lists of files
		return completions{files: true}
	case "op":
		for _, op := range kernels.Ops() {
			values = append(values, string(op))
		}
	case "axis":
		return axisValues(typed)
	case "gpu":
		for _, g := range spec.GPUs() {
			values = append(values, g.Name)
		}
	case "model":
		for _, m := range spec.Models() {
			values = append(values, m.Name)
		}
	case "prefix":
		values = []string{"shared", "own", "groups="}
	case "kv-cache-dtype":
		values = []string{"auto", "fp8"}
	}
	return wordsOf(values).startingWith(typed)
}

func wordsOf(values []string) (c completions) {
	for _, v := range values {
		c.words = append(c.words, candidate{word: v})
	}
	return c
}

// axisValues completes name=value,value: the names, and the values of those that have a list.
func axisValues(typed string) completions {
	name, list, ok := strings.Cut(typed, "=")
	if !ok {
		return wordsOf(kernels.Axes()).startingWith(typed).followedBy("=")
	}
	var values []string
	switch name {
	case "layout":
		for _, l := range layout.Layouts() {
			values = append(values, l.String())
		}
	case "dtype":
		for _, d := range layout.DTypes() {
			values = append(values, d.String())
		}
	case "block_size":
		values = []string{"1", "2", "4", "8", "16", "32", "64", "128", "256"}
	}
	at := strings.LastIndex(list, ",") + 1
	given := strings.Split(list[:at], ",")
	values = slices.DeleteFunc(values, func(v string) bool { return slices.Contains(given, v) })
	return wordsOf(values).startingWith(list[at:]).behind(name + "=" + list[:at])
}

func (c completions) followedBy(suffix string) completions {
	for i := range c.words {
		c.words[i].word += suffix
	}
	return c
}

// argumentsOf are what stands beside a command's flags.
func argumentsOf(cmd *cli.Command) completions {
	switch {
	case cmd.Name == "schema":
		return wordsOf(schemaNames())
	case cmd.Name == "completion":
		return wordsOf(shells())
	case cmd.ArgsUsage != "":
		return completions{files: true}
	}
	return flagsOf(cmd, []string{""})
}

// completeCommand is what the shells' scripts call: kvtune __complete SHELL WORD..., the last word the one to complete.
func completeCommand() *cli.Command {
	return &cli.Command{
		Name: "__complete", Hidden: true, SkipFlagParsing: true, ArgsUsage: "SHELL WORD...",
		Action: func(c *cli.Context) error {
			words := c.Args().Slice()
			if len(words) < 2 || !slices.Contains(shells(), words[0]) {
				return usagef("expected a shell and the words of a command line")
			}
			if extra, _ := c.App.Metadata["extra"].([]string); extra != nil { // run cuts a command line there
				words = append(append(words, "--"), extra...)
			}
			shell, words := words[0], words[1:]
			cut := ""
			if shell == "bash" {
				words, cut = joined(words)
			}
			return writeCompletions(c.App.Writer, complete(c.App, words), shell, cut)
		},
	}
}

// joined undoes what Bash does to words with "=" and ":", which it cuts there. cut is what the last word begins with
// and Bash keeps to itself.
func joined(words []string) (whole []string, cut string) {
	const breaks = "=:"
	glue := false
	for _, w := range words {
		isBreak := w != "" && strings.Trim(w, breaks) == ""
		if (isBreak || glue) && len(whole) > 0 {
			whole[len(whole)-1] += w
		} else {
			whole = append(whole, w)
		}
		glue = isBreak
	}
	last := whole[len(whole)-1]
	return whole, last[:strings.LastIndexAny(last, breaks)+1]
}

// writeCompletions writes one candidate a line: with what it means behind a tab (fish) or a colon (zsh, which wants the
// colons of the word marked).
func writeCompletions(w io.Writer, c completions, shell, cut string) error {
	for _, one := range c.words {
		word, about := strings.TrimPrefix(one.word, cut), strings.Join(strings.Fields(one.about), " ")
		var line string
		switch {
		case shell == "zsh":
			line = strings.ReplaceAll(word, ":", `\:`)
			if about != "" {
				line += ":" + about
			}
		case shell == "fish" && about != "":
			line = word + "\t" + about
		default:
			line = word
		}
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	if c.files {
		_, err := fmt.Fprintln(w, filesWord)
		return err
	}
	return nil
}

func shells() []string { return []string{"bash", "zsh", "fish"} }

func completionCommand() *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "the script that lets bash, zsh or fish complete kvtune's commands, flags and values",
		ArgsUsage: "bash|zsh|fish",
		Description: "Read it when a shell starts; it asks kvtune itself, so it stays right when kvtune " +
			"changes.\n\nExamples:\n" +
			"   source <(kvtune completion bash)\n" +
			"   kvtune completion zsh > \"${fpath[1]}/_kvtune\"\n" +
			"   kvtune completion fish > ~/.config/fish/completions/kvtune.fish",
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 || !slices.Contains(shells(), c.Args().First()) {
				return usagef("expected one of %s: kvtune completion bash", strings.Join(shells(), ", "))
			}
			script, err := completionScripts.ReadFile("completion/kvtune." + c.Args().First())
			if err != nil {
				return err
			}
			_, err = c.App.Writer.Write(script)
			return err
		},
	}
}

// completionScripts are kvtune.bash, kvtune.zsh and kvtune.fish.
//
//go:embed completion
var completionScripts embed.FS
