//go:build cuda

package cuda

// #include <stdlib.h>
// #include "driver.h"
import "C"

import (
	"errors"
	"fmt"
	"unsafe"
)

// Op is something to enqueue: [Launch], [Copy] or [Fill].
type Op interface {
	// c writes the op; what it allocates in C memory is freed with the series.
	c(s *Series) C.kv_op
}

// Launch runs a kernel.
type Launch struct {
	Function *Function
	Grid     [3]int // blocks in x, y, z; 0 is 1
	Block    [3]int // threads of a block
	Shared   int    // dynamic shared memory of a block, in bytes; over 48 KiB see [Function.Occupancy]
	// Arguments is the kernel's parameter: a pointer to a structure without pointers, laid out as in the source.
	Arguments Arguments
}

// Arguments are the bytes of a kernel's parameter.
type Arguments []byte

// ArgumentsOf copies the bytes of a structure that holds only numbers, and arrays and structures of numbers.
func ArgumentsOf[T any](structure T) Arguments {
	return append(Arguments(nil), unsafe.Slice((*byte)(unsafe.Pointer(&structure)), unsafe.Sizeof(structure))...)
}

// Copy copies bytes between addresses of devices and pinned memory.
type Copy struct {
	To, From uint64
	Bytes    int64
}

// Fill sets every one of some bytes of device memory to a value.
type Fill struct {
	To    uint64
	Bytes int64
	Value byte
}

type replay struct{ graph C.CUgraphExec }

func (l Launch) c(s *Series) C.kv_op {
	op := C.kv_op{kind: C.KV_LAUNCH, function: l.Function.function, shared: C.uint(l.Shared)}
	for i := range 3 {
		op.grid[i], op.block[i] = C.uint(max(l.Grid[i], 1)), C.uint(max(l.Block[i], 1))
	}
	op.arguments = C.CBytes(l.Arguments)
	s.memory = append(s.memory, op.arguments)
	return op
}

func (o Copy) c(*Series) C.kv_op {
	return C.kv_op{kind: C.KV_COPY, to: C.CUdeviceptr(o.To), from: C.CUdeviceptr(o.From), bytes: C.size_t(o.Bytes)}
}

func (o Fill) c(*Series) C.kv_op {
	return C.kv_op{kind: C.KV_FILL, to: C.CUdeviceptr(o.To), bytes: C.size_t(o.Bytes), value: C.uchar(o.Value)}
}

func (o replay) c(*Series) C.kv_op { return C.kv_op{kind: C.KV_GRAPH, graph: o.graph} }

// Series is work that is repeated: steps of ops in C memory. Launches take the steps in turn and go on where the last
// ended, so that steps over different memory, together several times the L2 cache, find it cold without a flush.
type Series struct {
	device *Device
	steps  *C.kv_steps
	memory []unsafe.Pointer // to free
	graphs []C.CUgraphExec  // to destroy
}

// Series makes a series of steps, at least one.
func (d *Device) Series(steps [][]Op) (*Series, error) {
	if len(steps) == 0 {
		return nil, errors.New("a series of no steps")
	}
	s := &Series{device: d}
	count := 0
	for _, step := range steps {
		count += len(step)
	}
	ops := unsafe.Slice((*C.kv_op)(s.alloc(max(count, 1), C.sizeof_kv_op)), max(count, 1))
	first := unsafe.Slice((*C.int)(s.alloc(len(steps)+1, C.sizeof_int)), len(steps)+1)
	s.steps = (*C.kv_steps)(s.alloc(1, C.sizeof_kv_steps))
	n := 0
	for i, step := range steps {
		for _, op := range step {
			ops[n] = op.c(s)
			n++
		}
		first[i+1] = C.int(n)
	}
	s.steps.ops, s.steps.first, s.steps.steps = &ops[0], &first[0], C.int(len(steps))
	return s, nil
}

// alloc is zeroed C memory that lives as long as the series.
func (s *Series) alloc(n, size int) unsafe.Pointer {
	p := C.CBytes(make([]byte, n*size))
	s.memory = append(s.memory, p)
	return p
}

// Graph captures launches of n steps as graphs, which the device starts with hardly a gap between their kernels, and
// returns the series of these graphs, of as many as take every step in turn.
func (s *Series) Graph(n int) (*Series, error) {
	if n < 1 {
		return nil, fmt.Errorf("a graph of %d steps: want 1 or more", n)
	}
	count := int(s.steps.steps) / gcd(int(s.steps.steps), n)
	steps, graphs := make([][]Op, count), make([]C.CUgraphExec, 0, count)
	s.steps.next = 0
	err := s.device.do(func() error {
		for i := range steps {
			var call *C.char
			var graph C.CUgraphExec
			if code := C.kv_capture(s.device.stream, s.steps, C.int(n), &graph, &call); code != C.CUDA_SUCCESS {
				return errors.Join(failure(C.GoString(call), code), destroy(graphs))
			}
			graphs = append(graphs, graph)
			steps[i] = []Op{replay{graph}}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	g, err := s.device.Series(steps)
	if err != nil {
		return nil, err
	}
	g.graphs = graphs
	return g, nil
}

// Restart makes the first step the next.
func (s *Series) Restart() { s.steps.next = 0 }

// Run enqueues n steps, in one C call, and returns when they are done.
func (s *Series) Run(n int) error {
	var call *C.char
	err := s.device.do(func() error {
		code := C.kv_run(s.device.stream, s.steps, C.int(n), &call)
		return failure(C.GoString(call), code)
	})
	if err != nil {
		return err
	}
	return s.device.Wait()
}

// Time enqueues samples of n steps each, every sample between two events, all in one C call, and returns their seconds
// once they are done. n may be 0: what an empty pair of events costs. Where before and after are not nil, one step of
// each runs ahead of and behind every sample, outside of the events: to flush the L2 cache with a [Fill], for example.
func (s *Series) Time(samples, n int, before, after *Series) ([]float64, error) {
	if samples < 1 || n < 0 {
		return nil, fmt.Errorf("%d samples of %d steps: want 1 or more, 0 or more", samples, n)
	}
	around := func(s *Series) *C.kv_steps {
		if s == nil {
			return nil
		}
		return s.steps
	}
	milliseconds := make([]C.float, samples)
	err := s.device.do(func() error {
		for len(s.device.events) < 2*samples {
			var e C.CUevent
			if err := failure("cuEventCreate", C.cuEventCreate(&e, 0)); err != nil {
				return err
			}
			s.device.events = append(s.device.events, e)
		}
		var call *C.char
		events := &s.device.events[0]
		code := C.kv_time(s.device.stream, s.steps, around(before), around(after), C.int(samples), C.int(n), events,
			&milliseconds[0], &call)
		return failure(C.GoString(call), code)
	})
	if err != nil {
		return nil, err
	}
	seconds := make([]float64, samples)
	for i, ms := range milliseconds {
		seconds[i] = float64(ms) / 1e3
	}
	return seconds, nil
}

// Close frees the series. Nothing of it may be running.
func (s *Series) Close() error {
	err := s.device.do(func() error { return destroy(s.graphs) })
	for _, p := range s.memory {
		C.free(p)
	}
	return err
}

// destroy destroys graphs; the context must be current.
func destroy(graphs []C.CUgraphExec) (err error) {
	for _, g := range graphs {
		err = errors.Join(err, failure("cuGraphExecDestroy", C.cuGraphExecDestroy(g)))
	}
	return err
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
