//go:build !linux || !cgo

package telemetry

import "fmt"

// OpenGPUs is [ErrNoGPU]: NVML needs Linux and a build with cgo.
func OpenGPUs() (GPUs, error) {
	return nil, fmt.Errorf("%w: this kvtune was built without cgo", ErrNoGPU)
}
