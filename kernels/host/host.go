//go:build cgo

// Package host runs every case on the CPU, in C: vectors of AVX2 or AVX-512 where the machine has them (asked at run
// time), plain C elsewhere, on a pool of threads. Decode is cut by sequence and context; a cut reads the cache block by
// block with all heads of a block, which is the order of memory in every layout, and the query heads of a group share
// every load. Prefill is cut by sequence, KV head and queries, with scores and sums as blocked matrix products.
//
// Attention is computed in float32 from the cache's numbers as they are. A swap is a copy between two caches in the
// same memory.
package host

/*
#cgo CFLAGS: -O3 -std=gnu11 -Wall -pthread
#cgo LDFLAGS: -pthread -lm
#include <stdlib.h>
#include "host.h"
*/
import "C"

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"kvtune/kernels"
)

// Variants names the instruction sets that this machine can run, the slowest first: of "plain", "avx2", "avx512",
// "avx512bf16".
func Variants() []string {
	var names []string
	for i := 0; ; i++ {
		v := C.host_variant(C.int(i))
		if v == nil {
			return names
		}
		names = append(names, C.GoString(v.name))
	}
}

// Options say how to run. The zero value is every processor and the best variant.
type Options struct {
	Threads int    // 0: as many as Go may use processors
	Variant string // "": the last of [Variants]
}

// Backend is a pool of threads and a variant. Its kernels may be run from several goroutines; they take turns.
type Backend struct {
	mu      sync.Mutex
	pool    *C.struct_pool
	variant *C.struct_variant
}

// Open starts the threads. Close stops them.
func Open(o Options) (*Backend, error) {
	if o.Threads == 0 {
		o.Threads = runtime.GOMAXPROCS(0)
	}
	if o.Threads < 1 || o.Threads > 4096 {
		return nil, fmt.Errorf("threads is %d: want 1 to 4096", o.Threads)
	}
	names := Variants()
	if o.Variant == "" {
		o.Variant = names[len(names)-1]
	}
	b := &Backend{}
	for i, name := range names {
		if name == o.Variant {
			b.variant = C.host_variant(C.int(i))
		}
	}
	if b.variant == nil {
		return nil, fmt.Errorf("variant %q: this machine runs %s", o.Variant, strings.Join(names, ", "))
	}
	if b.pool = C.pool_open(C.int(o.Threads)); b.pool == nil {
		return nil, fmt.Errorf("%d threads cannot be started: ask for fewer", o.Threads)
	}
	return b, nil
}

// Name is "host".
func (b *Backend) Name() string { return "host" }

// Architecture is what a table of choices is for: the instruction set in use.
func (b *Backend) Architecture() string { return b.Variant() }

// Variant is the instruction set in use.
func (b *Backend) Variant() string { return C.GoString(b.variant.name) }

// Threads is the number of threads in use.
func (b *Backend) Threads() int { return int(C.pool_threads(b.pool)) }

// Close stops the threads, after the kernels have been closed. A second Close does nothing.
func (b *Backend) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pool != nil {
		C.pool_close(b.pool)
		b.pool = nil
	}
}

// Load copies the inputs of a case, any valid one, into memory of its own.
func (b *Backend) Load(in *kernels.Inputs) (kernels.Kernel, error) {
	if err := in.Case.Validate(); err != nil {
		return nil, err
	}
	k := &kernel{backend: b, name: in.Case.Name()}
	if err := k.load(in); err != nil {
		k.free()
		return nil, err
	}
	return k, nil
}

// Peak has [kernels.PeakMatrix]: multiplications and additions of float32 by all threads.
func (b *Backend) Peak(p kernels.Peak) (kernels.Kernel, float64, error) {
	if p != kernels.PeakMatrix {
		return nil, 0, nil
	}
	const rounds = 1 << 20
	return peak{b, rounds}, float64(b.Threads()) * rounds * float64(b.variant.peak_flops), nil
}

type peak struct {
	backend *Backend
	rounds  int
}

func (p peak) Run(n int) error {
	p.backend.mu.Lock()
	defer p.backend.mu.Unlock()
	if p.backend.pool == nil {
		return errors.New("peak: the backend is closed")
	}
	C.host_peak(p.backend.pool, p.backend.variant, C.int64_t(n*p.rounds))
	return nil
}

func (peak) Output() (kernels.Output, error) { return kernels.Output{}, nil }

func (peak) Close() error { return nil }

// kernel is a loaded case.
type kernel struct {
	backend *Backend
	name    string
	c       *C.struct_host_case // nil when closed
	in      kernels.Inputs      // without the arrays of numbers
	arrays  []unsafe.Pointer    // what is C's
	out     kernels.Output      // views of the arrays that a run writes
	sum     uint32
	err     error // the first array that found no memory
}

// Choices are the ways to cut the work.
func (k *kernel) Choices() []kernels.Choice {
	if k.in.Case.Op != kernels.OpDecode {
		return []kernels.Choice{""}
	}
	var list []kernels.Choice
	for _, n := range shares() {
		list = append(list, choice(n))
	}
	return list
}

// choice is decode with so many items a thread.
func choice(items int) kernels.Choice { return kernels.Choice(fmt.Sprintf("items=%d", items)) }

// Choose cuts the work anew.
func (k *kernel) Choose(name kernels.Choice) error {
	if k.c == nil {
		return fmt.Errorf("case %s is closed", k.name)
	}
	if !slices.Contains(k.Choices(), name) {
		return fmt.Errorf("choice %q: case %s has %q", name, k.name, k.Choices())
	}
	k.backend.mu.Lock()
	defer k.backend.mu.Unlock()
	for _, n := range shares() {
		if choice(n) == name {
			k.loadItems(k.c, &k.in, n)
		}
	}
	for i := range k.out.Attention {
		k.out.Attention[i] = poisoned
	}
	return k.err
}

// poisoned is a number of which every byte is the poison.
var poisoned = math.Float32frombits(0x01010101 * kernels.Poison)

// Run does the operation n times in one call of C.
func (k *kernel) Run(n int) error {
	if k.c == nil {
		return fmt.Errorf("case %s is closed", k.name)
	}
	if n < 1 || n > 1<<30 {
		return fmt.Errorf("%d runs: want 1 to %d", n, 1<<30)
	}
	k.backend.mu.Lock()
	defer k.backend.mu.Unlock()
	if k.backend.pool == nil {
		return fmt.Errorf("case %s: the backend is closed", k.name)
	}
	k.sum = uint32(C.host_run(k.backend.pool, k.backend.variant, k.c, C.int(n)))
	return nil
}

// Output copies out what the last run left, or the poison if there was none.
func (k *kernel) Output() (kernels.Output, error) {
	if k.c == nil {
		return kernels.Output{}, fmt.Errorf("case %s is closed", k.name)
	}
	return kernels.Output{
		Attention: append([]float32(nil), k.out.Attention...),
		Key:       append([]byte(nil), k.out.Key...),
		Value:     append([]byte(nil), k.out.Value...),
		Sum:       k.sum,
	}, nil
}

// Close gives the memory back. A second Close does nothing.
func (k *kernel) Close() error {
	k.free()
	return nil
}

func (k *kernel) free() {
	for _, p := range k.arrays {
		C.free(p)
	}
	*k = kernel{backend: k.backend, name: k.name}
}
