package telemetry

import (
	"errors"
	"time"
)

// ErrNoGPU is returned where no GPU can be asked: no NVIDIA driver on the machine, no device, or a build without cgo.
var ErrNoGPU = errors.New("no NVIDIA driver (NVML) or no device on this machine")

// GPUs asks the devices of this machine through NVML, in NVML's order (that of the PCI bus). It is safe for concurrent
// use. [OpenGPUs] opens it.
type GPUs interface {
	// N is the number of devices, at least 1.
	N() int
	// Device describes device i.
	Device(i int) Device
	// Read samples device i; it takes about a millisecond, so it belongs between timed parts.
	Read(i int) GPU
	// Close ends the asking.
	Close() error
}

// Device is a GPU and what stays the same while it runs. A nil or empty field was not told: drivers and virtual devices
// leave some out.
type Device struct {
	// Name is the product's, e.g. "NVIDIA H200".
	Name string `json:"name"`
	// Driver is the driver's version, CUDA the newest CUDA version that it runs, e.g. "13.0".
	Driver string `json:"driver"`
	CUDA   string `json:"cuda"`
	// MaxSMClock and MaxMemoryClock are in Hz, Memory in bytes, PowerLimit in W.
	MaxSMClock     *float64 `json:"max_sm_clock_hz"`
	MaxMemoryClock *float64 `json:"max_memory_clock_hz"`
	Memory         *float64 `json:"memory_bytes"`
	PowerLimit     *float64 `json:"power_limit_w"`
	// Persistence: the driver stays loaded when nobody uses the device. ECC: memory is error-corrected. MIG: the device
	// is cut into slices.
	Persistence *bool `json:"persistence"`
	ECC         *bool `json:"ecc"`
	MIG         *bool `json:"mig"`
}

// GPU is what NVML tells of one device at one moment. A nil field was not told.
type GPU struct {
	At time.Time `json:"at"`
	// SMClock and MemoryClock are in Hz.
	SMClock     *float64 `json:"sm_clock_hz"`
	MemoryClock *float64 `json:"memory_clock_hz"`
	// Power is in W, Temperature in degrees Celsius.
	Power       *float64 `json:"power_w"`
	Temperature *float64 `json:"temperature_c"`
	// Busy and MemoryBusy are the shares of NVML's last period in which a kernel ran and device memory was used, 0..1.
	Busy       *float64 `json:"busy"`
	MemoryBusy *float64 `json:"memory_busy"`
	// MemoryUsed is in bytes.
	MemoryUsed *float64 `json:"memory_used_bytes"`
	// Processes is how many other processes hold a compute context on the device. In a container NVML counts this
	// process among them, because it knows it by another number.
	Processes *int `json:"other_processes"`
	// Throttle names, sorted, what keeps the clocks down and so makes timings unfit: NVML's clock event reasons without
	// the device being idle and without clocks that somebody has set. [harness.PowerCap] is among them.
	Throttle []string `json:"throttle,omitempty"`
	// ClocksSet: the clocks are held at values that somebody has set.
	ClocksSet bool `json:"clocks_set,omitempty"`
}
