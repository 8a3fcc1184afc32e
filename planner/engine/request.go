package engine

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"kvtune/planner/sim"
)

// ask is what a completion request asks for.
type ask struct {
	chat                    bool
	id                      string
	prompt                  []int32
	maxTokens               int
	priority                int
	interval                int
	salt                    string
	stream, usage, progress bool // progress: usage on every event
	returnIDs               bool
}

// defaultMaxTokens is vLLM's for /v1/completions. Chat has it here too: without an end-of-sequence token an answer
// would go on to the end of the context.
const defaultMaxTokens = 16

// refused are fields that change the answer in a way that the engine cannot honour. Sampling parameters are
// accepted and have no effect, and so have stop strings and tokens: what is generated does not depend on them.
func refused() []string {
	return []string{"echo", "suffix", "logprobs", "top_logprobs", "prompt_logprobs", "use_beam_search", "best_of",
		"prompt_embeds", "truncate_prompt_tokens", "structured_outputs", "tools", "kv_transfer_params"}
}

// parse reads and checks a completion request, in vLLM's order where a request can have several faults.
func (e *Engine) parse(b *body, header http.Header, chat bool) (*ask, *apiError) {
	a := &ask{chat: chat}
	if b.truthy("stream_options") && !b.truthy("stream") {
		return nil, badParam("stream_options", "Stream options can only be defined when `stream=True`.")
	}
	if string(b.fields["cache_salt"]) == `""` {
		return nil, badParam("cache_salt", "Parameter 'cache_salt' must be a non-empty string if provided.")
	}
	var err *apiError
	if chat {
		err = e.parseMessages(a, b)
	} else {
		err = e.parsePrompt(a, b)
	}
	model := b.string("model")
	a.maxTokens = b.int("max_tokens", defaultMaxTokens)
	if chat {
		a.maxTokens = b.int("max_completion_tokens", a.maxTokens)
	}
	minTokens := b.int("min_tokens", 0)
	n := b.int("n", 1)
	temperature, topP := b.float("temperature", 1), b.float("top_p", 1)
	a.priority = b.int("priority", 0)
	if v, err := strconv.Atoi(header.Get("X-Vllm-Priority")); err == nil {
		a.priority = v
	}
	a.interval = max(b.int("stream_interval", 1), e.cfg.StreamInterval)
	a.salt = b.string("cache_salt")
	a.returnIDs = b.bool("return_token_ids")
	a.stream = b.bool("stream")
	options := b.object("stream_options")
	a.usage = options.bool("include_usage")
	a.progress = a.usage && options.bool("continuous_usage_stats")
	b.adopt("stream_options", options)
	b.bool("ignore_eos")
	a.id = b.string("request_id")
	if v := header.Get("X-Request-Id"); v != "" {
		a.id = v
	}
	if a.id == "" {
		a.id = strings.ToLower(rand.Text())
	}
	if b.has("stream_interval") && b.int("stream_interval", 1) < 1 {
		b.faults = append(b.faults, fault{"greater_than_equal", "body.stream_interval",
			"Input should be greater than or equal to 1", show(b.fields["stream_interval"]), ", 'ctx': {'ge': 1}"})
	}
	switch {
	case err != nil && err.kind != "Bad Request" && len(b.faults) > 0:
		return nil, malformed(b.faults...)
	case err != nil:
		return nil, err
	case len(b.faults) > 0:
		return nil, malformed(b.faults...)
	case b.has("model") && model != "" && model != e.opt.ServedModelName:
		return nil, &apiError{http.StatusNotFound, "NotFoundError", "model",
			fmt.Sprintf("The model `%s` does not exist. Valid aliases: %s.", model, e.opt.ServedModelName)}
	case n < 1:
		return nil, badRequest("", "n must be at least 1, got %d.", n)
	case n > 1:
		return nil, badValue("n", n, "The embedded engine generates one choice per request: n must be 1.")
	}
	for _, name := range refused() {
		if b.truthy(name) {
			return nil, badParam(name, "The embedded engine does not support `%s`: leave it out.", name)
		}
	}
	if kind := b.object("response_format").string("type"); kind != "" && kind != "text" {
		return nil, badValue("response_format", kind, "The embedded engine generates text only.")
	}
	if err := e.checkLengths(a, minTokens); err != nil {
		return nil, err
	}
	switch {
	case temperature < 0:
		return nil, badValue("temperature", pyFloat(temperature), "temperature must be non-negative, got %s.",
			pyFloat(temperature))
	case topP <= 0 || topP > 1:
		return nil, badValue("top_p", pyFloat(topP), "top_p must be in (0, 1], got %s.", pyFloat(topP))
	}
	return a, nil
}

