package archive

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"kvtune/harness"
)

// ReadJSON reads a versioned JSON file into v. schema is the one that the caller understands, e.g. "kvtune.result/1":
// another kind or a newer major version is refused, unknown fields are ignored.
func ReadJSON(path, schema string, v any) error {
	data, err := ReadFile(path)
	if err != nil {
		return err
	}
	if err := decodeJSON(data, schema, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// decodeJSON is [ReadJSON] on bytes.
func decodeJSON(data []byte, schema string, v any) error {
	var head struct {
		Schema *string `json:"schema"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return jsonError(data, err)
	}
	if head.Schema == nil {
		return fmt.Errorf("no \"schema\" in it: expected a file of kind %s", schema)
	}
	if err := harness.CheckSchema(*head.Schema, schema); err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return jsonError(data, err)
	}
	return nil
}

// jsonError adds the line to a syntax error and names a file that ends too early.
func jsonError(data []byte, err error) error {
	var syntax *json.SyntaxError
	var wrong *json.UnmarshalTypeError
	switch {
	case len(strings.TrimSpace(string(data))) == 0:
		return errors.New("empty file: expected JSON")
	case errors.As(err, &syntax) && syntax.Offset >= int64(len(data)):
		return fmt.Errorf("cut short: the JSON ends in the middle (%d bytes)", len(data))
	case errors.As(err, &syntax):
		return fmt.Errorf("not JSON: line %d: %w", lineAt(data, syntax.Offset), err)
	case errors.As(err, &wrong):
		return fmt.Errorf("line %d: %q is a %s, expected a %s", lineAt(data, wrong.Offset), wrong.Field, wrong.Value,
			wrong.Type)
	}
	return err
}

func lineAt(data []byte, offset int64) int {
	return 1 + strings.Count(string(data[:min(int(offset), len(data))]), "\n")
}

// WriteResult writes `<r.Name>_results.json`, with the schema of this version.
func (f *Folder) WriteResult(r *harness.Result) error {
	out := *r
	out.Schema = harness.ResultSchema
	return f.WriteJSON(r.Name+ResultSuffix, &out)
}

// ReadResult reads a result: a `_results.json` file, any other file of the same part, or a folder that holds exactly
// one.
func ReadResult(path string) (*harness.Result, error) {
	f, err := Open(path)
	if err != nil {
		info, e := os.Stat(path)
		if base := filepath.Base(path); e == nil && info.Mode().IsRegular() && filepath.Ext(base) == ".json" &&
			base != ManifestName && partOf(base) == "" {
			r := new(harness.Result) // under a name of the user's own
			return r, ReadJSON(path, harness.ResultSchema, r)
		}
		return nil, err
	}
	names := f.Results()
	if len(names) != 1 {
		if len(names) == 0 {
			return nil, fmt.Errorf("%s holds no file that ends in %s", path, ResultSuffix)
		}
		return nil, fmt.Errorf("%s holds %d results: name one of the files: %s", path, len(names), strings.Join(names, ", "))
	}
	return f.Result(names[0])
}

// Results are the names of the parts that have a result, sorted.
func (f *Folder) Results() []string { return f.partsWith(ResultSuffix) }

// partsWith are the names of the parts that have a file with an ending, sorted.
func (f *Folder) partsWith(suffix string) []string {
	var names []string
	for _, n := range f.Names() {
		if _, err := os.Stat(f.Path(n + suffix)); err == nil {
			names = append(names, n)
		}
	}
	return names
}

// Result reads `<name>_results.json`.
func (f *Folder) Result(name string) (*harness.Result, error) {
	r := new(harness.Result)
	if err := ReadJSON(f.Path(name+ResultSuffix), harness.ResultSchema, r); err != nil {
		return nil, err
	}
	return r, nil
}
