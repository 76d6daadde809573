/* SPDX-License-Identifier: MIT
 * moments.c: count, mean and sum of squared deviations of each column, mergeable.  Level 3.
 * Welford (in West's form) within a block of rows, Chan across blocks.  The caller holds the tree of
 * blocks. */
#include "kernels.h"
#include "parallel.h"

#include <math.h>
#include <string.h>

typedef struct {
    double *mean, *m2;
    const unsigned char *X;
    size_t n, d, size, tile;
    uint64_t count;
    const lens_kernels *k;
} moments_job;

/* A chunk is a tile of columns, all rows. */
static lens_status moments_chunk(void *ctx, size_t chunk, size_t thread) {
    const moments_job *j = ctx;
    size_t i = chunk * j->tile, m = j->d - i < j->tile ? j->d - i : j->tile;
    (void)thread;
    j->k->welford(j->mean + i, j->m2 + i, j->X + i * j->size, j->n, j->d, m, j->count);
    for (size_t c = i; c < i + m; c++)
        if (!isfinite(j->m2[c]))
            return LENS_ENONFINITE;
    return LENS_OK;
}

lens_status lens_moments_update(double *mean_out, double *m2_out, lens_fault *fault,
                                const double *mean, const double *m2, const void *X, size_t n,
                                size_t d, uint64_t count, lens_dtype dtype, int n_threads) {
    *fault = (lens_fault){.row = LENS_NOWHERE, .item = LENS_NOWHERE};
    if (dtype >= LENS_N_DTYPES)
        return LENS_EDTYPE;
    if (count > 0 && (mean == NULL || m2 == NULL))
        return LENS_ESHAPE;
    for (size_t i = 0; i < d; i++) {
        mean_out[i] = count > 0 ? mean[i] : 0.0;
        m2_out[i] = count > 0 ? m2[i] : 0.0;
    }
    moments_job j = {.mean = mean_out,
                     .m2 = m2_out,
                     .X = X,
                     .n = n,
                     .d = d,
                     .count = count,
                     .size = lens_dtype_size(dtype),
                     .k = lens_kernels_of(dtype)};
    /* Columns are independent, so the tile width may depend on the number of threads: wide tiles read
     * longer runs of memory, as long as mean and m2 stay in cache. */
    size_t pieces = lens_n_chunks(d, LENS_PIECE), share = pieces / lens_threads(pieces, n_threads);
    j.tile = LENS_PIECE * (share < 1 ? 1 : share > 8 ? 8 : share);
    lens_status status = lens_parallel(moments_chunk, &j, lens_n_chunks(d, j.tile), n_threads);
    for (size_t row = 0; status == LENS_ENONFINITE && row < n; row++) {
        size_t column = j.k->first_nonfinite(j.X + row * d * j.size, d);
        if (column < d) {
            *fault = (lens_fault){.row = row, .item = column};
            break;
        }
    }
    return status;
}

lens_status lens_moments_merge(double *mean_out, double *m2_out, const double *mean_a,
                               const double *m2_a, const double *mean_b, const double *m2_b,
                               size_t d, uint64_t count_a, uint64_t count_b) {
    if (count_a == 0 || count_b == 0)
        return LENS_EDOMAIN;
    double na = (double)count_a, nb = (double)count_b, share = nb / (na + nb);
    for (size_t i = 0; i < d; i++) {
        double delta = mean_b[i] - mean_a[i];
        mean_out[i] = mean_a[i] + delta * share;
        m2_out[i] = m2_a[i] + m2_b[i] + delta * delta * (na * share);
    }
    return LENS_OK;
}
