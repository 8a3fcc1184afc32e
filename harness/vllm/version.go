package vllm

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
)

var (
	versionLine = regexp.MustCompile(`(?m)^\s*(\d+\.\d+(?:\.\w+)*(?:\+[\w.]+)?)\s*$`)
	imageTag    = regexp.MustCompile(`vllm[^:\s]*:v?(\d+\.\d+(?:\.\w+)*)`)
)

// Version asks the command that starts servers which vLLM it is, without starting one: argv up to the model, as in
// [LaunchOptions]. It is "" where the command cannot be asked: one that does not end in "serve" (a container's, whose
// image tag tells the version where it has one). The error is for a command that does not run.
func Version(ctx context.Context, argv []string) (string, error) {
	if len(argv) == 0 {
		argv = []string{"vllm", "serve"}
	}
	if last := len(argv) - 1; last == 0 || argv[last] != "serve" {
		for _, a := range argv {
			if m := imageTag.FindStringSubmatch(a); m != nil {
				return m[1], nil
			}
		}
		return "", nil
	}
	argv = argv[:len(argv)-1]
	if mapsPort(argv) {
		port, err := freePort()
		if err != nil {
			return "", err
		}
		argv = withPort(argv, port)
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return "", cannotStart(argv[0], err)
	}
	if python := interpreter(path, len(argv)); python != "" { // 0.1 s; the command itself imports PyTorch, 10 to 30 s
		const ask = `import importlib.metadata as m; print(m.version("vllm"))`
		if out, err := exec.CommandContext(ctx, python, "-c", ask).Output(); err == nil {
			if m := versionLine.FindSubmatch(out); m != nil {
				return string(m[1]), nil
			}
		}
	}
	cmd := exec.CommandContext(ctx, argv[0], append(argv[1:len(argv):len(argv)], "--version")...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		return "", fmt.Errorf("%s --version fails (%w): %s", strings.Join(argv, " "), err, lines[len(lines)-1])
	}
	if m := versionLine.FindAllSubmatch(out.Bytes(), -1); m != nil {
		return string(m[len(m)-1][1]), nil
	}
	return "", fmt.Errorf("%s --version names no version: %.200q", strings.Join(argv, " "), out.String())
}

// interpreter is the Python behind a console script that pip installed, "" for anything else.
func interpreter(script string, words int) string {
	if words != 1 { // a wrapper: the version is inside of it
		return ""
	}
	f, err := os.Open(script)
	if err != nil {
		return ""
	}
	defer f.Close()
	line, err := bufio.NewReaderSize(f, 512).ReadString('\n')
	python, ok := strings.CutPrefix(strings.TrimSpace(line), "#!")
	if err != nil || !ok || !strings.Contains(python, "python") || strings.Contains(python, " ") {
		return ""
	}
	return python
}
