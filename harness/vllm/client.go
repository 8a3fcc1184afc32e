package vllm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
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

// ClientOptions are what the requests of one run have in common.
type ClientOptions struct {
	// Salt is sent as cache_salt: vLLM hashes it into a prompt's first block, so that only requests of the same salt
	// share prefixes. One salt per run makes every run start cold. "" sends none.
	Salt string
	// Vocab bounds the token ids of prompts: they lie in [16, Vocab). 0 is [DefaultVocab]; it must not exceed the model's
	// vocabulary.
	Vocab int
}

// Client sends a run's requests to one model of one server. It is safe for concurrent use and remembers the tokens
// that each request with an OutputID generated, for the prompts that continue them.
type Client struct {
	s     *Server
	salt  string
	vocab int

	mu      sync.Mutex
	outputs map[uint64][]int32
}

var _ load.Client = (*Client)(nil)

// Client returns a client for one run.
func (s *Server) Client(opt ClientOptions) *Client {
	c := &Client{s: s, salt: opt.Salt, vocab: opt.Vocab, outputs: map[uint64][]int32{}}
	if c.vocab == 0 {
		c.vocab = DefaultVocab
	}
	return c
}

// ErrStreamCut says that a stream ended before the server said that it was finished.
var ErrStreamCut = errors.New("stream cut off")

// Prepare builds r's body, which takes about 20 µs per 1000 tokens of prompt, and returns what posts it to
// /v1/completions as a stream: token-id prompt, exactly r.OutputTokens tokens (ignore_eos, min_tokens), greedy. That
// calls sent when a connection is in hand and the first byte goes out, and event for every event that carries tokens,
// with the moment at which its last byte was read, taken before it is parsed.
//
// An event's tokens are counted by its token_ids; where a server sends none, by the growth of its running usage; else
// each event with choices is one token. The reply holds what arrived, also beside an error. Errors are *APIError (a
// refusal, or an error inside the stream), ErrStreamCut (the stream ended without a finish reason), the cause of a
// cancelled ctx, or the transport's. A request that the server aborted is an error.
func (c *Client) Prepare(r *workload.Request) load.Send {
	body := c.body(r)
	return func(ctx context.Context, sent func(time.Time), event func(at time.Time, tokens int)) (load.Reply, error) {
		return c.post(ctx, r, body, sent, event)
	}
}

// post sends a body and reads the stream that answers it.
func (c *Client) post(ctx context.Context, r *workload.Request, body []byte, sent func(time.Time),
	event func(at time.Time, tokens int)) (load.Reply, error) {
	var once sync.Once // a stale connection is retried once by net/http: the first attempt counts
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { once.Do(func() { sent(time.Now()) }) },
	})
	req, err := c.s.newRequest(ctx, http.MethodPost, "/v1/completions", bytes.NewReader(body))
	if err != nil {
		return load.Reply{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "text/event-stream")
	req.Header["Idempotency-Key"] = nil // not sent; lets net/http repeat a request that met a just-closed connection
	resp, err := c.s.http.Do(req)
	if err != nil {
		return load.Reply{}, cause(ctx, fmt.Errorf("no answer from %s: %w", c.s.url, rootCause(err)))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, maxBody)) // what arrived of the reason is better than nothing
		return load.Reply{}, parseAPIError(resp.StatusCode, body)
	}
	st := stream{event: event, asked: r.OutputTokens}
	if r.OutputID != 0 {
		st.ids = make([]int32, 0, r.OutputTokens)
	}
	err = st.read(resp.Body)
	if r.OutputID != 0 && len(st.ids) > 0 {
		c.mu.Lock()
		c.outputs[r.OutputID] = st.ids
		c.mu.Unlock()
	}
	if err != nil {
		return st.reply, cause(ctx, err)
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
	ids    []int32 // generated ids; collected when not nil
	hasIDs bool    // the server gives token ids
	reply  load.Reply
	got    int // tokens so far, as counted
	usage  int // tokens so far, by the server's running usage
}

