package harness

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kvtune/harness/workload"
)

const ms = time.Millisecond

// request is a finished request that was sent at sent and whose events, one token each, arrived at the given times from
// then.
func request(sent time.Duration, at ...time.Duration) workload.Record {
	r := workload.Record{Sent: sent, PromptTokens: 10, OutputTokens: len(at), AskedTokens: len(at), FinishReason: "length"}
	for _, a := range at {
		r.Tokens = append(r.Tokens, workload.TokenEvent{At: a, Tokens: 1})
	}
	return r
}

// check compares a metric with a value worked out by hand; NaN stands for "not observed".
func check(t *testing.T, ms Metrics, name, stat string, want float64) {
	t.Helper()
	m := ms.Get(name, stat)
	switch {
	case m == nil:
		t.Errorf("%s %s is not in the list", name, stat)
	case m.Value == nil && !math.IsNaN(want):
		t.Errorf("%s, want %v", m, want)
	case m.Value == nil && m.Note == "":
		t.Errorf("%s: no reason given", m)
	case m.Value != nil && !(math.Abs(*m.Value-want) <= 1e-9*max(1, math.Abs(want))):
		t.Errorf("%s %s = %v, want %v", name, stat, *m.Value, want)
	}
}

func TestMeasureByHand(t *testing.T) {
	due := 90 * ms
	a := request(100*ms, 50*ms, 60*ms, 80*ms) // due 10 ms earlier
	a.Due = &due
	b := request(200*ms, 30*ms, 130*ms)
	b.Tokens[1].Tokens, b.OutputTokens, b.AskedTokens = 4, 5, 8 // an event of four tokens: one gap
	one := request(300*ms, 40*ms)
	failed := request(300*ms, 20*ms, 700*ms)
	failed.Error = "connection lost"
	aborted := request(300*ms, 20*ms)
	aborted.FinishReason = "abort"
	prime, warm := request(0, 5*time.Second), request(0, 5*time.Second)
	prime.Phase, warm.Phase = workload.Prime, workload.Warmup
	recs := []workload.Record{prime, warm, a, b, one, failed, aborted}
	for i := range recs {
		cached := i
		recs[i].CachedTokens = &cached
	}
	got := Measure(recs)
	nan := math.NaN()
	for _, c := range []struct {
		name, stat string
		want       float64
	}{
		{MetricRequests, StatOK, 3}, {MetricRequests, StatFail, 2}, {MetricErrorRate, "", 0.4},
		{MetricDuration, "", 0.9}, // first send at 0.1 s, last token, of the failed request, at 1.0 s
		{MetricPromptTokens, StatTotal, 30}, {MetricCachedTokens, StatTotal, 2 + 3 + 4},
		{MetricOutputTokens, StatTotal, 3 + 5 + 1}, {MetricAskedTokens, StatTotal, 3 + 8 + 1},
		{MetricTTFT, StatMean, (0.060 + 0.030 + 0.040) / 3}, {MetricTTFT, StatP50, 0.040},
		{MetricTTFTFromSend, StatP50, 0.040}, {MetricTTFTFromSend, StatMean, 0.040},
		{MetricITL, StatMean, (0.010 + 0.020 + 0.100) / 3}, {MetricITL, StatP50, 0.020},
		{MetricTPOT, StatMean, (0.015 + 0.025) / 2}, // 100 ms over 4 tokens; the single token is left out
		{MetricE2EL, StatMean, (0.090 + 0.130 + 0.040) / 3}, {MetricE2ELFromSend, StatP50, 0.080},
		{MetricSendLag, StatMean, 0.010},
		{MetricRequestThroughput, "", 3 / 0.9}, {MetricOutputThroughput, "", 9 / 0.9},
		{MetricTotalThroughput, "", 39 / 0.9},
		{MetricPrefillLatency, StatP50, 0.040},
	} {
		check(t, got, c.name, c.stat, c.want)
	}
	for _, m := range Measure(nil) {
		switch m.Name {
		case MetricRequests, MetricPromptTokens, MetricOutputTokens, MetricAskedTokens:
			check(t, Metrics{m}, m.Name, m.Stat, 0) // counts: none is a number
		default:
			check(t, Metrics{m}, m.Name, m.Stat, nan)
		}
	}
	recs[3].CachedTokens = nil
	check(t, Measure(recs), MetricCachedTokens, StatTotal, nan)
	closed := Measure([]workload.Record{one})
	check(t, closed, MetricSendLag, StatP99, nan)
	check(t, closed, MetricTPOT, StatMean, nan)
	check(t, closed, MetricITL, StatP99, nan)
}

