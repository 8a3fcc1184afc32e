// Where the rows of a cache are: the key and the value of one token in one head, as contiguous numbers.
#ifndef KVTUNE_ROWS_H
#define KVTUNE_ROWS_H

#include <string.h>

#include "host.h"

static inline int number_bytes(int dtype) { return dtype == FP8 ? 1 : 2; }

static inline int64_t row_bytes(const struct host_case *c) { return (int64_t)c->head_size * number_bytes(c->dtype); }

static inline int64_t block_bytes(const struct host_case *c) { return (row_bytes(c) * c->kv_heads) << c->block_shift; }

// row_offset is where the row of a slot of a block lies in bytes. In the x-packed layout, which has no rows, it is the
// slot's share of the head's area: together the shares cover it, which serves to prefetch.
static inline int64_t row_offset(const struct host_case *c, int64_t block, int slot, int head) {
	if (c->layout == NHD)
		return (((block << c->block_shift) + slot) * c->kv_heads + head) * row_bytes(c);
	return (((block * c->kv_heads + head) << c->block_shift) + slot) * row_bytes(c);
}

// prefetch_row fetches a row into the second-level cache: the first level has few miss buffers, which would limit how
// much is under way.
static inline __attribute__((always_inline)) void prefetch_row(const uint8_t *row, int bytes) {
	for (int i = 0; i < bytes; i += 64)
		__builtin_prefetch(row + i, 0, 2);
}

typedef uint16_t lane16 __attribute__((vector_size(16)));
typedef uint8_t lane8 __attribute__((vector_size(16)));

// A square matrix is transposed by interleaving row i with row i + half, log2(rows) times.
static inline void transpose8x8(uint8_t *to, int64_t to_stride, const uint8_t *from, int64_t from_stride) {
	lane16 a[8], b[8];
	for (int i = 0; i < 8; i++)
		memcpy(&a[i], from + i * from_stride, 16);
	for (int round = 0; round < 3; round++) {
		for (int i = 0; i < 4; i++) {
			b[2 * i] = __builtin_shufflevector(a[i], a[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
			b[2 * i + 1] = __builtin_shufflevector(a[i], a[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
		}
		memcpy(a, b, sizeof a);
	}
	for (int i = 0; i < 8; i++)
		memcpy(to + i * to_stride, &a[i], 16);
}

static inline void transpose16x16(uint8_t *to, int64_t to_stride, const uint8_t *from, int64_t from_stride) {
	lane8 a[16], b[16];
	for (int i = 0; i < 16; i++)
		memcpy(&a[i], from + i * from_stride, 16);
	for (int round = 0; round < 4; round++) {
		for (int i = 0; i < 8; i++) {
			b[2 * i] = __builtin_shufflevector(a[i], a[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
			b[2 * i + 1] =
			    __builtin_shufflevector(a[i], a[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
		}
		memcpy(a, b, sizeof a);
	}
	for (int i = 0; i < 16; i++)
		memcpy(to + i * to_stride, &a[i], 16);
}

// unpack turns the first n slots of one head of an x-packed block, from slot first on, into rows. More rows than n,
// up to a multiple of 16, may be written.
static inline void unpack(const struct host_case *c, int64_t block, int first, int n, int head, uint8_t *keys,
                          uint8_t *values) {
	int64_t row = row_bytes(c), slots = (int64_t)1 << c->block_shift, area = row_offset(c, block, 0, head);
	const uint8_t *key = c->key + area, *value = c->value + area;
	for (int64_t x = 0; x < row; x += 16)
		for (int i = 0; i < n; i++)
			memcpy(keys + i * row + x, key + x * slots + (first + i) * 16, 16);
	int size = number_bytes(c->dtype), side = 16 / size;
	if (slots == 1) {
		memcpy(values, value, row);
	} else if (slots >= side) {
		for (int i = 0; i < n; i += side)
			for (int dim = 0; dim < c->head_size; dim += side) {
				const uint8_t *from = value + (dim * slots + first + i) * size;
				uint8_t *to = values + i * row + dim * size;
				if (size == 1)
					transpose16x16(to, row, from, slots);
				else
					transpose8x8(to, row, from, slots * 2);
			}
	} else {
		for (int dim = 0; dim < c->head_size; dim++)
			for (int i = 0; i < n; i++)
				memcpy(values + i * row + dim * size, value + (dim * slots + first + i) * size, size);
	}
}

// unpack_rows makes rows of n tokens of a sequence in an x-packed cache, from token from on: the keys in buffer, the
// values behind tile keys. tile is a multiple of 16, and from one of tile.
static inline void unpack_rows(const struct host_case *c, int sequence, int from, int n, int head, uint8_t *buffer,
                               int tile) {
	const int32_t *blocks = c->table + c->table_start[sequence];
	int mask = (1 << c->block_shift) - 1;
	int64_t row = row_bytes(c);
	for (int i = 0; i < n;) {
		int first = (from + i) & mask, run = mask + 1 - first < n - i ? mask + 1 - first : n - i;
		unpack(c, blocks[(from + i) >> c->block_shift], first, run, head, buffer + i * row, buffer + (tile + i) * row);
		i += run;
	}
}

// find_rows points keys and values at the rows of n tokens of a sequence, from token from on. x-packed rows are made in
// buffer, as by unpack_rows.
static inline void find_rows(const struct host_case *c, int sequence, int from, int n, int head, int tile,
                             uint8_t *buffer, const uint8_t **keys, const uint8_t **values) {
	const int32_t *blocks = c->table + c->table_start[sequence];
	int mask = (1 << c->block_shift) - 1;
	int64_t row = row_bytes(c);
	if (c->layout == XPACKED) {
		unpack_rows(c, sequence, from, n, head, buffer, tile);
		for (int i = 0; i < n; i++) {
			keys[i] = buffer + i * row;
			values[i] = buffer + (tile + i) * row;
		}
		return;
	}
	for (int i = 0; i < n; i++) {
		int64_t at = row_offset(c, blocks[(from + i) >> c->block_shift], (from + i) & mask, head);
		keys[i] = c->key + at;
		values[i] = c->value + at;
	}
}

#endif
