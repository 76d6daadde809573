/* SPDX-License-Identifier: MIT
 * test_factor.c: thin SVD and thin QR of any shape, rank and size of values; what is refused. */
#include "minunit.h"

#include <float.h>

static double dot(const double *x, size_t step_x, const double *y, size_t step_y, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += x[i * step_x] * y[i * step_y];
    return sum;
}

/* A matrix (n,d) of rank `rank` at most, its elements about `size`. */
static double *random_matrix(size_t n, size_t d, size_t rank, double size) {
    double *X = room(n * d, sizeof *X), *u = room(n * rank, sizeof *u), *v = room(rank * d, 8);
    for (size_t i = 0; i < n * rank; i++)
        u[i] = uniform();
    for (size_t i = 0; i < rank * d; i++)
        v[i] = uniform();
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < d; c++)
            X[i * d + c] = size * dot(u + i * rank, 1, v + c, d, rank);
    free(u), free(v);
    return X;
}

static void check_svd(size_t n, size_t d, size_t rank, double size) {
    size_t k = n < d ? n : d;
    double *X = random_matrix(n, d, rank, size), *left = room(n * k, 8), *right = room(k * d, 8);
    double *sigma = room(k, 8), *work = room(lens_thin_svd_worksize(n, d), 8);
    double unit = size * 1e-14 * (double)(n + d) + 4 * DBL_TRUE_MIN;
    lens_fault fault;
    CHECK(lens_thin_svd(left, sigma, right, &fault, X, n, d, work) == LENS_OK);
    for (size_t a = 0; a < k; a++) {
        const double *v = right + a * d;
        size_t best = 0;
        for (size_t b = 0; b < k; b++) {
            CHECK_NEAR(dot(v, 1, right + b * d, 1, d), a == b, 1e-13);
            CHECK_NEAR(dot(left + a, k, left + b, k, n), a == b, 1e-13);
        }
        for (size_t c = 1; c < d; c++)
            best = fabs(v[c]) > fabs(v[best]) ? c : best;
        CHECK(v[best] > 0.0);
        CHECK(sigma[a] >= 0.0 && (a == 0 || sigma[a] <= sigma[a - 1]));
        CHECK(a < rank || sigma[a] <= unit);
    }
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < d; c++) {
            double sum = 0;
            for (size_t a = 0; a < k; a++)
                sum += left[i * k + a] * sigma[a] * right[a * d + c];
            CHECK_NEAR(sum, X[i * d + c], unit);
        }
    free(X), free(left), free(right), free(sigma), free(work);
}

static void check_qr(size_t r, size_t d, size_t rank, double size) {
    double *X = random_matrix(r, d, rank, size), *Q = room(r * d, 8), *R = room(r * r, 8);
    double *work = room(lens_thin_qr_worksize(r, d), 8);
    double unit = size * 1e-14 * (double)d + 4 * DBL_TRUE_MIN;
    lens_fault fault;
    CHECK(lens_thin_qr(Q, R, &fault, X, r, d, work) == LENS_OK);
    for (size_t a = 0; a < r; a++) {
        for (size_t b = 0; b < r; b++)
            CHECK_NEAR(dot(Q + a * d, 1, Q + b * d, 1, d), a == b, 1e-13);
        CHECK(R[a * r + a] >= 0.0 && (a < rank || R[a * r + a] <= unit));
        for (size_t b = a + 1; b < r; b++)
            CHECK(R[a * r + b] == 0.0);
        for (size_t c = 0; c < d; c++)
            CHECK_NEAR(dot(R + a * r, 1, Q + c, d, r), X[a * d + c], unit);
    }
    free(X), free(Q), free(R), free(work);
}

static void test_any_shape_and_rank(void) {
    const size_t sizes[][2] = {{1, 1}, {1, 40}, {40, 1}, {2, 2}, {7, 33}, {33, 7}, {150, 20}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t n = sizes[i][0], d = sizes[i][1], k = n < d ? n : d;
        check_svd(n, d, k, 1.0);
        check_svd(n, d, (k + 1) / 2, 1.0);
        check_qr(k, n < d ? d : n, k, 1.0);
        check_qr(k, n < d ? d : n, (k + 1) / 2, 1.0);
    }
}

