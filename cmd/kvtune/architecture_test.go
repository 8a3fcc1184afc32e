package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// levels is the map of packages: imports go to a lower or the same level, never up. This table is the policy; a build
// that breaks it is mended in the code, not here.
var levels = map[string]int{
	"kernels/layout": 0, "harness/hist": 0, "harness/stats": 0, "harness/workload": 0, "planner/spec": 0, "cuda": 0,
	"harness/wire": 0,
	"harness":      1, "kernels": 1,
	"kernels/ref": 2, "kernels/host": 2, "kernels/gpu": 2, "kernels/vllm": 2, "harness/vllmflags": 2, "harness/timing": 2,
	"harness/archive": 2, "harness/telemetry": 2, "harness/load": 2, "planner/cost": 2,
	"harness/vllm": 3, "harness/profile": 3, "harness/compare": 3, "planner/sim": 3,
	"planner/fit": 4, "planner/analysis": 4, "planner/engine": 4,
	"planner":        5,
	"planner/report": 6, "harness/workflow": 6, "bench": 6, "bench/load": 6,
	"cmd/kvtune": 7,
}

// forbidden names what a package may not reach, with the reason.
var forbidden = []struct{ from, to, why string }{
	{"planner", "net/http", "plans come from numbers, not from a network"},
	{"planner/sim", "net/http", "virtual time has no network"},
	{"planner/cost", "net/http", "a cost model has no network"},
	{"planner/fit", "net/http", "a fit reads files, not servers"},
	{"planner/analysis", "net/http", "an analysis reads files, not servers"},
	{"planner/fit", "kvtune/planner/engine", "the fit must not see the engine's hidden model"},
	{"planner", "kvtune/planner/engine", "the planner must not see the engine's hidden model"},
	{"harness/workload", "math/rand", "seeded math/rand/v2 only"},
}

func TestImportsNeverPointUp(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	err = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		pkg := path.Dir(filepath.ToSlash(rel))
		level, known := levels[pkg]
		if !known {
			t.Errorf("%s: package %s is not in the map of levels", rel, pkg)
			return nil
		}
		seen[pkg] = true
		src, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, src, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range file.Imports {
			to, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			for _, f := range forbidden {
				if f.from == pkg && f.to == to {
					t.Errorf("%s imports %s: %s", rel, to, f.why)
				}
			}
			if to == "C" && pkg != "cuda" && pkg != "kernels/host" {
				t.Errorf("%s uses cgo, which belongs to cuda and kernels/host", rel)
			}
			own, ok := strings.CutPrefix(to, "kvtune/")
			if ok && levels[own] > level {
				t.Errorf("%s (level %d) imports %s (level %d): imports never point up", rel, level, own, levels[own])
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(seen) < 10 {
		t.Fatalf("only %d packages found under %s: the walk is broken", len(seen), root)
	}
}

// No source file is longer than 800 lines, and no line of Go, the Makefile and the scripts wider than 120 columns, a
// tab counted as one. Kernels and what a page consists of are not held to that.
func TestFilesAreReadable(t *testing.T) {
	const lines, columns = 800, 120
	files := 0
	err := filepath.WalkDir("../..", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name != "../.." && (strings.HasPrefix(d.Name(), ".") ||
				slices.Contains([]string{"testdata", "results", "bin"}, d.Name())) {
				return filepath.SkipDir
			}
			return nil
		}
		narrow := d.Name() == "Makefile" || path.Ext(name) == ".sh" || path.Ext(name) == ".go"
		if !narrow && !slices.Contains([]string{".c", ".h", ".cu", ".cuh", ".py"}, path.Ext(name)) {
			return nil
		}
		files++
		src, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if n := strings.Count(string(src), "\n"); n > lines {
			t.Errorf("%s has %d lines", name, n)
		}
		at := 0
		for line := range strings.Lines(string(src)) {
			at++
			if n := len([]rune(strings.TrimSuffix(line, "\n"))); narrow && n > columns {
				t.Errorf("%s:%d: %d columns", name, at, n)
			}
		}
		return nil
	})
	if err != nil || files < 100 {
		t.Fatalf("%d files, %v", files, err)
	}
}

func TestTopLevelIsFixed(t *testing.T) {
	allowed := []string{"LICENSE", "Makefile", "README.md", "bench", "cmd", "cuda", "go.mod", "go.sum", "harness",
		"kernels", "planner"}
	ignored := []string{"bin", "results"}
	entries, err := os.ReadDir("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		name := e.Name()
		if !strings.HasPrefix(name, ".") && !slices.Contains(allowed, name) && !slices.Contains(ignored, name) {
			t.Errorf("%s does not belong at the top level, which holds %s", name, strings.Join(allowed, " "))
		}
	}
}
