/* SPDX-License-Identifier: MIT
 * weights.c: differences of the weights of two models, their largest elements, sums.  Level 3.
 * arXiv 2410.07825.  Flat arrays, read once and in place: no difference is stored unless it is the
 * result.  Counts are integers and sums are stored by chunk, so threads cannot change a bit. */
#include "dtype.h"
#include "kernels.h"
#include "parallel.h"

#include <math.h>
#include <string.h>

typedef struct {
    unsigned char *out;
    const unsigned char *x[4];    /* a, b, c, d; NULL where not given */
    const void *const *sources;   /* for combine, with */
    const lens_dtype *dtypes;     /* their dtypes and */
    const double *weights;        /* weights */
    size_t n_sources, n, d, size; /* d: columns, where there are rows */
    uint32_t low, high;
    double *sums;
    uint16_t *lows;
    uint64_t *counts; /* LENS_BUCKETS or 2 a thread */
    size_t *found;    /* by thread: first element not finite;  by chunk: how many */
    const lens_kernels *k;
} weights_job;

static size_t chunk_size(const weights_job *j, size_t i) {
    return j->n - i < LENS_CHUNK ? j->n - i : LENS_CHUNK;
}

/* Address of element i of input x, or NULL if x is NULL. */
static const void *at(const weights_job *j, size_t x, size_t i) {
    return j->x[x] ? j->x[x] + i * j->size : NULL;
}

static lens_status delta_chunk(void *ctx, size_t chunk, size_t thread) {
    const weights_job *j = ctx;
    size_t i = chunk * LENS_CHUNK;
    (void)thread;
    j->k->delta((float *)(void *)j->out + i, at(j, 0, i), at(j, 1, i), chunk_size(j, i));
    return LENS_OK;
}

static lens_status dots_chunk(void *ctx, size_t chunk, size_t thread) {
    const weights_job *j = ctx;
    size_t i = chunk * LENS_CHUNK;
    (void)thread;
    j->k->delta_dots(j->sums + 3 * chunk, at(j, 0, i), at(j, 1, i), at(j, 2, i), at(j, 3, i),
                     chunk_size(j, i));
    return LENS_OK;
}

static lens_status histogram_chunk(void *ctx, size_t chunk, size_t thread) {
    const weights_job *j = ctx;
    size_t i = chunk * LENS_CHUNK, m = chunk_size(j, i);
    size_t stop =
        j->k->delta_histogram(j->counts + thread * LENS_BUCKETS, at(j, 0, i), at(j, 1, i), m);
    if (stop == m)
        return LENS_OK;
    j->found[thread] = i + stop;
    return LENS_ENONFINITE;
}

static lens_status select_chunk(void *ctx, size_t chunk, size_t thread) {
    const weights_job *j = ctx;
    size_t i = chunk * LENS_CHUNK;
    j->found[chunk] =
        j->k->delta_select(j->out + i, j->lows + i, j->counts + 2 * thread, at(j, 0, i),
                           at(j, 1, i), chunk_size(j, i), j->low, j->high);
    return LENS_OK;
}

/* Short strips, so that prefetching the next one is spread evenly over the work on this one. */
static lens_status combine_chunk(void *ctx, size_t chunk, size_t thread) {
    const weights_job *j = ctx;
    size_t first = chunk * LENS_CHUNK, end = first + chunk_size(j, first);
    size_t strip = j->size < sizeof(float) ? 2 * LENS_STRIP : LENS_STRIP;
    double sum[2 * LENS_STRIP] = {0};
    (void)thread;
    for (size_t i = first, m; i < end; i += m) {
        m = end - i < strip ? end - i : strip;
        for (size_t s = 0, same; s < j->n_sources; s += same) {
            for (same = 1; s + same < j->n_sources && j->dtypes[s + same] == j->dtypes[s];)
                same++;
            lens_kernels_of(j->dtypes[s])
                ->sum(sum, j->sources + s, j->weights + s, same, s > 0, i, m);
        }
        for (size_t s = 0; i + m < end && s < j->n_sources; s++) {
            size_t size = lens_dtype_size(j->dtypes[s]);
            size_t next = end - i - m < strip ? end - i - m : strip;
            lens_prefetch((const unsigned char *)j->sources[s] + (i + m) * size, next * size);
        }
        j->k->round(j->out + i * j->size, sum, m);
    }
    return LENS_OK;
}

