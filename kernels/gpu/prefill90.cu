// Paged prefill attention, causal, for Hopper (sm_90a) and caches of 16-bit rows: a block has 128 queries of one head.
// One warpgroup copies tiles of 128 tokens from the paged cache to shared memory; two more have 64 queries each and
// multiply with wgmma, the next tile's scores while the last one's values are added up (Shah et al., FlashAttention-3,
// 2024, section 3.2).
#include "wgmma.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Barriers of a block in shared memory. A pair of stages is full when all copies of a tile have landed, and empty when
// all warps that multiply have done with it.
struct Barriers {
  uint64_t queries, full_keys[STAGES], full_values[STAGES], empty_keys[STAGES], empty_values[STAGES];
};

// weigh turns scores into weights relative to the new maximum, and says by what the sums before shrink.
__device__ __forceinline__ void weigh(float (&score)[64], Rows &r, float scale, float (&shrink)[2]) {
#pragma unroll
  for (int row = 0; row < 2; row++) {
    float most = r.maximum[row];
#pragma unroll
    for (int i = 0; i < 16; i++) most = fmaxf(most, fmaxf(score[4 * i + 2 * row], score[4 * i + 2 * row + 1]));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
    shrink[row] = exp2_fast((r.maximum[row] - most) * scale);
    const float shift = most * scale;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 16; i++)
#pragma unroll
      for (int e = 4 * i + 2 * row; e < 4 * i + 2 * row + 2; e++) {
        score[e] = exp2_fast(score[e] * scale - shift);
        sum += score[e];
      }
    r.maximum[row] = most;
    r.sum[row] = r.sum[row] * shrink[row] + sum;
  }
}

