// The variant for x86 with AVX-512's products of bf16, which do twice the work of float32 in decode. fp8 is exact in
// bf16; the probabilities are rounded to it, as on a GPU.
#ifdef __x86_64__
#define FEATURES "avx512f,avx512bw,avx512vl,avx512bf16,avx512vbmi,avx2,fma,f16c"
#define TARGET __attribute__((target(FEATURES)))
#define INLINE static inline __attribute__((always_inline, target(FEATURES)))
#include "avx512.h"
#include "rows.h"

// fp8's positive numbers in bf16, high and low bytes. A normal number's exponent and mantissa move to their new places,
// (code << 4), and the bias from 7 to 127, (120 << 7); the first eight codes are multiples of 2^-9.
#define EIGHT(part, code)                                                                             \
	part(code), part(code + 1), part(code + 2), part(code + 3), part(code + 4), part(code + 5), \
	    part(code + 6), part(code + 7)
#define NORMAL(part)                                                                                              \
	EIGHT(part, 8), EIGHT(part, 16), EIGHT(part, 24), EIGHT(part, 32), EIGHT(part, 40), EIGHT(part, 48),    \
	    EIGHT(part, 56), EIGHT(part, 64), EIGHT(part, 72), EIGHT(part, 80), EIGHT(part, 88), EIGHT(part, 96), \
	    EIGHT(part, 104), EIGHT(part, 112), EIGHT(part, 120)
#define HIGH(code) ((((code) << 4) + (120 << 7)) >> 8)
#define LOW(code) (((code) << 4) & 0xff)
static const uint8_t fp8_high[128] __attribute__((aligned(64))) = {0x00, 0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c,
                                                                   NORMAL(HIGH)};
static const uint8_t fp8_low[128] __attribute__((aligned(64))) = {0x00, 0x00, 0x80, 0xc0, 0x00, 0x20, 0x40, 0x60,
                                                                  NORMAL(LOW)};

// numbers is the i-th 64 numbers of a row in bf16.
INLINE void numbers(int dtype, const uint8_t *row, int i, __m512i to[2]) {
	if (dtype == BF16) {
		to[0] = _mm512_loadu_si512(row + i * 128);
		to[1] = _mm512_loadu_si512(row + i * 128 + 64);
		return;
	}
	// Unpacking works within 128 bits: the 8 bytes of each half are put where they come out in order.
	const __m512i spread = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0), sign = _mm512_set1_epi8((char)0x80);
	__m512i c = _mm512_permutexvar_epi64(spread, _mm512_loadu_si512(row + i * 64));
	__m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(fp8_low), c, _mm512_load_si512(fp8_low + 64));
	__m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(fp8_high), c, _mm512_load_si512(fp8_high + 64));
	high = _mm512_ternarylogic_epi64(high, c, sign, 0xf8); // high | (c & sign)
	to[0] = _mm512_unpacklo_epi8(low, high);
	to[1] = _mm512_unpackhi_epi8(low, high);
}

INLINE __m512 dot(__m512 sum, __m512i a, __m512i b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }

static int supported(void) {
	__builtin_cpu_init();
	return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
	       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16") &&
	       __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
	       __builtin_cpu_supports("f16c");
}

#define DOT
#define VARIANT host_avx512bf16
#define VARIANT_NAME "avx512bf16"
#include "variant.h"
#endif
