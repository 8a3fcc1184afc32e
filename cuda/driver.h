// The part of CUDA's driver API that is used, and the loop around a series of launches.
//
// Types, constants and prototypes are those of cuda.h (CUDA Driver API, "Data types used by CUDA driver"), which is not
// needed to build: functions of the driver's names call what dlopen finds in libcuda.so.1, so that one program runs
// with and without a driver. With KV_CUDA_H they are held against the real cuda.h instead (make test-cuda does, for CUDA
// 11.8, 12 and 13): the compiler refuses a prototype or a constant that differs.
#include <stddef.h>

#define KV_CONSTANTS(X)                                    \
  X(CUDA_SUCCESS, 0)                                       \
  X(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 16)          \
  X(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, 38)                 \
  X(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 75)      \
  X(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 76)      \
  X(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, 81) \
  X(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 97)    \
  X(CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, 1)                \
  X(CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, 3)                 \
  X(CU_FUNC_ATTRIBUTE_NUM_REGS, 4)                         \
  X(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 8)    \
  X(CU_MEMHOSTALLOC_PORTABLE, 1)                           \
  X(CU_STREAM_NON_BLOCKING, 1)                             \
  X(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, 1)

#ifdef KV_CUDA_H
#include <cuda.h>
#define KV_SAME(name, value) _Static_assert(name == value, #name);
KV_CONSTANTS(KV_SAME)
#else
enum {
#define KV_ENUM(name, value) name = value,
  KV_CONSTANTS(KV_ENUM)
};
typedef unsigned CUresult, CUdevice_attribute, CUfunction_attribute, CUstreamCaptureMode;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphExec_st *CUgraphExec;
typedef struct { char bytes[16]; } CUuuid;
#endif

