package telemetry

import (
	"maps"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shirou/gopsutil/v4/cpu"

	"kvtune/harness"
)

func TestHost(t *testing.T) {
	text, err := Host()
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{" cores, ", " GiB, ", "kernel "} {
		if !strings.Contains(text, part) {
			t.Errorf("%q lacks %q", text, part)
		}
	}
	if name, err := os.Hostname(); err == nil && len(name) > 3 && strings.Contains(text, name) {
		t.Errorf("%q tells the machine's name", text)
	}
}

func TestBusy(t *testing.T) {
	from := cpu.TimesStat{User: 10, System: 5, Idle: 100, Iowait: 5}
	to := cpu.TimesStat{User: 12, System: 6, Idle: 106, Iowait: 6}
	if share, ok := busy(from, to); !ok || math.Abs(share-0.3) > 1e-12 {
		t.Errorf("busy = %v, %v, want 3 of 10", share, ok)
	}
	if _, ok := busy(to, to); ok {
		t.Error("a share of no time")
	}
	// Counters of a virtual machine may run backwards a little.
	if share, ok := busy(from, cpu.TimesStat{User: 20, System: 5, Idle: 99, Iowait: 5}); !ok || share != 1 {
		t.Errorf("idle time running backwards: %v, %v", share, ok)
	}
}

func TestWatch(t *testing.T) {
	start := time.Now()
	samples := Watch(time.Hour, start, nil).Stop() // however short: one sample at the begin, one at the end
	var memory int
	for i, s := range samples {
		if s.T < 0 || i > 0 && s.T < samples[i-1].T {
			t.Errorf("sample %d at %v", i, s.T)
		}
		switch s.Metric {
		case harness.SeriesHostMemory:
			memory++
			if s.Value < 1<<20 {
				t.Errorf("%v bytes of memory in use", s.Value)
			}
		case harness.SeriesHostCPU:
			if s.Value < 0 || s.Value > 1 {
				t.Errorf("processor use %v, want 0..1", s.Value)
			}
		default:
			t.Errorf("series %q", s.Metric)
		}
	}
	if memory != 2 {
		t.Errorf("%d samples of memory, want 2", memory)
	}
}

type twoGPUs struct{ reads int }

func (g *twoGPUs) N() int            { return 2 }
func (g *twoGPUs) Device(int) Device { return Device{} }
func (g *twoGPUs) Close() error      { return nil }
func (g *twoGPUs) Read(i int) GPU {
	g.reads++
	if i == 0 { // idle
		return GPU{MemoryUsed: new(1e9), Power: new(60.0), Busy: new(0.0)}
	}
	return GPU{MemoryUsed: new(7e10), Power: new(650.0), Busy: new(0.97), Throttle: []string{harness.PowerCap}}
}

// Of several devices the one that serves is sampled; what NVML does not tell has no sample.
func TestWatchGPUs(t *testing.T) {
	gpus := new(twoGPUs)
	got := map[string]float64{}
	for _, s := range Watch(time.Hour, time.Now(), gpus).Stop() {
		if strings.HasPrefix(s.Metric, "gpu_") {
			got[s.Metric] = s.Value
		}
	}
	want := map[string]float64{harness.SeriesGPUPower: 650, harness.SeriesGPUBusy: 0.97,
		harness.SeriesGPUThrottled + harness.PowerCap: 1}
	if gpus.reads != 4 || !maps.Equal(got, want) {
		t.Errorf("%d readings, %v, want %v", gpus.reads, got, want)
	}
}
