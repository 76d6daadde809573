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

#endif
