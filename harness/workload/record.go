package workload

import "time"

// TokenEvent is one streamed event: tokens that arrived together.
type TokenEvent struct {
	// At is the arrival, from the moment the request was sent.
	At time.Duration
	// Tokens is how many tokens the event carried, at least 1.
	Tokens int
}

// Record is what became of one request: one line of a requests file. Measured and simulated runs write the same record.
// Times are from the run's start unless said otherwise. In JSON, times are seconds.
type Record struct {
	Index int
	// Probe names the probe that the request belongs to, "" outside probe runs.
	Probe string
	// Phase is the request's phase; only "" is measured.
	Phase Phase
	// Due is the intended moment; nil where nothing intended one (the requests of a closed loop without think time).
	Due *time.Duration
	// Sent is the moment at which the request's first byte was handed to the network.
	Sent time.Duration
	// PromptTokens is the server's count where it gave one, else the count asked for.
	PromptTokens int
	// CachedTokens is how many prompt tokens the server took from its prefix cache; nil is "not observed".
	CachedTokens *int
	// SharedPrefixTokens is how many leading prompt tokens others may share, as asked.
	SharedPrefixTokens int
	// AskedTokens is the output length asked for; OutputTokens is what arrived. 0 where a foreign file does not say.
	AskedTokens  int
	OutputTokens int
	// Tokens are the streamed events in order of arrival; At is from Sent and never decreases.
	Tokens []TokenEvent
	// EndsOnly says that of a longer list Tokens holds the first and the last event only, the last with all tokens behind
	// the first: when the others came is not known.
	EndsOnly bool
	// FinishReason is the server's: "length", "stop", "abort", ...; "" when the stream ended without one.
	FinishReason string
	// Error says why the request failed, "" for success.
	Error string
	// Retries is how often the request was sent again before this outcome; Sent is the first time.
	Retries int

	Session string
	Turn    int
	Think   time.Duration
	// PrefixHashes name the leading full blocks of HashBlock tokens that may be shared: equal numbers are equal prefixes
	// within one file.
	PrefixHashes []uint64
	HashBlock    int
	Class        string
	Priority     int
	LoRA         string
}

// OK reports whether the request succeeded: no error, at least one token, and not aborted by the server.
func (r *Record) OK() bool {
	return r.Error == "" && len(r.Tokens) > 0 && r.FinishReason != "abort"
}

// Start is the moment from which a user waits: the due moment, or Sent where there was none.
func (r *Record) Start() time.Duration {
	if r.Due != nil {
		return *r.Due
	}
	return r.Sent
}

// End is the arrival of the last token, from the run's start; Sent when no token arrived.
func (r *Record) End() time.Duration {
	if len(r.Tokens) == 0 {
		return r.Sent
	}
	return r.Sent + r.Tokens[len(r.Tokens)-1].At
}
