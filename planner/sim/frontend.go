package sim

import (
	"time"

	"kvtune/planner/cost"
)

// frontEnd is the API server: one thread that reads requests and sends tokens in order of their coming. Calls are in
// order of time.
type frontEnd struct {
	cost.FrontEnd
	// reading and sending are until when the requests, and the tokens, that have come keep the thread busy.
	reading, sending time.Duration
	// handled is how long the requests so far have kept it busy.
	handled time.Duration
}

// receive is when a request sent at a moment reaches the scheduler.
func (f *frontEnd) receive(sent time.Duration, promptTokens int) time.Duration {
	begin := max(sent, f.reading, f.sending)
	busy := f.Handle + time.Duration(promptTokens)*f.PromptToken
	f.handled += busy
	f.reading = begin + busy
	return f.reading + f.Request - f.Handle
}

// stream is when the first of n tokens, all there at a moment, reaches the client; each further one is Event later. A
// request whose last token still waits to be sent gets both in one event (RequestOutputCollector), so that the thread is
// never behind by more than one event per request.
func (f *frontEnd) stream(at time.Duration, n int) time.Duration {
	all := time.Duration(n) * f.Event
	at = max(at, f.reading)
	begin := max(at, min(f.sending, at+all))
	f.sending = begin + all
	return begin + f.Token
}
