/* SPDX-License-Identifier: MIT
 * test_resample.c: Gram matrices, weighted means, labels, angles of refits. */
#include "minunit.h"

static double dot(const double *x, const double *y, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += x[i] * y[i];
    return sum;
}

/* Rows less their mean, in double. */
static double *centred(const void *X, size_t N, size_t d, lens_dtype dtype) {
    double *y = values(X, N * d, dtype);
    for (size_t c = 0; c < d; c++) {
        double mean = 0;
        for (size_t i = 0; i < N; i++)
            mean += y[i * d + c] / (double)N;
        for (size_t i = 0; i < N; i++)
            y[i * d + c] -= mean;
    }
    return y;
}

static void gram_and_check(size_t S, size_t N, size_t d, lens_dtype dtype, int n_threads) {
    void *X = random_block(S * N * d, dtype);
    double *G = room(S * N * N, sizeof *G), *drift = room(S * N, sizeof *drift);
    double *mean = room(S * d, sizeof *mean);
    double *work = room(lens_resample_gram_worksize(S, N, n_threads), sizeof *work);
    lens_fault fault;
    CHECK(lens_resample_gram(G, drift, mean, &fault, X, S, N, d, dtype, n_threads, work) ==
          LENS_OK);
    for (size_t s = 0; s < S; s++) {
        size_t bytes = s * N * d * lens_dtype_size(dtype);
        double *y = centred((unsigned char *)X + bytes, N, d, dtype);
        for (size_t i = 0; i < N; i++) {
            CHECK_NEAR(drift[s * N + i], dot(y + i * d, mean + s * d, d), 1e-12 * (double)d);
            for (size_t k = i % 7; k < N; k += 7) {
                double found = G[(s * N + i) * N + k];
                CHECK_NEAR(found, dot(y + i * d, y + k * d, d), 1e-13 * (double)d);
                CHECK(found == G[(s * N + k) * N + i]);
            }
        }
        free(y);
    }
    free(X), free(G), free(drift), free(mean), free(work);
}

static void test_gram(void) {
    for (int k = 0; k < LENS_N_DTYPES; k++) {
        gram_and_check(2, 5, 513, (lens_dtype)k, 2);
        gram_and_check(1, 1, 1, (lens_dtype)k, 1);
    }
    gram_and_check(1, 512, 3, LENS_F64, 1);
    gram_and_check(1, 513, 4, LENS_F32, 3);
    gram_and_check(1, 1030, 20, LENS_BF16, 64);
}

static void test_gram_faults(void) {
    enum { N = 4, d = 600 };
    float *X = random_block(2 * N * d, LENS_F32);
    double G[2 * N * N], drift[2 * N], *mean = room(2 * d, sizeof *mean), *work;
    lens_fault fault;
    work = room(lens_resample_gram_worksize(2, N, 1), sizeof *work);
    X[(N + 2) * d + 550] = NAN; /* site 1, row 2 */
    CHECK(lens_resample_gram(G, drift, mean, &fault, X, 2, N, d, LENS_F32, 1, work) ==
          LENS_ENONFINITE);
    CHECK(fault.row == N + 2 && fault.item == 550);
    CHECK(lens_resample_gram(G, drift, mean, &fault, X, 1, 0, d, LENS_F32, 1, work) == LENS_ESHAPE);
    CHECK(lens_resample_gram(G, drift, mean, &fault, X, 1, N, 0, LENS_F32, 1, work) == LENS_ESHAPE);
    CHECK(lens_resample_gram(G, drift, mean, &fault, X, 1, N, d, LENS_N_DTYPES, 1, work) ==
          LENS_EDTYPE);
    CHECK(lens_resample_gram(G, drift, mean, &fault, X, 1, N, (size_t)1 << 40, LENS_F32, 1, work) ==
          LENS_EOVERFLOW);
    double *huge = room(2 * 3, sizeof *huge); /* finite values whose squares are not */
    huge[4] = 1e200;
    CHECK(lens_resample_gram(G, drift, mean, &fault, huge, 1, 2, 3, LENS_F64, 1, work) ==
          LENS_ENONFINITE);
    CHECK(fault.row == 0 && fault.item == LENS_NOWHERE);
    free(X), free(mean), free(work), free(huge);
}

