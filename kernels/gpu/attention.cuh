// What decode and prefill share: tiles of 16 tokens of one head on their way from the paged cache through shared memory
// to the operands of the matrix instructions.
#pragma once
#include "cache.cuh"

constexpr int TILE = 16;

// Values says how values lie in the cache: in rows like keys, or x-packed, dimension by dimension.
enum Values { IN_ROWS, PACKED };

template <typename T, int D, Values V>
struct Tile {
  static constexpr int BYTES = sizeof(T), UNITS = D * BYTES / 16;   // 16-byte units of a row
  static constexpr int HALF = TILE * D * BYTES;                     // the keys, or the values, of a tile

  // offset is where a unit of a token's key, or of its value in rows, lies in a tile, such that the matrix instructions
  // find eight tokens' units in different banks. Two neighbours in 32 bytes of the cache stay neighbours, since an
  // asynchronous copy fetches what goes to two places twice (with x-packed bf16, decode then takes 157 instead of
  // 123 µs). Neighbours are tokens in x-packed keys, units elsewhere.
  static __device__ __forceinline__ uint32_t offset(uint32_t token, uint32_t unit) {
    if (V == PACKED) return (unit * TILE + (token ^ (token >> 3 << 1))) * 16;
    return token * (UNITS * 16) + (unit ^ (UNITS >= 8 ? token & 7 : token >> 1 & 3)) * 16;
  }
  // packed is where a token's number of a dimension lies in a tile of x-packed values: (dimensions, tokens).
  static __device__ __forceinline__ uint32_t packed(uint32_t dimension, uint32_t token) {
    if (BYTES == 1) return dimension * TILE + token;
    return dimension * (TILE * 2) + ((token >> 3 ^ dimension >> 2) & 1) * 16 + (token & 7) * 2;
  }
};

// load_values copies the values of a tile of x-packed values, N bytes of slots of one dimension at a time. Lanes that
// follow each other take the slots of a dimension in one block, then the next dimension.
template <typename T, int D, int N>
__device__ __forceinline__ void load_values(const Cache &c, uint32_t to, uint32_t block_of_token, uint32_t head,
                                            int token, int end) {
  typedef Tile<T, D, PACKED> L;
  constexpr int BYTES = sizeof(T), EACH = N / BYTES;  // tokens in a copy
  const int lane = threadIdx.x % 32, run = min(1 << c.shift, TILE), copies = run / EACH;
  const int dimension = copies == 2 ? lane / 2 : lane, step = copies == 2 ? 16 : 32;
  for (int t = copies == 2 ? lane % 2 * EACH : 0; t < TILE; t += run) {
    const uint32_t block = __shfl_sync(~0u, block_of_token, t), slot = (token + t) & ((1u << c.shift) - 1);
    const int valid = min(max(end - token - t, 0), EACH) * BYTES;
    const char *from = c.value + (valid ? value_at(c, block, slot, head, dimension, BYTES) : 0);
    const int64_t stride = valid ? (int64_t)(step << c.shift) * BYTES : 0;
    uint32_t target = to + L::packed(dimension, t);  // what packed adds to a dimension repeats every eight
#pragma unroll 4
    for (int d = 0; d < D; d += step, from += stride, target += step * TILE * BYTES) {
      if constexpr (N == 16)
        load16(target, from, valid);
      else if constexpr (N >= 4)
        load_small<N>(target, from, valid);
      else {
        uint16_t pair = valid == 2 ? *(const uint16_t *)from : valid == 1 ? *(const uint8_t *)from : 0;
        asm volatile("st.shared.u16 [%0], %1;" ::"r"(target), "h"(pair));
      }
    }
  }
}

// load_tile begins the copies of a tile's keys and values. block_of_token is the block of token (token + lane % 16).
template <typename T, int D, Values V>
__device__ __forceinline__ void load_tile(const Cache &c, uint32_t to, uint32_t block_of_token, uint32_t head,
                                          int token, int end) {
  typedef Tile<T, D, V> L;
  constexpr int COPIES = TILE * L::UNITS / 32;
  const uint32_t lane = threadIdx.x % 32, mask = (1u << c.shift) - 1;
  const uint32_t row = row_of(c, block_of_token, (token + lane % TILE) & mask, head);
  // Lanes that follow each other take what lies side by side: tokens of a unit, or units of a token.
  if constexpr (V == PACKED) {
    const uint32_t t = lane % TILE;
    const int valid = token + (int)t < end ? 16 : 0;
    uint32_t from = valid ? row + lane / TILE * c.unit : 0, stride = valid ? 2 * c.unit : 0;
#pragma unroll
    for (int i = 0; i < COPIES; i++, from += stride)
      load16(to + L::offset(t, 2 * i + lane / TILE), at(c.key, from), valid);
  } else {
#pragma unroll
    for (int i = 0; i < COPIES; i++) {
      const uint32_t t = (i * 32 + lane) / L::UNITS, unit = (i * 32 + lane) % L::UNITS;
      const int valid = token + (int)t < end ? 16 : 0;
      uint32_t from = __shfl_sync(~0u, row, t) + unit * c.unit;
      if (!valid) from = 0;
      load16(to + L::offset(t, unit), at(c.key, from), valid);
      load16(to + L::HALF + L::offset(t, unit), at(c.value, from), valid);
    }
  }
  if constexpr (V == PACKED) {
    const uint32_t values = to + L::HALF, bytes = sizeof(T) << c.shift;
    if (bytes >= 16)
      load_values<T, D, 16>(c, values, block_of_token, head, token, end);
    else if (bytes == 8)
      load_values<T, D, 8>(c, values, block_of_token, head, token, end);
    else if (bytes == 4)
      load_values<T, D, 4>(c, values, block_of_token, head, token, end);
    else if constexpr (sizeof(T) == 1)
      load_values<T, D, 2>(c, values, block_of_token, head, token, end);
  }
}

