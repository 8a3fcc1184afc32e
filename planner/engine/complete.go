package engine

import (
	"net/http"
	"strconv"
	"time"
)

// complete answers /v1/completions and /v1/chat/completions.
func (e *Engine) complete(w http.ResponseWriter, r *http.Request, chat bool) {
	arrived := time.Now()
	control := http.NewResponseController(w)
	control.SetReadDeadline(arrived.Add(bodyTimeout)) // not every ResponseWriter has deadlines
	b, fail := readBody(w, r)
	control.SetReadDeadline(time.Time{})
	var a *ask
	if fail == nil {
		a, fail = e.parse(b, r.Header, chat)
	}
	if fail != nil {
		writeError(w, fail)
		return
	}
	defer e.live.Add(-1)
	if e.live.Add(1) > int64(e.opt.MaxNumQueuedReqs) {
		e.met.rejected.Inc()
		writeError(w, &apiError{http.StatusServiceUnavailable, "Service Unavailable", "",
			"The engine is currently busy and cannot accept new requests. " +
				"Please try again later or on a different instance."})
		return
	}
	seed := promptSeed(a.prompt)
	j := &job{
		id: int(e.lastID.Add(1)), prompt: a.prompt, max: a.maxTokens, priority: a.priority, interval: a.interval,
		streamed: a.stream, seed: seed, arrived: arrived, notify: make(chan struct{}, 1),
	}
	if e.cfg.EnablePrefixCaching {
		j.hashes = blockHashes(a.prompt, a.maxTokens, e.cfg.BlockSize, e.opt.Model.Vocab, seed, a.salt)
	}
	if !e.submit(j) {
		j.end = endAbort // as vLLM answers while it shuts down: status 200, no tokens
	}
	out := &answer{e: e, ask: a, job: j, created: arrived.Unix()}
	if a.stream {
		out.stream(w, r, control)
	} else {
		out.whole(w, r)
	}
}

// answer writes one request's answer.
type answer struct {
	e       *Engine
	ask     *ask
	job     *job
	created int64
}

func (o *answer) id() string {
	if o.ask.chat {
		return "chatcmpl-" + o.ask.id
	}
	return "cmpl-" + o.ask.id
}

// fingerprint is the system_fingerprint of terminal events.
func fingerprint() string { return "vllm-" + Version }

// wait blocks until there are more than sent tokens or the request has ended; false when the client is gone.
func (o *answer) wait(r *http.Request, sent int) (ready, cached int, end string, ok bool) {
	for {
		if ready, cached, end = o.job.state(); ready > sent || end != "" {
			return ready, cached, end, true
		}
		select {
		case <-o.job.notify:
		case <-r.Context().Done():
			o.e.inbox.abort(o.job.id)
			return 0, 0, "", false
		}
	}
}

// stream writes server-sent events in vLLM's form, one per delivery of the step loop; deliveries that come while an
// event is being written are merged into the next one.
func (o *answer) stream(w http.ResponseWriter, r *http.Request, control *http.ResponseController) {
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	w.WriteHeader(http.StatusOK)
	control.Flush()

	head, err := o.eventHead()
	if err != nil {
		return
	}
	var event []byte
	for sent, end := 0, ""; end == ""; {
		ready, cached, why, ok := o.wait(r, sent)
		if !ok {
			return
		}
		end = why
		event = event[:0]
		if o.ask.chat && sent == 0 {
			event = o.roleEvent(event, head)
		}
		event = o.tokenEvent(event, head, sent, ready, end)
		if end != "" {
			if o.ask.usage {
				event = o.usageEvent(event, head, ready, cached)
			}
			event = append(event, "data: [DONE]\n\n"...)
		}
		sent = ready
		control.SetWriteDeadline(time.Now().Add(writeTimeout))
		if _, err := w.Write(event); err != nil || control.Flush() != nil {
			o.e.inbox.abort(o.job.id)
			return
		}
	}
	control.SetWriteDeadline(time.Time{})
}

