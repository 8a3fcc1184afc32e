// The attention kernels and the streaming loops, once for every instruction set. The file that includes this one
// defines before:
//
//   INLINE      static inline, always, for the instruction set
//   TARGET      the attribute of a function for the instruction set
//   LANES       how many float32 a vector has
//   COLUMNS     vectors in a row of the register block of multiply; the block has 4 rows
//   ACCUMULATORS   vectors that decode adds scores up in: a third to a half of the registers, a multiple of 4, at most 16
//   vec, ivec   vectors of LANES float and int32_t
//   load_bf16, load_fp16, load_fp8   LANES numbers as float32
//   larger      the larger of each lane
//   sum4        the sums of four vectors
//   to_bytes    stores the low bytes of LANES int32_t
//   copy_line   copies 64 bytes between multiples of 64
//   supported   whether the machine has what the variant uses
//   DOT         where there are dot_scores and dot_values, which decode bf16 and fp8 caches in products of bf16
//   VARIANT, VARIANT_NAME   the variant's name in C and for people
#include <float.h>
#include <math.h>

#include "rows.h"

static const float lowest = -1e30f; // a score that no softmax sees; finite, so that differences are

INLINE vec splat(float v) { return (vec){} + v; }

INLINE vec load(const float *from) {
	vec v;
	memcpy(&v, from, sizeof v);
	return v;
}

INLINE void store(float *to, vec v) { memcpy(to, &v, sizeof v); }

// number is the i-th vector of a row.
INLINE vec number(int dtype, const uint8_t *row, int i) {
	if (dtype == BF16)
		return load_bf16(row + i * LANES * 2);
	if (dtype == FP16)
		return load_fp16(row + i * LANES * 2);
	return load_fp8(row + i * LANES);
}

INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

// power is 2^x for x <= 0, and 2^-126 below -126. The rest after rounding is within half, where the series up to the
// sixth power is off by 1.3e-7 at most.
INLINE vec power(vec x) {
	const vec magic = splat(12582912.0f); // 1.5 x 2^23: adding it rounds to a whole number
	x = larger(x, splat(-126.0f));
	vec whole = x + magic, f = x - (whole - magic);
	vec p = splat(1.5403530e-4f);
	p = p * f + 1.3333558e-3f;
	p = p * f + 9.6181291e-3f;
	p = p * f + 5.5504109e-2f;
	p = p * f + 2.4022651e-1f;
	p = p * f + 6.9314718e-1f;
	p = p * f + 1.0f;
	return p * (vec)(((ivec)whole - 0x4b400000 + 127) << 23);
}

INLINE float sum_of(vec v) {
	float s[4];
	sum4(s, v, v, v, v);
	return s[0];
}

// score_factor is what a product of query and key is multiplied with: 1/sqrt(head size), the scale of the keys, and
// log2(e), because the softmax is in powers of 2.
INLINE float score_factor(const struct host_case *c) {
	return (float)M_LOG2E / sqrtf((float)c->head_size) * c->key_scale;
}

// query_row is where a row of queries is: query x heads + head.
INLINE const uint8_t *query_row(const struct host_case *c, int64_t row) { return c->query + row * c->head_size * 2; }

// read_queries reads rows of queries as float32.
INLINE void read_queries(const struct host_case *c, int64_t row, int rows, float *to) {
	for (int i = 0; i < rows * c->head_size / LANES; i++)
		store(to + i * LANES, number(c->query_dtype, query_row(c, row), i));
}

#include "decode.h"

// multiply adds a (rows, inner) times b (inner, columns) to to (rows, columns), all with rows one behind the other. rows
// is a multiple of 4, columns of 64.
INLINE void multiply(int rows, int inner, int columns, const float *a, const float *b, float *to) {
	for (int column = 0; column < columns; column += COLUMNS * LANES)
		for (int row = 0; row < rows; row += 4) {
			vec sum[4][COLUMNS];
			for (int r = 0; r < 4; r++)
				for (int i = 0; i < COLUMNS; i++)
					sum[r][i] = load(to + (row + r) * columns + column + i * LANES);
			for (int k = 0; k < inner; k++) {
				vec v[COLUMNS];
				for (int i = 0; i < COLUMNS; i++)
					v[i] = load(b + k * columns + column + i * LANES);
				for (int r = 0; r < 4; r++)
					for (int i = 0; i < COLUMNS; i++)
						sum[r][i] += a[(row + r) * inner + k] * v[i];
			}
			for (int r = 0; r < 4; r++)
				for (int i = 0; i < COLUMNS; i++)
					store(to + (row + r) * columns + column + i * LANES, sum[r][i]);
		}
}