/* G and states of N rows of width d. */
static double *products(double **y, size_t N, size_t d) {
    double *X = random_block(N * d, LENS_F64), *G = room(N * N, sizeof *G);
    *y = centred(X, N, d, LENS_F64);
    for (size_t i = 0; i < N; i++)
        for (size_t k = 0; k < N; k++)
            G[i * N + k] = dot(*y + i * d, *y + k * d, d);
    free(X);
    return G;
}

/* Means of d columns under weights, for refit r; shared: w = rows of one language. */
static void weighted(double *m, const double *y, const double *W, const uint64_t *rows, size_t L,
                     size_t d, int shared) {
    for (size_t l = 0, at = 0; l < L; at += rows[l++])
        for (size_t c = 0; c < d; c++) {
            m[l * d + c] = 0;
            for (size_t i = 0; i < rows[l]; i++)
                m[l * d + c] += W[shared ? i : at + i] * y[(at + i) * d + c];
        }
}

static void refits_and_check(size_t R, int shared, int n_threads) {
    enum { L = 3, d = 20, N = 24, F = 2 };
    const uint64_t equal[L] = {8, 8, 8}, unequal[L] = {5, 1, 18};
    const uint64_t *rows = shared ? equal : unequal;
    size_t w = shared ? 8 : N;
    double *y, *G = products(&y, N, d), fixed[F * N], m[L * d];
    double *W = room(R * w, sizeof *W), *K = room(R * L * L, sizeof *K);
    double *cross = room(R * L * F, sizeof *cross);
    double *work = room(lens_resample_refits_worksize(R, N, n_threads), sizeof *work);
    for (size_t i = 0; i < R * w; i++)
        W[i] = uniform();
    for (size_t f = 0; f < F; f++) /* fixed vectors: the first rows */
        for (size_t i = 0; i < N; i++)
            fixed[f * N + i] = G[f * N + i];
    CHECK(lens_resample_refits(K, cross, G, fixed, W, rows, R, N, L, F, w, n_threads, work) ==
          LENS_OK);
    for (size_t r = 0; r < R; r++) {
        weighted(m, y, W + r * w, rows, L, d, shared);
        for (size_t a = 0; a < L; a++) {
            for (size_t b = 0; b < L; b++)
                CHECK_NEAR(K[(r * L + a) * L + b], dot(m + a * d, m + b * d, d), 1e-12);
            for (size_t f = 0; f < F; f++)
                CHECK_NEAR(cross[(r * L + a) * F + f], dot(m + a * d, y + f * d, d), 1e-12);
        }
    }
    free(y), free(G), free(W), free(K), free(cross), free(work);
}

static void test_refits(void) {
    refits_and_check(0, 1, 1);
    refits_and_check(1, 0, 1);
    refits_and_check(127, 1, 1);
    refits_and_check(129, 0, 2);
    refits_and_check(300, 1, 64);
    const uint64_t wrong[][2] = {{2, 3}, {0, 4}, {4, 0}, {1, 2}};
    for (size_t i = 0; i < 4; i++)
        CHECK(lens_resample_refits(NULL, NULL, NULL, NULL, NULL, wrong[i], 1, 4, 2, 1, 4, 1,
                                   NULL) == LENS_ESHAPE);
    const uint64_t pair[2] = {2, 2};
    CHECK(lens_resample_refits(NULL, NULL, NULL, NULL, NULL, pair, 1, 4, 2, 1, 3, 1, NULL) ==
          LENS_ESHAPE);
    CHECK(lens_resample_refits(NULL, NULL, NULL, NULL, NULL, pair, (size_t)1 << 40, 4, 2, 1, 2, 1,
                               NULL) == LENS_EOVERFLOW);
}