static lens_status rows_chunk(void *ctx, size_t chunk, size_t thread) {
    const weights_job *j = ctx;
    size_t rows = lens_chunk_rows(j->d), first = chunk * rows;
    size_t end = j->n - first < rows ? j->n : first + rows;
    (void)thread;
    for (size_t row = first; row < end; row++)
        j->sums[row] =
            j->k->delta_size(at(j, 0, row * j->d), at(j, 1, row * j->d), j->d) / (double)j->d;
    return LENS_OK;
}

/* A chunk is a tile of LENS_TILE columns, all rows. */
static lens_status columns_chunk(void *ctx, size_t chunk, size_t thread) {
    const weights_job *j = ctx;
    size_t i = chunk * LENS_TILE, m = j->d - i < LENS_TILE ? j->d - i : LENS_TILE;
    (void)thread;
    memset(j->sums + i, 0, m * sizeof *j->sums);
    for (size_t row = 0; row < j->n; row++)
        j->k->add_sizes(j->sums + i, at(j, 0, row * j->d + i), at(j, 1, row * j->d + i), m);
    for (size_t k = i; k < i + m; k++)
        j->sums[k] /= (double)j->n;
    return LENS_OK;
}

static lens_status nonfinite_chunk(void *ctx, size_t chunk, size_t thread) {
    const weights_job *j = ctx;
    size_t i = chunk * LENS_CHUNK;
    j->k->count_nonfinite(j->counts + 2 * thread, at(j, 0, i), chunk_size(j, i));
    return LENS_OK;
}

static lens_status run_chunks(lens_chunk_fn chunk, size_t n_chunks, weights_job *j,
                              lens_dtype dtype, int n_threads) {
    j->k = lens_kernels_of(dtype);
    j->size = lens_dtype_size(dtype);
    return lens_parallel(chunk, j, n_chunks, n_threads);
}

static lens_status run(lens_chunk_fn chunk, weights_job *j, lens_dtype dtype, int n_threads) {
    return run_chunks(chunk, lens_n_chunks(j->n, LENS_CHUNK), j, dtype, n_threads);
}

/* The first element that is not finite, and the input it is in. */
static lens_fault first_fault(const weights_job *j, size_t n) {
    lens_fault fault = {.row = LENS_NOWHERE, .item = LENS_NOWHERE};
    for (size_t k = 0; k < 4; k++) {
        size_t stop = j->x[k] ? j->k->first_nonfinite(j->x[k], n) : n;
        if (stop < n && stop < fault.row)
            fault = (lens_fault){.row = stop, .item = k};
    }
    return fault;
}

lens_status lens_weights_delta(float *out, const void *a, const void *b, size_t n, lens_dtype dtype,
                               int n_threads) {
    if (dtype >= LENS_N_DTYPES)
        return LENS_EDTYPE;
    weights_job j = {.out = (unsigned char *)out, .x = {a, b}, .n = n};
    return run(delta_chunk, &j, dtype, n_threads);
}

lens_status lens_weights_dots(double *sums, lens_fault *fault, const void *a, const void *b,
                              const void *c, const void *d, size_t n, lens_dtype dtype,
                              int n_threads, double *work) {
    *fault = (lens_fault){.row = LENS_NOWHERE, .item = LENS_NOWHERE};
    if (dtype >= LENS_N_DTYPES)
        return LENS_EDTYPE;
    weights_job j = {.x = {a, b, c, d}, .n = n, .sums = work};
    run(dots_chunk, &j, dtype, n_threads);
    for (size_t k = 0; k < 3; k++) {
        sums[k] = 0.0;
        for (size_t chunk = 0; chunk < lens_n_chunks(n, LENS_CHUNK); chunk++)
            sums[k] += work[3 * chunk + k];
    }
    if (isfinite(sums[0]) && isfinite(sums[1]) && isfinite(sums[2]))
        return LENS_OK;
    *fault = first_fault(&j, n);
    return LENS_ENONFINITE;
}

