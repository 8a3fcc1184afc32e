package telemetry

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shirou/gopsutil/v4/load"

	"kvtune/harness/stats"
)

// Environment is what a measurement is taken in.
type Environment struct {
	// Host is the machine, as [Host] says it.
	Host string `json:"host"`
	// GPUs are the devices and their state; NoGPU says why there are none.
	GPUs  []DeviceState `json:"gpus"`
	NoGPU string        `json:"no_gpu,omitempty"`
	// Governors are the different CPU frequency governors; empty where the system tells of none, as most virtual machines.
	Governors []string `json:"cpu_governors,omitempty"`
	// Load is the mean number of running tasks over the last minute; nil where it is not told.
	Load *float64 `json:"load_average"`
	// Quota is how many cores the container may use, nil where there is no limit.
	Quota *float64 `json:"cpu_quota"`
	// Noise is how much longer than the median the slowest twentieth of a fixed piece of work took, 0..: what others on
	// the machine, interrupts and changing clocks do to a timing. Steal is the share of processor time that the machine
	// below took meanwhile; nil where it is not told.
	Noise float64  `json:"host_noise"`
	Steal *float64 `json:"host_steal"`
	// Unfit is what makes the machine unfit to measure, worst first.
	Unfit []Finding `json:"unfit"`
}

// DeviceState is a device with a sample of it.
type DeviceState struct {
	Device Device `json:"device"`
	Now    GPU    `json:"now"`
}

// Finding is something that makes a machine unfit to measure, and what to do about it.
type Finding struct {
	What string `json:"what"`
	Do   string `json:"do"`
}

// noiseTime is how long the host's noise is measured.
const noiseTime = 500 * time.Millisecond

// ReadEnvironment looks at the machine; it keeps one core busy for half a second to measure its noise. A machine
// without a GPU is no error.
func ReadEnvironment() (*Environment, error) {
	gpus, err := OpenGPUs()
	if err != nil && !errors.Is(err, ErrNoGPU) {
		return nil, err
	}
	e := &Environment{GPUs: []DeviceState{}}
	if err != nil {
		e.NoGPU = err.Error()
	} else {
		defer gpus.Close()
		for i := range gpus.N() {
			e.GPUs = append(e.GPUs, DeviceState{gpus.Device(i), gpus.Read(i)})
		}
	}
	if e.Host, err = Host(); err != nil {
		return nil, err
	}
	if avg, err := load.Avg(); err == nil {
		e.Load = &avg.Load1
	}
	e.Governors = governors("/sys/devices/system/cpu")
	e.Quota = quota("/sys/fs/cgroup/cpu.max")
	e.Noise, e.Steal = noise(noiseTime)
	e.Unfit = e.judge(runtime.NumCPU())
	return e, nil
}

