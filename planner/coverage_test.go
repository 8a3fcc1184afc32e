package planner

import (
	"errors"
	"strings"
	"testing"

	"kvtune/harness"
	"kvtune/harness/vllmflags"
	"kvtune/planner/cost"
)

// What is measured but not modelled widens every interval; what changes the steps themselves is refused.
func TestCoverage(t *testing.T) {
	width := func(features []harness.Feature) float64 {
		req := request(t, load(30, 0, 200, 20, 0, 16))
		req.Strategies, req.Features = []Strategy{Throughput}, features
		m := mustMake(t, req).Baseline.Predicted.Get(harness.MetricTotalThroughput, "")
		return *m.High - *m.Low
	}
	plain, lora := width(nil), width([]harness.Feature{{Name: "LoRA", Support: "measured only"}})
	if !(lora > 1.05*plain) {
		t.Errorf("with LoRA the interval is %g token/s wide, without %g", lora, plain)
	}
	for _, name := range []string{"speculative decoding", "several engines", "hybrid or attention-free model"} {
		support := "measured only"
		if strings.HasPrefix(name, "hybrid") {
			support = "not supported"
		}
		req := request(t, load(10, 0, 100, 10, 0, 4))
		req.Features = []harness.Feature{{Name: name, Support: support}}
		var refused *NotCoveredError
		if _, err := Make(t.Context(), req); !errors.As(err, &refused) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFeaturesOf(t *testing.T) {
	for command, want := range map[string]string{
		"vllm serve m --max-num-seqs 8":                                      "",
		"vllm serve m --speculative-config {}":                               "speculative decoding",
		"vllm serve m --data-parallel-size 1":                                "",
		"vllm serve m --data-parallel-size=4 --enable-lora --lora-modules a": "several engines, LoRA",
		"vllm serve m --kv-offloading-size 8 -pp 2":                          "KV offload, pipeline parallelism",
	} {
		_, args, rest, err := vllmflags.ParseServeCommand(command)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, f := range FeaturesOf(args, rest) {
			names = append(names, f.Name)
		}
		if got := strings.Join(names, ", "); got != want {
			t.Errorf("%s: %q, want %q", command, got, want)
		}
	}
}

// The same model, fitted on steps that the plan goes far beyond, says EXTRAPOLATED and has the wider interval.
func TestExtrapolationWidens(t *testing.T) {
	predict := func(within bool) (width float64, said string) {
		req := request(t, load(30, 0, 2000, 20, 0, 16))
		req.Strategies = []Strategy{Throughput}
		m := *req.Server.Cost
		m.Kind, m.Errors = cost.KindFitted, &cost.Errors{Median: 0.02, Prior: 0.2}
		m.Range = cost.Range{Tokens: 64, Seqs: 4, DecodeContext: 1000, Attention: 1e4, Prefill: true, Decode: true,
			Mixed: true}
		if within {
			m.Range = cost.Range{Tokens: 1 << 20, Seqs: 1 << 12, DecodeContext: 1 << 30, Attention: 1e15, Prefill: true,
				Decode: true, Mixed: true}
		}
		req.Server.Cost = &m
		base := mustMake(t, req).Baseline
		v := base.Predicted.Get(harness.MetricTotalThroughput, "")
		return *v.High - *v.Low, base.Extrapolated
	}
	inside, nothing := predict(true)
	outside, said := predict(false)
	if nothing != "" || said == "" || !(outside > 1.2*inside) {
		t.Errorf("within the fit %g token/s wide (%q), beyond %g (%q)", inside, nothing, outside, said)
	}
}
