package harness

import (
	"errors"
	"math"
	"testing"
	"time"

	"kvtune/harness/workload"
)

func TestParseSLO(t *testing.T) {
	for text, want := range map[string]SLO{
		"p99 TTFT <= 200ms":             {MetricTTFT, StatP99, 0.2, ""},
		"mean ITL < 20ms":               {MetricITL, StatMean, 0.02, ""},
		"  median   e2e<1.5s ":          {MetricE2EL, StatP50, 1.5, ""},
		"TPOT <= 50000us":               {MetricTPOT, StatP99, 0.05, ""},
		"throughput >= 1000 token/s":    {MetricOutputThroughput, "", 1000, ""},
		"total throughput > 2e3 tok/s":  {MetricTotalThroughput, "", 2000, ""},
		"request throughput >= 3 req/s": {MetricRequestThroughput, "", 3, ""},
		"goodput >= 4.5 request/s":      {MetricGoodput, "", 4.5, ""},
		"error rate <= 1%":              {MetricErrorRate, "", 0.01, ""},
		"errors <= 0":                   {MetricErrorRate, "", 0, ""},
		"queue time <= 10ms":            {MetricQueueTime, StatMean, 0.01, ""},
		"Chat-A: p95 TPOT <= 50 ms":     {MetricTPOT, StatP95, 0.05, "Chat-A"},
	} {
		got, err := ParseSLO(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if math.Abs(got.Limit-want.Limit) > 1e-12 {
			t.Errorf("%s: limit %v, want %v", text, got.Limit, want.Limit)
		}
		got.Limit = want.Limit
		if got != want {
			t.Errorf("%s: %+v, want %+v", text, got, want)
		}
		again, err := ParseSLO(got.String())
		if err != nil || math.Abs(again.Limit-want.Limit) > 1e-12 || again.Metric != want.Metric ||
			again.Class != want.Class {
			t.Errorf("%s is written as %q and read back as %+v, %v", text, got, again, err)
		}
	}
}

func TestParseSLORefuses(t *testing.T) {
	for _, text := range []string{"", "p99", "fast", "p99 TTFT", "p99 TTFT <= 200", "p99 TTFT >= 200ms", "p98 TTFT <= 2s",
		"p99 TTFT <= 200 token/s", "throughput <= 1000 token/s", "throughput >= 1000", "p99 throughput >= 1000 token/s",
		"throughput >= 5 request/s", "p99 queue time <= 1s", "p99 TTFT <= 1.2.3s", "p99 TTFT <= -5ms", "p99 latency <= 5ms",
		"TTFT <= 1e999s", "p99 TTFT <= 5ms or else"} {
		_, err := ParseSLO(text)
		var field *FieldError
		if !errors.As(err, &field) || field.Field != "slo" || field.Value != text || field.Allowed == "" {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzParseSLO(f *testing.F) {
	f.Add("p99 TTFT <= 200ms")
	f.Add("a.b: error rate<1e-3")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSLO(text)
		if err != nil {
			return
		}
		again, err := ParseSLO(s.String())
		if err != nil || again.Metric != s.Metric || again.Stat != s.Stat || math.Abs(again.Limit-s.Limit) > 1e-9*s.Limit {
			t.Fatalf("%q is written as %q, read back as %+v, %v", text, s, again, err)
		}
	})
}

func TestMet(t *testing.T) {
	parse := func(text string) SLO {
		s, err := ParseSLO(text)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	got := Metrics{observed(MetricTTFT, StatP99, "s", 0.2, 10), observed(MetricOutputThroughput, "", "token/s", 99, 10),
		absent(MetricGoodput, "", "request/s", "")}
	for _, c := range []struct {
		slo        string
		met, known bool
	}{
		{"p99 TTFT <= 200ms", true, true}, {"p99 TTFT <= 199ms", false, true}, {"throughput >= 99 token/s", true, true},
		{"throughput >= 100 token/s", false, true},
		{"goodput >= 0 request/s", false, false}, // not observed: neither met nor missed
		{"p90 TTFT <= 1s", false, false},
	} {
		if met, known := parse(c.slo).Met(got); met != c.met || known != c.known {
			t.Errorf("%s: met %v known %v, want %v %v", c.slo, met, known, c.met, c.known)
		}
	}
}

func TestGoodput(t *testing.T) {
	late := request(0, 30*ms, 40*ms, 100*ms)
	due := -20 * ms
	late.Due, late.Class = &due, "chat" // waited 50 ms for the first token, 120 ms in all
	quick := request(0, 10*ms, 20*ms, 30*ms)
	single := request(0, 10*ms)
	failed := request(0, time.Second)
	failed.Error = "no"
	warm := request(0, 10*ms)
	warm.Phase = workload.Warmup
	recs := []workload.Record{late, quick, single, failed, warm} // the run takes 1 s
	for _, c := range []struct {
		slos []string
		want float64
	}{
		{[]string{"TTFT <= 50ms"}, 3}, {[]string{"TTFT <= 49ms"}, 2}, {[]string{"p50 TTFT <= 49ms"}, 2},
		{[]string{"E2E <= 119ms"}, 2}, {[]string{"TPOT <= 34ms"}, 2}, {[]string{"TPOT <= 35ms"}, 3},
		{[]string{"mean ITL <= 35ms"}, 3}, {[]string{"p99 ITL <= 35ms"}, 2},
		{[]string{"TTFT <= 50ms", "E2E <= 29ms"}, 1},
		{[]string{"chat: TTFT <= 1ms"}, 2}, {[]string{"batch: TTFT <= 1ms"}, 3},
		{[]string{"TTFT <= 49ms", "throughput >= 1e9 token/s"}, 2},
		{[]string{"error rate <= 1%"}, math.NaN()}, {nil, math.NaN()},
	} {
		var slos []SLO
		for _, text := range c.slos {
			s, err := ParseSLO(text)
			if err != nil {
				t.Fatal(err)
			}
			slos = append(slos, s)
		}
		m := Goodput(recs, slos)
		if m.Value == nil != math.IsNaN(c.want) || m.Value != nil && *m.Value != c.want {
			t.Errorf("%v: %s, want %v", c.slos, m, c.want)
		}
	}
	if n := len(SLO{Class: "chat"}.Of(recs)); n != 1 {
		t.Errorf("class chat has %d records, want 1", n)
	}
}
