/* SPDX-License-Identifier: MIT
 * factor.c: thin SVD and thin QR of one matrix with fixed signs, and the products of low-rank fits.
 * Level 3.  A factorisation fixes each pair of vectors up to a sign only, which in LAPACK depends on
 * rounding, and is inaccurate where squares overflow or vanish.  Hence signs are fixed by the largest
 * component or by the diagonal of R, and powers of two are divided out before and restored after. */
#include "blas.h"
#include "kernels.h"

#include <math.h>
#include <string.h>

/* Whether X has a NaN or infinite element; fault is the first. */
static int find_nonfinite(lens_fault *fault, const double *X, size_t n, size_t d) {
    *fault = (lens_fault){.row = LENS_NOWHERE, .item = LENS_NOWHERE};
    size_t i = lens_kernels_of(LENS_F64)->first_nonfinite(X, n * d);
    if (i == n * d)
        return 0;
    *fault = (lens_fault){.row = i / d, .item = i % d};
    return 1;
}

size_t lens_thin_svd_worksize(size_t n, size_t d) {
    return n < 1 || d < 1 ? 0 : lens_add(lens_mul(n, d), lens_svd_worksize(n, d));
}

lens_status lens_thin_svd(double *left, double *sigma, double *right, lens_fault *fault,
                          const double *X, size_t n, size_t d, double *work) {
    size_t k = n < d ? n : d, total = lens_thin_svd_worksize(n, d);
    if (total == SIZE_MAX)
        return LENS_EOVERFLOW;
    if (find_nonfinite(fault, X, n, d))
        return LENS_ENONFINITE;
    if (k == 0)
        return LENS_OK;
    memcpy(work, X, n * d * sizeof *work);
    int exponent = lens_scale_f64(work, n * d);
    fault->info = lens_svd_f64(left, sigma, right, work, n, d, work + n * d, total - n * d);
    if (fault->info != 0)
        return LENS_ENOCONV;
    for (size_t j = 0; j < k; j++) {
        sigma[j] = ldexp(sigma[j], exponent);
        double sign = lens_fix_sign_f64(right + j * d, d);
        for (size_t i = 0; i < n; i++)
            left[i * k + j] *= sign;
    }
    return isfinite(sigma[0]) ? LENS_OK : LENS_ENONFINITE;
}

size_t lens_thin_qr_worksize(size_t r, size_t d) {
    return r < 1 ? 0 : lens_add(r, lens_qr_worksize(r, d));
}

lens_status lens_thin_qr(double *Q, double *R, lens_fault *fault, const double *X, size_t r,
                         size_t d, double *work) {
    if (r > d)
        return LENS_ESHAPE;
    size_t total = lens_thin_qr_worksize(r, d);
    if (total == SIZE_MAX)
        return LENS_EOVERFLOW;
    if (find_nonfinite(fault, X, r, d))
        return LENS_ENONFINITE;
    if (r == 0)
        return LENS_OK;
    memcpy(Q, X, r * d * sizeof *Q);
    for (size_t i = 0; i < r; i++) /* row by row: a small row beside a large one loses no bits */
        work[i] = lens_scale_f64(Q + i * d, d);
    fault->info = lens_qr_f64(Q, R, r, d, work + r, total - r);
    if (fault->info != 0)
        return LENS_ENOCONV;
    int finite = 1;
    for (size_t k = 0; k < r; k++) {
        double sign = R[k * r + k] < 0.0 ? -1.0 : 1.0;
        for (size_t i = 0; i < d; i++)
            Q[k * d + i] *= sign;
        for (size_t i = k; i < r; i++) {
            R[i * r + k] = ldexp(sign * R[i * r + k], (int)work[i]);
            finite &= isfinite(R[i * r + k]) != 0;
        }
    }
    return finite ? LENS_OK : LENS_ENONFINITE;
}

lens_status lens_matmul_nt(float *out, const float *X, const float *B, size_t n, size_t k,
                           size_t d) {
    if (!lens_blas_fits(n, k, d))
        return LENS_EOVERFLOW;
    if (n > 0 && k > 0 && d > 0)
        lens_gemm_nt_f32(out, k, X, d, B, d, n, k, d);
    else if (n > 0 && k > 0)
        memset(out, 0, n * k * sizeof *out);
    return LENS_OK;
}

lens_status lens_matmul_tn(float *out, const float *Y, const float *X, size_t n, size_t k,
                           size_t d) {
    if (!lens_blas_fits(n, k, d))
        return LENS_EOVERFLOW;
    if (n > 0 && k > 0 && d > 0)
        lens_gemm_tn_f32(out, d, Y, k, X, d, k, d, n);
    else if (k > 0 && d > 0)
        memset(out, 0, k * d * sizeof *out);
    return LENS_OK;
}
