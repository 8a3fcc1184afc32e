package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

func testApp() *cli.App { return newApp(io.Discard, io.Discard) }

func TestComplete(t *testing.T) {
	for _, c := range []struct {
		words string // the last one is completed; _ is an empty one
		want  string // some candidates, in order, or "none"
		files bool
	}{
		{"_", "workflow profile analyze", false},
		{"pl", "plan", false},
		{"--v", "--version", false},
		{"plan --target-optimization _", "throughput latency memory cache balanced", false},
		{"plan --target-optimization th", "throughput", false},
		{"plan --target-optimization=th", "--target-optimization=throughput", false},
		{"plan --quick-test --target-opt", "--target-optimization", false},
		{"plan --quick-test --quick", "none", false},
		{"plan --slo x --slo", "--slo", false},
		{"profile --preset _", "low-latency high-throughput memory-efficient", false},
		{"profile --gpu H2", "H200", false},
		{"profile --model meta", "meta-llama/Llama-3.1-8B", false},
		{"profile --profiling-type de", "decode", false},
		{"bench --backend _", "auto cuda host", false},
		{"bench --format _", "text json csv bench", false},
		{"bench --op sw", "swap_out swap_in", false},
		{"bench --axis lay", "layout=", false},
		{"bench --axis layout=", "layout=NHD layout=HND layout=x-packed", false},
		{"bench --axis layout=HND,", "layout=HND,NHD layout=HND,x-packed", false},
		{"verify --plan _", "none", true},
		{"verify --strategy d", "default", false},
		{"compare _", "none", true},
		{"compare --run old.test new.test -- _", "none", true},
		{"completion _", "bash zsh fish", false},
		{"schema pl", "plans", false},
		{"env --format _", "text json", false},
		{"nothing _", "none", false},
		{"__", "none", false},
	} {
		t.Run(c.words, func(t *testing.T) {
			words := strings.Fields(c.words)
			if last := len(words) - 1; words[last] == "_" {
				words[last] = ""
			}
			got := complete(testApp(), words)
			if got.files != c.files {
				t.Errorf("files: %v, want %v", got.files, c.files)
			}
			var list []string
			for _, one := range got.words {
				list = append(list, one.word)
			}
			if want := strings.Fields(c.want); c.want == "none" {
				if len(list) > 0 {
					t.Errorf("%v, want none", list)
				}
			} else if len(list) < len(want) || !slices.Equal(list[:len(want)], want) {
				t.Errorf("%v, want %v first", list, want)
			}
		})
	}
}

// Every list that help shows is one that a shell completes, and every value in it is accepted.
func TestChoicesComplete(t *testing.T) {
	for _, cmd := range testApp().Commands {
		for _, f := range cmd.Flags {
			f, ok := f.(choice)
			if !ok {
				continue
			}
			got := complete(testApp(), []string{cmd.Name, "--" + f.Name, ""})
			if len(got.words) != len(f.values) || len(f.values) < 2 {
				t.Errorf("%s --%s: %v, want %v", cmd.Name, f.Name, got.words, f.values)
			}
			if f.Value != "" && !slices.Contains(f.values, f.Value) {
				t.Errorf("%s --%s: the default %q is not in %v", cmd.Name, f.Name, f.Value, f.values)
			}
		}
	}
}