static void test_labels(void) {
    enum { L = 3, d = 5, N = 130, P = 66 };
    double *y, *G = products(&y, N, d), *K = room(P * L * L, sizeof *K), m[L * d];
    double *first = room(P * L * L, sizeof *first);
    uint64_t *labels = room(P * N, sizeof *labels);
    double *work = room(lens_resample_labels_worksize(P, L, 4), sizeof *work);
    lens_fault fault;
    for (size_t i = 0; i < P * N; i++)
        labels[i] = (i % N * 5 + i / N) % 7 % L;
    CHECK(lens_resample_labels(first, &fault, G, labels, P, N, L, 1, work) == LENS_OK);
    EACH_ISA({
        CHECK(lens_resample_labels(K, &fault, G, labels, P, N, L, 4, work) == LENS_OK);
        CHECK(memcmp(K, first, P * L * L * sizeof *K) == 0);
    })
    for (size_t p = 0; p < P; p++) {
        double count[L] = {0};
        memset(m, 0, sizeof m);
        for (size_t i = 0; i < N; i++)
            count[labels[p * N + i]] += 1;
        for (size_t i = 0; i < N; i++)
            for (size_t c = 0; c < d; c++)
                m[labels[p * N + i] * d + c] += y[i * d + c] / count[labels[p * N + i]];
        for (size_t a = 0; a < L; a++)
            for (size_t b = 0; b < L; b++)
                CHECK_NEAR(K[(p * L + a) * L + b], dot(m + a * d, m + b * d, d), 1e-13);
    }
    labels[N + 7] = L;
    CHECK(lens_resample_labels(K, &fault, G, labels, P, N, L, 1, work) == LENS_EDOMAIN);
    CHECK(fault.row == 1 && fault.item == 7);
    for (size_t i = 0; i < N; i++)
        labels[65 * N + i] = 1;
    labels[N + 7] = 0;
    CHECK(lens_resample_labels(K, &fault, G, labels, P, N, L, 2, work) == LENS_EDOMAIN);
    CHECK(fault.row == 65 && fault.item == LENS_NOWHERE);
    free(y), free(G), free(K), free(first), free(labels), free(work);
}

/* Two languages at a distance of `far` along (cos t, sin t), drift of the mean (0, 0, 3). */
static void test_angles(void) {
    enum { L = 2 };
    const double asked[] = {0, 0.3, 1.0, 1.5707963267948966};
    double sigma, agnostic, angle, *work = room(lens_resample_angles_worksize(4, L, 1, 1), 8);
    const double fit[L * 3] = {1, -1, 0, -1, 1, 0}; /* means (1,0) and (-1,0) about (0,0,3) */
    lens_fault fault;
    for (size_t i = 0; i < 4; i++) {
        double c = cos(asked[i]), K[4] = {4, -4, -4, 4};
        double cross[L * 3] = {2 * c, -2 * c, 0, -2 * c, 2 * c, 0};
        CHECK(lens_resample_angles(&angle, &agnostic, &sigma, &fault, K, cross, fit, 1, L, 1, 9.0,
                                   1, work) == LENS_OK);
        CHECK_NEAR(angle, asked[i], 5e-8);
        CHECK_NEAR(sigma, sqrt(8.0), 1e-14);
        CHECK_NEAR(agnostic, 0.0, 5e-8);
    }
    double zero[4] = {0}, cross[L * 3] = {0};
    CHECK(lens_resample_angles(&angle, &agnostic, &sigma, &fault, zero, cross, fit, 1, L, 1, 0.0, 1,
                               work) == LENS_OK);
    CHECK(sigma == 0.0 && fabs(angle - 1.5707963267948966) < 1e-15);
    CHECK_NEAR(agnostic, 1.5707963267948966, 1e-15);
    CHECK(lens_resample_angles(NULL, NULL, &sigma, &fault, zero, NULL, NULL, 1, L, 0, 0.0, 1,
                               work) == LENS_OK);
    CHECK(lens_resample_angles(&angle, &agnostic, &sigma, &fault, zero, cross, fit, 1, L, 2, 0.0, 1,
                               work) == LENS_ESHAPE);
    CHECK(lens_resample_angles(NULL, NULL, &sigma, &fault, zero, NULL, NULL, 1, 1, 0, 0.0, 1,
                               work) == LENS_ESHAPE);
    CHECK(lens_resample_angles_worksize(1, (size_t)1 << 40, 1, 1) == SIZE_MAX);
    free(work);
}

int main(void) {
    lens_isa_init();
    lens_blas_init();
    RUN(test_gram);
    RUN(test_gram_faults);
    RUN(test_refits);
    RUN(test_labels);
    RUN(test_angles);
    return REPORT();
}
