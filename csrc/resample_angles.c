/* SPDX-License-Identifier: MIT
 * resample_angles.c: singular values and angles of refits from L x L products of means.  Level 3.
 * With J = I - 1 1^T/L, J K J = V S^2 V^T, the directions of a refit are U = Y W J V S^-1, so
 * U^T U* = S^-1 V^T J (W^T G W*) J V* S*^-1 and no vector of width d is ever formed.  Cosines carry
 * the error of K, so angles below its square root cannot be distinguished from zero. */
#include "blas.h"
#include "parallel.h"

#include <math.h>
#include <string.h>

#define HALF_PI 1.57079632679489661923

/* out (L,L) = J in J of `in` (L,ld) */
static void centre(double *out, const double *in, size_t L, size_t ld, double *columns) {
    double total = 0.0, n = (double)L;
    memset(columns, 0, L * sizeof *columns);
    for (size_t a = 0; a < L; a++)
        for (size_t b = 0; b < L; b++)
            columns[b] += in[a * ld + b] / n;
    for (size_t b = 0; b < L; b++)
        total += columns[b] / n;
    for (size_t a = 0; a < L; a++) {
        double row = 0.0;
        for (size_t b = 0; b < L; b++)
            row += in[a * ld + b] / n;
        for (size_t b = 0; b < L; b++)
            out[a * L + b] = in[a * ld + b] - row - columns[b] + total;
    }
}

/* Quantities of one fit. */
typedef struct {
    double *A;            /* (rank,L): rows of S^-1 V^T, zero where S is zero */
    double *lift;         /* (L,): products of its means with their mean */
    double *along;        /* (rank,): the mean of its means in its directions */
    double level, square; /* mean of drift; |mean of means|^2 */
} fit_view;

/* One thread's slices of the workspace. */
typedef struct {
    fit_view f;
    double *V, *B, *values, *x, *q, *lapack;
} scratch;

typedef struct {
    double *angles, *agnostic, *sigma, *work;
    const double *K, *cross, *fit;
    fit_view fixed;
    size_t R, L, rank, per_thread, lapack;
    double mean_square;
    lens_fault *faults; /* one a thread */
} angle_job;

static scratch carve(double *work, size_t L, size_t rank) {
    scratch s;
    s.f.A = work;
    s.f.lift = s.f.A + rank * L;
    s.f.along = s.f.lift + L;
    s.V = s.f.along + rank;
    s.B = s.V + L * L;
    s.values = s.B + rank * L;
    s.x = s.values + L;
    s.q = s.x + L;
    s.lapack = s.q + L;
    return s;
}

static size_t scratch_doubles(size_t L, size_t rank) {
    return lens_add(lens_mul(L, L), lens_add(2 * lens_mul(rank, L), 4 * L + rank));
}

/* out[k] = sum_l A[k,l] (x[l] - mean of x) */
static void inside(double *out, const double *A, const double *x, size_t rank, size_t L) {
    double mean = 0.0;
    for (size_t l = 0; l < L; l++)
        mean += x[l] / (double)L;
    for (size_t k = 0; k < rank; k++) {
        out[k] = 0.0;
        for (size_t l = 0; l < L; l++)
            out[k] += A[k * L + l] * (x[l] - mean);
    }
}

/* sigma[L-1] and A of the products K (L,ld).  Returns LAPACK's info. */
static int spectrum(double *sigma, const scratch *s, const double *K, size_t ld,
                    const angle_job *j) {
    size_t L = j->L;
    centre(s->V, K, L, ld, s->x);
    int info = lens_eigen_f64(s->V, s->values, L, j->rank > 0, s->lapack, j->lapack);
    for (size_t k = 0; k < L - 1 && info == 0; k++) {
        double value = s->values[L - 1 - k];
        sigma[k] = value > 0.0 ? sqrt(value) : 0.0;
        for (size_t l = 0; l < L && k < j->rank; l++)
            s->f.A[k * L + l] = value > 0.0 ? s->V[(L - 1 - k) * L + l] / sigma[k] : 0.0;
    }
    return info;
}

/* The other fields of a view, from products K (L,ld) and drift, the last column of D (L,L+1). */
static void look(fit_view *f, const double *K, size_t ld, const double *D, const angle_job *j) {
    size_t L = j->L;
    double n = (double)L, inner = 0.0;
    f->level = 0.0;
    for (size_t l = 0; l < L; l++) {
        double row = 0.0;
        for (size_t m = 0; m < L; m++)
            row += K[l * ld + m] / n;
        f->lift[l] = D[l * (L + 1) + L] + row;
        f->level += D[l * (L + 1) + L] / n;
        inner += row / n;
    }
    f->square = j->mean_square + 2.0 * f->level + inner;
    inside(f->along, f->A, f->lift, j->rank, L);
}

static double dot(const double *x, const double *y, size_t n) {
    double sum = 0.0;
    for (size_t i = 0; i < n; i++)
        sum += x[i] * y[i];
    return sum;
}

static double to_angle(double cosine) {
    return acos(fmin(fmax(cosine, -1.0), 1.0));
}