// TestMeasureShape: every run gives the same metrics in the same order, each with a unit.
func TestMeasureShape(t *testing.T) {
	type key struct{ Name, Stat, Unit string }
	keys := func(ms Metrics) []key {
		var ks []key
		for _, m := range ms {
			if m.Unit == "" {
				t.Errorf("%s %s has no unit", m.Name, m.Stat)
			}
			ks = append(ks, key{m.Name, m.Stat, m.Unit})
		}
		return ks
	}
	if d := cmp.Diff(keys(Measure(nil)), keys(Measure(random(1, 50)))); d != "" {
		t.Error(d)
	}
	seen := map[key]bool{}
	for _, k := range keys(append(Measure(nil), Observe(ServerInfo{}, nil, nil)...)) {
		if seen[k] {
			t.Errorf("%v is there twice", k)
		}
		seen[k] = true
	}
}

// random is a seeded open loop of n requests.
func random(seed uint64, n int) []workload.Record {
	rng := rand.New(rand.NewPCG(seed, 1))
	recs := make([]workload.Record, n)
	for i := range recs {
		var at []time.Duration
		now := time.Duration(rng.ExpFloat64() * float64(40*ms))
		for range 1 + rng.IntN(30) {
			at = append(at, now)
			now += time.Duration(1 + rng.ExpFloat64()*float64(8*ms))
		}
		due := time.Duration(i) * 20 * ms
		recs[i] = request(due+time.Duration(rng.IntN(1e6)), at...)
		recs[i].Due = &due
		recs[i].PromptTokens = 1 + rng.IntN(500)
	}
	return recs
}

// TestMeasureLaws: orders and sums that hold whatever the run.
func TestMeasureLaws(t *testing.T) {
	for seed := range uint64(20) {
		recs := random(seed, 30+int(seed)*7)
		got := Measure(recs)
		v := func(name, stat string) float64 {
			x, ok := got.Value(name, stat)
			if !ok {
				t.Fatalf("seed %d: %s %s not observed", seed, name, stat)
			}
			return x
		}
		for _, name := range []string{MetricTTFT, MetricITL, MetricTPOT, MetricE2EL} {
			if !(v(name, StatP50) <= v(name, StatP90) && v(name, StatP90) <= v(name, StatP95) &&
				v(name, StatP95) <= v(name, StatP99)) {
				t.Errorf("seed %d: percentiles of %s do not rise", seed, name)
			}
		}
		if v(MetricTTFT, StatMean) < v(MetricTTFTFromSend, StatMean) || v(MetricE2EL, StatMean) < v(MetricTTFT, StatMean) {
			t.Errorf("seed %d: waiting from the due moment is shorter than from the send", seed)
		}
		if d := v(MetricTotalThroughput, "") - v(MetricOutputThroughput, "") -
			v(MetricPromptTokens, StatTotal)/v(MetricDuration, ""); math.Abs(d) > 1e-6 {
			t.Errorf("seed %d: total throughput is off by %v", seed, d)
		}
		for _, m := range got {
			if m.Value != nil && m.Low != nil && (*m.Low > *m.Value || m.High != nil && *m.High < *m.Value) {
				t.Errorf("seed %d: %s lies outside its interval", seed, m)
			}
		}
		// The same requests later: nothing but the clock has changed.
		later := random(seed, 30+int(seed)*7)
		for i := range later {
			due := *later[i].Due + time.Hour
			later[i].Due, later[i].Sent = &due, later[i].Sent+time.Hour
		}
		for i, m := range Measure(later) {
			if m.Value != nil && math.Abs(*m.Value-*got[i].Value) > 1e-6*math.Abs(*m.Value) {
				t.Errorf("seed %d: %s was %v an hour before", seed, m, *got[i].Value)
			}
		}
	}
}

