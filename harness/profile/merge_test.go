package profile_test

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/hist"
	"kvtune/harness/profile"
	"kvtune/harness/workload"
)

// recorded makes the records of a run of n requests, due every 20 ms.
func recorded(n int) []workload.Record {
	rng := rand.New(rand.NewPCG(1, 2))
	between := func(low, high int) time.Duration { return time.Duration(low+rng.IntN(high-low)) * time.Microsecond }
	var records []workload.Record
	for i := range n {
		due := 2*time.Second + time.Duration(i)*20*time.Millisecond
		r := workload.Record{Index: i, Due: &due, Sent: due + between(0, 900), PromptTokens: 100, AskedTokens: 8,
			OutputTokens: 8, FinishReason: "length"}
		at := between(9000, 90000)
		for range 8 {
			r.Tokens = append(r.Tokens, workload.TokenEvent{At: at, Tokens: 1})
			at += between(900, 9000)
		}
		records = append(records, r)
	}
	return records
}

// shardsOf deals the records of a run to n shards that were started 0.7 s apart, the last first.
func shardsOf(records []workload.Record, n int) []profile.ShardOutput {
	start := time.Date(2026, 1, 31, 12, 0, 0, 1234, time.UTC)
	shards := make([]profile.ShardOutput, n)
	for i := range shards {
		late := time.Duration(n-1-i) * 700 * time.Millisecond
		var own []workload.Record
		for _, r := range records {
			if r.Index%n == i {
				due := *r.Due - late
				r.Due, r.Sent = &due, r.Sent-late
				own = append(own, r)
			}
		}
		lag := hist.New()
		for range own {
			lag.Record(time.Duration(i+1) * time.Millisecond)
		}
		shards[i] = profile.ShardOutput{
			Output: &profile.Output{Records: own, Result: &harness.Result{
				Name: "profiling", Origin: harness.OriginMeasured, Config: harness.Config{Name: "profiling"},
				Conditions: harness.Conditions{Started: start.Add(late),
					Server: harness.ServerInfo{Kind: harness.KindVLLM, BlockSize: 16}, Host: "a machine", Salt: "one", Retries: i,
					Begin: new((2*time.Second - late).Seconds()), Shard: "x"},
				Counters: map[string]float64{"vllm:prompt_tokens_total": 100 * float64(len(records))},
				Warnings: []string{"shard 0/3 of a load", "a note"},
			}},
			Log: append(profile.Histograms(own), hist.Interval{Tag: hist.LAG, Hist: lag}),
		}
	}
	return shards
}

// TestMerge: the metrics of merged shards are those of the whole, its lines are in the order in which they were due on
// one clock, and the sum of the shards' histograms is the histogram of the whole.
func TestMerge(t *testing.T) {
	whole := recorded(100)
	out, err := profile.Merge(shardsOf(whole, 3))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(out.Records, whole) {
		t.Errorf("the lines differ: first %+v, want %+v", out.Records[0], whole[0])
	}
	want := harness.Measure(whole)
	for i := range want {
		if got := out.Result.Metrics[i]; !reflect.DeepEqual(got, want[i]) {
			t.Errorf("%s %s: %+v, want %+v", want[i].Name, want[i].Stat, got, want[i])
		}
	}
	c := out.Result.Conditions
	if c.Retries != 3 || c.Host != "a machine" || c.Salt != "one" || c.Shard != "" || c.Begin != nil ||
		c.SendLag99 == nil || *c.SendLag99 < 0.003 || *c.SendLag99 > 0.00301 ||
		!slices.Equal(out.Result.Warnings, []string{"a note"}) {
		t.Errorf("conditions %+v, warnings %q", c, out.Result.Warnings)
	}
	folder, err := archive.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := out.Save(folder); err != nil {
		t.Fatal(err)
	}
	sum, _, err := folder.ReadHistograms("profiling")
	if err != nil || len(sum) != 5 || sum[4].Tag != hist.LAG || sum[4].Hist.Count() != 100 {
		t.Fatalf("%d histograms, %v", len(sum), err)
	}
	for i, iv := range profile.Histograms(whole) {
		if sum[i].Tag != iv.Tag || !reflect.DeepEqual(sum[i].Hist, iv.Hist) {
			t.Errorf("%s: %d values to %v, want %d to %v", iv.Tag, sum[i].Hist.Count(), sum[i].Hist.Max(), iv.Hist.Count(),
				iv.Hist.Max())
		}
	}
	if part, _ := folder.Part("profiling"); part.State != archive.Done {
		t.Errorf("state %s", part.State)
	}
}

// TestMergeSays: what was wrong in one shard is said of the whole, and what is no load in shards is refused.
func TestMergeSays(t *testing.T) {
	says := func(name string, spoil func([]profile.ShardOutput)) (*harness.Result, error) {
		shards := shardsOf(recorded(30), 3)
		spoil(shards)
		out, err := profile.Merge(shards)
		if err != nil {
			return nil, err
		}
		return out.Result, nil
	}
	for _, tt := range []struct {
		name, err string
		spoil     func([]profile.ShardOutput)
	}{
		{"another server", "shards 0 and 2: not the same server: its block_size is 16 and 32", func(s []profile.ShardOutput) {
			s[2].Result.Conditions.Server.BlockSize = 32
		}},
		{"a request twice", "request 3 was sent by shards 0 and 1",
			func(s []profile.ShardOutput) { s[1].Records[0].Index = 3 }},
	} {
		if _, err := says(tt.name, tt.spoil); err == nil || !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.err)
		}
	}
	if _, err := profile.Merge(nil); err == nil {
		t.Error("nothing was merged")
	}
	for _, tt := range []struct {
		name, warning string
		spoil         func([]profile.ShardOutput)
	}{
		{"no common start", "the shards began 1.5 s apart",
			func(s []profile.ShardOutput) { *s[1].Result.Conditions.Begin += 1.5 }},
		{"others use the server", "contaminated: the server processed 500 prompt tokens", func(s []profile.ShardOutput) {
			s[2].Result.Counters["vllm:prompt_tokens_total"] += 500 // the one that watched it to the end
		}},
		{"warm-up is left out of the whole", "steady state (MSER-5): the first 10 measured requests",
			func(s []profile.ShardOutput) {
				for i := range s {
					s[i].Result.Config.SteadyState = true
				}
			}},
	} {
		res, err := says(tt.name, tt.spoil)
		if err != nil || !strings.Contains(strings.Join(res.Warnings, "\n"), tt.warning) {
			t.Errorf("%s: %v, %q", tt.name, err, res.Warnings)
		}
	}
	res, err := says("partial", func(s []profile.ShardOutput) {
		s[1].Result.Partial, s[1].Result.Why = true, "the endpoint is dead"
		s[2].Result.Conditions.GeneratorLimited = "slow"
	})
	if err != nil || !res.Partial || res.Why != "shard 1: the endpoint is dead" ||
		res.Conditions.GeneratorLimited != "shard 2: slow" {
		t.Errorf("%v, %+v", err, res)
	}
}
