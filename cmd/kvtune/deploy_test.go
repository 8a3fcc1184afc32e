package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"kvtune/harness"
)

// deployed are the command lines of kvtune in the files that carry it elsewhere, by file.
func deployed(t *testing.T) map[string][]string {
	t.Helper()
	lines := map[string][]string{}
	for _, pattern := range []string{"deploy/kubernetes/*.yaml", "deploy/slurm/*.sbatch"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) < 2 {
			t.Fatalf("%s: %v, %v", pattern, files, err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			text := string(data)
			if m := regexp.MustCompile(`(?ms)^exec (kvtune .*)\z`).FindStringSubmatch(text); m != nil {
				// As a task that was given an endpoint and a time, and nothing beside.
				lines[file] = shellWords(t, regexp.MustCompile(`"\$[{@].*?"`).ReplaceAllString(
					strings.NewReplacer(`"$1"`, "http://vllm:8000", `"$2"`, "2099-01-01T00:00:00Z", "\\\n", " ").Replace(m[1]), ""))
				continue
			}
			m := regexp.MustCompile(`(?m)^ +command: \[kvtune\]\n +args:\n((?: +- .*\n)+)`).FindStringSubmatch(text)
			if m == nil {
				t.Fatalf("%s runs no kvtune", file)
			}
			words := []string{"kvtune"}
			for line := range strings.Lines(m[1]) {
				word, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "- "), " #")
				words = append(words, word)
			}
			lines[file] = words
		}
	}
	return lines
}

// What manifests and batch scripts tell kvtune to do is what it takes: flags, values, objectives.
func TestDeployedCommands(t *testing.T) {
	for file, words := range deployed(t) {
		app := testApp()
		ran := false
		for _, cmd := range app.Commands {
			cmd.Action = func(c *cli.Context) error {
				ran = true
				if c.Args().Present() {
					return strayArgument(c)
				}
				for _, text := range c.StringSlice("slo") {
					if _, err := harness.ParseSLO(text); err != nil {
						return err
					}
				}
				if _, err := startAtOf(c); err != nil {
					return err
				}
				return checkChoices(c, cmd.Flags)
			}
		}
		if err := app.Run(words); err != nil || !ran {
			t.Errorf("%s: %v: %v", file, words, err)
		}
	}
}
