// Paged decode attention. The tokens of all (sequence, KV head) pairs are dealt to the blocks in equal shares, in
// segments; a block's warps take tiles of 16 tokens in turn, each with a pipeline of its own from the cache to shared
// memory, and multiply them with the (up to 8) queries of the head's group. Who finishes a pair last adds its parts up.
#include "attention.cuh"
#include <cuda/std/type_traits>

struct Segment {
  int32_t sequence, head;
  int32_t begin, end;   // tokens; begin is a multiple of 16
  int32_t part, parts;  // which part of the pair this is, of how many
  int32_t first;        // where the pair's parts begin in partial and total
  int32_t ticket;       // of the pair
};

struct Decode {
  Cache cache;
  const char *query;        // (sequences, heads, head size)
  char *output;             // the same
  const int32_t *table;     // the blocks of sequence i begin at table[starts[i]]
  const int32_t *starts;
  const Segment *segments;  // those of block i are from shares[i] to shares[i + 1]
  const int32_t *shares;
  float *partial;           // (parts, 8, head size): sums weighted with 2^(score - maximum)
  float2 *total;            // (parts, 8): maximum, sum of the weights
  uint32_t *tickets;        // zero between launches
  int32_t heads, group;     // query heads, and of them for each KV head
  float scale;              // of scores, with log2(e) in it
  float value_scale;
};

// Work is a segment with what else a block has to know of it: the kernels that are direct read it with one access, the
// others look it up where it stands.
struct Work {
  Segment segment;
  int32_t table;  // where the blocks of the sequence begin in the table
  int32_t at;     // the segment's number
  int32_t end;    // of the block's segments: one more than the number of the last
  int32_t unused;
};

struct DirectDecode : Decode {
  const Work *work;   // of every segment
  const Work *first;  // of every block
};

constexpr int WARPS = 4, ROWS = 8, STEP = WARPS * TILE;

// Pipeline is the shared memory of a block: for every warp STAGES tiles in WARP_BYTES, then its sums.
template <typename T, int D, Values V, int WARP_BYTES>
struct Pipeline {
  static constexpr int STAGE = 2 * Tile<T, D, V>::HALF;
  static constexpr int STAGES = WARP_BYTES / STAGE < 8 ? WARP_BYTES / STAGE : 8;
};

// Running is what a thread has of the softmax of one query (row lane / 4) over the tokens so far.
template <int D>
struct Running {
  float output[D / 8][4];  // as the matrix instructions deal them; the last two of four belong to rows without a query
  float maximum, sum;      // the sum is of this thread's tokens only
};

template <typename T, int D, Values V>
__device__ __forceinline__ void attend(Running<D> &r, const uint32_t (&query)[D / 16][2], uint32_t tile, int left,
                                       float scale) {
  typedef typename Operand<T>::type O;
  float score[2][4] = {};
#pragma unroll
  for (int k = 0; k < D / 32; k++) {
    uint32_t b[2][2][2];
    keys<T, D, V>(b, tile, k);
#pragma unroll
    for (int step = 0; step < 2; step++) {
      uint32_t a[4] = {query[2 * k + step][0], 0, query[2 * k + step][1], 0};
#pragma unroll
      for (int half = 0; half < 2; half++) multiply<O>(score[half], a, b[step][half][0], b[step][half][1]);
    }
  }
  float weight[2][2], most = r.maximum;
#pragma unroll
  for (int half = 0; half < 2; half++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      bool seen = (int)token_of<T, V>(half, threadIdx.x % 4 * 2 + i) < left;
      weight[half][i] = seen ? score[half][i] * scale : -INFINITY;
      most = fmaxf(most, weight[half][i]);
    }
  most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
  most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
  if (__any_sync(~0u, most != r.maximum)) {
    float shrink = exp2_fast(r.maximum - most);
    r.maximum = most;
    r.sum *= shrink;
#pragma unroll
    for (int i = 0; i < D / 8; i++) {
      r.output[i][0] *= shrink;
      r.output[i][1] *= shrink;
    }
  }
#pragma unroll
  for (int half = 0; half < 2; half++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      weight[half][i] = exp2_fast(weight[half][i] - most);
      r.sum += weight[half][i];
    }
  uint32_t a[4] = {pack<O>(weight[0][0], weight[0][1]), 0, pack<O>(weight[1][0], weight[1][1]), 0};
#pragma unroll
  for (int i = 0; i < D / 32; i++) {
    uint32_t b[4][2];
    values<T, D, V>(b, tile, i);
#pragma unroll
    for (int j = 0; j < 4; j++) multiply<O>(r.output[4 * i + j], a, b[j][0], b[j][1]);
  }
}

