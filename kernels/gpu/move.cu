// The operations that only move tokens: append, gather, quantize, copy_blocks (which also swaps), and the ceilings copy
// and read. What reads and writes does so with one access of 16 bytes to each array a thread, in many blocks: a copy on
// an H200 is then faster (4.25 TB/s) than with more accesses a thread (4.1) or with blocks that stay (3.9).
#include "cache.cuh"

struct Tokens {
  Cache cache, narrow;       // narrow: the fp8 cache that quantize writes
  char *key, *value;         // append reads, gather writes them: (tokens, heads, head size)
  const int32_t *slots;      // block x block_size + slot of every token
  int32_t tokens;
  float key_scale, value_scale;  // what fp8 codes are multiplied with
};

// A thread has a piece (8 numbers, or 16 bytes) of one head of one token. Threads that follow each other take the
// pieces of a token; in x-packed caches, whose slots lie side by side, the same piece of 16 tokens.
struct Place {
  uint32_t token, block, slot, head, piece;
};

template <int D, bool PACKED>
__device__ __forceinline__ bool place(const Tokens &p, int piece_size, Place &o) {
  uint32_t i = blockIdx.x * blockDim.x + threadIdx.x, pieces = D / piece_size, row = pieces * p.cache.kv_heads, rest;
  if (PACKED) {
    o.token = i / (row * 16) * 16 + i % 16;
    rest = i / 16 % row;
  } else {
    o.token = i / row;
    rest = i % row;
  }
  if (o.token >= p.tokens) return false;
  uint32_t slot = p.slots[o.token];
  o.block = slot >> p.cache.shift;
  o.slot = slot & ((1u << p.cache.shift) - 1);
  o.head = rest / pieces;
  o.piece = rest % pieces;
  return true;
}

// Eight numbers of a 16-bit type.
union Eight {
  uint4 all;
  uint32_t pair[4];
  uint16_t one[8];
};

template <typename T>
__device__ __forceinline__ float value_of(const Eight &e, int i) {
  return number(((const T *)e.one)[i]);
}

template <typename T>
__device__ __forceinline__ uint2 narrow(const Eight &e, float inverse) {
  uint32_t code[8];
#pragma unroll
  for (int i = 0; i < 8; i++) code[i] = __nv_cvt_float_to_fp8(value_of<T>(e, i) * inverse, __NV_SATFINITE, __NV_E4M3);
  return make_uint2(code[0] | code[1] << 8 | code[2] << 16 | code[3] << 24,
                    code[4] | code[5] << 8 | code[6] << 16 | code[7] << 24);
}

// put8 writes eight numbers of a 16-bit type T to a cache of C; the array is the key's or, x-packed, the value's.
template <typename T, typename C, bool PACKED, bool VALUE>
__device__ __forceinline__ void put8(const Cache &c, const Place &o, const Eight &e, float inverse) {
  char *array = VALUE ? c.value : c.key;
  if (PACKED && VALUE) {
    char *to = array + value_at(c, o.block, o.slot, o.head, o.piece * 8, sizeof(C));
    uint2 codes = sizeof(C) == 1 ? narrow<T>(e, inverse) : make_uint2(0, 0);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      if (sizeof(C) == 1)
        to[(int64_t)i << c.shift] = (char)((i < 4 ? codes.x : codes.y) >> (i % 4 * 8));
      else
        *(uint16_t *)(to + ((int64_t)i << c.shift) * 2) = e.one[i];
    }
    return;
  }
  uint32_t row = row_of(c, o.block, o.slot, o.head);
  if (sizeof(C) == 1)
    *(uint2 *)(at(array, row + o.piece / 2 * c.unit) + o.piece % 2 * 8) = narrow<T>(e, inverse);
  else
    *(uint4 *)at(array, row + o.piece * c.unit) = e.all;
}

template <typename T, typename C, int D, bool PACKED>
__device__ void append_kernel(const Tokens &p) {
  Place o;
  if (!place<D, PACKED>(p, 8, o)) return;
  int64_t from = ((int64_t)o.token * p.cache.kv_heads + o.head) * D + o.piece * 8;
  Eight key, value;
  key.all = __ldcs((const uint4 *)(p.key + from * 2));
  value.all = __ldcs((const uint4 *)(p.value + from * 2));
  put8<T, C, PACKED, false>(p.cache, o, key, 1 / p.key_scale);
  put8<T, C, PACKED, true>(p.cache, o, value, 1 / p.value_scale);
}

// take16 reads 16 bytes of a token's key or value.
template <typename C, bool PACKED, bool VALUE>
__device__ __forceinline__ uint4 take16(const Cache &c, const Place &o) {
  char *array = VALUE ? c.value : c.key;
  if (PACKED && VALUE) {
    constexpr int N = 16 / sizeof(C);
    const char *from = array + value_at(c, o.block, o.slot, o.head, o.piece * N, sizeof(C));
    union {
      uint4 all;
      uint16_t two[8];
      uint8_t one[16];
    } v;
#pragma unroll
    for (int i = 0; i < N; i++) {
      if (sizeof(C) == 1)
        v.one[i] = from[(int64_t)i << c.shift];
      else
        v.two[i] = *(const uint16_t *)(from + ((int64_t)i << c.shift) * 2);
    }
    return v.all;
  }
  return __ldcs((const uint4 *)at(array, row_of(c, o.block, o.slot, o.head) + o.piece * c.unit));
}

