//go:build !cuda

package gpu

import (
	"kvtune/cuda"
	"kvtune/kernels"
)

// Backend is an open GPU; there is none in a program that is built without the tag cuda.
type Backend struct {
	// Warm: see the documentation with the tag cuda.
	Warm bool
	// Info describes the device.
	Info cuda.Info
}

// Open returns an error that wraps cuda.ErrUnavailable.
func Open(device int) (*Backend, error) {
	_, err := cuda.Open(device)
	return nil, err
}

// Name is "gpu".
func (*Backend) Name() string { return "gpu" }

// Architecture is "".
func (*Backend) Architecture() string { return "" }

// Load returns cuda.ErrUnavailable.
func (*Backend) Load(*kernels.Inputs) (kernels.Kernel, error) { return nil, cuda.ErrUnavailable }

// Peak returns cuda.ErrUnavailable.
func (*Backend) Peak(kernels.Peak) (kernels.Kernel, float64, error) {
	return nil, 0, cuda.ErrUnavailable
}

// Close does nothing.
func (*Backend) Close() error { return nil }
