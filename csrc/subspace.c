/* SPDX-License-Identifier: MIT
 * subspace.c: language subspaces and the angles between them.  Level 3.
 * C = M - mean 1^T (d x L) has U S V^T with S^2, V from its L x L Gram matrix: O(d L^2), but a
 * vector's error grows with the square of the condition.  Beyond GRAM_LIMIT the factors come from
 * C = QR and the SVD of R, whose error grows with the condition itself.  No d x d matrix is formed.
 * C is stored as its transpose, one language a row. */
#include "blas.h"
#include "parallel.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define GRAM_LIMIT 64.0 /* 64^2 rounding errors: spans right to about 1e-12 */

/* One thread's workspace, in doubles. */
typedef struct {
    double *C;          /* (L,d) */
    double *G, *U, *VT; /* (L,L) each */
    double *values, *lapack;
    size_t lapack_size;
} fit_space;

/* Doubles of one thread's workspace, and LAPACK's share of them. */
static size_t fit_worksize_one(size_t *lapack_size, size_t L, size_t d) {
    *lapack_size = lens_factor_worksize(L, d);
    size_t arrays = lens_add(lens_mul(d, L), lens_add(lens_mul(3, lens_mul(L, L)), L));
    return lens_add(arrays, *lapack_size);
}

size_t lens_subspace_fit_worksize(size_t S, size_t L, size_t d, int n_threads) {
    size_t lapack_size = 0;
    return lens_mul(fit_worksize_one(&lapack_size, L, d), lens_threads(S, n_threads));
}

static fit_space carve(double *work, size_t lapack_size, size_t L, size_t d) {
    fit_space s = {.C = work, .lapack_size = lapack_size};
    s.G = s.C + d * L;
    s.U = s.G + L * L;
    s.VT = s.U + L * L;
    s.values = s.VT + L * L;
    s.lapack = s.values + L;
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

/* Returns LAPACK's info; *good says whether the condition is within GRAM_LIMIT. */
static int fit_gram(double *basis, double *sigma, const fit_space *s, size_t L, size_t d,
                    int *good) {
    lens_syrk_f64(s->G, L, s->C, d, L, d);
    int info = lens_eigen_f64(s->G, s->values, L, 1, s->lapack, s->lapack_size);
    if (info != 0)
        return info;
    double largest = s->values[L - 1], smallest = s->values[1];
    *good = smallest * (GRAM_LIMIT * GRAM_LIMIT) >= largest && largest > 1e-280;
    if (!*good)
        return 0;
    for (size_t k = 0; k < L - 1; k++) {
        sigma[k] = sqrt(s->values[L - 1 - k]);
        for (size_t l = 0; l < L; l++)
            s->U[k * L + l] = s->G[(L - 1 - k) * L + l] / sigma[k];
    }
    lens_gemm_nn_f64(basis, d, s->U, L, s->C, d, L - 1, d, L);
    return 0;
}

static int fit_qr(double *basis, double *sigma, const fit_space *s, size_t L, size_t d) {
    int info = lens_qr_f64(s->C, s->G, L, d, s->lapack, s->lapack_size);
    if (info == 0)
        info = lens_svd_f64(s->VT, s->values, s->U, s->G, L, L, s->lapack, s->lapack_size);
    if (info != 0)
        return info;
    memcpy(sigma, s->values, (L - 1) * sizeof *sigma);
    lens_gemm_nn_f64(basis, d, s->U, L, s->C, d, L - 1, d, L);
    return 0;
}

typedef struct {
    double *basis, *sigma, *mean, *work;
    uint8_t *route;
    const double *means;
    size_t L, d, per_thread, lapack_size;
    lens_fault *faults; /* one a thread */
} fit_job;

static lens_status fit_site(void *ctx, size_t site, size_t thread) {
    const fit_job *j = ctx;
    size_t L = j->L, d = j->d, r = L - 1;
    const double *M = j->means + site * L * d;
    double *basis = j->basis + site * r * d, *sigma = j->sigma + site * r;
    lens_fault *fault = &j->faults[thread];
    fit_space s = carve(j->work + thread * j->per_thread, j->lapack_size, L, d);
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
    size_t lapack_size = 0, per_thread = fit_worksize_one(&lapack_size, L, d);
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
                 .lapack_size = lapack_size,
                 .faults = faults};
    lens_status status = lens_parallel(fit_site, &j, S, n_threads);
    for (size_t i = 0; i < LENS_MAX_THREADS; i++)
        if (faults[i].row < fault->row)
            *fault = faults[i];
    return status;
}

