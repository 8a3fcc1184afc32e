// Found ahead of CUDA's own cuda.h in a tagged build (the Makefile passes "-I cuda/compat" to the C compiler), so that
// gorgonia.org/cu, which is written against CUDA 11, builds with the headers of CUDA 11.8, 12 and 13, and so that a
// tagged program starts on a machine that has a driver library and no device.
#include_next <cuda.h>
#ifndef KVTUNE_COMPAT_CUDA_H
#define KVTUNE_COMPAT_CUDA_H

// gorgonia.org/cu ends the process in its init function when cuInit fails. It calls this instead, which never fails;
// the package cuda calls the real one and returns its error.
static inline CUresult kvtune_start(unsigned int flags) {
  cuInit(flags);
  return CUDA_SUCCESS;
}
#define cuInit kvtune_start

// CUDA 13 gave these names new arguments, or (cuEventElapsedTime) a function that older drivers lack. All drivers export
// the functions that they named before.
#if CUDA_VERSION >= 13000
#undef cuCtxCreate
#undef cuMemAdvise
#undef cuMemPrefetchAsync
#undef cuGraphAddDependencies
#undef cuGraphGetEdges
#undef cuEventElapsedTime
#define cuCtxCreate cuCtxCreate_v2
CUresult CUDAAPI cuCtxCreate_v2(CUcontext *context, unsigned int flags, CUdevice device);
CUresult CUDAAPI cuEventElapsedTime(float *milliseconds, CUevent from, CUevent to);
CUresult CUDAAPI cuMemAdvise(CUdeviceptr at, size_t bytes, CUmem_advise advice, CUdevice device);
CUresult CUDAAPI cuMemPrefetchAsync(CUdeviceptr at, size_t bytes, CUdevice device, CUstream stream);
CUresult CUDAAPI cuGraphAddDependencies(CUgraph graph, const CUgraphNode *from, const CUgraphNode *to, size_t count);
CUresult CUDAAPI cuGraphGetEdges(CUgraph graph, CUgraphNode *from, CUgraphNode *to, size_t *count);
#endif

#endif
