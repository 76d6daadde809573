/* SPDX-License-Identifier: MIT
 * test_extremes.c: sizes whose product does not fit, values whose squares do not, and where faults
 * point when several threads work. */
#include "minunit.h"

#include "blas.h"

#include <float.h>

static void test_sizes_saturate(void) {
    const size_t big = (size_t)1 << 40, most = SIZE_MAX;
    CHECK(lens_mul(0, most) == 0 && lens_mul(most, 0) == 0 && lens_mul(most, 1) == most);
    CHECK(lens_mul(big, big) == most && lens_mul(2, most / 2) == most - 1);
    CHECK(lens_mul(2, most / 2 + 1) == most && lens_add(most, 0) == most);
    CHECK(lens_add(most, 1) == most && lens_add(most - 1, 1) == most && lens_add(2, 3) == 5);
    CHECK(lens_project_worksize(big, big) == most && lens_project_worksize(3, 4) == 12);
    CHECK(lens_loss_separate_worksize(big, big) == most);
    CHECK(lens_loss_align_complement_worksize(big, big) == most);
    CHECK(lens_loss_retain_token_worksize(big, big) == most);
    CHECK(lens_loss_retain_mean_worksize(big, big) == most);
    CHECK(lens_loss_align_mean_worksize(most) == most);
    CHECK(lens_metrics_match_worksize(most, 8, LENS_F32, 1) == most);
    CHECK(lens_weights_dots_worksize(most) >= most / 65536 * 3);
    CHECK(lens_weights_histogram_worksize(most, 1000) == (size_t)64 * LENS_BUCKETS);
    CHECK(lens_subspace_fit_worksize(1, 2, big, 1) == most);
    CHECK(lens_subspace_fit_worksize(1, 100000, 100000, 1) == most); /* LAPACK's integers */
    CHECK(lens_subspace_angles_worksize(2, 2, big) == most);
    CHECK(lens_subspace_angles_worksize(0, 2, 4) == most);
    CHECK(lens_blas_fits(1, 2, INT32_MAX) && !lens_blas_fits(1, most, 2));
}

static void test_gemm(void) {
    double A[2 * 3] = {1, 2, 3, 4, 5, 6}, B[1 * 3] = {1, 0, -1}, C[2];
    float a[2 * 3] = {1, 2, 3, 4, 5, 6}, b[1 * 3] = {1, 0, -1}, c[2];
    lens_gemm_nt_f64(C, 1, A, 3, B, 3, 2, 1, 3);
    lens_gemm_nt_f32(c, 1, a, 3, b, 3, 2, 1, 3);
    CHECK(C[0] == -2 && C[1] == -2 && c[0] == -2 && c[1] == -2);
}

enum { L = 4, D = 60 };

/* Fit means of this size; the scaled-down result must be that of means of ordinary size. */
static lens_status fit_scaled(int exponent, lens_fault *fault, double *change) {
    double M[L * D], U[(L - 1) * D], V[(L - 1) * D], sigma[L - 1], mean[D];
    double *work = room(lens_subspace_fit_worksize(1, L, D, 1), sizeof *work);
    uint8_t route;
    for (size_t i = 0; i < L * D; i++)
        M[i] = uniform();
    CHECK(lens_subspace_fit(V, sigma, mean, &route, fault, M, 1, L, D, 1, work) == LENS_OK);
    for (size_t i = 0; i < L * D; i++)
        M[i] = ldexp(M[i], exponent);
    lens_status status = lens_subspace_fit(U, sigma, mean, &route, fault, M, 1, L, D, 1, work);
    *change = 0.0;
    for (size_t i = 0; i < (L - 1) * D && status == LENS_OK; i++)
        *change = fmax(*change, fabs(U[i] - V[i]));
    free(work);
    return status;
}

static void test_means_of_any_size(void) {
    lens_fault fault;
    double change;
    for (int exponent = -1000; exponent <= 1000; exponent += 200) {
        CHECK(fit_scaled(exponent, &fault, &change) == LENS_OK);
        CHECK(change < 1e-12);
    }
    for (int i = 0; i < 60; i++) { /* near the largest double a singular value may not fit */
        lens_status status = fit_scaled(1022, &fault, &change);
        CHECK(status == LENS_OK ? change < 1e-12 : status == LENS_ENONFINITE && fault.row == 0);
    }
}

