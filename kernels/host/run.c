// The operations, cut into items for the pool.
#define _GNU_SOURCE
#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "rows.h"

const struct variant *host_variant(int i) {
	static const struct variant *const all[] = {
	    &host_plain,
#ifdef __x86_64__
	    &host_avx2,
	    &host_avx512,
	    &host_avx512bf16,
#endif
	};
	for (int j = 0; j < (int)(sizeof all / sizeof *all); j++)
		if (all[j]->supported() && i-- == 0)
			return all[j];
	return NULL;
}

void *host_alloc(int64_t bytes) {
	const int64_t page = 1 << 21;
	void *p;
	int64_t padded = (bytes + 255) / 256 * 256;
	if (padded == 0)
		padded = 256;
	if (posix_memalign(&p, padded < page ? 64 : page, padded))
		return NULL;
	madvise(p, padded, MADV_HUGEPAGE); // less TLB misses; a kernel that refuses is no error
	memset((uint8_t *)p + bytes, 0, padded - bytes);
	return p;
}

int64_t host_scratch(const struct host_case *c, const struct variant *v) {
	if (c->op == PREFILL)
		return v->prefill_scratch;
	int64_t tile = 2 * DECODE_TILE * row_bytes(c);
	if (c->op == DECODE)
		return tile + c->heads * (c->head_size * sizeof(float) + DECODE_STATE);
	int64_t token = (int64_t)c->kv_heads * c->head_size, chunk = (int64_t)8 << c->block_shift;
	int64_t most = tile > 2 * token ? tile : 2 * token;
	return most > chunk ? most : chunk;
}

// place writes one head's key and value rows to a slot of the cache.
static void place(const struct host_case *c, int64_t block, int slot, int head, const uint8_t *key,
                  const uint8_t *value) {
	int64_t row = row_bytes(c);
	if (c->layout != XPACKED) {
		int64_t at = row_offset(c, block, slot, head);
		memcpy(c->out_key + at, key, row);
		memcpy(c->out_value + at, value, row);
		return;
	}
	int64_t slots = (int64_t)1 << c->block_shift, area = row_offset(c, block, 0, head);
	for (int64_t x = 0; x < row; x += 16)
		memcpy(c->out_key + area + x * slots + slot * 16, key + x, 16);
	uint8_t *to = c->out_value + area;
	if (c->dtype == FP8)
		for (int dim = 0; dim < c->head_size; dim++)
			to[dim * slots + slot] = value[dim];
	else
		for (int dim = 0; dim < c->head_size; dim++)
			memcpy(to + (dim * slots + slot) * 2, value + dim * 2, 2);
}

static void append(const struct host_case *c, const struct variant *v, const struct item *w, uint8_t *scratch) {
	int64_t numbers = (int64_t)c->kv_heads * c->head_size, row = row_bytes(c);
	for (int token = w->from; token < w->to; token++) {
		const uint8_t *key = c->new_key + token * numbers * 2, *value = c->new_value + token * numbers * 2;
		if (c->dtype == FP8) {
			v->quantize(scratch, key, c->query_dtype, 1 / c->key_scale, numbers);
			v->quantize(scratch + numbers, value, c->query_dtype, 1 / c->value_scale, numbers);
			key = scratch;
			value = scratch + numbers;
		}
		int64_t block = c->slots[token] >> c->block_shift;
		int slot = c->slots[token] & ((1 << c->block_shift) - 1);
		for (int head = 0; head < c->kv_heads; head++)
			place(c, block, slot, head, key + head * row, value + head * row);
	}
}

static void gather(const struct host_case *c, const struct variant *v, const struct item *w, uint8_t *scratch) {
	int64_t row = row_bytes(c), token = row * c->kv_heads;
	const uint8_t *keys[DECODE_TILE], *values[DECODE_TILE];
	for (int from = w->from; from < w->to; from += DECODE_TILE) {
		int n = w->to - from < DECODE_TILE ? w->to - from : DECODE_TILE;
		int64_t to = (c->first[w->sequence] + from) * token;
		// In NHD all heads of a token lie together, so that head 0's row is the beginning of a longer one.
		int heads = c->layout == NHD ? 1 : c->kv_heads;
		int64_t bytes = c->layout == NHD ? token : row;
		for (int head = 0; head < heads; head++) {
			find_rows(c, w->sequence, from, n, head, DECODE_TILE, scratch, keys, values);
			for (int i = 0; i < n; i++) {
				v->copy(c->out_key + to + i * token + head * row, keys[i], bytes);
				v->copy(c->out_value + to + i * token + head * row, values[i], bytes);
			}
		}
	}
}

// quantize_packed converts the first n slots of one head of an x-packed block. 16 bytes hold 8 numbers before and 16
// after, so that two chunks of keys become one.
static void quantize_packed(const struct host_case *c, const struct variant *v, int64_t area, int n, uint8_t *scratch) {
	int64_t slots = (int64_t)1 << c->block_shift;
	for (int chunk = 0; chunk < c->head_size / 8; chunk++) {
		v->quantize(scratch, c->key + area + chunk * slots * 16, c->dtype, 1 / c->key_scale, (int64_t)n * 8);
		uint8_t *to = c->out_key + area / 2 + chunk / 2 * slots * 16 + chunk % 2 * 8;
		for (int slot = 0; slot < n; slot++)
			memcpy(to + slot * 16, scratch + slot * 8, 8);
	}
	int64_t run = n == slots ? slots * c->head_size : n;
	for (int64_t i = 0; i < slots * c->head_size; i += n == slots ? run : slots)
		v->quantize(c->out_value + area / 2 + i, c->value + area + i * 2, c->dtype, 1 / c->value_scale, run);
}

