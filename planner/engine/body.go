package engine

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
)

// apiError is an answer of vLLM's error form: {"error": {"message", "type", "param", "code"}}.
type apiError struct {
	status  int
	kind    string
	param   string // "" is null
	message string
}

// badRequest is a value that the API server refuses (vllm's VLLMValidationError and ValueError).
func badRequest(param, format string, args ...any) *apiError {
	return &apiError{http.StatusBadRequest, "BadRequestError", param, fmt.Sprintf(format, args...)}
}

// badValue is badRequest with vLLM's trailing "(parameter=..., value=...)".
func badValue(param string, value any, format string, args ...any) *apiError {
	return badRequest(param, "%s (parameter=%s, value=%v)", fmt.Sprintf(format, args...), param, value)
}

// badParam is badRequest with vLLM's trailing "(parameter=...)".
func badParam(param, format string, args ...any) *apiError {
	return badRequest(param, "%s (parameter=%s)", fmt.Sprintf(format, args...), param)
}

// fault is one fault of a body's form, as pydantic lists them.
type fault struct {
	kind, loc, msg, input, ctx string
}

// malformed is the answer to a body whose form is wrong.
func malformed(faults ...fault) *apiError {
	var b strings.Builder
	plural := "s"
	if len(faults) == 1 {
		plural = ""
	}
	fmt.Fprintf(&b, "%d validation error%s:", len(faults), plural)
	for _, f := range faults {
		fmt.Fprintf(&b, "\n  {'type': '%s', 'loc': '%s', 'msg': '%s', 'input': '%s'%s}", f.kind, f.loc, f.msg, f.input,
			f.ctx)
	}
	return &apiError{http.StatusBadRequest, "Bad Request", faults[0].loc, b.String()}
}

// body is a JSON object of which fields are read one by one. What is wrong with them is collected in faults; a field
// that is null or missing has its default.
type body struct {
	fields map[string]json.RawMessage
	faults []fault
}

// maxBody holds a prompt of a million token ids.
const maxBody = 16 << 20

// readBody reads a request's JSON object.
func readBody(w http.ResponseWriter, r *http.Request) (*body, *apiError) {
	media, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	if strings.ToLower(strings.TrimSpace(media)) != "application/json" {
		return nil, &apiError{http.StatusBadRequest, "Bad Request", "",
			"1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"}
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			return nil, &apiError{http.StatusRequestEntityTooLarge, "Request Entity Too Large", "",
				fmt.Sprintf("the body is larger than %d bytes", tooLarge.Limit)}
		}
		return nil, &apiError{http.StatusBadRequest, "Bad Request", "", "cannot read the body: " + err.Error()}
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, malformed(fault{kind: "missing", loc: "body", msg: "Field required", input: "None"})
	}
	b := &body{}
	if err := json.Unmarshal(data, &b.fields); err != nil {
		if syntax := (*json.SyntaxError)(nil); errors.As(err, &syntax) {
			return nil, malformed(fault{
				kind: "json_invalid", loc: fmt.Sprintf("body.%d", max(0, syntax.Offset-1)), msg: "JSON decode error",
				input: "<dict of 0 items>", ctx: fmt.Sprintf(", 'ctx': {'error': %s}", quotePython(err.Error())),
			})
		}
		return nil, malformed(fault{
			kind: "model_attributes_type", loc: "body",
			msg: "Input should be a valid dictionary or object to extract fields from", input: show(data),
		})
	}
	if b.fields == nil { // null
		return nil, malformed(fault{kind: "missing", loc: "body", msg: "Field required", input: "None"})
	}
	return b, nil
}

func quotePython(s string) string { return "'" + strings.ReplaceAll(s, "'", `\'`) + "'" }

// show prints a JSON value as vLLM's error messages do.
func show(raw json.RawMessage) string {
	var v any
	if json.Unmarshal(raw, &v) != nil {
		return string(raw)
	}
	switch v := v.(type) {
	case []any:
		return fmt.Sprintf("<list of %d items>", len(v))
	case map[string]any:
		return fmt.Sprintf("<dict of %d items>", len(v))
	case string:
		return v
	case bool:
		if v {
			return "True"
		}
		return "False"
	}
	return string(raw)
}

