// Paged prefill attention as in prefill90.cu, with blocks that stay: each has a list of parts, made on the host such
// that all end at about the same time, and copies the next part's keys while the last one's output is written. Tiles
// whose tokens are all there come in bulk tensor copies, a box of one block (16 tokens and more) each; where blocks are
// smaller, and at the end of a sequence, in copies of 16 bytes.
#include "wgmma.cuh"

struct Tensor {
  alignas(64) char map[128];  // CUtensorMap: 64 dimensions, slots, heads, blocks
};

struct Persistent {
  Prefill prefill;        // with parts in the order of shares
  const int32_t *shares;  // block i has the parts from shares[i] to shares[i + 1]
  Tensor keys, values;    // of the cache, for bulk copies
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// A pair of stages is full when all copies of a tile have landed, and empty when all warps that multiply have done with
// it; so are the queries of a part.
struct Barriers {
  uint64_t full_queries, empty_queries;
  uint64_t full_keys[STAGES], full_values[STAGES], empty_keys[STAGES], empty_values[STAGES];
};

constexpr int OWN = TOKENS / 4;  // rows of a tile that a warp copies

__device__ __forceinline__ void expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copy_box(uint32_t to, const Tensor &from, uint32_t barrier, int dimension, int slot,
                                         int head, int block) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
               "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to), "l"(&from), "r"(barrier), "r"(dimension), "r"(slot),
               "r"(head), "r"(block)
               : "memory");
}

// weigh turns scores into weights relative to the new maximum, and says by what the sums before shrink.
__device__ __forceinline__ void weigh(float (&score)[64], Rows &r, float scale, float (&shrink)[2]) {
  constexpr int CHAINS = 4;  // maxima, and sums, that do not wait for each other
  float most[2][CHAINS], sum[2][CHAINS], shift[2];
#pragma unroll
  for (int i = 0; i < 16; i++)
#pragma unroll
    for (int row = 0; row < 2; row++) {
      const float pair = fmaxf(score[4 * i + 2 * row], score[4 * i + 2 * row + 1]);
      most[row][i % CHAINS] = i < CHAINS ? pair : fmaxf(most[row][i % CHAINS], pair);
    }
#pragma unroll
  for (int row = 0; row < 2; row++) {
    float m = fmaxf(fmaxf(most[row][0], most[row][1]), fmaxf(most[row][2], most[row][3]));
    m = fmaxf(m, r.maximum[row]);
    m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
    m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
    shrink[row] = exp2_fast((r.maximum[row] - m) * scale);
    shift[row] = m * scale;
    r.maximum[row] = m;
  }
#pragma unroll
  for (int i = 0; i < 16; i++)
#pragma unroll
    for (int row = 0; row < 2; row++) {
      float &a = score[4 * i + 2 * row], &b = score[4 * i + 2 * row + 1];
      a = exp2_fast(a * scale - shift[row]);
      b = exp2_fast(b * scale - shift[row]);
      sum[row][i % CHAINS] = i < CHAINS ? a + b : sum[row][i % CHAINS] + (a + b);
    }
#pragma unroll
  for (int row = 0; row < 2; row++)
    r.sum[row] = r.sum[row] * shrink[row] + ((sum[row][0] + sum[row][1]) + (sum[row][2] + sum[row][3]));
}

// Ring is where a warpgroup is in the stages that follow each other through all parts of a block.
struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void next() {
    if (++stage == STAGES) stage = 0, parity ^= 1;
  }
};

