package engine

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"io/fs"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"kvtune/planner/cost"
)

// The hidden model is worth something only while nobody can look it up. These tests fail when another package, or a
// client, could.

// exported lists the package's exported declarations as they would appear in its documentation: without unexported
// fields, and with every identifier that their types mention.
func exported(t *testing.T) (api []string, mentioned map[string]bool) {
	t.Helper()
	mentioned = map[string]bool{}
	entries, err := fs.Glob(os.DirFS("."), "*.go")
	if err != nil {
		t.Fatal(err)
	}
	files := token.NewFileSet()
	add := func(node any) {
		var b bytes.Buffer
		if err := printer.Fprint(&b, files, node); err != nil {
			t.Fatal(err)
		}
		api = append(api, b.String())
	}
	for _, name := range entries {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(files, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.FileExports(file)
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok {
				if f.Recv != nil && !exportedType(f.Recv.List[0].Type) {
					continue // the method cannot be reached but through a value that nothing exported gives
				}
				f.Body = nil
			}
			ast.Inspect(decl, func(n ast.Node) bool {
				if id, ok := n.(*ast.Ident); ok {
					mentioned[id.Name] = true
				}
				return true
			})
			add(decl)
		}
	}
	slices.Sort(api)
	return api, mentioned
}

func exportedType(e ast.Expr) bool {
	if star, ok := e.(*ast.StarExpr); ok {
		e = star.X
	}
	id, ok := e.(*ast.Ident)
	return ok && id.IsExported()
}

func TestNoExportedNameLeadsToTheHiddenModel(t *testing.T) {
	api, mentioned := exported(t)
	for _, secret := range []string{"hidden", "device", "latency", "newHidden", "Timer", "Step", "any"} {
		if mentioned[secret] {
			t.Errorf("an exported declaration mentions %s", secret)
		}
	}
	// A new exported name shows in this file's diff: think about it before KVTUNE_UPDATE=1.
	golden(t, "api.txt", strings.Join(api, "\n")+"\n")

	engine := reflect.TypeFor[*Engine]()
	for i := range engine.Elem().NumField() {
		if f := engine.Elem().Field(i); f.IsExported() {
			t.Errorf("Engine.%s is exported", f.Name)
		}
	}
	for i := range engine.NumMethod() {
		m := engine.Method(i)
		for j := range m.Type.NumOut() {
			switch out := m.Type.Out(j).String(); out {
			case "string", "error", "http.Handler", "*sim.Outcome":
			default:
				t.Errorf("Engine.%s gives a %s", m.Name, out)
			}
		}
	}
}

// secrets are the numbers of a hidden model, as they would be printed.
func secrets(t *testing.T, h *hidden, l *cost.FrontEnd) []string {
	t.Helper()
	var all []string
	add := func(v float64) {
		for _, unit := range []float64{1, 1e3, 1e6, 1e9} {
			s := strconv.FormatFloat(v*unit, 'g', 6, 64)
			if mantissa, _, _ := strings.Cut(s, "e"); len(mantissa) >= 6 { // short ones are found by chance
				all = append(all, mantissa)
			}
		}
	}
	for _, c := range h.moved.Coefficients {
		add(c.Value)
	}
	for _, v := range []float64{h.reach, h.walk, h.bend, h.launch, h.read} {
		add(v)
	}
	for _, d := range []time.Duration{l.Request, l.PromptToken, l.Token} {
		add(d.Seconds())
		all = append(all, d.String())
	}
	if len(all) < 20 {
		t.Fatalf("only %d numbers to look for", len(all))
	}
	return all
}

func TestNothingPrintsTheHiddenModel(t *testing.T) {
	inBubble(t, options(t), func(t *testing.T, e *Engine) {
		if _, err := json.Marshal(e.Handler()); err == nil {
			t.Error("the handler can be marshalled")
		}
		data, err := json.Marshal([]any{e})
		if err != nil || string(data) != "[{}]" {
			t.Errorf("the engine as JSON: %s, %v", data, err)
		}
		if _, ok := e.Handler().(http.HandlerFunc); !ok {
			t.Errorf("the handler is a %T: it may hold more than a function", e.Handler())
		}
		printed := fmt.Sprintf("%v %+v %#v %+v", e, e, e, e.Handler())
		for _, secret := range secrets(t, e.hidden, e.front) {
			if strings.Contains(printed, secret) {
				t.Errorf("printing the engine shows %s: %s", secret, printed)
			}
		}
	})
}

func TestAnswersDoNotDependOnTheHiddenModel(t *testing.T) {
	paths := []string{"/health", "/ping", "/version", "/load", "/metrics", "/v1/models", "/kvtune/info", "/kvtune",
		"/kvtune/cost", "/server_info", "/debug/pprof/", "/debug/vars", "/"}
	answers := make([][]string, 2)
	for seed := range answers {
		opt := options(t)
		opt.Seed = uint64(seed)
		inBubble(t, opt, func(t *testing.T, e *Engine) {
			time.Sleep(time.Second)
			for _, path := range paths {
				rep := get(e, path)
				answers[seed] = append(answers[seed], fmt.Sprintf("%d %v %s", rep.status, rep.header, rep.body))
			}
		})
	}
	for i, path := range paths {
		if answers[0][i] != answers[1][i] {
			t.Errorf("%s differs between two hidden models:\n%s\n%s", path, answers[0][i], answers[1][i])
		}
	}
}