size_t lens_weights_dots_worksize(size_t n) {
    return lens_mul(3, lens_n_chunks(n, LENS_CHUNK));
}

lens_status lens_weights_histogram(uint64_t *counts, lens_fault *fault, const void *a,
                                   const void *b, size_t n, lens_dtype dtype, int n_threads,
                                   uint64_t *work) {
    *fault = (lens_fault){.row = LENS_NOWHERE, .item = LENS_NOWHERE};
    if (dtype >= LENS_N_DTYPES)
        return LENS_EDTYPE;
    size_t found[LENS_MAX_THREADS];
    size_t used = lens_threads(lens_n_chunks(n, LENS_CHUNK), n_threads);
    memset(work, 0, used * LENS_BUCKETS * sizeof *work);
    memset(counts, 0, LENS_BUCKETS * sizeof *counts);
    for (size_t i = 0; i < LENS_MAX_THREADS; i++)
        found[i] = LENS_NOWHERE;
    weights_job j = {.x = {a, b}, .n = n, .counts = work, .found = found};
    lens_status status = run(histogram_chunk, &j, dtype, n_threads);
    for (size_t i = 0; i < used; i++) {
        fault->row = found[i] < fault->row ? found[i] : fault->row;
        for (size_t k = 0; k < LENS_BUCKETS; k++)
            counts[k] += work[i * LENS_BUCKETS + k];
    }
    return status;
}

size_t lens_weights_histogram_worksize(size_t n, int n_threads) {
    return lens_mul(LENS_BUCKETS, lens_threads(lens_n_chunks(n, LENS_CHUNK), n_threads));
}

lens_status lens_weights_select(uint8_t *marks, uint16_t *lows, uint64_t *counts, const void *a,
                                const void *b, size_t n, uint32_t low, uint32_t high,
                                lens_dtype dtype, int n_threads, size_t *work) {
    uint64_t by_thread[2 * LENS_MAX_THREADS] = {0};
    if (dtype >= LENS_N_DTYPES)
        return LENS_EDTYPE;
    if (low == 0 || low > high || high > 1u << 31 || high - low > 1u << LENS_BUCKET_BITS ||
        (low < high && (high - 1) >> LENS_BUCKET_BITS != low >> LENS_BUCKET_BITS))
        return LENS_EDOMAIN;
    weights_job j = {.out = marks, .lows = lows, .x = {a, b}, .n = n, .low = low, .high = high};
    j.counts = by_thread, j.found = work;
    lens_status status = run(select_chunk, &j, dtype, n_threads);
    counts[0] = counts[1] = counts[2] = 0;
    for (size_t i = 0; i < LENS_MAX_THREADS; i++) {
        counts[0] += by_thread[2 * i];
        counts[1] += by_thread[2 * i + 1];
    }
    for (size_t chunk = 0; chunk < lens_n_chunks(n, LENS_CHUNK); chunk++) { /* close the gaps */
        memmove(lows + counts[2], lows + chunk * LENS_CHUNK, work[chunk] * sizeof *lows);
        counts[2] += work[chunk];
    }
    return status;
}

size_t lens_weights_select_worksize(size_t n) {
    return lens_n_chunks(n, LENS_CHUNK);
}

lens_status lens_weights_settle(uint8_t *marks, const uint8_t *keep, size_t n, size_t n_keep) {
    const uint8_t *end = marks + n;
    size_t open = 0;
    for (size_t i = 0; i < n; i++)
        open += marks[i] == 2;
    if (open != n_keep)
        return LENS_ESHAPE;
    for (uint8_t *at = marks; open > 0; open--)
        if ((at = memchr(at, 2, (size_t)(end - at))) != NULL)
            *at++ = *keep++ != 0;
    return LENS_OK;
}

