/* SPDX-License-Identifier: MIT
 * test_neuron.c: counts against a plain loop, entropy and selection by hand. */
#include "minunit.h"

enum { N = 37 };

static void count_plainly(uint64_t *out, const double *v, const uint8_t *mask, size_t d) {
    for (size_t i = 0; i < d; i++) {
        out[i] = 5;
        for (size_t k = 0; k < N; k++)
            out[i] += (mask == NULL || mask[k]) && v[k * d + i] > 0;
    }
}

static void test_counts(void) {
    const size_t widths[] = {1, 15, 16, 17, 2047, 2048, 2049, 4100};
    uint8_t mask[N];
    for (size_t k = 0; k < N; k++)
        mask[k] = k % 3 != 1;
    for (int dtype = 0; dtype < LENS_N_DTYPES; dtype++)
        for (size_t w = 0; w < 8; w++) {
            size_t d = widths[w];
            void *X = random_block(N * d, (lens_dtype)dtype);
            double *v = values(X, N * d, (lens_dtype)dtype);
            uint64_t *out = room(d, 8), *expected = room(d, 8), *before = room(d, 8);
            lens_fault f;
            for (size_t i = 0; i < d; i++)
                before[i] = 5;
            for (int masked = 0; masked < 2; masked++) {
                const uint8_t *m = masked ? mask : NULL;
                count_plainly(expected, v, m, d);
                EACH_ISA({
                    for (int threads = 1; threads < 4; threads++) {
                        CHECK(lens_neuron_count(out, &f, before, X, m, N, d, (lens_dtype)dtype,
                                                threads) == LENS_OK);
                        CHECK(memcmp(out, expected, d * 8) == 0);
                    }
                })
            }
            CHECK(lens_neuron_count(out, &f, NULL, X, mask, 0, d, (lens_dtype)dtype, 1) == LENS_OK);
            CHECK(out[0] == 0 && out[d - 1] == 0);
            free(X), free(v), free(out), free(expected), free(before);
        }
}

