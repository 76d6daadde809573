/* SPDX-License-Identifier: MIT
 * moments.inc.h: sums of rows, element by element in double.  Level 2 template.
 * Nothing is reduced across columns, so any width of register gives the same bits. */

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

/* mean' = mean + (x - mean)/count;  m2' = m2 + (x - mean)(x - mean').  n <= LENS_PIECE. */
static void FN(welford)(double *restrict mean, double *restrict m2, const void *X_, size_t rows,
                        size_t d, size_t n, uint64_t count) {
    const T *X = X_;
    ACC buf[LENS_PIECE];
    for (size_t row = 0; row < rows; row++) {
        const ACC *x = FN(view)(buf, X + row * d, n);
        double share = 1.0 / (double)++count;
        for (size_t i = 0; i < n; i++) {
            double from = (double)x[i] - mean[i];
            double to = mean[i] + from * share;
            m2[i] += from * ((double)x[i] - to);
            mean[i] = to;
        }
    }
}
