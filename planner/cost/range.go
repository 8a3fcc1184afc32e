package cost

// Range is the largest step that a fit has seen, per quantity.
type Range struct {
	Tokens        int     `json:"tokens"`
	Seqs          int     `json:"seqs"`
	DecodeContext int     `json:"decode_context"`
	Attention     float64 `json:"prefill_attention"`
	// Prefill, Decode and Mixed say whether such steps were seen at all.
	Prefill bool `json:"prefill"`
	Decode  bool `json:"decode"`
	Mixed   bool `json:"mixed"`
}

// InRange reports whether the step lies within what the model was fitted on, a quarter beyond the largest allowed. It
// is false for a prior.
func (m *Model) InRange(s Step) bool {
	const beyond = 1.25
	r := &m.Range
	prefill, decode := s.PrefillTokens > 0, s.DecodeSeqs > 0
	if prefill && !r.Prefill || decode && !r.Decode || prefill && decode && !r.Mixed {
		return false
	}
	return float64(s.Tokens()) <= beyond*float64(r.Tokens) &&
		float64(s.PrefillSeqs+s.DecodeSeqs) <= beyond*float64(r.Seqs) &&
		float64(s.DecodeContext) <= beyond*float64(r.DecodeContext) && s.PrefillAttention <= beyond*r.Attention
}

// excess is what a step has more of than any that a fit has seen: the largest there, 0 where it saw none of the kind.
type excess struct {
	what        string
	here, there float64
}

// excess names, of a step that is not in range, the quantity that goes furthest beyond it.
func (r *Range) excess(s Step) excess {
	prefill, decode := s.PrefillTokens > 0, s.DecodeSeqs > 0
	switch {
	case prefill && !r.Prefill:
		return excess{what: "prefill"}
	case decode && !r.Decode:
		return excess{what: "decode"}
	case prefill && decode && !r.Mixed:
		return excess{what: "prefill and decode together"}
	}
	most := excess{"tokens", float64(s.Tokens()), float64(r.Tokens)}
	for _, e := range [...]excess{
		{"sequences", float64(s.PrefillSeqs + s.DecodeSeqs), float64(r.Seqs)},
		{"tokens of context behind decodes", float64(s.DecodeContext), float64(r.DecodeContext)},
		{"pairs of tokens in prefill's attention", s.PrefillAttention, r.Attention},
	} {
		if e.here*most.there > most.here*e.there {
			most = e
		}
	}
	return most
}

// add widens the range to hold s.
func (r *Range) add(s Step) {
	r.Tokens, r.Seqs = max(r.Tokens, s.Tokens()), max(r.Seqs, s.PrefillSeqs+s.DecodeSeqs)
	r.DecodeContext, r.Attention = max(r.DecodeContext, s.DecodeContext), max(r.Attention, s.PrefillAttention)
	prefill, decode := s.PrefillTokens > 0, s.DecodeSeqs > 0
	r.Prefill, r.Decode, r.Mixed = r.Prefill || prefill, r.Decode || decode, r.Mixed || prefill && decode
}
