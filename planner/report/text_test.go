package report

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"kvtune/harness"
	"kvtune/planner"
	"kvtune/planner/analysis"
)

func value(v float64) *float64 { return &v }

// fixed is a small input written by hand, so that its table can be read beside it.
func fixed() Input {
	metric := func(name, stat, unit string, v, half float64) harness.Metric {
		return harness.Metric{Name: name, Stat: stat, Unit: unit, Value: value(v), Low: value(v - half),
			High: value(v + half)}
	}
	run := func(name string, scale float64) Run {
		return Run{
			Result: &harness.Result{
				Name: name, Origin: harness.OriginMeasured,
				Config: harness.Config{C: 256, M: 16, B: 16, ProfilingType: harness.Decode}, Metrics: harness.Metrics{
					metric(harness.MetricTTFT, harness.StatP50, "s", 0.01234*scale, 0.0004),
					metric(harness.MetricTTFT, harness.StatP99, "s", 0.0456*scale, 0.012),
					{Name: harness.MetricITL, Stat: harness.StatP50, Unit: "s", Note: "no request has two tokens"},
					metric(harness.MetricTotalThroughput, "", "token/s", 45678*scale, 350),
					{Name: harness.MetricKVUsage, Stat: harness.StatPeak, Unit: "ratio", Value: value(0.4567)},
					{Name: harness.MetricMemoryDevice, Stat: harness.StatPeak, Unit: "B", Value: value(3 << 30)},
					{Name: harness.MetricPreemptions, Unit: "request", Value: value(12345)},
				},
			},
			Analysis: &analysis.Report{Binding: analysis.Capacity, Limit: analysis.LimitKVCapacity,
				Bottlenecks: []analysis.Bottleneck{{Kind: analysis.Capacity, Binds: true, Share: value(0.633)}}},
		}
	}
	yes := true
	in := Input{
		Verdict: "CHANGE max_num_seqs=64 (latency): E2EL mean +12 % (+8.0 % to +15 %) better than current",
		Runs: []Run{run("low-latency", 1), run("high-throughput", 40), run("memory-efficient", 3),
			run("a name that is far too long", 1)},
		Files: []string{"out/report.html"}, Commands: []string{"kvtune workflow --output-dir out"},
		Plans: &planner.Plans{
			Baseline: planner.Plan{Strategy: planner.Current,
				Predicted: harness.Metrics{metric(harness.MetricE2EL, harness.StatMean, "s", 2.5, 0.2)}},
			Plans: []planner.Plan{{
				Strategy: planner.Latency, Args: harness.EngineArgs{MaxNumSeqs: 64}, Predicted: harness.Metrics{
					metric(harness.MetricE2EL, harness.StatMean, "s", 2.2, 0.2),
					metric(harness.MetricTTFT, harness.StatP50, "s", 0.015, 0.002),
					metric(harness.MetricTTFT, harness.StatP99, "s", 0.3, 0.1)},
				Changed: []planner.Change{{Flag: "max_num_seqs", From: "256", To: "64", Modelled: true},
					{Flag: "kv_offloading_size", To: "8"}},
				Gain: &analysis.Gain{Metric: harness.MetricE2EL, Stat: harness.StatMean, Unit: "s", Before: 2.5, After: 2.2,
					Change: 0.12},
				Binding: analysis.Compute, Limit: analysis.LimitArithmetic,
				SLOs:           []planner.SLOCheck{{SLO: "p99 TTFT <= 200ms", Value: value(0.3)}, {SLO: "p99 ITL <= 50ms"}},
				Launch:         []string{"vllm", "serve", "my model", "--max-num-seqs", "64"},
				Measured:       harness.Metrics{metric(harness.MetricTTFT, harness.StatP50, "s", 0.0125, 0.001)},
				MeasuredOrigin: harness.OriginMeasured,
				Compared: []planner.Comparison{{Metric: harness.MetricTTFT, Stat: harness.StatP50, Unit: "s", Predicted: 0.015,
					Measured: 0.0125, Error: value(0.2), Inside: &yes}},
			}},
		},
	}
	in.Runs[1].Result.Partial, in.Runs[1].Result.Why = true, "interrupted"
	return in
}