// program is a folder with a kvtune: this test binary under that name.
func program(t *testing.T) (dir string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	if err := os.Symlink(self, filepath.Join(dir, "kvtune")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// The scripts run in the shells that are installed, against the program.
func TestShells(t *testing.T) {
	bin := program(t)
	// Each harness prints what the shell was told for the words $1, of which the last is completed.
	harness := map[string][]string{
		"bash": {"-c", `source <(kvtune completion bash) || exit 1
			COMP_WORDS=(kvtune "$@"); COMP_CWORD=$#; _kvtune; printf '%s\n' "${COMPREPLY[@]}"`, "bash"},
		"zsh": {"-fc", `compdef() { }; _describe() { print -rl -- "${(@P)2}" }; _files() { print -l ':files' }
			source <(kvtune completion zsh) || exit 1
			words=(kvtune "$@"); CURRENT=$(( $# + 1 )); _kvtune`, "zsh"},
		"fish": {"--no-config", "-c", `kvtune completion fish | source; or exit 1
			complete -C (string join ' ' -- kvtune $argv)`},
	}
	for _, c := range []struct {
		words          []string
		want, wantBash string
	}{
		{[]string{"plan", "--target-optimization", "th"}, "throughput", ""},
		{[]string{"profile", "--preset", ""}, "low-latency high-throughput memory-efficient", ""},
		{[]string{"ser"}, "serve", ""},
		{[]string{"bench", "--axis", "layout=x"}, "layout=x-packed", "x-packed"},
	} {
		for shell, args := range harness {
			t.Run(shell+" "+strings.Join(c.words, " "), func(t *testing.T) {
				path, err := exec.LookPath(shell)
				if err != nil {
					t.Skipf("no %s here", shell)
				}
				words, want := c.words, c.want
				if shell == "bash" && c.wantBash != "" { // Bash cuts words at "="
					name, value, _ := strings.Cut(words[len(words)-1], "=")
					words, want = append(slices.Clone(words[:len(words)-1]), name, "=", value), c.wantBash
				}
				cmd := exec.Command(path, append(slices.Clone(args), words...)...)
				cmd.Env = append(os.Environ(), "PATH="+bin+string(os.PathListSeparator)+os.Getenv("PATH"), "HOME="+t.TempDir())
				var stderr bytes.Buffer
				cmd.Stderr = &stderr
				out, err := cmd.Output()
				if err != nil || stderr.Len() > 0 {
					t.Fatalf("%v: %s%s", err, out, &stderr)
				}
				var got []string
				for line := range strings.Lines(string(out)) {
					word, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
					word, _, _ = strings.Cut(word, ":")
					got = append(got, word)
				}
				slices.Sort(got)
				expect := strings.Fields(want)
				slices.Sort(expect)
				if !slices.Equal(got, expect) {
					t.Errorf("%q, want %q", got, expect)
				}
			})
		}
	}
}

// Help and the manual page say the same: every flag with its words. No line of help is wider than pageWidth.
func TestHelpAndManual(t *testing.T) {
	app := testApp()
	manual := string(manual(app))
	for _, cmd := range app.Commands {
		if cmd.Hidden {
			continue
		}
		p := pageOf(cmd)
		text := p.help()
		for line := range strings.Lines(overview(app) + text) {
			if n := len([]rune(strings.TrimRight(line, "\n"))); n > pageWidth {
				t.Errorf("%s: %d columns: %s", cmd.Name, n, line)
			}
		}
		if len(p.examples) == 0 {
			t.Errorf("%s has no example", cmd.Name)
		}
		for _, f := range cmd.Flags {
			name := f.Names()[0]
			if positive, ok := strings.CutPrefix(name, "no-"); ok && strings.Contains(text, "--[no-]"+positive) {
				continue
			}
			if !strings.Contains(text, "--"+name) && !strings.Contains(text, "--[no-]"+name) {
				t.Errorf("kvtune %s --help does not have --%s", cmd.Name, name)
			}
		}
		for _, g := range p.groups {
			if g.title == "" {
				t.Errorf("%s: flags without a group: %v", cmd.Name, g.flags)
			}
			for _, f := range g.flags {
				if f.about == "" {
					t.Errorf("%s: %s says nothing", cmd.Name, f.spelling)
				}
				if !strings.Contains(manual, roff(f.spelling)+"\n"+roff(f.about)+"\n") {
					t.Errorf("the manual page does not say %s: %s", f.spelling, f.about)
				}
			}
		}
	}
	for _, lint := range [][]string{
		{"mandoc", "-T", "lint", "-W", "warning"}, {"groff", "-man", "-Tutf8", "-ww", "-z"},
	} {
		path, err := exec.LookPath(lint[0])
		if err != nil {
			t.Logf("no %s here", lint[0])
			continue
		}
		cmd := exec.Command(path, lint[1:]...)
		cmd.Stdin = strings.NewReader(manual)
		out, _ := cmd.CombinedOutput() // what it says is the result
		for line := range strings.Lines(string(out)) {
			if !strings.Contains(line, "missing date") { // the same program gives the same page
				t.Errorf("%s: %s", lint[0], line)
			}
		}
	}
}
