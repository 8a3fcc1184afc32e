// Decode for one instruction set; variant.h includes it.
//
// The query heads of a group are taken in sets of up to 4, which share every load and every conversion of a key and a
// value. The scores of a set lie as (tokens, heads of the set): so a vector of them belongs to the same heads whatever
// its tokens are, and the softmax needs no sum or maximum across a vector but the last.
//
// A cache's numbers are taken apart where they lie in a vector, instead of being spread over two or four: bf16 needs a
// shift or a mask. This gives them in another order, place; queries are brought into it before, sums out of it at the
// end.

// parts is how many vectors of float32 a vector of a cache's numbers is.
INLINE int parts(int dtype) { return dtype == FP8 ? 4 : 2; }

// place is where number i of a row comes to lie when the row is taken apart.
INLINE int place(int dtype, int i) {
	int n = parts(dtype), in = i % (n * LANES);
	return i - in + (dtype == FP16 ? in : in % n * LANES + in / n);
}

// part is the i-th vector of the numbers that lie where a vector does. fp8's are 2^120 times too small.
INLINE vec part(int dtype, const uint8_t *from, int i) {
	if (dtype == FP16)
		return load_fp16(from + i * LANES * 2);
	ivec v;
	memcpy(&v, from, sizeof v);
	if (dtype == BF16)
		return (vec)(i ? v & (int32_t)0xffff0000 : v << 16);
	return (vec)((i < 3 ? v << (24 - 8 * i) : v) >> 4 & (int32_t)0x87f00000);
}

// in_parts says whether decode takes a cache's rows apart, in the order of place.
INLINE int in_parts(int dtype) {
#ifdef DOT
	return dtype == FP16;
#else
	return 1;
#endif
}

// mend is what a product with an fp8 cache's numbers is multiplied with before and after it is added up, so that no step
// leaves the range of float32.
INLINE float mend(int dtype) { return dtype == FP8 ? 0x1p60f : 1; }

// A set's softmax so far. Lane i of most belongs to head i % set, of total too, where the lanes of a head add up.
struct running {
	vec most, total;
};

// Where a tile of tokens lies in one KV head: token i's row is at keys + at[i] and values + at[i].
struct rows {
	const uint8_t *keys, *values;
	const int64_t *at;
};

// decode_scores multiplies the queries of a set with n keys (a multiple of ACCUMULATORS / set).
INLINE void decode_scores(int dtype, int head_size, int set, const float *q, int n, const struct rows *tile,
                          const struct rows *next, float *scores) {
	const int tokens = ACCUMULATORS / set, count = parts(dtype), vectors = head_size / LANES / count;
	const int lines = head_size * number_bytes(dtype) / 64;
	for (int t = 0; t < n; t += tokens) {
		vec a[ACCUMULATORS] = {};
#pragma GCC unroll 1
		for (int i = 0; i < vectors; i++) {
			for (int p = 0; p < count; p++)
				for (int j = 0; j < tokens; j++) {
					vec k = part(dtype, tile->keys + tile->at[t + j] + i * sizeof(vec), p);
					for (int h = 0; h < set; h++)
						a[j * set + h] += load(q + h * head_size + (i * count + p) * LANES) * k;
				}
			for (int j = i * tokens * lines / vectors; next && j < (i + 1) * tokens * lines / vectors; j++)
				__builtin_prefetch(next->keys + next->at[t + j / lines] + j % lines * 64, 0, 2);
		}
		for (int j = 0; j < ACCUMULATORS; j += 4)
			sum4(scores + t * set + j, a[j], a[j + 1], a[j + 2], a[j + 3]);
	}
}

// across exchanges the lanes of v that are a power of two apart.
INLINE vec across(vec v, int apart) {
	ivec lanes;
	for (int i = 0; i < LANES; i++)
		lanes[i] = i ^ apart;
	return __builtin_shuffle(v, lanes);
}

// softmax turns n scores (a multiple of LANES) of a set into probabilities relative to the new maxima, times spread, and
// returns what the sums so far are to be multiplied with.
INLINE vec softmax(int set, int n, float factor, float spread, float *scores, struct running *r) {
	vec m = load(scores);
	for (int t = LANES; t < n; t += LANES)
		m = larger(m, load(scores + t));
	if (set <= 1)
		m = larger(m, across(m, 1));
	if (set <= 2)
		m = larger(m, across(m, 2));
	if (LANES > 4)
		m = larger(m, across(m, 4));
	if (LANES > 8)
		m = larger(m, across(m, 8));
	m = larger(m * factor, r->most);
	vec shrink = power(r->most - m), total = r->total * shrink;
	for (int t = 0; t < n; t += LANES) {
		vec p = power(load(scores + t) * factor - m);
		store(scores + t, p * spread);
		total += p;
	}
	r->most = m;
	r->total = total;
	return shrink;
}

