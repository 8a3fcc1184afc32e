//go:build cuda

package gpu

import (
	"embed"
	"errors"
	"fmt"

	"kvtune/cuda"
	"kvtune/kernels"
)

//go:embed all:image
var images embed.FS

// Backend is an open GPU. It is used by one goroutine at a time.
type Backend struct {
	// Warm lets every launch work on the same memory. Otherwise launches take copies of the inputs in turn, together at
	// least four times the L2 cache, so that each finds its data in the device's memory.
	Warm bool
	// Info describes the device.
	Info    cuda.Info
	device  *cuda.Device
	modules map[string]*cuda.Module // by source: decode, prefill, move
}

// Open opens the device with a number of 0 or more and loads the kernels.
func Open(device int) (*Backend, error) {
	d, err := cuda.Open(device)
	if err != nil {
		return nil, err
	}
	b := &Backend{Info: d.Info, device: d, modules: map[string]*cuda.Module{}}
	for _, source := range []string{"decode", "prefill", "move"} {
		image, err := images.ReadFile("image/" + source + ".fatbin")
		if err != nil {
			err = fmt.Errorf("%w: the kernels are not compiled: run make cuda", cuda.ErrUnavailable)
			return nil, errors.Join(err, b.Close())
		}
		if b.modules[source], err = d.Module(image); err != nil {
			delete(b.modules, source)
			return nil, errors.Join(fmt.Errorf("kernels of %s.cu: %w", source, err), b.Close())
		}
	}
	return b, nil
}

// Name is "gpu".
func (*Backend) Name() string { return "gpu" }

// Close gives the device back.
func (b *Backend) Close() (err error) {
	for _, m := range b.modules {
		err = errors.Join(err, m.Close())
	}
	return errors.Join(err, b.device.Close())
}

// Load copies the inputs to the device, as often as launches are to take turns, and prepares the launches.
func (b *Backend) Load(in *kernels.Inputs) (kernels.Kernel, error) {
	if err := in.Case.Validate(); err != nil {
		return nil, err
	}
	k := &Kernel{}
	l := &loader{b: b, k: k, in: in}
	steps := l.load()
	if l.err == nil {
		k.series, l.err = b.device.Series(steps)
	}
	if l.err != nil {
		return nil, errors.Join(fmt.Errorf("case %s: %w", in.Case.Name(), l.err), k.Close())
	}
	return k, nil
}

// Nothing is a kernel that does nothing: what a launch costs.
func (b *Backend) Nothing() (kernels.Kernel, error) {
	f, err := b.modules["move"].Function("empty")
	if err != nil {
		return nil, err
	}
	k := &Kernel{}
	launch := cuda.Launch{Function: f, Block: [3]int{1}, Arguments: cuda.ArgumentsOf(arrays{})}
	k.series, err = b.device.Series([][]cuda.Op{{launch}})
	return k, err
}

// Kernel is a case on the device.
type Kernel struct {
	series *cuda.Series
	graphs *cuda.Series // of launches launches
	per    int          // launches in one of graphs
	output func() (kernels.Output, error)
	memory []*cuda.Memory
}

// Run launches the kernel n times back to back, beginning with the first copy of the inputs.
func (k *Kernel) Run(n int) error {
	k.series.Restart()
	return k.series.Run(n)
}

// Output copies out what the last run left.
func (k *Kernel) Output() (kernels.Output, error) {
	if k.output == nil {
		return kernels.Output{}, nil
	}
	return k.output()
}

// Series takes samples of launches each, a sample being one CUDA graph between two events, and returns their seconds.
func (k *Kernel) Series(samples, launches int) ([]float64, error) {
	if k.graphs == nil || k.per != launches {
		if k.graphs != nil {
			if err := k.graphs.Close(); err != nil {
				return nil, err
			}
			k.graphs = nil
		}
		graphs, err := k.series.Graph(launches)
		if err != nil {
			return nil, err
		}
		k.graphs, k.per = graphs, launches
	}
	return k.graphs.Time(samples, 1, nil)
}

// Empty takes samples of nothing: the seconds between two events.
func (k *Kernel) Empty(samples int) ([]float64, error) { return k.series.Time(samples, 0, nil) }

// Close gives the memory back.
func (k *Kernel) Close() (err error) {
	for _, s := range []*cuda.Series{k.graphs, k.series} {
		if s != nil {
			err = errors.Join(err, s.Close())
		}
	}
	for _, m := range k.memory {
		err = errors.Join(err, m.Free())
	}
	*k = Kernel{}
	return err
}
