package vllm

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
)

// chunks are events as vLLM and others write them.
var chunks = []string{
	strings.TrimPrefix(strings.TrimSpace(ev("length", 7, 8, 9)), "data: "),
	strings.TrimPrefix(strings.TrimSpace(ev("")), "data: "),
	strings.TrimPrefix(strings.TrimSpace(usageEvent(300, 2, `,"prompt_tokens_details":{"cached_tokens":256}`)), "data: "),
	`{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null}`,
	`{"choices":[{"delta":{"content":"a \"b\" \\"},"finish_reason":"stop","token_ids":[1]}, {"text":"second"}]}`,
	`{"choices":[{"text":"","finish_reason":"stop","token_ids":[ ]}]}`,
	`{"choices":[{"delta":{"reasoning":"hm","content":null}}],"usage":{"prompt_tokens":5,"completion_tokens":3}}`,
	`{"error":{"message":"engine died","code":500}}`, `{"error":null,"choices":[]}`, `{"object":"error","message":"boom"}`,
	` { "usage" : { "prompt_tokens" : 1e2 , "completion_tokens" : -3 , "prompt_tokens_details" : [] } } `,
	`{"choices":{"text":"not a list"},"usage":[1],"object":7}`, `{}`, `[]`, `7`, `null`, ``, `{"choices":[`, `{"a":1,}`,
}

// decoded is what encoding/json finds in an event.
func decoded(data []byte) chunk {
	type object map[string]json.RawMessage
	parse := func(raw json.RawMessage, into any) bool {
		return raw != nil && string(raw) != "null" && json.Unmarshal(raw, into) == nil
	}
	c := chunk{tokens: -1, cached: -1, created: -1}
	inside := func(raw json.RawMessage) []byte {
		if raw = bytes.TrimSpace(raw); len(raw) == 0 || raw[0] != '"' {
			return nil
		}
		return raw[1 : len(raw)-1]
	}
	count := func(raw json.RawMessage) int {
		var n json.Number
		if raw == nil || raw[0] == '"' || json.Unmarshal(raw, &n) != nil || strings.ContainsAny(n.String(), ".eE-") ||
			n == "" {
			return -1
		}
		v := json.Number(strings.TrimLeft(n.String(), "0"))
		if len(v) > 12 {
			return 1 << 40
		}
		i, _ := v.Int64()
		return int(min(i, 1<<40))
	}
	var top object
	if !parse(data, &top) {
		return c
	}
	var choices []json.RawMessage
	if parse(top["choices"], &choices) && len(choices) > 0 {
		c.choices = true
		var choice, delta object
		parse(choices[0], &choice)
		parse(choice["delta"], &delta)
		for _, text := range [][]byte{inside(choice["text"]), inside(delta["content"]), inside(delta["reasoning"]),
			inside(delta["reasoning_content"])} {
			c.hasText = c.hasText || len(text) > 0
		}
		var ids []json.RawMessage
		if parse(choice["token_ids"], &ids) {
			c.tokens = len(ids)
		}
		c.finish = inside(choice["finish_reason"])
	}
	var usage, details object
	if c.usage = parse(top["usage"], &usage); c.usage {
		c.prompt, c.completion = max(0, count(usage["prompt_tokens"])), max(0, count(usage["completion_tokens"]))
		if parse(usage["prompt_tokens_details"], &details) {
			c.cached = count(details["cached_tokens"])
		}
	}
	if e := top["error"]; e != nil && string(e) != "null" {
		c.err = e
	}
	c.object, c.message = inside(top["object"]), inside(top["message"])
	c.id, c.created = inside(top["id"]), count(top["created"])
	return c
}

// said is what a chunk says, to be compared.
func said(c *chunk) string {
	return fmt.Sprintf("choices %v text %v tokens %d finish %q usage %v %d %d %d error %q object %q message %q id %q "+
		"created %d", c.choices, c.hasText, c.tokens, c.finish, c.usage, c.prompt, c.completion, c.cached, c.err, c.object,
		c.message, c.id, c.created)
}

// plain reports whether no object has a key twice, and no key an escape: there the scan does not follow encoding/json.
func plain(data []byte) bool {
	type level struct {
		keys   map[string]bool
		isKey  bool
		object bool
	}
	var stack []level
	dec := json.NewDecoder(bytes.NewReader(data))
	for {
		token, err := dec.Token()
		if err != nil {
			return err == io.EOF && !bytes.ContainsAny(data, "\\") && len(stack) == 0
		}
		top := len(stack) - 1
		if d, ok := token.(json.Delim); ok {
			if d == '{' || d == '[' {
				if top >= 0 {
					stack[top].isKey = true
				}
				stack = append(stack, level{map[string]bool{}, true, d == '{'})
				continue
			}
			stack = stack[:top]
			continue
		}
		if top < 0 || !stack[top].object {
			continue
		}
		if stack[top].isKey {
			key := token.(string)
			if stack[top].keys[key] {
				return false
			}
			stack[top].keys[key] = true
		}
		stack[top].isKey = !stack[top].isKey
	}
}

func checkChunk(t *testing.T, data []byte) {
	t.Helper()
	var c chunk
	err := c.parse(data)
	if !json.Valid(data) {
		return
	}
	if first := bytes.TrimSpace(data)[0]; first != '{' && err == nil && c.choices {
		t.Errorf("%q is no object and has choices", data)
	}
	if err != nil {
		if bytes.Count(data, []byte("{"))+bytes.Count(data, []byte("[")) < maxDepth {
			t.Errorf("%q: %v", data, err)
		}
		return
	}
	want := decoded(data)
	if plain(data) && said(&c) != said(&want) {
		t.Errorf("%q:\n%s, encoding/json has\n%s", data, said(&c), said(&want))
	}
	if ids := appendIDs(nil, c.ids); c.tokens >= 0 && !bytes.ContainsAny(c.ids, "[{\"") && len(ids) != c.tokens {
		t.Errorf("%q: %d ids of %d", data, len(ids), c.tokens)
	}
}

func TestChunkIsWhatJSONSays(t *testing.T) {
	for _, data := range chunks {
		checkChunk(t, []byte(data))
	}
	for _, bad := range []string{``, `{"choices":[`, `{"a":1,}`, `{"a" 1}`, `{"a":}`, `{"a":1`, `{"a":"`, `{} x`, "\x00",
		strings.Repeat(`{"a":[`, 1e5)} {
		if err := new(chunk).parse([]byte(bad)); err == nil {
			t.Errorf("%.40q is taken for JSON", bad)
		}
	}
	var c chunk
	if err := c.parse([]byte(chunks[0])); err != nil || fmt.Sprint(appendIDs(nil, c.ids)) != "[7 8 9]" {
		t.Errorf("ids %q, %v", c.ids, err)
	}
	if err := c.parse([]byte(chunks[4])); err != nil || string(c.text) != `a \"b\" \\` {
		t.Errorf("text %s, %v", c.text, err)
	}
}

func TestChunkAllocatesNothing(t *testing.T) {
	data := []byte(chunks[0])
	var c chunk
	if n := testing.AllocsPerRun(100, func() { _ = c.parse(data) }); n > 0 {
		t.Errorf("%v allocations per event", n)
	}
}

func FuzzChunk(f *testing.F) {
	for _, data := range chunks {
		f.Add([]byte(data))
	}
	f.Fuzz(checkChunk)
}
