package profile

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/hist"
	"kvtune/harness/workload"
)

// ShardOutput is what one shard of a load gave, and its histogram log.
type ShardOutput struct {
	*Output
	Log []hist.Interval
}

// apart is how far apart the measured requests of shards may have begun without a word.
const apart = 100 * time.Millisecond

// Merge unites the shards of a load at one server, in the order of their indices: request lines in the order in which
// they were due, on a clock that counts from the first shard's start; metrics computed anew from them; histograms
// added. What the server says of itself is the account of the shard that watched it longest: each saw what all of them
// did.
//
// Its error is of shards that were not at the same server, or of requests that two shards sent.
func Merge(shards []ShardOutput) (*Output, error) {
	if len(shards) == 0 {
		return nil, errors.New("no shard to merge")
	}
	zero, longest := shards[0].Result.Conditions.Started, 0
	for i, s := range shards {
		if err := sameServer(shards[0].Result.Conditions.Server, s.Result.Conditions.Server); err != nil {
			return nil, fmt.Errorf("shards 0 and %d: %w", i, err)
		}
		if at := s.Result.Conditions.Started; at.Before(zero) {
			zero = at
		}
		if watched(s) > watched(shards[longest]) {
			longest = i
		}
	}
	watcher := shards[longest]
	out := &Output{Series: slices.Clone(watcher.Series)}
	ahead := watcher.Result.Conditions.Started.Sub(zero)
	for i := range out.Series {
		out.Series[i].T += ahead
	}
	sent := map[int]int{}
	for i, s := range shards {
		late := s.Result.Conditions.Started.Sub(zero)
		for _, r := range s.Records {
			if before, twice := sent[r.Index]; twice && r.Phase != workload.Prime {
				return nil, fmt.Errorf("request %d was sent by shards %d and %d: they are not shards of one load", r.Index,
					before, i)
			}
			sent[r.Index] = i
			if r.Sent += late; r.Due != nil {
				r.Due = new(*r.Due + late)
			}
			out.Records = append(out.Records, r)
		}
	}
	slices.SortStableFunc(out.Records, func(a, b workload.Record) int {
		return cmp.Or(cmp.Compare(a.Start(), b.Start()), cmp.Compare(a.Index, b.Index))
	})
	logs := make([][]hist.Interval, len(shards))
	for i := range shards {
		logs[i] = shards[i].Log
	}
	out.log = addHistograms(logs)
	out.Result = mergeResults(shards, out, zero)
	out.Result.Counters, out.Result.Histograms = watcher.Result.Counters, watcher.Result.Histograms
	if out.Result.Config.SteadyState {
		_, says := excludeWarmup(out.Records)
		out.Result.Warnings = append(out.Result.Warnings, says)
		lag := out.log[slices.IndexFunc(out.log, func(iv hist.Interval) bool { return iv.Tag == hist.LAG })]
		out.log = append(Histograms(out.Records), lag)
	}
	res := out.Result
	res.Metrics = slices.Concat(harness.Measure(out.Records),
		harness.Observe(res.Conditions.Server, res.Counters, measured(out.Series, out.Records)),
		harness.ObserveEngine(res.Histograms))
	if d, ok := res.Metrics.Value(harness.MetricDuration, ""); ok {
		res.Conditions.Duration = d
	}
	if n := foreign(out.Records, res.Counters); n > 0 {
		res.Warnings = append(res.Warnings, fmt.Sprintf(contaminated, n))
	}
	return out, nil
}

