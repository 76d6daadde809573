/* SPDX-License-Identifier: MIT
 * parallel.c: pthreads created and joined per call.  Level 1.
 * Creating a thread costs microseconds, little against gigabytes of data, and needs no pool that
 * could break under fork and no exit handler.  Chunks are handed out in order, so the lowest one that
 * fails is always reached, for any number of threads. */
#define _POSIX_C_SOURCE 200809L /* pthread_sigmask under -std=c11 */
#include "parallel.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>

typedef struct {
    lens_chunk_fn fn;
    void *ctx;
    size_t n_chunks;
    atomic_size_t next;
    atomic_bool failed;
} job;

typedef struct {
    job *job;
    size_t index, failed_chunk;
    lens_status status;
    pthread_t thread;
} worker;

size_t lens_threads(size_t n_chunks, int n_threads) {
    size_t n = n_threads < 1 ? 1 : (size_t)n_threads;
    n = n > LENS_MAX_THREADS ? LENS_MAX_THREADS : n;
    n = n > n_chunks ? n_chunks : n;
    return n < 1 ? 1 : n;
}

static void *run(void *arg) {
    worker *w = arg;
    job *j = w->job;
    while (!atomic_load(&j->failed)) {
        size_t chunk = atomic_fetch_add(&j->next, 1);
        if (chunk >= j->n_chunks)
            break;
        w->status = j->fn(j->ctx, chunk, w->index);
        if (w->status != LENS_OK) {
            w->failed_chunk = chunk;
            atomic_store(&j->failed, true);
            break;
        }
    }
    return NULL;
}

lens_status lens_parallel(lens_chunk_fn fn, void *ctx, size_t n_chunks, int n_threads) {
    job j = {.fn = fn, .ctx = ctx, .n_chunks = n_chunks};
    worker w[LENS_MAX_THREADS];
    size_t wanted = lens_threads(n_chunks, n_threads), started = 1;
    sigset_t all, before;
    for (size_t i = 0; i < wanted; i++)
        w[i] = (worker){.job = &j, .index = i, .failed_chunk = SIZE_MAX, .status = LENS_OK};
    if (wanted > 1) {
        /* Signals go to the caller's thread, where the interpreter expects them. */
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        for (; started < wanted; started++)
            if (pthread_create(&w[started].thread, NULL, run, &w[started]) != 0)
                break; /* fewer threads: same bits, slower */
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    run(&w[0]);
    size_t lowest = 0;
    for (size_t i = 1; i < started; i++) {
        pthread_join(w[i].thread, NULL);
        if (w[i].failed_chunk < w[lowest].failed_chunk)
            lowest = i;
    }
    return w[lowest].status;
}
