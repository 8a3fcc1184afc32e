package vllm

import (
	"bytes"
	"fmt"
	"hash/maphash"

	"kvtune/harness/workload"
)

// ledger counts the answers of a client's run that contradict themselves or what was asked.
type ledger struct {
	seed maphash.Seed
	ids  map[uint64]bool // the ids of answers so far, hashed

	answers, output, surplus, prompt, back, strange, twice int
}

// compare notes where an event contradicts the ones before it.
func (st *stream) compare(ch *chunk) {
	if ch.created >= 0 {
		st.back = st.back || ch.created < st.created
		st.created = max(st.created, ch.created)
	}
	switch {
	case len(ch.id) == 0:
	case st.id == nil:
		st.id = bytes.Clone(ch.id)
	case !bytes.Equal(ch.id, st.id):
		st.strange = true
	}
}

// audit enters an answer of which something came into the ledger; whole says that it came to its end. Where token ids
// came, they say how many tokens the answer has.
func (c *Client) audit(r *workload.Request, st *stream, whole bool) {
	if st.got == 0 && st.id == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	l := &c.ledger
	count := func(n *int, wrong bool) {
		if wrong {
			*n++
		}
	}
	l.answers++
	usage := st.reply.PromptTokens > 0 || st.reply.OutputTokens > 0
	count(&l.output, whole && usage && st.hasIDs && st.reply.OutputTokens != st.got)
	if st.hasIDs && st.reply.OutputTokens > 0 {
		st.reply.OutputTokens = st.got
	}
	count(&l.surplus, st.got > st.asked)
	count(&l.prompt, usage && !c.opt.Text && st.reply.PromptTokens != r.PromptTokens())
	count(&l.back, st.back)
	count(&l.strange, st.strange)
	if st.id != nil {
		id := maphash.Bytes(l.seed, st.id)
		count(&l.twice, l.ids[id])
		l.ids[id] = true
	}
}

// Doubts says in a sentence each how the server's answers contradicted themselves or what was asked, since the client
// was made; none where the server is honest. Latencies never rest on what a server says: they are of this machine's
// monotonic clock.
func (c *Client) Doubts() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := &c.ledger
	var doubts []string
	for _, d := range [...]struct {
		n    int
		what string
	}{
		{l.output, "have another number of completion tokens in their usage than token ids in their events; the " +
			"ids are what counts"},
		{l.surplus, "hold more tokens than were asked for (max_tokens)"},
		{l.prompt, "count another number of prompt tokens than were sent"},
		{l.back, "have events that were created before earlier ones of the same answer, by the server's clock"},
		{l.strange, "have events under the id of another answer"},
		{l.twice, "have an id that another answer had before"},
	} {
		if d.n > 0 {
			doubts = append(doubts, fmt.Sprintf("the server contradicts itself: %d of %d answers %s", d.n, l.answers, d.what))
		}
	}
	return doubts
}