func TestFewSamplesAreNoted(t *testing.T) {
	got := Measure(random(1, 99))
	if m := got.Get(MetricTTFT, StatP99); !strings.Contains(m.Note, "only 99 samples") || m.High != nil {
		t.Errorf("p99 of 99: %+v", m)
	}
	if m := Measure(random(1, 400)).Get(MetricTTFT, StatP99); m.Note != "" || m.High == nil {
		t.Errorf("p99 of 400: %+v", m)
	}
	if m := Measure(random(1, 19)).Get(MetricOutputThroughput, ""); m.Low != nil || m.Note == "" {
		t.Errorf("throughput of 19 requests: %+v", m)
	}
}

func TestDecodeWindow(t *testing.T) {
	// Two batches of two: both decode from 20 to 40 ms, then one alone; and again from 120 ms.
	recs := []workload.Record{
		request(0, 10*ms, 20*ms, 30*ms, 40*ms),
		request(0, 20*ms, 30*ms, 40*ms, 55*ms, 70*ms),
		request(100*ms, 20*ms, 32*ms), request(100*ms, 20*ms, 32*ms),
	}
	batch, gaps := decodeWindow(recs)
	if d := cmp.Diff([]float64{0.010, 0.010, 0.010, 0.010, 0.012, 0.012}, gaps); batch != 2 || d != "" {
		t.Errorf("batch %d, gaps %s", batch, d)
	}
	check(t, Measure(recs), MetricDecodeLatency, StatP50, 0.010)
	// A request that begins as another ends does not decode beside it.
	batch, gaps = decodeWindow([]workload.Record{request(0, 10*ms, 20*ms), request(0, 20*ms, 35*ms)})
	if batch != 1 || len(gaps) != 2 {
		t.Errorf("one after the other: batch %d, gaps %v", batch, gaps)
	}
	warm := request(0, 10*ms, 20*ms)
	warm.Phase = workload.Warmup
	if batch, gaps := decodeWindow([]workload.Record{warm, request(0, 10*ms)}); batch != 0 || gaps != nil {
		t.Errorf("nothing decodes: batch %d, gaps %v", batch, gaps)
	}
	check(t, Measure([]workload.Record{request(0, 10*ms)}), MetricDecodeLatency, StatP50, math.NaN())
}

// TestDecodeWindowLaw compares with the definition, checked gap by gap.
func TestDecodeWindowLaw(t *testing.T) {
	for seed := range uint64(30) {
		recs := random(seed, 12)
		active := func(at, until time.Duration) int { // requests that decode during all of it
			n := 0
			for i := range recs {
				r := &recs[i]
				if len(r.Tokens) > 1 && r.Sent+r.Tokens[0].At <= at && until <= r.End() {
					n++
				}
			}
			return n
		}
		batch, gaps := decodeWindow(recs)
		want, most := 0, 0
		for i := range recs {
			r := &recs[i]
			for j := 1; j < len(r.Tokens); j++ {
				from, to := r.Sent+r.Tokens[j-1].At, r.Sent+r.Tokens[j].At
				most = max(most, active(from, from+1))
				if active(from, to) == batch {
					want++
				}
			}
		}
		if len(gaps) != want || batch < most {
			t.Errorf("seed %d: batch %d of %d, %d gaps, want %d", seed, batch, most, len(gaps), want)
		}
	}
}