static void test_values_of_any_size(void) {
    for (int e = -1050; e <= 1000; e += 50) {
        check_svd(12, 9, 9, ldexp(1.0, e));
        check_qr(9, 12, 9, ldexp(1.0, e));
    }
    check_svd(5, 4, 4, 1e150), check_svd(5, 4, 4, 1e-150);
    check_qr(4, 5, 4, 1e150), check_qr(4, 5, 4, 1e-150);
}

static void test_zero(void) {
    double X[3 * 5] = {0}, left[9], right[15], sigma[3], Q[15], R[9];
    double *work = room(lens_thin_svd_worksize(3, 5) + lens_thin_qr_worksize(3, 5), 8);
    lens_fault fault;
    CHECK(lens_thin_svd(left, sigma, right, &fault, X, 3, 5, work) == LENS_OK);
    CHECK(lens_thin_qr(Q, R, &fault, X, 3, 5, work) == LENS_OK);
    for (size_t a = 0; a < 3; a++) {
        CHECK(sigma[a] == 0.0);
        for (size_t b = 0; b < 3; b++) {
            CHECK(R[a * 3 + b] == 0.0);
            CHECK_NEAR(dot(right + a * 5, 1, right + b * 5, 1, 5), a == b, 1e-15);
            CHECK_NEAR(dot(left + a, 3, left + b, 3, 3), a == b, 1e-15);
            CHECK_NEAR(dot(Q + a * 5, 1, Q + b * 5, 1, 5), a == b, 1e-15);
        }
    }
    CHECK(lens_thin_svd(NULL, NULL, NULL, &fault, NULL, 0, 5, NULL) == LENS_OK);
    CHECK(lens_thin_qr(NULL, NULL, &fault, NULL, 0, 5, NULL) == LENS_OK);
    free(work);
}

/* Rows of a triangle are scaled one by one: a row of 2^-600 beside one of 2^600 keeps its bits. */
static void test_rows_far_apart(void) {
    double X[2 * 3] = {0x1p600, 0, 0, 0x3p-600, 0, 0x4p-600}, Q[6], R[4];
    double *work = room(lens_thin_qr_worksize(2, 3), 8);
    lens_fault fault;
    CHECK(lens_thin_qr(Q, R, &fault, X, 2, 3, work) == LENS_OK);
    CHECK_NEAR(Q[0], 1.0, 1e-15);
    CHECK_NEAR(Q[5], 1.0, 1e-15);
    CHECK_NEAR(R[0] / 0x1p600, 1.0, 1e-15);
    CHECK_NEAR(R[2] / 0x3p-600, 1.0, 1e-15);
    CHECK_NEAR(R[3] / 0x4p-600, 1.0, 1e-15);
    free(work);
}

static void test_signs_are_settled(void) {
    double X[2 * 2] = {0, -3, 2, 0}, left[4], right[4], sigma[2], Q[4], R[4];
    double *work = room(lens_thin_svd_worksize(2, 2) + lens_thin_qr_worksize(2, 2), 8);
    lens_fault fault;
    CHECK(lens_thin_svd(left, sigma, right, &fault, X, 2, 2, work) == LENS_OK);
    CHECK(sigma[0] == 3.0 && sigma[1] == 2.0 && right[1] == 1.0 && right[2] == 1.0);
    CHECK(left[0] == -1.0 && left[3] == 1.0);
    CHECK(lens_thin_qr(Q, R, &fault, X, 2, 2, work) == LENS_OK);
    CHECK(Q[1] == -1.0 && Q[2] == 1.0 && R[0] == 3.0 && R[3] == 2.0);
    free(work);
}

