package harness

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"kvtune/harness/stats"
	"kvtune/harness/workload"
)

// SLO is a service level objective: a limit on one metric. Write one as "p99 TTFT <= 200ms"; see [ParseSLO].
type SLO struct {
	// Metric and Stat name the metric as in [Metric].
	Metric string `json:"metric"`
	Stat   string `json:"stat,omitempty"`
	// Limit is in the metric's base unit (s, token/s, request/s, ratio). Throughputs and goodput must reach it; every
	// other metric must not exceed it.
	Limit float64 `json:"limit"`
	// Class is the service class that the objective is for, "" for all requests.
	Class string `json:"class,omitempty"`
}

// sloMetric is a metric that an objective may name: its unit and the names that people use for it.
type sloMetric struct {
	metric, unit string
	names        []string
}

var sloMetrics = [...]sloMetric{
	{MetricTTFT, "s", []string{"ttft"}},
	{MetricITL, "s", []string{"itl"}},
	{MetricTPOT, "s", []string{"tpot"}},
	{MetricE2EL, "s", []string{"e2el", "e2e"}},
	{MetricQueueTime, "s", []string{"queue_time", "queue time"}},
	{MetricOutputThroughput, "token/s", []string{"output_throughput", "output throughput", "throughput"}},
	{MetricTotalThroughput, "token/s", []string{"total_throughput", "total throughput"}},
	{MetricRequestThroughput, "request/s", []string{"request_throughput", "request throughput"}},
	{MetricGoodput, "request/s", []string{"goodput"}},
	{MetricErrorRate, "ratio", []string{"error_rate", "error rate", "errors"}},
}

// sloUnits are the units that a limit may have, with the factor to the base unit.
var sloUnits = map[string]struct {
	base   string
	factor float64
}{
	"s": {"s", 1}, "ms": {"s", 1e-3}, "us": {"s", 1e-6},
	"token/s": {"token/s", 1}, "tokens/s": {"token/s", 1}, "tok/s": {"token/s", 1},
	"request/s": {"request/s", 1}, "requests/s": {"request/s", 1}, "req/s": {"request/s", 1},
	"%": {"ratio", 1e-2}, "": {"ratio", 1},
}

var sloForm = regexp.MustCompile(`^(?:([\w.-]+)\s*:\s*)?(?:(mean|median|p\d+)\s+)?([a-z0-9_]+(?: [a-z]+)?)\s*` +
	`(<=|<|>=|>)\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*(\S*)$`)

const sloExample = "an objective like 'p99 TTFT <= 200ms', 'mean ITL < 20ms', 'throughput >= 1000 token/s', " +
	"'error rate <= 1%' or 'chat: p95 TPOT <= 50ms'"

// ParseSLO reads an objective: [CLASS:] [mean|p50|p90|p95|p99] METRIC <=|>= LIMIT UNIT. Letter case does not matter, <
// and <= mean the same. METRIC is TTFT, ITL, TPOT, E2EL, queue time (only mean), throughput (output tokens), total
// throughput, request throughput, goodput or error rate. A latency without a statistic means p99; its unit (s, ms, us)
// must be there. Every error is a [*FieldError].
func ParseSLO(text string) (SLO, error) {
	refuse := func(allowed string) (SLO, error) {
		return SLO{}, &FieldError{Field: "slo", Value: text, Allowed: allowed}
	}
	class, _, _ := strings.Cut(text, ":")
	m := sloForm.FindStringSubmatch(strings.ToLower(strings.Join(strings.Fields(text), " ")))
	if m == nil {
		return refuse(sloExample)
	}
	s := SLO{Stat: m[2]}
	if m[1] != "" {
		s.Class = strings.TrimSpace(class) // as written: classes keep their case
	}
	known := slices.IndexFunc(sloMetrics[:], func(k sloMetric) bool { return slices.Contains(k.names, m[3]) })
	if known < 0 {
		return refuse(sloExample)
	}
	metric := sloMetrics[known]
	s.Metric = metric.metric
	if strings.HasPrefix(m[4], ">") != s.AtLeast() {
		return refuse(fmt.Sprintf("%s %s LIMIT", m[3], s.operator()))
	}
	unit, ok := sloUnits[m[6]]
	if !ok || unit.base != metric.unit {
		return refuse(fmt.Sprintf("a limit with a unit of %s", map[string]string{"s": "time: s, ms or us",
			"ratio": "share: 1% or 0.01", "token/s": "token/s", "request/s": "request/s"}[metric.unit]))
	}
	limit, err := strconv.ParseFloat(m[5], 64)
	if err != nil || math.IsInf(limit, 0) {
		return refuse(sloExample)
	}
	s.Limit = limit * unit.factor
	latency := metric.unit == "s" && s.Metric != MetricQueueTime
	switch {
	case s.Stat == "median":
		s.Stat = StatP50
	case s.Metric == MetricQueueTime && s.Stat == "":
		s.Stat = StatMean
	case latency && s.Stat == "":
		s.Stat = StatP99
	}
	if s.Metric == MetricQueueTime && s.Stat != StatMean {
		return refuse("mean queue time: the server counts only its sum")
	}
	if latency && !slices.Contains([]string{StatMean, StatP50, StatP90, StatP95, StatP99}, s.Stat) {
		return refuse("the statistics mean, p50, p90, p95, p99")
	}
	if metric.unit != "s" && s.Stat != "" {
		return refuse(fmt.Sprintf("%s without a statistic: it is one number", m[3]))
	}
	return s, nil
}

