package vllm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestVersion(t *testing.T) {
	dir := t.TempDir()
	script := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	vllm := script("vllm", "#!/bin/sh\n[ \"$*\" = --version ] || exit 9\necho 'UserWarning: no NVML in 0.1.2' >&2\necho "+
		"0.32.0+cpu\n")
	wrapper := script("wrapper", "#!/bin/sh\nexec \"$@\"\n")
	python := script("python3", "#!/bin/sh\n[ \"$1\" = -c ] && echo 0.26.0\n")
	installed := script("pip-vllm", "#!"+python+"\nimport nothing\n")
	for _, c := range []struct {
		argv []string
		want string
		err  string
	}{
		{[]string{vllm, "serve"}, "0.32.0+cpu", ""},
		{[]string{wrapper, vllm, "serve"}, "0.32.0+cpu", ""},
		{[]string{installed, "serve"}, "0.26.0", ""}, // without running it
		{[]string{"docker", "run", "--gpus", "all", "vllm/vllm-openai:v0.29.0"}, "0.29.0", ""},
		{[]string{"docker", "run", "registry.local:5000/vllm-openai:v0.28.1rc1", "--x"}, "0.28.1rc1", ""},
		{[]string{"docker", "run", "vllm/vllm-openai:latest"}, "", ""},
		{[]string{vllm}, "", ""},
		{[]string{filepath.Join(dir, "none"), "serve"}, "", "name the command"},
		{[]string{script("broken", "#!/bin/sh\necho ImportError: torch; exit 1\n"), "serve"},
			"", "exit status 1): ImportError: torch"},
		{[]string{script("mute", "#!/bin/sh\necho hello\n"), "serve"}, "", "names no version"},
	} {
		got, err := Version(t.Context(), c.argv)
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q: %q, %v; want %q, %q", c.argv, got, err, c.want, c.err)
		}
	}
}
