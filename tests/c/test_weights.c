/* SPDX-License-Identifier: MIT
 * test_weights.c: differences of weights against their formulas, element by element. */
#include "minunit.h"

enum { N = 2 * 65536 + 17, SMALL = 530 };

static uint32_t key_of(double delta) {
    float f = (float)delta;
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u & 0x7fffffffu;
}

/* a - b as the kernels see it: float32, or double for f64 */
static double *deltas(const void *a, const void *b, size_t n, lens_dtype dtype) {
    double *x = values(a, n, dtype), *y = values(b, n, dtype);
    for (size_t i = 0; i < n; i++)
        x[i] = dtype == LENS_F64 ? x[i] - y[i] : (double)((float)x[i] - (float)y[i]);
    free(y);
    return x;
}

static void test_delta_and_dots(void) {
    for (int t = 0; t < LENS_N_DTYPES; t++) {
        lens_dtype dtype = (lens_dtype)t;
        void *in[4];
        for (int k = 0; k < 4; k++)
            in[k] = random_block(N, dtype);
        double *x = deltas(in[0], in[1], N, dtype), *y = deltas(in[2], in[3], N, dtype);
        double *work = room(lens_weights_dots_worksize(N), sizeof *work), sums[3], want[3] = {0};
        float *out = room(N, sizeof *out);
        lens_fault fault;
        CHECK(lens_weights_delta(out, in[0], in[1], N, dtype, 3) == LENS_OK);
        for (size_t i = 0; i < N; i++) {
            CHECK(out[i] == (float)x[i]);
            want[0] += x[i] * x[i], want[1] += y[i] * y[i], want[2] += x[i] * y[i];
        }
        CHECK(lens_weights_dots(sums, &fault, in[0], in[1], in[2], in[3], N, dtype, 2, work) ==
              LENS_OK);
        for (int k = 0; k < 3; k++)
            CHECK_NEAR(sums[k], want[k], 1e-10 * want[0]);
        CHECK(lens_weights_dots(sums, &fault, in[0], NULL, NULL, NULL, 0, dtype, 2, work) ==
              LENS_OK);
        CHECK(sums[0] == 0.0 && sums[1] == 0.0 && sums[2] == 0.0);
        for (int k = 0; k < 4; k++)
            free(in[k]);
        free(x), free(y), free(work), free(out);
    }
}

static void test_histogram_and_select(void) {
    for (int t = 0; t < LENS_N_DTYPES; t++) {
        lens_dtype dtype = (lens_dtype)t;
        void *a = random_block(N, dtype), *b = random_block(N, dtype);
        memcpy(b, a, 40 * lens_dtype_size(dtype)); /* zero deltas */
        double *x = deltas(a, b, N, dtype);
        uint64_t *counts = room(LENS_BUCKETS, sizeof *counts), *want = room(LENS_BUCKETS, 8);
        uint64_t *work = room(lens_weights_histogram_worksize(N, 3), sizeof *work), chosen = 0;
        uint8_t *mask = room(N, 1);
        uint32_t high = key_of(0.5), low = key_of(0.25);
        uint64_t above = 0;
        lens_fault fault;
        for (size_t i = 0; i < N; i++)
            want[key_of(x[i]) >> LENS_BUCKET_BITS] += x[i] != 0.0;
        CHECK(lens_weights_histogram(counts, &fault, a, b, N, dtype, 3, work) == LENS_OK);
        CHECK(memcmp(counts, want, LENS_BUCKETS * sizeof *counts) == 0);
        CHECK(lens_weights_select(mask, &chosen, a, b, N, low, high, dtype, 3) == LENS_OK);
        for (size_t i = 0; i < N; i++) {
            uint32_t key = key_of(x[i]);
            CHECK(mask[i] == (key >= high ? 1 : key >= low ? 2 : 0));
            above += key >= high;
        }
        CHECK(chosen == above);
        free(a), free(b), free(x), free(counts), free(want), free(work), free(mask);
    }
}

