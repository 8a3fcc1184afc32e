package workload

import (
	"errors"
	"fmt"
	"slices"
)

// Shard is the i-th of n shares of w, from 0, for n load generators that begin together: of the measured conversations
// (a lone request being one) every n-th with the moments that they have in w, likewise of the warm-up, and a share of a
// closed loop's Concurrency. Priming is dealt, too, or is whole in every shard when alone is set: then no shard relies
// on what another primes. The shards of a workload have each of its requests once, but for priming that is not dealt.
//
// Its error is of a workload that does not divide: one whose measured requests wait for all of the batch before them,
// which another shard would hold, or that has fewer of something than shards.
func (w *Workload) Shard(i, n int, alone bool) (*Workload, error) {
	if i < 0 || i >= n {
		return nil, fmt.Errorf("shard %d of %d: expected an index from 0 to %d", i, n, n-1)
	}
	if w.Concurrency > 0 && w.Concurrency < n {
		return nil, fmt.Errorf("a closed loop of %d requests in flight does not divide into %d shards: use at most %d",
			w.Concurrency, n, w.Concurrency)
	}
	out := *w
	out.Requests, out.whole, out.indices = nil, w, nil
	counts := map[Phase]int{}
	moved := make([]int, len(w.Requests)) // new index of each request, -1 where it is another shard's
	wave := -1                            // of the measured requests
	for k := range w.Requests {
		r := w.Requests[k]
		if r.Phase == Measured {
			if wave >= 0 && r.Wave != wave {
				return nil, errors.New("its batches wait for one another, and so would those of other shards: divide an open " +
					"loop (--rate) or a closed one (--concurrency)")
			}
			wave = r.Wave
		}
		var own bool
		if r.After >= 0 {
			own = moved[r.After] >= 0
		} else {
			own = counts[r.Phase]%n == i || r.Phase == Prime && alone
			counts[r.Phase]++
		}
		if moved[k] = -1; !own {
			continue
		}
		moved[k] = len(out.Requests)
		if r.After >= 0 {
			r.After = moved[r.After]
		}
		r.Index = moved[k]
		out.Requests, out.indices = append(out.Requests, r), append(out.indices, k)
	}
	if counts[Measured] < n {
		return nil, fmt.Errorf("%d measured requests or conversations do not divide into %d shards: use at most %d",
			counts[Measured], n, counts[Measured])
	}
	if w.Concurrency > 0 {
		share := func(of int) int { return (of + n - 1 - i) / n }
		out.Concurrency = share(w.Concurrency)
		if w.Clients > 0 {
			out.Clients = min(max(1, share(w.Clients)), out.Concurrency)
		}
	}
	out.Notes = slices.Clone(w.Notes)
	return &out, nil
}

// NewRecords are the records of the requests before any is sent. The blocks of hashBlock tokens that requests may share
// are named; 0 names none. Indices and names are those of the whole workload where w is a shard.
func (w *Workload) NewRecords(hashBlock int) []Record {
	all := w
	if w.whole != nil {
		all = w.whole
	}
	hasher := NewHasher(hashBlock)
	records := make([]Record, 0, len(w.Requests))
	for i := range all.Requests {
		r := &all.Requests[i]
		hashes := hasher.Prefix(r)
		if w.whole != nil && (len(records) == len(w.indices) || w.indices[len(records)] != i) {
			continue
		}
		rec := NewRecord(r)
		if len(hashes) > 0 {
			rec.PrefixHashes, rec.HashBlock = hashes, hashBlock
		}
		records = append(records, rec)
	}
	return records
}
