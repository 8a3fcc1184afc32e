// The variant in plain C, with the compiler's own vectors: for every machine.
#include <string.h>

#include "host.h"

#define TARGET
#define INLINE static inline __attribute__((always_inline))
#define LANES 4
#define COLUMNS 2
#define ACCUMULATORS 8

typedef float vec __attribute__((vector_size(16)));
typedef int32_t ivec __attribute__((vector_size(16)));

INLINE ivec widen(const uint8_t *from) {
	uint16_t h[4];
	memcpy(h, from, sizeof h);
	return (ivec){h[0], h[1], h[2], h[3]};
}

INLINE vec load_bf16(const uint8_t *from) { return (vec)(widen(from) << 16); }

// The exponent is moved up as if its bias were float32's, which a multiplication by the difference mends, for
// subnormal numbers too. Infinity and NaN become numbers: no token has them.
INLINE vec load_fp16(const uint8_t *from) {
	ivec h = widen(from);
	return (vec)((h & 0x8000) << 16 | (h & 0x7fff) << 13) * 0x1p112f;
}

INLINE vec load_fp8(const uint8_t *from) {
	ivec b = {(int8_t)from[0], (int8_t)from[1], (int8_t)from[2], (int8_t)from[3]};
	return (vec)(b << 20 & (int32_t)0x87f00000) * 0x1p120f;
}

INLINE vec larger(vec a, vec b) {
	ivec mask = a > b;
	return (vec)((mask & (ivec)a) | (~mask & (ivec)b));
}

INLINE void sum4(float *to, vec a, vec b, vec c, vec d) {
	to[0] = a[0] + a[1] + (a[2] + a[3]);
	to[1] = b[0] + b[1] + (b[2] + b[3]);
	to[2] = c[0] + c[1] + (c[2] + c[3]);
	to[3] = d[0] + d[1] + (d[2] + d[3]);
}

INLINE void to_bytes(uint8_t *to, ivec v) {
	for (int i = 0; i < 4; i++)
		to[i] = (uint8_t)v[i];
}

INLINE void copy_line(uint8_t *to, const uint8_t *from) { memcpy(to, from, 64); }

static int supported(void) { return 1; }

#define VARIANT host_plain
#define VARIANT_NAME "plain"
#include "variant.h"
