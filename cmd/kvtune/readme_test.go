package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// readme is the README's text, blocks its fenced code by the word behind the fence.
func readme(t *testing.T) (text string, blocks map[string][]string) {
	t.Helper()
	data, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks = map[string][]string{}
	for _, m := range regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$").FindAllStringSubmatch(string(data), -1) {
		blocks[m[1]] = append(blocks[m[1]], m[2])
	}
	return string(data), blocks
}

// shellWords are the words of a command line as a shell takes them.
func shellWords(t *testing.T, line string) []string {
	t.Helper()
	out, err := exec.Command("sh", "-c", `printf '%s\0' `+line).Output()
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
}

// commands are the command lines of the README's shell blocks.
func commands(t *testing.T) (lines []string) {
	_, blocks := readme(t)
	for _, block := range blocks["sh"] {
		for line := range strings.Lines(strings.ReplaceAll(block, "\\\n", " ")) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				lines = append(lines, line)
			}
		}
	}
	return lines
}

// checkCommand says what of a command line does not exist: a command, a flag, a value, a target, a file.
func checkCommand(words []string) error {
	if i := slices.Index(words, "--"); i >= 0 {
		words = words[:i]
	}
	switch program, rest := words[0], words[1:]; program {
	case "make":
		return checkMade(rest)
	case "go":
		if len(rest) == 0 || rest[0] != "test" {
			return fmt.Errorf("go %v: expected a test", rest)
		}
		for _, w := range rest {
			if dir, ok := strings.CutPrefix(w, "./"); ok {
				if _, err := os.Stat(filepath.Join("../..", strings.TrimSuffix(dir, "/..."))); err != nil {
					return err
				}
			}
		}
	case "kvtune", "bin/kvtune", "bin/kvtune-cuda":
		return checkOwn(rest)
	default:
		return fmt.Errorf("%s is no program that the README may run", program)
	}
	return nil
}

// notInCI says why .ci/run does not make a target that the README names.
var notInCI = map[string]string{
	"build":           "make run begins with it",
	"run":             "TestScripts/seed runs its workflow",
	"help":            "it prints the comments behind the targets",
	"accuracy":        "it needs the recorded runs, which are not in the repository",
	"ranking":         "5 minutes; TestRanking has fewer draws",
	"dist":            "it needs a compiler for arm64",
	"test-fire":       "4 minutes; make test has the same tests with fewer rounds",
	"test-slurm":      "it needs Slurm; TestDeployedCommands reads what is sent to it",
	"test-kubernetes": "it needs schemas from the network; TestDeployedCommands reads the jobs",
	"fuzz":            "a minute for each of many; fuzz-parsers is a part of it",
	"bench-load":      "15 minutes, and it needs the other load generators",
	"cuda":            "it needs a CUDA compiler; test-cuda compiles the same",
	"bench-gpu":       "it needs a GPU",
	"bench-h200":      "it needs a GPU",
	"loop-h200":       "it needs a GPU and a vLLM",
	"golden":          "it rewrites what tests compare with",
}

