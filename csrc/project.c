/* SPDX-License-Identifier: MIT
 * project.c: remove the part of states in a subspace, or amplify it by a negative strength.  Level 3.
 * arXiv 2505.15257. */
#include "kernels.h"
#include "parallel.h"

#include <string.h>

typedef struct {
    unsigned char *out;
    const unsigned char *X;
    const void *basis;
    size_t n, d, r, size, rows;
    double strength, *work;
    const lens_kernels *k;
} project_job;

static lens_status project_chunk(void *ctx, size_t chunk, size_t thread) {
    const project_job *j = ctx;
    size_t end = (chunk + 1) * j->rows < j->n ? (chunk + 1) * j->rows : j->n;
    (void)thread;
    for (size_t i = chunk * j->rows; i < end; i++) {
        size_t at = i * j->d * j->size;
        j->k->project(j->out + at, j->work + i * j->r, j->X + at, j->basis, j->d, j->r,
                      j->strength);
    }
    return LENS_OK;
}

lens_status lens_project(void *out, const void *X, const void *basis, size_t n, size_t d, size_t r,
                         double strength, lens_dtype dtype, int n_threads, double *work) {
    if (dtype >= LENS_N_DTYPES)
        return LENS_EDTYPE;
    size_t size = lens_dtype_size(dtype), rows = lens_chunk_rows(lens_mul(d, lens_add(r, 1)));
    if (strength == 0.0) { /* the identity to the last bit, signed zeros too */
        if (n * d > 0)
            memcpy(out, X, n * d * size);
        return LENS_OK;
    }
    project_job j = {.out = out,
                     .X = X,
                     .basis = basis,
                     .n = n,
                     .d = d,
                     .r = r,
                     .size = size,
                     .rows = rows,
                     .strength = strength,
                     .work = work,
                     .k = lens_kernels_of(dtype)};
    return lens_parallel(project_chunk, &j, lens_n_chunks(n, rows), n_threads);
}

size_t lens_project_worksize(size_t n, size_t r) {
    return lens_mul(n, r);
}