// copy_part is what the first warpgroup does for a part: queries, then all tiles of keys and values.
template <typename T, int D, bool BULK>
__device__ __forceinline__ void copy_part(const Persistent &all, const Part &part, uint32_t queries, uint32_t keys,
                                          uint32_t values, uint32_t barriers, int number, Ring &ring) {
  constexpr int UNITS = D / 8, ROWS = 32 / UNITS;  // of 16 bytes in a row; rows that a warp copies at a time
  const Prefill &p = all.prefill;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, unit = lane % UNITS;
  const int first = p.queries[part.sequence], count = min(p.queries[part.sequence + 1] - first - part.first, QUERIES);
  const int end = p.context[part.sequence] + part.first + count, tiles = (end + TOKENS - 1) / TOKENS;
  const uint32_t column = unit / 8 * HALF;  // then within 128 bytes: unit % 8, swizzled with the row
  auto place = [&](int row) { return column + row * 128 + (unit % 8 ^ row % 8) * 16; };

  await(barriers + offsetof(Barriers, empty_queries), (number + 1) & 1);
  const int64_t query = (int64_t)(first + part.first) * p.heads + part.head;
#pragma unroll 4
  for (int i = 0; i < 32 / ROWS; i++) {
    const int row = warp * 32 + i * ROWS + lane / UNITS;
    load16(queries + place(row), p.query + ((query + (int64_t)min(row, count - 1) * p.heads) * D + unit * 8) * 2, 16);
  }
  arrive_later(barriers + offsetof(Barriers, full_queries));

  const int32_t *table = p.table + p.starts[part.sequence];
  const uint32_t head = part.head / p.group, mask = (1u << p.cache.shift) - 1;
  // With bulk copies a lane has a box: up to OWN tokens of a block, 64 dimensions. Else it has one token.
  const int size = min(OWN, 1 << p.cache.shift), box = lane / (D / 64), half = lane % (D / 64);
  const int own = warp * OWN + (BULK ? min(box * size, OWN - 1) : lane);  // the lane's token in a tile
  auto block_of = [&](int tile) {
    return (uint32_t)__ldg(table + (min(tile * TOKENS + own, end - 1) >> p.cache.shift));
  };
  // copy_rows copies a warp's rows of a tile in pieces of 16 bytes, and zeros for tokens that are not there. of is the
  // block of the lane's token.
  auto copy_rows = [&](char *from, uint32_t to, int tile, uint32_t of) {
    const uint32_t row_at = row_of(p.cache, of, min(tile * TOKENS + warp * OWN + lane, end - 1) & mask, head);
#pragma unroll 4
    for (int i = 0; i < OWN / ROWS; i++) {
      const int row = warp * OWN + i * ROWS + lane / UNITS, valid = tile * TOKENS + row < end ? 16 : 0;
      const uint32_t from_row = __shfl_sync(~0u, row_at, i * ROWS + lane / UNITS) + unit;
      load16(to + place(row), at(from, valid ? from_row : 0), valid);
    }
  };
  auto copy = [&](char *from, const Tensor &tensor, uint32_t to, uint32_t full, int tile, uint32_t block) {
    if constexpr (!BULK) {
      copy_rows(from, to, tile, block);
      arrive_later(full);
    } else if ((tile + 1) * TOKENS <= end) {
      if (lane == 0) expect(full, OWN * D * 2);
      __syncwarp();
      if (box * size < OWN)
        copy_box(to + half * HALF + own * 128, tensor, full, half * 64, tile * TOKENS + own & mask, head, block);
    } else {  // a last tile: boxes would bring what lies behind the last token
      const int token = min(tile * TOKENS + warp * OWN + lane, end - 1);
      copy_rows(from, to, tile, (uint32_t)__ldg(table + (token >> p.cache.shift)));
      asm volatile("cp.async.wait_all; fence.proxy.async.shared::cta;" ::: "memory");
      __syncwarp();
      if (lane == 0) arrive(full);
    }
  };
  uint32_t next = block_of(0);
  for (int tile = 0; tile < tiles; tile++, ring.next()) {
    const uint32_t block = next, stage = ring.stage * 8, at_stage = ring.stage * (D / 64) * HALF;
    if (tile + 1 < tiles) next = block_of(tile + 1);
    await(barriers + offsetof(Barriers, empty_keys) + stage, ring.parity ^ 1);
    copy(p.cache.key, all.keys, keys + at_stage, barriers + offsetof(Barriers, full_keys) + stage, tile, block);
    await(barriers + offsetof(Barriers, empty_values) + stage, ring.parity ^ 1);
    copy(p.cache.value, all.values, values + at_stage, barriers + offsetof(Barriers, full_values) + stage, tile, block);
  }
}