static void test_narrow_counters(void) {
    enum { n = 70000 };
    float *x = room(n, sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = 1.0f;
    for (int dtype = 0; dtype < LENS_N_DTYPES; dtype++) {
        uint64_t out = 0;
        double *stored = room(n, sizeof *stored);
        lens_fault f;
        lens_dtype_store(stored, x, n, (lens_dtype)dtype);
        CHECK(lens_neuron_count(&out, &f, NULL, stored, NULL, n, 1, (lens_dtype)dtype, 1) ==
              LENS_OK);
        CHECK(out == n);
        free(stored);
    }
    free(x);
}

static void test_nan(void) {
    enum { d = 3000 };
    float *x = room(N * d, sizeof *x);
    double *stored = room(N * d, sizeof *stored);
    uint64_t *out = room(d, 8);
    uint8_t mask[N];
    memset(mask, 1, sizeof mask);
    x[7 * d + 2900] = NAN, x[9 * d + 1] = NAN, x[3] = INFINITY;
    for (int dtype = 0; dtype < LENS_N_DTYPES; dtype++) {
        lens_dtype k = (lens_dtype)dtype;
        lens_fault f;
        lens_dtype_store(stored, x, N * d, k);
        mask[7] = mask[9] = 1;
        CHECK(lens_neuron_count(out, &f, NULL, stored, NULL, N, d, k, 2) == LENS_ENONFINITE);
        CHECK(f.row == 7 && f.item == 2900);
        mask[7] = 0;
        CHECK(lens_neuron_count(out, &f, NULL, stored, mask, N, d, k, 3) == LENS_ENONFINITE);
        CHECK(f.row == 9 && f.item == 1);
        mask[9] = 0;
        CHECK(lens_neuron_count(out, &f, NULL, stored, mask, N, d, k, 1) == LENS_OK);
        CHECK(out[3] == 1 && out[2] == 0);
    }
    lens_fault f;
    CHECK(lens_neuron_count(out, &f, NULL, stored, mask, N, d, LENS_N_DTYPES, 1) == LENS_EDTYPE);
    free(x), free(stored), free(out);
}

/* Three languages, four neurons, ten tokens: in order 0 0 0 0 0 .1 .2 .2 .5 .6 .8 .9. */
static void test_lape_by_hand(void) {
    uint64_t counts[12] = {9, 6, 5, 0, 1, 8, 0, 0, 0, 2, 2, 0}, tokens[3] = {10, 10, 10};
    double p[12], raw[4], entropy[4], tau;
    uint8_t member[12], both[12] = {1, 1, 0, 0, 0, 1}, first[12] = {1};
    lens_fault f;
    CHECK(lens_neuron_lape(p, raw, &f, counts, tokens, 3, 4) == LENS_OK);
    CHECK_NEAR(raw[0], -(0.9 * log(0.9) + 0.1 * log(0.1)), 1e-15);
    CHECK_NEAR(raw[1], 0.375 * log(8.0 / 3) + 0.5 * log(2.0) + log(8.0) / 8, 1e-15);
    CHECK(isinf(raw[3]) && raw[3] > 0);
    CHECK(lens_neuron_select(member, entropy, &tau, &f, p, raw, 3, 4, 9, 2) == LENS_OK);
    CHECK(tau == 0.5 && entropy[0] == raw[0] && isinf(entropy[2]) && isinf(entropy[3]));
    CHECK(memcmp(member, both, sizeof both) == 0);
    CHECK(lens_neuron_select(member, entropy, &tau, &f, p, raw, 3, 4, 9, 4) == LENS_OK);
    CHECK(memcmp(member, both, sizeof both) == 0); /* excluded neurons fill no place */
    CHECK(lens_neuron_select(member, entropy, &tau, &f, p, raw, 3, 4, 9, 1) == LENS_OK);
    CHECK(memcmp(member, first, sizeof first) == 0);
    CHECK(lens_neuron_select(member, entropy, &tau, &f, p, raw, 3, 4, 9, 0) == LENS_OK);
    CHECK(member[0] == 0);
    CHECK(lens_neuron_select(member, entropy, &tau, &f, p, raw, 3, 4, 12, 4) == LENS_OK);
    CHECK(tau == 0.9 && member[0] == 0);
    CHECK(lens_neuron_select(member, entropy, &tau, &f, p, raw, 3, 4, 1, 4) == LENS_OK);
    CHECK(tau == 0.0 && member[0] == 1 && member[4] == 1 && member[8] == 0 && member[3] == 0);
}

static void test_order_statistics(void) {
    enum { m = 501 };
    double p[m], raw[m], entropy[m], tau;
    uint8_t member[m];
    lens_fault f;
    for (size_t i = 0; i < m; i++) {
        p[i] = fabs(uniform()) * (i % 7 == 0 ? 1e-300 : 1.0);
        p[i] = i % 5 == 0 && i > 0 ? p[i - 1] : p[i];
        raw[i] = (double)(i % 3);
    }
    for (size_t rank = 1; rank <= m; rank += 50) {
        size_t below = 0, upto = 0, chosen = 0;
        CHECK(lens_neuron_select(member, entropy, &tau, &f, p, raw, 1, m, rank, 100) == LENS_OK);
        for (size_t i = 0; i < m; i++)
            below += p[i] < tau, upto += p[i] <= tau, chosen += member[i];
        CHECK(below < rank && rank <= upto);
        CHECK(chosen == (m - upto < 100 ? m - upto : 100));
    }
}

static void test_faults(void) {
    uint64_t counts[4] = {1, 2, 3, 4}, tokens[2] = {2, 3};
    double p[4] = {0.5, 0.5, 0.5, 1.5}, raw[2] = {0, 0}, entropy[2], tau;
    uint8_t member[4];
    lens_fault f;
    CHECK(lens_neuron_select(member, entropy, &tau, &f, p, raw, 2, 2, 1, 1) == LENS_EDOMAIN);
    CHECK(f.row == 1 && f.item == 1);
    p[3] = 1.0, raw[1] = NAN;
    CHECK(lens_neuron_select(member, entropy, &tau, &f, p, raw, 2, 2, 1, 1) == LENS_EDOMAIN);
    CHECK(f.row == LENS_NOWHERE && f.item == 1);
    CHECK(lens_neuron_select(member, entropy, &tau, &f, p, raw, 2, 2, 0, 1) == LENS_ESHAPE);
    CHECK(lens_neuron_select(member, entropy, &tau, &f, p, raw, 2, 2, 5, 1) == LENS_ESHAPE);
    CHECK(lens_neuron_select(member, entropy, &tau, &f, p, raw, 2, 2, 1, 3) == LENS_ESHAPE);
    CHECK(lens_neuron_lape(p, raw, &f, counts, tokens, 2, 2) == LENS_EDOMAIN);
    CHECK(f.row == 1 && f.item == 1);
    counts[2] = counts[3] = tokens[1] = 0;
    CHECK(lens_neuron_lape(p, raw, &f, counts, tokens, 2, 2) == LENS_EMASKED && f.row == 1);
}

int main(void) {
    lens_isa_init();
    RUN(test_counts);
    RUN(test_narrow_counters);
    RUN(test_nan);
    RUN(test_lape_by_hand);
    RUN(test_order_statistics);
    RUN(test_faults);
    return REPORT();
}
