// Paged prefill attention, causal: a block has 128 queries of one head, a warp 32 of them; all go through the tokens
// that the block's last query sees, 64 at a time, of which each warp fetches 16 ahead of time.
#include "attention.cuh"
#include "prefill.cuh"

constexpr int WARPS = 4, TILES = WARPS, ROWS = 32 * WARPS, STAGES = 2;

template <typename T, int D, Values V>
__device__ __forceinline__ void prefill_kernel(const Prefill &p) {
  typedef Tile<T, D, V> L;
  typedef Tile<bf16, D, IN_ROWS> Q;  // how queries lie in shared memory
  typedef typename Operand<T>::type O;
  typedef typename Query<T>::type W;
  extern __shared__ __align__(128) char shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t queries = shared_address(shared), tiles = queries + ROWS * D * 2;
  const Part part = p.parts[blockIdx.x];
  const int head = part.head / p.group, context = p.context[part.sequence];
  const int first = p.queries[part.sequence], count = min(p.queries[part.sequence + 1] - first - part.first, ROWS);
  const int begin = context + part.first;  // the last token that the first query sees
  const int end = begin + count;           // tokens that the last query sees
  const int32_t *table = p.table + p.starts[part.sequence];
  const int64_t row = (int64_t)(first + part.first) * p.heads + part.head;  // of the first query, in the array

  auto block_of = [&](int step) {
    return (uint32_t)__ldg(table + (min((step * TILES + warp) * TILE + lane % TILE, end - 1) >> p.cache.shift));
  };
  auto load = [&](int step, uint32_t block) {
    load_tile<T, D, V>(p.cache, tiles + (step % STAGES * TILES + warp) * 2 * L::HALF, block, head,
                       (step * TILES + warp) * TILE, end);
  };
  for (int i = threadIdx.x; i < ROWS * D / 8; i += WARPS * 32) {
    int r = i / (D / 8), unit = i % (D / 8);
    const W *from = (const W *)p.query + (row + (int64_t)min(r, count - 1) * p.heads) * D + unit * 8;
    if constexpr (sizeof(T) == 2) {
      load16(queries + Q::offset(r, unit), from, 16);
    } else {
#pragma unroll
      for (int d = 0; d < 8; d += 2) {
        int column = column_of<T>(unit % 2 * 8 + d);
        uint32_t to = queries + Q::offset(r, unit / 2 * 2 + column / 8) + column % 8 * 2;
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(pack<O>(number(from[d]), number(from[d + 1]))));
      }
    }
  }
  load(0, block_of(0));
  commit();
  uint32_t ahead = block_of(1);

  // Matrix m of two has the warp's queries 16 m to 16 m + 15, of which a thread has rows lane / 4 and 8 more.
  float output[2][D / 8][4] = {}, maximum[2][2], sum[2][2] = {};