static void test_a_mean_that_overflows(void) {
    double M[2 * 2 * 3] = {1, 2, 3, 3, 1, 2, DBL_MAX, 1, 1, DBL_MAX, 2, 1};
    double U[2 * 3], sigma[2], mean[6], *work = room(lens_subspace_fit_worksize(2, 2, 3, 2), 8);
    uint8_t route[2];
    lens_fault fault;
    CHECK(lens_subspace_fit(U, sigma, mean, route, &fault, M, 2, 2, 3, 2, work) == LENS_ENONFINITE);
    CHECK(fault.row == 1 && fault.item == LENS_NOWHERE); /* no language is to blame */
    M[9] = -DBL_MAX; /* now the mean is finite, and the singular value is not */
    CHECK(lens_subspace_fit(U, sigma, mean, route, &fault, M, 2, 2, 3, 2, work) == LENS_ENONFINITE);
    CHECK(fault.row == 1 && fault.item == LENS_NOWHERE);
    free(work);
}

static void test_angles_of_any_size(void) {
    double A[2 * 3] = {1, 0, 0, 0, 1, 0}, B[1 * 3] = {0, 3, 4}, angle;
    double *work = room(lens_subspace_angles_worksize(2, 1, 3), sizeof *work);
    lens_fault fault;
    for (int e = -1070; e <= 1020; e += 95) {
        double a[6], b[3];
        for (int i = 0; i < 6; i++)
            a[i] = ldexp(A[i], e);
        for (int i = 0; i < 3; i++)
            b[i] = ldexp(B[i], -e < 1020 ? -e : 1020);
        CHECK(lens_subspace_angles(&angle, &fault, a, b, 2, 1, 3, work) == LENS_OK);
        CHECK_NEAR(angle, atan2(4, 3), 1e-15);
    }
    free(work);
}

static void test_faults_of_any_thread(void) {
    enum { n = 20000, t = 4 };
    double *X = room(n * t, sizeof *X), *out = room(n * t, sizeof *out);
    double *zero = room(n * t, sizeof *zero), *work = room(n * t, sizeof *work), value;
    uint8_t *mask = room(n * t, 1);
    lens_fault fault;
    for (size_t i = 0; i < n * t; i++)
        X[i] = 1.0, mask[i] = 1;
    X[(n - 1) * t + 1] = INFINITY;
    X[(n - 3) * t + 2] = NAN;
    for (int threads = 1; threads < 9; threads += 7) {
        CHECK(lens_pool(out, &fault, X, mask, n, t, 1, LENS_F64, LENS_POOL_MEAN, threads) ==
              LENS_ENONFINITE);
        CHECK(fault.row == n - 3 && fault.item == 2);
        CHECK(lens_loss_retain_token(&value, out, &fault, X, zero, mask, n, t, 1, LENS_F64, threads,
                                     work) == LENS_ENONFINITE);
        CHECK(fault.row == n - 3 && fault.item == 2);
        CHECK(lens_metrics_unit(out, &fault, X, n, t, LENS_F64, threads) == LENS_ENONFINITE);
        CHECK(fault.row == n - 3);
    }
    for (size_t i = 0; i < t; i++)
        X[i] = DBL_MAX; /* finite, and their sum is not */
    CHECK(lens_pool(out, &fault, X, mask, 1, t, 1, LENS_F64, LENS_POOL_MEAN, 1) == LENS_ENONFINITE);
    CHECK(fault.row == 0 && fault.item == LENS_NOWHERE);
    free(X), free(out), free(zero), free(work), free(mask);
}

static void test_weight_zero_clears_both_gradients(void) {
    double h[2] = {NAN, 1}, p[2] = {0, 0}, u = 1, w[2] = {0, 1}, grad[2] = {7, 7}, back[2] = {7, 7};
    double value, work[2];
    lens_fault fault;
    CHECK(lens_loss_align_mean(&value, grad, back, &fault, h, p, &u, w, 2, 1, LENS_F64, 1, work) ==
          LENS_OK);
    CHECK(value == 1.0 && grad[0] == 0 && back[0] == 0 && grad[1] == 2 && back[1] == -2);
}

int main(void) {
    lens_isa_init();
    lens_blas_init();
    RUN(test_sizes_saturate);
    RUN(test_gemm);
    RUN(test_means_of_any_size);
    RUN(test_a_mean_that_overflows);
    RUN(test_angles_of_any_size);
    RUN(test_faults_of_any_thread);
    RUN(test_weight_zero_clears_both_gradients);
    return REPORT();
}
