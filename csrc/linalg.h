/* SPDX-License-Identifier: MIT
 * linalg.h: what families may ask of BLAS and LAPACK, in row-major arrays and size_t.  Level 3.
 * Only linalg.c knows their names.  Every call runs on the caller's thread alone. */
#ifndef LENS_LINALG_H
#define LENS_LINALG_H

#include "lens.h"

/* Whether every size fits BLAS's integers; ask before calling anything below. */
int lens_blas_fits(size_t a, size_t b, size_t c);

/* C (p,q) = A (p,d) B^T (q,d), rows ldc, lda, ldb elements apart. */
void lens_gemm_nt_f64(double *C, size_t ldc, const double *A, size_t lda, const double *B,
                      size_t ldb, size_t p, size_t q, size_t d);
void lens_gemm_nt_f32(float *C, size_t ldc, const float *A, size_t lda, const float *B, size_t ldb,
                      size_t p, size_t q, size_t d);

/* C (p,q) = A^T B of A (d,p) and B (d,q). */
void lens_gemm_tn_f32(float *C, size_t ldc, const float *A, size_t lda, const float *B, size_t ldb,
                      size_t p, size_t q, size_t d);

/* C (p,q) = A (p,d) B (d,q);  C (p,q) += A (p,d) B^T (q,d);  upper triangle of C (p,p) += A A^T. */
void lens_gemm_nn_f64(double *C, size_t ldc, const double *A, size_t lda, const double *B,
                      size_t ldb, size_t p, size_t q, size_t d);
void lens_gemm_nt_add_f64(double *C, size_t ldc, const double *A, size_t lda, const double *B,
                          size_t ldb, size_t p, size_t q, size_t d);
void lens_syrk_add_f64(double *C, size_t ldc, const double *A, size_t lda, size_t p, size_t d);

/* Of a square A (n,n), which is lost: LAPACK's info comes back, work has `size` doubles, at least
 * lens_small_worksize of the largest n.  Eigenvalues of a symmetric A, ascending, and with `vectors`
 * in row k of A the unit vector of value k;  singular values, descending. */
int lens_eigen_f64(double *A, double *values, size_t n, int vectors, double *work, size_t size);
int lens_singular_f64(double *values, double *A, size_t n, double *work, size_t size);
size_t lens_small_worksize(size_t n);

/* A (n,d), which is lost, is left (n,k) diag(values[k]) right (k,d), k = min(n,d).  Rows of Q (r,d),
 * r <= d, in place: Q was R Q, R (r,r) lower triangular; R = NULL is not wanted.  Both give LAPACK's
 * info; work has `size` doubles, at least the worksize, which is SIZE_MAX when it cannot be. */
int lens_svd_f64(double *left, double *values, double *right, double *A, size_t n, size_t d,
                 double *work, size_t size);
size_t lens_svd_worksize(size_t n, size_t d);
int lens_qr_f64(double *Q, double *R, size_t r, size_t d, double *work, size_t size);
size_t lens_qr_worksize(size_t r, size_t d);

/* factor.c.  Divide x by a power of two when squares of its elements would not fit, and return the
 * exponent, else 0.  Make the component of largest size positive, the first one on ties; returns the
 * sign it had. */
int lens_scale_f64(double *x, size_t n);
double lens_fix_sign_f64(double *x, size_t n);

#endif
