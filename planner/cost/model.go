// Package cost predicts how long one engine step takes and how many KV blocks fit: a roofline prior from a GPU and a
// model's shape, corrected by measurements, with intervals.
//
// Read [Step] (what a step does), then [Model] (what it costs).
package cost

import "time"

// Step is the work of one engine step, as sums over the scheduled requests.
type Step struct {
	// PrefillSeqs and PrefillTokens count requests that compute prompt tokens and those tokens.
	PrefillSeqs, PrefillTokens int
	// PrefillAttention is the sum over prefill chunks of chunk x (history + chunk/2), in token^2.
	PrefillAttention float64
	// DecodeSeqs counts requests that generate one token; DecodeContext sums their context lengths in tokens.
	DecodeSeqs, DecodeContext int
}

// Tokens is the number of new tokens in the step.
func (s Step) Tokens() int { return s.PrefillTokens + s.DecodeSeqs }

// Timer tells how long a step takes. [Model] is one; the embedded engine's hidden model is another.
type Timer interface {
	StepTime(Step) time.Duration
}
