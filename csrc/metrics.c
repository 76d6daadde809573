/* SPDX-License-Identifier: MIT
 * metrics.c: which sentence is nearest to which, and which mean to a state.  Level 3.
 * MEXA, arXiv 2410.05873: cosines block by block, each forgotten once the best of its row and of
 * its column are known, so no n x n matrix is held. */
#include "kernels.h"
#include "parallel.h"

#include <math.h>

#define BLOCK 64 /* rows and columns of one block of cosines */

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
        j->faults[thread].row = i;
        if (j->k->first_nonfinite(x, j->d) < j->d)
            return LENS_ENONFINITE;
        if (!j->k->unit(j->out + i * j->d * j->acc_size, x, j->d))
            return LENS_EDOMAIN;
        j->faults[thread].row = LENS_NOWHERE;
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

typedef struct {
    uint64_t *row_best;
    const unsigned char *A, *B;
    double *work;
    size_t n, d, size, rows;
    const lens_kernels *k;
} match_job;

/* Rows of a chunk: at most 64 chunks, so that the best of their columns take 64 n places. */
static size_t match_rows(size_t n) {
    return n / 64 + 1 > BLOCK ? n / 64 + 1 : BLOCK;
}

/* Let v, at place i, compete; `none` is the place of a tie. */
static void compete(double *best, uint64_t *at, double v, uint64_t i, uint64_t none) {
    if (v > *best) {
        *best = v;
        *at = i;
    } else if (v == *best) {
        *at = none;
    }
}

static lens_status match_chunk(void *ctx, size_t chunk, size_t thread) {
    const match_job *j = ctx;
    size_t n = j->n, end = (chunk + 1) * j->rows < n ? (chunk + 1) * j->rows : n;
    double z[BLOCK * BLOCK], row[BLOCK], *column = j->work + chunk * 2 * n;
    uint64_t *column_best = (uint64_t *)(void *)(column + n);
    (void)thread;
    for (size_t k = 0; k < n; k++) {
        column[k] = -HUGE_VAL;
        column_best[k] = n;
    }
    for (size_t a = chunk * j->rows, p; a < end; a += p) {
        p = end - a < BLOCK ? end - a : BLOCK;
        for (size_t i = 0; i < p; i++) {
            row[i] = -HUGE_VAL;
            j->row_best[a + i] = n;
        }
        for (size_t b = 0, q; b < n; b += q) {
            q = n - b < BLOCK ? n - b : BLOCK;
            j->k->similarity(z, j->A + a * j->d * j->size, j->B + b * j->d * j->size, p, q, j->d);
            for (size_t i = 0; i < p; i++)
                for (size_t k = 0; k < q; k++) {
                    compete(&row[i], &j->row_best[a + i], z[i * q + k], b + k, n);
                    compete(&column[b + k], &column_best[b + k], z[i * q + k], a + i, n);
                }
        }
    }
    return LENS_OK;
}

lens_status lens_metrics_match(uint64_t *row_best, uint64_t *column_best, const void *A,
                               const void *B, size_t n, size_t d, lens_dtype dtype, int n_threads,
                               double *work) {
    if (dtype >= LENS_N_DTYPES)
        return LENS_EDTYPE;
    match_job j = {.row_best = row_best,
                   .A = A,
                   .B = B,
                   .work = work,
                   .n = n,
                   .d = d,
                   .size = dtype == LENS_F64 ? sizeof(double) : sizeof(float),
                   .rows = match_rows(n),
                   .k = lens_kernels_of(dtype)};
    size_t chunks = lens_n_chunks(n, j.rows);
    lens_parallel(match_chunk, &j, chunks, n_threads);
    for (size_t k = 0; k < n; k++) {
        double best = -HUGE_VAL;
        column_best[k] = n;
        for (size_t c = 0; c < chunks; c++) {
            const double *column = work + c * 2 * n;
            const uint64_t *at = (const uint64_t *)(const void *)(column + n);
            compete(&best, &column_best[k], column[k], at[k], n);
        }
    }
    return LENS_OK;
}

size_t lens_metrics_match_worksize(size_t n) {
    return lens_mul(lens_n_chunks(n, match_rows(n)), lens_mul(2, n));
}
