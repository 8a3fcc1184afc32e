// What the C files of this package share. Names and shapes are those of the Go packages kernels and kernels/layout.
#ifndef KVTUNE_HOST_H
#define KVTUNE_HOST_H

#include <stddef.h>
#include <stdint.h>

// The values of layout.Layout and layout.DType.
enum { NHD, HND, XPACKED };
enum { BF16, FP16, FP8 };

// Operations; both swaps and copy_blocks move pairs of blocks.
enum { DECODE, PREFILL, APPEND, GATHER, MOVE_BLOCKS, QUANTIZE, COPY, READ };

// Attention works on tiles of this many tokens.
enum { DECODE_TILE = 32, PREFILL_TILE = 64 };

// What decode keeps of a head's softmax takes at most so many bytes.
enum { DECODE_STATE = 128 };

// Rows (query x head of one group) that one item of prefill has at most.
enum { PREFILL_ROWS = 64 };

// An item of work. Tokens are counted from the sequence's first.
struct item {
	int32_t sequence; // copy, read: 0 for keys, 1 for values
	int32_t from, to; // decode, gather: tokens; prefill: queries; append: new tokens of the batch; quantize: blocks;
	                  // move: pairs; copy, read: units of 256 bytes
	int32_t kv_head;  // prefill
};

// A loaded case. All memory behind it is C's.
struct host_case {
	int32_t op, layout, dtype, query_dtype;
	int32_t block_shift; // block_size is 1 << block_shift
	int32_t heads, kv_heads, head_size, batch;
	float key_scale, value_scale;
	const uint8_t *query, *new_key, *new_value; // (tokens, heads, head size)
	uint8_t *key, *value;                       // the cache
	uint8_t *out_key, *out_value;               // what is written; for append and move within the cache: the cache
	float *out;                                 // attention's output, (queries, heads, head size)
	const int32_t *context, *added;             // tokens per sequence
	const int32_t *first;                       // per sequence: its first query (prefill), its first row (gather)
	const int32_t *table;                       // the blocks of all sequences, one behind the other
	const int64_t *table_start;                 // per sequence: its first block in table
	const int64_t *slots;                       // append
	const int32_t *pairs;                       // source and destination blocks
	const struct item *items;
	int32_t item_count;
	const int32_t *item_start; // decode: per sequence, its first item, and the number of items behind the last
	float *partial;            // decode: per item (heads, head size + 2): sums, then maximum and total
	uint32_t *sums;            // read: one per item
	uint8_t *scratch;          // scratch_bytes for every thread
	int64_t scratch_bytes;
};

// An instruction set's implementation of what is worth it.
struct variant {
	const char *name;
	int (*supported)(void);
	int64_t prefill_scratch; // bytes
	void (*decode)(const struct host_case *, const struct item *, float *partial, uint8_t *scratch);
	void (*prefill)(const struct host_case *, const struct item *, uint8_t *scratch);
	// copy moves bytes, a multiple of 64, between addresses that are multiples of 64, past the caches where it can. A
	// fence must follow before another thread reads them.
	void (*copy)(uint8_t *to, const uint8_t *from, int64_t bytes);
	// sum adds up bytes, a multiple of 256, as 32-bit words.
	uint32_t (*sum)(const uint8_t *from, int64_t bytes);
	// quantize converts n numbers of 16 bits, times factor, to fp8.
	void (*quantize)(uint8_t *to, const uint8_t *from, int dtype, float factor, int64_t n);
	// peak multiplies and adds in registers, peak_flops operations in each of n rounds.
	float (*peak)(int64_t n);
	int peak_flops;
};

extern const struct variant host_plain, host_avx2, host_avx512, host_avx512bf16;

// A pool of threads.
struct pool;
struct pool *pool_open(int threads); // NULL where a thread cannot be started
void pool_close(struct pool *);
int pool_threads(const struct pool *);
// pool_run calls task for every item from 0 up, on all threads, the caller's among them, and returns when all are done.
// thread is below pool_threads.
void pool_run(struct pool *, void (*task)(void *argument, int item, int thread), void *argument, int items);

// host_variant is the i-th variant that this machine can run, the slowest first; NULL behind the last.
const struct variant *host_variant(int i);
// host_scratch is how much scratch a thread needs.
int64_t host_scratch(const struct host_case *, const struct variant *);
// host_run runs a case n times; the sum that read leaves is returned.
uint32_t host_run(struct pool *, const struct variant *, const struct host_case *, int n);
// host_peak lets every thread do rounds of peak.
void host_peak(struct pool *, const struct variant *, int64_t rounds);
// host_alloc is memory for an array: aligned to 64 bytes, zero behind the given bytes up to a multiple of 256. NULL where
// there is none.
void *host_alloc(int64_t bytes);

#endif