// decode_values adds n values, weighed with the probabilities of a set, to its sums, after these have been shrunk.
INLINE void decode_values(int dtype, int head_size, int set, const float *scores, vec shrink, int n,
                          const struct rows *tile, const struct rows *next, float *sums) {
	const int count = parts(dtype), vectors = head_size / LANES / count; // of a row
	const int wide = 4 / set < vectors ? 4 / set : vectors;              // at once
	for (int first = 0; first < vectors; first += wide)
#pragma GCC unroll 2
		for (int p = 0; p < count; p += 2) { // two parts of each, so that the sums stay in registers
			const int64_t from = first * sizeof(vec);
			float *to = sums + (first * count + p) * LANES;
			vec a[4][4][2];
			for (int h = 0; h < set; h++)
				for (int i = 0; i < wide; i++)
					for (int j = 0; j < 2; j++)
						a[h][i][j] = load(to + h * head_size + (i * count + j) * LANES) * shrink[h];
			for (int t = 0; t < n; t++) {
				const uint8_t *value = tile->values + tile->at[t] + from;
				for (int i = 0; i < wide; i++)
					for (int j = 0; j < 2; j++) {
						vec v = part(dtype, value + i * sizeof(vec), p + j);
						for (int h = 0; h < set; h++)
							a[h][i][j] += scores[t * set + h] * v;
					}
				if (next && p == 0 && wide * sizeof(vec) >= 64)
					prefetch_row(next->values + next->at[t] + from, wide * sizeof(vec));
				else if (next && p == 0 && t % 2 == 0) // half a line: each of two takes half of the tokens
					__builtin_prefetch(next->values + next->at[first % 2 * DECODE_TILE / 2 + t / 2] + from / 64 * 64, 0, 2);
			}
			for (int h = 0; h < set; h++)
				for (int i = 0; i < wide; i++)
					for (int j = 0; j < 2; j++)
						store(to + h * head_size + (i * count + j) * LANES, a[h][i][j]);
		}
}

#ifdef DOT
#include "dot.h"
#endif

// decode_set attends from a set of heads, its queries given as float32 in the order of place and as coded, to n tokens.
// Rows of the tile up to a multiple of 16 are read. While it works it fetches next, unless that is NULL.
INLINE void decode_set(int dtype, int head_size, int set, float factor, const float *q, const uint8_t *coded, int n,
                       const struct rows *tile, const struct rows *next, float *sums, struct running *r) {
	float scores[4 * DECODE_TILE] __attribute__((aligned(64)));
	int whole = (n + 15) / 16 * 16;
	float spread = mend(dtype);
	if (whole < 16)
		__builtin_unreachable(); // a tile has tokens
#ifdef DOT
	if (dtype != FP16) {
		spread = 1;
		dot_scores(dtype, head_size, set, coded, whole, tile, next, scores);
	} else
#else
	(void)coded;
#endif
		decode_scores(dtype, head_size, set, q, whole, tile, next, scores);
	for (int i = n * set; i < whole * set; i++)
		scores[i] = lowest;
	vec shrink = softmax(set, whole * set, factor, spread, scores, r);
#ifdef DOT
	if (dtype != FP16)
		dot_values(dtype, head_size, set, scores, shrink, whole, tile, next, sums);
	else
#endif
		decode_values(dtype, head_size, set, scores, shrink, whole, tile, next, sums);
}

// The sets proper are functions of their own for every dtype, head size and number of heads: inlined side by side they
// would run out of registers.
typedef void decode_function(float factor, const float *q, const uint8_t *coded, int n, const struct rows *tile,
                             const struct rows *next, float *sums, struct running *r);

#define DECODE_SET(dtype, head_size, set)                                                                            \
	TARGET static __attribute__((noinline)) void decode_##dtype##_##head_size##_##set(                              \
	    float factor, const float *q, const uint8_t *coded, int n, const struct rows *tile, const struct rows *next, \
	    float *sums, struct running *r) {                                                                            \
		decode_set(dtype, head_size, set, factor, q, coded, n, tile, next, sums, r);                                \
	}
#define DECODE_SETS(dtype, head_size) \
	DECODE_SET(dtype, head_size, 1)   \
	DECODE_SET(dtype, head_size, 2)   \
	DECODE_SET(dtype, head_size, 4)
DECODE_SETS(BF16, 64)
DECODE_SETS(BF16, 128)
DECODE_SETS(FP16, 64)
DECODE_SETS(FP16, 128)
DECODE_SETS(FP8, 64)
DECODE_SETS(FP8, 128)

