// What the variants with AVX-512 share. TARGET and INLINE are defined before.
#include <immintrin.h>
#include <string.h>

#include "host.h"

#define LANES 16
#define COLUMNS 4
#define ACCUMULATORS 16

typedef float vec __attribute__((vector_size(64)));
typedef int32_t ivec __attribute__((vector_size(64)));

INLINE __m256i half(const uint8_t *from) { return _mm256_loadu_si256((const __m256i *)from); }

INLINE vec load_bf16(const uint8_t *from) { return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half(from)), 16); }

INLINE vec load_fp16(const uint8_t *from) { return (vec)_mm512_cvtph_ps(half(from)); }

// The sign is extended over the exponent's upper bits and masked there; the exponent's bias is mended by the factor.
INLINE vec load_fp8(const uint8_t *from) {
	ivec b = (ivec)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from));
	return (vec)(b << 20 & (int32_t)0x87f00000) * 0x1p120f;
}

INLINE vec larger(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }

INLINE __m256 fold(vec v) {
	__m512 s = (__m512)v;
	return _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_castps512_ps256(_mm512_shuffle_f32x4(s, s, 0xee)));
}

INLINE void sum4(float *to, vec a, vec b, vec c, vec d) {
	__m256 s = _mm256_hadd_ps(_mm256_hadd_ps(fold(a), fold(b)), _mm256_hadd_ps(fold(c), fold(d)));
	_mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}

INLINE void to_bytes(uint8_t *to, ivec v) { _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8((__m512i)v)); }

INLINE void copy_line(uint8_t *to, const uint8_t *from) {
	_mm512_stream_si512((__m512i *)to, _mm512_load_si512(from));
}
