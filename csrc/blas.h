/* SPDX-License-Identifier: MIT
 * blas.h: BLAS and LAPACK on row-major arrays with sizes in size_t.  Level 1.
 * Only blas.c knows the names of the library.  Every call runs on the caller's thread alone. */
#ifndef LENS_BLAS_H
#define LENS_BLAS_H

#include "lens.h"

/* Whether every size fits BLAS's integers; check before calling anything below. */
int lens_blas_fits(size_t a, size_t b, size_t c);

/* ---- products; ldc, lda, ldb are the distances between rows, in elements --------------------- */

/* C (p,q) = A (p,d) B^T, B (q,d). */
void lens_gemm_nt_f64(double *C, size_t ldc, const double *A, size_t lda, const double *B,
                      size_t ldb, size_t p, size_t q, size_t d);
void lens_gemm_nt_f32(float *C, size_t ldc, const float *A, size_t lda, const float *B, size_t ldb,
                      size_t p, size_t q, size_t d);

/* C (p,q) = A^T B, A (d,p), B (d,q). */
void lens_gemm_tn_f32(float *C, size_t ldc, const float *A, size_t lda, const float *B, size_t ldb,
                      size_t p, size_t q, size_t d);

/* C (p,q) = A (p,d) B (d,q). */
void lens_gemm_nn_f64(double *C, size_t ldc, const double *A, size_t lda, const double *B,
                      size_t ldb, size_t p, size_t q, size_t d);

/* C (p,q) -= A (p,d) B (d,q). */
void lens_gemm_nn_subtract_f64(double *C, size_t ldc, const double *A, size_t lda, const double *B,
                               size_t ldb, size_t p, size_t q, size_t d);

/* C (p,q) += A (p,d) B^T, B (q,d). */
void lens_gemm_nt_add_f64(double *C, size_t ldc, const double *A, size_t lda, const double *B,
                          size_t ldb, size_t p, size_t q, size_t d);

/* C (p,p) = A A^T, lower triangle only;  C += A A^T, upper triangle only.  A: (p,d). */
void lens_syrk_f64(double *C, size_t ldc, const double *A, size_t lda, size_t p, size_t d);
void lens_syrk_add_f64(double *C, size_t ldc, const double *A, size_t lda, size_t p, size_t d);

/* ---- factorisations --------------------------------------------------------------------------
 * All return LAPACK's info, 0 on success.  `work` holds `size` doubles, at least the worksize for
 * the same sizes; a worksize is SIZE_MAX when LAPACK's integers cannot hold it. */

/* Eigenvalues of a symmetric A (n,n), ascending; only its lower triangle is read.  With `vectors`,
 * row k of A becomes the unit eigenvector of value k; otherwise A is destroyed. */
int lens_eigen_f64(double *A, double *values, size_t n, int vectors, double *work, size_t size);

/* Singular values of A (n,d), descending, min(n,d) of them.  Destroys A. */
int lens_singular_f64(double *values, double *A, size_t n, size_t d, double *work, size_t size);
size_t lens_singular_worksize(size_t n, size_t d);

/* A = left (n,k) diag(values[k]) right (k,d), k = min(n,d), values descending.  Destroys A (n,d). */
int lens_svd_f64(double *left, double *values, double *right, double *A, size_t n, size_t d,
                 double *work, size_t size);
size_t lens_svd_worksize(size_t n, size_t d);

/* X = R Q for the rows X (r,d), r <= d, that Q holds on entry: Q gets orthonormal rows, and R (r,r)
 * is lower triangular with zeros above, not written where R is NULL. */
int lens_qr_f64(double *Q, double *R, size_t r, size_t d, double *work, size_t size);
size_t lens_qr_worksize(size_t r, size_t d);

/* One workspace for any of these: QR of (n,d), and all four of (n,n).  SIZE_MAX unless n <= d. */
size_t lens_factor_worksize(size_t n, size_t d);

/* ---- before and after a factorisation -------------------------------------------------------- */

/* Divide x by a power of two if the squares of its elements would overflow or vanish; returns the
 * exponent, 0 if x was left as it is. */
int lens_scale_f64(double *x, size_t n);

/* Flip the sign of x so that its component of largest size (the first on ties) is positive; returns
 * the sign it had. */
double lens_fix_sign_f64(double *x, size_t n);

#endif