// mergeResults is the result of a merged run but for its metrics.
func mergeResults(shards []ShardOutput, out *Output, zero time.Time) *harness.Result {
	res := *shards[0].Result
	c := &res.Conditions
	c.Started, c.Shard, c.Begin, c.Retries, c.GeneratorCPU, c.GeneratorLimited = zero, "", nil, 0, nil, ""
	c.SendLag99 = nil
	res.Warnings = nil
	var hosts, whys, limited []string
	first, last := time.Duration(math.MaxInt64), time.Duration(math.MinInt64)
	for i, s := range shards {
		own := s.Result
		if !slices.Contains(hosts, own.Conditions.Host) {
			hosts = append(hosts, own.Conditions.Host)
		}
		if own.Partial {
			whys = append(whys, fmt.Sprintf("shard %d: %s", i, own.Why))
		}
		c.Retries += own.Conditions.Retries
		if cpu := own.Conditions.GeneratorCPU; cpu != nil && (c.GeneratorCPU == nil || *cpu > *c.GeneratorCPU) {
			c.GeneratorCPU = cpu
		}
		if why := own.Conditions.GeneratorLimited; why != "" {
			limited = append(limited, fmt.Sprintf("shard %d: %s", i, why))
		}
		if own.Conditions.Salt != c.Salt {
			c.Salt = ""
		}
		if b := own.Conditions.Begin; b != nil {
			at := own.Conditions.Started.Add(time.Duration(*b * 1e9)).Sub(zero)
			first, last = min(first, at), max(last, at)
		}
		for _, w := range own.Warnings {
			if !strings.HasPrefix(w, "shard ") && !slices.Contains(res.Warnings, w) {
				res.Warnings = append(res.Warnings, w)
			}
		}
	}
	c.Host = strings.Join(hosts, "; ")
	res.Partial, res.Why = len(whys) > 0, strings.Join(whys, "; ")
	c.GeneratorLimited = strings.Join(limited, "; ")
	for _, iv := range out.log {
		if iv.Tag == hist.LAG && iv.Hist.Count() > 0 {
			c.SendLag99 = new(iv.Hist.Quantile(0.99).Seconds())
		}
	}
	if last > first+apart {
		res.Warnings = append(res.Warnings,
			fmt.Sprintf("the shards began %.1f s apart: what they sent is not one schedule (--start-at TIME "+
				"makes them begin together)", (last-first).Seconds()))
	}
	return &res
}

// watched is how long a shard's server was watched.
func watched(s ShardOutput) time.Duration {
	d := time.Duration(0)
	if n := len(s.Series); n > 0 {
		d = s.Series[n-1].T
	}
	for i := range s.Records {
		d = max(d, s.Records[i].End())
	}
	return d
}

// sameServer refuses servers that differ in what every server states.
func sameServer(a, b harness.ServerInfo) error {
	for _, x := range []struct {
		what string
		a, b any
	}{
		{"kind", a.Kind, b.Kind}, {"version", a.Version, b.Version}, {"model", a.Model, b.Model},
		{"max_model_len", a.MaxModelLen, b.MaxModelLen}, {"block_size", a.BlockSize, b.BlockSize},
		{"num_gpu_blocks", a.NumGPUBlocks, b.NumGPUBlocks},
	} {
		if x.a != x.b {
			return fmt.Errorf("not the same server: its %s is %v and %v", x.what, x.a, x.b)
		}
	}
	return nil
}

// addHistograms adds interval logs: one interval per tag, in the order in which tags first appear, as long as the
// longest.
func addHistograms(logs [][]hist.Interval) []hist.Interval {
	var sum []hist.Interval
	for _, log := range logs {
		for _, iv := range log {
			i := slices.IndexFunc(sum, func(s hist.Interval) bool { return s.Tag == iv.Tag })
			if i < 0 {
				i, sum = len(sum), append(sum, hist.Interval{Tag: iv.Tag, Hist: hist.New()})
			}
			sum[i].Hist.Merge(iv.Hist)
			sum[i].Length = max(sum[i].Length, iv.Start+iv.Length)
		}
	}
	return sum
}

// Save keeps a merged run in a folder.
func (out *Output) Save(folder *archive.Folder) error {
	if err := folder.WriteRequests(out.Result.Name, out.Records); err != nil {
		return err
	}
	return out.keep(folder)
}