#pragma unroll
  for (int m = 0; m < 2; m++) maximum[m][0] = maximum[m][1] = -INFINITY;
  const int steps = (end + TILES * TILE - 1) / (TILES * TILE);
  for (int step = 0; step < steps; step++) {
    wait<0>();
    __syncthreads();
    if (step + 1 < steps) load(step + 1, ahead);
    commit();
    ahead = block_of(step + 2);
    const uint32_t stage = tiles + step % STAGES * TILES * 2 * L::HALF;

    float score[2][TILES * 2][4] = {};
#pragma unroll
    for (int k = 0; k < D / 32; k++) {
      uint32_t a[2][2][4];
#pragma unroll
      for (int m = 0; m < 2; m++)
#pragma unroll
        for (int j = 0; j < 2; j++)
          load_matrices(a[m][j], queries + Q::offset(warp * 32 + m * 16 + (lane & 15), 4 * k + 2 * j + (lane >> 4)));
#pragma unroll
      for (int tile = 0; tile < TILES; tile++) {
        uint32_t b[2][2][2];
        keys<T, D, V>(b, stage + tile * 2 * L::HALF, k);
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
          for (int half = 0; half < 2; half++)
#pragma unroll
            for (int m = 0; m < 2; m++) multiply<O>(score[m][tile * 2 + half], a[m][j], b[j][half][0], b[j][half][1]);
      }
    }
    if ((step + 1) * TILES * TILE > begin + warp * 32 + 1) {
#pragma unroll
      for (int m = 0; m < 2; m++)
#pragma unroll
        for (int i = 0; i < TILES * 2; i++)
#pragma unroll
          for (int e = 0; e < 4; e++) {
            int token = (step * TILES + i / 2) * TILE + token_of<T, V>(i % 2, lane % 4 * 2 + e % 2);
            int last = begin + warp * 32 + m * 16 + lane / 4 + e / 2 * 8;
            if (token > last) score[m][i][e] = -INFINITY;
          }
    }
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
      for (int r = 0; r < 2; r++) {
        float most = maximum[m][r];
#pragma unroll
        for (int i = 0; i < TILES * 2; i++) most = fmaxf(most, fmaxf(score[m][i][2 * r], score[m][i][2 * r + 1]));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
        float shrink = exp2_fast((maximum[m][r] - most) * p.scale), shift = most * p.scale;
        maximum[m][r] = most;
        sum[m][r] *= shrink;
#pragma unroll
        for (int i = 0; i < TILES * 2; i++)
#pragma unroll
          for (int e = 2 * r; e < 2 * r + 2; e++) {
            score[m][i][e] = exp2_fast(score[m][i][e] * p.scale - shift);
            sum[m][r] += score[m][i][e];
          }
#pragma unroll
        for (int i = 0; i < D / 8; i++) {
          output[m][i][2 * r] *= shrink;
          output[m][i][2 * r + 1] *= shrink;
        }
      }
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
      uint32_t a[2][4];
#pragma unroll
      for (int m = 0; m < 2; m++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const float *w = score[m][tile * 2 + j / 2] + j % 2 * 2;
          a[m][j] = pack<O>(w[0], w[1]);
        }
#pragma unroll
      for (int i = 0; i < D / 32; i++) {
        uint32_t b[4][2];
        values<T, D, V>(b, stage + tile * 2 * L::HALF, i);
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
          for (int m = 0; m < 2; m++) multiply<O>(output[m][4 * i + j], a[m], b[j][0], b[j][1]);
      }
    }
  }
  wait<0>();

#pragma unroll
  for (int m = 0; m < 2; m++)
#pragma unroll
    for (int r = 0; r < 2; r++) {
      sum[m][r] += __shfl_xor_sync(~0u, sum[m][r], 1);
      sum[m][r] += __shfl_xor_sync(~0u, sum[m][r], 2);
      int query = warp * 32 + m * 16 + r * 8 + lane / 4;
      if (query >= count) continue;
      float scale = p.value_scale / sum[m][r];
      W *to = (W *)p.output + (row + (int64_t)query * p.heads) * D;
#pragma unroll
      for (int i = 0; i < D / 8; i++) {
        float low = output[m][i][2 * r] * scale, high = output[m][i][2 * r + 1] * scale;
        if (V == IN_ROWS && sizeof(T) == 1) {  // dimensions part ways: see dimension_of
          to[dimension_of<T, V>(i, lane % 4 * 2)] = W(low);
          to[dimension_of<T, V>(i, lane % 4 * 2 + 1)] = W(high);
        } else {
          *(uint32_t *)(to + dimension_of<T, V>(i, lane % 4 * 2)) = pack<W>(low, high);
        }
      }
    }
}

#define PREFILL(name, ...)                                                                      \
  extern "C" __global__ void __launch_bounds__(WARPS * 32, 2) prefill_##name(const Prefill p) { \
    prefill_kernel<__VA_ARGS__>(p);                                                             \
  }
#define SIZES(dtype)                                          \
  HEAD_SIZE_64(PREFILL(dtype##_64, dtype, 64, IN_ROWS))          \
  HEAD_SIZE_64(PREFILL(dtype##_64_packed, dtype, 64, PACKED))    \
  PREFILL(dtype##_128, dtype, 128, IN_ROWS)                      \
  PREFILL(dtype##_128_packed, dtype, 128, PACKED)

SIZES(bf16)
SIZES(fp16)
SIZES(fp8)
