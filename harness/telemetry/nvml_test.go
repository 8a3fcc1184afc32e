//go:build linux && cgo

package telemetry

import (
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
)

// device is an H200 as NVML tells of it under load: one other process, power cap.
func device() *mock.Device {
	const success = nvml.SUCCESS
	return &mock.Device{
		GetNameFunc: func() (string, nvml.Return) { return "NVIDIA H200", success },
		GetClockInfoFunc: func(c nvml.ClockType) (uint32, nvml.Return) {
			return map[nvml.ClockType]uint32{nvml.CLOCK_SM: 1755, nvml.CLOCK_MEM: 3201}[c], success
		},
		GetMaxClockInfoFunc: func(c nvml.ClockType) (uint32, nvml.Return) {
			return map[nvml.ClockType]uint32{nvml.CLOCK_SM: 1980, nvml.CLOCK_MEM: 3201}[c], success
		},
		GetPowerUsageFunc:         func() (uint32, nvml.Return) { return 698500, success },
		GetEnforcedPowerLimitFunc: func() (uint32, nvml.Return) { return 700000, success },
		GetTemperatureFunc:        func(nvml.TemperatureSensors) (uint32, nvml.Return) { return 61, success },
		GetUtilizationRatesFunc: func() (nvml.Utilization, nvml.Return) {
			return nvml.Utilization{Gpu: 98, Memory: 40}, success
		},
		GetMemoryInfoFunc: func() (nvml.Memory, nvml.Return) {
			return nvml.Memory{Total: 141 << 30, Used: 20 << 30}, success
		},
		GetComputeRunningProcessesFunc: func() ([]nvml.ProcessInfo, nvml.Return) {
			return []nvml.ProcessInfo{{Pid: uint32(os.Getpid())}, {Pid: 1}}, success
		},
		GetCurrentClocksEventReasonsFunc: func() (uint64, nvml.Return) {
			return nvml.ClocksEventReasonSwPowerCap | nvml.ClocksThrottleReasonHwSlowdown | nvml.ClocksEventReasonGpuIdle,
				success
		},
		GetPersistenceModeFunc: func() (nvml.EnableState, nvml.Return) { return nvml.FEATURE_DISABLED, success },
		GetEccModeFunc: func() (nvml.EnableState, nvml.EnableState, nvml.Return) {
			return nvml.FEATURE_ENABLED, nvml.FEATURE_ENABLED, success
		},
		GetMigModeFunc: func() (int, int, nvml.Return) { return 0, 0, nvml.ERROR_NOT_SUPPORTED },
	}
}

func library(d nvml.Device) *mock.Interface {
	return &mock.Interface{
		InitFunc:                       func() nvml.Return { return nvml.SUCCESS },
		ShutdownFunc:                   func() nvml.Return { return nvml.SUCCESS },
		DeviceGetCountFunc:             func() (int, nvml.Return) { return 1, nvml.SUCCESS },
		DeviceGetHandleByIndexFunc:     func(int) (nvml.Device, nvml.Return) { return d, nvml.SUCCESS },
		SystemGetDriverVersionFunc:     func() (string, nvml.Return) { return "580.159", nvml.SUCCESS },
		SystemGetCudaDriverVersionFunc: func() (int, nvml.Return) { return 13000, nvml.SUCCESS },
	}
}

func TestGPU(t *testing.T) {
	gpus, err := openNVML(library(device()))
	if err != nil {
		t.Fatal(err)
	}
	d, now := gpus.Device(0), gpus.Read(0)
	if d.Name != "NVIDIA H200" || d.Driver != "580.159" || d.CUDA != "13.0" || *d.MaxSMClock != 1.98e9 ||
		*d.Memory != 141<<30 || *d.PowerLimit != 700 || *d.Persistence || !*d.ECC || d.MIG != nil {
		t.Errorf("device %+v", d)
	}
	if *now.SMClock != 1.755e9 || *now.MemoryClock != 3.201e9 || *now.Power != 698.5 || *now.Temperature != 61 ||
		*now.Busy != 0.98 || *now.MemoryBusy != 0.4 || *now.MemoryUsed != 20<<30 || now.ClocksSet {
		t.Errorf("sample %+v", now)
	}
	if *now.Processes != 1 {
		t.Errorf("%d other processes, want 1: this one does not count", *now.Processes)
	}
	if want := []string{"hardware slowdown", "power cap"}; !slices.Equal(now.Throttle, want) {
		t.Errorf("throttle reasons %q, want %q: being idle is none", now.Throttle, want)
	}
	if err := gpus.Close(); err != nil {
		t.Error(err)
	}
}

// TestGPUNotTold: what a device does not tell is nil, not 0.
func TestGPUNotTold(t *testing.T) {
	d := device()
	d.GetPowerUsageFunc = func() (uint32, nvml.Return) { return 0, nvml.ERROR_NOT_SUPPORTED }
	d.GetComputeRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) { return nil, nvml.ERROR_NO_PERMISSION }
	gpus, err := openNVML(library(d))
	if err != nil {
		t.Fatal(err)
	}
	if now := gpus.Read(0); now.Power != nil || now.Processes != nil {
		t.Errorf("sample %+v", now)
	}
}

func TestNoGPU(t *testing.T) {
	for name, change := range map[string]func(*mock.Interface){
		"no driver": func(l *mock.Interface) { l.InitFunc = func() nvml.Return { return nvml.ERROR_LIBRARY_NOT_FOUND } },
		"no device": func(l *mock.Interface) {
			l.DeviceGetCountFunc = func() (int, nvml.Return) { return 0, nvml.SUCCESS }
		},
	} {
		lib := library(device())
		change(lib)
		if _, err := openNVML(lib); !errors.Is(err, ErrNoGPU) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
