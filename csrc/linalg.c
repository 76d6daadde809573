/* SPDX-License-Identifier: MIT
 * linalg.c: language subspaces and the angles between them.  Level 3, the only user of blas.h.
 * C = M - mean 1^T (d x L) has U S V^T with S^2, V from its L x L Gram matrix: O(d L^2), but a
 * vector's error grows with the square of the condition.  Beyond GRAM_LIMIT the factors come from
 * C = QR and the SVD of R, whose error grows with the condition itself.  Never d x d. */
#include "linalg.h"

#include "blas.h"
#include "parallel.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define GRAM_LIMIT 64.0 /* 64^2 rounding errors: spans right to about 1e-12 */

void lens_blas_init(void) {
    blas_single_thread();
}

const char *lens_blas_config(void) {
    return blas_config();
}

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

void lens_gemm_nt_add_f64(double *C, size_t ldc, const double *A, size_t lda, const double *B,
                          size_t ldb, size_t p, size_t q, size_t d) {
    blas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (blas_int)p, (blas_int)q, (blas_int)d, 1.0,
               A, (blas_int)lda, B, (blas_int)ldb, 1.0, C, (blas_int)ldc);
}

void lens_syrk_add_f64(double *C, size_t ldc, const double *A, size_t lda, size_t p, size_t d) {
    blas_dsyrk(CblasRowMajor, CblasUpper, CblasNoTrans, (blas_int)p, (blas_int)d, 1.0, A,
               (blas_int)lda, 1.0, C, (blas_int)ldc);
}

/* Slices of one thread's workspace, in doubles. */
typedef struct {
    double *C, *G, *w, *U, *VT, *lapack;
    blas_int *iwork;
    blas_int lwork, liwork;
} fit_space;

/* dsyevd wants 3+5L integers, dgesdd 8L */
static size_t iwork_doubles(size_t L) {
    return ((13 * L + 8) * sizeof(blas_int) + sizeof(double) - 1) / sizeof(double);
}

/* The largest workspace any of the four LAPACK routines asks for; negative on failure. */
static blas_int query_lwork(blas_int d, blas_int L) {
    double ask[4] = {0}, x = 0;
    blas_int iask = 0, info = 0;
    if (lens_mul(5, lens_mul((size_t)L, (size_t)L)) > BLAS_INT_MAX)
        return -1; /* LAPACK itself computes up to 4 L^2 in its integers, and would wrap */
    info |= lapack_dsyevd(LAPACK_COL_MAJOR, 'V', 'U', L, &x, L, &x, &ask[0], -1, &iask, -1);
    info |= lapack_dgeqrf(LAPACK_COL_MAJOR, d, L, &x, d, &x, &ask[1], -1);
    info |= lapack_dorgqr(LAPACK_COL_MAJOR, d, L, L, &x, d, &x, &ask[2], -1);
    info |= lapack_dgesdd(LAPACK_COL_MAJOR, 'S', L, L, &x, L, &x, &x, L, &x, L, &ask[3], -1, &iask);
    double most = fmax(fmax(ask[0], ask[1]), fmax(ask[2], ask[3]));
    return info != 0 || most > (double)BLAS_INT_MAX / 2 ? -1 : (blas_int)most;
}

/* Doubles of one thread's workspace, and in *lwork LAPACK's share of them. */
static size_t fit_worksize_one(blas_int *lwork, size_t L, size_t d) {
    if (d > BLAS_INT_MAX || L > BLAS_INT_MAX || L < 1 || d < L)
        return SIZE_MAX;
    *lwork = query_lwork((blas_int)d, (blas_int)L);
    if (*lwork < 0)
        return SIZE_MAX;
    size_t squares = lens_mul(3, lens_mul(L, L));
    size_t rest = lens_add(lens_add(2 * L, (size_t)*lwork), iwork_doubles(L));
    return lens_add(lens_add(lens_mul(d, L), squares), rest);
}

size_t lens_small_worksize(size_t n) {
    blas_int lwork = n < 1 || n > BLAS_INT_MAX ? -1 : query_lwork((blas_int)n, (blas_int)n);
    return lwork < 0 ? SIZE_MAX : lens_add((size_t)lwork, iwork_doubles(n));
}

int lens_eigen_f64(double *A, double *values, size_t n, int vectors, double *work, size_t size) {
    blas_int m = (blas_int)n, lwork = (blas_int)(size - iwork_doubles(n));
    return (int)lapack_dsyevd(LAPACK_COL_MAJOR, vectors ? 'V' : 'N', 'U', m, A, m, values, work,
                              lwork, (blas_int *)(void *)(work + lwork), (blas_int)(13 * n + 8));
}

