//go:build cuda

package gpu

import (
	"embed"
	"errors"
	"fmt"

	"kvtune/cuda"
	"kvtune/harness/timing"
	"kvtune/kernels"
)

//go:embed all:image
var images embed.FS

// Backend is an open GPU. It is used by one goroutine at a time.
type Backend struct {
	// Warm lets every launch work on the same memory. Otherwise launches take copies of the inputs in turn: together at
	// least four times the L2 cache, so that each finds its data in the device's memory, and if possible eight or more,
	// since how fast memory is depends on where it lies, by up to a percent.
	Warm bool
	// Info describes the device.
	Info    cuda.Info
	device  *cuda.Device
	modules map[string]*cuda.Module // by source
	stamps  *stamps
}

// sources are the .cu files, each an image.
func sources() []string { return []string{"decode", "prefill", "prefill90", "move", "peak"} }

// hopper says whether a source is for compute capability 9.0 only; a toolkit before CUDA 12 does not compile it.
func hopper(source string) bool { return source == "prefill90" }

// Open opens the device with a number of 0 or more and loads the kernels.
func Open(device int) (*Backend, error) {
	d, err := cuda.Open(device)
	if err != nil {
		return nil, err
	}
	b := &Backend{Info: d.Info, device: d, modules: map[string]*cuda.Module{}}
	for _, source := range sources() {
		if hopper(source) && b.Info.Compute != [2]int{9, 0} {
			continue
		}
		image, err := images.ReadFile("image/" + source + ".fatbin")
		if err != nil && hopper(source) {
			continue
		}
		if err != nil {
			err = fmt.Errorf("%w: the kernels are not compiled: run make cuda", cuda.ErrUnavailable)
			return nil, errors.Join(err, b.Close())
		}
		if b.modules[source], err = d.Module(image); err != nil {
			delete(b.modules, source)
			return nil, errors.Join(fmt.Errorf("kernels of %s.cu: %w", source, err), b.Close())
		}
	}
	if b.stamps, err = newStamps(b); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// Name is "gpu".
func (*Backend) Name() string { return "gpu" }

// Close gives the device back.
func (b *Backend) Close() (err error) {
	if b.stamps != nil {
		err = b.stamps.close()
	}
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
	k := &Kernel{stamps: b.stamps}
	l := &loader{b: b, k: k, in: in}
	steps := l.load()
	if k.turn = len(steps); l.err == nil {
		k.series, l.err = b.device.Series(steps)
	}
	if l.err != nil {
		return nil, errors.Join(fmt.Errorf("case %s: %w", in.Case.Name(), l.err), k.Close())
	}
	return k, nil
}

// Kernel is a case on the device.
type Kernel struct {
	stamps *stamps
	series *cuda.Series
	graphs *cuda.Series // of launches launches
	per    int          // launches in one of graphs
	turn   int          // steps in series
	output func() (kernels.Output, error)
	memory []*cuda.Memory
}

// Turn is how many copies of the inputs launches take in turn.
func (k *Kernel) Turn() int { return k.turn }

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

// Series takes samples of launches each, a sample being one CUDA graph between two events, and returns their seconds
// and the rate of the multiprocessors' clock meanwhile, from cycles and nanoseconds that the device counts.
func (k *Kernel) Series(samples, launches int) ([]timing.Reading, error) {
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
	before, after, err := k.stamps.around(samples)
	if err != nil {
		return nil, err
	}
	seconds, err := k.graphs.Time(samples, 1, before, after)
	if err != nil {
		return nil, err
	}
	readings := make([]timing.Reading, samples)
	for i, s := range seconds {
		readings[i].Seconds = s
	}
	return readings, k.stamps.read(readings)
}

// Empty takes samples of nothing: the seconds between two events.
func (k *Kernel) Empty(samples int) ([]float64, error) { return k.series.Time(samples, 0, nil, nil) }

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
