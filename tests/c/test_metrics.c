/* SPDX-License-Identifier: MIT
 * test_metrics.c: unit rows, strict maxima and nearest means against plain loops. */
#include "minunit.h"

enum { N = 131, D = 600, L = 5 };

static size_t acc_size(lens_dtype dtype) {
    return dtype == LENS_F64 ? sizeof(double) : sizeof(float);
}

static double at(const void *x, size_t i, lens_dtype dtype) {
    return dtype == LENS_F64 ? ((const double *)x)[i] : (double)((const float *)x)[i];
}

static void test_unit(void) {
    for (int dtype = 0; dtype < LENS_N_DTYPES; dtype++) {
        lens_dtype k = (lens_dtype)dtype;
        void *X = random_block(N * D, k), *out = room(N * D, 8), *first = room(N * D, 8);
        double *v = values(X, N * D, k);
        lens_fault f;
        CHECK(lens_metrics_unit(first, &f, X, N, D, k, 1) == LENS_OK);
        for (size_t i = 0; i < N; i++) {
            double sum = 0;
            for (size_t c = 0; c < D; c++)
                sum += v[i * D + c] * v[i * D + c];
            for (size_t c = 0; c < D; c += 7)
                CHECK_NEAR(at(first, i * D + c, k), v[i * D + c] / sqrt(sum),
                           k == LENS_F64 ? 1e-15 : 1e-6);
        }
        EACH_ISA({
            for (int threads = 1; threads < 4; threads++) {
                CHECK(lens_metrics_unit(out, &f, X, N, D, k, threads) == LENS_OK);
                CHECK(memcmp(out, first, N * D * acc_size(k)) == 0);
            }
        })
        free(X), free(out), free(first), free(v);
    }
}

/* The strict maximum of n values `step` apart, or n. */
static uint64_t strict_max(const double *s, size_t step) {
    uint64_t best = 0, ties = 0;
    for (size_t k = 1; k < N; k++)
        best = s[k * step] > s[best * step] ? k : best;
    for (size_t k = 0; k < N; k++)
        ties += s[k * step] == s[best * step];
    return ties > 1 ? N : best;
}

static double cosine(const double *x, const double *y) {
    double xx = 0, yy = 0, xy = 0;
    for (size_t c = 0; c < D; c++) {
        xx += x[c] * x[c];
        yy += y[c] * y[c];
        xy += x[c] * y[c];
    }
    return xy / sqrt(xx * yy);
}

/* All rows alike but for their length: more ties than are noted, and every one is seen. */
static void test_ties(void) {
    float *A = random_block(D, LENS_F32), *X = room(N * D, sizeof *X);
    double *work = room(lens_metrics_match_worksize(N, D, LENS_F32, 3), sizeof *work);
    uint64_t rows[N], columns[N];
    lens_fault f;
    for (size_t i = 0; i < N * D; i++)
        X[i] = A[i % D] * (float)(1 << i / D % 5);
    for (size_t c = 0; c < D; c++)
        X[7 * D + c] = A[c] * (c < 300 ? 1.0F : 1.5F); /* the only one of its direction */
    for (int threads = 1; threads < 4; threads++) {
        CHECK(lens_metrics_match(rows, columns, &f, X, X, N, D, LENS_F32, threads, work) ==
              LENS_OK);
        for (size_t i = 0; i < N; i++)
            CHECK(rows[i] == (i == 7 ? 7 : N) && columns[i] == rows[i]);
    }
    free(A), free(X), free(work);
}

static void test_match(void) {
    for (int dtype = 0; dtype < LENS_N_DTYPES; dtype++) {
        lens_dtype k = (lens_dtype)dtype;
        unsigned char *A = random_block(N * D, k), *B = random_block(N * D, k);
        size_t bytes = D * lens_dtype_size(k), count = lens_metrics_match_worksize(N, D, k, 3);
        lens_fault f;
        memcpy(B + 130 * bytes, B + 3 * bytes, bytes); /* twins in two blocks and two chunks */
        memcpy(A + 129 * bytes, A + 5 * bytes, bytes);
        double *a = values(A, N * D, k), *b = values(B, N * D, k), *s = room(N * N, sizeof *s);
        double *work = room(count, sizeof *work);
        uint64_t rows[N], columns[N], tied = 0;
        for (size_t i = 0; i < N; i++)
            for (size_t j = 0; j < N; j++)
                s[i * N + j] = cosine(a + i * D, b + j * D);
        EACH_ISA({
            for (int threads = 1; threads < 4; threads++) {
                CHECK(lens_metrics_match(rows, columns, &f, A, B, N, D, k, threads, work) ==
                      LENS_OK);
                for (size_t i = 0; i < N; i++) {
                    CHECK(rows[i] == strict_max(s + i * N, 1));
                    CHECK(columns[i] == strict_max(s + i, N));
                    tied += rows[i] == N || columns[i] == N;
                }
            }
        })
        CHECK(tied > 0);
        free(A), free(B), free(a), free(b), free(s), free(work);
    }
}