// attend_part is what the others do for a part.
template <typename T, int D, bool BULK>
__device__ __forceinline__ void attend_part(const Prefill &p, const Part &part, uint32_t queries, uint32_t keys,
                                            uint32_t values, uint32_t barriers, int number, Ring &ring) {
  typedef typename Query<T>::type W;
  const int first = p.queries[part.sequence], count = min(p.queries[part.sequence + 1] - first - part.first, QUERIES);
  const int begin = p.context[part.sequence] + part.first, end = begin + count;  // see prefill.cu
  const int group = threadIdx.x / GROUP - 1, lane = threadIdx.x % 32;
  const int row = group * 64 + threadIdx.x % GROUP / 32 * 16 + lane / 4;  // this thread's first query
  const uint32_t own = queries + group * 64 * 128;
  const int tiles = (end + TOKENS - 1) / TOKENS;
  auto full = [&](size_t barrier, const Ring &at) {
    await(barriers + (uint32_t)barrier + at.stage * 8, at.parity);
    // Small copies are ordinary writes, products are not.
    if constexpr (!BULK) asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  };
  auto empty = [&](size_t barrier, const Ring &at) {
    if (lane == 0) arrive(barriers + (uint32_t)barrier + at.stage * 8);
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
    const Ring last = ring;
    ring.next();
    full(offsetof(Barriers, full_keys), ring);
    full(offsetof(Barriers, full_values), last);
    await_turn(group);
    scores<T, D>(score, own, keys + ring.stage * (D / 64) * HALF);
    add_values<T, D>(output, weight, values + last.stage * (D / 64) * HALF);
    give_turn(group);
    await_products<1>();
    if constexpr (decltype(hidden)::value) hide(tile);
    weigh(score, r, p.scale, shrink);
    // The compiler would move the second wait up to the first, and weigh after it. Sums are not negative, which it does
    // not know: what it takes for a part of the address keeps all weights before the arrival, and so before the wait.
    const uint32_t zero = (__float_as_uint(r.sum[0]) | __float_as_uint(r.sum[1])) >> 31;
    if (lane == 0) arrive(barriers + (uint32_t)offsetof(Barriers, empty_keys) + (ring.stage + zero) * 8);
    await_products<0>();
    empty(offsetof(Barriers, empty_values), last);
    if (__any_sync(~0u, shrink[0] != 1 || shrink[1] != 1)) {
#pragma unroll
      for (int i = 0; i < D / 2; i++) output[i] *= shrink[i / 2 % 2];
    }
    round_weights<T>(weight, score);
  };
  await(barriers + offsetof(Barriers, full_queries), number & 1);
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // queries came in small copies
  full(offsetof(Barriers, full_keys), ring);
  await_turn(group);
  scores<T, D>(score, own, keys + ring.stage * (D / 64) * HALF);
  give_turn(group);
  await_products<0>();
  empty(offsetof(Barriers, empty_keys), ring);
  hide(0);
  weigh(score, r, p.scale, shrink);
  round_weights<T>(weight, score);
  const int seen = (begin + group * 64 + 1) / TOKENS;  // tiles of which all queries of the warpgroup see all
  int tile = 1;
  for (; tile < seen; tile++) step(tile, cuda::std::false_type());
  for (; tile < tiles; tile++) step(tile, cuda::std::true_type());
  if (lane == 0) arrive(barriers + offsetof(Barriers, empty_queries));
  full(offsetof(Barriers, full_values), ring);
  add_values<T, D>(output, weight, values + ring.stage * (D / 64) * HALF);
  await_products<0>();
  empty(offsetof(Barriers, empty_values), ring);
  ring.next();
  write_rows<W, D>(p, part, first, row, count, r, output);
}

template <typename T, int D, bool BULK>
__device__ __forceinline__ void persistent_kernel(const Persistent &p) {
  extern __shared__ __align__(1024) char shared[];
  __shared__ Barriers shared_barriers;
  const uint32_t queries = shared_address(shared), keys = queries + D / 64 * HALF,
                 values = keys + STAGES * D / 64 * HALF, barriers = shared_address(&shared_barriers);
  if (threadIdx.x == 0) {
    initialise(barriers + offsetof(Barriers, full_queries), GROUP);
    initialise(barriers + offsetof(Barriers, empty_queries), 8);
    for (int i = 0; i < STAGES; i++) {
      initialise(barriers + offsetof(Barriers, full_keys) + i * 8, BULK ? 4 : GROUP);
      initialise(barriers + offsetof(Barriers, full_values) + i * 8, BULK ? 4 : GROUP);
      initialise(barriers + offsetof(Barriers, empty_keys) + i * 8, 8);
      initialise(barriers + offsetof(Barriers, empty_values) + i * 8, 8);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  const int begin = p.shares[blockIdx.x], end = p.shares[blockIdx.x + 1];
  Ring ring;
  if (threadIdx.x < GROUP) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    for (int i = begin; i < end; i++)
      copy_part<T, D, BULK>(p, p.prefill.parts[i], queries, keys, values, barriers, i - begin, ring);
    asm volatile("cp.async.wait_all;" ::: "memory");
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int group = threadIdx.x / GROUP - 1;
    if (group == 1) give_turn(group);
    for (int i = begin; i < end; i++)
      attend_part<T, D, BULK>(p.prefill, p.prefill.parts[i], queries, keys, values, barriers, i - begin, ring);
    if (group == 0) await_turn(group);  // the last turn that was given
  }
}

#define PERSISTENT(name, ...)                                                                   \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)                                      \
      prefill90p_##name(const __grid_constant__ Persistent p) {                                 \
    persistent_kernel<__VA_ARGS__>(p);                                                          \
  }
#define COPIES(name, ...)                      \
  PERSISTENT(name, __VA_ARGS__, false)         \
  PERSISTENT(name##_bulk, __VA_ARGS__, true)
HEAD_SIZE_64(COPIES(bf16_64, bf16, 64))
HEAD_SIZE_64(COPIES(fp16_64, fp16, 64))
COPIES(bf16_128, bf16, 128)
COPIES(fp16_128, fp16, 128)

#endif
