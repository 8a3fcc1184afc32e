// What gorgonia.org/cu lacks of the driver API, and the loop around a series of launches.
#include <cuda.h>
#include <stddef.h>

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

CUresult kv_initialize(void);

// kv_run enqueues n steps. call is the name of the call that failed.
CUresult kv_run(CUstream stream, kv_steps *steps, int n, const char **call);

// kv_time enqueues samples of n steps each, every one between two events of its own, around each of them a step of
// before and one of after (may be NULL) outside of the events; waits; and writes the milliseconds of every sample.
CUresult kv_time(CUstream stream, kv_steps *steps, kv_steps *before, kv_steps *after, int samples, int n,
                 CUevent *events, float *milliseconds, const char **call);

// kv_capture makes an executable graph of n steps.
CUresult kv_capture(CUstream stream, kv_steps *steps, int n, CUgraphExec *graph, const char **call);
