/* SPDX-License-Identifier: MIT
 * parallel.h: run fixed chunks on threads created for one call.  Level 1.
 * A chunk's result depends on its index only, never on the number of threads, so every result has
 * the same bits for any number. */
#ifndef LENS_PARALLEL_H
#define LENS_PARALLEL_H

#include "lens.h"

#define LENS_MAX_THREADS 64     /* OpenBLAS wheels are built for at most 64 callers */
#define LENS_CHUNK (64u * 1024) /* elements of work in a chunk */

/* Computes chunk `chunk`; `thread` < n_threads selects a slice of a per-thread workspace. */
typedef lens_status (*lens_chunk_fn)(void *ctx, size_t chunk, size_t thread);

/* Threads used for n_threads requested and n_chunks chunks: 1..LENS_MAX_THREADS. */
size_t lens_threads(size_t n_chunks, int n_threads);

/* Call fn for chunks 0..n_chunks-1.  Returns the status of the lowest chunk that failed. */
lens_status lens_parallel(lens_chunk_fn fn, void *ctx, size_t n_chunks, int n_threads);

/* Rows of width d in one chunk, and the number of such chunks in n rows. */
static inline size_t lens_chunk_rows(size_t d) {
    return d == 0 || d >= LENS_CHUNK ? 1 : LENS_CHUNK / d;
}
static inline size_t lens_n_chunks(size_t n, size_t rows) {
    return n / rows + (n % rows != 0);
}

#endif
