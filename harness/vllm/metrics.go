package vllm

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"kvtune/harness"
)

// Counters are a server's metrics at one moment, by name without labels: the sum over all label values, engines
// included, except for shares (names that end in _perc), which are averaged. A histogram gives its _sum and _count.
// Only vLLM's own metrics and the API server process's (process_...) are kept.
type Counters map[string]float64

const startTime = "process_start_time_seconds"

// Delta is how far the cumulative ones (names that end in _total, _sum or _count) moved since before; gauges are left
// out. A counter that went back, or a server that was started in between, began again at 0, so its value now is the
// movement that is still known. A name that before lacks had not moved.
func (c Counters) Delta(before Counters) Counters {
	restarted := c.restarted(before)
	d := Counters{}
	for name, now := range c {
		if !cumulative(name) {
			continue
		}
		then := before[name]
		if restarted || now < then {
			then = 0
		}
		d[name] = now - then
	}
	return d
}

// restarted reports whether another process answers than before.
func (c Counters) restarted(before Counters) bool {
	return c[startTime] != before[startTime] && c[startTime] != 0 && before[startTime] != 0
}

// fell are the cumulative ones that are lower than before.
func (c Counters) fell(before Counters) (names []string) {
	for name, now := range c {
		if cumulative(name) && now < before[name] {
			names = append(names, name)
		}
	}
	return names
}

func cumulative(name string) bool {
	return strings.HasSuffix(name, "_total") || strings.HasSuffix(name, "_sum") || strings.HasSuffix(name, "_count")
}

// Scrape reads /metrics once.
func (s *Server) Scrape(ctx context.Context) (Counters, error) {
	r, err := s.read(ctx)
	return r.counters, err
}

// reading is one look at /metrics.
type reading struct {
	at         time.Time // when the answer had arrived
	counters   Counters
	histograms map[string]harness.Histogram
}

// read reads /metrics. A busy API server answers late but with figures as of then.
func (s *Server) read(ctx context.Context) (reading, error) {
	page, _, at, err := s.get(ctx, "/metrics")
	if err != nil {
		return reading{}, fmt.Errorf("read %s/metrics: %w", s.url, rootCause(err))
	}
	families, err := parseMetrics(page)
	if err != nil {
		return reading{}, fmt.Errorf("read %s/metrics: %w", s.url, err)
	}
	r := reading{at: at, counters: families.counters(), histograms: map[string]harness.Histogram{}}
	for _, name := range harness.EngineHistograms() {
		if h, ok := families.histogram(name); ok {
			r.histograms[name] = h
		}
	}
	return r, nil
}

// metricFamilies are a parsed /metrics page, by family name.
type metricFamilies map[string]*dto.MetricFamily

func parseMetrics(page []byte) (metricFamilies, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(page))
	if err != nil {
		return nil, err
	}
	return families, nil
}

func hasVLLM(families metricFamilies) bool {
	for name := range families {
		if strings.HasPrefix(name, "vllm:") {
			return true
		}
	}
	return false
}

// counters flattens the families. The sum of a family is taken in the page's order: same page, same bits.
func (f metricFamilies) counters() Counters {
	c := Counters{}
	for name, fam := range f {
		if !strings.HasPrefix(name, "vllm:") && !strings.HasPrefix(name, "process_") || strings.HasSuffix(name, "_created") {
			continue
		}
		sum := 0.0
		for _, m := range fam.GetMetric() {
			switch {
			case m.Counter != nil:
				sum += m.GetCounter().GetValue()
			case m.Gauge != nil:
				sum += m.GetGauge().GetValue()
			case m.Untyped != nil:
				sum += m.GetUntyped().GetValue()
			case m.Histogram != nil:
				c[name+"_sum"] += m.GetHistogram().GetSampleSum()
				c[name+"_count"] += float64(m.GetHistogram().GetSampleCount())
			case m.Summary != nil:
				c[name+"_sum"] += m.GetSummary().GetSampleSum()
				c[name+"_count"] += float64(m.GetSummary().GetSampleCount())
			}
		}
		switch n := len(fam.GetMetric()); {
		case fam.GetType() == dto.MetricType_HISTOGRAM || fam.GetType() == dto.MetricType_SUMMARY || n == 0:
		case strings.HasSuffix(name, "_perc"):
			c[name] = sum / float64(n)
		default:
			c[name] = sum
		}
	}
	return c
}