// copy_tiles is what the first warpgroup does: queries, then all tiles of keys and values.
template <typename T, int D>
__device__ __forceinline__ void copy_tiles(const Prefill &p, const Part &part, uint32_t queries, uint32_t keys,
                                           uint32_t values, uint32_t barriers, int count, int end) {
  constexpr int UNITS = D / 8, ROWS = 32 / UNITS;  // of 16 bytes in a row; rows that a warp copies at a time
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, unit = lane % UNITS;
  const uint32_t column = unit / 8 * HALF;  // then within 128 bytes: unit % 8, swizzled with the row
  const int64_t first = (int64_t)(p.queries[part.sequence] + part.first) * p.heads + part.head;
#pragma unroll
  for (int i = 0; i < 32 / ROWS; i++) {
    const int row = warp * 32 + i * ROWS + lane / UNITS;
    load16(queries + column + row * 128 + (unit % 8 ^ row % 8) * 16,
           p.query + ((first + (int64_t)min(row, count - 1) * p.heads) * D + unit * 8) * 2, 16);
  }
  arrive_later(barriers + offsetof(Barriers, queries));

  const int32_t *table = p.table + p.starts[part.sequence];
  const uint32_t head = part.head / p.group, mask = (1u << p.cache.shift) - 1;
  const int tiles = (end + TOKENS - 1) / TOKENS;
  auto row_at = [&](int tile) {
    const int token = min(tile * TOKENS + warp * 32 + lane, end - 1);
    return row_of(p.cache, (uint32_t)__ldg(table + (token >> p.cache.shift)), token & mask, head);
  };
  uint32_t next = row_at(0);
  for (int tile = 0; tile < tiles; tile++) {
    const int stage = tile % STAGES;
    const uint32_t parity = (tile / STAGES + 1) & 1, rows = next;
    if (tile + 1 < tiles) next = row_at(tile + 1);
    auto copy = [&](char *from, uint32_t to) {
#pragma unroll 4
      for (int i = 0; i < 32 / ROWS; i++) {
        const int row = warp * 32 + i * ROWS + lane / UNITS;
        const uint32_t at_row = __shfl_sync(~0u, rows, i * ROWS + lane / UNITS) + unit;
        const int valid = tile * TOKENS + row < end ? 16 : 0;
        load16(to + column + row * 128 + (unit % 8 ^ row % 8) * 16, at(from, valid ? at_row : 0), valid);
      }
    };
    await(barriers + offsetof(Barriers, empty_keys) + stage * 8, parity);
    copy(p.cache.key, keys + stage * (D / 64) * HALF);
    arrive_later(barriers + offsetof(Barriers, full_keys) + stage * 8);
    await(barriers + offsetof(Barriers, empty_values) + stage * 8, parity);
    copy(p.cache.value, values + stage * (D / 64) * HALF);
    arrive_later(barriers + offsetof(Barriers, full_values) + stage * 8);
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
}

template <typename T, int D>
__device__ __forceinline__ void prefill_kernel(const Prefill &p) {
  typedef typename Query<T>::type W;
  extern __shared__ __align__(1024) char shared[];
  __shared__ Barriers shared_barriers;
  const uint32_t queries = shared_address(shared), keys = queries + D / 64 * HALF,
                 values = keys + STAGES * D / 64 * HALF, barriers = shared_address(&shared_barriers);
  const Part part = p.parts[blockIdx.x];
  const int first = p.queries[part.sequence];
  const int count = min(p.queries[part.sequence + 1] - first - part.first, QUERIES);
  const int begin = p.context[part.sequence] + part.first, end = begin + count;  // see prefill.cu
  if (threadIdx.x == 0) {
    initialise(barriers + offsetof(Barriers, queries), GROUP);
    for (int i = 0; i < STAGES; i++) {
      initialise(barriers + offsetof(Barriers, full_keys) + i * 8, GROUP);
      initialise(barriers + offsetof(Barriers, full_values) + i * 8, GROUP);
      initialise(barriers + offsetof(Barriers, empty_keys) + i * 8, 8);
      initialise(barriers + offsetof(Barriers, empty_values) + i * 8, 8);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  if (threadIdx.x < GROUP) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    copy_tiles<T, D>(p, part, queries, keys, values, barriers, count, end);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int group = threadIdx.x / GROUP - 1, lane = threadIdx.x % 32;
    const int row = group * 64 + threadIdx.x % GROUP / 32 * 16 + lane / 4;  // this thread's first query
    const uint32_t own = queries + group * 64 * 128;
    const int tiles = (end + TOKENS - 1) / TOKENS;
    auto full = [&](size_t barrier, int tile) {
      await(barriers + (uint32_t)barrier + tile % STAGES * 8, tile / STAGES & 1);
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // copies were ordinary writes, products are not
    };
    auto empty = [&](size_t barrier, int tile) {
      if (lane == 0) arrive(barriers + (uint32_t)barrier + tile % STAGES * 8);
    };
    float score[64], output[D / 2] = {}, shrink[2];
    uint32_t weight[32];
    Rows r;
    auto hide = [&](int tile) {  // what queries do not see
#pragma unroll
      for (int i = 0; i < 64; i++)
        if (tile * TOKENS + i / 4 * 8 + lane % 4 * 2 + i % 2 > begin + row + i / 2 % 2 * 8) score[i] = -INFINITY;
    };
    // Between products that are under way and the wait for them is no branch: the compiler would wait there.
    auto step = [&](int tile, auto hidden) {
      full(offsetof(Barriers, full_keys), tile);
      full(offsetof(Barriers, full_values), tile - 1);
      await_turn(group);
      scores<T, D>(score, own, keys + tile % STAGES * (D / 64) * HALF);
      add_values<T, D>(output, weight, values + (tile - 1) % STAGES * (D / 64) * HALF);
      give_turn(group);
      await_products<1>();
      empty(offsetof(Barriers, empty_keys), tile);
      if constexpr (decltype(hidden)::value) hide(tile);
      weigh(score, r, p.scale, shrink);
      await_products<0>();
      empty(offsetof(Barriers, empty_values), tile - 1);
#pragma unroll
      for (int i = 0; i < D / 2; i++) output[i] *= shrink[i / 2 % 2];
      round_weights<T>(weight, score);
    };
    if (group == 1) give_turn(group);
    await(barriers + offsetof(Barriers, queries), 0);
    full(offsetof(Barriers, full_keys), 0);
    await_turn(group);
    scores<T, D>(score, own, keys);
    give_turn(group);
    await_products<0>();
    empty(offsetof(Barriers, empty_keys), 0);
    hide(0);
    weigh(score, r, p.scale, shrink);
    round_weights<T>(weight, score);
    const int seen = (begin + group * 64 + 1) / TOKENS;  // tiles of which all queries of the warpgroup see all
    int tile = 1;
    for (; tile < seen; tile++) step(tile, cuda::std::false_type());
    for (; tile < tiles; tile++) step(tile, cuda::std::true_type());
    full(offsetof(Barriers, full_values), tiles - 1);
    add_values<T, D>(output, weight, values + (tiles - 1) % STAGES * (D / 64) * HALF);
    await_products<0>();
    if (group == 0) await_turn(group);  // the last turn that was given

    write_rows<W, D>(p, part, first, row, count, r, output);
  }
}

#define PREFILL(name, ...)                                                                    \
  extern "C" __global__ void __launch_bounds__(THREADS, 1) prefill90_##name(const Prefill p) { \
    prefill_kernel<__VA_ARGS__>(p);                                                           \
  }
HEAD_SIZE_64(PREFILL(bf16_64, bf16, 64))
HEAD_SIZE_64(PREFILL(fp16_64, fp16, 64))
PREFILL(bf16_128, bf16, 128)
PREFILL(fp16_128, fp16, 128)

#endif
