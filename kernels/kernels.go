// Package kernels is the vocabulary of the kernel benchmarks: an operation on a paged KV cache as a [Case], its
// [Inputs], what it must leave behind, and the [Backend] that runs it. The backends are kernels/ref (float64, the
// truth), kernels/host (C with SIMD), kernels/gpu (CUDA) and kernels/vllm (a server's own kernels).
//
// A backend loads the inputs of a case once and runs it many times; whoever times it calls [Kernel.Run], and [Check]
// compares what it left with the truth.
package kernels

import "errors"

// ErrUnsupported is wrapped by what [Backend.Load] returns for a case that the backend's kernels do not include.
var ErrUnsupported = errors.New("the backend does not have it")

// Backend runs cases on one kind of machine.
type Backend interface {
	// Name is the backend's name: "ref", "host", "gpu", "vllm".
	Name() string
	// Load prepares a case: it copies the inputs to where the kernel reads them and poisons its outputs. It fails
	// where the backend cannot run the case (see [ErrUnsupported]). The inputs are only read, and not used after Load has
	// returned.
	Load(in *Inputs) (Kernel, error)
	// Peak prepares what the machine does at most; one run of the kernel is so many units of it. The kernel is nil where
	// the backend has no such thing.
	Peak(p Peak) (k Kernel, units float64, err error)
}

// Peak is something that a machine does at most so fast, or at least so slowly: what the times of cases are held
// against, beside the operations [OpRead] and [OpCopy].
type Peak string

const (
	// PeakMatrix multiplies and adds, in registers, with the fastest instructions that attention could use: units are
	// floating point operations.
	PeakMatrix Peak = "matrix"
	// PeakToHost and PeakToDevice copy one large piece of pinned memory over the link to the device: units are bytes.
	PeakToHost   Peak = "to_host"
	PeakToDevice Peak = "to_device"
	// PeakLaunch launches a kernel that does nothing: units are launches.
	PeakLaunch Peak = "launch"
)

// Kernel is a case that is ready to run. It is used by one goroutine at a time.
type Kernel interface {
	// Run does the operation n times back to back and returns when the last is done. Every run does the same work and
	// leaves the same output.
	Run(n int) error
	// Output copies out what the last run left.
	Output() (Output, error)
	// Close gives the memory back.
	Close() error
}

// Output is what a case leaves behind. The fields that an operation does not write are nil or 0.
type Output struct {
	// Attention is the output of decode and prefill, (queries, heads, head size), not yet or no longer rounded to the
	// query's dtype.
	Attention []float32
	// Key and Value are the arrays that the other operations write, whole: what an operation must not touch is still
	// as [Inputs.Destination] had it. gather leaves (tokens, KV heads, head size), the others a cache.
	Key, Value []byte
	// Sum is what read leaves: the sum of the key and value arrays as little-endian 32-bit words, modulo 2^32. It does
	// not depend on the order.
	Sum uint32
}

// Choice is one of the ways in which a backend can run a case, in words of the backend's own: "kernel=direct,blocks=2".
type Choice string

// Tunable is a kernel that can do its work in several ways, which differ in nothing but time. Which is fastest depends
// on the machine and the case: who runs it measures it, or reads what was measured.
type Tunable interface {
	Kernel
	// Choices are the ways, at least one. The first is what Load has prepared.
	Choices() []Choice
	// Choose makes the runs after it take one of Choices, and poisons the output anew. Nothing may be running.
	Choose(Choice) error
}
