//go:build cuda

package gpu

import (
	"embed"
	"errors"
	"fmt"
	"slices"
	"strings"

	"kvtune/cuda"
	"kvtune/harness/timing"
	"kvtune/kernels"
	"kvtune/kernels/layout"
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
func sources() []string {
	return []string{"decode", "prefill", "prefill90", "prefill90p", "move", "peak"}
}

// hopper says whether a source is for compute capability 9.0 only; a toolkit before CUDA 12 does not compile it.
func hopper(source string) bool { return strings.HasPrefix(source, "prefill90") }

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
	k := &Kernel{stamps: b.stamps, ways: map[kernels.Choice]*way{}}
	k.loader = &loader{b: b, k: k, in: in}
	k.steps = k.loader.load()
	without := *in // what choices are prepared from later has not the data
	without.Query, without.Key, without.Value, without.NewKey, without.NewValue = nil, nil, nil, nil, nil
	k.loader.in = &without
	has := func(source string) bool { return b.modules[source] != nil }
	k.choices = choicesOf(in.Case, in.Case.DType != layout.FP8 && !k.loader.packed(), has)
	if err := k.Choose(k.choices[0].name()); err != nil {
		return nil, errors.Join(err, k.Close())
	}
	return k, nil
}

// Architecture is what a table of choices is for: "sm_90".
func (b *Backend) Architecture() string {
	return fmt.Sprintf("sm_%d%d", b.Info.Compute[0], b.Info.Compute[1])
}

// Kernel is a case on the device.
type Kernel struct {
	*way
	ways    map[kernels.Choice]*way
	choices []choice
	loader  *loader
	steps   func(choice) [][]cuda.Op
	stamps  *stamps
	output  func() (kernels.Output, error)
	poison  func() error // overwrites the output; nil where a case has one choice
	memory  []*cuda.Memory
}

// way is a choice that is ready to run.
type way struct {
	series *cuda.Series
	graphs *cuda.Series // of launches launches
	per    int          // launches in one of graphs
	turn   int          // steps in series
}

// Choices are the kernels and shares that the case can have.
func (k *Kernel) Choices() (list []kernels.Choice) {
	for _, c := range k.choices {
		list = append(list, c.name())
	}
	return list
}

// Choose prepares a choice, or goes back to one that is prepared.
func (k *Kernel) Choose(name kernels.Choice) error {
	at := slices.IndexFunc(k.choices, func(c choice) bool { return c.name() == name })
	if at < 0 {
		return fmt.Errorf("choice %q: case %s has %q", name, k.loader.in.Case.Name(), k.Choices())
	}
	w := k.ways[name]
	if w == nil {
		w = &way{}
		steps := k.steps(k.choices[at])
		w.turn = len(steps)
		k.loader.do(func() (err error) {
			w.series, err = k.loader.b.device.Series(steps)
			return err
		})
	}
	if k.poison != nil {
		k.loader.do(k.poison)
	}
	if k.loader.err != nil {
		return fmt.Errorf("case %s, choice %q: %w", k.loader.in.Case.Name(), name, k.loader.err)
	}
	k.ways[name], k.way = w, w
	return nil
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
	for _, w := range k.ways {
		for _, s := range []*cuda.Series{w.graphs, w.series} {
			if s != nil {
				err = errors.Join(err, s.Close())
			}
		}
	}
	for _, m := range k.memory {
		err = errors.Join(err, m.Free())
	}
	*k = Kernel{}
	return err
}
