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

/* Marks, low bits and counts of the bucket that ends at high, of which keys from low are open. */
static void check_select(const void *a, const void *b, const double *x, uint32_t low, uint32_t high,
                         lens_dtype dtype) {
    size_t *work = room(lens_weights_select_worksize(N), sizeof *work);
    uint8_t *marks = room(N, 1);
    uint16_t *lows = room(N, sizeof *lows);
    uint64_t counts[3], above = 0, inside = 0, found = 0;
    uint32_t floor = ((high - 1) >> LENS_BUCKET_BITS) << LENS_BUCKET_BITS;
    CHECK(lens_weights_select(marks, lows, counts, a, b, N, low, high, dtype, 3, work) == LENS_OK);
    for (size_t i = 0; i < N; i++) {
        uint32_t key = key_of(x[i]);
        CHECK(marks[i] == (key >= high ? 1 : key >= low ? 2 : 0));
        above += key >= high;
        inside += key > 0 && key >= floor && key < high;
        if (key >= low && key < high)
            CHECK(lows[found++] == (key & ((1u << LENS_BUCKET_BITS) - 1)));
    }
    CHECK(counts[0] == above && counts[1] == inside && counts[2] == found);
    free(work), free(marks), free(lows);
}

static void test_histogram_and_select(void) {
    for (int t = 0; t < LENS_N_DTYPES; t++) {
        lens_dtype dtype = (lens_dtype)t;
        void *a = random_block(N, dtype), *b = random_block(N, dtype);
        memcpy(b, a, 40 * lens_dtype_size(dtype)); /* zero deltas */
        double *x = deltas(a, b, N, dtype);
        uint64_t *counts = room(LENS_BUCKETS, sizeof *counts), *want = room(LENS_BUCKETS, 8);
        uint64_t *work = room(lens_weights_histogram_worksize(N, 3), sizeof *work);
        lens_fault fault;
        for (size_t i = 0; i < N; i++)
            want[key_of(x[i]) >> LENS_BUCKET_BITS] += x[i] != 0.0;
        CHECK(lens_weights_histogram(counts, &fault, a, b, N, dtype, 3, work) == LENS_OK);
        CHECK(memcmp(counts, want, LENS_BUCKETS * sizeof *counts) == 0);
        check_select(a, b, x, key_of(0.5), key_of(0.5) + (1u << LENS_BUCKET_BITS), dtype);
        check_select(a, b, x, key_of(0.25) + 9, key_of(0.25) + (1u << LENS_BUCKET_BITS), dtype);
        check_select(a, b, x, 1, 1u << LENS_BUCKET_BITS, dtype);
        check_select(a, b, x, 1u << 31, 1u << 31, dtype);
        free(a), free(b), free(x), free(counts), free(want), free(work);
    }
}

static void test_settle(void) {
    uint8_t marks[] = {2, 0, 1, 2, 2, 1, 0, 2}, before[sizeof marks];
    const uint8_t keep[] = {1, 0, 7, 0}, want[] = {1, 0, 1, 0, 1, 1, 0, 0};
    memcpy(before, marks, sizeof marks);
    CHECK(lens_weights_settle(marks, keep, sizeof marks, 3) == LENS_ESHAPE);
    CHECK(memcmp(marks, before, sizeof marks) == 0);
    CHECK(lens_weights_settle(marks, keep, sizeof marks, 4) == LENS_OK);
    CHECK(memcmp(marks, want, sizeof marks) == 0);
    CHECK(lens_weights_settle(marks, NULL, sizeof marks, 0) == LENS_OK);
    CHECK(lens_weights_settle(NULL, NULL, 0, 0) == LENS_OK);
}

static void test_means(void) {
    const size_t shapes[][2] = {{1, 1}, {3, 15}, {17, 16}, {5, 513}, {33, 2049}, {70, 1000}};
    for (int t = 0; t < LENS_N_DTYPES; t++)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
            size_t n = shapes[s][0], d = shapes[s][1];
            lens_dtype dtype = (lens_dtype)t;
            void *a = random_block(n * d, dtype), *b = random_block(n * d, dtype);
            double *x = deltas(a, b, n * d, dtype), *rows = room(n, 8), *columns = room(d, 8);
            double *first = room(n + d, 8);
            lens_fault fault;
            EACH_ISA({
                for (int n_threads = 1; n_threads < 4; n_threads++) {
                    CHECK(lens_weights_row_means(rows, &fault, a, b, n, d, dtype, n_threads) ==
                          LENS_OK);
                    CHECK(lens_weights_column_means(columns, &fault, a, b, n, d, dtype,
                                                    n_threads) == LENS_OK);
                    if (isa_ == 0 && n_threads == 1) {
                        memcpy(first, rows, n * 8);
                        memcpy(first + n, columns, d * 8);
                    }
                    CHECK(memcmp(first, rows, n * 8) == 0);
                    CHECK(memcmp(first + n, columns, d * 8) == 0);
                }
            })
            for (size_t i = 0; i < n; i++) {
                for (size_t k = 0; k < d; k++)
                    rows[i] -= fabs(x[i * d + k]) / (double)d;
                CHECK_NEAR(rows[i], 0, 1e-13);
            }
            for (size_t k = 0; k < d; k++) {
                for (size_t i = 0; i < n; i++)
                    columns[k] -= fabs(x[i * d + k]) / (double)n;
                CHECK_NEAR(columns[k], 0, 1e-13);
            }
            free(a), free(b), free(x), free(rows), free(columns), free(first);
        }
}

