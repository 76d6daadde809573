/* SPDX-License-Identifier: MIT
 * pool.c: one pooled state per row from the states of its tokens, and dtype conversion.  Level 3.
 * Only unmasked tokens are read, in order, so padding on either side changes no bit. */
#include "kernels.h"
#include "parallel.h"

#include <math.h>

typedef struct {
    double *out;
    const unsigned char *X;
    const uint8_t *mask;
    size_t n, t, d, size, rows;
    const lens_kernels *k;
    lens_pooling mode;
    lens_fault *faults; /* one a thread */
} pool_job;

/* Token `fault->item` is the first of this row with a NaN or infinity. */
static lens_status find_nonfinite(const pool_job *j, size_t row, size_t first, lens_fault *fault) {
    for (size_t tok = first; tok < j->t; tok++) {
        const unsigned char *x = j->X + (row * j->t + tok) * j->d * j->size;
        if (j->mask[row * j->t + tok] && j->k->first_nonfinite(x, j->d) < j->d) {
            *fault = (lens_fault){.row = row, .item = tok};
            return LENS_ENONFINITE;
        }
    }
    *fault = (lens_fault){.row = row, .item = LENS_NOWHERE}; /* finite values, infinite sum */
    return LENS_ENONFINITE;
}

static lens_status pool_row(const pool_job *j, size_t row, lens_fault *fault) {
    const uint8_t *mask = j->mask + row * j->t;
    double *out = j->out + row * j->d, total = 0.0, rank = 0.0;
    size_t first = 0;
    for (size_t i = 0; i < j->d; i++)
        out[i] = 0.0;
    if (j->mode == LENS_POOL_LAST)
        for (size_t tok = 0; tok < j->t; tok++)
            first = mask[tok] ? tok : first;
    for (size_t tok = first; tok < j->t; tok++)
        if (mask[tok]) {
            double w = j->mode == LENS_POOL_WEIGHTED ? ++rank : 1.0;
            j->k->add(out, j->X + (row * j->t + tok) * j->d * j->size, j->d, w);
            total += w;
        }
    if (total == 0.0) {
        *fault = (lens_fault){.row = row, .item = LENS_NOWHERE};
        return LENS_EMASKED;
    }
    int finite = 1;
    for (size_t i = 0; i < j->d; i++) {
        out[i] /= total;
        finite &= isfinite(out[i]) != 0;
    }
    return finite ? LENS_OK : find_nonfinite(j, row, first, fault);
}

static lens_status pool_chunk(void *ctx, size_t chunk, size_t thread) {
    const pool_job *j = ctx;
    size_t end = (chunk + 1) * j->rows < j->n ? (chunk + 1) * j->rows : j->n;
    for (size_t row = chunk * j->rows; row < end; row++) {
        lens_status status = pool_row(j, row, &j->faults[thread]);
        if (status != LENS_OK)
            return status;
    }
    return LENS_OK;
}

lens_status lens_pool(double *out, lens_fault *fault, const void *X, const uint8_t *mask, size_t n,
                      size_t t, size_t d, lens_dtype dtype, lens_pooling mode, int n_threads) {
    if (dtype >= LENS_N_DTYPES)
        return LENS_EDTYPE;
    if (mode >= LENS_N_POOLINGS)
        return LENS_EDOMAIN;
    lens_fault faults[LENS_MAX_THREADS];
    for (size_t i = 0; i < LENS_MAX_THREADS; i++)
        faults[i] = (lens_fault){.row = LENS_NOWHERE, .item = LENS_NOWHERE};
    size_t rows = lens_chunk_rows(lens_mul(t, d));
    pool_job j = {.out = out,
                  .X = X,
                  .mask = mask,
                  .n = n,
                  .t = t,
                  .d = d,
                  .rows = rows,
                  .size = lens_dtype_size(dtype),
                  .k = lens_kernels_of(dtype),
                  .mode = mode,
                  .faults = faults};
    lens_status status = lens_parallel(pool_chunk, &j, lens_n_chunks(n, rows), n_threads);
    *fault = faults[0];
    for (size_t i = 1; i < LENS_MAX_THREADS; i++)
        if (faults[i].row < fault->row)
            *fault = faults[i];
    return status;
}

lens_status lens_dtype_load(float *out, const void *x, size_t n, lens_dtype dtype) {
    if (dtype >= LENS_N_DTYPES)
        return LENS_EDTYPE;
    lens_kernels_of(dtype)->load(out, x, n);
    return LENS_OK;
}

lens_status lens_dtype_store(void *out, const float *x, size_t n, lens_dtype dtype) {
    if (dtype >= LENS_N_DTYPES)
        return LENS_EDTYPE;
    lens_kernels_of(dtype)->store(out, x, n);
    return LENS_OK;
}
