//go:build cuda

package gpu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"kvtune/cuda"
	"kvtune/harness/timing"
	"kvtune/kernels"
)

// The structures below are parameters of the kernels in peak.cu.

type matrix struct {
	Sink   uint64
	Rounds int32
	Never  float32
}

type empty struct{ Nothing int32 }

type stamp struct{ At uint64 }

// Of one round of matrix in peak.cu.
const (
	matrixThreads = 256
	matrixFlops   = 2 * (matrixThreads / 128) * 64 * 256 * 64
)

// Peak prepares any of the peaks. The matrix is of bf16, multiplied by wgmma where the image has it (sm_90a), else by
// mma.sync.
func (b *Backend) Peak(p kernels.Peak) (kernels.Kernel, float64, error) {
	only := &way{turn: 1}
	k := &Kernel{stamps: b.stamps, way: only, ways: map[kernels.Choice]*way{"": only}}
	l := &loader{b: b, k: k}
	op, units := l.peak(p)
	if l.err == nil && op != nil {
		k.series, l.err = b.device.Series([][]cuda.Op{{op}})
	}
	if l.err != nil {
		return nil, 0, errors.Join(fmt.Errorf("peak %s: %w", p, l.err), k.Close())
	}
	if op == nil {
		return nil, 0, nil
	}
	return k, units, nil
}

func (l *loader) peak(p kernels.Peak) (op cuda.Op, units float64) {
	const piece, rounds = 256 << 20, 4096
	switch p {
	case kernels.PeakMatrix:
		f, perProcessor := l.function("peak", "matrix", matrixThreads, 0)
		blocks := l.b.Info.Processors * perProcessor
		return cuda.Launch{Function: f, Grid: [3]int{blocks}, Block: [3]int{matrixThreads},
				Arguments: cuda.ArgumentsOf(matrix{Sink: l.workspace(4).Address, Rounds: rounds, Never: math.MaxFloat32})},
			float64(blocks) * rounds * matrixFlops
	case kernels.PeakToHost, kernels.PeakToDevice:
		device, host := l.alloc(piece, l.b.device.Alloc), l.alloc(piece, l.b.device.AllocHost)
		if p == kernels.PeakToHost {
			device, host = host, device
		}
		return cuda.Copy{To: device.Address, From: host.Address, Bytes: piece}, piece
	case kernels.PeakLaunch:
		f, _ := l.function("peak", "empty", 1, 0)
		return cuda.Launch{Function: f, Block: [3]int{1}, Arguments: cuda.ArgumentsOf(empty{})}, 1
	}
	return nil, 0
}

// stamps are pairs of readings of the device's clocks around samples: cycles, which the multiprocessors count at the
// rate at which they run, and nanoseconds. The clock of a GPU under load changes within milliseconds, faster than NVML
// tells.
type stamps struct {
	processors    int
	memory        *cuda.Memory
	before, after *cuda.Series // step i writes stamp 2 i, and 2 i + 1
}

// mostStamps is how many samples one series can have.
const mostStamps = 1000

func newStamps(b *Backend) (*stamps, error) {
	f, err := b.modules["peak"].Function("stamp")
	if err != nil {
		return nil, err
	}
	// A block that takes all shared memory has a multiprocessor for itself, so that every one gets a block.
	shared := b.Info.SharedPerBlock
	if _, err := f.Occupancy(1, shared); err != nil {
		return nil, err
	}
	s := &stamps{processors: b.Info.Processors}
	if s.memory, err = b.device.Alloc(2 * mostStamps * s.bytes()); err != nil {
		return nil, err
	}
	steps := make([][]cuda.Op, 2*mostStamps)
	for i := range steps {
		steps[i] = []cuda.Op{cuda.Launch{Function: f, Grid: [3]int{s.processors}, Block: [3]int{1}, Shared: shared,
			Arguments: cuda.ArgumentsOf(stamp{At: s.memory.Address + uint64(i)*uint64(s.bytes())})}}
	}
	var even, odd [][]cuda.Op
	for i := 0; i < len(steps); i += 2 {
		even, odd = append(even, steps[i]), append(odd, steps[i+1])
	}
	if s.before, err = b.device.Series(even); err == nil {
		s.after, err = b.device.Series(odd)
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// bytes of one stamp.
func (s *stamps) bytes() int64 { return int64(s.processors) * 16 }

// around are the steps to take before and after each of some samples.
func (s *stamps) around(samples int) (before, after *cuda.Series, err error) {
	if samples > mostStamps {
		return nil, nil, fmt.Errorf("%d samples in a series: at most %d", samples, mostStamps)
	}
	if err := s.memory.Upload(make([]byte, int64(samples)*2*s.bytes())); err != nil { // 0: no stamp of this one
		return nil, nil, err
	}
	s.before.Restart()
	s.after.Restart()
	return s.before, s.after, nil
}

// read sets the clock rate of every sample to the median of the multiprocessors that stamped both ends of it.
func (s *stamps) read(to []timing.Reading) error {
	data, err := s.memory.Download(int64(len(to)) * 2 * s.bytes())
	if err != nil {
		return err
	}
	at := func(stamp, processor int) (cycles, ns uint64) {
		pair := data[int64(stamp)*s.bytes()+int64(processor)*16:]
		return binary.LittleEndian.Uint64(pair), binary.LittleEndian.Uint64(pair[8:])
	}
	for i := range to {
		var rates []float64
		for p := range s.processors {
			fromCycles, fromNS := at(2*i, p)
			toCycles, toNS := at(2*i+1, p)
			if fromNS > 0 && toNS > fromNS && toCycles > fromCycles {
				rates = append(rates, 1e9*float64(toCycles-fromCycles)/float64(toNS-fromNS))
			}
		}
		if slices.Sort(rates); len(rates) > 0 {
			to[i].SMClock = new(rates[len(rates)/2])
		}
	}
	return nil
}

func (s *stamps) close() (err error) {
	for _, series := range []*cuda.Series{s.before, s.after} {
		if series != nil {
			err = errors.Join(err, series.Close())
		}
	}
	return errors.Join(err, s.memory.Free())
}