static void quantize(const struct host_case *c, const struct variant *v, const struct item *w, uint8_t *scratch) {
	const int32_t *blocks = c->table + c->table_start[w->sequence];
	// In NHD the slots of a block lie one behind the other with all their heads.
	int heads = c->layout == NHD ? 1 : c->kv_heads;
	int64_t row = (int64_t)c->head_size * (c->layout == NHD ? c->kv_heads : 1);
	for (int b = w->from; b < w->to; b++) {
		int rest = c->context[w->sequence] - (b << c->block_shift), n = rest < 1 << c->block_shift ? rest : 1 << c->block_shift;
		for (int head = 0; head < heads; head++) {
			int64_t at = row_offset(c, blocks[b], 0, head);
			if (c->layout == XPACKED) {
				quantize_packed(c, v, at, n, scratch);
				continue;
			}
			v->quantize(c->out_key + at / 2, c->key + at, c->dtype, 1 / c->key_scale, n * row);
			v->quantize(c->out_value + at / 2, c->value + at, c->dtype, 1 / c->value_scale, n * row);
		}
	}
}

static void move_blocks(const struct host_case *c, const struct variant *v, const struct item *w) {
	int64_t bytes = block_bytes(c);
	for (int i = w->from; i < w->to; i++) {
		int64_t from = c->pairs[2 * i] * bytes, to = c->pairs[2 * i + 1] * bytes;
		v->copy(c->out_key + to, c->key + from, bytes);
		v->copy(c->out_value + to, c->value + from, bytes);
	}
}

struct run {
	const struct host_case *c;
	const struct variant *v;
};

static int64_t partial_size(const struct host_case *c) { return (int64_t)c->heads * (c->head_size + 2); }

static void do_item(void *argument, int i, int thread) {
	const struct run *r = argument;
	const struct host_case *c = r->c;
	const struct item *w = c->items + i;
	uint8_t *scratch = c->scratch + thread * c->scratch_bytes;
	int64_t from = w->from * (int64_t)256, bytes = w->to * (int64_t)256 - from;
	switch (c->op) {
	case DECODE: r->v->decode(c, w, c->partial + i * partial_size(c), scratch); break;
	case PREFILL: r->v->prefill(c, w, scratch); break;
	case APPEND: append(c, r->v, w, scratch); break;
	case GATHER: gather(c, r->v, w, scratch); break;
	case MOVE_BLOCKS: move_blocks(c, r->v, w); break;
	case QUANTIZE: quantize(c, r->v, w, scratch); break;
	case COPY: r->v->copy((w->sequence ? c->out_value : c->out_key) + from, (w->sequence ? c->value : c->key) + from, bytes); break;
	case READ: c->sums[i] = r->v->sum((w->sequence ? c->value : c->key) + from, bytes); break;
	}
	__atomic_thread_fence(__ATOMIC_SEQ_CST); // copy's stores may have gone past the caches
}

// combine adds up the parts of one sequence's attention, each weighed by its maximum.
static void combine(void *argument, int sequence, int thread) {
	(void)thread;
	const struct host_case *c = ((const struct run *)argument)->c;
	int first = c->item_start[sequence], last = c->item_start[sequence + 1], size = c->head_size;
	for (int head = 0; head < c->heads; head++) {
		const float *sums = c->partial + head * size, *most_total = c->partial + c->heads * size + 2 * head;
		float *out = c->out + ((int64_t)sequence * c->heads + head) * size, most = -INFINITY, total = 0;
		for (int i = first; i < last; i++)
			most = fmaxf(most, most_total[i * partial_size(c)]);
		memset(out, 0, size * sizeof *out);
		for (int i = first; i < last; i++) {
			float weight = exp2f(most_total[i * partial_size(c)] - most);
			total += weight * most_total[i * partial_size(c) + 1];
			for (int dim = 0; dim < size; dim++)
				out[dim] += weight * sums[i * partial_size(c) + dim];
		}
		for (int dim = 0; dim < size; dim++)
			out[dim] *= c->value_scale / total;
	}
}

uint32_t host_run(struct pool *p, const struct variant *v, const struct host_case *c, int n) {
	struct run r = {c, v};
	uint32_t sum = 0;
	while (n-- > 0) {
		pool_run(p, do_item, &r, c->item_count);
		if (c->op == DECODE)
			pool_run(p, combine, &r, c->batch);
	}
	for (int i = 0; c->op == READ && i < c->item_count; i++)
		sum += c->sums[i];
	return sum;
}

struct peak {
	const struct variant *v;
	int64_t rounds;
	float *left; // of every thread
};

static void do_peak(void *argument, int i, int thread) {
	(void)thread;
	const struct peak *p = argument;
	p->left[i] = p->v->peak(p->rounds);
}

void host_peak(struct pool *pool, const struct variant *v, int64_t rounds) {
	float left[4096]; // the most threads of a pool
	struct peak p = {v, rounds, left};
	pool_run(pool, do_peak, &p, pool_threads(pool));
}
