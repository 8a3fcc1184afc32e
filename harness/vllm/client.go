package vllm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"kvtune/harness/load"
	"kvtune/harness/workload"
)

// DefaultVocab bounds the token ids of prompts. A server does not say how large its model's vocabulary is, and ids
// above it can crash an engine that runs without a tokenizer; this lies under the vocabulary of every model in use (the
// smallest common ones have 32,000, tiny test models 4,096) and is large enough that no two blocks of random tokens are
// equal.
const DefaultVocab = 4000

// API is the endpoint that requests go to.
type API string

const (
	// Completions is /v1/completions, with prompts of token ids, or of text.
	Completions API = "completions"
	// Chat is /v1/chat/completions, with prompts of text.
	Chat API = "chat"
)

// ClientOptions are what the requests of one run have in common.
type ClientOptions struct {
	// Salt is sent as cache_salt: vLLM hashes it into a prompt's first block, so that only requests of the same salt
	// share prefixes. One salt per run makes every run start cold. "" sends none.
	Salt string
	// Vocab bounds the token ids of prompts: they lie in [16, Vocab). 0 is [DefaultVocab]; it must not exceed the model's
	// vocabulary.
	Vocab int
	// API is the endpoint; "" is Completions.
	API API
	// Text sends prompts as common English words, one for each token that is asked for, in place of token ids: for servers
	// that take no ids, and to have the tokenizer measured too. How many tokens they are is the tokenizer's to say: the
	// reply has the server's count. Chat prompts are always text.
	Text bool
}

// Client sends a run's requests to one model of one server. It is safe for concurrent use and remembers what each
// request with an OutputID generated, for the prompts that continue it.
type Client struct {
	s        *Server
	opt      ClientOptions
	words    []string  // of text prompts
	scanners sync.Pool // of *eventScanner: a buffer for every stream in flight, used again

	mu      sync.Mutex
	outputs map[uint64]*output
	ledger  ledger
}

// output is what a request generated, once it has ended.
type output struct {
	ids  []int32
	text []byte // as it stands in JSON
}

var _ load.Client = (*Client)(nil)

// Client returns a client for one run.
func (s *Server) Client(opt ClientOptions) *Client {
	if opt.Vocab == 0 {
		opt.Vocab = DefaultVocab
	}
	if opt.API == Chat {
		opt.Text = true
	}
	c := &Client{s: s, opt: opt, outputs: map[uint64]*output{},
		ledger: ledger{seed: maphash.MakeSeed(), ids: map[uint64]bool{}}}
	if opt.Text {
		c.words = wordList()
	}
	c.scanners.New = func() any { return new(eventScanner) }
	return c
}

// maxSurplus is how many tokens more than twice those that were asked for end a stream, whose record would grow without
// end.
const maxSurplus = 64

// ErrStreamCut says that a stream ended before the server said that it was finished.
var ErrStreamCut = errors.New("stream cut off")

// Prepare builds r's body, which takes about 20 µs per 1000 tokens of prompt, and returns what posts it as a stream:
// exactly r.OutputTokens tokens, greedy: max_tokens and ignore_eos, without min_tokens, which would say the same to a
// vLLM but costs it a pass over the logits in every step. That calls sent with the moment at which the first byte went
// out (over HTTP/2, at which a connection was in hand), when the answer begins, and event for every event that carries
// tokens, with the moment at which its last byte arrived ([wire.Conn]) or, over HTTP/2, was read.
//
// An event's tokens are counted by its token_ids; where a server sends none, by the growth of its running usage; else
// each event with choices is one token (of a chat, each event with content). The reply holds what arrived, also beside
// an error. Errors are *APIError (a refusal, or an error inside the stream), ErrStreamCut (the stream ended without a
// finish reason), the cause of a cancelled ctx, or the transport's. A request that the server aborted is an error.
// Nothing is sent a second time here: that is for the caller to decide, who counts it.
func (c *Client) Prepare(r *workload.Request) load.Send {
	body := c.body(r)
	return func(ctx context.Context, sent func(time.Time), event func(at time.Time, tokens int)) (load.Reply, error) {
		return c.post(ctx, r, body, sent, event)
	}
}

