// The variant for x86 with AVX2, FMA and F16C.
#ifdef __x86_64__
#include <immintrin.h>
#include <string.h>

#include "host.h"

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define INLINE static inline __attribute__((always_inline, target("avx2,fma,f16c")))
#define LANES 8
#define COLUMNS 2
#define ACCUMULATORS 8

typedef float vec __attribute__((vector_size(32)));
typedef int32_t ivec __attribute__((vector_size(32)));

INLINE __m128i half(const uint8_t *from) { return _mm_loadu_si128((const __m128i *)from); }

INLINE vec load_bf16(const uint8_t *from) { return (vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(half(from)), 16); }

INLINE vec load_fp16(const uint8_t *from) { return (vec)_mm256_cvtph_ps(half(from)); }

// The sign is extended over the exponent's upper bits and masked there; the exponent's bias is mended by the factor.
INLINE vec load_fp8(const uint8_t *from) {
	ivec b = (ivec)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from));
	return (vec)(b << 20 & (int32_t)0x87f00000) * 0x1p120f;
}

INLINE vec larger(vec a, vec b) { return (vec)_mm256_max_ps((__m256)a, (__m256)b); }

INLINE void sum4(float *to, vec a, vec b, vec c, vec d) {
	__m256 s = _mm256_hadd_ps(_mm256_hadd_ps((__m256)a, (__m256)b), _mm256_hadd_ps((__m256)c, (__m256)d));
	_mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}

INLINE void to_bytes(uint8_t *to, ivec v) {
	__m256i s = (__m256i)v;
	__m128i w = _mm_packus_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
	_mm_storel_epi64((__m128i *)to, _mm_packus_epi16(w, w));
}

INLINE void copy_line(uint8_t *to, const uint8_t *from) {
	__m256i a = _mm256_load_si256((const __m256i *)from), b = _mm256_load_si256((const __m256i *)from + 1);
	_mm256_stream_si256((__m256i *)to, a);
	_mm256_stream_si256((__m256i *)to + 1, b);
}

static int supported(void) {
	__builtin_cpu_init();
	return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

#define VARIANT host_avx2
#define VARIANT_NAME "avx2"
#include "variant.h"
#endif
