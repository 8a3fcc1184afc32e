package telemetry

import (
	"errors"
	"time"
)

// ErrNoGPU is returned where no GPU can be asked: no NVIDIA driver on the machine, no device, or a build without cgo.
var ErrNoGPU = errors.New("no GPU to ask: kvtune finds no NVIDIA driver (NVML) or no device on this machine")

// GPU is what NVML tells of one device at one moment. A nil field was not told: drivers and virtual devices leave some
// out.
type GPU struct {
	At time.Time `json:"at"`
	// SMClock and MemoryClock are in Hz.
	SMClock     *float64 `json:"sm_clock_hz"`
	MemoryClock *float64 `json:"memory_clock_hz"`
	// Power is in W, Temperature in degrees Celsius.
	Power       *float64 `json:"power_w"`
	Temperature *float64 `json:"temperature_c"`
	// Busy and MemoryBusy are the shares of the last NVML period in which a kernel ran and device memory moved, 0..1.
	Busy       *float64 `json:"busy"`
	MemoryBusy *float64 `json:"memory_busy"`
	// MemoryUsed is in bytes.
	MemoryUsed *float64 `json:"memory_used_bytes"`
	// Processes is how many other processes hold a context on the device.
	Processes *int `json:"other_processes"`
	// Throttle names why the clocks are below what was asked for, NVML's clock event reasons, for what makes timings
	// unfit: power and temperature limits, hardware slowdown. Idle and application clocks are no such reason.
	Throttle []string `json:"throttle,omitempty"`
}

// Device is a GPU and what stays the same while it runs.
type Device struct {
	// Name is the product's, e.g. "NVIDIA H200".
	Name string `json:"name"`
	// Driver is the driver's version, CUDA the newest CUDA version that it runs, e.g. "13.0".
	Driver string `json:"driver"`
	CUDA   string `json:"cuda"`
	// MaxSMClock and MaxMemoryClock are in Hz, Memory in bytes, PowerLimit in W; nil as in GPU.
	MaxSMClock     *float64 `json:"max_sm_clock_hz"`
	MaxMemoryClock *float64 `json:"max_memory_clock_hz"`
	Memory         *float64 `json:"memory_bytes"`
	PowerLimit     *float64 `json:"power_limit_w"`
	// Persistence: the driver stays loaded when nobody uses the device. ECC: memory is error-corrected. MIG: the device is
	// a slice or is cut into slices.
	Persistence *bool `json:"persistence"`
	ECC         *bool `json:"ecc"`
	MIG         *bool `json:"mig"`
}
