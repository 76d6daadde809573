/* SPDX-License-Identifier: MIT
 * test_moments.c: pooling and streaming moments against their formulas. */
#include "minunit.h"

static double pooled(const double *X, const uint8_t *mask, size_t t, size_t d, size_t col,
                     int mode) {
    double sum = 0, total = 0, rank = 0;
    for (size_t k = 0; k < t; k++)
        if (mask[k]) {
            double w = mode == LENS_POOL_WEIGHTED ? ++rank : 1.0;
            sum = mode == LENS_POOL_LAST ? X[k * d + col] : sum + w * X[k * d + col];
            total = mode == LENS_POOL_LAST ? 1.0 : total + w;
        }
    return sum / total;
}

static void test_pool(void) {
    enum { n = 5, t = 6 };
    const size_t widths[] = {1, 15, 16, 17, 513};
    uint8_t mask[n * t];
    for (size_t i = 0; i < n * t; i++)
        mask[i] = uniform() > 0 || i % t == 2;
    for (int dtype = 0; dtype < LENS_N_DTYPES; dtype++)
        for (size_t w = 0; w < 5; w++) {
            size_t d = widths[w];
            void *X = random_block(n * t * d, (lens_dtype)dtype);
            double *v = values(X, n * t * d, (lens_dtype)dtype), *out = room(n * d, sizeof *out);
            for (int mode = 0; mode < LENS_N_POOLINGS; mode++) {
                lens_fault fault;
                CHECK(lens_pool(out, &fault, X, mask, n, t, d, (lens_dtype)dtype,
                                (lens_pooling)mode, 3) == LENS_OK);
                for (size_t i = 0; i < n * d; i++)
                    CHECK_NEAR(out[i],
                               pooled(v + i / d * t * d, mask + i / d * t, t, d, i % d, mode),
                               1e-14);
            }
            free(X), free(v), free(out);
        }
}

static void test_pool_faults(void) {
    float X[3 * 2 * 2] = {0};
    uint8_t mask[6] = {1, 1, 1, 1, 1, 1};
    double out[6];
    lens_fault fault;
    X[2 * 4 + 1] = NAN; /* row 2, token 0 */
    CHECK(lens_pool(out, &fault, X, mask, 3, 2, 2, LENS_F32, LENS_POOL_MEAN, 1) == LENS_ENONFINITE);
    CHECK(fault.row == 2 && fault.item == 0);
    CHECK(lens_pool(out, &fault, X, mask, 3, 2, 2, LENS_F32, LENS_POOL_LAST, 1) == LENS_OK);
    mask[4] = 0;
    CHECK(lens_pool(out, &fault, X, mask, 3, 2, 2, LENS_F32, LENS_POOL_MEAN, 1) == LENS_OK);
    mask[2] = mask[3] = 0;
    CHECK(lens_pool(out, &fault, X, mask, 3, 2, 2, LENS_F32, LENS_POOL_MEAN, 2) == LENS_EMASKED);
    CHECK(fault.row == 1 && fault.item == LENS_NOWHERE);
    CHECK(lens_pool(out, &fault, X, mask, 3, 2, 2, LENS_N_DTYPES, LENS_POOL_MEAN, 1) ==
          LENS_EDTYPE);
    CHECK(lens_pool(out, &fault, X, mask, 3, 2, 2, LENS_F32, LENS_N_POOLINGS, 1) == LENS_EDOMAIN);
    CHECK(lens_pool(out, &fault, X, mask, 0, 2, 2, LENS_F32, LENS_POOL_MEAN, 1) == LENS_OK);
}

static void test_moments(void) {
    enum { n = 300, d = 530 };
    double mean[d], m2[d], mean2[d], m22[d], half[d], half2[d];
    for (int dtype = 0; dtype < LENS_N_DTYPES; dtype++) {
        lens_dtype k = (lens_dtype)dtype;
        unsigned char *X = random_block(n * d, k);
        double *v = values(X, n * d, k);
        lens_fault f;
        CHECK(lens_moments_update(mean, m2, &f, NULL, NULL, X, n, d, 0, k, 1) == LENS_OK);
        CHECK(lens_moments_update(half, half2, &f, NULL, NULL, X, 77, d, 0, k, 2) == LENS_OK);
        CHECK(lens_moments_update(mean2, m22, &f, half, half2, X + 77 * d * lens_dtype_size(k),
                                  n - 77, d, 77, k, 3) == LENS_OK);
        CHECK(memcmp(mean, mean2, sizeof mean) == 0 && memcmp(m2, m22, sizeof m2) == 0);
        for (size_t c = 0; c < d; c++) {
            double sum = 0, square = 0;
            for (size_t i = 0; i < n; i++)
                sum += v[i * d + c];
            for (size_t i = 0; i < n; i++)
                square += (v[i * d + c] - sum / n) * (v[i * d + c] - sum / n);
            CHECK_NEAR(mean[c], sum / n, 1e-14);
            CHECK_NEAR(m2[c], square, 1e-11);
        }
        CHECK(lens_moments_update(mean2, m22, &f, NULL, NULL, X + 77 * d * lens_dtype_size(k),
                                  n - 77, d, 0, k, 1) == LENS_OK);
        CHECK(lens_moments_merge(mean2, m22, half, half2, mean2, m22, d, 77, n - 77) == LENS_OK);
        for (size_t c = 0; c < d; c++)
            CHECK(fabs(mean2[c] - mean[c]) < 1e-14 && fabs(m22[c] - m2[c]) < 1e-11);
        free(X), free(v);
    }
}

static void test_moments_faults(void) {
    double mean[3], m2[3], X[6] = {0, 1, 2, 3, INFINITY, 5};
    lens_fault fault;
    CHECK(lens_moments_update(mean, m2, &fault, NULL, NULL, X, 2, 3, 0, LENS_F64, 1) ==
          LENS_ENONFINITE);
    CHECK(fault.row == 1 && fault.item == 1);
    CHECK(lens_moments_update(mean, m2, &fault, NULL, NULL, X, 1, 3, 5, LENS_F64, 1) ==
          LENS_ESHAPE);
    CHECK(lens_moments_update(mean, m2, &fault, NULL, NULL, X, 1, 3, 0, LENS_N_DTYPES, 1) ==
          LENS_EDTYPE);
    CHECK(lens_moments_merge(mean, m2, mean, m2, mean, m2, 3, 0, 1) == LENS_EDOMAIN);
}

int main(void) {
    lens_isa_init();
    RUN(test_pool);
    RUN(test_pool_faults);
    RUN(test_moments);
    RUN(test_moments_faults);
    return REPORT();
}