// chunk is one event of vLLM's completion stream (entrypoints/openai/completion/protocol.py,
// CompletionStreamResponse), as far as it is used.
type chunk struct {
	Choices []struct {
		TokenIDs     []int32 `json:"token_ids"`
		FinishReason string  `json:"finish_reason"`
	} `json:"choices"`
	Usage *struct {
		PromptTokens     int `json:"prompt_tokens"`
		CompletionTokens int `json:"completion_tokens"`
		Details          *struct {
			CachedTokens *int `json:"cached_tokens"`
		} `json:"prompt_tokens_details"`
	} `json:"usage"`
	Error   json.RawMessage `json:"error"`
	Object  string          `json:"object"`
	Message string          `json:"message"`
}

// read consumes the stream to its end, so that the connection can be used again.
func (st *stream) read(body io.Reader) error {
	events := newEventScanner(body, time.Now, maxEvent)
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
	var ch chunk
	if err := json.Unmarshal(data, &ch); err != nil {
		return fmt.Errorf("event after %d tokens is not JSON (%w): %q", st.got, err, data[:min(len(data), 200)])
	}
	if len(ch.Error) > 0 && string(ch.Error) != "null" {
		e := parseErrorObject(0, ch.Error)
		e.InStream = true
		return e
	}
	if ch.Object == "error" {
		return &APIError{InStream: true, Message: ch.Message}
	}
	tokens := 0
	if len(ch.Choices) > 0 {
		choice := &ch.Choices[0]
		switch {
		case choice.TokenIDs != nil:
			tokens = len(choice.TokenIDs)
			if st.ids != nil {
				st.ids = append(st.ids, choice.TokenIDs...)
			}
			st.hasIDs = true
		case st.hasIDs || choice.FinishReason == "abort" || choice.FinishReason == "error":
			// a server that gives ids gives none here: only the finish reason
		case ch.Usage != nil:
			tokens = max(0, ch.Usage.CompletionTokens-st.usage)
		default:
			tokens = 1
		}
		if choice.FinishReason != "" {
			st.reply.FinishReason = choice.FinishReason
		}
	}
	if u := ch.Usage; u != nil {
		st.usage = u.CompletionTokens
		st.reply.PromptTokens, st.reply.OutputTokens = u.PromptTokens, u.CompletionTokens
		if u.Details != nil {
			st.reply.CachedTokens = u.Details.CachedTokens
		}
	}
	if tokens > 0 {
		st.got += tokens
		st.event(at, tokens)
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
	b = append(b, `,"prompt":[`...)
	for i, id := range c.prompt(r) {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, int64(id), 10)
	}
	b = append(b, `],"max_tokens":`...)
	b = strconv.AppendInt(b, int64(r.OutputTokens), 10)
	b = append(b, `,"min_tokens":`...)
	b = strconv.AppendInt(b, int64(r.OutputTokens), 10)
	b = append(b, `,"ignore_eos":true,"temperature":0,"stream":true,"stream_options":{"include_usage":true},`+
		`"return_token_ids":true`...)
	if c.salt != "" {
		b = append(b, `,"cache_salt":`...)
		b = appendString(b, c.salt)
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

// prompt is r's token ids. A segment that an earlier request of this client generated has the generated ids; where
// fewer came than the segment is long, or none, the rest is made up like any other segment, so that the prompt's length
// is what was asked for.
func (c *Client) prompt(r *workload.Request) []int32 {
	ids := make([]int32, 0, r.PromptTokens())
	for _, seg := range r.Prompt {
		c.mu.Lock()
		known := c.outputs[seg.ID]
		c.mu.Unlock()
		start := len(ids)
		ids = workload.Tokens(seg, 0, c.vocab, ids)
		copy(ids[start:], known)
	}
	return ids
}
