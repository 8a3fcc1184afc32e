package report

import (
	"fmt"
	"slices"

	"kvtune/harness"
	"kvtune/planner/analysis"
)

// row is one line of the table of runs: a metric in one unit over all runs, or a text.
type row struct {
	label, unit string
	cells       []cell
}

// cell is one run's entry in a row.
type cell struct {
	text string
	// interval is the 95 % interval in words, note what limits the value or why it is absent.
	interval, note string
	missing        bool
}

// shown are the metrics of the table of runs with their base units, in order.
var shown = [...]struct{ label, name, stat, unit string }{
	{"TTFT p50", harness.MetricTTFT, harness.StatP50, "s"},
	{"TTFT p99", harness.MetricTTFT, harness.StatP99, "s"},
	{"ITL p50", harness.MetricITL, harness.StatP50, "s"},
	{"ITL p99", harness.MetricITL, harness.StatP99, "s"},
	{"TPOT mean", harness.MetricTPOT, harness.StatMean, "s"},
	{"E2EL p50", harness.MetricE2EL, harness.StatP50, "s"},
	{"E2EL p99", harness.MetricE2EL, harness.StatP99, "s"},
	{"prefill latency p50", harness.MetricPrefillLatency, harness.StatP50, "s"},
	{"decode latency p50", harness.MetricDecodeLatency, harness.StatP50, "s"},
	{"throughput", harness.MetricRequestThroughput, "", "request/s"},
	{"throughput, output", harness.MetricOutputThroughput, "", "token/s"},
	{"throughput, total", harness.MetricTotalThroughput, "", "token/s"},
	{"KV usage mean", harness.MetricKVUsage, harness.StatMean, "ratio"},
	{"KV usage peak", harness.MetricKVUsage, harness.StatPeak, "ratio"},
	{"KV memory peak", harness.MetricMemoryDevice, harness.StatPeak, "B"},
	{"host memory peak", harness.MetricMemoryHost, harness.StatPeak, "B"},
	{"batch efficiency", harness.MetricBatchEfficiency, "", "ratio"},
	{"cache hit rate", harness.MetricCacheHitRate, "", "ratio"},
	{"preemptions", harness.MetricPreemptions, "", "request"},
	{"requests ok", harness.MetricRequests, harness.StatOK, "request"},
	{"requests failed", harness.MetricRequests, harness.StatFail, "request"},
	{"generator lag p99", harness.MetricSendLag, harness.StatP99, "s"},
}

// ownAccount are rows of what a server says of its own latencies, there for runs on a server that says it: between
// these and the client's figures are the network and the client.
var ownAccount = [...]struct{ label, name, stat, unit string }{
	{"server's TTFT p50", harness.MetricEngineTTFT, harness.StatP50, "s"},
	{"server's ITL p50", harness.MetricEngineITL, harness.StatP50, "s"},
	{"server's queue mean", harness.MetricQueueTime, harness.StatMean, "s"},
}

// labelOf is the table's name for a metric that a plan predicts, "" where the table has none. What the load generator
// did (counts of requests, its lag) is no prediction.
func labelOf(name, stat string) string {
	for _, s := range shown {
		if s.name == name && s.stat == stat && name != harness.MetricRequests && name != harness.MetricSendLag {
			return s.label
		}
	}
	return ""
}

// rowsOf is the table of runs. A metric is one row in one unit, so that runs compare at a glance.
func rowsOf(runs []Run) []row {
	rows := []row{{label: "origin"}, {label: "workload C / M / B"}, {label: "type"}}
	for _, r := range runs {
		cfg := r.Result.Config
		origin, work, kind := "SIMULATED", fmt.Sprintf("%d / %d / %d", cfg.C, cfg.M, cfg.B), string(cfg.ProfilingType)
		if r.Result.Origin == harness.OriginMeasured {
			origin = "measured"
		}
		if r.Result.Partial {
			origin += ", PARTIAL"
		}
		if r.Result.Conditions.GeneratorLimited != "" {
			origin += ", GENERATOR-LIMITED"
		}
		if cfg.Trace != "" {
			work = "trace"
		}
		if kind == "" {
			kind = "-"
		}
		for i, text := range []string{origin, work, kind} {
			rows[i].cells = append(rows[i].cells, cell{text: text})
		}
	}
	for _, s := range shown {
		rows = append(rows, metricRow(runs, s.label, s.name, s.stat, s.unit))
	}
	for _, s := range ownAccount {
		said := slices.ContainsFunc(runs, func(r Run) bool {
			_, ok := r.Result.Metrics.Value(harness.MetricEngineTTFT, harness.StatMean)
			return ok
		})
		if said {
			rows = append(rows, metricRow(runs, s.label, s.name, s.stat, s.unit))
		}
	}
	binds, limit := row{label: "what binds"}, row{label: "which limit"}
	for _, r := range runs {
		b, l := bindsOf(r.Analysis)
		binds.cells, limit.cells = append(binds.cells, b), append(limit.cells, l)
	}
	return append(rows, binds, limit)
}

func metricRow(runs []Run, label, name, stat, unit string) row {
	metrics := make([]harness.Metric, len(runs))
	var values []float64
	for i, r := range runs {
		if m := r.Result.Metrics.Get(name, stat); m != nil {
			metrics[i] = *m
			if m.Value != nil {
				values = append(values, *m.Value)
			}
		}
	}
	s := scaleFor(unit, values...)
	s.least = 3 // a p50 with an interval must not look larger than a p99 without one
	out := row{label: label, unit: s.unit}
	for _, m := range metrics {
		out.cells = append(out.cells, cell{
			text: s.number(m), interval: s.interval(m), note: m.Note, missing: m.Value == nil,
		})
	}
	return out
}

func bindsOf(a *analysis.Report) (binds, limit cell) {
	if a == nil {
		return cell{text: "not analysed", missing: true}, cell{text: "-"}
	}
	binds = cell{text: string(a.Binding), note: a.Verdict, missing: a.Binding == analysis.NotObserved}
	share := a.Light
	if b := a.Bottleneck(a.Binding); b != nil {
		share = b.Share
	}
	if a.Focus != nil {
		binds.text += ", " + a.Focus.Name()
		share = nil
	}
	if share != nil && !binds.missing {
		binds.text += " " + harness.Percent(*share, false)
	}
	limit.text = a.Limit
	if limit.text == "" {
		limit.text = "-"
	}
	return binds, limit
}
