package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"kvtune/harness/load"
	"kvtune/harness/vllm"
	"kvtune/harness/workload"
)

// client sends a workload with kvtune's generator and prints one line of JSON.
func client(args []string) error {
	fs := flag.NewFlagSet("client", flag.ContinueOnError)
	url := fs.String("url", "http://127.0.0.1:8765", "")
	spec := workload.Spec{C: 16, B: 1, Type: "decode", Seed: 1}
	fs.StringVar(&spec.Rate, "rate", "", "requests/s")
	fs.IntVar(&spec.Concurrency, "concurrency", 0, "")
	fs.IntVar(&spec.NumRequests, "requests", 1000, "")
	fs.StringVar(&spec.OutputLen, "output", "100", "tokens")
	stamps := fs.String("stamps", "", "the server's file: first tokens are compared one by one")
	if err := fs.Parse(args); err != nil {
		return err
	}
	defer load.Quiet()() // as kvtune does
	ctx := context.Background()
	s, err := vllm.Connect(ctx, *url, vllm.Options{})
	if err != nil {
		return err
	}
	defer s.Close()
	w, err := spec.Build()
	if err != nil {
		return err
	}
	for i := range w.Requests { // a name for each, where the server notes it
		w.Requests[i].LoRA = fmt.Sprintf("r%d", i)
	}
	run, err := load.Do(ctx, load.Options{Client: s.Client(vllm.ClientOptions{}), Workload: w})
	if err != nil {
		return err
	}
	if run.Interrupted {
		return fmt.Errorf("the run ended early: %s", run.Why)
	}
	out := outcome{
		Tool: "kvtune", OK: run.OK, Failed: run.Failed, Cores: runtime.GOMAXPROCS(0), CPU: run.CPU,
		Lag50: run.Lag.Quantile(0.5).Seconds(), Lag99: run.Lag.Quantile(0.99).Seconds(), LagMax: run.Lag.Max().Seconds(),
		PeakRSS: peakRSS(),
	}
	var ttft []float64
	events, end := 0, time.Duration(0)
	for i := range run.Records {
		r := &run.Records[i]
		if !r.OK() {
			continue
		}
		ttft = append(ttft, r.Tokens[0].At.Seconds())
		events += len(r.Tokens)
		end = max(end, r.End())
	}
	out.Duration = (end - run.Records[0].Sent).Seconds()
	out.Events, out.EventRate = events, float64(events)/out.Duration
	out.TTFT50, out.TTFT99 = quantile(ttft, 0.5), quantile(ttft, 0.99)
	if *stamps != "" {
		if err := out.compare(*stamps, run.Records); err != nil {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

// outcome is a client's figures; times are in seconds.
type outcome struct {
	Tool      string   `json:"tool"`
	OK        int      `json:"ok"`
	Failed    int      `json:"failed"`
	Cores     int      `json:"cores"`
	Duration  float64  `json:"duration_s"`
	Events    int      `json:"events"`
	EventRate float64  `json:"events_per_s"`
	TTFT50    float64  `json:"ttft_p50_s"`
	TTFT99    float64  `json:"ttft_p99_s"`
	Lag50     float64  `json:"lag_p50_s"`
	Lag99     float64  `json:"lag_p99_s"`
	LagMax    float64  `json:"lag_max_s"`
	CPU       *float64 `json:"cpu"`
	PeakRSS   int      `json:"peak_rss_bytes"`
	// Error is the client's TTFT from its send minus the server's time from a request's arrival to its first token,
	// request by request; nil without stamps.
	Error50 *float64 `json:"ttft_error_p50_s"`
	Error99 *float64 `json:"ttft_error_p99_s"`
}

// compare fills the errors.
func (o *outcome) compare(file string, records []workload.Record) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	took := map[string]float64{}
	for in := bufio.NewScanner(f); in.Scan(); {
		var name string
		var t float64
		if _, err := fmt.Sscan(in.Text(), &name, &t); err == nil {
			took[name] = t
		}
	}
	var errs []float64
	for i := range records {
		if t, ok := took[records[i].LoRA]; ok && records[i].OK() {
			errs = append(errs, records[i].Tokens[0].At.Seconds()-t)
		}
	}
	if len(errs) < o.OK {
		return fmt.Errorf("the server noted %d of %d requests", len(errs), o.OK)
	}
	p50, p99 := quantile(errs, 0.5), quantile(errs, 0.99)
	o.Error50, o.Error99 = &p50, &p99
	return nil
}

func quantile(x []float64, q float64) float64 {
	if len(x) == 0 {
		return 0
	}
	x = slices.Sorted(slices.Values(x))
	return x[min(len(x)-1, int(q*float64(len(x))))]
}

// peakRSS is the most memory that this process has had resident, in bytes; 0 where /proc does not say.
func peakRSS() int {
	status, _ := os.ReadFile("/proc/self/status")
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	var kb int
	_, _ = fmt.Sscan(rest, &kb)
	return kb << 10
}
