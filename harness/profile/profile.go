// Package profile measures a workload on an endpoint and keeps what was measured: prefill, decode and mixed profiles of a
// configuration, traces, and the probes that a cost model is fitted from.
//
// Read [Run]; [Probes] is the probes' design.
package profile

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/hist"
	"kvtune/harness/load"
	"kvtune/harness/telemetry"
	"kvtune/harness/vllm"
	"kvtune/harness/workload"
)

// Options say what to measure, where, and where to keep it.
type Options struct {
	Server *vllm.Server
	Config harness.Config
	// Workload is what to send; [Workload] makes it from a Config.
	Workload *workload.Workload
	// Name names the files of the run: <Name>_results.json and so on.
	Name string
	// Folder keeps the files; nil keeps none.
	Folder *archive.Folder
	// Vocab bounds the token ids of prompts; 0 is the client's default.
	Vocab int
	// KVBytesPerToken is the model's, for the memory metrics; 0 leaves them not observed.
	KVBytesPerToken int64
	// Notes become warnings of the result (what was replaced or scaled before the run).
	Notes []string
	// Command is the command line, for the conditions.
	Command []string
	// Tool is kvtune's version, for the conditions.
	Tool string
	// OnProgress is called as requests end; nil is silent.
	OnProgress func(load.Progress)
}

// Output is a result with what it was computed from.
type Output struct {
	Result  *harness.Result
	Records []workload.Record
	Series  []harness.Sample
}

// sampleEvery is the beat on which a server's metrics are read. A vLLM answers from the loop that also delivers tokens: an
// answer takes about 7 ms of it (vLLM 0.32.0, 58 kB), so that a faster beat would show in the latencies.
func sampleEvery(info harness.ServerInfo) time.Duration {
	if info.Simulated() {
		return 100 * time.Millisecond
	}
	return time.Second
}

// Run sends the workload and measures. When the run ends early - the server died, ctx was cancelled - the output holds
// what was measured, marked partial, and Run returns it with a nil error unless nothing at all was measured.
func Run(ctx context.Context, opt Options) (*Output, error) {
	info := opt.Server.Info()
	info.KVBytesPerToken = opt.KVBytesPerToken
	host, err := telemetry.Host()
	if err != nil {
		host = "" // an unknown machine is no reason not to measure
	}
	salt := newSalt()
	client := opt.Server.Client(vllm.ClientOptions{Salt: salt, Vocab: opt.Vocab})
	var writer *archive.RequestWriter
	if opt.Folder != nil {
		if writer, err = opt.Folder.Requests(opt.Name); err != nil {
			return nil, err
		}
	}
	started := time.Now()
	watch := opt.Server.Watch(ctx, sampleEvery(info), started)
	machine := telemetry.Watch(sampleEvery(info), started)
	var writeErr error
	run, err := load.Do(ctx, load.Options{
		Client: client, Workload: opt.Workload, HashBlock: info.BlockSize, OnProgress: opt.OnProgress,
		OnRecord: func(r workload.Record) {
			if writer != nil && writeErr == nil {
				writeErr = writer.Append(r)
			}
		},
	})
	seen := watch.Stop()
	series := append(seen.Series, machine.Stop()...)
	if writer != nil {
		writeErr = errors.Join(writeErr, writer.Close())
	}
	if err != nil {
		return nil, errors.Join(err, writeErr)
	}

	out := &Output{Records: run.Records, Series: series}
	res := &harness.Result{
		Schema: harness.ResultSchema, Name: opt.Name, Origin: harness.OriginMeasured, Config: opt.Config,
		Conditions: harness.Conditions{
			Started: run.Started, Server: info, Host: host, Tool: opt.Tool, Command: opt.Command, Seed: opt.Config.Seed, Salt: salt,
		},
		Counters: seen.Delta,
		Warnings: slices.Concat(opt.Notes, opt.Workload.Notes),
	}
	if info.Simulated() {
		res.Origin = harness.OriginSimulated
	}
	out.Result = res
	res.Metrics = harness.Measure(run.Records)
	res.Metrics = append(res.Metrics, harness.Observe(info, seen.Delta, series)...)
	if d, ok := res.Metrics.Value(harness.MetricDuration, ""); ok {
		res.Conditions.Duration = d
	}
	if lag, ok := res.Metrics.Value(harness.MetricSendLag, harness.StatP99); ok {
		res.Conditions.SendLag99 = &lag
		if lag > 5e-3 {
			res.Warnings = append(res.Warnings, fmt.Sprintf("generator-limited: requests were sent up to %.1f ms late (p99); latencies "+
				"from the due moment include it", lag*1e3))
		}
	}
	res.Warnings = append(res.Warnings, checkHits(opt.Workload, run, seen.Delta)...)
	if run.Interrupted {
		res.Partial, res.Why = true, run.Why
	}
	if ok, _ := res.Metrics.Value(harness.MetricRequests, harness.StatOK); ok == 0 && !res.Partial {
		res.Partial, res.Why = true, "no request succeeded"
		for _, r := range run.Records {
			if r.Error != "" {
				res.Why += ": " + r.Error
				break
			}
		}
	}
	if opt.Folder == nil {
		return out, nil
	}
	state := archive.Done
	if res.Partial {
		state = archive.Partial
	}
	err = errors.Join(writeErr,
		opt.Folder.WriteSeries(opt.Name, series),
		opt.Folder.WriteHistograms(opt.Name, run.Started, Histograms(run.Records)),
		opt.Folder.WriteResult(res),
	)
	if err == nil {
		err = opt.Folder.SetPart(opt.Name, state)
	}
	return out, err
}

