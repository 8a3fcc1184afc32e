//go:build cuda

#include "driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

// cuTensorMapEncodeTiled, with its enumerations as numbers and the map's type left open.
typedef CUresult tensor_map(void *map, unsigned type, unsigned rank, void *address, const unsigned long long *sizes,
                            const unsigned long long *strides, const unsigned *box, const unsigned *steps,
                            unsigned interleave, unsigned swizzle, unsigned promotion, unsigned fill);
static tensor_map *encode;

#ifndef KV_CUDA_H
static struct {
#define KV_POINTER(name, symbol, parameters, arguments) CUresult(*name) parameters;
  KV_FUNCTIONS(KV_POINTER)
} driver;

#define KV_DEFINE(name, symbol, parameters, arguments) \
  CUresult name parameters { return driver.name arguments; }
KV_FUNCTIONS(KV_DEFINE)

static char missing[256];

static void load(void) {
  void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    snprintf(missing, sizeof missing, "%s", dlerror());
    return;
  }
#define KV_FIND(name, symbol, parameters, arguments)                                             \
  if (!(*(void **)&driver.name = dlsym(library, symbol)) && !missing[0])                         \
    snprintf(missing, sizeof missing, "libcuda.so.1 has no %s: the driver is too old", symbol);
  KV_FUNCTIONS(KV_FIND)
  encode = (tensor_map *)dlsym(library, "cuTensorMapEncodeTiled");
}

const char *kv_load(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, load);
  return missing[0] ? missing : NULL;
}
#endif

#if defined KV_CUDA_H && CUDA_VERSION >= 12000
_Static_assert(sizeof(CUtensorMap) == 128 && sizeof(cuuint64_t) == 8 && sizeof(CUtensorMapDataType) == 4, "types");
_Static_assert(CU_TENSOR_MAP_DATA_TYPE_UINT16 == 1 && CU_TENSOR_MAP_INTERLEAVE_NONE == 0 &&
               CU_TENSOR_MAP_SWIZZLE_128B == 3 && CU_TENSOR_MAP_L2_PROMOTION_L2_256B == 3 &&
               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE == 0, "constants");
static CUresult (*const same)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                              const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave,
                              CUtensorMapSwizzle, CUtensorMapL2promotion,
                              CUtensorMapFloatOOBfill) __attribute__((unused)) = cuTensorMapEncodeTiled;
#endif

int kv_tensor_map(void *map, CUdeviceptr address, const unsigned long long sizes[4],
                  const unsigned long long strides[3], const unsigned box[4], CUresult *result) {
  const unsigned steps[4] = {1, 1, 1, 1}, uint16 = 1, rows_of_128 = 3, promote_256 = 3;
  if (!encode) return 0;
  *result = encode(map, uint16, 4, (void *)address, sizes, strides, box, steps, 0, rows_of_128, promote_256, 0);
  return 1;
}

#define TRY(function, ...)                       \
  do {                                           \
    CUresult result = function(__VA_ARGS__);     \
    if (result != CUDA_SUCCESS) {                \
      *call = #function;                         \
      return result;                             \
    }                                            \
  } while (0)

static CUresult enqueue(CUstream stream, const kv_op *op, const char **call) {
  switch (op->kind) {
    case KV_LAUNCH: {
      void *parameters[] = {op->arguments};
      TRY(cuLaunchKernel, op->function, op->grid[0], op->grid[1], op->grid[2], op->block[0], op->block[1], op->block[2],
          op->shared, stream, parameters, NULL);
      break;
    }
    case KV_COPY:
      TRY(cuMemcpyAsync, op->to, op->from, op->bytes, stream);
      break;
    case KV_FILL:
      TRY(cuMemsetD8Async, op->to, op->value, op->bytes, stream);
      break;
    case KV_GRAPH:
      TRY(cuGraphLaunch, op->graph, stream);
      break;
  }
  return CUDA_SUCCESS;
}

CUresult kv_run(CUstream stream, kv_steps *steps, int n, const char **call) {
  for (int i = 0; i < n; i++) {
    for (int op = steps->first[steps->next]; op < steps->first[steps->next + 1]; op++) {
      CUresult result = enqueue(stream, &steps->ops[op], call);
      if (result != CUDA_SUCCESS) return result;
    }
    steps->next = (steps->next + 1) % steps->steps;
  }
  return CUDA_SUCCESS;
}

CUresult kv_time(CUstream stream, kv_steps *steps, kv_steps *before, kv_steps *after, int samples, int n,
                 CUevent *events, float *milliseconds, const char **call) {
  for (int i = 0; i < samples; i++) {
    CUresult result;
    if (before && (result = kv_run(stream, before, 1, call)) != CUDA_SUCCESS) return result;
    TRY(cuEventRecord, events[2 * i], stream);
    if ((result = kv_run(stream, steps, n, call)) != CUDA_SUCCESS) return result;
    TRY(cuEventRecord, events[2 * i + 1], stream);
    if (after && (result = kv_run(stream, after, 1, call)) != CUDA_SUCCESS) return result;
  }
  TRY(cuStreamSynchronize, stream);
  for (int i = 0; i < samples; i++) TRY(cuEventElapsedTime, &milliseconds[i], events[2 * i], events[2 * i + 1]);
  return CUDA_SUCCESS;
}

CUresult kv_capture(CUstream stream, kv_steps *steps, int n, CUgraphExec *graph, const char **call) {
  CUgraph captured;
  TRY(cuStreamBeginCapture, stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
  CUresult run = kv_run(stream, steps, n, call);
  CUresult end = cuStreamEndCapture(stream, &captured);
  if (run != CUDA_SUCCESS) return run;
  if (end != CUDA_SUCCESS) {
    *call = "cuStreamEndCapture";
    return end;
  }
  CUresult result = cuGraphInstantiateWithFlags(graph, captured, 0);
  cuGraphDestroy(captured);
  if (result != CUDA_SUCCESS) *call = "cuGraphInstantiateWithFlags";
  return result;
}
