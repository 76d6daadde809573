/* SPDX-License-Identifier: MIT
 * subspace.inc.h: coordinates in a basis, and leaving its span.  Level 2 template.
 * basis: (r,d), one direction a row. */

/* sum[4] = v . rows k..k+3 of basis, as dot() would give each: four chains of additions at once. */
static inline void FN(dot4)(double *sum, const ACC *v, const ACC *basis, size_t d, size_t m) {
    const ACC *b0 = basis, *b1 = basis + d, *b2 = basis + 2 * d, *b3 = basis + 3 * d;
    ACC lane[4][LENS_LANES] = {{0}};
    size_t i = 0;
    for (; i + LENS_LANES <= m; i += LENS_LANES)
        for (size_t l = 0; l < LENS_LANES; l++) {
            lane[0][l] += v[i + l] * b0[i + l];
            lane[1][l] += v[i + l] * b1[i + l];
            lane[2][l] += v[i + l] * b2[i + l];
            lane[3][l] += v[i + l] * b3[i + l];
        }
    for (size_t l = 0; i + l < m; l++) {
        lane[0][l] += v[i + l] * b0[i + l];
        lane[1][l] += v[i + l] * b1[i + l];
        lane[2][l] += v[i + l] * b2[i + l];
        lane[3][l] += v[i + l] * b3[i + l];
    }
    for (size_t k = 0; k < 4; k++)
        sum[k] += (double)FN(fold)(lane[k]);
}

/* z[k] += basis[k, i..i+m) . v[m], the piece in ACC and the pieces in double. */
static inline void FN(coordinates)(double *z, const ACC *v, const ACC *basis, size_t i, size_t m,
                                   size_t d, size_t r) {
    size_t k = 0;
    for (; k + 4 <= r; k += 4)
        FN(dot4)(z + k, v, basis + k * d + i, d, m);
    for (; k < r; k++)
        z[k] += (double)FN(dot)(v, basis + k * d + i, m);
}

/* v[m] += sum_k c_k basis[k, i..i+m) with c_k = scale z_k, k in order. */
static inline void FN(combine)(ACC *restrict v, const double *z, const ACC *restrict basis,
                               size_t i, size_t m, size_t d, size_t r, double scale) {
    size_t k = 0;
    for (; k + 2 <= r; k += 2) { /* two at a time halves the traffic; the order stays */
        const ACC *b0 = basis + k * d + i, *b1 = b0 + d;
        ACC c0 = (ACC)(scale * z[k]), c1 = (ACC)(scale * z[k + 1]);
        for (size_t l = 0; l < m; l++)
            v[l] = (v[l] + c0 * b0[l]) + c1 * b1[l];
    }
    for (; k < r; k++) {
        const ACC *row = basis + k * d + i;
        ACC c = (ACC)(scale * z[k]);
        for (size_t l = 0; l < m; l++)
            v[l] += c * row[l];
    }
}

static void FN(project)(void *out_, double *z, const void *x_, const void *basis_, size_t d,
                        size_t r, double strength) {
    const T *x = x_;
    const ACC *basis = basis_;
    T *out = out_;
    ACC buf[LENS_PIECE], sum[LENS_PIECE];
    for (size_t k = 0; k < r; k++)
        z[k] = 0.0;
    for (size_t i = 0, m; i < d; i += m) {
        m = FN(piece)(i, d);
        FN(coordinates)(z, FN(view)(buf, x + i, m), basis, i, m, d, r);
    }
    for (size_t i = 0, m; i < d; i += m) {
        m = FN(piece)(i, d);
        memcpy(sum, FN(view)(buf, x + i, m), m * sizeof(ACC));
        FN(combine)(sum, z, basis, i, m, d, r, -strength);
        FN(flush)(out + i, sum, m);
    }
}
