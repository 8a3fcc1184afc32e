package planner

import (
	"encoding/csv"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"kvtune/harness"
	"kvtune/harness/vllmflags"
	"kvtune/harness/workload"
	"kvtune/planner/analysis"
	"kvtune/planner/cost"
)

func TestParseRange(t *testing.T) {
	for text, want := range map[string][]int{
		"256":           {256},
		"16,32, 64":     {16, 32, 64},
		"1..4":          {1, 2, 3, 4},
		"0:64:16":       {0, 16, 32, 48, 64},
		"256:2048:x2":   {256, 512, 1024, 2048},
		"256:2000:x2":   {256, 512, 1024},
		"8,1..3,2,8":    {8, 1, 2, 3},
		"0":             {0},
		"5..5":          {5},
		"1:1000000:x10": {1, 10, 100, 1000, 10000, 100000, 1000000},
	} {
		got, err := ParseRange(text)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v; expected %v", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"": "not a whole number", "a": "not a whole number", "4..1": "goes down", "1:9": "2 parts", "1:9:0": "never ends",
		"1:9:x1": "never ends", "0:9:x2": "never ends", "0..99999999": "more than", "-1": "not a whole number",
		"1:2:3:4": "4 parts", "16,,32": "not a whole number", "1.5": "not a whole number",
	} {
		if got, err := ParseRange(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v; the error should say %q", text, got, err, want)
		}
	}
}

func FuzzParseRange(f *testing.F) {
	for _, s := range []string{"256:2048:x2", "16,32,64", "1..4", "0:10:3", "x", "1:2147483647:x2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		values, err := ParseRange(text)
		if err != nil {
			return
		}
		if len(values) == 0 || len(values) > maxRange {
			t.Fatalf("%q: %d values", text, len(values))
		}
		for i, v := range values {
			if v < 0 || slices.Contains(values[:i], v) {
				t.Fatalf("%q: %v", text, values)
			}
		}
	})
}

func TestSweep(t *testing.T) {
	req := SweepRequest{Request: request(t, nil), C: []int{64, 256}, M: []int{0, 4}, B: []int{8}, BlockSize: []int{16, 32},
		Cell: func(c Cell, seed uint64) (*workload.Workload, error) {
			return load(24, c.M*c.BlockSize, c.C, 16, 0, c.B)(seed)
		},
	}
	req.Strategies = []Strategy{Throughput, Memory}
	req.Options.Requests, req.Options.Replicas = 24, 2
	seen := 0
	req.OnCell = func(k int, rows []SweepRow, done, total int) error {
		if seen++; k != done-1 || done != seen || total != 8 || len(rows) != 2 || rows[0].Cell != req.Cells()[k] {
			t.Errorf("cell %d, %d of %d with %d rows", k, done, total, len(rows))
		}
		return nil
	}
	out, err := Sweep(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if len(out.Rows) != 16 {
		t.Fatalf("%d rows", len(out.Rows))
	}
	for i, row := range out.Rows {
		if row.Plan == nil || row.Plan.Args.BlockSize != row.BlockSize || row.Strategy != req.Strategies[i%2] {
			t.Errorf("row %d: %+v", i, row)
		}
	}
	var b strings.Builder
	if err := out.WriteCSV(&b); err != nil {
		t.Fatal(err)
	}
	lines, err := csv.NewReader(strings.NewReader(b.String())).ReadAll()
	if err != nil || len(lines) != 17 {
		t.Errorf("%d lines, %v", len(lines), err)
	}
	req.M = nil
	if _, err := Sweep(t.Context(), req); err == nil || !strings.Contains(err.Error(), "no value of M") {
		t.Errorf("error %v", err)
	}
}

// An exported word is a value and nothing else, whatever stands in it.
func TestExportQuotes(t *testing.T) {
	nasty := `a b'; rm -rf "$HOME" #` + "`x` ${Y} {{ .Z }} \\ é"
	p := &Plan{Strategy: Throughput, Launch: []string{"vllm", "serve", nasty, "--max-num-seqs", "64",
		"--no-enable-chunked-prefill",
		"--scheduling-policy", "priority"}}
	flags, err := Export(p, "flags", "")
	if err != nil {
		t.Fatal(err)
	}
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("skipped: no sh")
	}
	out, err := exec.Command(sh, "-c", "printf '%s\\n' "+flags).CombinedOutput()
	if got := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n"); err != nil || !slices.Equal(got, p.Launch) {
		t.Errorf("the shell reads %q, %v", got, err)
	}
	for format, want := range map[string][]string{
		"yaml":    {"max-num-seqs: 64\n", "no-enable-chunked-prefill: true\n", "scheduling-policy: \"priority\"\n"},
		"helm":    {"extraArgs:\n          - \"--max-num-seqs\"\n          - \"64\"\n", `tag: "v0.26.0"`},
		"compose": {"      - \"--max-num-seqs\"\n      - \"64\"\n", `image: "vllm/vllm-openai:v0.26.0"`, "$$HOME"},
	} {
		text, err := Export(p, format, "0.26.0")
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("%s lacks %q:\n%s", format, w, text)
			}
		}
		// The model stays within its quotes: as many lines as with a plain name.
		plain := *p
		plain.Launch = slices.Clone(p.Launch)
		plain.Launch[2] = "plain"
		if other, _ := Export(&plain, format, "0.26.0"); strings.Count(other, "\n") != strings.Count(text, "\n") {
			t.Errorf("%s breaks lines:\n%s", format, text)
		}
	}
	if _, err := Export(p, "toml", ""); err == nil || !strings.Contains(err.Error(), "flags, yaml, helm, compose") {
		t.Errorf("error %v", err)
	}
	p.Launch[2] = "a\nb"
	if _, err := Export(p, "yaml", ""); err == nil {
		t.Error("a line break was exported")
	}
}

