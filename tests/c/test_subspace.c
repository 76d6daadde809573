/* SPDX-License-Identifier: MIT
 * test_subspace.c: fit by both routes, angles, projection. */
#include "minunit.h"

static double dot(const double *x, const double *y, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += x[i] * y[i];
    return sum;
}

/* S sites of L means; `shrink` scales each further direction, so the condition grows with it. */
static double *random_means(size_t S, size_t L, size_t d, double shrink) {
    double *M = room(S * L * d, sizeof *M);
    for (size_t i = 0; i < S * L * d; i++)
        M[i] = uniform() * pow(shrink, (double)(i / d % L)) + (double)(i % d % 3);
    return M;
}

static void fit_and_check(size_t S, size_t L, size_t d, double shrink, int n_threads, int route) {
    size_t r = L - 1;
    double *M = random_means(S, L, d, shrink), *U = room(S * r * d, sizeof *U);
    double *sigma = room(S * r, sizeof *sigma), *mean = room(S * d, sizeof *mean);
    uint8_t *taken = room(S, 1);
    double *work = room(lens_subspace_fit_worksize(S, L, d, n_threads), sizeof *work);
    lens_fault fault;
    CHECK(lens_subspace_fit(U, sigma, mean, taken, &fault, M, S, L, d, n_threads, work) == LENS_OK);
    for (size_t s = 0; s < S; s++) {
        CHECK(taken[s] == route);
        double *u = U + s * r * d, *m = mean + s * d, *x = room(d, sizeof *x), total = 0;
        for (size_t a = 0; a < r; a++)
            for (size_t b = 0; b < r; b++)
                CHECK_NEAR(dot(u + a * d, u + b * d, d), a == b, 1e-11);
        for (size_t l = 0; l < L; l++) { /* every centred mean lies in the span */
            for (size_t i = 0; i < d; i++)
                x[i] = M[(s * L + l) * d + i] - m[i];
            double outside = dot(x, x, d);
            total += outside;
            for (size_t a = 0; a < r; a++)
                outside -= dot(u + a * d, x, d) * dot(u + a * d, x, d);
            CHECK_NEAR(outside, 0.0, 1e-12 * (double)d);
        }
        CHECK_NEAR(dot(sigma + s * r, sigma + s * r, r), total, 1e-12 * total);
        for (size_t a = 1; a < r; a++)
            CHECK(sigma[s * r + a] <= sigma[s * r + a - 1]);
        free(x);
    }
    free(M), free(U), free(sigma), free(mean), free(taken), free(work);
}

static void test_fit_by_both_routes(void) {
    fit_and_check(3, 7, 64, 0.9, 1, 0);
    fit_and_check(5, 2, 2, 1.0, 4, 0);
    fit_and_check(4, 5, 30, 0.1, 2, 1);
    fit_and_check(2, 12, 400, 1.0, 64, 0);
    fit_and_check(1, 6, 6, 1e-2, 1, 1);
}

static void test_fit_faults(void) {
    double M[2 * 3 * 4] = {0}, U[16], sigma[4], mean[8], *work;
    uint8_t route[2];
    lens_fault fault;
    work = room(lens_subspace_fit_worksize(2, 3, 4, 1), sizeof *work);
    for (int i = 0; i < 24; i++)
        M[i] = uniform();
    M[12 + 5] = NAN; /* site 1, language 1 */
    CHECK(lens_subspace_fit(U, sigma, mean, route, &fault, M, 2, 3, 4, 1, work) == LENS_ENONFINITE);
    CHECK(fault.row == 1 && fault.item == 1);
    CHECK(lens_subspace_fit(U, sigma, mean, route, &fault, M, 2, 1, 4, 1, work) == LENS_ESHAPE);
    CHECK(lens_subspace_fit(U, sigma, mean, route, &fault, M, 1, 5, 4, 1, work) == LENS_ESHAPE);
    CHECK(lens_subspace_fit_worksize(1, 5, 4, 1) == SIZE_MAX);
    CHECK(lens_subspace_fit_worksize(1, 2, (size_t)1 << 40, 1) == SIZE_MAX);
    memset(M, 0, sizeof M); /* equal means: zeros and some orthonormal vectors, not an error here */
    CHECK(lens_subspace_fit(U, sigma, mean, route, &fault, M, 1, 3, 4, 1, work) == LENS_OK);
    CHECK(sigma[0] == 0.0 && fabs(dot(U, U, 4) - 1.0) < 1e-14);
    free(work);
}

