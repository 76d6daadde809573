/* SPDX-License-Identifier: MIT
 * blas.c: the only place for BLAS and LAPACKE names, prefixes and integer width.  Level 1.
 * LENS_BLAS_SCIPY: the scipy-openblas32 wheel, where every symbol carries `scipy_`.
 * LENS_BLAS_ILP64: a library whose integers have 64 bits (LAPACK_ILP64 and OPENBLAS_USE64BITINT
 * follow from it).  Otherwise plain OpenBLAS, or any CBLAS with LAPACKE beside it.
 * LAPACK is called in column-major order, where an (n,d) row-major array is its d x n transpose. */
#include "blas.h"

#ifdef LENS_BLAS_ILP64
#define LAPACK_ILP64
#define OPENBLAS_USE64BITINT
#endif

#include <cblas.h>
#include <lapacke.h>
#include <math.h>

#ifdef LENS_BLAS_SCIPY
#define BLAS(name) scipy_##name
#else
#define BLAS(name) name
#endif

typedef lapack_int blas_int;

#ifdef LENS_BLAS_ILP64
#define BLAS_INT_MAX INT64_MAX
#else
#define BLAS_INT_MAX INT32_MAX
#endif

#define blas_dgemm BLAS(cblas_dgemm)
#define blas_sgemm BLAS(cblas_sgemm)
#define blas_dsyrk BLAS(cblas_dsyrk)
#define lapack_dsyevd BLAS(LAPACKE_dsyevd_work)
#define lapack_dgeqrf BLAS(LAPACKE_dgeqrf_work)
#define lapack_dorgqr BLAS(LAPACKE_dorgqr_work)
#define lapack_dgesdd BLAS(LAPACKE_dgesdd_work)

/* The core runs sites in parallel itself.  The setting is per library, so a vendored copy affects
 * nobody else; OPENBLAS_VERSION tells OpenBLAS from another CBLAS. */
#if defined(LENS_BLAS_SCIPY) || defined(OPENBLAS_VERSION) || defined(OPENBLAS_CONFIG_H)
void lens_blas_init(void) {
    BLAS(openblas_set_num_threads)(1);
}

const char *lens_blas_config(void) {
    return BLAS(openblas_get_config)();
}
#else
void lens_blas_init(void) {
}

const char *lens_blas_config(void) {
    return "CBLAS and LAPACKE of the system";
}
#endif

int lens_blas_fits(size_t a, size_t b, size_t c) {
    return a <= BLAS_INT_MAX && b <= BLAS_INT_MAX && c <= BLAS_INT_MAX;
}

void lens_gemm_nt_f64(double *C, size_t ldc, const double *A, size_t lda, const double *B,
                      size_t ldb, size_t p, size_t q, size_t d) {
    blas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (blas_int)p, (blas_int)q, (blas_int)d, 1.0,
               A, (blas_int)lda, B, (blas_int)ldb, 0.0, C, (blas_int)ldc);
}

void lens_gemm_nt_f32(float *C, size_t ldc, const float *A, size_t lda, const float *B, size_t ldb,
                      size_t p, size_t q, size_t d) {
    blas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (blas_int)p, (blas_int)q, (blas_int)d, 1.0F,
               A, (blas_int)lda, B, (blas_int)ldb, 0.0F, C, (blas_int)ldc);
}

void lens_gemm_tn_f32(float *C, size_t ldc, const float *A, size_t lda, const float *B, size_t ldb,
                      size_t p, size_t q, size_t d) {
    blas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (blas_int)p, (blas_int)q, (blas_int)d, 1.0F,
               A, (blas_int)lda, B, (blas_int)ldb, 0.0F, C, (blas_int)ldc);
}

void lens_gemm_nn_f64(double *C, size_t ldc, const double *A, size_t lda, const double *B,
                      size_t ldb, size_t p, size_t q, size_t d) {
    blas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (blas_int)p, (blas_int)q, (blas_int)d,
               1.0, A, (blas_int)lda, B, (blas_int)ldb, 0.0, C, (blas_int)ldc);
}