// X(name, name in the library, parameters, arguments). Where cuda.h maps a name to a later version of the function, the
// version here is the oldest one of that prototype, which all drivers since CUDA 11.4 have.
#define KV_FUNCTIONS(X)                                                                                               \
  X(cuInit, "cuInit", (unsigned flags), (flags))                                                                      \
  X(cuDriverGetVersion, "cuDriverGetVersion", (int *version), (version))                                              \
  X(cuGetErrorName, "cuGetErrorName", (CUresult error, const char **text), (error, text))                             \
  X(cuGetErrorString, "cuGetErrorString", (CUresult error, const char **text), (error, text))                         \
  X(cuDeviceGetCount, "cuDeviceGetCount", (int *count), (count))                                                      \
  X(cuDeviceGet, "cuDeviceGet", (CUdevice *device, int index), (device, index))                                       \
  X(cuDeviceGetName, "cuDeviceGetName", (char *name, int size, CUdevice device), (name, size, device))                \
  X(cuDeviceGetUuid, "cuDeviceGetUuid", (CUuuid *id, CUdevice device), (id, device))                                  \
  X(cuDeviceTotalMem, "cuDeviceTotalMem_v2", (size_t *bytes, CUdevice device), (bytes, device))                       \
  X(cuDeviceGetAttribute, "cuDeviceGetAttribute",                                                                     \
    (int *value, CUdevice_attribute attribute, CUdevice device),                                                      \
    (value, attribute, device))                                                                                       \
  X(cuDevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain", (CUcontext *context, CUdevice device), (context, device))   \
  X(cuDevicePrimaryCtxRelease, "cuDevicePrimaryCtxRelease_v2", (CUdevice device), (device))                           \
  X(cuCtxSetCurrent, "cuCtxSetCurrent", (CUcontext context), (context))                                               \
  X(cuStreamCreate, "cuStreamCreate", (CUstream *stream, unsigned flags), (stream, flags))                            \
  X(cuStreamSynchronize, "cuStreamSynchronize", (CUstream stream), (stream))                                          \
  X(cuStreamDestroy, "cuStreamDestroy_v2", (CUstream stream), (stream))                                               \
  X(cuStreamBeginCapture, "cuStreamBeginCapture_v2", (CUstream stream, CUstreamCaptureMode mode), (stream, mode))     \
  X(cuStreamEndCapture, "cuStreamEndCapture", (CUstream stream, CUgraph *graph), (stream, graph))                     \
  X(cuEventCreate, "cuEventCreate", (CUevent *event, unsigned flags), (event, flags))                                 \
  X(cuEventRecord, "cuEventRecord", (CUevent event, CUstream stream), (event, stream))                                \
  X(cuEventElapsedTime, "cuEventElapsedTime",                                                                         \
    (float *milliseconds, CUevent from, CUevent to),                                                                  \
    (milliseconds, from, to))                                                                                         \
  X(cuEventDestroy, "cuEventDestroy_v2", (CUevent event), (event))                                                    \
  X(cuMemAlloc, "cuMemAlloc_v2", (CUdeviceptr *at, size_t bytes), (at, bytes))                                        \
  X(cuMemFree, "cuMemFree_v2", (CUdeviceptr at), (at))                                                                \
  X(cuMemHostAlloc, "cuMemHostAlloc", (void **at, size_t bytes, unsigned flags), (at, bytes, flags))                  \
  X(cuMemFreeHost, "cuMemFreeHost", (void *at), (at))                                                                 \
  X(cuMemcpyHtoD, "cuMemcpyHtoD_v2", (CUdeviceptr to, const void *from, size_t bytes), (to, from, bytes))             \
  X(cuMemcpyDtoH, "cuMemcpyDtoH_v2", (void *to, CUdeviceptr from, size_t bytes), (to, from, bytes))                   \
  X(cuMemcpyAsync, "cuMemcpyAsync",                                                                                   \
    (CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream),                                                \
    (to, from, bytes, stream))                                                                                        \
  X(cuMemsetD8Async, "cuMemsetD8Async",                                                                               \
    (CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream),                                             \
    (to, value, bytes, stream))                                                                                       \
  X(cuModuleLoadData, "cuModuleLoadData", (CUmodule *module, const void *image), (module, image))                     \
  X(cuModuleGetFunction, "cuModuleGetFunction",                                                                       \
    (CUfunction *function, CUmodule module, const char *name),                                                        \
    (function, module, name))                                                                                         \
  X(cuModuleUnload, "cuModuleUnload", (CUmodule module), (module))                                                    \
  X(cuFuncGetAttribute, "cuFuncGetAttribute",                                                                         \
    (int *value, CUfunction_attribute attribute, CUfunction function),                                                \
    (value, attribute, function))                                                                                     \
  X(cuFuncSetAttribute, "cuFuncSetAttribute",                                                                         \
    (CUfunction function, CUfunction_attribute attribute, int value),                                                 \
    (function, attribute, value))                                                                                     \
  X(cuOccupancyMaxActiveBlocksPerMultiprocessor, "cuOccupancyMaxActiveBlocksPerMultiprocessor",                       \
    (int *blocks, CUfunction function, int threads, size_t shared),                                                   \
    (blocks, function, threads, shared))                                                                              \
  X(cuLaunchKernel, "cuLaunchKernel",                                                                                 \
    (CUfunction function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,                  \
     unsigned shared, CUstream stream, void **parameters, void **extra),                                              \
    (function, x, y, z, bx, by, bz, shared, stream, parameters, extra))                                               \
  X(cuGraphInstantiateWithFlags, "cuGraphInstantiateWithFlags",                                                       \
    (CUgraphExec *exec, CUgraph graph, unsigned long long flags),                                                     \
    (exec, graph, flags))                                                                                             \
  X(cuGraphLaunch, "cuGraphLaunch", (CUgraphExec exec, CUstream stream), (exec, stream))                              \
  X(cuGraphExecDestroy, "cuGraphExecDestroy", (CUgraphExec exec), (exec))                                             \
  X(cuGraphDestroy, "cuGraphDestroy", (CUgraph graph), (graph))

// Not for the driver's own calls of these names, which an exported symbol of the program would take.
#ifdef KV_CUDA_H
#define KV_DECLARE(name, symbol, parameters, arguments) CUresult name parameters;
#else
#define KV_DECLARE(name, symbol, parameters, arguments) __attribute__((visibility("hidden"))) CUresult name parameters;
#endif
KV_FUNCTIONS(KV_DECLARE)

// kv_tensor_map writes the CUtensorMap (128 bytes, aligned to 64) of an array of 16-bit numbers in four dimensions, the
// innermost first, for bulk copies of boxes to shared memory in rows of 128 swizzled bytes. strides are the bytes between
// neighbours in all dimensions but the innermost. 0 where the driver is too old for it (before CUDA 12).
int kv_tensor_map(void *map, CUdeviceptr address, const unsigned long long sizes[4],
                  const unsigned long long strides[3], const unsigned box[4], CUresult *result);

// kv_op is one thing to enqueue.
typedef struct {
  enum { KV_LAUNCH, KV_COPY, KV_FILL, KV_GRAPH } kind;
  CUfunction function;      // launch
  unsigned grid[3], block[3], shared;
  void *arguments;          // launch: the kernel's one parameter, by address
  CUdeviceptr to, from;     // copy (any two addresses, host or device), fill (to)
  size_t bytes;             // copy, fill
  unsigned char value;      // fill
  CUgraphExec graph;        // graph
} kv_op;

// kv_steps is what a series repeats: steps of ops, taken in turn. Step i is ops[first[i]] to ops[first[i+1]-1].
typedef struct {
  const kv_op *ops;
  const int *first;
  int steps;
  int next;  // the step that comes next
} kv_steps;

// kv_load finds the driver's library and its functions, once; NULL, or why there are none. Nothing else may be called
// before it, or where it gives a reason.
const char *kv_load(void);

// kv_run enqueues n steps. call is the name of the call that failed.
CUresult kv_run(CUstream stream, kv_steps *steps, int n, const char **call);

// kv_time enqueues samples of n steps each, every one between two events of its own, around each of them a step of
// before and one of after (may be NULL) outside of the events; waits; and writes the milliseconds of every sample.
CUresult kv_time(CUstream stream, kv_steps *steps, kv_steps *before, kv_steps *after, int samples, int n,
                 CUevent *events, float *milliseconds, const char **call);

// kv_capture makes an executable graph of n steps.
CUresult kv_capture(CUstream stream, kv_steps *steps, int n, CUgraphExec *graph, const char **call);
