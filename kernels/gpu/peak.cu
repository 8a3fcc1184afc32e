// What the device does at most so fast: matrix products in registers and shared memory; and clocks read on it.
#include "cache.cuh"

struct Matrix {
  float *sink;     // never written to: the result must look as if it were needed
  int32_t rounds;  // of WARPGROUPS x M x N x K multiplications a block, and as many additions
  float never;     // a sum that does not occur
};

constexpr int THREADS = 256, WARPGROUPS = THREADS / 128;
constexpr int M = 64, N = 256, K = 64;  // of the product of a warpgroup in one round

// normal is about normally distributed, from a hash: on zeros a GPU clocks higher than on data.
__device__ __forceinline__ float normal(uint32_t i) {
  float sum = 0;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    i = (i ^ i >> 16) * 0x7feb352du;
    i = (i ^ i >> 15) * 0x846ca68bu;
    sum += (float)(i >> 8) * (1.0f / (1 << 24)) - 0.5f;
  }
  return sum * 1.7320508f;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// describe is the descriptor of a matrix in shared memory of rows of 128 bytes, swizzled over 128 (PTX ISA, matrix
// descriptor): 8 rows are 1,024 bytes.
__device__ __forceinline__ uint64_t describe(uint32_t address) {
  return (uint64_t)(address >> 4 & 0x3fff) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

__device__ __forceinline__ void product(float (&c)[128], uint64_t a, uint64_t b) {
#define C4(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define C16(i) C4(i), C4(i + 4), C4(i + 8), C4(i + 12)
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,"
      "%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,"
      "%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,"
      "%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,"
      "%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127}, "
      "%128, %129, 1, 1, 1, 0, 0;"
      : C16(0), C16(16), C16(32), C16(48), C16(64), C16(80), C16(96), C16(112)
      : "l"(a), "l"(b));
#undef C16
#undef C4
}

// matrix: a warpgroup multiplies 64 x 64 numbers of its own with 64 x 256 that it shares (wgmma).
extern "C" __global__ void __launch_bounds__(THREADS, 1) matrix(const Matrix p) {
  __shared__ __align__(1024) bf16 a[WARPGROUPS][M * K], b[N * K];
  for (int i = threadIdx.x; i < WARPGROUPS * M * K; i += THREADS) a[0][i] = normal(i);
  for (int i = threadIdx.x; i < N * K; i += THREADS) b[i] = normal(i + 0x10000);
  asm volatile("fence.proxy.async.shared::cta;");
  __syncthreads();
  const uint64_t left = describe(shared_address(a[threadIdx.x / 128])), right = describe(shared_address(b));
  float c[128] = {};
  for (int round = 0; round < p.rounds; round++) {
    asm volatile("wgmma.fence.sync.aligned;");
#pragma unroll
    for (int k = 0; k < K / 16; k++) product(c, left + 2 * k, right + 2 * k);  // 32 bytes further, in units of 16
    asm volatile("wgmma.commit_group.sync.aligned;");
    asm volatile("wgmma.wait_group.sync.aligned 0;");
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 128; i++) sum += c[i];
  if (sum == p.never) *p.sink = sum;
}

#else

// matrix: a warp multiplies in registers (mma.sync).
extern "C" __global__ void __launch_bounds__(THREADS, 2) matrix(const Matrix p) {
  constexpr int CHAINS = 16, STEPS = WARPGROUPS * M * N * K / (THREADS / 32) / (16 * 8 * 16) / CHAINS;
  uint32_t a[4], b[CHAINS][2];
#pragma unroll
  for (int i = 0; i < 4; i++) a[i] = pack<bf16>(normal(threadIdx.x * 8 + i), normal(threadIdx.x * 8 + i + 4));
#pragma unroll
  for (int i = 0; i < CHAINS; i++)
#pragma unroll
    for (int j = 0; j < 2; j++) {
      uint32_t seed = 0x10000 + ((threadIdx.x * CHAINS + i) * 2 + j) * 2;
      b[i][j] = pack<bf16>(normal(seed), normal(seed + 1));
    }
  float c[CHAINS][4] = {};
  for (int round = 0; round < p.rounds; round++)
#pragma unroll
    for (int step = 0; step < STEPS; step++)
#pragma unroll
      for (int i = 0; i < CHAINS; i++) multiply<bf16>(c[i], a, b[i][0], b[i][1]);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < CHAINS; i++) sum += c[i][0] + c[i][1] + c[i][2] + c[i][3];
  if (sum == p.never) *p.sink = sum;
}

#endif

struct Empty {
  int32_t nothing;
};

// empty does nothing: what a launch costs.
extern "C" __global__ void empty(const Empty p) {}

struct Stamp {
  uint64_t *at;  // (multiprocessors, 2): cycles, nanoseconds
};

// stamp reads the clocks of every multiprocessor that a block of it runs on.
extern "C" __global__ void stamp(const Stamp p) {
  uint32_t processor;
  uint64_t cycles, nanoseconds;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(processor));
  asm volatile("mov.u64 %0, %%clock64;" : "=l"(cycles));
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(nanoseconds));
  p.at[processor * 2] = cycles;
  p.at[processor * 2 + 1] = nanoseconds;
}