void lens_gemm_nn_subtract_f64(double *C, size_t ldc, const double *A, size_t lda, const double *B,
                               size_t ldb, size_t p, size_t q, size_t d) {
    blas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (blas_int)p, (blas_int)q, (blas_int)d,
               -1.0, A, (blas_int)lda, B, (blas_int)ldb, 1.0, C, (blas_int)ldc);
}

void lens_gemm_nt_add_f64(double *C, size_t ldc, const double *A, size_t lda, const double *B,
                          size_t ldb, size_t p, size_t q, size_t d) {
    blas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (blas_int)p, (blas_int)q, (blas_int)d, 1.0,
               A, (blas_int)lda, B, (blas_int)ldb, 1.0, C, (blas_int)ldc);
}

void lens_syrk_f64(double *C, size_t ldc, const double *A, size_t lda, size_t p, size_t d) {
    blas_dsyrk(CblasRowMajor, CblasLower, CblasNoTrans, (blas_int)p, (blas_int)d, 1.0, A,
               (blas_int)lda, 0.0, C, (blas_int)ldc);
}

void lens_syrk_add_f64(double *C, size_t ldc, const double *A, size_t lda, size_t p, size_t d) {
    blas_dsyrk(CblasRowMajor, CblasUpper, CblasNoTrans, (blas_int)p, (blas_int)d, 1.0, A,
               (blas_int)lda, 1.0, C, (blas_int)ldc);
}

/* Doubles that hold LAPACK's integer workspace, which follows its own at the end of `work`: dsyevd
 * needs 3 + 5n integers, dgesdd 8n. */
static size_t iwork_doubles(size_t n) {
    return ((13 * n + 8) * sizeof(blas_int) + sizeof(double) - 1) / sizeof(double);
}

/* LAPACK computes up to 4 k^2 in its own integers, where it would wrap. */
static int squares_fit(size_t k) {
    return lens_mul(5, lens_mul(k, k)) <= BLAS_INT_MAX;
}

int lens_eigen_f64(double *A, double *values, size_t n, int vectors, double *work, size_t size) {
    blas_int m = (blas_int)n, lwork = (blas_int)(size - iwork_doubles(n));
    return (int)lapack_dsyevd(LAPACK_COL_MAJOR, vectors ? 'V' : 'N', 'U', m, A, m, values, work,
                              lwork, (blas_int *)(void *)(work + lwork), (blas_int)(13 * n + 8));
}

int lens_singular_f64(double *values, double *A, size_t n, size_t d, double *work, size_t size) {
    size_t k = n < d ? n : d;
    blas_int rows = (blas_int)d, columns = (blas_int)n, lwork = (blas_int)(size - iwork_doubles(k));
    double none[1];
    return (int)lapack_dgesdd(LAPACK_COL_MAJOR, 'N', rows, columns, A, rows, values, none, 1, none,
                              1, work, lwork, (blas_int *)(void *)(work + lwork));
}

int lens_svd_f64(double *left, double *values, double *right, double *A, size_t n, size_t d,
                 double *work, size_t size) {
    size_t k = n < d ? n : d;
    blas_int rows = (blas_int)d, columns = (blas_int)n, lwork = (blas_int)(size - iwork_doubles(k));
    return (int)lapack_dgesdd(LAPACK_COL_MAJOR, 'S', rows, columns, A, rows, values, right, rows,
                              left, (blas_int)k, work, lwork, (blas_int *)(void *)(work + lwork));
}

/* Worksize of dgesdd: 'N' for singular values, 'S' for vectors too. */
static size_t gesdd_worksize(char job, size_t n, size_t d) {
    double ask = 0, x = 0;
    size_t k = n < d ? n : d;
    blas_int iask = 0, rows = (blas_int)d, columns = (blas_int)n;
    if (k < 1 || !lens_blas_fits(n, d, 0) || !squares_fit(k))
        return SIZE_MAX;
    blas_int info = lapack_dgesdd(LAPACK_COL_MAJOR, job, rows, columns, &x, rows, &x, &x, rows, &x,
                                  (blas_int)k, &ask, -1, &iask);
    int fits = info == 0 && ask <= (double)BLAS_INT_MAX / 2;
    return fits ? lens_add((size_t)ask, iwork_doubles(k)) : SIZE_MAX;
}

