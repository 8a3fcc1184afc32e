// Package load sends a workload on its schedule and times every token.
//
// The schedule is [workload.Schedule]; the wire is behind [Client]; time is Go's monotonic clock (in tests,
// testing/synctest's). Latency is kept from the intended moment and from the send.
package load

import (
	"context"
	"time"

	"kvtune/harness/workload"
)

// Client makes requests ready to be sent. harness/vllm implements it over HTTP. It is called concurrently.
type Client interface {
	// Prepare builds r before it is due, so that building delays nothing, and returns what sends it. Nothing goes out
	// before that is called. A turn of a conversation is prepared when the turn before has ended.
	Prepare(r *workload.Request) Send
}

// Send sends a request at once and reports every streamed event as it arrives. It calls sent with the moment at which
// the request was handed to the network, before any event, and event for every streamed event that carries tokens, in
// order, with the moment of arrival; never two calls at once, and none after Send has returned. It returns when the
// stream has ended, or soon after ctx has. The Reply is valid even when the error is not nil: it holds what arrived
// before. A Send that returned without an event may be called again ([Options.Retries]); it never sends twice by
// itself.
//
// An error that has the method RetryAfter() (wait time.Duration, ok bool) says whether, and when, the server wants to
// see the request again.
type Send func(ctx context.Context, sent func(time.Time), event func(at time.Time, tokens int)) (Reply, error)

// Reply is what the server said of a request beside its tokens.
type Reply struct {
	// PromptTokens and OutputTokens are the server's usage counts; 0 when it sent none.
	PromptTokens, OutputTokens int
	// CachedTokens is nil unless the server reports cached tokens per request.
	CachedTokens *int
	FinishReason string
	// Connect is how long the request waited for a new connection before it was sent; 0 where one was at hand.
	Connect time.Duration
}
