// The parameter of the prefill kernels.
#pragma once
#include "cache.cuh"

struct Part {
  int32_t sequence, head;  // head of the queries
  int32_t first;           // the part's first query, counted in its sequence
  int32_t unused;
};

struct Prefill {
  Cache cache;
  const char *query;     // (queries, heads, head size)
  char *output;          // the same
  const int32_t *table;  // the blocks of sequence i begin at table[starts[i]]
  const int32_t *starts;
  const int32_t *queries;  // those of sequence i are from queries[i] to queries[i + 1]
  const int32_t *context;  // tokens of a sequence before the new ones
  const Part *parts;       // of block i
  int32_t heads, group;
  float scale;  // of scores, with log2(e) in it
  float value_scale;
};
