//go:build cgo

package bench

import (
	"fmt"

	"kvtune/harness/telemetry"
	"kvtune/kernels/host"
)

func openHost() (*Machine, error) {
	b, err := host.Open(host.Options{})
	if err != nil {
		return nil, err
	}
	device, err := telemetry.Host()
	if err != nil {
		b.Close()
		return nil, err
	}
	return &Machine{Backend: b, Device: fmt.Sprintf("%s; %s, %d threads", device, b.Variant(), b.Threads()),
		Close: func() error { b.Close(); return nil }}, nil
}
