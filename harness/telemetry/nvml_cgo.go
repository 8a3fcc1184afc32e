//go:build linux && cgo

package telemetry

import (
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"kvtune/harness"
)

// OpenGPUs starts NVML. It is [ErrNoGPU] where there is nothing to ask; the caller closes what it returns.
func OpenGPUs() (GPUs, error) { return openNVML(nvml.New()) }

type nvmlGPUs struct {
	lib     nvml.Interface
	devices []nvml.Device
}

func openNVML(lib nvml.Interface) (GPUs, error) {
	switch ret := lib.Init(); ret {
	case nvml.SUCCESS:
	case nvml.ERROR_LIBRARY_NOT_FOUND, nvml.ERROR_DRIVER_NOT_LOADED, nvml.ERROR_NO_PERMISSION:
		return nil, fmt.Errorf("%w: NVML says: %s", ErrNoGPU, nvml.ErrorString(ret))
	default:
		return nil, fmt.Errorf("start NVML: %s", nvml.ErrorString(ret))
	}
	g := &nvmlGPUs{lib: lib}
	n, ret := lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		g.Close()
		return nil, fmt.Errorf("count the GPUs: %s", nvml.ErrorString(ret))
	}
	for i := range n {
		d, ret := lib.DeviceGetHandleByIndex(i)
		if ret != nvml.SUCCESS {
			g.Close()
			return nil, fmt.Errorf("open GPU %d: %s", i, nvml.ErrorString(ret))
		}
		g.devices = append(g.devices, d)
	}
	if n == 0 {
		g.Close()
		return nil, ErrNoGPU
	}
	return g, nil
}

func (g *nvmlGPUs) N() int { return len(g.devices) }

func (g *nvmlGPUs) Close() error {
	if ret := g.lib.Shutdown(); ret != nvml.SUCCESS {
		return fmt.Errorf("stop NVML: %s", nvml.ErrorString(ret))
	}
	return nil
}

func (g *nvmlGPUs) Device(i int) Device {
	d := g.devices[i]
	out := Device{
		MaxSMClock:     number(1e6)(d.GetMaxClockInfo(nvml.CLOCK_SM)),
		MaxMemoryClock: number(1e6)(d.GetMaxClockInfo(nvml.CLOCK_MEM)),
		PowerLimit:     number(1e-3)(d.GetEnforcedPowerLimit()),
		Persistence:    enabled(d.GetPersistenceMode()),
	}
	if name, ret := d.GetName(); ret == nvml.SUCCESS {
		out.Name = name
	}
	if version, ret := g.lib.SystemGetDriverVersion(); ret == nvml.SUCCESS {
		out.Driver = version
	}
	if v, ret := g.lib.SystemGetCudaDriverVersion(); ret == nvml.SUCCESS {
		out.CUDA = fmt.Sprintf("%d.%d", v/1000, v%1000/10)
	}
	if memory, ret := d.GetMemoryInfo(); ret == nvml.SUCCESS {
		out.Memory = new(float64(memory.Total))
	}
	if mode, _, ret := d.GetEccMode(); ret == nvml.SUCCESS {
		out.ECC = new(mode == nvml.FEATURE_ENABLED)
	}
	if mode, _, ret := d.GetMigMode(); ret == nvml.SUCCESS {
		out.MIG = new(mode == nvml.DEVICE_MIG_ENABLE)
	}
	return out
}

func (g *nvmlGPUs) Read(i int) GPU {
	d := g.devices[i]
	out := GPU{
		At:          time.Now(),
		SMClock:     number(1e6)(d.GetClockInfo(nvml.CLOCK_SM)),
		MemoryClock: number(1e6)(d.GetClockInfo(nvml.CLOCK_MEM)),
		Power:       number(1e-3)(d.GetPowerUsage()),
		Temperature: number(1)(d.GetTemperature(nvml.TEMPERATURE_GPU)),
	}
	if use, ret := d.GetUtilizationRates(); ret == nvml.SUCCESS {
		out.Busy, out.MemoryBusy = new(float64(use.Gpu)/100), new(float64(use.Memory)/100)
	}
	if memory, ret := d.GetMemoryInfo(); ret == nvml.SUCCESS {
		out.MemoryUsed = new(float64(memory.Used))
	}
	if running, ret := d.GetComputeRunningProcesses(); ret == nvml.SUCCESS {
		own := func(p nvml.ProcessInfo) bool { return p.Pid == uint32(os.Getpid()) }
		out.Processes = new(len(slices.DeleteFunc(running, own)))
	}
	if reasons, ret := d.GetCurrentClocksEventReasons(); ret == nvml.SUCCESS {
		out.Throttle = throttle(reasons)
		out.ClocksSet = reasons&nvml.ClocksEventReasonApplicationsClocksSetting != 0
	}
	return out
}

// throttle names the clock event reasons that make timings unfit, sorted.
func throttle(reasons uint64) []string {
	var names []string
	for _, r := range []struct {
		bit  uint64
		name string
	}{
		{nvml.ClocksThrottleReasonHwPowerBrakeSlowdown, "hardware power brake"},
		{nvml.ClocksThrottleReasonHwSlowdown, "hardware slowdown"},
		{nvml.ClocksThrottleReasonHwThermalSlowdown, "hardware thermal slowdown"},
		{nvml.ClocksEventReasonSwPowerCap, harness.PowerCap},
		{nvml.ClocksEventReasonReliability, "reliability voltage"},
		{nvml.ClocksEventReasonSwThermalSlowdown, "software thermal slowdown"},
		{nvml.ClocksEventReasonSyncBoost, "sync boost"},
	} {
		if reasons&r.bit != 0 {
			names = append(names, r.name)
		}
	}
	return names
}

// number keeps what NVML told, in base units; nil where it told nothing.
func number(scale float64) func(uint32, nvml.Return) *float64 {
	return func(v uint32, ret nvml.Return) *float64 {
		if ret != nvml.SUCCESS {
			return nil
		}
		return new(float64(v) * scale)
	}
}

func enabled(state nvml.EnableState, ret nvml.Return) *bool {
	if ret != nvml.SUCCESS {
		return nil
	}
	return new(state == nvml.FEATURE_ENABLED)
}