// What an item of prefill works on.
struct prefill {
	float queries[PREFILL_ROWS * 128], sums[PREFILL_ROWS * 128];
	float keys[128 * PREFILL_TILE]; // transposed: (head size, tokens)
	float values[PREFILL_TILE * 128];
	float scores[PREFILL_ROWS * PREFILL_TILE];
	struct running running[PREFILL_ROWS];
	const uint8_t *key_rows[PREFILL_TILE], *value_rows[PREFILL_TILE];
	uint8_t buffer[2 * PREFILL_TILE * 256];
};

// pack converts the rows of n tokens, the keys transposed; tokens beyond n are 0.
INLINE void pack(int dtype, int head_size, int n, struct prefill *s) {
	for (int t = 0; t < PREFILL_TILE; t++)
		for (int i = 0; i < head_size / LANES; i++) {
			vec k = t < n ? number(dtype, s->key_rows[t], i) : splat(0);
			for (int lane = 0; lane < LANES; lane++)
				s->keys[(i * LANES + lane) * PREFILL_TILE + t] = k[lane];
			store(s->values + t * head_size + i * LANES, t < n ? number(dtype, s->value_rows[t], i) : splat(0));
		}
}

// prefill_item attends from some queries of a sequence, in all heads of one group, to the tokens before them and to
// themselves. Its rows are (query, head of the group).
INLINE void prefill_item(int dtype, int head_size, const struct host_case *c, const struct item *w, struct prefill *s) {
	int group = c->heads / c->kv_heads, rows = (w->to - w->from) * group, padded = (rows + 3) / 4 * 4;
	int context = c->context[w->sequence], tokens = context + w->to;
	int64_t first = c->first[w->sequence];
	memset(s->queries, 0, sizeof s->queries);
	memset(s->sums, 0, sizeof s->sums);
	for (int query = w->from; query < w->to; query++)
		read_queries(c, (first + query) * c->heads + w->kv_head * group, group,
		             s->queries + (query - w->from) * group * head_size);
	for (int r = 0; r < rows; r++)
		s->running[r] = (struct running){splat(lowest), splat(0)};
	for (int from = 0; from < tokens; from += PREFILL_TILE) {
		int n = tokens - from < PREFILL_TILE ? tokens - from : PREFILL_TILE;
		find_rows(c, w->sequence, from, n, w->kv_head, PREFILL_TILE, s->buffer, s->key_rows, s->value_rows);
		pack(dtype, head_size, n, s);
		memset(s->scores, 0, sizeof s->scores);
		multiply(padded, head_size, PREFILL_TILE, s->queries, s->keys, s->scores);
		for (int r = 0; r < rows; r++) {
			int seen = context + w->from + r / group + 1 - from;
			for (int t = seen < 0 ? 0 : seen; t < PREFILL_TILE; t++)
				s->scores[r * PREFILL_TILE + t] = lowest;
			vec shrink = softmax(1, PREFILL_TILE, score_factor(c), 1, s->scores + r * PREFILL_TILE, s->running + r);
			for (int i = 0; i < head_size; i += LANES)
				store(s->sums + r * head_size + i, load(s->sums + r * head_size + i) * shrink);
		}
		multiply(padded, PREFILL_TILE, head_size, s->scores, s->values, s->sums);
	}
	for (int r = 0; r < rows; r++) {
		int64_t query = first + w->from + r / group, head = w->kv_head * group + r % group;
		float factor = c->value_scale / sum_of(s->running[r].total);
		for (int i = 0; i < head_size; i += LANES)
			store(c->out + (query * c->heads + head) * head_size + i, load(s->sums + r * head_size + i) * factor);
	}
}

// The kernels proper are compiled for every dtype and head size.
#define FOR_EACH_SHAPE(call)                      \
	switch (c->dtype * 256 + c->head_size) {      \
	case BF16 * 256 + 64: call(BF16, 64); break;  \
	case BF16 * 256 + 128: call(BF16, 128); break; \
	case FP16 * 256 + 64: call(FP16, 64); break;  \
	case FP16 * 256 + 128: call(FP16, 128); break; \
	case FP8 * 256 + 64: call(FP8, 64); break;    \
	case FP8 * 256 + 128: call(FP8, 128); break;  \
	}

