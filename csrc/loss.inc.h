/* SPDX-License-Identifier: MIT
 * loss.inc.h: rows of each Lens loss (arXiv 2410.04407), value and gradient.  Level 2 template.
 * scale = 2 w_b / d, so a row's term is scale/2 times a sum of squares and its gradient scale times
 * the residual.  Two passes over a row: its coordinates, then its gradient. */

/* z (n,r) = basis.(x - y) for rows of scale != 0.  All rows use a piece of the basis while it is in
 * the first-level cache. */
static inline void FN(coordinates_of)(double *z, const T *x, const T *y, const ACC *basis,
                                      const double *scale, size_t n, size_t d, size_t r) {
    ACC buf[LENS_PIECE];
    for (size_t k = 0; k < n * r; k++)
        z[k] = 0.0;
    for (size_t i = 0, m; i < d; i += m) {
        m = FN(piece)(i, d);
        for (size_t b = 0; b < n; b++)
            if (scale[b] != 0.0) {
                FN(difference)(buf, x + b * d + i, y + b * d + i, m);
                FN(coordinates)(z + b * r, buf, basis, i, m, d, r);
            }
    }
}

/* residual z - t, z = basis.(h - h0);  grad = scale sum_k (z - t)_k basis_k */
static void FN(separate)(void *grad_, double *terms, double *z, const void *h, const void *h0,
                         const void *basis_, const void *target_, size_t target_step,
                         const double *scale, size_t n, size_t d, size_t r) {
    const ACC *basis = basis_, *target = target_;
    T *grad = grad_;
    ACC buf[LENS_PIECE], zeros[LENS_PIECE] = {0};
    FN(coordinates_of)(z, h, h0, basis, scale, n, d, r);
    for (size_t b = 0; b < n; b++) {
        double sum = 0.0;
        for (size_t k = 0; k < r; k++) {
            z[b * r + k] -= (double)target[b * target_step + k];
            sum += z[b * r + k] * z[b * r + k];
        }
        terms[b] = scale[b] != 0.0 ? 0.5 * scale[b] * sum : 0.0;
    }
    for (size_t i = 0, m; i < d; i += m) {
        m = FN(piece)(i, d);
        for (size_t b = 0; b < n; b++)
            if (scale[b] != 0.0) {
                ACC *sum = FN(target)(buf, grad + b * d + i);
                FN(combine)(sum, zeros, z + b * r, basis, i, m, d, r, scale[b]);
                FN(flush)(grad + b * d + i, sum, m);
            }
    }
}

/* factor x[m] to grad, and its negative to grad_p unless that is NULL. */
static inline void FN(both)(T *grad, T *grad_p, const ACC *x, ACC factor, size_t m) {
    ACC buf[LENS_PIECE], *out = FN(target)(buf, grad);
    for (size_t k = 0; k < m; k++)
        out[k] = factor * x[k];
    FN(flush)(grad, out, m);
    if (grad_p == NULL)
        return;
    out = FN(target)(buf, grad_p);
    for (size_t k = 0; k < m; k++)
        out[k] = -(factor * x[k]);
    FN(flush)(grad_p, out, m);
}

/* residual a = (p - h).u;  grad = -scale a u */
static double FN(align_mean)(void *grad_, void *grad_p_, const void *h_, const void *p_,
                             const void *u_, size_t d, double scale) {
    const T *h = h_, *p = p_;
    T *grad = grad_, *grad_p = grad_p_;
    const ACC *u = u_;
    ACC buf[LENS_PIECE];
    double a = 0.0;
    for (size_t i = 0, m; i < d; i += m) {
        m = FN(piece)(i, d);
        FN(difference)(buf, p + i, h + i, m);
        a += (double)FN(dot)(buf, u + i, m);
    }
    ACC c = (ACC)(-scale * a);
    for (size_t i = 0, m; i < d; i += m) {
        m = FN(piece)(i, d);
        FN(both)(grad + i, grad_p ? grad_p + i : NULL, u + i, c, m);
    }
    return 0.5 * scale * a * a;
}

/* residual g = (h - p) - basis^T z, z = basis.(h - p);  grad = scale g */
static void FN(align_complement)(void *grad_, void *grad_p_, double *terms, double *z,
                                 const void *h_, const void *p_, const void *basis_,
                                 const double *scale, size_t n, size_t d, size_t r) {
    const T *h = h_, *p = p_;
    const ACC *basis = basis_;
    T *grad = grad_, *grad_p = grad_p_;
    ACC buf[LENS_PIECE];
    FN(coordinates_of)(z, h, p, basis, scale, n, d, r);
    for (size_t b = 0; b < n; b++)
        terms[b] = 0.0;
    for (size_t i = 0, m; i < d; i += m) {
        m = FN(piece)(i, d);
        for (size_t b = 0; b < n; b++) {
            ACC factor = (ACC)scale[b];
            size_t at = b * d + i;
            if (scale[b] == 0.0)
                continue;
            FN(difference)(buf, h + at, p + at, m);
            FN(combine)(buf, buf, z + b * r, basis, i, m, d, r, -1.0);
            terms[b] += (double)FN(dot)(buf, buf, m);
            FN(both)(grad + at, grad_p ? grad_p + at : NULL, buf, factor, m);
        }
    }
    for (size_t b = 0; b < n; b++)
        terms[b] *= 0.5 * scale[b];
}

/* residual h - h0;  grad = scale (h - h0) */
static double FN(retain)(void *grad_, const void *h_, const void *h0_, size_t d, double scale) {
    const T *h = h_, *h0 = h0_;
    T *grad = grad_;
    ACC buf[LENS_PIECE], factor = (ACC)scale;
    double sum = 0.0;
    for (size_t i = 0, m; i < d; i += m) {
        m = FN(piece)(i, d);
        FN(difference)(buf, h + i, h0 + i, m);
        sum += (double)FN(dot)(buf, buf, m);
        FN(both)(grad + i, NULL, buf, factor, m);
    }
    return 0.5 * scale * sum;
}