// AtLeast says whether the limit is a lower one.
func (s SLO) AtLeast() bool { return HigherIsBetter(s.Metric) }

func (s SLO) operator() string {
	if s.AtLeast() {
		return ">="
	}
	return "<="
}

// Unit is the metric's base unit.
func (s SLO) Unit() string {
	for _, k := range sloMetrics {
		if k.metric == s.Metric {
			return k.unit
		}
	}
	return ""
}

// String writes the objective so that [ParseSLO] reads it back: "p99 TTFT <= 200ms".
func (s SLO) String() string {
	var b strings.Builder
	if s.Class != "" {
		b.WriteString(s.Class + ": ")
	}
	if s.Stat != "" {
		b.WriteString(s.Stat + " ")
	}
	b.WriteString(Words(s.Metric, "") + " " + s.operator() + " ")
	limit := func(v float64) string { return strconv.FormatFloat(v, 'g', 12, 64) }
	switch unit := s.Unit(); unit {
	case "s":
		b.WriteString(limit(s.Limit*1e3) + "ms")
	case "ratio":
		b.WriteString(limit(s.Limit*100) + "%")
	default:
		b.WriteString(limit(s.Limit) + " " + unit)
	}
	return b.String()
}

// Met judges metrics that were measured or predicted for the objective's class. known is false where the metric was not
// observed: an objective that nothing was seen of is neither met nor missed.
func (s SLO) Met(metrics Metrics) (met, known bool) {
	v, ok := metrics.Value(s.Metric, s.Stat)
	if !ok {
		return false, false
	}
	if s.AtLeast() {
		return v >= s.Limit, true
	}
	return v <= s.Limit, true
}

// Of are the records that the objective is about: those of its class, or all.
func (s SLO) Of(records []workload.Record) []workload.Record {
	if s.Class == "" {
		return records
	}
	var own []workload.Record
	for i := range records {
		if records[i].Class == s.Class {
			own = append(own, records[i])
		}
	}
	return own
}

// Judge is [SLO.Met] for a run with its records, and the metric that was judged: an objective of a class is about that
// class's requests alone. objectives are all that were set, which goodput counts by. m is nil where known is false.
func (s SLO) Judge(metrics Metrics, records []workload.Record, objectives []SLO) (m *Metric, met, known bool) {
	if s.Class != "" || s.Metric == MetricGoodput {
		own := s.Of(records)
		metrics = append(Measure(own), Goodput(own, objectives))
	}
	if met, known = s.Met(metrics); known {
		m = metrics.Get(s.Metric, s.Stat)
	}
	return m, met, known
}

// Goodput is the rate of requests that met every objective that can be asked of a single request: its TTFT, TPOT and
// E2EL against the limit, whatever the objective's statistic, and for ITL the statistic over the request's own gaps.
// A failed request is not good; a TPOT of one token is 0, as in `vllm bench serve`. Objectives of another class than
// the request's, and those on throughput or errors, are passed over. It is not observed when no objective is left.
func Goodput(records []workload.Record, slos []SLO) Metric {
	own := slices.DeleteFunc(slices.Clone(slos), func(s SLO) bool {
		return !slices.Contains([]string{MetricTTFT, MetricITL, MetricTPOT, MetricE2EL}, s.Metric)
	})
	if len(own) == 0 {
		return absent(MetricGoodput, "", "request/s", "no objective on TTFT, ITL, TPOT or E2EL is set")
	}
	_, duration := window(records)
	good, n := 0, 0
	for i := range records {
		r := &records[i]
		if r.Phase != workload.Measured {
			continue
		}
		n++
		if r.OK() && !slices.ContainsFunc(own, func(s SLO) bool { return s.missedBy(r) }) {
			good++
		}
	}
	if duration <= 0 {
		return absent(MetricGoodput, "", "request/s", noneFinished)
	}
	seconds := duration.Seconds()
	share := stats.ShareInterval(good, n, level)
	rate := float64(n) / seconds
	return observed(MetricGoodput, "", "request/s", float64(good)/seconds, n).
		within(stats.Interval{Low: share.Low * rate, High: share.High * rate})
}

// MissedBy says whether a finished request missed the objective by itself, whatever the objective's statistic: one on
// goodput by missing any of objectives, one that cannot be asked of a single request never.
func (s SLO) MissedBy(r *workload.Record, objectives []SLO) bool {
	if s.Metric == MetricGoodput {
		return slices.ContainsFunc(objectives, func(o SLO) bool { return o.Metric != MetricGoodput && o.MissedBy(r, nil) })
	}
	return r.OK() && s.missedBy(r)
}

// missedBy says whether a finished request missed a per-request objective of its class.
func (s SLO) missedBy(r *workload.Record) bool {
	if s.Class != "" && s.Class != r.Class {
		return false
	}
	late := (r.Sent - r.Start()).Seconds()
	var v float64
	switch s.Metric {
	case MetricTTFT:
		v = late + r.Tokens[0].At.Seconds()
	case MetricE2EL:
		v = late + r.Tokens[len(r.Tokens)-1].At.Seconds()
	case MetricTPOT:
		v = tpotOf(r)
	case MetricITL:
		if len(r.Tokens) < 2 {
			return false
		}
		gaps := stats.New(gapsOf(r))
		v = gaps.Mean()
		for _, p := range percentiles {
			if p.stat == s.Stat {
				v = gaps.Percentile(p.p)
			}
		}
	}
	return v > s.Limit
}