// load_query reads the queries of a group; of every 16 dimensions a thread has four, in the order that the instructions
// take or, for fp8 keys, four side by side.
template <typename T, int D>
__device__ __forceinline__ void load_query(uint32_t (&query)[D / 16][2], const Decode &p, int sequence, int head) {
  typedef typename Query<T>::type Q;
  typedef typename Operand<T>::type O;
  int lane = threadIdx.x % 32, row = lane / 4, n = lane % 4;
  const Q *from = (const Q *)p.query + ((int64_t)sequence * p.heads + head * p.group + row) * D;
#pragma unroll
  for (int k = 0; k < D / 16; k++)
#pragma unroll
    for (int j = 0; j < 2; j++) {
      int d = k * 16 + (sizeof(T) == 1 ? n * 4 + j * 2 : n * 2 + j * 8);
      query[k][j] = row < p.group ? pack<O>(number(from[d]), number(from[d + 1])) : 0;
    }
}

// finish writes a row of the output, one dimension a thread.
template <typename T, int D>
__device__ __forceinline__ void finish(const Decode &p, const Segment &s, int row, int dimension, float value,
                                       float sum) {
  typedef typename Query<T>::type Q;
  Q *to = (Q *)p.output + ((int64_t)s.sequence * p.heads + s.head * p.group + row) * D + dimension;
  *to = Q(value * (p.value_scale / sum));
}

// add_up writes the output of a pair of which this block has finished the last part.
template <typename T, int D, int AHEAD>
__device__ __forceinline__ void add_up(const Decode &p, const Segment &s) {
  for (int i = threadIdx.x * 4; i < p.group * D; i += WARPS * 32 * 4) {
    const int row = i / D;
    const float2 *totals = p.total + (int64_t)s.first * ROWS + row;
    const float *partial = p.partial + ((int64_t)s.first * ROWS + row) * D + i % D;
    float most = -INFINITY, sum = 0;
    float4 value = {};
    for (int part = 0; part < s.parts; part += AHEAD) {
      float2 total[AHEAD];
      float4 v[AHEAD];
#pragma unroll
      for (int j = 0; j < AHEAD; j++) {
        bool is = part + j < s.parts;
        int at = is ? part + j : 0;
        total[j] = __ldcg(totals + at * ROWS);
        v[j] = __ldcg((const float4 *)(partial + (int64_t)at * ROWS * D));
        if (!is) total[j].x = -INFINITY;
      }
      float before = most;
#pragma unroll
      for (int j = 0; j < AHEAD; j++) most = fmaxf(most, total[j].x);
      float shrink = exp2_fast(before - most);
      sum *= shrink, value.x *= shrink, value.y *= shrink, value.z *= shrink, value.w *= shrink;
#pragma unroll
      for (int j = 0; j < AHEAD; j++) {
        float weight = exp2_fast(total[j].x - most);
        sum += weight * total[j].y;
        value.x += weight * v[j].x, value.y += weight * v[j].y;
        value.z += weight * v[j].z, value.w += weight * v[j].w;
      }
    }
    finish<T, D>(p, s, row, i % D, value.x, sum);
    finish<T, D>(p, s, row, i % D + 1, value.y, sum);
    finish<T, D>(p, s, row, i % D + 2, value.z, sum);
    finish<T, D>(p, s, row, i % D + 3, value.w, sum);
  }
}

// Loader walks through a warp's tiles of all segments of its block, ahead of those that are attended to.
struct Loader {
  const int32_t *table;
  int share, token, end;
  uint32_t head;
  uint32_t block;  // of the lane's token in the tile, fetched when the tile before it is loaded

  // seek goes to the first segment from share on that has a tile for this warp.
  __device__ __forceinline__ void seek(const Decode &p, int shares) {
    for (; share < shares; share++) {
      const Segment &s = p.segments[share];
      token = s.begin + threadIdx.x / 32 * TILE;
      end = s.end;
      if (token >= end) continue;
      head = s.head;
      table = p.table + p.starts[s.sequence];
      break;
    }
  }
  __device__ __forceinline__ void seek(const DirectDecode &p, int shares) {
    for (; share < shares; share++)
      if (take(p, p.work[share])) break;
  }
  // take goes to a segment, and says whether it has a tile for this warp.
  __device__ __forceinline__ bool take(const Decode &p, const Work &w) {
    token = w.segment.begin + threadIdx.x / 32 * TILE;
    end = w.segment.end;
    head = w.segment.head;
    table = p.table + w.table;
    return token < end;
  }
  __device__ __forceinline__ void fetch(const Decode &p, int shares) {
    if (share < shares) block = __ldg(table + (min(token + (int)(threadIdx.x % TILE), end - 1) >> p.cache.shift));
  }
};

