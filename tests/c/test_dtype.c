/* SPDX-License-Identifier: MIT
 * test_dtype.c: every f16 and bf16 value, rounding, statuses, sizes, instruction sets. */
#include "minunit.h"

#include "dtype.h"

static double half_value(unsigned h) {
    int sign = h & 0x8000u ? -1 : 1, e = (int)(h >> 10 & 31u), m = (int)(h & 1023u);
    if (e == 31)
        return m ? (double)NAN : sign * HUGE_VAL;
    return sign * (e ? ldexp(1024 + m, e - 25) : ldexp(m, -24));
}

static void test_every_half_loads_and_stores_back(void) {
    for (unsigned h = 0; h < 65536; h++) {
        float x = lens_load_f16((uint16_t)h);
        double expected = half_value(h);
        CHECK(isnan(expected) ? isnan(x) : (double)x == expected);
        if (!isnan(expected))
            CHECK(lens_store_f16(x) == h);
        else
            CHECK(lens_store_f16(x) == (h | 0x200u));
    }
}

static void test_every_bf16_loads_and_stores_back(void) {
    for (unsigned b = 0; b < 65536; b++) {
        float x = lens_load_bf16((uint16_t)b);
        CHECK(lens_store_bf16(x) == (isnan(x) ? (b | 0x40u) : b));
    }
}

/* Between neighbours the store takes the nearer one, and the even one half-way. */
static void test_stores_round_to_nearest_even(void) {
    for (unsigned h = 0; h < 0x7bffu; h++) {
        float low = lens_load_f16((uint16_t)h), high = lens_load_f16((uint16_t)(h + 1));
        float middle = 0.5f * low + 0.5f * high;
        CHECK(lens_store_f16(middle) == (h & 1u ? h + 1 : h));
        CHECK(lens_store_f16(nextafterf(middle, 0.0f)) == h);
        CHECK(lens_store_f16(nextafterf(middle, INFINITY)) == h + 1);
        CHECK(lens_store_f16(-middle) == (0x8000u | (h & 1u ? h + 1 : h)));
    }
    CHECK(lens_store_f16(65519.996f) == 0x7bffu);
    CHECK(lens_store_f16(65520.0f) == 0x7c00u);
    CHECK(lens_store_f16(-INFINITY) == 0xfc00u);
    CHECK(lens_store_f16(1e-30f) == 0);
    CHECK(lens_store_bf16(1.00390625f) == 0x3f80u);
    CHECK(lens_store_bf16(1.01171875f) == 0x3f82u);
    CHECK(lens_store_bf16(3.4e38f) == 0x7f80u);
}

static void runs_agree(lens_dtype dtype) {
    enum { N = 65536 + 7 };
    uint16_t *bits = room(N, sizeof *bits), *back = room(N, sizeof *back);
    float *x = room(N, sizeof *x);
    for (size_t i = 0; i < N; i++)
        bits[i] = (uint16_t)i;
    EACH_ISA({
        CHECK(lens_dtype_load(x, bits, N, dtype) == LENS_OK);
        CHECK(lens_dtype_store(back, x, N, dtype) == LENS_OK);
        size_t wrong = 0;
        for (size_t i = 0; i < N; i++) {
            float one = dtype == LENS_F16 ? lens_load_f16(bits[i]) : lens_load_bf16(bits[i]);
            uint16_t two = dtype == LENS_F16 ? lens_store_f16(one) : lens_store_bf16(one);
            wrong += memcmp(&one, &x[i], sizeof one) != 0 || two != back[i];
        }
        CHECK(wrong == 0);
    })
    free(bits), free(back), free(x);
}

static void test_runs_equal_single_elements_on_every_isa(void) {
    runs_agree(LENS_F16);
    runs_agree(LENS_BF16);
}

static void test_sizes_and_statuses(void) {
    CHECK(lens_dtype_size(LENS_F64) == 8 && lens_dtype_size(LENS_BF16) == 2);
    CHECK(lens_dtype_size(LENS_N_DTYPES) == 0);
    CHECK(lens_dtype_load(NULL, NULL, 0, LENS_N_DTYPES) == LENS_EDTYPE);
    CHECK(lens_dtype_store(NULL, NULL, 0, LENS_N_DTYPES) == LENS_EDTYPE);
    CHECK(lens_mul(SIZE_MAX / 2, 3) == SIZE_MAX && lens_mul(6, 7) == 42 && lens_mul(5, 0) == 0);
    CHECK(lens_add(SIZE_MAX, 1) == SIZE_MAX && lens_add(2, 3) == 5);
    CHECK(strcmp(lens_status_text(LENS_OK), "ok") == 0);
    for (int s = LENS_OK; s <= LENS_ENOCONV; s++)
        CHECK(strlen(lens_status_text((lens_status)s)) > 1);
    CHECK(strcmp(lens_status_text((lens_status)99), "unknown status") == 0);
}

static void test_instruction_sets(void) {
    lens_isa_init();
    size_t n = 0;
    while (lens_isa_available(n))
        n++;
    CHECK(n >= 1 && strcmp(lens_isa_available(0), "baseline") == 0);
    CHECK(strcmp(lens_isa(), lens_isa_available(n - 1)) == 0);
    CHECK(lens_isa_force("none such") == LENS_EDOMAIN);
}

int main(void) {
    RUN(test_every_half_loads_and_stores_back);
    RUN(test_every_bf16_loads_and_stores_back);
    RUN(test_stores_round_to_nearest_even);
    RUN(test_runs_equal_single_elements_on_every_isa);
    RUN(test_sizes_and_statuses);
    RUN(test_instruction_sets);
    return REPORT();
}