static void test_combine(void) {
    const double weights[4] = {1.0, -0.75, 0.0, 3.1};
    lens_dtype dtypes[4] = {LENS_F32, LENS_BF16, LENS_F64, LENS_F16};
    const void *in[4];
    void *owned[4];
    double *x[4];
    for (int k = 0; k < 4; k++) {
        in[k] = owned[k] = random_block(SMALL, dtypes[k]);
        x[k] = values(in[k], SMALL, dtypes[k]);
    }
    in[2] = NULL; /* weight 0: not read */
    double *out = room(SMALL, sizeof *out);
    CHECK(lens_weights_combine(out, in, dtypes, weights, 4, SMALL, LENS_F64, 2) == LENS_OK);
    for (size_t i = 0; i < SMALL; i++)
        CHECK(out[i] == (weights[0] * x[0][i] + weights[1] * x[1][i]) + weights[3] * x[3][i]);
    CHECK(lens_weights_combine(out, in, dtypes, weights, 1, SMALL, LENS_F32, 2) == LENS_OK);
    CHECK(memcmp(out, in[0], SMALL * sizeof(float)) == 0);
    CHECK(lens_weights_combine(out, in, dtypes, weights, 0, SMALL, LENS_F64, 2) == LENS_OK);
    CHECK(out[0] == 0.0 && !signbit(out[0]));
    for (int k = 0; k < 4; k++)
        free(owned[k]), free(x[k]);
    free(out);
}

/* 1 + 2^-8 is a tie in bf16 and goes to even; a little more in double must go up. */
static void test_combine_rounds_once(void) {
    const double x[2] = {1.0 + 0x1p-8, 0x1p-40}, y[2] = {1.0 + 0x1p-8, 1.0};
    const void *in[1] = {x}, *tie[1] = {y};
    lens_dtype dtype = LENS_F64;
    double one = 1.0, both[2] = {1.0, 1.0};
    const void *sum[2] = {&x[0], &x[1]};
    lens_dtype dtypes[2] = {LENS_F64, LENS_F64};
    uint16_t out[2];
    CHECK(lens_weights_combine(out, tie, &dtype, &one, 1, 2, LENS_BF16, 1) == LENS_OK);
    CHECK(out[0] == 0x3f80 && out[1] == 0x3f80);
    CHECK(lens_weights_combine(out, sum, dtypes, both, 2, 1, LENS_BF16, 1) == LENS_OK);
    CHECK(out[0] == 0x3f81);
    CHECK(lens_weights_combine(out, in, &dtype, &one, 1, 2, LENS_F16, 1) == LENS_OK);
    CHECK(out[0] == 0x3c04);
}