/* LAPACK's share of the workspace for angles: QR of up to `most` rows of width d, singular values. */
static size_t angles_lapack_size(size_t most, size_t d) {
    size_t factor = lens_factor_worksize(most, d), singular = lens_singular_worksize(most, d);
    return factor > singular ? factor : singular;
}

size_t lens_subspace_angles_worksize(size_t a, size_t b, size_t d) {
    size_t most = a > b ? a : b;
    if (a < 1 || b < 1)
        return SIZE_MAX;
    size_t bases = lens_mul(lens_add(a, b), d), squares = lens_mul(2, lens_mul(most, most));
    size_t arrays = lens_add(lens_add(bases, squares), 2 * most);
    return lens_add(arrays, angles_lapack_size(most, d));
}

/* Q (n,d) = orthonormal rows with the span of the rows it holds, which must be independent: the
 * diagonal of R (n,n) says whether they are. */
static lens_status orthonormal(double *Q, double *R, size_t n, size_t d, double *lapack,
                               size_t lapack_size, lens_fault *fault) {
    double norm = 0.0;
    lens_scale_f64(Q, n * d); /* the span stays */
    for (size_t i = 0; i < n * d; i++)
        norm = fmax(norm, fabs(Q[i]));
    fault->info = lens_qr_f64(Q, R, n, d, lapack, lapack_size);
    if (fault->info != 0)
        return LENS_ENOCONV;
    for (size_t i = 0; i < n; i++)
        if (!(fabs(R[i * n + i]) > norm * (double)d * 2.3e-16)) {
            fault->row = i;
            return isfinite(norm) && isfinite(R[i * n + i]) ? LENS_ERANK : LENS_ENONFINITE;
        }
    return LENS_OK;
}

/* Bjorck and Golub: cosines from Qa^T Qb, sines from the part of Qb outside the span of Qa. */
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
    if (lens_subspace_angles_worksize(a, b, d) == SIZE_MAX)
        return LENS_EOVERFLOW;
    size_t lapack_size = angles_lapack_size(a, d);
    double *Qa = work, *Qb = Qa + a * d, *C = Qb + b * d, *R = C + a * a, *cosine = R + a * a;
    double *sine = cosine + a, *lapack = sine + a;
    memcpy(Qa, A, a * d * sizeof *Qa);
    memcpy(Qb, B, b * d * sizeof *Qb);
    lens_status status = orthonormal(Qa, R, a, d, lapack, lapack_size, fault);
    if (status == LENS_OK)
        status = orthonormal(Qb, R, b, d, lapack, lapack_size, fault);
    if (status != LENS_OK)
        return status;
    lens_gemm_nt_f64(C, a, Qb, d, Qa, d, b, a, d);
    lens_gemm_nn_subtract_f64(Qb, d, C, a, Qa, d, b, d, a);
    fault->info = lens_singular_f64(cosine, C, b, a, lapack, lapack_size);
    if (fault->info == 0)
        fault->info = lens_singular_f64(sine, Qb, b, d, lapack, lapack_size);
    if (fault->info != 0)
        return LENS_ENOCONV;
    for (size_t i = 0; i < b; i++) {
        double c = fmin(cosine[i], 1.0), s = fmin(sine[b - 1 - i], 1.0);
        angles[i] = c * c >= 0.5 ? asin(s) : acos(c);
    }
    return LENS_OK;
}
