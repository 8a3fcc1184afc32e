package workflow_test

import (
	"cmp"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"kvtune/harness"
	"kvtune/harness/archive"
	"kvtune/harness/workflow"
	"kvtune/harness/workload"
)

// A Stream's run is that of the workload in memory: the same requests with the same moments, the same counters and
// gauges, and the same metrics, means exactly and percentiles to 3 digits.
func TestStreamIsSimulate(t *testing.T) {
	trace := filepath.Join(t.TempDir(), "trace.csv")
	lines := "arrived_at,num_prefill_tokens,num_decode_tokens\n1.5,300,20\n2.25,90,1\n2.5,600,70\n" +
		strings.Repeat("3.5,700,30\n", 400)
	if err := os.WriteFile(trace, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]harness.Config{
		"a rate with prefixes, classes and warm-up": {C: 256, M: 4, B: 16, NumRequests: 2000, NumWarmup: 1,
			Rate: "60", Classes: "gold=0.25/-1,bulk=0.75",
			EngineArgs: harness.EngineArgs{SchedulingPolicy: "priority", BlockSize: 16}},
		"a trace, overloaded":         {Trace: trace},
		"a trace, so many requests/s": {Trace: trace, Rate: "30", NumRequests: 300},
	} {
		t.Run(name, func(t *testing.T) {
			cfg.Name, cfg.Seed = "simulation", 3
			basis, err := workflow.OnPaper(cfg, gpt2(t), gpu(t, "L4"), nil)
			if err != nil {
				t.Fatal(err)
			}
			want, err := basis.Simulate(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			stream, err := basis.Stream(0)
			if err != nil || stream == nil {
				t.Fatalf("%v, %v", stream, err)
			}
			if stream.Expected() != len(want.Records) {
				t.Errorf("%d requests expected, there are %d", stream.Expected(), len(want.Records))
			}
			folder, err := archive.Create(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			told := 0
			got, err := stream.Run(t.Context(), folder, func(ended int) { told = ended })
			if err != nil {
				t.Fatal(err)
			}
			if told != len(want.Records) {
				t.Errorf("told of %d requests, there are %d", told, len(want.Records))
			}
			if !reflect.DeepEqual(got.Result.Counters, want.Result.Counters) || !reflect.DeepEqual(got.Series, want.Series) {
				t.Error("other counters or gauges than in memory")
			}
			sameMetrics(t, got.Result.Metrics, want.Result.Metrics)
			if n := len(got.Result.Warnings) - len(want.Result.Warnings); n != 1 { // what is left out
				t.Errorf("warnings %q, in memory %q", got.Result.Warnings, want.Result.Warnings)
			}

			opened, err := archive.Open(folder.Dir())
			if err != nil {
				t.Fatal(err)
			}
			records, partial, err := opened.ReadRequests("simulation")
			if err != nil || partial || len(records) != len(want.Records) {
				t.Fatalf("%d records (partial: %v), want %d: %v", len(records), partial, len(want.Records), err)
			}
			if !slices.IsSortedFunc(records, func(a, b workload.Record) int { return cmp.Compare(a.End(), b.End()) }) {
				t.Error("records not in the order in which they ended")
			}
			for _, r := range records {
				w := want.Records[r.Index]
				if r.Sent != w.Sent || r.End() != w.End() || r.OutputTokens != w.OutputTokens || r.Class != w.Class ||
					r.Phase != w.Phase || r.Error != w.Error || len(r.Tokens) > 0 && r.Tokens[0] != w.Tokens[0] ||
					r.EndsOnly != (len(w.Tokens) > 2) {
					t.Fatalf("request %d: %+v, want %+v", r.Index, r, w)
				}
			}
		})
	}
}

func sameMetrics(t *testing.T, got, want harness.Metrics) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d metrics, want %d", len(got), len(want))
	}
	for i, w := range want {
		g := got[i]
		if w.Name == harness.MetricDecodeLatency {
			continue // of all requests at once
		}
		tolerance := 1e-9
		if strings.HasPrefix(w.Stat, "p") {
			tolerance = 2e-3
		}
		if g.Name != w.Name || g.Stat != w.Stat || (g.Value == nil) != (w.Value == nil) ||
			g.Value != nil && math.Abs(*g.Value-*w.Value) > tolerance*math.Abs(*w.Value) {
			t.Errorf("%v, want %v", g, w)
		}
	}
}

// Requests that wait for others, or that an objective asks about one by one, are simulated in memory.
func TestNotStreamed(t *testing.T) {
	open := harness.Config{C: 64, B: 4, NumRequests: 50, Rate: "9"}
	closed := open
	closed.Rate, closed.Concurrency = "", 4
	slo := func(text string) []harness.SLO {
		s, err := harness.ParseSLO(text)
		if err != nil {
			t.Fatal(err)
		}
		return []harness.SLO{s}
	}
	for _, c := range []struct {
		cfg   harness.Config
		slos  []harness.SLO
		least int
		want  bool
	}{
		{open, slo("p99 TTFT <= 200ms"), 50, true},
		{open, nil, 51, false},
		{closed, nil, 0, false},
		{open, slo("goodput >= 3 request/s"), 0, false},
		{open, slo("gold: p99 TTFT <= 200ms"), 0, false},
	} {
		basis, err := workflow.OnPaper(c.cfg, gpt2(t), gpu(t, "L4"), nil)
		if err != nil {
			t.Fatal(err)
		}
		basis.SLOs = c.slos
		if s, err := basis.Stream(c.least); err != nil || (s != nil) != c.want {
			t.Errorf("%+v %v: %v, %v; expected a stream: %v", c.cfg, c.slos, s, err, c.want)
		}
	}
}
