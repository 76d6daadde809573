/* SPDX-License-Identifier: MIT
 * loss.inc.h: one row of each Lens loss (arXiv 2410.04407), value and gradient.  Level 2 template.
 * scale = 2 w_b / d, so a row's term is scale/2 times a sum of squares and its gradient scale times
 * the residual.  Two passes over the row: its coordinates, then its gradient. */

/* residual z - t, z = basis.(h - h0);  grad = scale sum_k (z - t)_k basis_k */
static double FN(separate)(void *grad_, double *z, const void *h_, const void *h0_,
                           const void *basis_, const void *target_, size_t d, size_t r,
                           double scale) {
    const T *h = h_, *h0 = h0_;
    const ACC *basis = basis_, *target = target_;
    T *grad = grad_;
    ACC buf[LENS_PIECE];
    double sum = 0.0;
    for (size_t k = 0; k < r; k++)
        z[k] = 0.0;
    for (size_t i = 0, m; i < d; i += m) {
        m = FN(piece)(i, d);
        FN(difference)(buf, h + i, h0 + i, m);
        FN(coordinates)(z, buf, basis, i, m, d, r);
    }
    for (size_t k = 0; k < r; k++) {
        z[k] -= (double)target[k];
        sum += z[k] * z[k];
    }
    for (size_t i = 0, m; i < d; i += m) {
        m = FN(piece)(i, d);
        memset(buf, 0, sizeof buf);
        FN(combine)(buf, z, basis, i, m, d, r, scale);
        FN(flush)(grad + i, buf, m);
    }
    return 0.5 * scale * sum;
}

/* buf[m] to grad, and -buf[m] to grad_p unless it is NULL. */
static inline void FN(both)(T *grad, T *grad_p, ACC *buf, size_t i, size_t m) {
    FN(flush)(grad + i, buf, m);
    if (grad_p == NULL)
        return;
    for (size_t k = 0; k < m; k++)
        buf[k] = -buf[k];
    FN(flush)(grad_p + i, buf, m);
}

/* residual a = (p - h).u;  grad = -scale a u */
static double FN(align_mean)(void *grad, void *grad_p, const void *h_, const void *p_,
                             const void *u_, size_t d, double scale) {
    const T *h = h_, *p = p_;
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
        for (size_t k = 0; k < m; k++)
            buf[k] = c * u[i + k];
        FN(both)(grad, grad_p, buf, i, m);
    }
    return 0.5 * scale * a * a;
}

/* residual g = (h - p) - basis^T z, z = basis.(h - p);  grad = scale g */
static double FN(align_complement)(void *grad, void *grad_p, double *z, const void *h_,
                                   const void *p_, const void *basis_, size_t d, size_t r,
                                   double scale) {
    const T *h = h_, *p = p_;
    const ACC *basis = basis_;
    ACC buf[LENS_PIECE], factor = (ACC)scale;
    double sum = 0.0;
    for (size_t k = 0; k < r; k++)
        z[k] = 0.0;
    for (size_t i = 0, m; i < d; i += m) {
        m = FN(piece)(i, d);
        FN(difference)(buf, h + i, p + i, m);
        FN(coordinates)(z, buf, basis, i, m, d, r);
    }
    for (size_t i = 0, m; i < d; i += m) {
        m = FN(piece)(i, d);
        FN(difference)(buf, h + i, p + i, m);
        FN(combine)(buf, z, basis, i, m, d, r, -1.0);
        sum += (double)FN(dot)(buf, buf, m);
        for (size_t k = 0; k < m; k++)
            buf[k] *= factor;
        FN(both)(grad, grad_p, buf, i, m);
    }
    return 0.5 * scale * sum;
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
        for (size_t k = 0; k < m; k++)
            buf[k] *= factor;
        FN(flush)(grad + i, buf, m);
    }
    return 0.5 * scale * sum;
}
