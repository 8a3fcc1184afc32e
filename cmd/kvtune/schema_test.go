package main

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The schemas are read from the Go types, so that a new field, its comment or a new value of an enumeration cannot be
// forgotten: KVTUNE_UPDATE=1 writes them anew.
func TestSchemasAreThoseOfTheTypes(t *testing.T) {
	s := newSchemas(t)
	for name, root := range schemaRoots {
		t.Run(name, func(t *testing.T) {
			want, err := json.MarshalIndent(s.document(root), "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			want = []byte(strings.NewReplacer(`\u003c`, "<", `\u003e`, ">", `\u0026`, "&").Replace(string(want)) + "\n")
			file := filepath.Join("schema", name+".json")
			if os.Getenv("KVTUNE_UPDATE") != "" {
				if err := os.WriteFile(file, want, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			got, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("%s is not that of the type %s (KVTUNE_UPDATE=1 go test -run Schemas ./cmd/kvtune writes it):\n%s", file,
					root.typ, diff)
			}
		})
	}
	entries, err := fs.Glob(os.DirFS("schema"), "*.json")
	if err != nil {
		t.Fatal(err)
	}
	if names := slices.Sorted(maps.Keys(schemaRoots)); !slices.Equal(names, schemaNames()) || len(entries) != len(names) {
		t.Errorf("schema/ holds %v, the types are %v", entries, names)
	}
}

// schemaRoot is what a schema describes: a type, as "package folder.Name".
type schemaRoot struct{ typ, title string }

var schemaRoots = map[string]schemaRoot{
	"output":   {"cmd/kvtune.output", "what kvtune COMMAND --format json prints"},
	"results":  {"harness.Result", "<name>_results.json"},
	"requests": {"harness/workload.line", "a line of <name>_requests.jsonl.zst"},
	"series":   {"harness/archive.sampleLine", "a line of <name>_series.jsonl.zst"},
	"bench":    {"harness.Bench", "<name>_bench.json"},
	"tuning":   {"harness.Tuning", "the file of kvtune bench --tuning"},
	"samples":  {"harness/archive.sampleOfCase", "a line of <name>_samples.jsonl.zst"},
	"cost":     {"planner/cost.wire", "kvtune_cost.json, and what kvtune fit writes"},
	"analysis": {"planner/analysis.Report", "performance_analysis.json and <name>_analysis.json"},
	"plans":    {"planner.Plans", "custom_schedule_plans.json and <name>_plans.json"},
	"manifest": {"harness/archive.Manifest", "manifest.json"},
}

// object is a JSON object whose keys keep their order.
type object []member

type member struct {
	key   string
	value any
}

func (o object) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for i, m := range o {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendQuote(b, m.key)
		b = append(b, ':')
		value, err := json.Marshal(m.value)
		if err != nil {
			return nil, err
		}
		b = append(b, value...)
	}
	return append(b, '}'), nil
}

// written are types that marshal themselves.
var written = map[string]any{
	"harness/workload.seconds": object{{"type", "number"}},
	"harness/workload.events":  object{{"type", "array"}, {"items", tokenTime}},
	"planner/cost.Model":       "planner/cost.wire",
	"kernels/layout.Layout":    object{{"type", "string"}, {"enum", []string{"NHD", "HND", "x-packed"}}},
	"kernels/layout.DType":     object{{"type", "string"}, {"enum", []string{"bf16", "fp16", "fp8"}}},
	"time.Duration":            object{{"type", "integer"}, {"description", "nanoseconds"}},
	"time.Time":                object{{"type", "string"}, {"format", "date-time"}},
	"encoding/json.RawMessage": object{},
}

// tokenTime is [seconds from the moment when the request was sent, tokens in the event].
var tokenTime = object{
	{"type", "array"},
	{"prefixItems", []object{{{"type", "number"}}, {{"type", "integer"}}}},
	{"items", false},
	{"minItems", 2},
}

// A line of a requests file is written by hand: these keys are always there, those are null where there is nothing.
var (
	requestsAlways = []string{"index", "due_s", "sent_s", "prompt_tokens", "cached_tokens", "output_tokens",
		"token_times_s", "finish_reason", "error"}
	requestsNullable = []string{"due_s", "cached_tokens", "finish_reason", "error"}
)

// schemas reads types from the source.
type schemas struct {
	t     *testing.T
	types map[string]*typeSource // by "folder.Name"
	enums map[string][]string    // the constants of a type, in order
}

type typeSource struct {
	pkg     string // folder
	doc     string
	expr    ast.Expr
	imports map[string]string // name → folder, or the import path of what is not ours
}

func newSchemas(t *testing.T) *schemas {
	t.Helper()
	s := &schemas{t: t, types: map[string]*typeSource{}, enums: map[string][]string{}}
	for _, root := range []string{"../../harness", "../../planner", "../../kernels", "."} {
		err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go") {
				err = s.read(name)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s *schemas) read(name string) error {
	file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
	if err != nil {
		return err
	}
	pkg := path.Join("cmd/kvtune", filepath.ToSlash(filepath.Dir(name)))
	imports := map[string]string{}
	for _, spec := range file.Imports {
		to, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return err
		}
		to = strings.TrimPrefix(to, "kvtune/")
		as := path.Base(to)
		if spec.Name != nil {
			as = spec.Name.Name
		}
		imports[as] = to
	}
	for _, decl := range file.Decls {
		gen, ok := decl.(*ast.GenDecl)
		if !ok {
			continue
		}
		for _, spec := range gen.Specs {
			switch spec := spec.(type) {
			case *ast.TypeSpec:
				doc := spec.Doc.Text()
				if doc == "" {
					doc = gen.Doc.Text()
				}
				s.types[pkg+"."+spec.Name.Name] = &typeSource{pkg: pkg, doc: doc, expr: spec.Type, imports: imports}
			case *ast.ValueSpec:
				id, ok := spec.Type.(*ast.Ident)
				if !ok || gen.Tok != token.CONST || len(spec.Values) != 1 {
					continue
				}
				if lit, ok := spec.Values[0].(*ast.BasicLit); ok && lit.Kind == token.STRING {
					value, err := strconv.Unquote(lit.Value)
					if err != nil {
						return err
					}
					s.enums[pkg+"."+id.Name] = append(s.enums[pkg+"."+id.Name], value)
				}
			}
		}
	}
	return nil
}

// document is the schema of a root, its named structs under $defs.
func (s *schemas) document(root schemaRoot) object {
	defs := map[string]object{}
	body := s.structure(root.typ, defs)
	doc := object{
		{"$schema", "https://json-schema.org/draft/2020-12/schema"},
		{"title", root.title},
	}
	doc = append(doc, body...)
	if len(defs) > 0 {
		var sorted object
		for _, name := range slices.Sorted(maps.Keys(defs)) {
			sorted = append(sorted, member{name, defs[name]})
		}
		doc = append(doc, member{"$defs", sorted})
	}
	return doc
}

// structure is the schema of a named struct.
func (s *schemas) structure(name string, defs map[string]object) object {
	src := s.types[name]
	if src == nil {
		s.t.Fatalf("no type %s", name)
	}
	st, ok := src.expr.(*ast.StructType)
	if !ok {
		s.t.Fatalf("%s is no struct", name)
	}
	var out object
	if doc := flat(src.doc); doc != "" {
		out = append(out, member{"description", doc})
	}
	properties, required := s.fields(src, st, defs)
	if name == "harness/workload.line" {
		required = requestsAlways
		for i, p := range properties {
			properties[i].value = nullable(withoutNull(p.value.(object)), slices.Contains(requestsNullable, p.key))
		}
	}
	out = append(out, member{"type", "object"}, member{"properties", properties})
	if len(required) > 0 {
		out = append(out, member{"required", required})
	}
	return out
}

// fields are the JSON fields of a struct, those of embedded structs included.
func (s *schemas) fields(src *typeSource, st *ast.StructType,
	defs map[string]object) (fields object, required []string) {
	for _, f := range st.Fields.List {
		tag := ""
		if f.Tag != nil {
			text, err := strconv.Unquote(f.Tag.Value)
			if err != nil {
				s.t.Fatal(err)
			}
			tag = reflect.StructTag(text).Get("json")
		}
		name, options, _ := strings.Cut(tag, ",")
		if len(f.Names) == 0 && name == "" { // embedded
			inner := s.types[s.nameOf(src, f.Type)]
			more, needed := s.fields(inner, inner.expr.(*ast.StructType), defs)
			fields, required = append(fields, more...), append(required, needed...)
			continue
		}
		if tag == "-" || len(f.Names) > 0 && !f.Names[0].IsExported() {
			continue
		}
		if name == "" {
			s.t.Fatalf("%s: a field without a JSON name: %v", src.pkg, f.Names)
		}
		omitted := strings.Contains(options, "omitempty") || strings.Contains(options, "omitzero")
		schema := nullable(s.schema(src, f.Type, defs), !omitted && s.mayBeNil(src, f.Type))
		doc := flat(f.Doc.Text())
		if doc == "" {
			doc = flat(f.Comment.Text())
		}
		if doc != "" {
			schema = append(object{{"description", doc}}, schema...)
		}
		fields = append(fields, member{name, schema})
		if !omitted {
			required = append(required, name)
		}
	}
	return fields, required
}

func (s *schemas) nameOf(src *typeSource, expr ast.Expr) string {
	switch e := expr.(type) {
	case *ast.StarExpr:
		return s.nameOf(src, e.X)
	case *ast.Ident:
		return src.pkg + "." + e.Name
	case *ast.SelectorExpr:
		return src.imports[e.X.(*ast.Ident).Name] + "." + e.Sel.Name
	}
	s.t.Fatalf("%s: a type without a name: %T", src.pkg, expr)
	return ""
}

// schema is that of a type where it is used.
func (s *schemas) schema(src *typeSource, expr ast.Expr, defs map[string]object) object {
	switch e := expr.(type) {
	case *ast.StarExpr:
		return s.schema(src, e.X, defs)
	case *ast.ArrayType:
		out := object{{"type", "array"}, {"items", s.schema(src, e.Elt, defs)}}
		if n, ok := e.Len.(*ast.BasicLit); ok {
			size, err := strconv.Atoi(n.Value)
			if err != nil {
				s.t.Fatal(err)
			}
			out = append(out, member{"minItems", size}, member{"maxItems", size})
		}
		return out
	case *ast.MapType:
		return object{{"type", "object"}, {"additionalProperties", s.schema(src, e.Value, defs)}}
	case *ast.Ident:
		switch e.Name {
		case "string":
			return object{{"type", "string"}}
		case "bool":
			return object{{"type", "boolean"}}
		case "float64":
			return object{{"type", "number"}}
		case "int", "int64", "uint64", "uint32", "int32", "uint", "uint8":
			return object{{"type", "integer"}}
		case "any":
			return object{}
		}
	}
	name := s.nameOf(src, expr)
	switch w := written[name].(type) {
	case object:
		return w
	case string:
		name = w
	}
	inner := s.types[name]
	if inner == nil {
		s.t.Fatalf("%s: no type %s", src.pkg, name)
	}
	if _, ok := inner.expr.(*ast.StructType); !ok {
		out := s.schema(inner, inner.expr, defs)
		if values := s.enums[name]; len(values) > 1 {
			out = append(out, member{"enum", values})
		}
		return out
	}
	key := strings.ReplaceAll(name, "/", ".")
	if _, ok := defs[key]; !ok {
		defs[key] = nil // a type may hold itself
		defs[key] = s.structure(name, defs)
	}
	return object{{"$ref", "#/$defs/" + key}}
}

func (s *schemas) mayBeNil(src *typeSource, expr ast.Expr) bool {
	switch e := expr.(type) {
	case *ast.StarExpr, *ast.MapType:
		return true
	case *ast.ArrayType:
		return e.Len == nil
	case *ast.Ident, *ast.SelectorExpr:
		inner := s.types[s.nameOf(src, expr)]
		return inner != nil && s.mayBeNil(inner, inner.expr)
	}
	return false
}

// nullable lets a schema be null, too.
func nullable(schema object, yes bool) object {
	if !yes {
		return schema
	}
	for i, m := range schema {
		switch m.key {
		case "type":
			schema = slices.Clone(schema)
			schema[i].value = []any{m.value, "null"}
		case "enum":
			values := []any{nil}
			for _, v := range m.value.([]string) {
				values = append(values, v)
			}
			schema[i].value = values
		case "$ref":
			return object{{"anyOf", []object{schema, {{"type", "null"}}}}}
		}
	}
	return schema
}

// withoutNull undoes nullable for a type.
func withoutNull(schema object) object {
	for i, m := range schema {
		if types, ok := m.value.([]any); ok && m.key == "type" {
			schema[i].value = types[0]
		}
	}
	return schema
}

// flat is a comment in one line, without the brackets of links.
func flat(doc string) string {
	return strings.NewReplacer("[*", "", "[", "", "]", "").Replace(strings.Join(strings.Fields(doc), " "))
}