// known is a step-time model of round numbers: 4 ms, 10 us a sequence, 20 us a token, 100 ns per token of context; all
// other terms are 0, all coefficients exact.
func known(t *testing.T) *cost.Model {
	t.Helper()
	m := server(t).Cost
	values := make([]float64, len(m.Coefficients))
	for i, c := range m.Coefficients {
		values[i] = map[string]float64{"base": 4e-3, "seqs_above_0": 1e-5, "tokens": 2e-5, "decode_context": 1e-7}[c.Name]
	}
	m, err := m.With(values)
	if err != nil {
		t.Fatal(err)
	}
	for i := range m.Coefficients {
		m.Coefficients[i].Low, m.Coefficients[i].High = 0, 0
	}
	m.FrontEnd, m.Errors = cost.FrontEnd{}, &cost.Errors{Median: 0.02}
	m.Limits = cost.Limits{Flops: 1e15, Bandwidth: 4e12, FlopsPerToken: 16e9, WeightBytes: 16e9, KVBytesPerToken: 1 << 17}
	return m
}

// The golden plan: a change of a word in it is a change of the prediction or of what is said about it.
func TestGoldenPlan(t *testing.T) {
	req := request(t, load(60, 0, 200, 60, 0, 32))
	req.Device = vllmflags.Device{Name: "H200", Memory: 150e9}
	req.Server = analysis.Server{Args: req.Server.Args, NumGPUBlocks: 20_000, Cost: known(t)}
	req.Current = harness.EngineArgs{MaxNumSeqs: 4, MaxNumBatchedTokens: 1024}
	req.Strategies = []Strategy{Throughput, Memory}
	plans := mustMake(t, req)
	got := plans.Verdict + "\n" + plans.Search.Statement + "\n" + strings.Join(plans.Notes, "\n") + "\n"
	for _, p := range plans.Plans {
		got += fmt.Sprintf("%s: %s\n%s\n%s\n", p.Strategy, p.Why, strings.Join(p.Launch, " "), p.BindingWhy)
	}
	const golden = "testdata/plan.txt"
	if os.Getenv("KVTUNE_UPDATE") != "" {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got {
		t.Errorf("%s (KVTUNE_UPDATE=1 go test -run Golden ./planner writes it) should be:\n%s", golden, got)
	}
	// Little's law holds in the prediction: requests in flight = rate x time in the system, less the ramp at the end.
	p := plans.Plans[0]
	rate, _ := p.Predicted.Value(harness.MetricRequestThroughput, "")
	latency, _ := p.Predicted.Value(harness.MetricE2EL, harness.StatMean)
	if inFlight := rate * latency; inFlight > 32.01 || inFlight < 16 {
		t.Errorf("%.1f requests in flight by Little's law, the closed loop holds 32", inFlight)
	}
	// No step is faster than its fixed part and one token's.
	if tpot, _ := p.Predicted.Value(harness.MetricTPOT, harness.StatMean); tpot < 4e-3+3e-5 {
		t.Errorf("%g s per token, a step takes at least 4.03 ms", tpot)
	}
}
