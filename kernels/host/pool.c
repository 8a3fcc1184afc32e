#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "host.h"

struct pool {
	int threads; // the caller's included
	pthread_t *workers;
	int started;
	pthread_mutex_t mutex;
	pthread_cond_t work, done;
	unsigned generation; // counts calls of pool_run
	int busy;            // workers that have not finished this generation
	int closing;
	void (*task)(void *, int, int);
	void *argument;
	int items;
	atomic_int next;
};

struct worker {
	struct pool *pool;
	int thread;
};

static void drain(struct pool *p, int thread) {
	for (int i; (i = atomic_fetch_add(&p->next, 1)) < p->items;)
		p->task(p->argument, i, thread);
}

static void *work(void *argument) {
	struct worker w = *(struct worker *)argument;
	free(argument);
	struct pool *p = w.pool;
	unsigned seen = 0;
	pthread_mutex_lock(&p->mutex);
	for (;;) {
		while (p->generation == seen && !p->closing)
			pthread_cond_wait(&p->work, &p->mutex);
		if (p->closing)
			break;
		seen = p->generation;
		pthread_mutex_unlock(&p->mutex);
		drain(p, w.thread);
		pthread_mutex_lock(&p->mutex);
		if (--p->busy == 0)
			pthread_cond_signal(&p->done);
	}
	pthread_mutex_unlock(&p->mutex);
	return NULL;
}

struct pool *pool_open(int threads) {
	struct pool *p = calloc(1, sizeof *p);
	if (!p)
		return NULL;
	p->threads = threads;
	pthread_mutex_init(&p->mutex, NULL);
	pthread_cond_init(&p->work, NULL);
	pthread_cond_init(&p->done, NULL);
	p->workers = calloc(threads, sizeof *p->workers);
	while (p->workers && p->started < threads - 1) {
		struct worker *w = malloc(sizeof *w);
		if (w)
			*w = (struct worker){p, p->started + 1};
		if (!w || pthread_create(&p->workers[p->started], NULL, work, w)) {
			free(w);
			break;
		}
		p->started++;
	}
	if (p->started < threads - 1) {
		pool_close(p);
		return NULL;
	}
	return p;
}

void pool_close(struct pool *p) {
	pthread_mutex_lock(&p->mutex);
	p->closing = 1;
	pthread_cond_broadcast(&p->work);
	pthread_mutex_unlock(&p->mutex);
	for (int i = 0; i < p->started; i++)
		pthread_join(p->workers[i], NULL);
	pthread_cond_destroy(&p->done);
	pthread_cond_destroy(&p->work);
	pthread_mutex_destroy(&p->mutex);
	free(p->workers);
	free(p);
}

int pool_threads(const struct pool *p) { return p->threads; }

void pool_run(struct pool *p, void (*task)(void *, int, int), void *argument, int items) {
	pthread_mutex_lock(&p->mutex);
	p->task = task;
	p->argument = argument;
	p->items = items;
	atomic_store(&p->next, 0);
	p->busy = p->started;
	p->generation++;
	pthread_cond_broadcast(&p->work);
	pthread_mutex_unlock(&p->mutex);
	drain(p, 0);
	pthread_mutex_lock(&p->mutex);
	while (p->busy)
		pthread_cond_wait(&p->done, &p->mutex);
	pthread_mutex_unlock(&p->mutex);
}