// has reports whether the field is there and not null.
func (b *body) has(name string) bool {
	raw, ok := b.fields[name]
	return ok && string(raw) != "null"
}

// truthy reports whether Python takes the field's value for true.
func (b *body) truthy(name string) bool {
	switch raw := b.fields[name]; string(raw) {
	case "", "null", "false", "0", `""`, "[]", "{}":
		return false
	}
	return true
}

func (b *body) fault(name, kind, msg string) {
	b.faults = append(b.faults, fault{kind: kind, loc: "body." + name, msg: msg, input: show(b.fields[name])})
}

func (b *body) string(name string) string {
	if !b.has(name) {
		return ""
	}
	var s string
	if json.Unmarshal(b.fields[name], &s) != nil {
		b.fault(name, "string_type", "Input should be a valid string")
	}
	return s
}

func (b *body) bool(name string) bool {
	if !b.has(name) {
		return false
	}
	var v bool
	if json.Unmarshal(b.fields[name], &v) != nil {
		b.fault(name, "bool_parsing", "Input should be a valid boolean, unable to interpret input")
	}
	return v
}

// int reads a whole number, which may be written as a float or inside a string, as pydantic allows.
func (b *body) int(name string, def int) int {
	if !b.has(name) {
		return def
	}
	text := string(b.fields[name])
	var inner string
	quoted := json.Unmarshal(b.fields[name], &inner) == nil
	if quoted {
		text = strings.TrimSpace(inner)
	}
	if v, err := strconv.Atoi(text); err == nil {
		return v
	}
	switch f, err := strconv.ParseFloat(text, 64); {
	case err == nil && f == math.Trunc(f) && math.Abs(f) < 1<<62:
		return int(f)
	case err == nil && !quoted:
		b.fault(name, "int_from_float", "Input should be a valid integer, got a number with a fractional part")
	case quoted:
		b.fault(name, "int_parsing", "Input should be a valid integer, unable to parse string as an integer")
	default:
		b.fault(name, "int_type", "Input should be a valid integer")
	}
	return def
}

func (b *body) float(name string, def float64) float64 {
	if !b.has(name) {
		return def
	}
	v := def
	if json.Unmarshal(b.fields[name], &v) != nil {
		b.fault(name, "float_type", "Input should be a valid number")
	}
	return v
}

// object reads a nested object; its faults are named under the field.
func (b *body) object(name string) *body {
	o := &body{}
	if b.has(name) && json.Unmarshal(b.fields[name], &o.fields) != nil {
		b.fault(name, "model_attributes_type", "Input should be a valid dictionary or object to extract fields from")
	}
	return o
}

// adopt takes over the faults of a nested object.
func (b *body) adopt(name string, o *body) {
	for _, f := range o.faults {
		f.loc = "body." + name + strings.TrimPrefix(f.loc, "body")
		b.faults = append(b.faults, f)
	}
}

// parseIDs reads a JSON list of token ids; ok is false when it is anything else. It is written out because prompts are
// long and encoding/json is slow on them.
func parseIDs(raw []byte) (ids []int32, ok bool) {
	raw = bytes.TrimSpace(raw)
	if len(raw) < 2 || raw[0] != '[' {
		return nil, false
	}
	ids = make([]int32, 0, bytes.Count(raw, []byte{','})+1)
	v, digits, empty := 0, 0, true
	for _, c := range raw[1:] {
		switch {
		case c >= '0' && c <= '9':
			if v, digits, empty = v*10+int(c-'0'), digits+1, false; digits > 10 {
				return nil, false
			}
		case c == ' ' || c == '\n' || c == '\t' || c == '\r':
		case c == ',' || c == ']':
			if empty && c == ']' {
				return ids, true
			}
			if digits == 0 || v > math.MaxInt32 {
				return nil, false
			}
			ids = append(ids, int32(v))
			v, digits = 0, 0
		default:
			return nil, false
		}
	}
	return ids, true
}