TARGET static void decode(const struct host_case *c, const struct item *w, float *partial, uint8_t *scratch) {
#define CALL(dtype, head_size)                                                                             \
	decode_item(dtype, head_size,                                                                          \
	            (decode_function *const[5]){NULL, decode_##dtype##_##head_size##_1, decode_##dtype##_##head_size##_2, \
	                                        NULL, decode_##dtype##_##head_size##_4},                           \
	            c, w, partial, scratch)
	FOR_EACH_SHAPE(CALL)
#undef CALL
}

TARGET static void prefill(const struct host_case *c, const struct item *w, uint8_t *scratch) {
#define CALL(dtype, head_size) prefill_item(dtype, head_size, c, w, (struct prefill *)scratch)
	FOR_EACH_SHAPE(CALL)
#undef CALL
}

TARGET static void copy(uint8_t *to, const uint8_t *from, int64_t bytes) {
	for (int64_t i = 0; i < bytes; i += 64)
		copy_line(to + i, from + i);
}

TARGET static uint32_t sum(const uint8_t *from, int64_t bytes) {
	ivec s[256 / sizeof(ivec)] = {}, v;
	for (int64_t i = 0; i < bytes; i += 256) {
		prefetch_row(from + i + 4096, 256);
		for (int j = 0; j < (int)(256 / sizeof v); j++) {
			memcpy(&v, from + i + j * sizeof v, sizeof v);
			s[j] += v;
		}
	}
	uint32_t total = 0;
	for (int j = 0; j < (int)(256 / sizeof v); j++)
		for (int lane = 0; lane < LANES; lane++)
			total += (uint32_t)s[j][lane];
	return total;
}

// fp8 is the codes of E4M3 nearest to v, ties to even, saturated at 448.
INLINE ivec fp8(vec v) {
	ivec bits = (ivec)v, magnitude = bits & 0x7fffffff;
	vec a = choose((vec)magnitude > 448.0f, splat(448.0f), (vec)magnitude);
	ivec normal = (((ivec)a + 0x7ffff + (((ivec)a >> 20) & 1)) >> 20) - ((127 - 7) << 3);
	ivec subnormal = (ivec)(a + 16384.0f) - (ivec)splat(16384.0f); // the last place of 2^14 is 2^-9
	ivec small = a < 0x1p-6f, nan = magnitude > 0x7f800000;
	ivec code = (small & subnormal) | (~small & normal);
	return (nan & 0x7f) | (~nan & code) | ((bits >> 24) & 0x80);
}

INLINE void quantize_vector(uint8_t *to, const uint8_t *from, int dtype, float factor) {
	to_bytes(to, fp8(number(dtype, from, 0) * factor));
}

TARGET static void quantize(uint8_t *to, const uint8_t *from, int dtype, float factor, int64_t n) {
	int64_t i = 0;
	if (dtype == BF16)
		for (; i + LANES <= n; i += LANES)
			quantize_vector(to + i, from + i * 2, BF16, factor);
	else
		for (; i + LANES <= n; i += LANES)
			quantize_vector(to + i, from + i * 2, FP16, factor);
	if (i < n) {
		uint8_t rest[LANES * 2] = {}, codes[LANES];
		memcpy(rest, from + i * 2, (n - i) * 2);
		quantize_vector(codes, rest, dtype, factor);
		memcpy(to + i, codes, n - i);
	}
}

// The chains of peak: more than the latency of a multiplication times what begins in a cycle, fewer than the registers.
enum { CHAINS = 12 };

TARGET static float peak(int64_t n) {
	const vec factor = splat(0.999f), term = splat(0.001f);
	vec a[CHAINS];
	for (int i = 0; i < CHAINS; i++)
		a[i] = splat((float)i);
	while (n-- > 0)
		for (int i = 0; i < CHAINS; i++)
			a[i] = a[i] * factor + term;
	for (int i = 1; i < CHAINS; i++)
		a[0] += a[i];
	return sum_of(a[0]);
}

const struct variant VARIANT = {VARIANT_NAME, supported, sizeof(struct prefill), decode, prefill, copy, sum, quantize,
                                peak, 2 * LANES * CHAINS};
