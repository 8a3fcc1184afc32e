package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// table is the committed file; times are in seconds.
type table struct {
	Schema string `json:"schema"`
	Date   string `json:"date"`
	Host   string `json:"host"`
	Pinned string `json:"pinned"`
	// Streams are those of Loads.
	Streams string `json:"streams"`
	Loads   []side `json:"loads"`
	// Kvtune are the figures of kvtune alone.
	Kvtune figures `json:"kvtune"`
}

// side is one load with all tools side by side.
type side struct {
	Load  string `json:"load"`
	Tools []row  `json:"tools"`
}

// row is one tool under one load. What a tool does not say is null.
type row struct {
	Tool    string `json:"tool"`
	Version string `json:"version,omitempty"`
	// Note says why there are no figures.
	Note     string   `json:"note,omitempty"`
	OK       int      `json:"ok"`
	Rate     float64  `json:"requests_per_s"`
	TTFTMean *float64 `json:"ttft_mean_s"`
	TTFT50   *float64 `json:"ttft_p50_s"`
	TTFT99   *float64 `json:"ttft_p99_s"`
	// The static server's own stamps; the embedded engine has a mean.
	ServerMean *float64 `json:"server_ttft_mean_s"`
	Server50   *float64 `json:"server_ttft_p50_s"`
	Server99   *float64 `json:"server_ttft_p99_s"`
	ErrorMean  *float64 `json:"ttft_error_mean_s"` // TTFTMean - ServerMean
	Error99    *float64 `json:"ttft_error_p99_s"`  // TTFT99 - Server99
	ByRequest  *float64 `json:"ttft_error_p99_by_request_s,omitempty"`
	Lag99      *float64 `json:"send_lag_p99_s,omitempty"`
	// ServerBusy is the share of its processor that the server used.
	ServerBusy float64 `json:"server_busy"`
	CPU        float64 `json:"cpu_s"`
	PeakRSS    int64   `json:"peak_rss_bytes"` // of its largest process
}

// figures are medians of three runs, each of which is listed.
type figures struct {
	ParseEvents   float64   `json:"parse_events_per_s"`
	ParseAllocs   float64   `json:"parse_allocs_per_stream_of_1002_events"`
	EndToEnd      float64   `json:"end_to_end_events_per_s"`
	EndToEndRuns  []float64 `json:"end_to_end_runs"`
	Lag99         float64   `json:"send_lag_p99_at_1000_per_s_s"`
	Lag99Runs     []float64 `json:"send_lag_p99_runs"`
	Error99       float64   `json:"ttft_error_p99_at_1000_streams_s"`
	Error99Runs   []float64 `json:"ttft_error_p99_runs"`
	Streams10kRSS int       `json:"peak_rss_at_10000_streams_bytes"`
}

// write leaves the table as load.json and README.md in a folder.
func (t *table) write(dir string) error {
	text, err := json.MarshalIndent(t, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "load.json"), append(text, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "README.md"), []byte(t.markdown()), 0o644)
}

// markdown is the table for people.
func (t *table) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Load generators on one processor\n\nMeasured %s by `make bench-load` on: %s. Pinned: %s.\n\n",
		t.Date, t.Host, t.Pinned)
	fmt.Fprintf(&b, "Streams of %s, from a static server that notes when each request arrives (by the kernel's "+
		"stamp) and when it writes the first token. TTFT is what each client noted of each request, from its send; the "+
		"error is the client's p99 minus the server's own. With a number "+
		"in flight, the first of each slot are left out on both sides: they are one burst of new connections. The embedded "+
		"engine has a mean of all requests only, and times of its own.\n", t.Streams)
	for _, s := range t.Loads {
		fmt.Fprintf(&b, "\n## %s\n\n| client | version | requests/s over the run | TTFT mean / p50 / p99, ms "+
			"| server's own, ms | error of mean / p99, ms | server busy, %% | CPU, s "+
			"| peak memory of the largest process, MiB |\n"+
			"| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n", s.Load)
		for _, r := range s.Tools {
			b.WriteString(r.markdown())
		}
	}
	k := t.Kvtune
	list := func(scale float64, format string, runs []float64) string {
		var s []string
		for _, v := range runs {
			s = append(s, fmt.Sprintf(format, v*scale))
		}
		return strings.Join(s, ", ")
	}
	fmt.Fprintf(&b, "\n## kvtune alone, medians of three runs\n\n| figure | value | runs |\n| --- | --- | --- |\n"+
		"| events parsed from memory on one core, per second | %.2f million (%.0f allocations a stream of 1,002 events) |"+
		" |\n",
		k.ParseEvents/1e6, k.ParseAllocs)
	fmt.Fprintf(&b, "| events end to end over loopback (16 a write), per second | %.0f thousand | %s |\n", k.EndToEnd/1e3,
		list(1e-3, "%.0f", k.EndToEndRuns))
	fmt.Fprintf(&b, "| send lag p99 at 1,000 requests/s, ms | %.2f | %s |\n", k.Lag99*1e3, list(1e3, "%.2f", k.Lag99Runs))
	fmt.Fprintf(&b, "| TTFT error p99, request by request, at 1,000 streams of 50 tokens/s, ms | %.2f | %s |\n",
		k.Error99*1e3, list(1e3, "%.2f", k.Error99Runs))
	fmt.Fprintf(&b, "| peak memory with 10,000 open streams, MiB | %d | |\n", k.Streams10kRSS>>20)
	return b.String()
}

func (r *row) markdown() string {
	if r.Note != "" {
		return fmt.Sprintf("| %s | %s | %.200s | | | | | | |\n", r.Tool, r.Version, strings.Join(strings.Fields(r.Note), " "))
	}
	ms := func(v *float64) string {
		if v == nil {
			return "-"
		}
		return strconv.FormatFloat(*v*1e3, 'f', 1, 64)
	}
	return fmt.Sprintf("| %s | %s | %.0f | %s / %s / %s | %s / %s / %s | %s / %s | %.0f | %.1f | %d |\n", r.Tool,
		r.Version, r.Rate, ms(r.TTFTMean), ms(r.TTFT50), ms(r.TTFT99), ms(r.ServerMean), ms(r.Server50), ms(r.Server99),
		ms(r.ErrorMean), ms(r.Error99), r.ServerBusy*100, r.CPU, r.PeakRSS>>20)
}