// histogram is the sum of a family's series, whose bounds are the same; false where there is none.
func (f metricFamilies) histogram(family string) (h harness.Histogram, ok bool) {
	for _, m := range f[family].GetMetric() {
		if m.Histogram == nil {
			continue
		}
		h.Sum += m.GetHistogram().GetSampleSum()
		h.Count += float64(m.GetHistogram().GetSampleCount())
		i := 0
		for _, b := range m.GetHistogram().GetBucket() {
			switch {
			case math.IsInf(b.GetUpperBound(), 0) || math.IsNaN(b.GetUpperBound()):
				continue
			case !ok:
				h.Upper, h.AtMost = append(h.Upper, b.GetUpperBound()), append(h.AtMost, float64(b.GetCumulativeCount()))
			case i < len(h.Upper) && h.Upper[i] == b.GetUpperBound():
				h.AtMost[i] += float64(b.GetCumulativeCount())
			default: // engines with other bounds: only sum and count add up
				h.Upper, h.AtMost = nil, nil
			}
			i++
		}
		ok = true
	}
	return h, ok
}

// labels are the labels of a family's first series; nil when there is none.
func (f metricFamilies) labels(family string) map[string]string {
	ms := f[family].GetMetric()
	if len(ms) == 0 {
		return nil
	}
	labels := map[string]string{}
	for _, l := range ms[0].GetLabel() {
		labels[l.GetName()] = l.GetValue()
	}
	return labels
}

// values are the distinct values of a label in a family, sorted.
func (f metricFamilies) values(family, label string) []string {
	set := map[string]bool{}
	for _, m := range f[family].GetMetric() {
		for _, l := range m.GetLabel() {
			if l.GetName() == label {
				set[l.GetValue()] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// How far kvtune's scheduler model covers a feature.
const (
	modelled     = "modelled"
	measuredOnly = "measured only"
	notSupported = "not supported"
)

// features lists what a server shows of itself in its metrics and models. What does not show there (MLA, hybrid models,
// quantisation) follows from the model, not from the server.
func features(f metricFamilies, adapters []string) []harness.Feature {
	cfg := f.labels("vllm:cache_config_info")
	set := func(label string) (string, bool) {
		v, ok := cfg[label]
		return v, ok && v != "" && v != "None" && v != "0" && v != "0.0"
	}
	var fs []harness.Feature
	add := func(name, support, note string) {
		fs = append(fs, harness.Feature{Name: name, Support: support, Note: note})
	}
	switch cfg["enable_prefix_caching"] {
	case "True":
		add("prefix caching", modelled, "")
	case "False":
		add("prefix caching", modelled, "off: M blocks are computed again by every request")
	}
	if d, ok := set("cache_dtype"); ok && d != "auto" {
		add("kv cache dtype "+d, modelled, "")
	}
	if engines := f.values(harness.SeriesRunning, "engine"); len(engines) > 1 {
		add("several engines", measuredOnly, strconv.Itoa(len(engines))+" data-parallel engines, summed in every counter")
	}
	if f["vllm:spec_decode_num_drafts_total"] != nil {
		add("speculative decoding", measuredOnly, "a step gives a request several tokens; acceptance depends on the text")
	}
	if len(adapters) > 0 || f["vllm:lora_requests_info"] != nil {
		add("LoRA", measuredOnly, strings.Join(adapters, ", "))
	}
	if size, ok := set("kv_offloading_size"); ok {
		add("KV offload", measuredOnly, size+" GiB of host memory hold evicted blocks")
	} else if f.counters()["vllm:external_prefix_cache_queries_total"] > 0 {
		add("KV connector", measuredOnly, "a store outside the engine answers prefix lookups")
	}
	if w, ok := set("sliding_window"); ok {
		add("sliding window", measuredOnly, w+" tokens; KV blocks behind the window are freed")
	}
	eff, effSet := set("effective_attention_block_size")
	if blocks, ok := set("mamba_block_size"); ok || cfg["is_attention_free"] == "True" {
		add("hybrid or attention-free model", notSupported, strings.TrimSpace("mamba blocks "+blocks))
	} else if effSet && eff != cfg["block_size"] {
		add("hybrid cache groups", measuredOnly, "attention blocks of "+eff+" tokens, cache blocks of "+cfg["block_size"])
	}
	return fs
}