// post sends a body and reads the stream that answers it.
func (c *Client) post(ctx context.Context, r *workload.Request, body []byte, sent func(time.Time),
	event func(at time.Time, tokens int)) (load.Reply, error) {
	var x exchange
	ctx = x.trace(ctx)
	path := "/v1/completions"
	if c.opt.API == Chat {
		path = "/v1/chat/completions"
	}
	req, err := c.s.newRequest(ctx, http.MethodPost, path, bytes.NewReader(body))
	if err != nil {
		return load.Reply{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "text/event-stream")
	resp, err := c.s.http.Do(req)
	if at, ok := x.sent(); ok {
		sent(at)
	}
	if err != nil {
		return load.Reply{Connect: x.connect}, cause(ctx, fmt.Errorf("no answer from %s: %w", c.s.url, rootCause(err)))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, maxBody)) // what arrived of the reason is better than nothing
		e := parseAPIError(resp.StatusCode, body)
		e.Wait = retryAfter(resp.Header.Get("Retry-After"))
		return load.Reply{Connect: x.connect}, c.s.hideKey(e)
	}
	if err := encoded(resp); err != nil {
		return load.Reply{Connect: x.connect}, err
	}
	st := stream{event: event, asked: r.OutputTokens, chat: c.opt.API == Chat}
	if r.OutputID != 0 {
		st.out = new(output)
	}
	events := c.scanners.Get().(*eventScanner)
	events.reset(resp.Body, x.arrived, eventLimit(r))
	err = st.read(events)
	st.reply.Connect = x.connect
	c.audit(r, &st, err == nil)
	events.r, events.now = nil, nil
	c.scanners.Put(events)
	if st.out != nil {
		c.mu.Lock()
		c.outputs[r.OutputID] = st.out
		c.mu.Unlock()
	}
	if err != nil {
		return st.reply, c.s.hideKey(cause(ctx, err))
	}
	return st.reply, nil
}

// cause prefers the reason for which ctx was cancelled over the transport's view of it.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil {
		return c
	}
	return err
}

// stream reads the events of one completion.
type stream struct {
	event  func(at time.Time, tokens int)
	asked  int
	chat   bool
	out    *output // collects what is generated, when not nil
	hasIDs bool    // the server gives token ids
	reply  load.Reply
	got    int // tokens so far, as counted
	usage  int // tokens so far, by the server's running usage
	chunk  chunk

	id      []byte // the first event's
	created int    // the latest that an event gave
	strange bool   // an event had another id than the first
	back    bool   // an event was created before one that came earlier
}

// read consumes the stream to its end, so that the connection can be used again.
func (st *stream) read(events *eventScanner) error {
	for {
		data, at, err := events.next()
		switch {
		case err == io.EOF && st.reply.FinishReason != "":
			return st.finish() // [DONE] is a courtesy: the finish reason ends a completion
		case err == io.EOF:
			return fmt.Errorf("%w after %d of %d tokens: the server closed it without a finish reason; see the server's log",
				ErrStreamCut, st.got, st.asked)
		case errors.Is(err, errEventTooBig):
			return err
		case err != nil && st.reply.FinishReason != "":
			return st.finish()
		case err != nil:
			return fmt.Errorf("%w after %d of %d tokens: %w", ErrStreamCut, st.got, st.asked, err)
		case len(data) == 0:
			continue
		case string(data) == "[DONE]":
			if st.reply.FinishReason == "" {
				return fmt.Errorf("%w after %d of %d tokens: [DONE] without a finish reason", ErrStreamCut, st.got, st.asked)
			}
			_, _, _ = events.next() // the end of the body, which frees the connection; nothing can go wrong any more
			return st.finish()
		}
		if err := st.take(data, at); err != nil {
			return err
		}
	}
}

// finish turns a finish reason that is a failure into an error.
func (st *stream) finish() error {
	switch st.reply.FinishReason {
	case "abort":
		return fmt.Errorf("the server aborted the request after %d of %d tokens (it is shutting down, or was told to)",
			st.got, st.asked)
	case "error":
		return fmt.Errorf("the server's engine failed the request after %d of %d tokens; see the server's log",
			st.got, st.asked)
	}
	return nil
}

