// Package profile measures a workload on an endpoint and keeps what was measured: prefill, decode and mixed profiles of
// a configuration, traces, and the probes that a cost model is fitted from.
//
// Read [Run]; [Probes] is the probes' design.
package profile

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"slices"
	"strings"
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
	// Client says how requests are sent; its Salt is made here, one per run.
	Client vllm.ClientOptions
	// Limits bound how long a request may take and how often it is sent.
	Limits Limits
	// KVBytesPerToken is the model's, for the memory metrics; 0 leaves them not observed.
	KVBytesPerToken int64
	// Shard is the share of the load that Workload is: others are at the same server.
	Shard harness.Shard
	// StartAt is when the measured requests begin, see [load.Options]. Shards with the same one share what they prime.
	StartAt time.Time
	// Notes become warnings of the result (what was replaced or scaled before the run).
	Notes []string
	// Command is the command line, for the conditions.
	Command []string
	// Tool is kvtune's version, for the conditions.
	Tool string
	// Steps gives the engine steps that the server has logged since its last call ([vllm.Process.Steps]); nil where it
	// logs none.
	Steps func() ([]harness.StepRecord, error)
	// OnProgress is called as requests end and twice a second, never two calls at once; nil is silent.
	OnProgress func(Progress)
}

// Limits are what a request may take; zero values are those of [load.Options].
type Limits struct {
	FirstToken, BetweenTokens, Request time.Duration
	Retries                            int
}

// Output is a result with what it was computed from.
type Output struct {
	Result  *harness.Result
	Records []workload.Record
	Series  []harness.Sample
	// Steps are the engine's steps from the first request on, priming and warm-up included; nil where none were logged.
	Steps []harness.StepRecord

	log []hist.Interval // of latencies and the generator's lag
}

// sampleEvery is the beat on which a server's metrics are read. A vLLM answers from the loop that also delivers tokens:
// an answer takes about 7 ms of it (vLLM 0.32.0, 58 kB), so that a faster beat would show in the latencies.
func sampleEvery(info harness.ServerInfo) time.Duration {
	if info.Simulated() {
		return 100 * time.Millisecond
	}
	return time.Second
}

// Run sends the workload and measures. When the run ends early - the server died, ctx was cancelled - the output holds
// what was measured, its result is marked partial and says why, and the error is nil. Errors are a workload that cannot
// be scheduled, and files that cannot be written; the output is there beside the latter once something was sent.
//
// While it runs the part opt.Name is "running" in the folder's manifest, and its requests grow in a file that a killed
// process leaves readable.
func Run(ctx context.Context, opt Options) (*Output, error) {
	if err := opt.Workload.Validate(); err != nil {
		return nil, err
	}
	var writer *archive.RequestWriter
	if opt.Folder != nil {
		if err := opt.Folder.SetPart(opt.Name, archive.Running); err != nil {
			return nil, err
		}
		var err error
		if writer, err = opt.Folder.Requests(opt.Name); err != nil {
			return nil, err
		}
	}
	salt := opt.salt()
	opt.steps() // what was logged before is not ours
	clientOpt := opt.Client
	clientOpt.Salt = salt
	client := opt.Server.Client(clientOpt)
	run, seen, series, err := opt.send(ctx, client, writer)
	if run == nil {
		return nil, err
	}
	var warmup string
	if opt.Config.SteadyState && opt.Shard.Whole() { // where it begins is for all shards to say
		n := 0
		if n, warmup = excludeWarmup(run.Records); n > 0 && writer != nil && err == nil {
			err = opt.rewrite(run.Records)
		}
	}
	out := &Output{Result: opt.result(run, seen, series, salt), Records: run.Records, Series: series}
	out.Result.Warnings = append(out.Result.Warnings, client.Doubts()...)
	if warmup != "" {
		out.Result.Warnings = append(out.Result.Warnings, warmup)
	}
	out.log = Histograms(run.Records)
	out.log = append(out.log, hist.Interval{Tag: hist.LAG, Length: out.log[0].Length, Hist: run.Lag})
	var stepsErr error
	if out.Steps, stepsErr = opt.steps(); stepsErr != nil {
		out.Result.Warnings = append(out.Result.Warnings,
			fmt.Sprintf("the server's log of steps cannot be read: %v", stepsErr))
	}
	if opt.Folder == nil || err != nil {
		return out, err
	}
	return out, out.keep(opt.Folder)
}