static void test_angles(void) {
    double A[2 * 4] = {1, 0, 0, 0, 0, 1, 0, 0}, B[1 * 4] = {0, 0, 0, 0}, angle[2];
    const double asked[] = {0, 1e-12, 1e-6, 0.3, 1.5};
    double *work = room(lens_subspace_angles_worksize(2, 2, 4), sizeof *work);
    lens_fault fault;
    for (size_t i = 0; i < 5; i++) {
        B[1] = 3 * cos(asked[i]), B[3] = 3 * sin(asked[i]);
        CHECK(lens_subspace_angles(angle, &fault, A, B, 2, 1, 4, work) == LENS_OK);
        CHECK_NEAR(angle[0], asked[i], 1e-15);
        CHECK(lens_subspace_angles(angle, &fault, B, A, 1, 2, 4, work) == LENS_OK);
        CHECK_NEAR(angle[0], asked[i], 1e-15);
    }
    A[4] = 2, A[5] = 0;
    CHECK(lens_subspace_angles(angle, &fault, A, A, 2, 2, 4, work) == LENS_ERANK);
    CHECK(fault.row == 1);
    A[0] = NAN;
    CHECK(lens_subspace_angles(angle, &fault, A, A, 2, 2, 4, work) != LENS_OK);
    CHECK(lens_subspace_angles(angle, &fault, A, A, 5, 5, 4, work) == LENS_ESHAPE);
    CHECK(lens_subspace_angles_worksize(0, 1, 4) == SIZE_MAX);
    free(work);
}

static void test_project(void) {
    enum { n = 3, d = 520, r = 2 };
    double *basis = room(r * d, sizeof *basis), *work = room(n * r, sizeof *work);
    float *short_basis = room(r * d, sizeof *short_basis);
    basis[3] = basis[d + 515] = 1.0;
    short_basis[3] = short_basis[d + 515] = 1.0f;
    CHECK(lens_project_worksize(n, r) == n * r);
    for (int k = 0; k < LENS_N_DTYPES; k++) {
        lens_dtype dtype = (lens_dtype)k;
        void *X = random_block(n * d, dtype), *out = room(n * d, 8);
        const void *b = dtype == LENS_F64 ? (void *)basis : (void *)short_basis;
        CHECK(lens_project(out, X, b, n, d, r, 1.0, dtype, 2, work) == LENS_OK);
        double *x = values(X, n * d, dtype), *y = values(out, n * d, dtype);
        for (size_t i = 0; i < n * d; i++)
            CHECK(y[i] == (i % d == 3 || i % d == 515 ? 0.0 : x[i]));
        CHECK(lens_project(out, X, b, n, d, r, 0.0, dtype, 1, work) == LENS_OK);
        CHECK(memcmp(out, X, n * d * lens_dtype_size(dtype)) == 0);
        free(X), free(out), free(x), free(y);
    }
    CHECK(lens_project(NULL, NULL, NULL, 0, d, r, 1.0, LENS_F32, 1, work) == LENS_OK);
    CHECK(lens_project(NULL, NULL, NULL, 0, d, r, 1.0, LENS_N_DTYPES, 1, work) == LENS_EDTYPE);
    free(basis), free(short_basis), free(work);
}

int main(void) {
    lens_isa_init();
    lens_blas_init();
    CHECK(strlen(lens_blas_config()) > 0);
    RUN(test_fit_by_both_routes);
    RUN(test_fit_faults);
    RUN(test_angles);
    RUN(test_project);
    return REPORT();
}