/* Angle between M_a = w - U U^T w of this fit and of the reference fit;  Z (rank,rank) = U^T U*. */
static double agnostic_angle(const angle_job *j, const scratch *s, const double *cross,
                             const double *Z) {
    size_t L = j->L, rank = j->rank;
    double n = (double)L, inner = j->mean_square + j->fixed.level;
    for (size_t a = 0; a < L;
         a++) { /* products of this fit's means with the reference mean of means */
        s->x[a] = cross[a * (L + 1) + L];
        for (size_t b = 0; b < L; b++)
            s->x[a] += cross[a * (L + 1) + b] / n;
        inner += s->x[a] / n;
    }
    inside(s->q, s->f.A, s->x, rank, L);
    inner -= dot(s->f.along, s->q, rank);
    for (size_t b = 0; b < L; b++) { /* and of the reference means with this fit's mean */
        s->x[b] = j->fit[b * (L + 1) + L];
        for (size_t a = 0; a < L; a++)
            s->x[b] += cross[a * (L + 1) + b] / n;
    }
    inside(s->q, j->fixed.A, s->x, rank, L);
    inner -= dot(j->fixed.along, s->q, rank);
    for (size_t k = 0; k < rank; k++)
        inner += s->f.along[k] * dot(Z + k * rank, j->fixed.along, rank);
    double size = s->f.square - dot(s->f.along, s->f.along, rank);
    double fixed = j->fixed.square - dot(j->fixed.along, j->fixed.along, rank);
    return size > 0.0 && fixed > 0.0 ? to_angle(inner / sqrt(size * fixed)) : HALF_PI;
}

static lens_status angle_chunk(void *ctx, size_t r, size_t thread) {
    const angle_job *j = ctx;
    size_t L = j->L, rank = j->rank;
    scratch s = carve(j->work + (thread + 1) * j->per_thread, L, rank);
    const double *K = j->K + r * L * L;
    int info = spectrum(j->sigma + r * (L - 1), &s, K, L, j);
    if (info == 0 && rank > 0) {
        const double *cross = j->cross + r * L * (L + 1);
        double *Z = s.V, *cosine = s.values;
        look(&s.f, K, L, cross, j);
        centre(s.V, cross, L, L + 1, s.x);
        lens_gemm_nn_f64(s.B, L, s.f.A, L, s.V, L, rank, L, L);
        lens_gemm_nt_f64(Z, rank, s.B, L, j->fixed.A, L, rank, rank, L);
        j->agnostic[r] = agnostic_angle(j, &s, cross, Z);
        info = lens_singular_f64(cosine, Z, rank, rank, s.lapack, j->lapack);
        for (size_t k = 0; k < rank && info == 0; k++)
            j->angles[r * rank + k] = to_angle(cosine[k]);
    }
    if (info == 0)
        return LENS_OK;
    j->faults[thread] = (lens_fault){.row = r, .item = LENS_NOWHERE, .info = info};
    return LENS_ENOCONV;
}

lens_status lens_resample_angles(double *angles, double *agnostic, double *sigma, lens_fault *fault,
                                 const double *K, const double *cross, const double *fit, size_t R,
                                 size_t L, size_t rank, double mean_square, int n_threads,
                                 double *work) {
    lens_fault faults[LENS_MAX_THREADS];
    *fault = (lens_fault){.row = LENS_NOWHERE, .item = LENS_NOWHERE};
    if (L < 2 || rank >= L)
        return LENS_ESHAPE;
    size_t lapack = lens_factor_worksize(L, L);
    if (lapack == SIZE_MAX || !lens_blas_fits(L, L, L))
        return LENS_EOVERFLOW;
    for (size_t i = 0; i < LENS_MAX_THREADS; i++)
        faults[i] = *fault;
    angle_job j = {.angles = angles,
                   .agnostic = agnostic,
                   .sigma = sigma,
                   .work = work,
                   .K = K,
                   .cross = cross,
                   .fit = fit,
                   .R = R,
                   .L = L,
                   .rank = angles == NULL ? 0 : rank,
                   .per_thread = scratch_doubles(L, rank) + lapack,
                   .lapack = lapack,
                   .mean_square = mean_square,
                   .faults = faults};
    if (j.rank > 0) { /* the first slice of the workspace is for the reference fit */
        scratch s = carve(work, L, rank);
        fault->info = spectrum(s.B, &s, fit, L + 1, &j);
        if (fault->info != 0)
            return LENS_ENOCONV;
        j.fixed = s.f;
        look(&j.fixed, fit, L + 1, fit, &j);
    }
    lens_status status = lens_parallel(angle_chunk, &j, R, n_threads);
    for (size_t i = 0; i < LENS_MAX_THREADS; i++)
        if (faults[i].row < fault->row)
            *fault = faults[i];
    return status;
}

size_t lens_resample_angles_worksize(size_t R, size_t L, size_t rank, int n_threads) {
    size_t each = lens_add(scratch_doubles(L, rank), lens_factor_worksize(L, L));
    return lens_mul(lens_threads(R, n_threads) + 1, each);
}
