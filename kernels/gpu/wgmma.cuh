// What the prefill kernels for Hopper (sm_90a) share: barriers in shared memory, wgmma on tiles of 128 queries or tokens,
// turns of the two warpgroups that multiply.
#pragma once
#include "cache.cuh"
#include "prefill.cuh"
#include <cuda/std/type_traits>

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

constexpr int GROUP = 128, THREADS = 3 * GROUP;      // threads of a warpgroup, of a block
constexpr int QUERIES = 128, TOKENS = 128, STAGES = 3;
constexpr int HALF = TOKENS * 128;                   // bytes of 64 dimensions of a tile: rows of 128 bytes, swizzled

__device__ __forceinline__ void initialise(uint32_t barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count));
}
__device__ __forceinline__ void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// arrive_later arrives when the copies that this thread has begun have landed.
__device__ __forceinline__ void arrive_later(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void await(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{.reg .pred done; again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; @done bra over; bra again; over: }"
      ::"r"(barrier), "r"(parity) : "memory");
}

// describe is the descriptor of a matrix of rows of 128 swizzled bytes (PTX ISA, matrix descriptor). Eight rows are 1,024
// bytes; where the rows are the inner dimension (values), the other 64 columns are HALF bytes further.
__device__ __forceinline__ uint64_t describe(uint32_t address) {
  return (uint64_t)(address >> 4 & 0x3fff) | (uint64_t)(HALF >> 4) << 16 | 64ull << 32 | 1ull << 62;
}

#define C4(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define C16(i) C4(i), C4(i + 4), C4(i + 8), C4(i + 12)
#define R64                                                                                                         \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29," \
  "%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,"    \
  "%57,%58,%59,%60,%61,%62,%63}"
#define R32                                                                                                         \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29," \
  "%30,%31}"

// multiply_scores: scores (64 x 128) of 16 dimensions; add is 0 for the first.
template <typename T>
__device__ __forceinline__ void multiply_scores(float (&c)[64], uint64_t queries, uint64_t keys, int add);
// multiply_values adds weights (64 x 16) times values (16 x D) to the output.
template <typename T>
__device__ __forceinline__ void multiply_values(float (&c)[64], const uint32_t *a, uint64_t values);
template <typename T>
__device__ __forceinline__ void multiply_values(float (&c)[32], const uint32_t *a, uint64_t values);

#define MULTIPLY(T, NAME)                                                                                             \
  template <>                                                                                                         \
  __device__ __forceinline__ void multiply_scores<T>(float (&c)[64], uint64_t queries, uint64_t keys, int add) {      \
    asm volatile("{.reg .pred p; setp.ne.b32 p, %66, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32." NAME "." NAME   \
                 " " R64 ", %64, %65, p, 1, 1, 0, 0;}"                                                                \
                 : C16(0), C16(16), C16(32), C16(48)                                                                  \
                 : "l"(queries), "l"(keys), "r"(add));                                                                \
  }                                                                                                                   \
  template <>                                                                                                         \
  __device__ __forceinline__ void multiply_values<T>(float (&c)[64], const uint32_t *a, uint64_t values) {            \
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." NAME "." NAME " " R64                                 \
                 ", {%64,%65,%66,%67}, %68, 1, 1, 1, 1;"                                                              \
                 : C16(0), C16(16), C16(32), C16(48)                                                                  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(values));                                          \
  }                                                                                                                   \
  template <>                                                                                                         \
  __device__ __forceinline__ void multiply_values<T>(float (&c)[32], const uint32_t *a, uint64_t values) {            \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." NAME "." NAME " " R32                                  \
                 ", {%32,%33,%34,%35}, %36, 1, 1, 1, 1;"                                                              \
                 : C16(0), C16(16)                                                                                    \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(values));                                          \
  }
MULTIPLY(bf16, "bf16")
MULTIPLY(fp16, "f16")

__device__ __forceinline__ void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
__device__ __forceinline__ void await_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// The two warpgroups that multiply take turns: while one has products under way the other computes weights.
__device__ __forceinline__ void await_turn(int group) {
  asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "n"(2 * GROUP) : "memory");
}
__device__ __forceinline__ void give_turn(int group) {
  asm volatile("bar.arrive %0, %1;" ::"r"(2 - group), "n"(2 * GROUP) : "memory");
}

// Rows is what a thread has of the softmax of its two queries, lane / 4 and 8 more of its warp's 16.
struct Rows {
  float maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {};
};

template <typename T, int D>
__device__ __forceinline__ void scores(float (&score)[64], uint32_t queries, uint32_t keys) {
  fence_products();
#pragma unroll
  for (int k = 0; k < D / 16; k++)
    multiply_scores<T>(score, describe(queries + k / 4 * HALF) + k % 4 * 2, describe(keys + k / 4 * HALF) + k % 4 * 2, k);
  commit_products();
}

template <typename T, int D>
__device__ __forceinline__ void add_values(float (&output)[D / 2], const uint32_t (&weight)[32], uint32_t values) {
  fence_products();
#pragma unroll
  for (int k = 0; k < TOKENS / 16; k++) multiply_values<T>(output, weight + 4 * k, describe(values + k * 2048));
  commit_products();
}

template <typename T>
__device__ __forceinline__ void round_weights(uint32_t (&weight)[32], const float (&score)[64]) {
#pragma unroll
  for (int i = 0; i < 32; i++) weight[i] = pack<T>(score[2 * i], score[2 * i + 1]);
}

// write_rows writes what a thread has of the outputs of its two queries: row, counted in the part, and 8 more.
template <typename W, int D>
__device__ __forceinline__ void write_rows(const Prefill &p, const Part &part, int first, int row, int count,
                                           const Rows &r, const float (&output)[D / 2]) {
  const int lane = threadIdx.x % 32;
  const int64_t at_row = (int64_t)(first + part.first + row) * p.heads + part.head;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float sum = r.sum[half];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    if (row + half * 8 >= count) continue;
    const float scale = p.value_scale / sum;
    W *to = (W *)p.output + (at_row + (int64_t)half * 8 * p.heads) * D + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < D / 8; i++)
      *(uint32_t *)(to + i * 8) = pack<W>(output[4 * i + 2 * half] * scale, output[4 * i + 2 * half + 1] * scale);
  }
}

#endif