size_t lens_singular_worksize(size_t n, size_t d) {
    return gesdd_worksize('N', n, d);
}

size_t lens_svd_worksize(size_t n, size_t d) {
    return gesdd_worksize('S', n, d);
}

int lens_qr_f64(double *Q, double *R, size_t r, size_t d, double *work, size_t size) {
    blas_int m = (blas_int)d, k = (blas_int)r, lwork = (blas_int)(size - r);
    double *tau = work, *rest = work + r;
    blas_int info = lapack_dgeqrf(LAPACK_COL_MAJOR, m, k, Q, m, tau, rest, lwork);
    if (info != 0)
        return (int)info;
    for (size_t c = 0; R != NULL && c < r; c++)
        for (size_t i = 0; i < r; i++)
            R[c * r + i] = i <= c ? Q[c * d + i] : 0.0;
    return (int)lapack_dorgqr(LAPACK_COL_MAJOR, m, k, k, Q, m, tau, rest, lwork);
}

size_t lens_qr_worksize(size_t r, size_t d) {
    double ask[2] = {0}, x = 0;
    blas_int m = (blas_int)d, n = (blas_int)r;
    if (r < 1 || r > d || !lens_blas_fits(d, lens_mul(64, r), 0)) /* blocks of 64 at most */
        return SIZE_MAX;
    blas_int info = lapack_dgeqrf(LAPACK_COL_MAJOR, m, n, &x, m, &x, &ask[0], -1);
    info |= lapack_dorgqr(LAPACK_COL_MAJOR, m, n, n, &x, m, &x, &ask[1], -1);
    return info == 0 ? lens_add((size_t)fmax(ask[0], ask[1]), r) : SIZE_MAX;
}

size_t lens_factor_worksize(size_t n, size_t d) {
    double ask[4] = {0}, x = 0;
    blas_int iask = 0, info = 0, k = (blas_int)n, m = (blas_int)d;
    if (n < 1 || n > d || !lens_blas_fits(n, d, 0) || !squares_fit(n))
        return SIZE_MAX;
    info |= lapack_dsyevd(LAPACK_COL_MAJOR, 'V', 'U', k, &x, k, &x, &ask[0], -1, &iask, -1);
    info |= lapack_dgeqrf(LAPACK_COL_MAJOR, m, k, &x, m, &x, &ask[1], -1);
    info |= lapack_dorgqr(LAPACK_COL_MAJOR, m, k, k, &x, m, &x, &ask[2], -1);
    info |= lapack_dgesdd(LAPACK_COL_MAJOR, 'S', k, k, &x, k, &x, &x, k, &x, k, &ask[3], -1, &iask);
    double most = fmax(fmax(ask[0], ask[1]), fmax(ask[2], ask[3]));
    int fits = info == 0 && most <= (double)BLAS_INT_MAX / 2;
    return fits ? lens_add((size_t)most, iwork_doubles(n)) : SIZE_MAX; /* more than tau's n */
}

int lens_scale_f64(double *x, size_t n) {
    double most = 0.0;
    int exponent = 0;
    for (size_t i = 0; i < n; i++)
        most = fmax(most, fabs(x[i]));
    if (!isfinite(most) || most == 0.0 || (most < 0x1p400 && most > 0x1p-400))
        return 0;
    frexp(most, &exponent);
    for (size_t i = 0; i < n; i++)
        x[i] = ldexp(x[i], -exponent);
    return exponent;
}

double lens_fix_sign_f64(double *x, size_t n) {
    double most = 0.0, sign = 1.0;
    for (size_t i = 0; i < n; i++)
        if (fabs(x[i]) > most) {
            most = fabs(x[i]);
            sign = x[i] < 0.0 ? -1.0 : 1.0;
        }
    for (size_t i = 0; i < n; i++)
        x[i] *= sign;
    return sign;
}
