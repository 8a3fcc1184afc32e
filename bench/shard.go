package bench

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/stats"
	"kvtune/kernels"
)

// Deal is a shard's share of a list of cases. Cases that are compared with one another, which differ in layout and
// block size only, stay together where there are as many such groups as shards: a difference is then one of cases and
// not of machines. Otherwise cases are dealt one by one.
func Deal(cases []kernels.Case, s harness.Shard) []kernels.Case {
	groups, together := dealt(cases, s)
	var own []kernels.Case
	for k, c := range cases {
		if together {
			k = groups[group(c)]
		}
		if s.Has(k) {
			own = append(own, c)
		}
	}
	return own
}

// dealt numbers the groups, and says whether they stay together.
func dealt(cases []kernels.Case, s harness.Shard) (groups map[kernels.Case]int, together bool) {
	groups = map[kernels.Case]int{}
	for _, c := range cases {
		if _, seen := groups[group(c)]; !seen {
			groups[group(c)] = len(groups)
		}
	}
	return groups, len(groups) >= s.Count
}

// CreateShard makes the folder of a shard of a benchmark, and returns the shard's cases. cases are those of all shards.
func CreateShard(dir string, s harness.Shard, o *Options, tool string) (*archive.Folder, []kernels.Case, error) {
	stamp := archive.Shard{Shard: s, Kind: archive.ShardedCases, Tool: tool}
	for _, c := range o.Cases {
		stamp.Parts = append(stamp.Parts, c.Name())
	}
	work := map[string]any{
		"name": o.Name, "backend": o.Backend.Name(), "device": o.Device, "cold": o.Cold, "rounds": o.Rounds,
		"ceilings": !o.NoCeilings, "max_time_s": o.Timing.MaxTime.Seconds(), "precision": o.Timing.Precision,
	}
	var err error
	if stamp.Work, err = json.Marshal(work); err != nil {
		return nil, nil, err
	}
	folder, err := archive.CreateShard(dir, stamp, false)
	return folder, Deal(o.Cases, s), err
}

// unlike is a relative difference of ceilings beyond which machines are not the same.
const unlike = 0.02

// Merge unites the shards of a benchmark as if one process had run all cases: samples in the order in which it would
// have taken them, every case compared with the fastest of its group over all shards. A ceiling is the median of the
// shards'. folders are those of [archive.OpenShards].
func Merge(folders []*archive.Folder) (*Outcome, error) {
	stamp := folders[0].Shard()
	at := map[string]int{}
	out := &Outcome{}
	for k, name := range stamp.Parts {
		c, err := kernels.ParseCase(name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", folders[0].Path(archive.ManifestName), err)
		}
		at[name], out.cases = k, append(out.cases, c)
	}
	rows := make([]*harness.BenchCase, len(stamp.Parts))
	shards := make([]*harness.Bench, len(folders))
	for i, f := range folders {
		b, samples, err := archive.ReadBench(f.Dir())
		if err != nil {
			return nil, err
		}
		again := fmt.Sprintf("run shard %v again", f.Shard().Shard)
		if b.Partial {
			return nil, fmt.Errorf("%s ended early (%s): %s", f.Dir(), b.Why, again)
		}
		for j := range b.Cases {
			k, known := at[b.Cases[j].Case]
			if !known || rows[k] != nil {
				return nil, fmt.Errorf("%s: case %s is not one of its share: %s", f.Dir(), b.Cases[j].Case, again)
			}
			rows[k] = &b.Cases[j]
		}
		shards[i], out.Samples = b, append(out.Samples, samples...)
	}
	for k, name := range stamp.Parts {
		if rows[k] == nil {
			return nil, fmt.Errorf("no shard has case %s: run its shard again", name)
		}
	}
	merged := *shards[0]
	out.Bench = &merged
	merged.Cases = make([]harness.BenchCase, len(rows))
	for k, row := range rows {
		row.Slower, row.SlowerLow, row.SlowerHigh, row.P, row.Best = nil, nil, nil, nil, false
		merged.Cases[k] = *row
	}
	order := func(s harness.BenchSample) int { // rounds go forwards and backwards by turns
		if s.Round%2 == 1 {
			return len(rows) - 1 - at[s.Case]
		}
		return at[s.Case]
	}
	slices.SortStableFunc(out.Samples, func(a, b harness.BenchSample) int {
		return cmp.Or(cmp.Compare(a.Round, b.Round), cmp.Compare(order(a), order(b)))
	})
	merged.Warnings = nil
	for _, b := range shards {
		for _, w := range b.Warnings {
			if !slices.Contains(merged.Warnings, w) {
				merged.Warnings = append(merged.Warnings, w)
			}
		}
	}
	if _, together := dealt(out.cases, stamp.Shard); !together {
		merged.Warnings = append(merged.Warnings,
			"cases that are compared with one another were measured by different shards: a small difference may be one of "+
				"machines")
	}
	mergeConditions(&merged, shards)
	if err := out.mergeSeries(folders, shards); err != nil {
		return nil, err
	}
	out.rank(out.values())
	return out, nil
}

