/* SPDX-License-Identifier: MIT
 * bits.c: prints a hash of the output of most operations without BLAS, for each
 * dtype.  Two machines that print the same compute the same bits; `make test-neon` compares. */
#include "minunit.h"

enum { B = 7, T = 3, D = 1100, R = 3, N = B * T * D };

static uint64_t hash(uint64_t h, const void *x, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        h = (h ^ ((const unsigned char *)x)[i]) * 1099511628211u;
    return h;
}

static void print(const char *name, lens_dtype dtype, const void *x, size_t bytes) {
    printf("%-16s %d %016llx\n", name, (int)dtype,
           (unsigned long long)hash(1469598103934665603u, x, bytes));
}

/* n elements of the accumulator of a dtype */
static void *coefficients(size_t n, lens_dtype dtype) {
    return random_block(n, dtype == LENS_F64 ? LENS_F64 : LENS_F32);
}

static void losses(lens_dtype t, const void *x, const void *y, const uint8_t *mask) {
    size_t bytes = N * lens_dtype_size(t), rows = B * D * lens_dtype_size(t);
    void *grad = room(bytes, 1), *back = room(bytes, 1);
    void *basis = coefficients(R * D, t), *target = coefficients(R, t);
    double value, *work = room(N, sizeof *work);
    lens_fault f;
    lens_loss_separate(&value, grad, &f, x, y, basis, target, NULL, B, D, R, 0, t, 1, work);
    print("separate", t, grad, rows), print("  value", t, &value, sizeof value);
    lens_loss_align_mean(&value, grad, back, &f, x, y, basis, NULL, B, D, t, 1, work);
    print("align_mean", t, grad, rows), print("  value", t, &value, sizeof value);
    lens_loss_align_complement(&value, grad, back, &f, x, y, basis, NULL, B, D, R, t, 1, work);
    print("align_complement", t, back, rows), print("  value", t, &value, sizeof value);
    lens_loss_retain_token(&value, grad, &f, x, y, mask, B, T, D, t, 1, work);
    print("retain_token", t, grad, bytes), print("  value", t, &value, sizeof value);
    lens_loss_retain_mean(&value, grad, &f, x, y, mask, B, T, D, t, 1, work);
    print("retain_mean", t, grad, bytes), print("  value", t, &value, sizeof value);
    lens_project(grad, x, basis, B, D, R, 0.7, t, 1, work);
    print("project", t, grad, rows);
    free(grad), free(back), free(basis), free(target), free(work);
}

static void statistics(lens_dtype t, const void *x, const uint8_t *mask) {
    double *out = room(N, sizeof *out), *m2 = room(N, sizeof *m2);
    uint64_t *counts = room(D, sizeof *counts);
    lens_fault f;
    for (int mode = 0; mode < LENS_N_POOLINGS; mode++) {
        lens_pool(out, &f, x, mask, B, T, D, t, (lens_pooling)mode, 1);
        print("pool", t, out, B * D * sizeof *out);
    }
    lens_moments_update(out, m2, &f, NULL, NULL, x, B * T, D, 0, t, 1);
    print("moments mean", t, out, D * sizeof *out), print("moments m2", t, m2, D * sizeof *m2);
    lens_neuron_count(counts, &f, NULL, x, mask, B * T, D, t, 1);
    print("neuron_count", t, counts, D * sizeof *counts);
    free(out), free(m2), free(counts);
}

static void weights(lens_dtype t, const void *x, const void *y) {
    float *delta = room(N, sizeof *delta);
    uint8_t *mask = room(N, 1);
    void *out = room(N, sizeof(double));
    double sums[3], *work = room(LENS_BUCKETS, sizeof *work), w[2] = {0.3, -1.7};
    uint64_t *counts = room(LENS_BUCKETS, sizeof *counts), chosen[3];
    uint16_t *lows = room(N, sizeof *lows);
    size_t *found = room(lens_weights_select_worksize(N), sizeof *found);
    const void *sources[2] = {x, y};
    lens_dtype dtypes[2] = {t, t};
    lens_fault f;
    lens_weights_delta(delta, x, y, N, t, 1);
    print("delta", t, delta, N * sizeof *delta);
    lens_weights_dots(sums, &f, x, y, y, NULL, N, t, 1, work);
    print("dots", t, sums, sizeof sums);
    lens_weights_histogram(counts, &f, x, y, N, t, 1, (uint64_t *)(void *)work);
    print("histogram", t, counts, LENS_BUCKETS * sizeof *counts);
    CHECK(lens_weights_select(mask, lows, chosen, x, y, N, 0x3f7fc000, 0x3f800000, t, 1, found) ==
          LENS_OK);
    print("select", t, mask, N);
    print("  lows", t, lows, chosen[2] * sizeof *lows);
    CHECK(lens_weights_combine(out, sources, dtypes, w, 2, N, t, 1) == LENS_OK);
    print("combine", t, out, N * lens_dtype_size(t));
    free(delta), free(mask), free(out), free(work), free(counts), free(lows), free(found);
}

int main(void) {
    uint8_t mask[B * T];
    for (size_t i = 0; i < sizeof mask; i++)
        mask[i] = i % T == 0 || uniform() > 0;
    lens_isa_init();
    for (int t = 0; t < LENS_N_DTYPES; t++) {
        void *x = random_block(N, (lens_dtype)t), *y = random_block(N, (lens_dtype)t);
        losses((lens_dtype)t, x, y, mask);
        statistics((lens_dtype)t, x, mask);
        weights((lens_dtype)t, x, y);
        free(x), free(y);
    }
    return failures != 0;
}