// checkMade checks that a target exists, that what it runs of kvtune does, and that it is made by .ci/run or cannot be.
func checkMade(words []string) error {
	ci, err := os.ReadFile("../../.ci/run")
	if err != nil {
		return err
	}
	if len(words) == 0 {
		return fmt.Errorf("make without a target")
	}
	inCI := regexp.MustCompile(`(?m)^make ` + regexp.QuoteMeta(words[0]) + `$`).Match(ci)
	if inCI == (notInCI[words[0]] != "") {
		return fmt.Errorf("made by .ci/run: %t, not made because: %q", inCI, notInCI[words[0]])
	}
	out, err := exec.Command("make", append([]string{"-n", "-C", "../.."}, words...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%v: %s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if rest, ok := strings.CutPrefix(line, "./bin/kvtune "); ok {
			if err := checkOwn(strings.Fields(rest)); err != nil {
				return fmt.Errorf("%s: %w", line, err)
			}
		}
	}
	return nil
}

// checkOwn checks a command line of kvtune without running it.
func checkOwn(words []string) error {
	if len(words) == 0 {
		return fmt.Errorf("no command")
	}
	if words[0] == "COMMAND" || strings.HasPrefix(words[0], "--") {
		return nil
	}
	cmd := testApp().Command(words[0])
	if cmd == nil {
		return fmt.Errorf("no command %s", words[0])
	}
	words = words[1:]
	for i := 0; i < len(words); i++ {
		typed, value, hasValue := strings.Cut(words[i], "=")
		if !strings.HasPrefix(typed, "-") {
			if cmd.ArgsUsage == "" {
				return fmt.Errorf("%s takes no argument %q", cmd.Name, words[i])
			}
			continue
		}
		f := flagNamed(cmd, typed)
		if f == nil && typed == "--help" {
			continue
		}
		if f == nil {
			return fmt.Errorf("%s has no flag %s", cmd.Name, typed)
		}
		if f.TakesValue() && !hasValue && i+1 < len(words) { // a text may name a flag alone
			i++
			value = words[i]
		}
		if c, ok := f.(choice); ok && value != "" && !slices.Contains(c.values, value) {
			return fmt.Errorf("%s %s has no value %q", cmd.Name, typed, value)
		}
	}
	return nil
}

// Every command, flag, target and file that the README names exists.
func TestReadmeNamesWhatExists(t *testing.T) {
	text, blocks := readme(t)
	for _, line := range commands(t) {
		if strings.HasPrefix(line, "source <(") {
			line = strings.TrimSuffix(strings.TrimPrefix(line, "source <("), ")")
		}
		if err := checkCommand(shellWords(t, line)); err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
	prose := regexp.MustCompile("(?ms)^```.*?^```$").ReplaceAllString(text, "")
	flags := map[string]bool{}
	for _, cmd := range testApp().Commands {
		for _, f := range cmd.Flags {
			for _, name := range f.Names() {
				flags["--"+name] = true
			}
		}
	}
	for _, m := range regexp.MustCompile("`([^`\n]+)`").FindAllStringSubmatch(prose, -1) {
		code := m[1]
		switch first, _, _ := strings.Cut(code, " "); {
		case first == "kvtune", first == "make", first == "go":
			line := code
			if !strings.Contains(line, "'") { // a|b stands for values
				line = strings.ReplaceAll(line, "|", "'|'")
			}
			if err := checkCommand(shellWords(t, line)); err != nil {
				t.Errorf("`%s`: %v", code, err)
			}
		case strings.HasPrefix(code, "--") && first != "--":
			if !flags[first] {
				t.Errorf("`%s`: no command has this flag", code)
			}
		case regexp.MustCompile(`^[\w-]+(/[\w.-]+)+$`).MatchString(code) && !strings.HasPrefix(code, "results/") &&
			!strings.HasPrefix(code, "bin/") && !strings.HasPrefix(code, "vllm/"):
			if _, err := os.Stat(filepath.Join("../..", code)); err != nil {
				t.Errorf("`%s`: %v", code, err)
			}
		}
	}
	for _, m := range regexp.MustCompile(`\]\(([^)]+)\)`).FindAllStringSubmatch(prose, -1) {
		if heading, ok := strings.CutPrefix(m[1], "#"); ok {
			pattern := `(?im)^#+ ` + strings.ReplaceAll(regexp.QuoteMeta(heading), "-", "[ -]") + `$`
			if !regexp.MustCompile(pattern).MatchString(text) {
				t.Errorf("no heading #%s", heading)
			}
		} else if _, err := os.Stat(filepath.Join("../..", m[1])); err != nil {
			t.Error(err)
		}
	}
	for _, cmd := range testApp().Commands {
		if !cmd.Hidden && !strings.Contains(text, "| `kvtune "+cmd.Name+"` |") {
			t.Errorf("the table of commands lacks %s", cmd.Name)
		}
	}
	example, err := os.ReadFile("../../harness/workflow/example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	if len(blocks["go"]) != 1 || !strings.Contains(strings.ReplaceAll(string(example), "\n\t", "\n"), blocks["go"][0]) {
		t.Error("the Go code is not that of Example in harness/workflow")
	}
}

// Every test that the README names exists, and every row of "Under fire" names one.
func TestReadmeNamesTests(t *testing.T) {
	text, _ := readme(t)
	exists := map[string]bool{}
	err := filepath.WalkDir("../..", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		data, err := os.ReadFile(path)
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(t `).FindAllStringSubmatch(string(data), -1) {
			exists[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile("`(Test\\w+)`")
	for _, m := range name.FindAllStringSubmatch(text, -1) {
		if !exists[m[1]] {
			t.Errorf("there is no %s", m[1])
		}
	}
	_, section, _ := strings.Cut(text, "\n## Under fire\n")
	section, _, _ = strings.Cut(section, "\n## ")
	rows := 0
	for line := range strings.Lines(section) {
		if cells := strings.Split(line, " | "); len(cells) == 3 && !strings.HasPrefix(line, "| what is done") &&
			!strings.HasPrefix(line, "| ---") {
			rows++
			if !name.MatchString(cells[2]) {
				t.Errorf("no test: %s", line)
			}
		}
	}
	if rows < 10 {
		t.Errorf("%d rows under fire", rows)
	}
}

// The figure of packages is the map that the imports are held to.
func TestReadmeFigure(t *testing.T) {
	_, blocks := readme(t)
	got, level := map[string]int{}, -1
	for line := range strings.Lines(blocks[""][len(blocks[""])-1]) {
		if line[0] >= '0' && line[0] <= '9' {
			level = int(line[0] - '0')
		}
		names, _, _ := strings.Cut(strings.TrimSpace(line[min(3, len(line)):]), "   ")
		for _, name := range strings.Fields(strings.Trim(names, "|")) {
			got[name] = level
		}
	}
	for name, level := range levels {
		if l, ok := got[name]; !ok || l != level {
			t.Errorf("%s is at level %d, the README says %d", name, level, l)
		}
		delete(got, name)
	}
	if len(got) > 0 {
		t.Errorf("the figure has what is no package: %v", got)
	}
}

// brief makes the README's commands short, and independent of how busy the machine is.
var brief = strings.NewReplacer(
	"kvtune workflow", "kvtune workflow --quick-test",
	"--max-num-seqs 128'", "--max-num-seqs 128' --quick-test",
	"--duration 20s", "--duration 1s", "--rate 1..64", "--rate 1..2",
	"--rate 4..24", "--rate 4..5 --num-requests 20",
	"--budget 45m", "--budget 45m --rounds 1",
	"p99 TTFT <= 500ms", "p99 TTFT <= 60s", "p99 TTFT <= 2s", "p99 TTFT <= 60s",
	// In the foreground timeout signals the program alone, once: a second ^C would quit it at once.
	"kvtune serve", "timeout --foreground --preserve-status -s INT 2 kvtune serve", "127.0.0.1:8000", "127.0.0.1:0",
	"--axis block_size=1,16,256 --axis layout=NHD,HND",
	"--axis block_size=16 --axis context=64 --no-ceilings --rounds 1 --time 5ms",
	"-bench Host", "-bench Host -benchtime 1x", " ./bench", " kvtune/bench",
	"bin/kvtune-cuda", "kvtune",
)

// statusOf is the exit status that a command of the README must have, and words that it must print.
func statusOf(line string) (status int, says string) {
	switch {
	case strings.Contains(line, "--backend cuda"): // the program without kernels takes the same words
		return exitUsage, "no CUDA device can be used"
	case strings.HasPrefix(line, "go "):
		return exitDone, "\nBenchmarkHost/"
	}
	return exitDone, ""
}

// vllmStandIn is a stand-in for the program vllm: the embedded engine.
const vllmStandIn = `#!/bin/sh
if [ "$1" = --version ]; then echo 0.32.0; exit; fi
while [ $# -gt 0 ]; do
  if [ "$1" = --port ]; then port=$2; fi
  shift
done
exec kvtune serve --model meta-llama/Llama-3.1-8B --max-model-len 16384 --listen 127.0.0.1:$port
`

// benchStandIn is a stand-in for a test program that prints Go's benchmark format.
func benchStandIn(nanoseconds int) string {
	return fmt.Sprintf("#!/bin/sh\necho BenchmarkStandIn 1 %d ns/op\n", nanoseconds)
}

// selectsTests checks that a "go test" of the text compiles and that there is what it asks for.
func selectsTests(t *testing.T, words []string) {
	for i, w := range words {
		if (w != "-run" && w != "-bench") || words[i+1] == "NONE" {
			continue
		}
		list := []string{"test", "-list", words[i+1]}
		for _, dir := range words {
			if strings.HasPrefix(dir, "./") {
				list = append(list, dir)
			}
		}
		cmd := exec.Command("go", list...)
		cmd.Dir = "../.."
		out, err := cmd.CombinedOutput()
		if err != nil || !regexp.MustCompile(`(?m)^(Test|Benchmark|Example|Fuzz)`).Match(out) {
			t.Errorf("%v selects nothing: %v\n%s", words, err, out)
		}
	}
}

// The README's commands run, in their order, in one folder; HOST and what is launched are the embedded engine.
func TestReadmeCommands(t *testing.T) {
	if raceDetector {
		t.Skip("run without -race: go test -run ReadmeCommands ./cmd/kvtune")
	}
	bin, dir := program(t), t.TempDir()
	command := func(line string) *exec.Cmd {
		cmd := exec.Command("bash", "-c", line)
		if strings.HasPrefix(line, "go ") {
			cmd.Dir = "../.."
			return cmd
		}
		cmd.Dir = dir
		path := strings.Join([]string{bin, dir, os.Getenv("PATH")}, string(os.PathListSeparator))
		cmd.Env = append(os.Environ(), "PATH="+path, "HOME="+dir)
		return cmd
	}
	run := func(line string, want int, says string) {
		t.Helper()
		start := time.Now()
		out, err := command(line).CombinedOutput()
		var exit *exec.ExitError
		status := exitDone
		if errors.As(err, &exit) {
			status = exit.ExitCode()
		} else if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if status != want || !strings.Contains(string(out), says) {
			t.Fatalf("%s: status %d, want %d and %q\n%s", line, status, want, says, out)
		}
		t.Logf("%.1f s, status %d: %s", time.Since(start).Seconds(), status, line)
	}
	serve := command("exec kvtune serve --listen 127.0.0.1:0")
	stdout, err := serve.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		serve.Process.Signal(os.Interrupt)
		serve.Wait()
	}()
	first := make([]byte, 256)
	n, err := stdout.Read(first)
	url := regexp.MustCompile(`http://[0-9.:]+\d`).FindString(string(first[:n]))
	if err != nil || url == "" {
		t.Fatalf("%q, %v", first[:n], err)
	}
	log := "timestamp,prompt_tokens,completion_tokens\n"
	for i := range 20 {
		log += fmt.Sprintf("%.2f,%d,%d\n", float64(i)*0.1, 50+37*i, 8+i)
	}
	if err := os.WriteFile(filepath.Join(dir, "access.csv"), []byte(log), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"vllm": vllmStandIn, "old.test": benchStandIn(100), "new.test": benchStandIn(100), "slow.test": benchStandIn(110),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	bench, err := filepath.Abs("../../bench")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(bench, filepath.Join(dir, "bench")); err != nil { // the archives that are in the repository
		t.Fatal(err)
	}
	// What the gate compares with is there before: a slower device, whose measured times are above the server's.
	run("kvtune profile --gpu A100 --preset low-latency --num-measurements 4 --output-dir old", exitDone, "SIMULATED")
	ran := 0
	for _, line := range commands(t) {
		if strings.HasPrefix(line, "make ") {
			continue // checkMade
		}
		ran++
		want, says := statusOf(line)
		run(brief.Replace(strings.ReplaceAll(line, "http://HOST:8000", url)), want, says)
	}
	if ran < 20 {
		t.Errorf("only %d commands were run", ran)
	}
	// Status 3 of the gate.
	run("kvtune compare --threshold 0.02 new old", exitNegative, "REGRESSION")
	run("kvtune compare --run old.test slow.test", exitNegative, "REGRESSION")
	text, _ := readme(t)
	for _, m := range regexp.MustCompile("`(go test [^`\n]+)`").FindAllStringSubmatch(text, -1) {
		selectsTests(t, shellWords(t, m[1]))
	}
}