template <typename T, int D, Values V, int WARP_BYTES, typename P>
__device__ void decode_kernel(const P &p) {
  constexpr bool DIRECT = cuda::std::is_same<P, DirectDecode>::value;
  typedef Pipeline<T, D, V, WARP_BYTES> S;
  extern __shared__ __align__(128) char shared[];
  __shared__ float2 totals[WARPS][ROWS];
  __shared__ bool last;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t stages = shared_address(shared) + warp * S::STAGES * S::STAGE;
  float *sums = (float *)(shared + WARPS * S::STAGES * S::STAGE);  // (warps, rows, D)

  int share, shares;
  Loader loader;
  Work work;
  if constexpr (DIRECT) {
    work = p.first[blockIdx.x];
    share = loader.share = work.at, shares = work.end;
    if (!loader.take(p, work)) loader.share++, loader.seek(p, shares);
  } else {
    share = p.shares[blockIdx.x];
    shares = p.shares[blockIdx.x + 1];
    loader.share = share;
    loader.seek(p, shares);
  }
  loader.fetch(p, shares);
  int to = 0, from = 0;  // the stages that are loaded and attended to next
  auto load = [&]() {
    if (loader.share < shares) {
      load_tile<T, D, V>(p.cache, stages + to * S::STAGE, loader.block, loader.head, loader.token, loader.end);
      to = to + 1 < S::STAGES ? to + 1 : 0;
      if ((loader.token += STEP) >= loader.end) loader.share++, loader.seek(p, shares);
      loader.fetch(p, shares);
    }
    commit();
  };
  for (int i = 0; i < S::STAGES - 1; i++) load();

  for (; share < shares; share++) {
    Segment s;
    if constexpr (DIRECT)
      s = share == work.at ? work.segment : p.work[share].segment;
    else
      s = p.segments[share];
    uint32_t query[D / 16][2];
    load_query<T, D>(query, p, s.sequence, s.head);
    Running<D> r = {};
    r.maximum = -INFINITY;
    for (int token = s.begin + warp * TILE; token < s.end; token += STEP) {
      wait<S::STAGES - 2>();
      __syncwarp();
      load();
      attend<T, D, V>(r, query, stages + from * S::STAGE, s.end - token, p.scale);
      from = from + 1 < S::STAGES ? from + 1 : 0;
    }

    // The sums of the warps make the block's.
    r.sum += __shfl_xor_sync(~0u, r.sum, 1);
    r.sum += __shfl_xor_sync(~0u, r.sum, 2);
    if (lane % 4 == 0) totals[warp][lane / 4] = make_float2(r.maximum, r.sum);
#pragma unroll
    for (int i = 0; i < D / 8; i++)
#pragma unroll
      for (int e = 0; e < 2; e++)
        sums[(warp * ROWS + lane / 4) * D + dimension_of<T, V>(i, lane % 4 * 2 + e)] = r.output[i][e];
    __syncthreads();
    for (int i = threadIdx.x; i < p.group * D; i += WARPS * 32) {
      int row = i / D;
      float most = -INFINITY, sum = 0, value = 0;
#pragma unroll
      for (int w = 0; w < WARPS; w++) most = fmaxf(most, totals[w][row].x);
#pragma unroll
      for (int w = 0; w < WARPS; w++) {
        float weight = exp2_fast(totals[w][row].x - most);
        sum += weight * totals[w][row].y;
        value += weight * sums[w * ROWS * D + i];
      }
      if (s.parts == 1) {
        finish<T, D>(p, s, row, i % D, value, sum);
        continue;
      }
      int64_t part = (int64_t)(s.first + s.part) * ROWS + row;
      p.partial[part * D + i % D] = value;
      if (i % D == 0) p.total[part] = make_float2(most, sum);
    }
    if (s.parts > 1) {
      __threadfence();
      __syncthreads();
      if (threadIdx.x == 0) last = atomicInc(&p.tickets[s.ticket], s.parts - 1) == s.parts - 1;
      __syncthreads();
      if (last) {
        __threadfence();
        add_up<T, D, DIRECT ? 16 : 8>(p, s);
      }
    }
    __syncthreads();
  }
}

#define DECODE(name, P, BYTES, ...)                                                         \
  extern "C" __global__ void __launch_bounds__(WARPS * 32, 2) decode_##name(const P p) {    \
    decode_kernel<__VA_ARGS__, BYTES>(p);                                                   \
  }
// Kinds: see planDecode's caller in load.go. deep has half as many tiles more under way.
#define KINDS(name, ...)                                        \
  DECODE(name, Decode, 16 * 1024, __VA_ARGS__)                  \
  DECODE(name##_direct, DirectDecode, 16 * 1024, __VA_ARGS__)   \
  DECODE(name##_deep, DirectDecode, 24 * 1024, __VA_ARGS__)
#define SIZES(dtype)                                          \
  HEAD_SIZE_64(KINDS(dtype##_64, dtype, 64, IN_ROWS))         \
  HEAD_SIZE_64(KINDS(dtype##_64_packed, dtype, 64, PACKED))   \
  KINDS(dtype##_128, dtype, 128, IN_ROWS)                     \
  KINDS(dtype##_128_packed, dtype, 128, PACKED)

SIZES(bf16)
SIZES(fp16)
SIZES(fp8)
