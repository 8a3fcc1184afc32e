package sim

import (
	"time"

	"kvtune/planner/cost"
)

// frontEnd is the API server: one thread that reads requests and sends tokens in order of their coming. Calls are in
// order of time.
//
// Not in it is what the thread does between two chunks of 128 outputs (VLLM_V1_OUTPUT_PROC_CHUNK_SIZE): of vLLM 0.26 on
// an H100, tokens came in runs of 128 at 60 us each and, with 100 to 200 requests decoding, 1.8 to 2.6 ms apart. Nor is
// whatever else holds up new requests there: the mean TTFT came 54 ms above the prediction of 134 ms at 16 requests/s,
// of which 25 ms are outside the server's own account.
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
// request whose last token still waits to be sent gets both in one event (RequestOutputCollector), so that the thread
// is never behind by more than one event per request.
func (f *frontEnd) stream(at time.Duration, n int) time.Duration {
	all := time.Duration(n) * f.Event
	at = max(at, f.reading)
	begin := max(at, min(f.sending, at+all))
	f.sending = begin + all
	return begin + f.Token
}
