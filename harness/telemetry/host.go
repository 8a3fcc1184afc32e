// Package telemetry samples the machine that kvtune runs on and describes it for a result's conditions.
//
// [Host] is the description, [Watch] the samples of the host over time, [OpenGPUs] those of the GPUs, and
// [ReadEnvironment] all of it with what makes the machine unfit to measure.
package telemetry

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/shirou/gopsutil/v4/host"
	"github.com/shirou/gopsutil/v4/mem"

	"kvtune/harness"
)

// Host describes the machine: processor, cores, memory, system. Its name on the network is not in it. In a container it
// is the machine below, whose share the container has may be smaller.
func Host() (string, error) {
	processors, err := cpu.Info()
	if err != nil {
		return "", fmt.Errorf("read the processor: %w", err)
	}
	cores, err := cpu.Counts(true)
	if err != nil {
		return "", fmt.Errorf("count the cores: %w", err)
	}
	memory, err := mem.VirtualMemory()
	if err != nil {
		return "", fmt.Errorf("read the memory: %w", err)
	}
	platform, _, version, err := host.PlatformInformation()
	if err != nil {
		return "", fmt.Errorf("read the system: %w", err)
	}
	kernel, err := host.KernelVersion()
	if err != nil {
		return "", fmt.Errorf("read the kernel: %w", err)
	}
	model := "unknown processor"
	if len(processors) > 0 && strings.TrimSpace(processors[0].ModelName) != "" {
		model = strings.Join(strings.Fields(processors[0].ModelName), " ")
	}
	return fmt.Sprintf("%s, %d cores, %.1f GiB, %s %s, kernel %s", model, cores, float64(memory.Total)/(1<<30), platform,
		version, kernel), nil
}

// Watcher samples until it is stopped.
type Watcher struct {
	gpus       GPUs // nil: none are sampled
	stop, done chan struct{}
	start      time.Time
	samples    []harness.Sample
	last       cpu.TimesStat // of the sample before; valid when seen
	seen       bool
}

// Watch samples the host every so often, and once more at the end: [harness.SeriesHostCPU] as the mean since the sample
// before and [harness.SeriesHostMemory]; and of gpus, unless it is nil, the one whose memory is fullest: the device
// that serves, or one of equals. Times are from start. What the system does not tell is left out. every is above 0; the
// caller closes gpus after Stop.
func Watch(every time.Duration, start time.Time, gpus GPUs) *Watcher {
	w := &Watcher{gpus: gpus, stop: make(chan struct{}), done: make(chan struct{}), start: start}
	go func() {
		defer close(w.done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		w.sample()
		for {
			select {
			case <-tick.C:
				w.sample()
			case <-w.stop:
				w.sample()
				return
			}
		}
	}()
	return w
}

// Stop ends the sampling and returns the samples in order of time. It is called once.
func (w *Watcher) Stop() []harness.Sample {
	close(w.stop)
	<-w.done
	return w.samples
}

func (w *Watcher) sample() {
	at := time.Since(w.start)
	if memory, err := mem.VirtualMemory(); err == nil {
		// What an application could not get: caches that the system gives back are not in it.
		w.samples = append(w.samples, harness.Sample{T: at, Metric: harness.SeriesHostMemory,
			Value: float64(memory.Total - memory.Available)})
	}
	if w.gpus != nil {
		w.samples = append(w.samples, fullest(w.gpus).samples(at)...)
	}
	times, err := cpuTimes()
	if err != nil {
		return
	}
	if share, ok := busy(w.last, times); w.seen && ok {
		w.samples = append(w.samples, harness.Sample{T: at, Metric: harness.SeriesHostCPU, Value: share})
	} else if w.seen {
		return // no time has passed on the system's clock: keep the earlier moment
	}
	w.last, w.seen = times, true
}

// fullest reads the device with the most memory in use.
func fullest(gpus GPUs) GPU {
	var best GPU
	for i := range gpus.N() {
		g := gpus.Read(i)
		if i == 0 || g.MemoryUsed != nil && (best.MemoryUsed == nil || *g.MemoryUsed > *best.MemoryUsed) {
			best = g
		}
	}
	return best
}

// samples are the reading as points of series.
func (g GPU) samples(at time.Duration) []harness.Sample {
	var all []harness.Sample
	for _, q := range []struct {
		metric string
		value  *float64
	}{
		{harness.SeriesGPUSMClock, g.SMClock}, {harness.SeriesGPUMemoryClock, g.MemoryClock},
		{harness.SeriesGPUPower, g.Power}, {harness.SeriesGPUTemperature, g.Temperature},
		{harness.SeriesGPUBusy, g.Busy}, {harness.SeriesGPUMemoryBusy, g.MemoryBusy},
	} {
		if q.value != nil {
			all = append(all, harness.Sample{T: at, Metric: q.metric, Value: *q.value})
		}
	}
	for _, reason := range g.Throttle {
		all = append(all, harness.Sample{T: at, Metric: harness.SeriesGPUThrottled + reason, Value: 1})
	}
	return all
}

func cpuTimes() (cpu.TimesStat, error) {
	all, err := cpu.Times(false)
	if err != nil {
		return cpu.TimesStat{}, err
	}
	if len(all) == 0 {
		return cpu.TimesStat{}, errors.New("the system gives no processor times")
	}
	return all[0], nil
}

// busy is the share of all cores' time between two readings that was not idle; ok is false when no time has passed.
// Guest time is in user time already, and waiting for input or output is idle.
func busy(from, to cpu.TimesStat) (share float64, ok bool) {
	all := total(to) - total(from)
	if !(all > 0) {
		return 0, false
	}
	idle := to.Idle + to.Iowait - from.Idle - from.Iowait
	return min(max(1-idle/all, 0), 1), true
}

func total(t cpu.TimesStat) float64 {
	return t.User + t.System + t.Nice + t.Irq + t.Softirq + t.Steal + t.Idle + t.Iowait
}