// Histograms are the latencies of the measured requests that succeeded, one interval per tag: TTFT and E2E from the
// moment from which the user waits, ITL per gap, TPOT per request.
func Histograms(records []workload.Record) []hist.Interval {
	tags := []hist.Tag{hist.TTFT, hist.ITL, hist.TPOT, hist.E2E}
	out := make([]hist.Interval, len(tags))
	var end time.Duration
	for i, tag := range tags {
		out[i] = hist.Interval{Tag: tag, Hist: hist.New()}
	}
	for i := range records {
		r := &records[i]
		if r.Phase != workload.Measured || !r.OK() {
			continue
		}
		end = max(end, r.End())
		late := r.Sent - r.Start()
		out[0].Hist.Record(late + r.Tokens[0].At)
		for k := 1; k < len(r.Tokens); k++ {
			out[1].Hist.Record(r.Tokens[k].At - r.Tokens[k-1].At)
		}
		last := r.Tokens[len(r.Tokens)-1].At
		if r.OutputTokens > 1 {
			out[2].Hist.Record((last - r.Tokens[0].At) / time.Duration(r.OutputTokens-1))
		}
		out[3].Hist.Record(late + last)
	}
	for i := range out {
		out[i].Length = end
	}
	return out
}

// checkHits compares the prefix-cache hits that the workload must have with what the server counted.
func checkHits(w *workload.Workload, run *load.Run, delta map[string]float64) []string {
	hits, ok := delta["vllm:prefix_cache_hits_total"]
	if !ok || w.BlockSize == 0 || run.Interrupted {
		return nil
	}
	expected, primed := 0, false
	for i := range w.Requests {
		r := &w.Requests[i]
		switch {
		case r.Session != "":
			return nil // conversations also hit what was generated: no fixed number is due
		case r.Phase == workload.Prime:
			primed = true
		default:
			expected += r.SharedTokens / w.BlockSize * w.BlockSize
		}
	}
	// Without priming (a trace) whoever comes first computes, and who that is depends on timing.
	if primed && int(hits) != expected {
		return []string{fmt.Sprintf("the server counted %d prefix-cache hit tokens, the workload should have had %d: blocks were "+
			"evicted, prefix caching is off, or others use the server", int(hits), expected)}
	}
	return nil
}

// newSalt keeps the prefixes of earlier runs out of this one.
func newSalt() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return "kvtune-" + hex.EncodeToString(b[:])
}
