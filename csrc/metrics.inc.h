/* SPDX-License-Identifier: MIT
 * metrics.inc.h: unit rows, blocks of dot products, squared distances.  Level 2 template.
 * A dot product has the same bits wherever its two rows are in a block, so equal rows tie. */

/* The largest |x| of n elements; NaN is ignored. */
static inline ACC FN(largest)(const ACC *x, size_t n) {
    ACC top = 0;
    for (size_t i = 0; i < n; i++) {
        ACC size = x[i] < 0 ? -x[i] : x[i];
        top = size > top ? size : top;
    }
    return top;
}

/* sum (power x)^2 */
static inline double FN(squares)(const T *x, size_t n, ACC power) {
    ACC buf[LENS_PIECE];
    double sum = 0.0;
    for (size_t i = 0, m; i < n; i += m) {
        m = FN(piece)(i, n);
        const ACC *v = FN(view)(buf, x + i, m);
        for (size_t k = 0; power != 1 && k < m; k++)
            buf[k] = v[k] * power;
        v = power != 1 ? buf : v;
        sum += (double)FN(dot)(v, v, m);
    }
    return sum;
}

/* scale[2] with |x| = 1 / (scale[0] scale[1]).  The first is a power of two, so it rounds nothing,
 * and is 1 unless squares would overflow or vanish.  Returns 0 if x is zero or has NaN or infinity. */
static int FN(scale)(double *scale, const void *x_, size_t n) {
    const T *x = x_;
    ACC buf[LENS_PIECE], top = 0;
    int exponent, limit = sizeof(ACC) == sizeof(float) ? 126 : 1022;
    double sum = FN(squares)(x, n, 1);
    scale[0] = 1.0;
    if (!(sum > ldexp(1.0, -limit / 2) && sum < ldexp(1.0, limit / 2))) {
        for (size_t i = 0, m; i < n; i += m) {
            m = FN(piece)(i, n);
            ACC size = FN(largest)(FN(view)(buf, x + i, m), m);
            top = size > top ? size : top;
        }
        if (!(top > 0) || !isfinite(top))
            return 0;
        frexp((double)top, &exponent);
        exponent = exponent > limit ? limit : exponent < -limit ? -limit : exponent;
        scale[0] = ldexp(1.0, -exponent);
        sum = FN(squares)(x, n, (ACC)scale[0]);
    }
    scale[1] = 1.0 / sqrt(sum);
    return isfinite(sum);
}

/* out[n] = x scale[0] scale[1] in ACC: a part of a unit row has the same bits as in the whole row. */
static void FN(unit)(void *out_, const void *x_, const double *scale, size_t n) {
    const T *x = x_;
    ACC *out = out_, buf[LENS_PIECE], power = (ACC)scale[0], factor = (ACC)scale[1];
    for (size_t i = 0, m; i < n; i += m) {
        m = FN(piece)(i, n);
        const ACC *v = FN(view)(buf, x + i, m);
        for (size_t k = 0; k < m; k++)
            out[i + k] = v[k] * power * factor;
    }
}

/* z[n] += t, both ACC */
static void FN(accumulate)(void *z_, const void *t_, size_t n) {
    ACC *z = z_;
    const ACC *t = t_;
    for (size_t k = 0; k < n; k++)
        z[k] += t[k];
}

/* Whether some z[k] >= floor or >= floors[k], all ACC */
static int FN(reaches)(const void *z_, const void *floors_, double floor, size_t n) {
    const ACC *z = z_, *floors = floors_;
    ACC least = (ACC)floor;
    int any = 0;
    for (size_t k = 0; k < n; k++)
        any |= (z[k] >= least) | (z[k] >= floors[k]);
    return any;
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
