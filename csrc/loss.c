/* SPDX-License-Identifier: MIT
 * loss.c: the three losses of Lens, value and gradient in one pass over the block.  Level 3.
 * arXiv 2410.04407; no d x d matrix is ever formed.  Each row writes its own term to work[row];
 * the terms are then added in row order, so threads cannot change the sum. */
#include "kernels.h"
#include "parallel.h"

#include <math.h>
#include <string.h>

#define ROWS 16 /* rows that share a piece of the basis */
/* Chunks that a thread takes at once: less work takes no longer than starting a thread. */
#define CHUNKS 4

typedef struct loss_job {
    unsigned char *grad, *grad_p;
    const unsigned char *h, *other, *target; /* other: h0 or the pivot's states */
    const void *basis;
    const double *weights; /* or uniform */
    const uint8_t *mask;
    double uniform, *terms, *z;
    size_t B, t, d, r, rows, size, acc_size, target_step;
    const lens_kernels *k;
    /* Exactly one is set: `row` does one row and returns its term, `block` does up to ROWS rows. */
    double (*row)(const struct loss_job *j, size_t b, double scale);
    void (*block)(const struct loss_job *j, size_t b, size_t n, const double *scale);
} loss_job;

static void separate_block(const loss_job *j, size_t b, size_t n, const double *scale) {
    size_t at = b * j->d * j->size, acc_size = j->acc_size;
    j->k->separate(j->grad + at, j->terms + b, j->z + b * j->r, j->h + at, j->other + at, j->basis,
                   j->target + b * j->target_step * acc_size, j->target_step, scale, n, j->d, j->r);
}

static double align_mean_row(const loss_job *j, size_t b, double scale) {
    size_t at = b * j->d * j->size;
    return j->k->align_mean(j->grad + at, j->grad_p ? j->grad_p + at : NULL, j->h + at,
                            j->other + at, j->basis, j->d, scale);
}

static void align_complement_block(const loss_job *j, size_t b, size_t n, const double *scale) {
    size_t at = b * j->d * j->size;
    j->k->align_complement(j->grad + at, j->grad_p ? j->grad_p + at : NULL, j->terms + b,
                           j->z + b * j->r, j->h + at, j->other + at, j->basis, scale, n, j->d,
                           j->r);
}

static double retain_row(const loss_job *j, size_t b, double scale) {
    size_t at = b * j->d * j->size;
    return j->k->retain(j->grad + at, j->h + at, j->other + at, j->d, scale);
}

/* Here row b is a prompt of t tokens; z + b*d holds its mean difference. */
static double retain_mean_row(const loss_job *j, size_t b, double scale) {
    double *mean = j->z + b * j->d, count = 0.0, sum = 0.0;
    memset(mean, 0, j->d * sizeof *mean);
    for (size_t tok = b * j->t; tok < (b + 1) * j->t; tok++)
        if (j->mask[tok]) {
            size_t at = tok * j->d * j->size;
            j->k->add_difference(mean, j->h + at, j->other + at, j->d);
            count += 1.0;
        }
    for (size_t i = 0; i < j->d; i++) {
        mean[i] /= count;
        sum += mean[i] * mean[i];
    }
    for (size_t tok = b * j->t; tok < (b + 1) * j->t; tok++) {
        unsigned char *grad = j->grad + tok * j->d * j->size;
        if (j->mask[tok])
            j->k->spread(grad, mean, j->d, scale / count);
        else
            memset(grad, 0, j->d * j->size);
    }
    return 0.5 * scale * sum;
}

/* 2 w / d of a row; where that is 0, also zeroes its gradient. */
static double scale_of(const loss_job *j, size_t b) {
    size_t bytes = j->d * j->size;
    double scale = 2.0 * (j->weights ? j->weights[b] : j->uniform) / (double)j->d;
    if (j->row != retain_mean_row && j->mask && !j->mask[b])
        scale = 0.0;
    if (scale == 0.0) {
        memset(j->grad + b * bytes, 0, bytes);
        if (j->grad_p)
            memset(j->grad_p + b * bytes, 0, bytes);
    }
    return scale;
}

static lens_status loss_chunk(void *ctx, size_t chunk, size_t thread) {
    const loss_job *j = ctx;
    size_t end = (chunk + 1) * j->rows < j->B ? (chunk + 1) * j->rows : j->B;
    double scale[ROWS];
    (void)thread;
    for (size_t b = chunk * j->rows, n; b < end; b += n) {
        n = end - b < ROWS ? end - b : ROWS;
        for (size_t i = 0; i < n; i++)
            scale[i] = scale_of(j, b + i);
        if (j->block != NULL)
            j->block(j, b, n, scale);
        for (size_t i = 0; j->block == NULL && i < n; i++)
            j->terms[b + i] = scale[i] != 0.0 ? j->row(j, b + i, scale[i]) : 0.0;
    }
    return LENS_OK;
}