// checkLengths applies the API server's length rules (sim.Config.Admit) and replaces maxTokens by what will be
// generated.
func (e *Engine) checkLengths(a *ask, minTokens int) *apiError {
	for _, id := range a.prompt {
		if int(id) >= e.opt.Model.Vocab {
			return badRequest("", "Token id %d is out of vocabulary", id)
		}
	}
	tokens, err := e.cfg.Admit(len(a.prompt), a.maxTokens)
	if refusal := (*sim.RefusedError)(nil); errors.As(err, &refusal) {
		switch limit := e.cfg.MaxModelLen; {
		case refusal.Param == "input_tokens":
			return badValue("input_tokens", len(a.prompt), "%s Please reduce the length of the input prompt.", refusal.Message)
		case refusal.Param == "max_tokens" && a.maxTokens > limit:
			return badValue("max_tokens", a.maxTokens, "%s Please request fewer output tokens.", refusal.Message)
		case refusal.Param == "max_tokens":
			return badValue("max_tokens", min(a.maxTokens, limit-len(a.prompt)), "%s", refusal.Message)
		}
		return badRequest("", "%s", refusal.Message)
	}
	if minTokens < 0 {
		return badRequest("", "min_tokens must be greater than or equal to 0, got %d.", minTokens)
	}
	if minTokens > tokens {
		return badRequest("", "min_tokens must be less than or equal to max_tokens=%d, got %d.", tokens, minTokens)
	}
	a.maxTokens = tokens
	return nil
}

// parsePrompt reads the prompt of /v1/completions: text, token ids, or a list with one of either.
func (e *Engine) parsePrompt(a *ask, b *body) *apiError {
	raw := b.fields["prompt"]
	if !b.has("prompt") || string(raw) == `""` {
		return badParam("prompt", "Either prompt or prompt_embeds must be provided and non-empty.")
	}
	var text string
	if json.Unmarshal(raw, &text) == nil {
		a.prompt = tokenize(nil, text, e.opt.Model.Vocab)
		return nil
	}
	if ids, ok := parseIDs(raw); ok {
		if len(ids) == 0 {
			return badRequest("", "You must pass at least one prompt")
		}
		a.prompt = ids
		return nil
	}
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) == nil {
		if len(list) != 1 && len(list) > 0 && (list[0][0] == '[' || list[0][0] == '"') {
			return badValue("prompt", len(list), "The embedded engine takes one prompt per request.")
		}
		ids, ok := parseIDs(list[0])
		if !ok && json.Unmarshal(list[0], &text) == nil {
			ids, ok = tokenize(nil, text, e.opt.Model.Vocab), true
		}
		if ok && len(ids) == 0 {
			return badRequest("", "The decoder prompt cannot be empty")
		}
		if a.prompt = ids; ok && len(list) == 1 {
			return nil
		}
	}
	return malformed(
		fault{kind: "list_type", loc: "body.prompt", msg: "Input should be a valid list of token ids", input: show(raw)},
		fault{kind: "string_type", loc: "body.prompt", msg: "Input should be a valid string", input: show(raw)})
}

// parseMessages reads a chat: each message is a marker of its role and its text, and the answer's marker follows.
func (e *Engine) parseMessages(a *ask, b *body) *apiError {
	if !b.has("messages") {
		return malformed(fault{kind: "missing", loc: "body.messages", msg: "Field required",
			input: fmt.Sprintf("<dict of %d items>", len(b.fields))})
	}
	var list []json.RawMessage
	if json.Unmarshal(b.fields["messages"], &list) != nil {
		b.fault("messages", "list_type", "Input should be a valid list")
		return malformed(b.faults...)
	}
	if len(list) == 0 {
		return badParam("messages", "At least one message is required.")
	}
	for i, raw := range list {
		at := fmt.Sprintf("messages.%d", i)
		m := &body{}
		if json.Unmarshal(raw, &m.fields) != nil {
			return malformed(fault{kind: "model_attributes_type", loc: "body." + at,
				msg: "Input should be a valid dictionary or object to extract fields from", input: show(raw)})
		}
		role := m.string("role")
		if !m.has("role") {
			m.faults = append(m.faults, fault{kind: "missing", loc: "body.role", msg: "Field required", input: show(raw)})
		}
		text, ok := content(m.fields["content"])
		if !ok {
			m.fault("content", "string_type", "Input should be a valid string or a list of text parts")
		}
		if len(m.faults) > 0 {
			b.adopt(at, m)
			return malformed(b.faults...)
		}
		a.prompt = append(a.prompt, marker(role))
		a.prompt = tokenize(a.prompt, text, e.opt.Model.Vocab)
	}
	a.prompt = append(a.prompt, markerAssistant)
	return nil
}

// content is a message's text: a string, null, or a list of text parts.
func content(raw json.RawMessage) (text string, ok bool) {
	if len(raw) == 0 || string(raw) == "null" {
		return "", true
	}
	if json.Unmarshal(raw, &text) == nil {
		return text, true
	}
	var parts []struct{ Type, Text string }
	if json.Unmarshal(raw, &parts) != nil {
		return "", false
	}
	for _, p := range parts {
		if p.Type != "text" {
			return "", false
		}
		text += p.Text
	}
	return text, true
}

// pyFloat prints a number as Python prints a float.
func pyFloat(v float64) string {
	s := strconv.FormatFloat(v, 'g', -1, 64)
	if !strings.ContainsAny(s, ".eIN") {
		s += ".0"
	}
	return s
}
