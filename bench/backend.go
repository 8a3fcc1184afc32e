package bench

import (
	"errors"
	"fmt"

	"kvtune/cuda"
	"kvtune/harness/telemetry"
	"kvtune/kernels"
	"kvtune/kernels/gpu"
	"kvtune/kernels/vllm"
)

// Machine is an open backend with what it runs on.
type Machine struct {
	Backend kernels.Backend
	// Limits measures the ceilings; nil is Backend.
	Limits kernels.Backend
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
// [Options]. [OpenVLLM] opens one more.
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
	return nil, fmt.Errorf("backend %q is unknown: expected auto, cuda, host or vllm", name)
}

func openGPU(cold bool) (*Machine, error) {
	b, err := gpu.Open(0)
	if err != nil {
		return nil, err
	}
	b.Warm = !cold
	m := &Machine{Backend: b, Device: b.Info.Name, Large: true, Ceiling: 2 << 30, Close: b.Close}
	return m, m.watch()
}

// OpenVLLM opens the kernels of the vLLM that python imports. Ceilings are those of the backend "cuda", on the same GPU
// in the same run, where the program has it.
func OpenVLLM(python string, cold bool) (*Machine, error) {
	b, err := vllm.Open(python, !cold)
	if err != nil {
		return nil, err
	}
	m := &Machine{Backend: b, Large: true, Ceiling: 2 << 30, Close: b.Close,
		Device: fmt.Sprintf("%s; %s of vLLM %s, torch %s", b.Device, b.Attention, b.VLLM, b.Torch)}
	limits, err := gpu.Open(0)
	switch {
	case errors.Is(err, cuda.ErrUnavailable):
		m.Note = fmt.Sprintf("no ceilings: %v", err)
	case err != nil:
		return nil, errors.Join(err, b.Close())
	default:
		limits.Warm = !cold
		m.Limits = limits
		m.Close = func() error { return errors.Join(limits.Close(), b.Close()) }
	}
	return m, m.watch()
}

// watch reads the GPU's state while the machine is open. Where that fails it closes the machine.
func (m *Machine) watch() error {
	gpus, err := telemetry.OpenGPUs()
	switch {
	case errors.Is(err, telemetry.ErrNoGPU): // a device without NVML, as on some boards
		note := fmt.Sprintf("clocks and throttling are not observed: %v", err)
		if m.Note != "" {
			note = m.Note + "; " + note
		}
		m.Note = note
	case err != nil:
		return errors.Join(err, m.Close())
	default:
		closed := m.Close
		m.Probe = func() (telemetry.GPU, error) { return gpus.Read(0), nil }
		m.Close = func() error { return errors.Join(gpus.Close(), closed()) }
	}
	return nil
}