static void test_mean_faults(void) {
    float x[6] = {0, 1, -2, 3, NAN, 5}, big[2] = {3e38f, 1.0f}, minus[2] = {-3e38f, 1.0f};
    double out[3];
    lens_fault fault;
    CHECK(lens_weights_row_means(out, &fault, x, NULL, 2, 3, LENS_F32, 2) == LENS_ENONFINITE);
    CHECK(fault.row == 1 && fault.item == 1);
    CHECK(lens_weights_column_means(out, &fault, x, NULL, 2, 3, LENS_F32, 2) == LENS_ENONFINITE);
    CHECK(fault.row == 1 && fault.item == 1);
    CHECK(lens_weights_row_means(out, &fault, x, NULL, 1, 3, LENS_F32, 1) == LENS_OK);
    CHECK(out[0] == 1.0);
    CHECK(lens_weights_row_means(out, &fault, big, minus, 1, 2, LENS_F32, 1) == LENS_ENONFINITE);
    CHECK(fault.row == LENS_NOWHERE && fault.item == LENS_NOWHERE); /* the difference overflows */
    CHECK(lens_weights_row_means(out, &fault, x, NULL, 0, 3, LENS_F32, 1) == LENS_OK);
    CHECK(lens_weights_column_means(out, &fault, x, NULL, 3, 0, LENS_F32, 1) == LENS_OK);
    CHECK(lens_weights_row_means(out, &fault, x, NULL, 3, 0, LENS_F32, 1) == LENS_ESHAPE);
    CHECK(lens_weights_column_means(out, &fault, x, NULL, 0, 3, LENS_F32, 1) == LENS_ESHAPE);
    CHECK(lens_weights_row_means(out, &fault, x, NULL, 2, 3, LENS_N_DTYPES, 1) == LENS_EDTYPE);
    CHECK(lens_weights_column_means(out, &fault, x, NULL, 2, 3, LENS_N_DTYPES, 1) == LENS_EDTYPE);
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

/* Doubles that are subnormal as float take another way than the others of their piece. */
static void test_combine_rounds_tiny_numbers(void) {
    const double x[6] = {0x1.02p-127, 0x1.06p-127, 0x1.02p-127 + 0x1p-170,
                         0x1p-134,    -0x1p-140,   0x1.010001p0};
    const uint16_t want[6] = {0x0040, 0x0042, 0x0041, 0, 0x8000, 0x3f81};
    const void *in[1] = {x};
    lens_dtype dtype = LENS_F64;
    double one = 1.0;
    uint16_t out[6];
    EACH_ISA({
        CHECK(lens_weights_combine(out, in, &dtype, &one, 1, 6, LENS_BF16, 1) == LENS_OK);
        CHECK(memcmp(out, want, sizeof want) == 0);
        CHECK(lens_weights_combine(out, in, &dtype, &one, 1, 5, LENS_F16, 1) == LENS_OK);
        CHECK(out[0] == 0 && out[4] == 0x8000);
    })
}

static void test_faults(void) {
    float x[70000] = {0}, out[4] = {0};
    double sums[3], work[6], weight = NAN, weights[LENS_MAX_SOURCES + 1] = {0};
    uint64_t *counts = room(LENS_BUCKETS, 8), *room_ = room(2 * LENS_BUCKETS, 8), nan, inf;
    uint8_t mask[4];
    uint16_t lows[4];
    size_t found[1];
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
    const uint32_t bad[][2] = {{0, 1}, {2, 1}, {1, 70000}, {32767, 32769}, {~0u - 1, ~0u}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK(lens_weights_select(mask, lows, counts, x, x, 4, bad[i][0], bad[i][1], LENS_F32, 1,
                                  found) == LENS_EDOMAIN);
    CHECK(lens_weights_combine(out, in, dtypes, &weight, 1, 4, LENS_F32, 1) == LENS_EDOMAIN);
    CHECK(lens_weights_combine(out, in, dtypes, weights, LENS_MAX_SOURCES + 1, 4, LENS_F32, 1) ==
          LENS_ESHAPE);
    dtypes[0] = LENS_N_DTYPES;
    CHECK(lens_weights_combine(out, in, dtypes, weights, 1, 4, LENS_F32, 1) == LENS_EDTYPE);
    CHECK(lens_weights_combine(out, in, dtypes, weights, 0, 4, LENS_N_DTYPES, 1) == LENS_EDTYPE);
    CHECK(lens_weights_delta(out, x, x, 4, LENS_N_DTYPES, 1) == LENS_EDTYPE);
    CHECK(lens_weights_dots(sums, &fault, x, x, x, x, 4, LENS_N_DTYPES, 1, work) == LENS_EDTYPE);
    CHECK(lens_weights_histogram(counts, &fault, x, x, 4, LENS_N_DTYPES, 1, room_) == LENS_EDTYPE);
    CHECK(lens_weights_select(mask, lows, counts, x, x, 4, 1, 2, LENS_N_DTYPES, 1, found) ==
          LENS_EDTYPE);
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
    CHECK(lens_weights_select_worksize(0) == 0 && lens_weights_select_worksize(65537) == 2);
    CHECK(lens_weights_histogram_worksize(0, 8) == LENS_BUCKETS);
    CHECK(lens_weights_histogram_worksize(N, 8) == 3 * LENS_BUCKETS);
}

int main(void) {
    lens_isa_init();
    RUN(test_delta_and_dots);
    RUN(test_histogram_and_select);
    RUN(test_settle);
    RUN(test_means);
    RUN(test_mean_faults);
    RUN(test_combine);
    RUN(test_combine_rounds_once);
    RUN(test_combine_rounds_tiny_numbers);
    RUN(test_faults);
    RUN(test_same_bits_for_any_isa_and_thread_count);
    RUN(test_worksizes);
    return REPORT();
}
