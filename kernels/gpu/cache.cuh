// What the kernels share: where things lie in a paged cache, number formats, asynchronous copies, matrix instructions.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <stdint.h>

// HEAD_SIZE_64 is for the kernels of that size; a build to see whether everything compiles leaves them out.
#ifdef ONLY_HEAD_SIZE_128
#define HEAD_SIZE_64(...)
#else
#define HEAD_SIZE_64(...) __VA_ARGS__
#endif

typedef __nv_bfloat16 bf16;
typedef __half fp16;
typedef __nv_fp8_e4m3 fp8;

// Cache says where a token lies. Strides are in units of 16 bytes, which fit 32 bits for arrays up to 64 GiB: unit u of
// the key of a head of a token is at block * block + head * head + slot * slot + u * unit, and so is the value's, but
// for x-packed values: their dimension d is at block * block + head * head, then at number d * block_size + slot.
struct Cache {
  char *key, *value;
  uint32_t block, head, slot, unit;
  int32_t shift;  // log2 of block_size
  int32_t kv_heads;
};

__device__ __forceinline__ uint32_t row_of(const Cache &c, uint32_t block, uint32_t slot, uint32_t head) {
  return block * c.block + head * c.head + slot * c.slot;
}

__device__ __forceinline__ char *at(char *array, uint32_t unit) { return array + (uint64_t)unit * 16; }

// value_at is where dimension d of an x-packed value lies.
__device__ __forceinline__ int64_t value_at(const Cache &c, uint32_t block, uint32_t slot, uint32_t head, uint32_t d,
                                            int bytes) {
  return ((int64_t)block * c.block + (int64_t)head * c.head) * 16 + (int64_t)((d << c.shift) + slot) * bytes;
}

__device__ __forceinline__ float number(bf16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float number(fp16 v) { return __half2float(v); }
__device__ __forceinline__ float number(fp8 v) { return (float)v; }

// pack rounds two numbers to the nearest of T, the first in the lower half.
template <typename T>
__device__ __forceinline__ uint32_t pack(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack<bf16>(float low, float high) {
  __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
  return *(uint32_t *)&v;
}
template <>
__device__ __forceinline__ uint32_t pack<fp16>(float low, float high) {
  __half2 v = __floats2half2_rn(low, high);
  return *(uint32_t *)&v;
}

// Operand is the type in which the matrix instructions take a cache's numbers; fp8 is widened to fp16, which holds all
// of its numbers and all queries of usual size.
template <typename T>
struct Operand {
  typedef T type;
};
template <>
struct Operand<fp8> {
  typedef fp16 type;
};

// Query is the type of queries and of the output.
template <typename T>
struct Query {
  typedef T type;
};
template <>
struct Query<fp8> {
  typedef bf16 type;
};

// widen turns the lower two fp8 numbers into two fp16 numbers.
__device__ __forceinline__ uint32_t widen(uint32_t numbers) {
#if __CUDA_ARCH__ >= 890
  uint32_t v;
  asm("{.reg .b16 low, high; mov.b32 {low, high}, %1; cvt.rn.f16x2.e4m3x2 %0, low;}" : "=r"(v) : "r"(numbers));
  return v;
#else
  __half2_raw v = __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)numbers, __NV_E4M3);
  return (uint32_t)v.x | (uint32_t)v.y << 16;
#endif
}

__device__ __forceinline__ uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

// load16 copies 16 bytes to shared memory asynchronously, and zeros for those beyond the first bytes.
__device__ __forceinline__ void load16(uint32_t to, const void *from, int bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
}
template <int N>
__device__ __forceinline__ void load_small(uint32_t to, const void *from, int bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(N), "r"(bytes));
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;"); }
template <int N>
__device__ __forceinline__ void wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N));
}

__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}
__device__ __forceinline__ void load_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

// multiply adds the product of a 16 x 16 and a 16 x 8 matrix of T to a 16 x 8 matrix of float.
template <typename T>
__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ __forceinline__ void multiply<bf16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void multiply<fp16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