/* Run every row and add the terms in order; fault is the first that is not finite. */
static lens_status run(loss_job *j, double *value, lens_fault *fault, lens_dtype dtype,
                       int n_threads) {
    *fault = (lens_fault){.row = LENS_NOWHERE, .item = LENS_NOWHERE};
    if (dtype >= LENS_N_DTYPES)
        return LENS_EDTYPE;
    if (j->d == 0)
        return LENS_ESHAPE;
    j->k = lens_kernels_of(dtype);
    j->size = lens_dtype_size(dtype);
    j->acc_size = dtype == LENS_F64 ? sizeof(double) : sizeof(float);
    j->rows = CHUNKS * lens_chunk_rows(lens_mul(j->d, j->t ? j->t : 1));
    j->uniform = j->uniform > 0.0 ? j->uniform : 1.0 / (double)j->B;
    lens_parallel(loss_chunk, j, lens_n_chunks(j->B, j->rows), n_threads);
    double sum = 0.0;
    for (size_t b = 0; b < j->B; b++) {
        if (!isfinite(j->terms[b])) {
            fault->row = b;
            return LENS_ENONFINITE;
        }
        sum += j->terms[b];
    }
    *value = sum;
    return LENS_OK;
}

lens_status lens_loss_separate(double *value, void *grad, lens_fault *fault, const void *h,
                               const void *h0, const void *basis, const void *target,
                               const double *weights, size_t B, size_t d, size_t r, int per_row,
                               lens_dtype dtype, int n_threads, double *work) {
    loss_job j = {.grad = grad,
                  .h = h,
                  .other = h0,
                  .basis = basis,
                  .target = target,
                  .weights = weights,
                  .terms = work,
                  .z = work + B,
                  .B = B,
                  .d = d,
                  .r = r,
                  .target_step = per_row ? r : 0,
                  .block = separate_block};
    return run(&j, value, fault, dtype, n_threads);
}

size_t lens_loss_separate_worksize(size_t B, size_t r) {
    return lens_mul(B, lens_add(r, 1));
}

lens_status lens_loss_align_mean(double *value, void *grad, void *grad_p, lens_fault *fault,
                                 const void *h, const void *p, const void *u, const double *weights,
                                 size_t B, size_t d, lens_dtype dtype, int n_threads,
                                 double *work) {
    loss_job j = {.grad = grad,
                  .grad_p = grad_p,
                  .h = h,
                  .other = p,
                  .basis = u,
                  .weights = weights,
                  .terms = work,
                  .B = B,
                  .d = d,
                  .row = align_mean_row};
    return run(&j, value, fault, dtype, n_threads);
}

size_t lens_loss_align_mean_worksize(size_t B) {
    return B;
}

lens_status lens_loss_align_complement(double *value, void *grad, void *grad_p, lens_fault *fault,
                                       const void *h, const void *p, const void *basis,
                                       const double *weights, size_t B, size_t d, size_t r,
                                       lens_dtype dtype, int n_threads, double *work) {
    loss_job j = {.grad = grad,
                  .grad_p = grad_p,
                  .h = h,
                  .other = p,
                  .basis = basis,
                  .weights = weights,
                  .terms = work,
                  .z = work + B,
                  .B = B,
                  .d = d,
                  .r = r,
                  .block = align_complement_block};
    return run(&j, value, fault, dtype, n_threads);
}

size_t lens_loss_align_complement_worksize(size_t B, size_t r) {
    return lens_mul(B, lens_add(r, 1));
}

lens_status lens_loss_retain_token(double *value, void *grad, lens_fault *fault, const void *h,
                                   const void *h0, const uint8_t *mask, size_t B, size_t t,
                                   size_t d, lens_dtype dtype, int n_threads, double *work) {
    size_t count = 0;
    for (size_t i = 0; i < B * t; i++)
        count += mask[i] != 0;
    *fault = (lens_fault){.row = LENS_NOWHERE, .item = LENS_NOWHERE};
    if (count == 0)
        return LENS_EMASKED;
    loss_job j = {.grad = grad,
                  .h = h,
                  .other = h0,
                  .mask = mask,
                  .terms = work,
                  .B = B * t,
                  .d = d,
                  .uniform = 1.0 / (double)count,
                  .row = retain_row};
    lens_status status = run(&j, value, fault, dtype, n_threads);
    if (status == LENS_ENONFINITE) { /* from a token of the flattened batch to (row, token) */
        fault->item = fault->row % t;
        fault->row /= t;
    }
    return status;
}

size_t lens_loss_retain_token_worksize(size_t B, size_t t) {
    return lens_mul(B, t);
}

lens_status lens_loss_retain_mean(double *value, void *grad, lens_fault *fault, const void *h,
                                  const void *h0, const uint8_t *mask, size_t B, size_t t, size_t d,
                                  lens_dtype dtype, int n_threads, double *work) {
    *fault = (lens_fault){.row = LENS_NOWHERE, .item = LENS_NOWHERE};
    for (size_t b = 0; b < B; b++) {
        size_t count = 0;
        for (size_t tok = b * t; tok < (b + 1) * t; tok++)
            count += mask[tok] != 0;
        if (count == 0) {
            fault->row = b;
            return LENS_EMASKED;
        }
    }
    loss_job j = {.grad = grad,
                  .h = h,
                  .other = h0,
                  .mask = mask,
                  .terms = work,
                  .z = work + B,
                  .B = B,
                  .t = t,
                  .d = d,
                  .row = retain_mean_row};
    return run(&j, value, fault, dtype, n_threads);
}

size_t lens_loss_retain_mean_worksize(size_t B, size_t d) {
    return lens_mul(B, lens_add(d, 1));
}
