/* SPDX-License-Identifier: MIT
 * subspace.inc.h: coordinates in a basis, and projection out of its span.  Level 2 template.
 * basis: (r,d), one direction a row. */

/* sum[k] += lane[k] and the products of the remaining elements i..m of row k of basis, k < n. */
static inline void FN(gather)(double *sum, ACC (*lane)[LENS_LANES], const ACC *v, const ACC *basis,
                              size_t d, size_t i, size_t m, size_t n) {
    for (size_t k = 0; k < n; k++) {
        if (i < m)
            FN(tail)(lane[k], v + i, basis + k * d + i, m - i);
        sum[k] += (double)FN(fold)(lane[k]);
    }
}

/* sum[k] += v . row k of basis for k < n <= 4, each as dot() gives it: four chains of additions at
 * once, some of them idle when n < 4. */
static inline void FN(dot4)(double *sum, const ACC *v, const ACC *basis, size_t d, size_t m,
                            size_t n) {
    const ACC *b0 = basis, *b1 = n > 1 ? b0 + d : b0, *b2 = n > 2 ? b1 + d : b0;
    const ACC *b3 = n > 3 ? b2 + d : b0;
    ACC lane[4][LENS_LANES] = {{0}};
    size_t i = 0;
    for (; i + LENS_LANES <= m; i += LENS_LANES)
        for (size_t l = 0; l < LENS_LANES; l++) {
            lane[0][l] += v[i + l] * b0[i + l];
            lane[1][l] += v[i + l] * b1[i + l];
            lane[2][l] += v[i + l] * b2[i + l];
            lane[3][l] += v[i + l] * b3[i + l];
        }
    FN(gather)(sum, lane, v, basis, d, i, m, n);
}

/* The same for six rows, the usual rank of seven languages. */
static inline void FN(dot6)(double *sum, const ACC *v, const ACC *basis, size_t d, size_t m) {
    const ACC *b0 = basis, *b1 = b0 + d, *b2 = b1 + d, *b3 = b2 + d, *b4 = b3 + d, *b5 = b4 + d;
    ACC lane[6][LENS_LANES] = {{0}};
    size_t i = 0;
    for (; i + LENS_LANES <= m; i += LENS_LANES)
        for (size_t l = 0; l < LENS_LANES; l++) {
            lane[0][l] += v[i + l] * b0[i + l];
            lane[1][l] += v[i + l] * b1[i + l];
            lane[2][l] += v[i + l] * b2[i + l];
            lane[3][l] += v[i + l] * b3[i + l];
            lane[4][l] += v[i + l] * b4[i + l];
            lane[5][l] += v[i + l] * b5[i + l];
        }
    FN(gather)(sum, lane, v, basis, d, i, m, 6);
}

/* z[k] += basis[k, i..i+m) . v[m], within the piece in ACC, across pieces in double. */
static inline void FN(coordinates)(double *z, const ACC *v, const ACC *basis, size_t i, size_t m,
                                   size_t d, size_t r) {
    size_t k = 0;
    for (; k + 6 <= r; k += 6)
        FN(dot6)(z + k, v, basis + k * d + i, d, m);
    for (; k < r; k += 4)
        FN(dot4)(z + k, v, basis + k * d + i, d, m, r - k < 4 ? r - k : 4);
}

/* v[m] = x + sum_k c_k basis[k, i..i+m) with c_k = scale z_k, k in order; v may be x. */
static inline void FN(combine)(ACC *v, const ACC *x, const double *z, const ACC *basis, size_t i,
                               size_t m, size_t d, size_t r, double scale) {
    size_t k = 0;
    ACC c[6];
    for (; k + 6 <= r;
         k += 6, x = v) { /* six at a time saves memory traffic; same order of additions */
        const ACC *b0 = basis + k * d + i, *b1 = b0 + d, *b2 = b1 + d, *b3 = b2 + d, *b4 = b3 + d;
        const ACC *b5 = b4 + d;
        for (size_t l = 0; l < 6; l++)
            c[l] = (ACC)(scale * z[k + l]);
        for (size_t l = 0; l < m; l++) {
            ACC half = ((x[l] + c[0] * b0[l]) + c[1] * b1[l]) + c[2] * b2[l];
            v[l] = ((half + c[3] * b3[l]) + c[4] * b4[l]) + c[5] * b5[l];
        }
    }
    for (; k < r; k++, x = v) {
        const ACC *row = basis + k * d + i;
        c[0] = (ACC)(scale * z[k]);
        for (size_t l = 0; l < m; l++)
            v[l] = x[l] + c[0] * row[l];
    }
    if (x != v)
        memcpy(v, x, m * sizeof *v);
}

static void FN(project)(void *out_, double *z, const void *x_, const void *basis_, size_t d,
                        size_t r, double strength) {
    const T *x = x_;
    const ACC *basis = basis_;
    T *out = out_;
    ACC buf[LENS_PIECE], room[LENS_PIECE];
    for (size_t k = 0; k < r; k++)
        z[k] = 0.0;
    for (size_t i = 0, m; i < d; i += m) {
        m = FN(piece)(i, d);
        FN(coordinates)(z, FN(view)(buf, x + i, m), basis, i, m, d, r);
    }
    for (size_t i = 0, m; i < d; i += m) {
        m = FN(piece)(i, d);
        const ACC *v = FN(view)(buf, x + i, m);
        ACC *sum = FN(target)(room, out + i);
        FN(combine)(sum, v, z, basis, i, m, d, r, -strength);
        FN(flush)(out + i, sum, m);
    }
}
