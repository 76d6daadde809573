/* SPDX-License-Identifier: MIT
 * combine.inc.h: sums of weighted sources in double, and rounding them once.  Level 2 template.
 * Element by element, so any register width gives the same bits. */

/* sum (+)= w[0] x[0] + ... + w[few-1] x[few-1], in this order; callers pass `few` and `more` as
 * literals, so that each loop is free of branches. */
static inline void FN(sum_few)(double *restrict sum, const ACC *const *x, const double *w,
                               size_t few, int more, size_t m) {
    const ACC *x0 = x[0], *x1 = x[few > 1 ? 1 : 0], *x2 = x[few > 2 ? 2 : 0],
              *x3 = x[few > 3 ? 3 : 0];
    double w0 = w[0], w1 = few > 1 ? w[1] : 0, w2 = few > 2 ? w[2] : 0, w3 = few > 3 ? w[3] : 0;
    for (size_t k = 0; k < m; k++) {
        double v = w0 * (double)x0[k];
        v = more ? sum[k] + v : v;
        v = few > 1 ? v + w1 * (double)x1[k] : v;
        v = few > 2 ? v + w2 * (double)x2[k] : v;
        v = few > 3 ? v + w3 * (double)x3[k] : v;
        sum[k] = v;
    }
}

static inline void FN(sum_by)(double *sum, const ACC *const *x, const double *w, size_t few,
                              int more, size_t m) {
    switch (few) {
    case 1:
        FN(sum_few)(sum, x, w, 1, more, m);
        break;
    case 2:
        FN(sum_few)(sum, x, w, 2, more, m);
        break;
    case 3:
        FN(sum_few)(sum, x, w, 3, more, m);
        break;
    default:
        FN(sum_few)(sum, x, w, 4, more, m);
    }
}

static void FN(sum)(double *sum, const void *const *sources, const double *w, size_t n_sources,
                    int more, size_t i, size_t m) {
    ACC buf[4][LENS_PIECE];
    const ACC *x[4] = {NULL};
    for (size_t s = 0, few; s < n_sources; s += few) {
        few = n_sources - s < 4 ? n_sources - s : 4;
        for (size_t k = 0; k < few; k++)
            x[k] = FN(view)(buf[k], (const T *)sources[s + k] + i, m);
        if (more || s > 0)
            FN(sum_by)(sum, x, w + s, few, 1, m);
        else
            FN(sum_by)(sum, x, w + s, few, 0, m);
    }
}

#if defined(DIRECT)
static void FN(round)(void *out_, const double *x, size_t n) {
    T *restrict out = out_;
    for (size_t k = 0; k < n; k++)
        out[k] = CLEAN((T)x[k]); /* the payload of a NaN sum depends on the compiler */
}
#else
/* x rounded toward zero to float, with the last bit set if that was inexact (round to odd).  Rounding
 * the result to 16 bits equals rounding x itself, as a float has more than two extra bits. */
static inline float FN(round_to_odd)(double x) {
    float near = (float)x;
    uint32_t bits = lens_f32_to_bits(near);
    bits -= fabs((double)near) > fabs(x);
    bits |= (double)near != x;
    return lens_bits_to_f32(bits);
}

/* The same for x[m] by bit masks, except for values subnormal as float.  24 bits are left, so the
 * conversion to float is exact. */
static inline void FN(odd_piece)(float *restrict out, const double *x, size_t m) {
    const uint64_t tail = (1u << 29) - 1u;
    for (size_t k = 0; k < m; k++) {
        uint64_t u = lens_f64_to_bits(x[k]);
        out[k] = (float)lens_bits_to_f64((((u & tail) + tail) | u) & ~tail);
    }
}

static void FN(round)(void *out_, const double *x, size_t n) {
    T *out = out_;
    float buf[LENS_PIECE];
    for (size_t i = 0, m; i < n; i += m) {
        uint32_t tiny = 0;
        m = FN(piece)(i, n);
        FN(odd_piece)(buf, x + i, m);
        for (size_t k = 0; k < m; k++) {
            uint32_t size = lens_f32_to_bits(buf[k]) & 0x7fffffffu;
            tiny |= (size - 0x800000u) & (0u - size); /* the top bit if subnormal */
            buf[k] = CLEAN(buf[k]);
        }
        for (size_t k = 0; tiny >> 31 && k < m; k++)
            buf[k] = CLEAN(FN(round_to_odd)(x[i + k]));
        FN(flush)(out + i, buf, m);
    }
}
#endif