// governors are the different frequency governors of the cores under dir, sorted.
func governors(dir string) []string {
	files, err := filepath.Glob(filepath.Join(dir, "cpu[0-9]*", "cpufreq", "scaling_governor"))
	if err != nil {
		return nil // the pattern is fixed
	}
	var names []string
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil {
			names = append(names, strings.TrimSpace(string(text)))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// quota reads a cgroup's "quota period" in microseconds as a number of cores; nil for "max" and where there is no file.
func quota(file string) *float64 {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	fields := strings.Fields(string(text))
	if len(fields) != 2 {
		return nil
	}
	limit, err1 := strconv.ParseFloat(fields[0], 64)
	period, err2 := strconv.ParseFloat(fields[1], 64)
	if err1 != nil || err2 != nil || !(period > 0) {
		return nil
	}
	return new(limit / period)
}

// noise repeats a fixed piece of work of about 50 microseconds for so long.
func noise(length time.Duration) (excess float64, steal *float64) {
	before, errBefore := cpuTimes()
	var seconds []float64
	state := uint64(1)
	for begin := time.Now(); time.Since(begin) < length; {
		at := time.Now()
		for range 50_000 { // a chain of multiplications: no core does it faster side by side
			state = state*6364136223846793005 + 1442695040888963407
		}
		seconds = append(seconds, time.Since(at).Seconds())
	}
	runtime.KeepAlive(state)
	after, errAfter := cpuTimes()
	if errBefore == nil && errAfter == nil {
		steal = share(after.Steal-before.Steal, total(after)-total(before))
	}
	s := stats.New(seconds)
	return s.Percentile(95)/s.Median() - 1, steal
}

// judge says what makes the machine with so many cores unfit.
func (e *Environment) judge(cores int) []Finding {
	found := []Finding{}
	add := func(do, what string, args ...any) { found = append(found, Finding{fmt.Sprintf(what, args...), do}) }
	for i, g := range e.GPUs {
		e.judgeGPU(i, g, add)
	}
	if e.Noise > 0.05 {
		add("stop what else runs here, or pin to cores of your own; compare by interleaved runs (kvtune compare --run)",
			"the host is noisy: a twentieth of a fixed piece of work took %.0f %% or more longer than its median", 100*e.Noise)
	}
	if e.Steal != nil && *e.Steal > 0.01 {
		add("use a machine with cores of its own", "the machine below took %.1f %% of the processor time", 100**e.Steal)
	}
	if e.Load != nil && *e.Load > max(0.5, 0.1*float64(cores)) {
		add("wait until the machine is idle", "load average is %.1f on %d cores", *e.Load, cores)
	}
	if e.Quota != nil && *e.Quota < float64(cores) {
		add("raise the container's limit, or use no more threads than that",
			"the container may use %.3g of %d cores: threads beyond that are stopped in the middle of a measurement",
			*e.Quota, cores)
	}
	if slices.ContainsFunc(e.Governors, func(name string) bool { return name != "performance" }) {
		add("cpupower frequency-set -g performance", "CPU governor is %s: clocks follow the load",
			strings.Join(e.Governors, ", "))
	}
	return found
}

func (e *Environment) judgeGPU(i int, g DeviceState, add func(do, what string, args ...any)) {
	is := func(v *bool, want bool) bool { return v != nil && *v == want }
	if len(g.Now.Throttle) > 0 {
		add("let it cool, or raise its power limit; throttled samples are flagged in every result",
			"GPU %d is throttled: %s", i, strings.Join(g.Now.Throttle, ", "))
	}
	if g.Now.Processes != nil && *g.Now.Processes > 0 {
		add("stop them, or choose another device with CUDA_VISIBLE_DEVICES", "GPU %d has other processes: %d", i,
			*g.Now.Processes)
	}
	if g.Now.Busy != nil && *g.Now.Busy > 0.05 {
		add("wait until it is idle", "GPU %d is busy: a kernel ran in %.0f %% of the time", i, 100**g.Now.Busy)
		// An idle device lowers its clocks, which says nothing.
		if low := ratio(g.Now.SMClock, g.Device.MaxSMClock); low < 0.9 {
			add("nvidia-smi -rgc, and see what keeps them low", "GPU %d: SM clock is at %.0f %% of its maximum", i, 100*low)
		}
		if low := ratio(g.Now.MemoryClock, g.Device.MaxMemoryClock); low < 0.99 {
			add("nvidia-smi -rmc", "GPU %d: memory clock is at %.0f %% of its maximum", i, 100*low)
		}
	}
	if g.Now.ClocksSet {
		add("nvidia-smi -rac, unless they were set for this measurement", "GPU %d: its clocks are held at set values", i)
	}
	if is(g.Device.MIG, true) {
		add("nvidia-smi -mig 0, or read bandwidths as those of a slice", "GPU %d is cut into slices (MIG)", i)
	}
	if is(g.Device.Persistence, false) {
		add("nvidia-smi -pm 1", "GPU %d: persistence mode is off: the driver starts anew with every process", i)
	}
	if is(g.Device.ECC, false) {
		add("nvidia-smi -e 1 where figures are to be compared with a data centre's",
			"GPU %d: ECC is off: its memory is faster than where it is on", i)
	}
}

// ratio is a / b; 1 where either is not told.
func ratio(a, b *float64) float64 {
	if a == nil || b == nil || !(*b > 0) {
		return 1
	}
	return *a / *b
}

// share is a part of a positive whole, nil without one.
func share(part, whole float64) *float64 {
	if !(whole > 0) {
		return nil
	}
	return new(min(max(part/whole, 0), 1))
}