int lens_singular_f64(double *values, double *A, size_t n, double *work, size_t size) {
    blas_int m = (blas_int)n, lwork = (blas_int)(size - iwork_doubles(n));
    double none[1];
    return (int)lapack_dgesdd(LAPACK_COL_MAJOR, 'N', m, m, A, m, values, none, 1, none, 1, work,
                              lwork, (blas_int *)(void *)(work + lwork));
}

int lens_svd_f64(double *left, double *values, double *right, double *A, size_t n, size_t d,
                 double *work, size_t size) {
    size_t k = n < d ? n : d;
    blas_int rows = (blas_int)d, columns = (blas_int)n, lwork = (blas_int)(size - iwork_doubles(k));
    return (int)lapack_dgesdd(LAPACK_COL_MAJOR, 'S', rows, columns, A, rows, values, right, rows,
                              left, (blas_int)k, work, lwork, (blas_int *)(void *)(work + lwork));
}

size_t lens_svd_worksize(size_t n, size_t d) {
    double ask = 0, x = 0;
    size_t k = n < d ? n : d;
    blas_int iask = 0, rows = (blas_int)d, columns = (blas_int)n;
    if (k < 1 || !lens_blas_fits(n, d, lens_mul(5, lens_mul(k, k)))) /* as in query_lwork */
        return SIZE_MAX;
    blas_int info = lapack_dgesdd(LAPACK_COL_MAJOR, 'S', rows, columns, &x, rows, &x, &x, rows, &x,
                                  (blas_int)k, &ask, -1, &iask);
    int fits = info == 0 && ask <= (double)BLAS_INT_MAX / 2;
    return fits ? lens_add((size_t)ask, iwork_doubles(k)) : SIZE_MAX;
}

size_t lens_subspace_fit_worksize(size_t S, size_t L, size_t d, int n_threads) {
    blas_int lwork = 0;
    return lens_mul(fit_worksize_one(&lwork, L, d), lens_threads(S, n_threads));
}

static fit_space carve(double *work, blas_int lwork, size_t L, size_t d) {
    fit_space s = {.C = work, .lwork = lwork, .liwork = (blas_int)(13 * L + 8)};
    s.G = s.C + d * L;
    s.U = s.G + L * L;
    s.VT = s.U + L * L;
    s.w = s.VT + L * L;
    s.lapack = s.w + 2 * L;
    s.iwork = (blas_int *)(void *)(s.lapack + s.lwork);
    return s;
}

/* Mean and centred copy, added up in language order.  0 if a mean is not finite. */
static int centre(double *mean, double *C, const double *M, size_t L, size_t d) {
    int finite = 1;
    memcpy(mean, M, d * sizeof *mean);
    for (size_t l = 1; l < L; l++)
        for (size_t i = 0; i < d; i++)
            mean[i] += M[l * d + i];
    for (size_t i = 0; i < d; i++) {
        mean[i] /= (double)L;
        finite &= fabs(mean[i]) <= DBL_MAX;
    }
    for (size_t l = 0; l < L; l++)
        for (size_t i = 0; i < d; i++)
            C[l * d + i] = M[l * d + i] - mean[i];
    return finite;
}

/* basis (d x r) = A (d x L) W (L x r) */
static void combine(double *basis, const double *A, const double *W, size_t d, size_t L, size_t r) {
    blas_dgemm(CblasColMajor, CblasNoTrans, CblasNoTrans, (blas_int)d, (blas_int)r, (blas_int)L,
               1.0, A, (blas_int)d, W, (blas_int)L, 0.0, basis, (blas_int)d);
}

/* Returns LAPACK's info; *good says whether the guard let the result pass. */
static int fit_gram(double *basis, double *sigma, const fit_space *s, size_t L, size_t d,
                    int *good) {
    blas_int n = (blas_int)L;
    size_t r = L - 1;
    blas_dsyrk(CblasColMajor, CblasUpper, CblasTrans, n, (blas_int)d, 1.0, s->C, (blas_int)d, 0.0,
               s->G, n);
    blas_int info = lapack_dsyevd(LAPACK_COL_MAJOR, 'V', 'U', n, s->G, n, s->w, s->lapack, s->lwork,
                                  s->iwork, s->liwork);
    if (info != 0)
        return (int)info;
    double largest = s->w[L - 1], smallest = s->w[1];
    *good = smallest * (GRAM_LIMIT * GRAM_LIMIT) >= largest && largest > 1e-280;
    if (!*good)
        return 0;
    for (size_t k = 0; k < r; k++) {
        sigma[k] = sqrt(s->w[L - 1 - k]);
        for (size_t l = 0; l < L; l++)
            s->U[k * L + l] = s->G[(L - 1 - k) * L + l] / sigma[k];
    }
    combine(basis, s->C, s->U, d, L, r);
    return 0;
}