/* LENS_ENONFINITE if a mean is not finite, and the element that caused it. */
static lens_status check_means(lens_fault *fault, const weights_job *j, size_t n_means) {
    *fault = (lens_fault){.row = LENS_NOWHERE, .item = LENS_NOWHERE};
    for (size_t i = 0; i < n_means; i++)
        if (!isfinite(j->sums[i])) {
            size_t stop = first_fault(j, j->n * j->d).row;
            if (stop != LENS_NOWHERE)
                *fault = (lens_fault){.row = stop / j->d, .item = stop % j->d};
            return LENS_ENONFINITE;
        }
    return LENS_OK;
}

lens_status lens_weights_row_means(double *out, lens_fault *fault, const void *a, const void *b,
                                   size_t n, size_t d, lens_dtype dtype, int n_threads) {
    if (dtype >= LENS_N_DTYPES)
        return LENS_EDTYPE;
    if (d == 0)
        return LENS_ESHAPE;
    weights_job j = {.sums = out, .x = {a, b}, .n = n, .d = d};
    run_chunks(rows_chunk, lens_n_chunks(n, lens_chunk_rows(d)), &j, dtype, n_threads);
    return check_means(fault, &j, n);
}

lens_status lens_weights_column_means(double *out, lens_fault *fault, const void *a, const void *b,
                                      size_t n, size_t d, lens_dtype dtype, int n_threads) {
    if (dtype >= LENS_N_DTYPES)
        return LENS_EDTYPE;
    if (n == 0)
        return LENS_ESHAPE;
    weights_job j = {.sums = out, .x = {a, b}, .n = n, .d = d};
    run_chunks(columns_chunk, lens_n_chunks(d, LENS_TILE), &j, dtype, n_threads);
    return check_means(fault, &j, d);
}

lens_status lens_weights_combine(void *out, const void *const *sources, const lens_dtype *dtypes,
                                 const double *weights, size_t n_sources, size_t n,
                                 lens_dtype dtype, int n_threads) {
    const void *used[LENS_MAX_SOURCES];
    lens_dtype used_dtypes[LENS_MAX_SOURCES];
    double used_weights[LENS_MAX_SOURCES];
    size_t count = 0;
    if (dtype >= LENS_N_DTYPES)
        return LENS_EDTYPE;
    if (n_sources > LENS_MAX_SOURCES)
        return LENS_ESHAPE;
    for (size_t s = 0; s < n_sources; s++) {
        if (dtypes[s] >= LENS_N_DTYPES)
            return LENS_EDTYPE;
        if (!isfinite(weights[s]))
            return LENS_EDOMAIN;
        if (weights[s] != 0.0) {
            used[count] = sources[s];
            used_dtypes[count] = dtypes[s];
            used_weights[count++] = weights[s];
        }
    }
    if (count == 1 && used_weights[0] == 1.0 && used_dtypes[0] == dtype) {
        if (n > 0)
            memcpy(out, used[0], n * lens_dtype_size(dtype));
        return LENS_OK;
    }
    weights_job j = {.out = out,
                     .sources = used,
                     .dtypes = used_dtypes,
                     .weights = used_weights,
                     .n_sources = count,
                     .n = n};
    return run(combine_chunk, &j, dtype, n_threads);
}

lens_status lens_weights_nonfinite(uint64_t *nan, uint64_t *inf, const void *x, size_t n,
                                   lens_dtype dtype, int n_threads) {
    if (dtype >= LENS_N_DTYPES)
        return LENS_EDTYPE;
    uint64_t counts[2 * LENS_MAX_THREADS] = {0};
    weights_job j = {.x = {x}, .n = n, .counts = counts};
    lens_status status = run(nonfinite_chunk, &j, dtype, n_threads);
    *nan = *inf = 0;
    for (size_t i = 0; i < LENS_MAX_THREADS; i++) {
        *nan += counts[2 * i];
        *inf += counts[2 * i + 1];
    }
    return status;
}
