package sim

import (
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"slices"
	"testing"
	"time"

	"kvtune/harness"
	"kvtune/harness/workload"
	"kvtune/planner/cost"
	"kvtune/planner/spec"
)

// azure is the Azure conversation trace on an H200 with Llama-3.1-8B, at 0.8 of the rate that the server sustains.
func azure(b *testing.B) (Config, cost.Timer, *workload.Workload) {
	b.Helper()
	root := os.Getenv("KVTUNE_DATA")
	if root == "" {
		root = filepath.Join("..", "..", "..", "shared", "data")
	}
	name := filepath.Join(root, "traces", "AzureLLMInferenceTrace_conv.csv")
	read := func(opt workload.TraceOptions) *workload.Workload {
		f, err := os.Open(name)
		if err != nil {
			b.Skip("skipped: no data")
		}
		defer f.Close()
		opt.MaxModelLen = h200.MaxModelLen
		w, err := workload.ReadTrace(name, f, opt)
		if err != nil {
			b.Fatal(err)
		}
		return w
	}
	gpu, err := spec.FindGPU("H200")
	if err != nil {
		b.Fatal(err)
	}
	model, err := spec.FindModel("meta-llama/Llama-3.1-8B")
	if err != nil {
		b.Fatal(err)
	}
	prior := cost.Prior(gpu, model, harness.EngineArgs{})
	cfg := h200
	cfg.FrontEnd = prior.FrontEnd
	full, err := Run(b.Context(), cfg, prior, read(workload.TraceOptions{Concurrency: 2 * cfg.MaxNumSeqs}),
		Options{Ends: true})
	if err != nil {
		b.Fatal(err)
	}
	capacity := float64(len(full.Records)) / full.End.Seconds()
	return cfg, prior, read(workload.TraceOptions{Rate: 0.8 * capacity})
}

func BenchmarkAzure(b *testing.B) {
	cfg, timer, w := azure(b)
	for _, c := range []struct {
		name string
		opt  Options
	}{{"every-token", Options{}}, {"ends", Options{Ends: true}}} {
		b.Run(c.name, func(b *testing.B) {
			var m Runner
			n := 0
			for b.Loop() {
				if _, err := m.Run(b.Context(), cfg, timer, w, c.opt); err != nil {
					b.Fatal(err)
				}
				n += len(w.Requests)
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "requests/s")
		})
	}
}

// repeated are n requests: the workload over and over, one after the other in time.
func repeated(w *workload.Workload, n int) iter.Seq2[workload.Request, error] {
	last := slices.MaxFunc(w.Requests, func(x, y workload.Request) int { return int(x.Due - y.Due) }).Due
	period := last + last/time.Duration(len(w.Requests))
	return func(yield func(workload.Request, error) bool) {
		for i := range n {
			r := w.Requests[i%len(w.Requests)]
			r.Due += time.Duration(i/len(w.Requests)) * period
			if !yield(r, nil) {
				return
			}
		}
	}
}

// The memory of a stream does not grow with its length: go test -bench Stream -benchtime 1x -timeout 1h
func BenchmarkStream(b *testing.B) {
	cfg, timer, w := azure(b)
	heap := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	for _, n := range []int{100_000, 1_000_000, 10_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var peak uint64
			for b.Loop() {
				runtime.GC()
				var m Runner
				ended := 0
				_, err := m.Stream(b.Context(), cfg, timer, repeated(w, n), func(*workload.Record) error {
					if ended++; ended%4096 == 0 {
						metrics.Read(heap)
						peak = max(peak, heap[0].Value.Uint64())
					}
					return nil
				}, Options{})
				if err != nil || ended != n {
					b.Fatalf("%d of %d requests: %v", ended, n, err)
				}
			}
			b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "requests/s")
			b.ReportMetric(float64(peak)/(1<<20), "peak-MiB")
		})
	}
}