// eventHead is what every event begins with, up to the choices.
func (o *answer) eventHead() ([]byte, error) {
	object := "text_completion"
	if o.ask.chat {
		object = "chat.completion.chunk"
	}
	fields, err := encode(struct {
		ID      string `json:"id"`
		Object  string `json:"object"`
		Created int64  `json:"created"`
		Model   string `json:"model"`
	}{o.id(), object, o.created, o.e.opt.ServedModelName})
	if err != nil {
		return nil, err
	}
	return append(append([]byte("data: "), fields[:len(fields)-1]...), `,"choices":[`...), nil
}

// roleEvent opens a chat's answer.
func (o *answer) roleEvent(b, head []byte) []byte {
	b = append(b, head...)
	b = append(b, `{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],`...)
	if o.ask.progress {
		b = append(append(append(b, `"usage":`...), o.usage(0)...), "},"...)
	}
	b = append(b, `"prompt_token_ids":`...)
	if o.ask.returnIDs {
		b = appendIDs(b, o.ask.prompt)
	} else {
		b = append(b, "null"...)
	}
	return append(b, ",\"prompt_text\":null}\n\n"...)
}

// tokenEvent carries the tokens from sent to ready, and the reason of the end if there is one.
func (o *answer) tokenEvent(b, head []byte, sent, ready int, end string) []byte {
	b = append(b, head...)
	if o.ask.chat {
		b = append(b, `{"index":0,"delta":{"content":"`...)
	} else {
		b = append(b, `{"index":0,"text":"`...)
	}
	for i := sent; i < ready; i++ {
		b = appendPiece(b, o.job.seed, i)
	}
	b = append(b, '"')
	if o.ask.chat {
		b = append(b, '}')
	}
	b = append(b, `,"logprobs":null,"finish_reason":`...)
	if end == "" {
		b = append(b, "null"...)
	} else {
		b = strconv.AppendQuote(b, end)
	}
	b = append(b, `,"stop_reason":null`...)
	if !o.ask.chat {
		b = append(b, `,"prompt_token_ids":`...)
		if o.ask.returnIDs && sent == 0 {
			b = appendIDs(b, o.ask.prompt)
		} else {
			b = append(b, "null"...)
		}
	}
	b = append(b, `,"token_ids":`...)
	if o.ask.returnIDs {
		b = append(b, '[')
		for i := sent; i < ready; i++ {
			if i > sent {
				b = append(b, ',')
			}
			b = strconv.AppendInt(b, int64(outputID(o.job.seed, i, o.e.opt.Model.Vocab)), 10)
		}
		b = append(b, ']')
	} else {
		b = append(b, "null"...)
	}
	b = append(b, "}]"...)
	if o.ask.progress {
		b = append(append(append(b, `,"usage":`...), o.usage(ready)...), '}')
	}
	if end != "" && !o.ask.usage {
		b = append(append(append(b, `,"system_fingerprint":"`...), fingerprint()...), '"')
	}
	return append(b, "}\n\n"...)
}

// usageEvent closes a stream that was asked for its usage.
func (o *answer) usageEvent(b, head []byte, made, cached int) []byte {
	b = append(append(b, head...), `],"usage":`...)
	b = append(b, o.usage(made)...)
	if o.e.opt.EnablePromptTokensDetails {
		b = strconv.AppendInt(append(b, `,"prompt_tokens_details":{"cached_tokens":`...), int64(cached), 10)
		b = append(b, '}')
	}
	b = append(append(append(b, `},"system_fingerprint":"`...), fingerprint()...), "\"}\n\n"...)
	return b
}

// usage is a usage object without its closing brace.
func (o *answer) usage(made int) []byte {
	n := len(o.ask.prompt)
	b := strconv.AppendInt([]byte(`{"prompt_tokens":`), int64(n), 10)
	b = strconv.AppendInt(append(b, `,"total_tokens":`...), int64(n+made), 10)
	return strconv.AppendInt(append(b, `,"completion_tokens":`...), int64(made), 10)
}

func appendIDs(b []byte, ids []int32) []byte {
	b = append(b, '[')
	for i, id := range ids {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, int64(id), 10)
	}
	return append(b, ']')
}

