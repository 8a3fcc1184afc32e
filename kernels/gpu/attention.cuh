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

  // offset is where a unit of a token lies in a tile, such that eight tokens' units are in different banks.
  static __device__ __forceinline__ uint32_t offset(uint32_t token, uint32_t unit) {
    return token * (UNITS * 16) + (unit ^ (UNITS >= 8 ? token & 7 : token >> 1 & 3)) * 16;
  }
  // packed is where a token's number of a dimension lies in a tile of x-packed values: (dimensions, tokens).
  static __device__ __forceinline__ uint32_t packed(uint32_t dimension, uint32_t token) {
    if (BYTES == 1) return dimension * TILE + token;
    return dimension * (TILE * 2) + ((token >> 3 ^ dimension >> 2) & 1) * 16 + (token & 7) * 2;
  }
};

// load_values copies the values of a tile of x-packed values, N bytes of slots of one dimension at a time.
template <typename T, int D, int N>
__device__ __forceinline__ void load_values(const Cache &c, uint32_t to, uint32_t block_of_token, uint32_t head,
                                            int token, int end) {
  constexpr int BYTES = sizeof(T), EACH = N / BYTES;  // tokens in a copy
  typedef Tile<T, D, PACKED> L;
  uint32_t lane = threadIdx.x % 32, size = 1u << c.shift;
  uint32_t run = size < TILE ? size : TILE, copies = run / EACH;  // tokens of a tile in one block; copies of them
#pragma unroll 4
  for (uint32_t i = lane; i < D * TILE / EACH; i += 32) {
    uint32_t dimension = i / copies % D, t = i / copies / D * run + i % copies * EACH;
    uint32_t block = __shfl_sync(~0u, block_of_token, t);
    int valid = min(max(end - token - (int)t, 0), EACH) * BYTES;
    const char *from = c.value + (valid ? value_at(c, block, (token + t) & (size - 1), head, dimension, BYTES) : 0);
    if constexpr (N == 16)
      load16(to + L::packed(dimension, t), from, valid);
    else if constexpr (N >= 4)
      load_small<N>(to + L::packed(dimension, t), from, valid);
    else {
      uint16_t pair = valid ? *(const uint16_t *)from : 0;
      if (valid == 1) pair &= 0xff;
      asm volatile("st.shared.u16 [%0], %1;" ::"r"(to + L::packed(dimension, t)), "h"(pair));
    }
  }
}

// load_tile begins the copies of a tile's keys and values. block_of_token is the block of token (token + lane % 16).
template <typename T, int D, Values V>
__device__ __forceinline__ void load_tile(const Cache &c, uint32_t to, uint32_t block_of_token, uint32_t head,
                                          int token, int end) {
  typedef Tile<T, D, V> L;
  uint32_t lane = threadIdx.x % 32, mask = (1u << c.shift) - 1;
  uint32_t row = row_of(c, block_of_token, (token + lane % TILE) & mask, head);
  // Lanes that follow each other take the units of a token or, x-packed, the tokens of a unit, which lie side by side.
  uint32_t near = V == PACKED ? min(c.shift, 4) : 0;
#pragma unroll
  for (int i = 0; i < TILE * L::UNITS / 32; i++) {
    uint32_t g = i * 32 + lane, t, unit;
    if (V == PACKED) {
      unit = (g >> near) % L::UNITS;
      t = (g >> near) / L::UNITS << near | (g & ((1u << near) - 1));
    } else {
      unit = g % L::UNITS;
      t = g / L::UNITS;
    }
    uint32_t from = __shfl_sync(~0u, row, t) + unit * c.unit;
    int valid = token + (int)t < end ? 16 : 0;
    load16(to + L::offset(t, unit), at(c.key, valid ? from : 0), valid);
    if (V == IN_ROWS) load16(to + L::HALF + L::offset(t, unit), at(c.value, valid ? from : 0), valid);
  }
  if constexpr (V == PACKED) {
    constexpr int B = sizeof(T);
    uint32_t bytes = B << c.shift;
    if (bytes >= 16)
      load_values<T, D, 16>(c, to + L::HALF, block_of_token, head, token, end);
    else if (bytes == 8)
      load_values<T, D, 8>(c, to + L::HALF, block_of_token, head, token, end);
    else if (bytes == 4)
      load_values<T, D, 4>(c, to + L::HALF, block_of_token, head, token, end);
    else if constexpr (B == 1)
      load_values<T, D, 2>(c, to + L::HALF, block_of_token, head, token, end);
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
