//go:build cuda

#include "driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

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
}

const char *kv_load(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, load);
  return missing[0] ? missing : NULL;
}
#endif

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