/* Householder QR of A (d x n) in place: R to `R` (n x n, zeros below) unless NULL, Q to A. */
static int thin_q(double *A, double *R, double *tau, double *work, blas_int lwork, size_t d,
                  size_t n) {
    blas_int m = (blas_int)d, k = (blas_int)n;
    blas_int info = lapack_dgeqrf(LAPACK_COL_MAJOR, m, k, A, m, tau, work, lwork);
    if (info != 0)
        return (int)info;
    for (size_t c = 0; R != NULL && c < n; c++)
        for (size_t i = 0; i < n; i++)
            R[c * n + i] = i <= c ? A[c * d + i] : 0.0;
    return (int)lapack_dorgqr(LAPACK_COL_MAJOR, m, k, k, A, m, tau, work, lwork);
}

int lens_qr_f64(double *Q, double *R, size_t r, size_t d, double *work, size_t size) {
    return thin_q(Q, R, work, work + r, (blas_int)(size - r), d, r);
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

static int fit_qr(double *basis, double *sigma, const fit_space *s, size_t L, size_t d) {
    blas_int n = (blas_int)L;
    int info = thin_q(s->C, s->G, s->w, s->lapack, s->lwork, d, L);
    if (info != 0)
        return info;
    info = (int)lapack_dgesdd(LAPACK_COL_MAJOR, 'S', n, n, s->G, n, s->w, s->U, n, s->VT, n,
                              s->lapack, s->lwork, s->iwork);
    if (info != 0)
        return info;
    memcpy(sigma, s->w, (L - 1) * sizeof *sigma);
    combine(basis, s->C, s->U, d, L, L - 1);
    return 0;
}

typedef struct {
    double *basis, *sigma, *mean, *work;
    uint8_t *route;
    const double *means;
    size_t L, d, per_thread;
    blas_int lwork;
    lens_fault *faults; /* one a thread */
} fit_job;

static lens_status fit_site(void *ctx, size_t site, size_t thread) {
    const fit_job *j = ctx;
    size_t L = j->L, d = j->d, r = L - 1;
    const double *M = j->means + site * L * d;
    double *basis = j->basis + site * r * d, *sigma = j->sigma + site * r;
    lens_fault *fault = &j->faults[thread];
    fit_space s = carve(j->work + thread * j->per_thread, j->lwork, L, d);
    int good = 0;
    if (!centre(j->mean + site * d, s.C, M, L, d)) {
        size_t i = 0;
        while (i < L * d && isfinite(M[i]))
            i++;
        *fault = (lens_fault){.row = site, .item = i < L * d ? i / d : LENS_NOWHERE};
        return LENS_ENONFINITE;
    }
    int exponent = lens_scale_f64(s.C, L * d);
    int info = fit_gram(basis, sigma, &s, L, d, &good);
    if (info == 0 && !good)
        info = fit_qr(basis, sigma, &s, L, d);
    if (info != 0) {
        *fault = (lens_fault){.row = site, .item = LENS_NOWHERE, .info = info};
        return LENS_ENOCONV;
    }
    j->route[site] = !good;
    for (size_t k = 0; k < r && exponent != 0; k++)
        sigma[k] = ldexp(sigma[k], exponent);
    if (!isfinite(sigma[0])) { /* means near the largest double */
        *fault = (lens_fault){.row = site, .item = LENS_NOWHERE};
        return LENS_ENONFINITE;
    }
    for (size_t k = 0; k < r; k++)
        lens_fix_sign_f64(basis + k * d, d);
    return LENS_OK;
}

lens_status lens_subspace_fit(double *basis, double *sigma, double *mean, uint8_t *route,
                              lens_fault *fault, const double *means, size_t S, size_t L, size_t d,
                              int n_threads, double *work) {
    lens_fault faults[LENS_MAX_THREADS];
    *fault = (lens_fault){.row = LENS_NOWHERE, .item = LENS_NOWHERE};
    if (L < 2 || L > d)
        return LENS_ESHAPE;
    blas_int lwork = 0;
    size_t per_thread = fit_worksize_one(&lwork, L, d);
    if (per_thread == SIZE_MAX)
        return LENS_EOVERFLOW;
    for (size_t i = 0; i < LENS_MAX_THREADS; i++)
        faults[i] = *fault;
    fit_job j = {.basis = basis,
                 .sigma = sigma,
                 .mean = mean,
                 .route = route,
                 .means = means,
                 .L = L,
                 .d = d,
                 .work = work,
                 .per_thread = per_thread,
                 .lwork = lwork,
                 .faults = faults};
    lens_status status = lens_parallel(fit_site, &j, S, n_threads);
    for (size_t i = 0; i < LENS_MAX_THREADS; i++)
        if (faults[i].row < fault->row)
            *fault = faults[i];
    return status;
}

size_t lens_subspace_angles_worksize(size_t a, size_t b, size_t d) {
    size_t most = a > b ? a : b;
    if (a < 1 || b < 1 || most > d || d > BLAS_INT_MAX)
        return SIZE_MAX;
    double ask[2] = {0}, x = 0;
    blas_int iask = 0, m = (blas_int)d, n = (blas_int)most;
    blas_int lwork = query_lwork(m, n);
    blas_int info =
        lapack_dgesdd(LAPACK_COL_MAJOR, 'N', m, n, &x, m, &x, &x, 1, &x, 1, &ask[0], -1, &iask);
    if (lwork < 0 || info != 0)
        return SIZE_MAX;
    size_t lapack = (size_t)fmax(ask[0], (double)lwork);
    size_t arrays =
        lens_add(lens_mul(lens_add(a, b), d), lens_add(lens_mul(2, lens_mul(a, b)), 4 * most));
    return lens_add(lens_add(arrays, lapack), iwork_doubles(most));
}

/* Q of the rows of A, which must be independent: the diagonal of R says whether they are. */
static lens_status orthonormal(double *Q, double *tau, double *work, blas_int lwork, size_t d,
                               size_t n, lens_fault *fault) {
    blas_int m = (blas_int)d, k = (blas_int)n;
    double norm = 0.0;
    lens_scale_f64(Q, n * d); /* the span stays */
    for (size_t i = 0; i < n * d; i++)
        norm = fmax(norm, fabs(Q[i]));
    fault->info = (int)lapack_dgeqrf(LAPACK_COL_MAJOR, m, k, Q, m, tau, work, lwork);
    for (size_t i = 0; i < n && fault->info == 0; i++)
        if (!(fabs(Q[i * d + i]) > norm * (double)d * 2.3e-16)) {
            fault->row = i;
            return isfinite(norm) && isfinite(Q[i * d + i]) ? LENS_ERANK : LENS_ENONFINITE;
        }
    if (fault->info == 0)
        fault->info = (int)lapack_dorgqr(LAPACK_COL_MAJOR, m, k, k, Q, m, tau, work, lwork);
    return fault->info == 0 ? LENS_OK : LENS_ENOCONV;
}

/* Bjorck and Golub: cosines from Qa^T Qb, sines from what of Qb is left outside Qa. */
lens_status lens_subspace_angles(double *angles, lens_fault *fault, const double *A,
                                 const double *B, size_t a, size_t b, size_t d, double *work) {
    *fault = (lens_fault){.row = LENS_NOWHERE, .item = LENS_NOWHERE};
    if (a < b) { /* the smaller one second, so that b angles come out */
        const double *swap_rows = A;
        size_t swap = a;
        A = B, a = b, B = swap_rows, b = swap;
    }
    if (b < 1 || a > d)
        return LENS_ESHAPE;
    size_t total = lens_subspace_angles_worksize(a, b, d);
    if (total == SIZE_MAX)
        return LENS_EOVERFLOW;
    double *Qa = work, *Qb = Qa + a * d, *C = Qb + b * d, *cosine = C + 2 * a * b;
    double *sine = cosine + a, *tau = sine + a, *lapack = tau + 2 * a;
    size_t used = (size_t)(lapack - work) + iwork_doubles(a);
    blas_int lwork = (blas_int)(total - used), m = (blas_int)d, p = (blas_int)a, q = (blas_int)b;
    blas_int *iwork = (blas_int *)(void *)(lapack + lwork);
    memcpy(Qa, A, a * d * sizeof *Qa);
    memcpy(Qb, B, b * d * sizeof *Qb);
    lens_status status = orthonormal(Qa, tau, lapack, lwork, d, a, fault);
    if (status == LENS_OK)
        status = orthonormal(Qb, tau, lapack, lwork, d, b, fault);
    if (status != LENS_OK)
        return status;
    blas_dgemm(CblasColMajor, CblasTrans, CblasNoTrans, p, q, m, 1.0, Qa, m, Qb, m, 0.0, C, p);
    blas_dgemm(CblasColMajor, CblasNoTrans, CblasNoTrans, m, q, p, -1.0, Qa, m, C, p, 1.0, Qb, m);
    double none[1];
    fault->info = (int)lapack_dgesdd(LAPACK_COL_MAJOR, 'N', p, q, C, p, cosine, none, 1, none, 1,
                                     lapack, lwork, iwork);
    if (fault->info == 0)
        fault->info = (int)lapack_dgesdd(LAPACK_COL_MAJOR, 'N', m, q, Qb, m, sine, none, 1, none, 1,
                                         lapack, lwork, iwork);
    if (fault->info != 0)
        return LENS_ENOCONV;
    for (size_t i = 0; i < b; i++) {
        double c = fmin(cosine[i], 1.0), s = fmin(sine[b - 1 - i], 1.0);
        angles[i] = c * c >= 0.5 ? asin(s) : acos(c);
    }
    return LENS_OK;
}