// usage, details, choices and completion are vLLM's answer in one piece; fields that the engine never fills are null
// there, and so here.
type (
	promptDetails struct {
		CachedTokens int `json:"cached_tokens"`
	}
	usage struct {
		PromptTokens        int            `json:"prompt_tokens"`
		TotalTokens         int            `json:"total_tokens"`
		CompletionTokens    int            `json:"completion_tokens"`
		PromptTokensDetails *promptDetails `json:"prompt_tokens_details"`
	}
	choice struct {
		Index          int     `json:"index"`
		Text           string  `json:"text"`
		Logprobs       *string `json:"logprobs"`
		FinishReason   string  `json:"finish_reason"`
		StopReason     *string `json:"stop_reason"`
		TokenIDs       []int32 `json:"token_ids"`
		PromptLogprobs *string `json:"prompt_logprobs"`
		PromptTokenIDs []int32 `json:"prompt_token_ids"`
		RoutedExperts  *string `json:"routed_experts"`
	}
	message struct {
		Role         string  `json:"role"`
		Content      string  `json:"content"`
		Refusal      *string `json:"refusal"`
		Annotations  *string `json:"annotations"`
		Audio        *string `json:"audio"`
		FunctionCall *string `json:"function_call"`
		Reasoning    *string `json:"reasoning"`
	}
	chatChoice struct {
		Index         int     `json:"index"`
		Message       message `json:"message"`
		Logprobs      *string `json:"logprobs"`
		FinishReason  string  `json:"finish_reason"`
		StopReason    *string `json:"stop_reason"`
		TokenIDs      []int32 `json:"token_ids"`
		RoutedExperts *string `json:"routed_experts"`
	}
	completion struct {
		ID                string  `json:"id"`
		Object            string  `json:"object"`
		Created           int64   `json:"created"`
		Model             string  `json:"model"`
		Choices           any     `json:"choices"`
		ServiceTier       *string `json:"service_tier"`
		SystemFingerprint string  `json:"system_fingerprint"`
		Usage             usage   `json:"usage"`
		KVTransferParams  *string `json:"kv_transfer_params"`
		ECTransferParams  *string `json:"ec_transfer_params"`
		Metrics           *string `json:"metrics"`
	}
	chatCompletion struct {
		completion
		PromptLogprobs *string `json:"prompt_logprobs"`
		PromptTokenIDs []int32 `json:"prompt_token_ids"`
		PromptText     *string `json:"prompt_text"`
	}
)

// whole writes the answer in one piece.
func (o *answer) whole(w http.ResponseWriter, r *http.Request) {
	made, cached, end, ok := 0, 0, "", true
	for end == "" {
		if made, cached, end, ok = o.wait(r, made); !ok {
			return
		}
	}
	var text []byte
	var ids, promptIDs []int32
	for i := range made {
		text = appendPiece(text, o.job.seed, i)
	}
	if o.ask.returnIDs {
		promptIDs, ids = o.ask.prompt, make([]int32, made)
		for i := range ids {
			ids[i] = outputID(o.job.seed, i, o.e.opt.Model.Vocab)
		}
	}
	use := usage{PromptTokens: len(o.ask.prompt), TotalTokens: len(o.ask.prompt) + made, CompletionTokens: made}
	if o.e.opt.EnablePromptTokensDetails {
		use.PromptTokensDetails = &promptDetails{cached}
	}
	c := completion{
		ID: o.id(), Object: "text_completion", Created: o.created, Model: o.e.opt.ServedModelName,
		SystemFingerprint: fingerprint(), Usage: use,
		Choices: []choice{{Text: string(text), FinishReason: end, TokenIDs: ids, PromptTokenIDs: promptIDs}},
	}
	if !o.ask.chat {
		writeJSON(w, http.StatusOK, c)
		return
	}
	c.Object = "chat.completion"
	c.Choices = []chatChoice{{
		Message: message{Role: "assistant", Content: string(text)}, FinishReason: end, TokenIDs: ids,
	}}
	writeJSON(w, http.StatusOK, chatCompletion{completion: c, PromptTokenIDs: promptIDs})
}