// everything is all that a terminal can get of an input.
func everything(in Input) []Section {
	sections := []Section{RunTable(in.Runs, true), RunTable(in.Runs, false)}
	if in.Plans != nil {
		sections = append([]Section{PlanSummary(in.Plans), PlanDetails(in.Plans), VerifiedTable(allPlans(in.Plans))},
			sections...)
	}
	if in.Kernels != nil {
		sections = append(sections, KernelTable(in.Kernels))
	}
	return sections
}

func TestTextGolden(t *testing.T) {
	var b bytes.Buffer
	in := fixed()
	if err := Text(&b, in, PlanSummary(in.Plans), PlanDetails(in.Plans), VerifiedTable(allPlans(in.Plans)),
		RunTable(in.Runs, true)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", "text.golden")
	if os.Getenv("KVTUNE_UPDATE") != "" {
		if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := b.String(); got != string(want) {
		t.Errorf("the tables changed; `make golden` rewrites %s. Now:\n%s", path, got)
	}
}

// Laws of the table: it fits a terminal, a value stands under a unit, and what is nil is "not observed".
func TestTableLaws(t *testing.T) {
	for name, in := range map[string]Input{"fixed": fixed(), "simulated": demo(t)} {
		var b bytes.Buffer
		if err := Text(&b, in, everything(in)...); err != nil {
			t.Fatal(err)
		}
		_, body, _ := strings.Cut(b.String(), "\n") // the verdict may be longer
		for line := range strings.Lines(body) {
			if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > width && !strings.HasPrefix(line, "  $ ") {
				t.Errorf("%s: line of %d columns: %q", name, n, line)
			}
		}
		for _, r := range rowsOf(in.Runs) {
			if len(r.cells) != len(in.Runs) {
				t.Errorf("%s: row %q has %d cells for %d runs", name, r.label, len(r.cells), len(in.Runs))
			}
			for i, c := range r.cells {
				if c.missing != (c.text == notObserved) && c.text != "not analysed" {
					t.Errorf("%s: %s of run %d: missing %v but %q", name, r.label, i, c.missing, c.text)
				}
			}
		}
		for i, s := range shown {
			row := rowsOf(in.Runs)[3+i]
			for j, r := range in.Runs {
				if _, ok := r.Result.Metrics.Value(s.name, s.stat); !ok && row.cells[j].text != notObserved {
					t.Errorf("%s: %s was not observed, shown as %q", name, s.label, row.cells[j].text)
				}
			}
			if row.unit == "" {
				t.Errorf("%s: %s has no unit", name, s.label)
			}
		}
	}
}

func TestDigits(t *testing.T) {
	for _, c := range []struct {
		unit        string
		value, half float64
		want        string
	}{
		{"s", 0.01234, 0, "12.3 ms"},
		{"s", 0.01234, 0.0004, "12.3 ms"},
		{"s", 0.01234, 0.004, "12 ms"},
		{"s", 0.01234, 0.1, "12 ms"},
		{"s", 0.01234567, 0.000001, "12.35 ms"},
		{"s", 12.3456, 0, "12.3 s"},
		{"s", 2e-6, 0, "2 us"},
		{"s", 0, 0, "0 s"},
		{"token/s", 45678, 350, "45,700 token/s"},
		{"token/s", 45678.5, 5000, "46,000 token/s"},
		{"token/s", 999.6, 0, "1000 token/s"},
		{"request", 12345, 0, "12,345 request"},
		{"ratio", 0.4567, 0, "45.7 %"},
		{"ratio", -0.012, 0, "-1.20 %"},
		{"B", 3 << 30, 0, "3 GiB"},
		{"B", 5 << 20, 0, "5 MiB"},
	} {
		s := scaleFor(c.unit, c.value)
		if got := s.digits(c.value, c.half) + " " + s.unit; got != c.want {
			t.Errorf("%g %s with half width %g is %q, want %q", c.value, c.unit, c.half, got, c.want)
		}
	}
}

func TestVerdictLine(t *testing.T) {
	for _, c := range []struct {
		verdict string
		origin  harness.Origin
		partial bool
		want    string
	}{
		{"keep", harness.OriginMeasured, false, "keep"},
		{"keep", harness.OriginSimulated, false, "keep; SIMULATED"},
		{"keep; predicted, SIMULATED", harness.OriginSimulated, false, "keep; predicted, SIMULATED"},
		{"keep", harness.OriginSimulated, true, "keep; PARTIAL: the run ended early; SIMULATED"},
		{"keep", "", false, "keep; SIMULATED"}, // an unknown origin is not a measurement
		{"two\nlines", harness.OriginMeasured, false, "two?lines"},
		{"", harness.OriginMeasured, false, "no verdict"},
	} {
		if got := VerdictLine(c.verdict, c.origin, c.partial); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

func TestShellLine(t *testing.T) {
	got := ShellLine([]string{"vllm", "serve", "my model", "--x=1", "it's", "", "$HOME"})
	if want := `vllm serve 'my model' --x=1 'it'\''s' '' '$HOME'`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// What a measurement missed comes first, also where it was predicted to be met; what was not observed is not said.
func TestMissedSLOs(t *testing.T) {
	met, missed := true, false
	p := planner.Plan{Strategy: planner.Throughput, MeasuredOver: planner.Current,
		SLOs: []planner.SLOCheck{{SLO: "p99 TTFT <= 2000ms", Value: value(0.45), Met: true, Measured: value(1.37),
			MeasuredMet: &met},
			{SLO: "chat: p99 ITL <= 80ms", Value: value(0.0704), Met: true, Measured: value(0.0807), MeasuredMet: &missed},
			{SLO: "goodput >= 3 request/s", Value: value(4), Met: true}}}
	if got, want := VerifiedVerdict(&p), "SLO MISSED: chat: p99 ITL <= 80ms, measured 80.7 ms"; got != want {
		t.Errorf("the verdict is %q, want %q", got, want)
	}
	got := strings.Join(planDetails(&p), "\n")
	for _, want := range []string{"SLO p99 TTFT <= 2000ms: met, measured 1.37 s; met, predicted 450 ms",
		"SLO chat: p99 ITL <= 80ms: MISSED, measured 80.7 ms; met, predicted 70.4 ms",
		"SLO goodput >= 3 request/s: met, predicted 4 request/s"} {
		if !strings.Contains(got, want) {
			t.Errorf("the details lack %q:\n%s", want, got)
		}
	}
	p.SLOs[1].MeasuredMet, p.Compared = nil, nil
	if got := VerifiedVerdict(&p); got != "nothing could be compared" {
		t.Errorf("nothing was missed, but the verdict is %q", got)
	}
}

// What is said of verified plans is what was measured, not what was predicted: of a recorded loop on an H100 whose file
// says CHANGE and does not judge its objectives.
func TestPlansVerdict(t *testing.T) {
	for name, want := range map[string]string{
		"conversation": "throughput: SLO MISSED: p99 itl <= 80ms, measured 80.7 ms; total throughput +40 % over current " +
			"(one run each), predicted +32 %",
		"prefix": "cache: cache hit rate +91 % over current (one run each), predicted +94 %",
	} {
		file, err := os.Open(filepath.Join("../../bench/results/h100/loop", name, "custom_schedule_plans.json"))
		if err != nil {
			t.Fatal(err)
		}
		ps, err := planner.ReadPlans(file)
		if err != nil {
			t.Fatal(err)
		}
		file.Close()
		if got := PlansVerdict(ps); got != want {
			t.Errorf("%s: %s\nwant %s", name, got, want)
		}
		for i := range ps.Plans { // as before it was verified
			ps.Plans[i].MeasuredGain, ps.Plans[i].Measured, ps.Plans[i].SLOs = nil, nil, nil
		}
		if got := PlansVerdict(ps); got != ps.Verdict {
			t.Errorf("%s: %s, want the planner's verdict", name, got)
		}
	}
}

// A prediction of nothing but its own figures: the chart's error is the table's, and what was measured lies at 0.
func TestPredictedPanel(t *testing.T) {
	p := planner.Plan{Predicted: harness.Metrics{{Name: harness.MetricTTFT, Stat: harness.StatP99, Unit: "s",
		Value: value(3), Low: value(1), High: value(4)},
		{Name: harness.MetricITL, Stat: harness.StatP99, Unit: "s", Value: value(0.2), Low: value(0.1), High: value(0.3)},
		{Name: harness.MetricPreemptions, Unit: "request", Value: value(1)}}}
	p.SetMeasured(planner.Measured{Metrics: harness.Metrics{{Name: harness.MetricTTFT, Stat: harness.StatP99, Unit: "s",
		Value: value(2)},
		{Name: harness.MetricITL, Stat: harness.StatP99, Unit: "s", Value: value(0.05)},
		{Name: harness.MetricPreemptions, Unit: "request", Value: value(0)}}})
	rows, inside := predictedRows(&p)
	if len(rows) != 2 || inside != 1 {
		t.Fatalf("%d rows, %d inside the range: %+v", len(rows), inside, rows)
	}
	if r := rows[0]; r.marks[0] != 0.5 || *r.low != -0.5 || *r.high != 1 {
		t.Errorf("predicted 3 (1 to 4) and measured 2 is drawn at %v from %v to %v", r.marks, *r.low, *r.high)
	}
}

// The chart of a range of rates says how far the worst choice is from each rate's own best, and where it has no say;
// its table has every rate.
func TestRangePanel(t *testing.T) {
	change := []planner.Change{{Flag: "max_num_seqs", From: "256", To: "64", Modelled: true}}
	ps := &planner.Plans{Baseline: planner.Plan{Strategy: planner.Current},
		Range: &planner.RateRange{Rates: []float64{4, 8, 16},
			Choices: []planner.RateChoice{
				{Strategy: planner.Latency, WorstRegret: 0.02,
					Points: []planner.RatePoint{{Rate: 4, Regret: value(0), Met: true, Possible: true},
						{Rate: 8, Regret: value(0.02), Met: true, Possible: true, Winner: change},
						{Rate: 16, Regret: value(0.01), Met: true, Possible: true}}},
				{Strategy: planner.Throughput, WorstRegret: 0.12,
					Points: []planner.RatePoint{{Rate: 4, Regret: value(0.12), Met: true, Possible: true},
						{Rate: 8, Met: false, Possible: true}, {Rate: 16}}},
			}}}
	p := rangePanel(ps)
	if p.title != "throughput is within 12 % of the best where it meets the SLOs" || !strings.Contains(p.says, "cross") {
		t.Errorf("title %q, says %q", p.title, p.says)
	}
	var got []string
	for _, row := range p.rows {
		got = append(got, strings.Join(row, "|"))
	}
	want := []string{"latency|4|0.0 %|current", "latency|8|2.0 %|max_num_seqs 256 -> 64", "latency|16|1.0 %|current",
		"throughput|4|12 %|current", "throughput|8|misses the SLOs|current", "throughput|16|-|none meets the SLOs"}
	if !slices.Equal(got, want) {
		t.Errorf("rows\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if svg, err := p.svg(nil); err != nil || !strings.Contains(svg, "arrival rate") {
		t.Errorf("%v: %.80s", err, svg)
	}
	ps.Range.Choices = ps.Range.Choices[:1]
	if p = rangePanel(ps); p.title != "latency is within 2.0 % of the best at every rate" || p.says != "" {
		t.Errorf("title %q, says %q", p.title, p.says)
	}
	ps.Range.Choices = nil
	if p = rangePanel(ps); p.missing == "" {
		t.Error("a range without a choice is drawn")
	}
}