static void test_products(void) {
    const float X[2 * 3] = {1, 2, 3, 4, 5, 6}, B[1 * 3] = {1, 0, -1}, Y[2 * 1] = {10, 1};
    float out[3];
    CHECK(lens_matmul_nt(out, X, B, 2, 1, 3) == LENS_OK && out[0] == -2 && out[1] == -2);
    CHECK(lens_matmul_tn(out, Y, X, 2, 1, 3) == LENS_OK);
    CHECK(out[0] == 14 && out[1] == 25 && out[2] == 36);
    CHECK(lens_matmul_tn(out, Y, X, 0, 1, 3) == LENS_OK && out[0] == 0 && out[2] == 0);
    out[0] = out[1] = 1;
    CHECK(lens_matmul_nt(out, X, B, 2, 1, 0) == LENS_OK && out[0] == 0 && out[1] == 0);
    CHECK(lens_matmul_nt(NULL, NULL, NULL, 0, 1, 3) == LENS_OK);
    CHECK(lens_matmul_nt(out, X, B, (size_t)1 << 40, 1, 3) == LENS_EOVERFLOW);
    CHECK(lens_matmul_tn(out, Y, X, (size_t)1 << 40, 1, 3) == LENS_EOVERFLOW);
}

static void test_refusals(void) {
    const size_t big = (size_t)1 << 40;
    double X[6] = {1, 2, 3, 4, 5, 6}, left[4], right[6], sigma[2], Q[6], R[4];
    double *work = room(lens_thin_svd_worksize(2, 3) + lens_thin_qr_worksize(2, 3), 8);
    const double bad[] = {NAN, INFINITY, -INFINITY};
    lens_fault fault;
    for (size_t i = 0; i < 3; i++) {
        X[5] = bad[i];
        CHECK(lens_thin_svd(left, sigma, right, &fault, X, 2, 3, work) == LENS_ENONFINITE);
        CHECK(fault.row == 1 && fault.item == 2);
        CHECK(lens_thin_qr(Q, R, &fault, X, 2, 3, work) == LENS_ENONFINITE);
        CHECK(fault.row == 1 && fault.item == 2);
    }
    for (size_t i = 0; i < 6; i++)
        X[i] = DBL_MAX; /* its one singular value, and the lengths of its rows, are larger */
    CHECK(lens_thin_svd(left, sigma, right, &fault, X, 2, 3, work) == LENS_ENONFINITE);
    CHECK(fault.row == LENS_NOWHERE && fault.item == LENS_NOWHERE);
    CHECK(lens_thin_qr(Q, R, &fault, X, 2, 3, work) == LENS_ENONFINITE);
    CHECK(fault.row == LENS_NOWHERE && fault.item == LENS_NOWHERE);
    CHECK(lens_thin_qr(Q, R, &fault, X, 3, 2, work) == LENS_ESHAPE);
    CHECK(lens_thin_svd_worksize(big, 2) == SIZE_MAX);
    CHECK(lens_thin_svd_worksize(2, big) == SIZE_MAX);
    CHECK(lens_thin_svd_worksize(100000, 100000) == SIZE_MAX); /* LAPACK's integers would wrap */
    CHECK(lens_thin_qr_worksize(2, big) == SIZE_MAX && lens_thin_qr_worksize(3, 2) == SIZE_MAX);
    CHECK(lens_thin_qr_worksize((size_t)1 << 27, (size_t)1 << 27) == SIZE_MAX);
    CHECK(lens_thin_svd(left, sigma, right, &fault, X, big, 2, work) == LENS_EOVERFLOW);
    CHECK(lens_thin_qr(Q, R, &fault, X, 2, big, work) == LENS_EOVERFLOW);
    free(work);
}

int main(void) {
    lens_isa_init();
    lens_blas_init();
    RUN(test_any_shape_and_rank);
    RUN(test_values_of_any_size);
    RUN(test_zero);
    RUN(test_rows_far_apart);
    RUN(test_signs_are_settled);
    RUN(test_products);
    RUN(test_refusals);
    return REPORT();
}