// take handles one event.
func (st *stream) take(data []byte, at time.Time) error {
	ch := &st.chunk
	if err := ch.parse(data); err != nil {
		return fmt.Errorf("event after %d tokens is %w: %q", st.got, err, data[:min(len(data), 200)])
	}
	switch {
	case ch.err != nil:
		e := parseErrorObject(0, ch.err)
		e.InStream = true
		return e
	case string(ch.object) == "error":
		e := parseAPIError(0, data)
		e.InStream = true
		return e
	}
	st.compare(ch)
	tokens := 0
	if ch.choices {
		switch finish := string(ch.finish); {
		case ch.tokens >= 0:
			tokens = ch.tokens
			st.hasIDs = true
		case st.hasIDs || finish == "abort" || finish == "error":
			// a server that gives ids gives none here: only the finish reason
		case ch.usage:
			tokens = max(0, ch.completion-st.usage)
		case !st.chat || ch.hasText:
			tokens = 1 // a chat begins with an event that has a role and no content
		}
		if len(ch.finish) > 0 {
			st.reply.FinishReason = string(ch.finish)
		}
		if st.out != nil {
			st.out.ids = appendIDs(st.out.ids, ch.ids)
			st.out.text = append(st.out.text, ch.text...)
		}
	}
	if ch.usage {
		st.usage = ch.completion
		st.reply.PromptTokens, st.reply.OutputTokens = ch.prompt, ch.completion
		if ch.cached >= 0 {
			cached := ch.cached
			st.reply.CachedTokens = &cached
		}
	}
	if tokens > 0 {
		st.got += tokens
		st.event(at, tokens)
	}
	if st.got > 2*st.asked+maxSurplus {
		return fmt.Errorf("the server does not end the stream: %d tokens came, %d were asked for (max_tokens)", st.got,
			st.asked)
	}
	return nil
}

// body is the request's JSON. It is written by hand because prompts are long lists of small numbers.
func (c *Client) body(r *workload.Request) []byte {
	model := c.s.info.Model
	if r.LoRA != "" {
		model = r.LoRA
	}
	b := make([]byte, 0, 320+6*r.PromptTokens())
	b = append(b, `{"model":`...)
	b = appendString(b, model)
	b = c.appendPrompt(b, r)
	b = append(b, `,"max_tokens":`...)
	b = strconv.AppendInt(b, int64(r.OutputTokens), 10)
	b = append(b, `,"ignore_eos":true,"temperature":0,"stream":true,"stream_options":{"include_usage":true},`+
		`"return_token_ids":true`...)
	if c.opt.Salt != "" {
		b = append(b, `,"cache_salt":`...)
		b = appendString(b, c.opt.Salt)
	}
	if r.Priority != 0 {
		b = append(b, `,"priority":`...)
		b = strconv.AppendInt(b, int64(r.Priority), 10)
	}
	return append(b, '}')
}

func appendString(b []byte, s string) []byte {
	quoted, _ := json.Marshal(s) // a string always marshals
	return append(b, quoted...)
}

// appendPrompt appends the prompt. A segment that an earlier request of this client generated is what it generated;
// where fewer tokens came than the segment is long, or none, the rest is made up like any other segment, so that the
// prompt's length is what was asked for. In a chat such a segment is an assistant's message, and everything else a
// user's.
func (c *Client) appendPrompt(b []byte, r *workload.Request) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.OutputID != 0 {
		c.outputs[r.OutputID] = nil // a turn that will be continued, and has not ended
	}
	switch {
	case c.opt.API == Chat:
		b = append(b, `,"messages":[`...)
		for i, seg := range r.Prompt {
			known, generated := c.outputs[seg.ID]
			_, before := c.outputs[r.Prompt[max(0, i-1)].ID]
			switch {
			case i > 0 && generated == before: // the same message goes on
			case i > 0:
				b = append(b, `"},`...)
				fallthrough
			default:
				role := "user"
				if generated {
					role = "assistant"
				}
				b = append(append(append(b, `{"role":"`...), role...), `","content":"`...)
			}
			b = c.appendText(b, seg, known)
		}
		return append(b, `"}]`...)
	case c.opt.Text:
		b = append(b, `,"prompt":"`...)
		for _, seg := range r.Prompt {
			b = c.appendText(b, seg, c.outputs[seg.ID])
		}
		return append(b, '"')
	}
	b = append(b, `,"prompt":[`...)
	var ids []int32
	for i, seg := range r.Prompt {
		ids = workload.Tokens(seg, 0, c.opt.Vocab, slices.Grow(ids[:0], seg.Tokens))
		if known := c.outputs[seg.ID]; known != nil {
			copy(ids, known.ids)
		}
		for k, id := range ids {
			if i+k > 0 {
				b = append(b, ',')
			}
			b = strconv.AppendInt(b, int64(id), 10)
		}
	}
	return append(b, ']')
}
