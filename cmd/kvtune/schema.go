package main

import (
	"embed"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// schemaFiles are the schemas of what kvtune prints and writes (JSON Schema, draft 2020-12). A test holds them beside
// the Go types, and validates what every command prints and writes.
//
//go:embed schema/*.json
var schemaFiles embed.FS

// schemaNames are the schemas' names, sorted.
func schemaNames() []string {
	entries, err := schemaFiles.ReadDir("schema")
	if err != nil {
		panic(err) // the folder is in the program
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = strings.TrimSuffix(e.Name(), ".json")
	}
	return names
}

func schemaCommand() *cli.Command {
	return &cli.Command{
		Name:      "schema",
		Usage:     "the JSON Schema of what --format json prints, or of a file that kvtune writes",
		ArgsUsage: "[NAME]",
		Description: "Without a name it lists the schemas. They are in draft 2020-12. Fields may be added; a change that a " +
			"reader would notice has a new major version in the field \"schema\".\n\nExamples:\n" +
			"   kvtune schema\n" +
			"   kvtune schema output",
		Action: printSchema,
	}
}

func printSchema(c *cli.Context) error {
	names := schemaNames()
	switch c.NArg() {
	case 0:
		_, err := fmt.Fprintln(c.App.Writer, strings.Join(names, "\n"))
		return err
	case 1:
		name := c.Args().First()
		if !slices.Contains(names, name) {
			return usagef("%s: expected one of %s", name, strings.Join(names, ", "))
		}
		f, err := schemaFiles.Open(path.Join("schema", name+".json"))
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(c.App.Writer, f)
		return err
	}
	return usagef("%d schemas: expected one, kvtune schema NAME", c.NArg())
}