// mergeConditions sets the ceilings and the conditions of a merged benchmark.
func mergeConditions(merged *harness.Bench, shards []*harness.Bench) {
	for _, ceiling := range []struct {
		name string
		of   func(*harness.Bench) **float64
	}{
		{"read bandwidth", func(b *harness.Bench) **float64 { return &b.ReadCeiling }},
		{"copy bandwidth", func(b *harness.Bench) **float64 { return &b.CopyCeiling }},
		{"matrix rate", func(b *harness.Bench) **float64 { return &b.MatrixCeiling }},
		{"bandwidth to the host", func(b *harness.Bench) **float64 { return &b.ToHost }},
		{"bandwidth to the device", func(b *harness.Bench) **float64 { return &b.ToDevice }},
		{"launch time", func(b *harness.Bench) **float64 { return &b.LaunchFloor }},
	} {
		var values []float64
		for _, b := range shards {
			if v := *ceiling.of(b); v != nil {
				values = append(values, *v)
			}
		}
		if len(values) == 0 {
			continue
		}
		*ceiling.of(merged) = new(stats.New(values).Median())
		if least, most := slices.Min(values), slices.Max(values); ceiling.name != "launch time" && most > least*(1+unlike) {
			merged.Warnings = append(merged.Warnings,
				fmt.Sprintf("the shards' %s differs by %.0f %%: their machines are not alike", ceiling.name,
					100*(most/least-1)))
		}
	}
	var hosts []string
	first := shards[0].Conditions.Started
	for _, b := range shards {
		if !slices.Contains(hosts, b.Conditions.Host) {
			hosts = append(hosts, b.Conditions.Host)
		}
		if b.Conditions.Started.Before(first) {
			first = b.Conditions.Started
		}
	}
	c := &merged.Conditions
	c.Host, c.Started, c.Duration = strings.Join(hosts, "; "), first, 0
	for _, b := range shards {
		c.Duration = max(c.Duration, b.Conditions.Started.Sub(first).Seconds()+b.Conditions.Duration)
	}
}

// mergeSeries unites what was read from the GPUs, on the clock of the first shard.
func (out *Outcome) mergeSeries(folders []*archive.Folder, shards []*harness.Bench) error {
	for i, f := range folders {
		name := shards[i].Name
		if !slices.Contains(f.Files(), name+archive.SeriesSuffix) {
			continue
		}
		series, partial, err := f.ReadSeries(name)
		if err == nil && partial {
			err = errors.New(f.Path(name+archive.SeriesSuffix) + " is cut short")
		}
		if err != nil {
			return err
		}
		late := shards[i].Conditions.Started.Sub(out.Bench.Conditions.Started)
		for _, s := range series {
			s.T += late
			out.Series = append(out.Series, s)
		}
	}
	slices.SortStableFunc(out.Series, func(a, b harness.Sample) int { return cmp.Compare(a.T, b.T) })
	return nil
}