// offsets finds where the rows of a tile of n tokens lie in KV head 0, from token from on. Behind the last it is repeated.
INLINE void offsets(const struct host_case *c, const struct item *w, int from, int n, int64_t *at) {
	const int32_t *blocks = c->table + c->table_start[w->sequence];
	int mask = (1 << c->block_shift) - 1;
	for (int i = 0; i < DECODE_TILE; i++) {
		int token = from + (i < n ? i : n - 1);
		at[i] = row_offset(c, blocks[token >> c->block_shift], token & mask, 0);
	}
}

// set_of is how many of a group's heads make the next set when so many are left.
INLINE int set_of(int left) { return left >= 4 ? 4 : left >= 2 ? 2 : 1; }

// decode_item attends from one sequence's query to a range of its tokens in all KV heads. Heads are in the inner loop,
// so that the cache is read block by block whatever its layout.
INLINE void decode_item(int dtype, int head_size, decode_function *const sets[5], const struct host_case *c,
                        const struct item *w, float *partial, uint8_t *scratch) {
	int group = c->heads / c->kv_heads;
	int64_t first = (int64_t)w->sequence * c->heads, row = row_bytes(c);
	int64_t stride = c->layout == NHD ? row : row << c->block_shift; // from one head to the next
	struct running *running = (struct running *)scratch;
	float *q = (float *)(running + c->heads), *sums = partial, *most_total = partial + c->heads * head_size;
	uint8_t *buffer = (uint8_t *)(q + (int64_t)c->heads * head_size);
	for (int h = 0; h < c->heads; h++) {
		float row[128];
		read_queries(c, first + h, 1, row);
		for (int i = 0; i < head_size; i++)
			q[h * head_size + place(dtype, i)] = row[i] * mend(dtype);
	}
	memset(sums, 0, c->heads * head_size * sizeof *sums);
	for (int h = 0; h < c->heads; h++)
		running[h] = (struct running){splat(lowest), splat(0)};
	int64_t places[2][DECODE_TILE] = {}, unpacked[DECODE_TILE], ahead[DECODE_TILE];
	for (int i = 0; i < DECODE_TILE; i++)
		unpacked[i] = i * row;
	const float factor = score_factor(c) * (in_parts(dtype) ? mend(dtype) : 1);
	int64_t *here = places[0], *there = places[1];
	int n = w->to - w->from < DECODE_TILE ? w->to - w->from : DECODE_TILE;
	offsets(c, w, w->from, n, here);
	for (int from = w->from; from < w->to; from += DECODE_TILE) {
		int more = w->to - from - n < DECODE_TILE ? w->to - from - n : DECODE_TILE;
		if (more)
			offsets(c, w, from + n, more, there);
		int next_token = 0, next_head = 0;
		for (int head = 0; head < c->kv_heads; head++) {
			struct rows tile = {c->key + head * stride, c->value + head * stride, here};
			struct rows next = {tile.keys, tile.values, there};
			if (c->layout == NHD) { // the heads of a token lie together, and are fetched together
				for (int i = 0; i < DECODE_TILE; i++) {
					ahead[i] = there[next_token] + next_head * row;
					next_head = next_head + 1 < c->kv_heads ? next_head + 1 : 0;
					next_token += next_head == 0;
				}
				next = (struct rows){c->key, c->value, ahead};
			}
			if (c->layout == XPACKED) {
				for (int i = n; i < DECODE_TILE; i++)
					unpacked[i] = unpacked[n - 1];
				unpack_rows(c, w->sequence, from, n, head, buffer, DECODE_TILE);
				tile = (struct rows){buffer, buffer + DECODE_TILE * row, unpacked};
			}
			for (int set, done = 0; done < group; done += set) {
				int h = head * group + done;
				set = set_of(group - done);
				const struct rows *fetch = done == 0 && more ? &next : NULL;
				sets[set](factor, q + h * head_size, query_row(c, first + h), n, &tile, fetch, sums + h * head_size,
				          running + h);
			}
		}
		n = more;
		int64_t *swap = here;
		here = there, there = swap;
	}
	for (int set, h = 0; h < c->heads; h += set) {
		set = set_of(group - h % group);
		for (int i = 0; i < set; i++) {
			float row[128], total = 0;
			for (int lane = i; lane < LANES; lane += set)
				total += running[h].total[lane];
			most_total[2 * (h + i)] = running[h].most[i];
			most_total[2 * (h + i) + 1] = total;
			float *to = sums + (h + i) * head_size;
			for (int j = 0; in_parts(dtype) && j < head_size; j++)
				row[j] = to[place(dtype, j)] * mend(dtype);
			if (in_parts(dtype))
				memcpy(to, row, head_size * sizeof *row);
		}
	}
}
