package profile

import (
	"fmt"
	"strings"
	"time"

	"kvtune/harness"
	"kvtune/harness/load"
	"kvtune/harness/vllm"
	"kvtune/harness/workload"
)

// doubts are what a reader must know before believing a run's numbers, one sentence each.
func (opt *Options) doubts(res *harness.Result, run *load.Run, seen vllm.Watched) []string {
	var doubts []string
	add := func(format string, args ...any) { doubts = append(doubts, fmt.Sprintf(format, args...)) }
	if why := res.Conditions.GeneratorLimited; why != "" {
		add("generator-limited: %s; the latencies are this machine's, not the server's", why)
	}
	if w := opt.Workload; w.Duration > 0 && w.Concurrency > 0 && run.Unsent == 0 && !run.Interrupted {
		add("all %d requests were sent before %v were over: a longer run needs more (--num-requests)", run.Sent, w.Duration)
	}
	if run.Retries > 0 {
		add("%d requests were sent more than once, %d retries in all; their latencies go on from the first send", run.Retried,
			run.Retries)
	}
	if !opt.Shard.Whole() {
		add("shard %v of a load: what the server counted is of all shards; kvtune merge computes the metrics of the whole",
			opt.Shard)
		if begin := opt.StartAt.Sub(run.Started); run.Begin != nil && !opt.StartAt.IsZero() && *run.Begin > begin+lateStart {
			add("the measured requests began %.1f s after --start-at: priming and warm-up were not over",
				(*run.Begin - begin).Seconds())
		}
		return doubts
	}
	if seen.Err != nil {
		if !run.Interrupted {
			add("the server's metrics could not be read at the end of the run (%v): counters end at the last reading", seen.Err)
		}
		return doubts
	}
	if seen.Restarts > 0 {
		add("the server was started anew during the run (%d times): its counters are those since then", seen.Restarts)
	}
	if n := len(seen.Back); n > 0 {
		add("the server contradicts itself: %d of its counters went back, %s among them; what moved is known since "+
			"then only", n, seen.Back[0])
	}
	for _, m := range [...]string{harness.MetricTTFTFromSend, harness.MetricITL} {
		if client, engine, ok := bothSides(m, run.Records, seen); ok && client-engine > max(minGap, engine/10) {
			add("%s is %.1f ms at the client and %.1f ms by the server's own account (means of all requests): the rest is the "+
				"network, the server's front end or the client's machine", strings.ToUpper(strings.TrimSuffix(m, "_from_send")),
				client*1e3, engine*1e3)
		}
	}
	if n := foreign(run.Records, seen.Delta); n > 0 {
		add(contaminated, n)
	}
	counted, due, ok := hits(opt.Workload, run, seen.Delta)
	ok = ok && !opt.Client.Text && opt.Client.API != vllm.Chat // how many tokens words are is the tokenizer's to say
	if info := res.Conditions.Server; ok && counted != due {
		why := "blocks were evicted, or others use the server"
		if n := seen.Delta["vllm:num_preemptions_total"]; n > 0 {
			why = fmt.Sprintf("%.0f requests were preempted, and looked their prompts up again", n)
		}
		if on := info.EnablePrefixCaching; on != nil && !*on {
			why = "prefix caching is off"
		}
		add("the server counted %d prefix-cache hit tokens, the workload should have had %d: %s", counted, due, why)
	}
	return doubts
}

const contaminated = "contaminated: the server processed %d prompt tokens that are not ours; others used it " +
	"during the run"

// lateStart is how late a shard may begin without a word.
const lateStart = 50 * time.Millisecond

// minGap is a difference between the client's and the server's account, in seconds, that is too small to speak of.
const minGap = 5e-3

// bothSides are the means of a latency over all requests of a run, as the client saw it and as the server's histogram
// has it, in seconds; false where they do not count the same samples.
func bothSides(metric string, records []workload.Record, seen vllm.Watched) (client, engine float64, ok bool) {
	family := harness.HistogramTTFT
	if metric == harness.MetricITL {
		family = harness.HistogramITL
	}
	h := seen.Histograms[family]
	sum, n := 0.0, 0
	for i := range records {
		tokens := records[i].Tokens
		switch {
		case len(tokens) == 0:
		case family == harness.HistogramTTFT:
			sum, n = sum+tokens[0].At.Seconds(), n+1
		default:
			// Per token: a busy front end merges outputs into one event, and the server counts each.
			sum, n = sum+(tokens[len(tokens)-1].At-tokens[0].At).Seconds(), n+records[i].OutputTokens-1
		}
	}
	if n == 0 || h.Count != float64(n) {
		return 0, 0, false
	}
	return sum / float64(n), h.Sum / h.Count, true
}

// foreign are the prompt tokens that the server counted and that no request of the run accounts for; 0 when it does not
// count any. vLLM counts a prompt when its first token is out, so that a request that failed or was cut off may be
// among what was counted, and is taken to be.
func foreign(records []workload.Record, delta vllm.Counters) int {
	ours := 0
	for i := range records {
		ours += records[i].PromptTokens
	}
	return max(0, int(delta["vllm:prompt_tokens_total"])-ours)
}

// hits are the prefix-cache hit tokens that the server counted, and those that the workload must have; ok is false
// where no fixed number is due.
func hits(w *workload.Workload, run *load.Run, delta vllm.Counters) (counted, due int, ok bool) {
	total, ok := delta["vllm:prefix_cache_hits_total"]
	if !ok || w.BlockSize == 0 || run.OK < len(w.Requests) {
		return 0, 0, false
	}
	primed := false
	for i := range w.Requests {
		r := &w.Requests[i]
		switch {
		case r.Session != "":
			return 0, 0, false // conversations also hit what was generated
		case r.LoRA != "" && r.SharedTokens > 0:
			return 0, 0, false // an adapter's first request computes the prefix for itself
		case r.Phase == workload.Prime:
			primed = true
		default:
			due += r.SharedTokens / w.BlockSize * w.BlockSize
		}
	}
	// Without priming (a trace) whoever comes first computes, and who that is depends on timing.
	return int(total), due, primed
}