/* Whether mean l is nearest to x, to rounding. */
static int is_nearest(const double *x, const void *means, size_t l, lens_dtype dtype) {
    double far[L] = {0};
    int nearest = 1;
    for (size_t i = 0; i < L * D; i++)
        far[i / D] += pow(x[i % D] - at(means, i, dtype), 2);
    for (size_t k = 0; k < L; k++)
        nearest &= far[l] <= far[k] * (1 + 1e-5);
    return nearest;
}

static void test_nearest(void) {
    for (int dtype = 0; dtype < LENS_N_DTYPES; dtype++) {
        lens_dtype k = (lens_dtype)dtype;
        unsigned char *X = random_block(N * D, k);
        unsigned char *means = random_block(L * D, k == LENS_F64 ? LENS_F64 : LENS_F32);
        double *v = values(X, N * D, k);
        uint64_t label[N];
        lens_fault f;
        memcpy(means + 4 * D * acc_size(k), means, D * acc_size(k)); /* 4 ties with 0 */
        EACH_ISA({
            for (int threads = 1; threads < 4; threads++) {
                CHECK(lens_metrics_nearest(label, &f, X, means, N, L, D, k, threads) == LENS_OK);
                for (size_t i = 0; i < N; i++)
                    CHECK(label[i] < 4 && is_nearest(v + i * D, means, label[i], k));
            }
        })
        free(X), free(means), free(v);
    }
}

static void test_faults(void) {
    float X[3 * 4] = {1, 2, 3, 4, 0, 0, -0.0f, 0, 1, 1, 1, 1}, out[12], means[8] = {0};
    uint64_t label[3];
    lens_fault f;
    CHECK(lens_metrics_unit(out, &f, X, 3, 4, LENS_F32, 1) == LENS_EDOMAIN && f.row == 1);
    X[2] = INFINITY;
    CHECK(lens_metrics_unit(out, &f, X, 3, 4, LENS_F32, 2) == LENS_ENONFINITE && f.row == 0);
    CHECK(lens_metrics_unit(out, &f, X, 3, 4, LENS_N_DTYPES, 1) == LENS_EDTYPE);
    CHECK(lens_metrics_unit(out, &f, X, 0, 4, LENS_F32, 1) == LENS_OK);
    means[5] = NAN;
    CHECK(lens_metrics_nearest(label, &f, X + 4, means, 2, 2, 4, LENS_F32, 1) == LENS_ENONFINITE);
    CHECK(f.row == 0 && f.item == 1);
    CHECK(lens_metrics_nearest(label, &f, X, means, 3, 0, 4, LENS_F32, 1) == LENS_ESHAPE);
    CHECK(lens_metrics_nearest(label, &f, X, means, 3, 2, 4, LENS_N_DTYPES, 1) == LENS_EDTYPE);
}

static void test_match_faults(void) {
    float X[3 * 4] = {1, 2, 3, 4, 0, 0, -0.0f, 0, 1, 1, 1, 1}, Y[12];
    uint64_t label[3], other[3];
    double *work = room(lens_metrics_match_worksize(3, 4, LENS_F32, 2), sizeof *work);
    lens_fault f;
    for (size_t i = 0; i < 12; i++)
        Y[i] = (float)i + 1;
    CHECK(lens_metrics_match(label, other, &f, X, Y, 3, 4, LENS_N_DTYPES, 1, work) == LENS_EDTYPE);
    CHECK(lens_metrics_match(label, other, &f, X, Y, 0, 4, LENS_F32, 1, work) == LENS_OK);
    CHECK(lens_metrics_match(label, other, &f, X, Y, 3, 4, LENS_F32, 1, work) == LENS_EDOMAIN);
    CHECK(f.row == 1 && f.item == 0);
    CHECK(lens_metrics_match(label, other, &f, Y, X, 3, 4, LENS_F32, 2, work) == LENS_EDOMAIN);
    CHECK(f.row == 1 && f.item == 1);
    X[5] = NAN;
    CHECK(lens_metrics_match(label, other, &f, Y, X, 3, 4, LENS_F32, 2, work) == LENS_ENONFINITE);
    CHECK(f.row == 1 && f.item == 1);
    CHECK(lens_metrics_match(label, other, &f, X + 8, X, 1, 4, LENS_F32, 1, work) == LENS_OK);
    CHECK(label[0] == 0 && other[0] == 0);
    CHECK(lens_metrics_match_worksize(0, 4, LENS_F32, 2) < 100);
    CHECK(lens_metrics_match_worksize(3, SIZE_MAX / 2, LENS_F32, 2) == SIZE_MAX);
    CHECK(lens_metrics_match_worksize(SIZE_MAX / 2, 4, LENS_F32, 2) == SIZE_MAX);
    free(work);
}

int main(void) {
    lens_isa_init();
    RUN(test_unit);
    RUN(test_match);
    RUN(test_ties);
    RUN(test_match_faults);
    RUN(test_nearest);
    RUN(test_faults);
    return REPORT();
}
