/* SPDX-License-Identifier: MIT
 * metrics.c: unit rows, and the mean nearest to each state.  Level 3. */
#include "kernels.h"
#include "parallel.h"

#include <math.h>

typedef struct {
    unsigned char *out;
    const unsigned char *X, *means;
    uint64_t *label;
    size_t n, d, L, size, acc_size, rows;
    const lens_kernels *k;
    lens_fault *faults; /* one a thread */
} rows_job;

static rows_job rows_of(const void *X, size_t n, size_t d, size_t work, lens_dtype dtype,
                        lens_fault *faults) {
    for (size_t i = 0; i < LENS_MAX_THREADS; i++)
        faults[i] = (lens_fault){.row = LENS_NOWHERE, .item = LENS_NOWHERE};
    return (rows_job){.X = X,
                      .n = n,
                      .d = d,
                      .size = lens_dtype_size(dtype),
                      .acc_size = dtype == LENS_F64 ? sizeof(double) : sizeof(float),
                      .rows = lens_chunk_rows(work),
                      .k = lens_kernels_of(dtype),
                      .faults = faults};
}

static lens_status run(rows_job *j, lens_chunk_fn chunk, lens_fault *fault, int n_threads) {
    lens_status status = lens_parallel(chunk, j, lens_n_chunks(j->n, j->rows), n_threads);
    *fault = j->faults[0];
    for (size_t i = 1; i < LENS_MAX_THREADS; i++)
        if (j->faults[i].row < fault->row)
            *fault = j->faults[i];
    return status;
}

static lens_status unit_chunk(void *ctx, size_t chunk, size_t thread) {
    const rows_job *j = ctx;
    size_t end = (chunk + 1) * j->rows < j->n ? (chunk + 1) * j->rows : j->n;
    for (size_t i = chunk * j->rows; i < end; i++) {
        const unsigned char *x = j->X + i * j->d * j->size;
        double scale[2];
        if (!j->k->scale(scale, x, j->d)) {
            j->faults[thread].row = i;
            return j->k->first_nonfinite(x, j->d) < j->d ? LENS_ENONFINITE : LENS_EDOMAIN;
        }
        j->k->unit(j->out + i * j->d * j->acc_size, x, scale, j->d);
    }
    return LENS_OK;
}

lens_status lens_metrics_unit(void *out, lens_fault *fault, const void *X, size_t n, size_t d,
                              lens_dtype dtype, int n_threads) {
    lens_fault faults[LENS_MAX_THREADS];
    *fault = (lens_fault){.row = LENS_NOWHERE, .item = LENS_NOWHERE};
    if (dtype >= LENS_N_DTYPES)
        return LENS_EDTYPE;
    rows_job j = rows_of(X, n, d, d, dtype, faults);
    j.out = out;
    return run(&j, unit_chunk, fault, n_threads);
}

static lens_status nearest_chunk(void *ctx, size_t chunk, size_t thread) {
    const rows_job *j = ctx;
    size_t end = (chunk + 1) * j->rows < j->n ? (chunk + 1) * j->rows : j->n;
    for (size_t i = chunk * j->rows; i < end; i++) {
        double best = HUGE_VAL;
        for (size_t l = 0; l < j->L; l++) {
            double far =
                j->k->distance(j->X + i * j->d * j->size, j->means + l * j->d * j->acc_size, j->d);
            if (!isfinite(far)) {
                j->faults[thread] = (lens_fault){.row = i, .item = l};
                return LENS_ENONFINITE;
            }
            if (far < best) {
                best = far;
                j->label[i] = l;
            }
        }
    }
    return LENS_OK;
}

lens_status lens_metrics_nearest(uint64_t *label, lens_fault *fault, const void *X,
                                 const void *means, size_t n, size_t L, size_t d, lens_dtype dtype,
                                 int n_threads) {
    lens_fault faults[LENS_MAX_THREADS];
    *fault = (lens_fault){.row = LENS_NOWHERE, .item = LENS_NOWHERE};
    if (dtype >= LENS_N_DTYPES)
        return LENS_EDTYPE;
    if (L == 0)
        return LENS_ESHAPE;
    rows_job j = rows_of(X, n, d, lens_mul(d, L), dtype, faults);
    j.label = label;
    j.means = means;
    j.L = L;
    return run(&j, nearest_chunk, fault, n_threads);
}