func TestObserve(t *testing.T) {
	info := ServerInfo{NumGPUBlocks: 1000, BlockSize: 16, KVBytesPerToken: 131072, Args: EngineArgs{MaxNumSeqs: 4}}
	counters := map[string]float64{"vllm:prefix_cache_hits_total": 300, "vllm:prefix_cache_queries_total": 1200,
		"vllm:num_preemptions_total": 0, "vllm:request_queue_time_seconds_sum": 3,
		"vllm:request_queue_time_seconds_count": 12}
	var series []Sample
	for i, v := range [][3]float64{{4, 6, 0.5}, {2, 2, 0.25}, {0, 0, 0}, {3, 0, 0.15}} { // running, waiting, usage
		at := time.Duration(i) * time.Second
		series = append(series, Sample{at, "vllm:num_requests_running", v[0]}, Sample{at, "vllm:num_requests_waiting", v[1]},
			Sample{at, "vllm:kv_cache_usage_perc", v[2]}, Sample{at, SeriesHostMemory, float64(i)})
	}
	got := Observe(info, counters, series)
	const kv = 1000 * 16 * 131072
	for _, c := range []struct {
		name, stat string
		want       float64
	}{
		{MetricCacheHitRate, "", 0.25}, {MetricKVUsage, StatMean, 0.225}, {MetricKVUsage, StatPeak, 0.5},
		{MetricPreemptions, "", 0}, {MetricQueueTime, StatMean, 0.25},
		{MetricRunning, StatMean, 2.25}, {MetricRunning, StatPeak, 4}, {MetricWaiting, StatPeak, 6},
		{MetricMemoryDevice, StatMean, 0.225 * kv}, {MetricMemoryDevice, StatPeak, 0.5 * kv}, {MetricMemoryHost, StatPeak, 3},
		// Could have run: 4 (of 10, the limit), 4, 0 and 3.
		{MetricBatchEfficiency, "", 9.0 / 11},
	} {
		check(t, got, c.name, c.stat, c.want)
	}
	info.Args.MaxNumSeqs = 0
	unknown := Observe(info, counters, series)
	check(t, unknown, MetricBatchEfficiency, "", 9.0/17)
	if m := unknown.Get(MetricBatchEfficiency, ""); m.Note == "" {
		t.Error("an unknown max_num_seqs is not noted")
	}
	// The same gauges read where they change and at even moments say the same.
	changes := func(at ...int) (all []Sample) {
		for _, k := range at {
			v := []float64{1, 0, 0.5}[k/10]
			at := time.Duration(k) * time.Second
			all = append(all, Sample{at, SeriesKVUsage, v}, Sample{at, SeriesRunning, 4 * v}, Sample{at, SeriesWaiting, 1})
		}
		return all
	}
	seldom := Observe(info, nil, changes(0, 10, 11, 12, 13, 14, 20, 29))
	var even []int
	for k := range 30 {
		even = append(even, k)
	}
	often := Observe(info, nil, changes(even...))
	for name, want := range map[string]float64{MetricKVUsage: 0.5, MetricRunning: 2, MetricBatchEfficiency: 60.0 / 90} {
		stat := StatMean
		if name == MetricBatchEfficiency {
			stat = ""
		}
		check(t, often, name, stat, want)
		if got, _ := seldom.Value(name, stat); math.Abs(got/want-1) > 0.1 {
			t.Errorf("%s of uneven readings is %g, of even ones %g", name, got, want)
		}
	}
	// Nothing known: nothing observed, and never 0.
	for _, m := range Observe(ServerInfo{}, nil, nil) {
		check(t, Metrics{m}, m.Name, m.Stat, math.NaN())
	}
	// A window in which nothing happened has no rates either.
	idle := map[string]float64{"vllm:prefix_cache_hits_total": 0, "vllm:prefix_cache_queries_total": 0,
		"vllm:request_queue_time_seconds_sum": 0, "vllm:request_queue_time_seconds_count": 0}
	check(t, Observe(info, idle, nil), MetricCacheHitRate, "", math.NaN())
	check(t, Observe(info, idle, nil), MetricQueueTime, StatMean, math.NaN())
	info.KVBytesPerToken = 0
	check(t, Observe(info, counters, series), MetricMemoryDevice, StatPeak, math.NaN())
}

func TestMetricString(t *testing.T) {
	v, low, high := 0.1834567, 0.171, 0.204
	for want, m := range map[string]Metric{
		"ttft p99 0.1835 s (0.171 to 0.204)": {Name: "ttft", Stat: "p99", Unit: "s", Value: &v, Low: &low,
			High: &high},
		"ttft p99 0.1835 s": {Name: "ttft", Stat: "p99", Unit: "s", Value: &v, Low: &low},
		"cache_hit_rate not observed: no token looked up": {Name: "cache_hit_rate", Note: "no token looked up"},
	} {
		if got := m.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
