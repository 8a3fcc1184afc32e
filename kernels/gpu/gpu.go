// Package gpu runs every case on an NVIDIA GPU, with kernels of its own in CUDA C++ (the .cu files beside this one).
// make cuda compiles them for every architecture, into images that a program with the tag cuda embeds. Without the tag
// or without a device, [Open] returns an error that wraps cuda.ErrUnavailable.
//
// Attention multiplies on the tensor cores with mma.sync, which every GPU since compute capability 8.0 has; on Hopper,
// prefill of 16-bit caches in rows does so with wgmma (prefill90.cu, in an image of its own). Keys and
// values go through shared memory in asynchronous copies of 16 bytes whose addresses come from the block table, so that
// a block of one token costs hardly more than a block of 256. An fp8 cache is widened to fp16 in registers; queries of
// bf16 are rounded to fp16 for it.
//
// The kernels that [Backend.Load] returns are also clocks for harness/timing: Series takes samples of launches that one
// C call enqueues as CUDA graphs, each between two events.
package gpu
