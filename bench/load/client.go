package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
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
	named := fs.Bool("named", false, "a model name for each request, which the static server notes")
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
	if *named {
		for i := range w.Requests {
			w.Requests[i].LoRA = fmt.Sprintf("r%d", i)
		}
	}
	vllm.ReserveConnections(len(w.Requests))
	run, err := load.Do(ctx, load.Options{Client: s.Client(vllm.ClientOptions{}), Workload: w})
	if err != nil {
		return err
	}
	if run.Interrupted {
		return fmt.Errorf("the run ended early: %s", run.Why)
	}
	out := outcome{
		OK: run.OK, Failed: run.Failed, CPU: run.CPU,
		Lag50: run.Lag.Quantile(0.5).Seconds(), Lag99: run.Lag.Quantile(0.99).Seconds(), LagMax: run.Lag.Max().Seconds(),
		PeakRSS: peakRSS(),
	}
	events, end := 0, time.Duration(0)
	for i := range run.Records {
		r := &run.Records[i]
		if !r.OK() {
			continue
		}
		out.TTFT = append(out.TTFT, firstToken{r.LoRA, r.Tokens[0].At.Seconds()})
		events += len(r.Tokens)
		end = max(end, r.End())
	}
	out.Duration = (end - run.Records[0].Sent).Seconds()
	out.Events, out.EventRate = events, float64(events)/out.Duration
	return json.NewEncoder(os.Stdout).Encode(out)
}

// outcome is a client's figures; times are in seconds.
type outcome struct {
	OK        int      `json:"ok"`
	Failed    int      `json:"failed"`
	Duration  float64  `json:"duration_s"`
	Events    int      `json:"events"`
	EventRate float64  `json:"events_per_s"`
	Lag50     float64  `json:"lag_p50_s"`
	Lag99     float64  `json:"lag_p99_s"`
	LagMax    float64  `json:"lag_max_s"`
	CPU       *float64 `json:"cpu"`
	PeakRSS   int      `json:"peak_rss_bytes"`
	// TTFT are the requests that succeeded, in the order of their sending.
	TTFT []firstToken `json:"ttft"`
}

// firstToken is a request's TTFT from its send.
type firstToken struct {
	Model string  `json:"model"`
	After float64 `json:"after_s"`
}

// peakRSS is the most memory that this process has had resident, in bytes; 0 where /proc does not say.
func peakRSS() int {
	status, _ := os.ReadFile("/proc/self/status")
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	var kb int
	_, _ = fmt.Sscan(rest, &kb)
	return kb << 10
}
