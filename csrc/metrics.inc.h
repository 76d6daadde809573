/* SPDX-License-Identifier: MIT
 * metrics.inc.h: unit rows, blocks of dot products, squared distances.  Level 2 template.
 * A dot product has the same bits wherever its two rows stand in a block: equal rows tie. */

/* out[n] = x / |x| in ACC, of finite x.  0 if x is zero.  Scaled, so that no square overflows. */
static int FN(unit)(void *out_, const void *x_, size_t n) {
    const T *x = x_;
    ACC *out = out_, buf[LENS_PIECE], top = 0;
    double sum = 0.0;
    for (size_t i = 0, m; i < n; i += m) {
        m = FN(piece)(i, n);
        const ACC *v = FN(view)(buf, x + i, m);
        for (size_t k = 0; k < m; k++) {
            ACC size = v[k] < 0 ? -v[k] : v[k];
            top = size > top ? size : top;
        }
        memcpy(out + i, v, m * sizeof(ACC));
    }
    if (top == 0)
        return 0;
    for (size_t i = 0, m; i < n; i += m) {
        m = FN(piece)(i, n);
        for (size_t k = 0; k < m; k++)
            out[i + k] /= top;
        sum += (double)FN(dot)(out + i, out + i, m);
    }
    double factor = 1.0 / sqrt(sum);
    for (size_t i = 0; i < n; i++)
        out[i] = (ACC)((double)out[i] * factor);
    return 1;
}

/* z[i,k] = A[i] . B[k].  z: (p,q), A: (p,d) ACC, B: (q,d) ACC. */
static void FN(similarity)(double *z, const void *A_, const void *B_, size_t p, size_t q,
                           size_t d) {
    const ACC *A = A_, *B = B_;
    memset(z, 0, p * q * sizeof *z);
    for (size_t c = 0, m; c < d; c += m) {
        m = FN(piece)(c, d);
        for (size_t i = 0; i < p; i++)
            FN(coordinates)(z + i * q, A + i * d + c, B, c, m, d, q);
    }
}

/* |x - mean|^2, mean in ACC. */
static double FN(distance)(const void *x_, const void *mean_, size_t d) {
    const T *x = x_;
    const ACC *mean = mean_;
    ACC buf[LENS_PIECE], from[LENS_PIECE];
    double sum = 0.0;
    for (size_t i = 0, m; i < d; i += m) {
        m = FN(piece)(i, d);
        const ACC *v = FN(view)(buf, x + i, m);
        for (size_t k = 0; k < m; k++)
            from[k] = v[k] - mean[i + k];
        sum += (double)FN(dot)(from, from, m);
    }
    return sum;
}
