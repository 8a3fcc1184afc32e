package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"kvtune/harness/archive"
)

// validators are the schemas by name, made strict: a field that a schema does not have is an error here, while readers
// are told to ignore it.
type validators map[string]*jsonschema.Schema

func newValidators() (validators, error) {
	v := validators{}
	for _, name := range schemaNames() {
		data, err := schemaFiles.ReadFile(path.Join("schema", name+".json"))
		if err != nil {
			return nil, err
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		compiler := jsonschema.NewCompiler()
		if err := compiler.AddResource(name, strict(doc)); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if v[name], err = compiler.Compile(name); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return v, nil
}

// strict closes every object that names its properties.
func strict(doc any) any {
	switch d := doc.(type) {
	case []any:
		for _, v := range d {
			strict(v)
		}
	case map[string]any:
		for _, v := range d {
			strict(v)
		}
		if _, ok := d["properties"].(map[string]any); ok && d["type"] == "object" {
			d["additionalProperties"] = false
		}
	}
	return doc
}

// check validates one JSON value.
func (v validators) check(name string, data []byte) error {
	schema := v[name]
	if schema == nil {
		return fmt.Errorf("no schema %q", name)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		return err
	}
	return schema.Validate(doc)
}

// ofLines are the schemas of files of lines, by ending.
var ofLines = map[string]string{
	archive.RequestsSuffix: "requests", archive.SeriesSuffix: "series", archive.SamplesSuffix: "samples",
}

// ofKind are the schemas' names by the kind in a file's field "schema".
var ofKind = map[string]string{
	"kvtune.output": "output", "kvtune.result": "results", "kvtune.bench": "bench",
	"kvtune.tuning": "tuning", "kvtune.cost": "cost",
	"kvtune.analysis": "analysis", "kvtune.plans": "plans", "kvtune.archive": "manifest",
}

// checkFile validates a file that kvtune wrote; files of other programs pass.
func (v validators) checkFile(name string) error {
	for ending, schema := range ofLines {
		if strings.HasSuffix(name, ending) {
			return v.checkLines(name, schema)
		}
	}
	if !strings.HasSuffix(name, ".json") {
		return nil
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	var head struct {
		Schema string `json:"schema"`
	}
	if json.Unmarshal(data, &head) != nil || !strings.HasPrefix(head.Schema, "kvtune.") {
		return nil
	}
	kind, _, _ := strings.Cut(head.Schema, "/")
	return v.check(ofKind[kind], data)
}

// mostLines bounds what is validated of a file of lines.
const mostLines = 50

func (v validators) checkLines(name, schema string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := zstd.NewReader(f)
	if err != nil {
		return err
	}
	defer z.Close()
	lines := bufio.NewScanner(z)
	lines.Buffer(nil, 1<<26)
	for n := 0; n < mostLines && lines.Scan(); n++ {
		if err := v.check(schema, lines.Bytes()); err != nil {
			return err
		}
	}
	return nil // a file that was cut short is tested where it is read
}

// checkWritten validates, when a script has ended, every file that it wrote.
func (v validators) checkWritten(env *testscript.Env) error {
	given := map[string]bool{}
	each := func(do func(name string) error) error {
		return filepath.WalkDir(env.WorkDir, func(name string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				err = do(name)
			}
			return err
		})
	}
	err := each(func(name string) error {
		given[name] = true
		return nil
	})
	env.Defer(func() {
		err := each(func(name string) error {
			if given[name] {
				return nil
			}
			if err := v.checkFile(name); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			env.T().Fatal(err)
		}
	})
	return err
}

// valid validates a file, or what the last command printed: valid output stdout.
func (v validators) valid(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: valid schema file")
	}
	if err := v.check(args[0], []byte(ts.ReadFile(args[1]))); err != nil {
		ts.Fatalf("%s: %v", args[1], err)
	}
}

// What the schemas do not allow is refused: they can fail.
func TestSchemasRefuse(t *testing.T) {
	v, err := newValidators()
	if err != nil {
		t.Fatal(err)
	}
	const good = `{"schema": "kvtune.archive/1", "parts": [], "files": []}`
	if err := v.check("manifest", []byte(good)); err != nil {
		t.Errorf("%s: %v", good, err)
	}
	for _, bad := range []string{
		`{"schema": "kvtune.archive/1", "parts": []}`,
		`{"schema": 1, "parts": [], "files": []}`,
		`{"schema": "kvtune.archive/1", "parts": [], "files": [], "more": 1}`,
		`{"schema": "kvtune.archive/1", "parts": [{"name": "a", "state": "lost"}], "files": []}`,
	} {
		if v.check("manifest", []byte(bad)) == nil {
			t.Errorf("accepted: %s", bad)
		}
	}
	if v.check("requests", []byte(`{"index": 0}`)) == nil {
		t.Error("accepted: a request without its fields")
	}
}