static void test_faults(void) {
    float x[70000] = {0}, out[4];
    double sums[3], work[6], weight = NAN, weights[LENS_MAX_SOURCES + 1] = {0};
    uint64_t *counts = room(LENS_BUCKETS, 8), *room_ = room(2 * LENS_BUCKETS, 8), nan, inf;
    uint8_t mask[4];
    const void *in[LENS_MAX_SOURCES + 1] = {x};
    lens_dtype dtypes[LENS_MAX_SOURCES + 1] = {LENS_F32};
    lens_fault fault;
    x[66000] = NAN, x[69999] = -INFINITY;
    CHECK(lens_weights_dots(sums, &fault, out, NULL, x, NULL, 0, LENS_F32, 1, work) == LENS_OK);
    CHECK(lens_weights_dots(sums, &fault, x, x, NULL, NULL, 70000, LENS_F32, 2, work) ==
          LENS_ENONFINITE);
    CHECK(fault.row == 66000 && fault.item == 0);
    CHECK(lens_weights_histogram(counts, &fault, x, NULL, 70000, LENS_F32, 2, room_) ==
          LENS_ENONFINITE);
    CHECK(fault.row == 66000);
    CHECK(lens_weights_nonfinite(&nan, &inf, x, 70000, LENS_F32, 2) == LENS_OK);
    CHECK(nan == 1 && inf == 1);
    CHECK(lens_weights_select(mask, &nan, x, x, 4, 0, 1, LENS_F32, 1) == LENS_EDOMAIN);
    CHECK(lens_weights_select(mask, &nan, x, x, 4, 2, 1, LENS_F32, 1) == LENS_EDOMAIN);
    CHECK(lens_weights_combine(out, in, dtypes, &weight, 1, 4, LENS_F32, 1) == LENS_EDOMAIN);
    CHECK(lens_weights_combine(out, in, dtypes, weights, LENS_MAX_SOURCES + 1, 4, LENS_F32, 1) ==
          LENS_ESHAPE);
    dtypes[0] = LENS_N_DTYPES;
    CHECK(lens_weights_combine(out, in, dtypes, weights, 1, 4, LENS_F32, 1) == LENS_EDTYPE);
    CHECK(lens_weights_combine(out, in, dtypes, weights, 0, 4, LENS_N_DTYPES, 1) == LENS_EDTYPE);
    CHECK(lens_weights_delta(out, x, x, 4, LENS_N_DTYPES, 1) == LENS_EDTYPE);
    CHECK(lens_weights_dots(sums, &fault, x, x, x, x, 4, LENS_N_DTYPES, 1, work) == LENS_EDTYPE);
    CHECK(lens_weights_histogram(counts, &fault, x, x, 4, LENS_N_DTYPES, 1, room_) == LENS_EDTYPE);
    CHECK(lens_weights_select(mask, &nan, x, x, 4, 1, 2, LENS_N_DTYPES, 1) == LENS_EDTYPE);
    CHECK(lens_weights_nonfinite(&nan, &inf, x, 4, LENS_N_DTYPES, 1) == LENS_EDTYPE);
    free(counts), free(room_);
}

static void test_same_bits_for_any_isa_and_thread_count(void) {
    for (int t = 0; t < LENS_N_DTYPES; t++) {
        lens_dtype dtype = (lens_dtype)t;
        void *a = random_block(N, dtype), *b = random_block(N, dtype);
        double *work = room(lens_weights_dots_worksize(N), sizeof *work), sums[3], first[3];
        const void *in[2] = {a, b};
        const lens_dtype dtypes[2] = {dtype, dtype};
        const double weights[2] = {0.3, -1.7};
        unsigned char *out = room(N, 8), *first_out = room(N, 8);
        lens_fault fault;
        lens_weights_dots(first, &fault, a, b, b, NULL, N, dtype, 1, work);
        lens_weights_combine(first_out, in, dtypes, weights, 2, N, LENS_BF16, 1);
        EACH_ISA({
            for (int n_threads = 1; n_threads < 5; n_threads++) {
                lens_weights_dots(sums, &fault, a, b, b, NULL, N, dtype, n_threads, work);
                CHECK(memcmp(sums, first, sizeof sums) == 0);
                lens_weights_combine(out, in, dtypes, weights, 2, N, LENS_BF16, n_threads);
                CHECK(memcmp(out, first_out, N * 2) == 0);
            }
        })
        free(a), free(b), free(work), free(out), free(first_out);
    }
}

static void test_worksizes(void) {
    CHECK(lens_weights_dots_worksize(0) == 0);
    CHECK(lens_weights_dots_worksize(65537) == 6);
    CHECK(lens_weights_histogram_worksize(0, 8) == LENS_BUCKETS);
    CHECK(lens_weights_histogram_worksize(N, 8) == 3 * LENS_BUCKETS);
}

int main(void) {
    lens_isa_init();
    RUN(test_delta_and_dots);
    RUN(test_histogram_and_select);
    RUN(test_combine);
    RUN(test_combine_rounds_once);
    RUN(test_faults);
    RUN(test_same_bits_for_any_isa_and_thread_count);
    RUN(test_worksizes);
    return REPORT();
}