template <typename C, int D, bool PACKED>
__device__ void gather_kernel(const Tokens &p) {
  constexpr int N = 16 / sizeof(C);
  Place o;
  if (!place<D, PACKED>(p, N, o)) return;
  uint4 key = take16<C, PACKED, false>(p.cache, o), value = take16<C, PACKED, true>(p.cache, o);
  int64_t to = (((int64_t)o.token * p.cache.kv_heads + o.head) * (D / N) + o.piece) * 16;
  __stcs((uint4 *)(p.key + to), key);
  __stcs((uint4 *)(p.value + to), value);
}

template <typename T, int D, bool PACKED>
__device__ void quantize_kernel(const Tokens &p) {
  Place o;
  if (!place<D, PACKED>(p, 8, o)) return;
  Eight key, value;
  key.all = take16<T, PACKED, false>(p.cache, o);
  value.all = take16<T, PACKED, true>(p.cache, o);
  put8<T, fp8, PACKED, false>(p.narrow, o, key, 1 / p.key_scale);
  put8<T, fp8, PACKED, true>(p.narrow, o, value, 1 / p.value_scale);
}

#define TOKENS(op, name, ...) \
  extern "C" __global__ void __launch_bounds__(256) op##_##name(const Tokens p) { op##_kernel<__VA_ARGS__>(p); }
#define SHAPES(op, dtype, ...)                                         \
  HEAD_SIZE_64(TOKENS(op, dtype##_64, __VA_ARGS__, 64, false))         \
  HEAD_SIZE_64(TOKENS(op, dtype##_64_packed, __VA_ARGS__, 64, true))   \
  TOKENS(op, dtype##_128, __VA_ARGS__, 128, false)                     \
  TOKENS(op, dtype##_128_packed, __VA_ARGS__, 128, true)

SHAPES(append, bf16, bf16, bf16)
SHAPES(append, fp16, fp16, fp16)
SHAPES(append, fp8, bf16, fp8)
SHAPES(gather, bf16, bf16)
SHAPES(gather, fp16, fp16)
SHAPES(gather, fp8, fp8)
SHAPES(quantize, bf16, bf16)
SHAPES(quantize, fp16, fp16)

struct Blocks {
  const char *from_key, *from_value;
  char *to_key, *to_value;
  const int32_t *pairs;  // source and destination, in turn
  uint32_t block;        // units of 16 bytes in a block
  uint32_t count;        // of pairs
};

// copy_blocks: blockIdx.y is 0 for keys and 1 for values.
extern "C" __global__ void __launch_bounds__(256) copy_blocks(const Blocks p) {
  uint64_t at = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
  uint32_t pair = at / p.block, rest = at - (uint64_t)pair * p.block;
  if (pair >= p.count) return;
  int2 blocks = ((const int2 *)p.pairs)[pair];
  const uint4 *from = (const uint4 *)(blockIdx.y ? p.from_value : p.from_key);
  uint4 *to = (uint4 *)(blockIdx.y ? p.to_value : p.to_key);
  __stcs(to + (uint64_t)blocks.y * p.block + rest, __ldcs(from + (uint64_t)blocks.x * p.block + rest));
}

struct Arrays {
  const char *from_key, *from_value;
  char *to_key, *to_value;
  uint64_t units;      // of 16 bytes, in one array
  uint32_t *sum;       // what read leaves
  uint32_t *scratch;   // two words that are zero between launches: the sum so far, blocks that are done
};

// copy: blockIdx.y is 0 for keys and 1 for values.
extern "C" __global__ void __launch_bounds__(256) copy(const Arrays p) {
  uint64_t at = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= p.units) return;
  const uint4 *from = (const uint4 *)(blockIdx.y ? p.from_value : p.from_key);
  uint4 *to = (uint4 *)(blockIdx.y ? p.to_value : p.to_key);
  __stcs(to + at, __ldcs(from + at));
}

// read: a grid of as many blocks as run at a time; each goes through both arrays with the stride of the grid.
extern "C" __global__ void __launch_bounds__(512) read(const Arrays p) {
  constexpr int EACH = 8;
  uint32_t sum = 0;
  uint64_t stride = (uint64_t)gridDim.x * blockDim.x;
  for (int array = 0; array < 2; array++) {
    const uint4 *from = (const uint4 *)(array ? p.from_value : p.from_key);
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < p.units; i += stride * EACH) {
      uint4 v[EACH];
#pragma unroll
      for (int j = 0; j < EACH; j++)
        v[j] = i + j * stride < p.units ? __ldcs(from + i + j * stride) : make_uint4(0, 0, 0, 0);
#pragma unroll
      for (int j = 0; j < EACH; j++) sum += v[j].x + v[j].y + v[j].z + v[j].w;
    }
  }
  for (int lane = 16; lane > 0; lane /= 2) sum += __shfl_xor_sync(~0u, sum, lane);
  if (threadIdx.x % 32 == 0) atomicAdd(&p.scratch[0], sum);
  __threadfence();
  __syncthreads();
  bool last = threadIdx.x == 0 && atomicInc(&p.scratch[1], gridDim.x - 1) == gridDim.x - 1;
  if (last) *p.sum = atomicExch(&p.scratch[0], 0);
}
