/* SPDX-License-Identifier: MIT
 * moments.inc.h: sums of rows, element by element in double.  Level 2 template.
 * Nothing is summed across columns, so any register width gives the same bits. */

static void FN(add)(double *acc, const void *x_, size_t n, double w) {
    const T *x = x_;
    ACC buf[LENS_PIECE];
    for (size_t i = 0, m; i < n; i += m) {
        m = FN(piece)(i, n);
        const ACC *v = FN(view)(buf, x + i, m);
        for (size_t k = 0; k < m; k++)
            acc[i + k] += w * (double)v[k];
    }
}

static void FN(add_difference)(double *acc, const void *h_, const void *h0_, size_t d) {
    const T *h = h_, *h0 = h0_;
    ACC bh[LENS_PIECE], b0[LENS_PIECE];
    for (size_t i = 0, m; i < d; i += m) {
        m = FN(piece)(i, d);
        const ACC *v = FN(view)(bh, h + i, m), *v0 = FN(view)(b0, h0 + i, m);
        for (size_t k = 0; k < m; k++)
            acc[i + k] += (double)v[k] - (double)v0[k];
    }
}

static void FN(spread)(void *grad_, const double *mean, size_t d, double scale) {
    T *grad = grad_;
    ACC buf[LENS_PIECE];
    for (size_t i = 0, m; i < d; i += m) {
        m = FN(piece)(i, d);
        for (size_t k = 0; k < m; k++)
            buf[k] = (ACC)(scale * mean[i + k]);
        FN(flush)(grad + i, buf, m);
    }
}

/* One row: mean += (x - mean)/count;  m2 += (x - mean)^2 (count - 1)/count, with the old mean. */
static inline void FN(welford_step)(double *mean, double *m2, double x, const double *share) {
    double from = x - *mean;
    *mean += from * share[0];
    *m2 += from * from * share[1];
}

/* The same for `rows` rows, one after the other while mean and m2 stay in registers; rows is a
 * literal, 1 or 4. */
static inline void FN(welford_rows)(double *restrict mean, double *restrict m2, const ACC *const *x,
                                    const double *share, size_t rows, size_t n) {
    const ACC *x0 = x[0], *x1 = x[1], *x2 = x[2], *x3 = x[3];
    for (size_t i = 0; i < n; i++) {
        double at = mean[i], sum = m2[i];
        FN(welford_step)(&at, &sum, (double)x0[i], share);
        if (rows == 4) {
            FN(welford_step)(&at, &sum, (double)x1[i], share + 2);
            FN(welford_step)(&at, &sum, (double)x2[i], share + 4);
            FN(welford_step)(&at, &sum, (double)x3[i], share + 6);
        }
        mean[i] = at, m2[i] = sum;
    }
}

/* Short strips, so that prefetching the next rows is spread evenly over the work on these. */
static void FN(welford)(double *mean, double *m2, const void *X_, size_t rows, size_t d, size_t n,
                        uint64_t count) {
    const T *X = X_;
    ACC buf[4][LENS_STRIP];
    const ACC *x[4] = {NULL};
    double share[8] = {0};
    for (size_t row = 0, few; row < rows; row += few) {
        few = rows - row < 4 ? 1 : 4;
        for (size_t k = 0; k < few; k++, count++) {
            share[2 * k] = 1.0 / ((double)count + 1.0);
            share[2 * k + 1] = (double)count * share[2 * k];
        }
        for (size_t i = 0, m; i < n; i += m) {
            m = n - i < LENS_STRIP ? n - i : LENS_STRIP;
            for (size_t k = 0; k < few; k++) {
                const T *at = X + (row + k) * d + i;
                x[k] = FN(view)(buf[k], at, m);
                if (row + k + 4 < rows)
                    lens_prefetch(at + 4 * d, m * sizeof(T));
            }
            if (few == 4)
                FN(welford_rows)(mean + i, m2 + i, x, share, 4, m);
            else
                FN(welford_rows)(mean + i, m2 + i, x, share, 1, m);
        }
    }
}