// excludeWarmup marks what comes before the steady state, and says in a sentence what it did.
func excludeWarmup(records []workload.Record) (marked int, says string) {
	n, ok := harness.ExcludeWarmup(records)
	if !ok {
		return 0, "no steady state was reached (MSER-5): nothing is left out as warm-up; measure longer, or at a lower rate"
	}
	return n, fmt.Sprintf("steady state (MSER-5): the first %d measured requests are left out as warm-up", n)
}

// rewrite writes the requests again, with the phases that they have now.
func (opt *Options) rewrite(records []workload.Record) error {
	writer, err := opt.Folder.Requests(opt.Name)
	if err != nil {
		return err
	}
	for i := range records {
		if err := writer.Append(records[i]); err != nil {
			return errors.Join(err, writer.Close())
		}
	}
	return writer.Close()
}

// steps are the engine steps since the last call.
func (opt *Options) steps() ([]harness.StepRecord, error) {
	if opt.Steps == nil {
		return nil, nil
	}
	return opt.Steps()
}

// send sends the workload under watch. Its error is the writer's, or load.Do's with a nil run.
func (opt *Options) send(ctx context.Context, client *vllm.Client, writer *archive.RequestWriter) (
	*load.Run, vllm.Watched, []harness.Sample, error) {
	info := opt.Server.Info()
	started := time.Now()
	watch := opt.Server.Watch(ctx, sampleEvery(info), started)
	gpus := opt.gpus()
	machine := telemetry.Watch(sampleEvery(info), started, gpus)
	var writeErr error
	var onProgress func(load.Progress)
	var view *live
	if opt.OnProgress != nil {
		view = newLive(opt.OnProgress, watch, len(opt.Workload.Requests))
		onProgress = view.progress
	}
	connections := len(opt.Workload.Requests)
	if c := opt.Workload.Concurrency; c > 0 {
		connections = min(connections, c)
	}
	vllm.ReserveConnections(connections)
	run, err := load.Do(ctx, load.Options{
		Client:            client,
		FirstTokenTimeout: opt.Limits.FirstToken, IdleTimeout: opt.Limits.BetweenTokens, RequestTimeout: opt.Limits.Request,
		Retries: opt.Limits.Retries, MaxInFlight: vllm.MaxConnections(),
		Workload: opt.Workload, HashBlock: info.BlockSize, StartAt: opt.StartAt, OnProgress: onProgress,
		OnRecord: func(r workload.Record) {
			if view != nil {
				view.record(&r)
			}
			if writer != nil && writeErr == nil {
				writeErr = writer.Append(r)
			}
		},
	})
	if view != nil {
		view.close()
	}
	seen := watch.Stop()
	series := append(seen.Series, machine.Stop()...)
	if gpus != nil {
		_ = gpus.Close() // what was read is there
	}
	if run != nil { // the watches began before the run did, and its clock is the one that counts
		for i := range series {
			series[i].T -= run.Started.Sub(started)
		}
	}
	if writer != nil {
		if cerr := writer.Close(); writeErr == nil { // else it is the same error again
			writeErr = cerr
		}
	}
	return run, seen, series, errors.Join(err, writeErr)
}

// gpus are the devices to sample beside a server that runs on this machine; nil for another server, for a simulated one
// and where there are none.
func (opt *Options) gpus() telemetry.GPUs {
	if opt.Server.Info().Simulated() || !onThisMachine(opt.Server.URL()) {
		return nil
	}
	gpus, err := telemetry.OpenGPUs()
	if err != nil {
		return nil // their use is "not observed"
	}
	return gpus
}

