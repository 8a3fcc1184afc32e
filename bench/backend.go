package bench

import (
	"errors"
	"fmt"

	"kvtune/cuda"
	"kvtune/harness/telemetry"
	"kvtune/kernels"
	"kvtune/kernels/gpu"
)

// Machine is an open backend with what it runs on.
type Machine struct {
	Backend kernels.Backend
	// Device is the processor or the GPU, by name.
	Device string
	// Large says that the device wants large cases ([Base]), Ceiling how much to read and copy for the ceilings, in bytes.
	Large   bool
	Ceiling int64
	// Note says why a backend was chosen; "" where it was asked for.
	Note string
	// Probe reads the GPU's state; nil on the host.
	Probe func() (telemetry.GPU, error)
	Close func() error
}

// Open opens a backend: "host"; "cuda", the first GPU; or "auto", the GPU where there is one, else the host. cold as in
// [Options].
func Open(name string, cold bool) (*Machine, error) {
	switch name {
	case "host":
		return openHost()
	case "cuda":
		return openGPU(cold)
	case "auto":
		m, err := openGPU(cold)
		if !errors.Is(err, cuda.ErrUnavailable) {
			return m, err
		}
		if m, e := openHost(); e == nil {
			m.Note = fmt.Sprintf("no GPU: %v; the host's processor is measured", err)
			return m, nil
		}
		return nil, err
	}
	return nil, fmt.Errorf("backend %q is unknown: expected auto, cuda or host", name)
}

func openGPU(cold bool) (*Machine, error) {
	b, err := gpu.Open(0)
	if err != nil {
		return nil, err
	}
	b.Warm = !cold
	m := &Machine{Backend: b, Device: b.Info.Name, Large: true, Ceiling: 2 << 30, Close: b.Close}
	gpus, err := telemetry.OpenGPUs()
	switch {
	case errors.Is(err, telemetry.ErrNoGPU): // a device without NVML, as on some boards
		m.Note = fmt.Sprintf("clocks and throttling are not observed: %v", err)
	case err != nil:
		return nil, errors.Join(err, b.Close())
	default:
		m.Probe = func() (telemetry.GPU, error) { return gpus.Read(0), nil }
		m.Close = func() error { return errors.Join(gpus.Close(), b.Close()) }
	}
	return m, nil
}