// token_of is which token of a tile is in column n (0 to 7) of a half of its scores. Values of fp8 that are x-packed
// come four tokens to a register, so that the scores have to be in their order.
template <typename T, Values V>
__device__ __forceinline__ uint32_t token_of(uint32_t half, uint32_t n) {
  if (V == PACKED && sizeof(T) == 1) return n / 2 * 4 + n % 2 + half * 2;
  return half * 8 + n;
}

// dimension_of is the dimension in column n of output matrix i.
template <typename T, Values V>
__device__ __forceinline__ int dimension_of(int i, int n) {
  if (V == IN_ROWS && sizeof(T) == 1) return i / 2 * 16 + n * 2 + i % 2;
  return i * 8 + n;
}

// keys reads the operands of dimensions 32 k to 32 k + 31: b[step][half] is for 16 of them and 8 tokens. Of fp8 keys a
// thread has four dimensions side by side, and the query's are in that order too (see column_of).
template <typename T, int D, Values V>
__device__ __forceinline__ void keys(uint32_t (&b)[2][2][2], uint32_t tile, int k) {
  typedef Tile<T, D, V> L;
  uint32_t lane = threadIdx.x % 32, t = token_of<T, V>(lane >> 4, lane & 7), m[4];
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int step = 0; step < 2; step++) {
      load_matrices(m, tile + L::offset(t, 4 * k + 2 * step + (lane >> 3 & 1)));
      b[step][0][0] = m[0], b[step][0][1] = m[1], b[step][1][0] = m[2], b[step][1][1] = m[3];
    }
  } else {
    load_matrices(m, tile + L::offset(t, 2 * k + (lane >> 3 & 1)));
#pragma unroll
    for (int i = 0; i < 4; i++) b[i % 2][i / 2][0] = widen(m[i]), b[i % 2][i / 2][1] = widen(m[i] >> 16);
  }
}

// values reads the operands of output matrices 4 i to 4 i + 3.
template <typename T, int D, Values V>
__device__ __forceinline__ void values(uint32_t (&b)[4][2], uint32_t tile, int i) {
  typedef Tile<T, D, V> L;
  uint32_t lane = threadIdx.x % 32, from = tile + L::HALF, m[4];
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int j = 0; j < 2; j++) {
      if constexpr (V == IN_ROWS)
        load_transposed(m, from + L::offset(lane & 15, 4 * i + 2 * j + (lane >> 4)));
      else
        load_matrices(m, from + L::packed(i * 32 + j * 16 + (lane >> 4) * 8 + (lane & 7), lane & 8));
      b[2 * j][0] = m[0], b[2 * j][1] = m[1], b[2 * j + 1][0] = m[2], b[2 * j + 1][1] = m[3];
    }
  } else if constexpr (V == IN_ROWS) {
    // What the instruction transposes are pairs of dimensions: the even and the odd ones part ways.
    load_transposed(m, from + L::offset(lane & 15, 2 * i + (lane >> 4)));
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int half = 0; half < 2; half++) b[j][half] = widen(__byte_perm(m[j / 2 * 2 + half], 0, j % 2 ? 0x31 : 0x20));
  } else {
    load_matrices(m, from + L::packed(i * 32 + lane, 0));
#pragma unroll
    for (int j = 0; j < 4; j++) b[j][0] = widen(m[j]), b[j][1] = widen(m[j] >> 16);
  }
}

// column_of is where dimension d (0 to 15, even: the next one follows) of a query stands in the operand.
template <typename T>
__device__ __forceinline__ int column_of(int d) {
  if (sizeof(T) == 1) return d / 4 * 2 + d % 4 / 2 * 8;
  return d;
}
