/* SPDX-License-Identifier: MIT
 * weights.inc.h: differences of two flat arrays, without storing them.  Level 2 template.
 * b = NULL stands for zeros.  The key of a delta is the bits of |delta| in float32: 31 bits that
 * sort as |delta| does. */

/* buf[m] = a - b in ACC; m <= LENS_PIECE. */
static inline const ACC *FN(delta_view)(ACC *buf, const T *a, const T *b, size_t m) {
    if (b == NULL)
        return FN(view)(buf, a, m);
    FN(difference)(buf, a, b, m);
    return buf;
}

/* key[m] of a - b; returns the largest. */
static inline uint32_t FN(delta_keys)(uint32_t *key, const T *a, const T *b, size_t m) {
    ACC buf[LENS_PIECE];
    const ACC *v = FN(delta_view)(buf, a, b, m);
    uint32_t most = 0;
    for (size_t k = 0; k < m; k++) {
        key[k] = lens_f32_to_bits((float)v[k]) & 0x7fffffffu;
        most = key[k] > most ? key[k] : most;
    }
    return most;
}

static void FN(delta)(float *out, const void *a_, const void *b_, size_t n) {
    const T *a = a_, *b = b_;
    ACC buf[LENS_PIECE];
    for (size_t i = 0, m; i < n; i += m) {
        m = FN(piece)(i, n);
        const ACC *v = FN(delta_view)(buf, a + i, b ? b + i : NULL, m);
        for (size_t k = 0; k < m; k++)
            out[i + k] = (float)v[k];
    }
}

/* Lanes of double: the square of a tiny float32 does not vanish and that of a large one is finite. */
static inline void FN(products)(double *lane, const ACC *x, const ACC *y, size_t m) {
    size_t i = 0;
    for (; i + LENS_LANES <= m; i += LENS_LANES)
        for (size_t l = 0; l < LENS_LANES; l++)
            lane[l] += (double)x[i + l] * (double)y[i + l];
    for (size_t l = 0; i + l < m; l++)
        lane[l] += (double)x[i + l] * (double)y[i + l];
}

static inline double FN(fold_double)(double *lane) {
    for (size_t half = LENS_LANES / 2; half > 0; half /= 2)
        for (size_t l = 0; l < half; l++)
            lane[l] += lane[l + half];
    return lane[0];
}

static void FN(delta_dots)(double *sums, const void *a_, const void *b_, const void *c_,
                           const void *d_, size_t n) {
    const T *a = a_, *b = b_, *c = c_, *d = d_;
    ACC bx[LENS_PIECE], by[LENS_PIECE];
    double xx[LENS_LANES] = {0}, yy[LENS_LANES] = {0}, xy[LENS_LANES] = {0};
    for (size_t i = 0, m; i < n; i += m) {
        m = FN(piece)(i, n);
        const ACC *x = FN(delta_view)(bx, a + i, b ? b + i : NULL, m);
        FN(products)(xx, x, x, m);
        if (c == NULL)
            continue;
        const ACC *y = FN(delta_view)(by, c + i, d ? d + i : NULL, m);
        FN(products)(yy, y, y, m);
        FN(products)(xy, x, y, m);
    }
    sums[0] = FN(fold_double)(xx);
    sums[1] = FN(fold_double)(yy);
    sums[2] = FN(fold_double)(xy);
}

static size_t FN(delta_histogram)(uint64_t *counts, const void *a_, const void *b_, size_t n) {
    const T *a = a_, *b = b_;
    uint32_t key[LENS_PIECE];
    for (size_t i = 0, m; i < n; i += m) {
        m = FN(piece)(i, n);
        uint32_t most = FN(delta_keys)(key, a + i, b ? b + i : NULL, m), zeros = 0;
        if (most >= 0x7f800000u) {
            for (size_t k = 0; k < m; k++)
                if (key[k] >= 0x7f800000u)
                    return i + k;
        }
        for (size_t k = 0; k < m; k++)
            zeros += key[k] == 0;
        for (size_t k = 0; k < m; k++)
            counts[key[k] >> LENS_BUCKET_BITS]++;
        counts[0] -= zeros;
    }
    return n;
}

static size_t FN(delta_select)(uint8_t *mask, const void *a_, const void *b_, size_t n,
                               uint32_t low, uint32_t high) {
    const T *a = a_, *b = b_;
    uint32_t key[LENS_PIECE];
    size_t chosen = 0;
    for (size_t i = 0, m; i < n; i += m) {
        m = FN(piece)(i, n);
        FN(delta_keys)(key, a + i, b ? b + i : NULL, m);
        uint32_t above = 0;
        for (size_t k = 0; k < m; k++)
            above += key[k] >= high;
        for (size_t k = 0; k < m; k++)
            mask[i + k] = (uint8_t)(key[k] >= high ? 1 : key[k] >= low ? 2 : 0);
        chosen += above;
    }
    return chosen;
}

#if !defined(DIRECT)
/* The float next to x on the side of zero, made odd unless x is a float: rounding that to 16 bits
 * gives what rounding x itself would, as a float has more than two bits to spare. */
static inline ACC FN(round_to_odd)(double x) {
    float near = (float)x;
    uint32_t bits = lens_f32_to_bits(near);
    bits -= fabs((double)near) > fabs(x);
    bits |= (double)near != x;
    return lens_bits_to_f32(bits);
}
#endif

static void FN(round)(void *out_, const double *x, size_t n) {
    T *out = out_;
    ACC buf[LENS_PIECE];
    for (size_t i = 0, m; i < n; i += m) {
        m = FN(piece)(i, n);
        for (size_t k = 0; k < m; k++) {
            double v = isnan(x[i + k]) ? (double)NAN : x[i + k]; /* which NaN is left to chance */
#if defined(DIRECT)
            buf[k] = (ACC)v;
#else
            buf[k] = FN(round_to_odd)(v);
#endif
        }
        FN(flush)(out + i, buf, m);
    }
}

static void FN(count_nonfinite)(uint64_t *counts, const void *x_, size_t n) {
    const T *x = x_;
    ACC buf[LENS_PIECE];
    for (size_t i = 0, m; i < n; i += m) {
        m = FN(piece)(i, n);
        const ACC *v = FN(view)(buf, x + i, m);
        uint32_t nan = 0, inf = 0;
        for (size_t k = 0; k < m; k++) {
            nan += v[k] != v[k];
            inf += v[k] == (ACC)INFINITY || v[k] == -(ACC)INFINITY;
        }
        counts[0] += nan;
        counts[1] += inf;
    }
}
