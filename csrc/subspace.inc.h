/* SPDX-License-Identifier: MIT
 * subspace.inc.h: coordinates in a basis, and leaving its span.  Level 2 template.
 * basis: (r,d), one direction a row. */

/* z[k] += basis[k, i..i+m) . v[m], the piece in ACC and the pieces in double. */
static inline void FN(coordinates)(double *z, const ACC *v, const ACC *basis, size_t i, size_t m,
                                   size_t d, size_t r) {
    for (size_t k = 0; k < r; k++)
        z[k] += (double)FN(dot)(v, basis + k * d + i, m);
}

/* v[m] += sum_k c_k basis[k, i..i+m) with c_k = scale z_k, k in order. */
static inline void FN(combine)(ACC *restrict v, const double *z, const ACC *restrict basis,
                               size_t i, size_t m, size_t d, size_t r, double scale) {
    for (size_t k = 0; k < r; k++) {
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
