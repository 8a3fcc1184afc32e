// Decode's two products for AVX-512's products of bf16; avx512bf16.c has the instruction set.

// dot_scores is decode_scores with queries in bf16.
INLINE void dot_scores(int dtype, int head_size, int set, const uint8_t *q, int n, const struct rows *tile,
                       const struct rows *next, float *scores) {
	const int tokens = ACCUMULATORS / set;
	for (int t = 0; t < n; t += tokens) {
		__m512 a[ACCUMULATORS] = {};
		for (int i = 0; i < head_size / 64; i++)
			for (int j = 0; j < tokens; j++) {
				__m512i k[2];
				numbers(dtype, tile->keys + tile->at[t + j], i, k);
				for (int half = 0; half < 2; half++)
					for (int h = 0; h < set; h++) {
						__m512i row = _mm512_loadu_si512(q + h * head_size * 2 + i * 128 + half * 64);
						a[j * set + h] = dot(a[j * set + h], row, k[half]);
					}
			}
		for (int j = 0; j < ACCUMULATORS; j += 4)
			sum4(scores + t * set + j, (vec)a[j], (vec)a[j + 1], (vec)a[j + 2], (vec)a[j + 3]);
		for (int j = 0; next && j < tokens; j++)
			prefetch_row(next->keys + next->at[t + j], head_size * number_bytes(dtype));
	}
}

// pair brings 16 probabilities, (tokens, heads of a set), into bf16 and those of one head and two neighbouring tokens
// together.
INLINE __m256i pair(int set, const float *scores) {
	int16_t from[16];
	for (int i = 0; i < 16; i++)
		from[i] = (i / 2 / set * 2 + i % 2) * set + i / 2 % set;
	__m256i rounded = (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(scores));
	return _mm256_permutexvar_epi16(half((const uint8_t *)from), rounded);
}

// dot_values is decode_values with probabilities in bf16. Two tokens are added at a time: their values are paired by
// dimension, as their probabilities are. n is a multiple of 16.
INLINE void dot_values(int dtype, int head_size, int set, const float *scores, vec shrink, int n,
                       const struct rows *tile, const struct rows *next, float *sums) {
	const __m512i pairs = _mm512_set_epi32(47 << 16 | 15, 46 << 16 | 14, 45 << 16 | 13, 44 << 16 | 12, 43 << 16 | 11,
	                                       42 << 16 | 10, 41 << 16 | 9, 40 << 16 | 8, 39 << 16 | 7, 38 << 16 | 6,
	                                       37 << 16 | 5, 36 << 16 | 4, 35 << 16 | 3, 34 << 16 | 2, 33 << 16 | 1, 32 << 16);
	const __m512i upper = _mm512_add_epi16(pairs, _mm512_set1_epi16(16)); // of 32 dimensions each: 0 to 15, 16 to 31
	uint32_t p[4 * DECODE_TILE / 2]; // (pairs of tokens, heads)
	for (int i = 0; i < n * set; i += LANES) {
		__m256i paired = pair(set, scores + i);
		memcpy(p + i / 2, &paired, sizeof paired);
	}
	for (int i = 0; i < head_size / 64; i++) {
		__m512 a[4][4];
		for (int h = 0; h < set; h++)
			for (int j = 0; j < 4; j++)
				a[h][j] = (__m512)(load(sums + h * head_size + i * 64 + j * 16) * shrink[h]);
		for (int t = 0; t < n; t += 2) {
			__m512i even[2], odd[2];
			numbers(dtype, tile->values + tile->at[t], i, even);
			numbers(dtype, tile->values + tile->at[t + 1], i, odd);
			__m512i v[4];
			for (int half = 0; half < 2; half++) {
				v[2 * half] = _mm512_permutex2var_epi16(even[half], pairs, odd[half]);
				v[2 * half + 1] = _mm512_permutex2var_epi16(even[half], upper, odd[half]);
			}
			for (int h = 0; h < set; h++)
				for (int j = 0; j < 4; j++)
					a[h][j] = dot(a[h][j], v[j], _mm512_set1_epi32((int)p[t / 2 * set + h]));
			for (int j = t; next && j < t + 2; j++)
				prefetch_row(next->values + next->at[j] + i * 64 * number_bytes(dtype), 64 * number_bytes(dtype));
		}
		for (int h = 0; h < set; h++)
			for (int j = 0; j < 4; j++)
				store(sums + h * head_size + i * 64 + j * 16, (vec)a[h][j]);
	}
}