// onThisMachine reports whether a server's address is this machine's own.
func onThisMachine(address string) bool {
	u, err := url.Parse(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
}

// result is what a run gave.
func (opt *Options) result(run *load.Run, seen vllm.Watched, series []harness.Sample, salt string) *harness.Result {
	info := opt.Server.Info()
	info.KVBytesPerToken = opt.KVBytesPerToken
	host, err := telemetry.Host()
	if err != nil {
		host = "" // an unknown machine is no reason not to measure
	}
	res := &harness.Result{
		Schema: harness.ResultSchema, Name: opt.Name, Origin: harness.OriginMeasured, Config: opt.Config,
		Partial: run.Interrupted, Why: run.Why,
		Conditions: harness.Conditions{
			Started: run.Started, Server: info, Host: host, Tool: opt.Tool, Command: opt.Command, Seed: opt.Config.Seed,
			Salt: salt,
		},
		Metrics: slices.Concat(harness.Measure(run.Records), harness.Observe(info, seen.Delta, measured(series, run.Records)),
			harness.ObserveEngine(seen.Histograms)),
		Counters: seen.Delta, Histograms: seen.Histograms,
	}
	if w := opt.Workload; len(w.Requests) > 0 && w.Requests[0].Probe == CapacityProbe {
		res.Metrics = append(res.Metrics, ObserveCapacity(run.Records, series, info.BlockSize)...)
	}
	if info.Simulated() {
		res.Origin = harness.OriginSimulated
	}
	if !opt.Shard.Whole() {
		res.Conditions.Shard = opt.Shard.String()
		if run.Begin != nil {
			res.Conditions.Begin = new(run.Begin.Seconds())
		}
	}
	if d, ok := res.Metrics.Value(harness.MetricDuration, ""); ok {
		res.Conditions.Duration = d
	}
	if run.Lag.Count() > 0 {
		lag := run.Lag.Quantile(0.99).Seconds()
		res.Conditions.SendLag99 = &lag
	}
	res.Conditions.GeneratorCPU, res.Conditions.GeneratorLimited, res.Conditions.Retries = run.CPU, run.Limited(),
		run.Retries
	res.Warnings = slices.Concat(opt.Notes, opt.Workload.Notes, opt.doubts(res, run, seen))
	if ok, _ := res.Metrics.Value(harness.MetricRequests, harness.StatOK); ok == 0 && !res.Partial {
		res.Partial, res.Why = true, "no request succeeded"
		for _, r := range run.Records {
			if r.Error != "" {
				res.Why += ": " + r.Error
				break
			}
		}
	}
	return res
}

// measured are the samples of the server's gauges and counters while measured requests were out, and all others: before
// and after, and while blocks are primed, the server is not under the load in question.
func measured(series []harness.Sample, records []workload.Record) []harness.Sample {
	from, to := time.Duration(math.MaxInt64), time.Duration(0)
	for i := range records {
		if r := &records[i]; r.Phase == workload.Measured {
			from, to = min(from, r.Sent), max(to, r.End())
		}
	}
	return slices.DeleteFunc(slices.Clone(series), func(s harness.Sample) bool {
		return strings.HasPrefix(s.Metric, "vllm:") && (s.T < from || s.T > to)
	})
}

// keep writes the files of a run but its requests, which for a run on a server were written as they ended.
func (out *Output) keep(folder *archive.Folder) error {
	name, state := out.Result.Name, archive.Done
	if out.Result.Partial {
		state = archive.Partial
	}
	err := errors.Join(
		folder.WriteSeries(name, out.Series),
		folder.WriteHistograms(name, out.Result.Conditions.Started, out.log),
		folder.WriteResult(out.Result),
	)
	if len(out.Steps) > 0 {
		err = errors.Join(err, folder.WriteSteps(name, out.Steps))
	}
	if err != nil {
		return err
	}
	return folder.SetPart(name, state)
}

// Histograms are the latencies of the measured requests that succeeded, one interval per tag: TTFT and E2E from the
// moment from which the user waits, ITL per gap between events, TPOT per request.
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
		for k := 1; k < len(r.Tokens) && !r.EndsOnly; k++ {
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

// salt keeps the prefixes of earlier runs out of this one. Shards that begin together have the same one: what one of
// them primes is found by all.
func (opt *Options) salt() string {
	var b [8]byte
	if !opt.Shard.Whole() && !opt.StartAt.IsZero() {
		sum := sha256.Sum256(fmt.Appendf(nil, "%d %d %d", opt.StartAt.UnixNano(), opt.Config.Seed, opt.Shard.Count))
		copy(b[:], sum[:])
	} else {
		_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	}
	return "kvtune-" + hex.EncodeToString(b[:])
}
