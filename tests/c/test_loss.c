/* SPDX-License-Identifier: MIT
 * test_loss.c: each loss against its formula, its gradient against differences of the value. */
#include "minunit.h"

enum { B = 3, T = 4, D = 530, R = 5, N = B * T * D };

/* One problem of every loss; `which` picks it, gradients are for states of shape (B,D) or (B,T,D). */
typedef struct {
    lens_dtype dtype;
    int n_threads;
    void *h, *h0, *grad, *grad_p;
    double basis[R * D], target[B * R], weights[B];
    float basis32[R * D], target32[B * R];
    uint8_t mask[B * T];
    double *work;
} problem;

enum { SEPARATE, ALIGN_MEAN, ALIGN_COMPLEMENT, RETAIN_TOKEN, RETAIN_MEAN, N_LOSSES };

static problem *make(lens_dtype dtype) {
    problem *p = room(1, sizeof *p);
    p->dtype = dtype;
    p->n_threads = 1;
    p->h = random_block(N, dtype), p->h0 = random_block(N, dtype);
    p->grad = room(N, 8), p->grad_p = room(N, 8);
    p->work = room(B * (D + 1) + B * T, sizeof *p->work);
    double sizes[R] = {0};
    for (size_t i = 0; i < R * D; i++) { /* disjoint supports: orthogonal rows */
        p->basis[i] = i % D % R == i / D ? uniform() : 0.0;
        sizes[i / D] += p->basis[i] * p->basis[i];
    }
    for (size_t i = 0; i < R * D; i++) {
        p->basis32[i] = (float)(p->basis[i] / sqrt(sizes[i / D]));
        p->basis[i] = dtype == LENS_F64 ? p->basis[i] / sqrt(sizes[i / D]) : (double)p->basis32[i];
    }
    for (size_t i = 0; i < B * R; i++)
        p->target[i] = (double)(p->target32[i] = (float)uniform());
    for (size_t i = 0; i < B; i++)
        p->weights[i] = 0.1 + fabs(uniform());
    for (size_t i = 0; i < B * T; i++)
        p->mask[i] = i % 3 != 1;
    return p;
}

static void drop(problem *p) {
    free(p->h), free(p->h0), free(p->grad), free(p->grad_p), free(p->work), free(p);
}

static lens_status call(problem *p, int which, double *value, lens_fault *f) {
    int wide = p->dtype == LENS_F64;
    const void *M = wide ? (void *)p->basis : (void *)p->basis32;
    const void *t = wide ? (void *)p->target : (void *)p->target32;
    switch (which) {
    case SEPARATE:
        return lens_loss_separate(value, p->grad, f, p->h, p->h0, M, t, p->weights, B, D, R, 1,
                                  p->dtype, p->n_threads, p->work);
    case ALIGN_MEAN:
        return lens_loss_align_mean(value, p->grad, p->grad_p, f, p->h, p->h0, M, NULL, B, D,
                                    p->dtype, p->n_threads, p->work);
    case ALIGN_COMPLEMENT:
        return lens_loss_align_complement(value, p->grad, p->grad_p, f, p->h, p->h0, M, p->weights,
                                          B, D, R, p->dtype, p->n_threads, p->work);
    case RETAIN_TOKEN:
        return lens_loss_retain_token(value, p->grad, f, p->h, p->h0, p->mask, B, T, D, p->dtype,
                                      p->n_threads, p->work);
    default:
        return lens_loss_retain_mean(value, p->grad, f, p->h, p->h0, p->mask, B, T, D, p->dtype,
                                     p->n_threads, p->work);
    }
}

static double formula_row(const problem *p, int which, const double *h, const double *h0,
                          size_t b) {
    double z[R] = {0}, sum = 0;
    for (size_t k = 0; k < R; k++)
        for (size_t i = 0; i < D; i++)
            z[k] += p->basis[k * D + i] * (h[b * D + i] - h0[b * D + i]);
    if (which == ALIGN_MEAN)
        return z[0] * z[0] / B / D;
    if (which == SEPARATE)
        for (size_t k = 0; k < R; k++)
            sum += (z[k] - p->target[b * R + k]) * (z[k] - p->target[b * R + k]);
    else
        for (size_t i = 0; i < D; i++) {
            double g = h[b * D + i] - h0[b * D + i];
            for (size_t k = 0; k < R; k++)
                g -= z[k] * p->basis[k * D + i];
            sum += g * g;
        }
    return p->weights[b] * sum / D;
}

static double formula(const problem *p, int which, const double *h, const double *h0) {
    double sum = 0, count = 0;
    if (which < RETAIN_TOKEN) {
        for (size_t b = 0; b < B; b++)
            sum += formula_row(p, which, h, h0, b);
        return sum;
    }
    for (size_t b = 0; b < B; b++)
        for (size_t i = 0; i < D; i++) {
            double mean = 0, n = 0;
            for (size_t k = b * T; k < (b + 1) * T; k++)
                if (p->mask[k]) {
                    double g = h[k * D + i] - h0[k * D + i];
                    mean += g, n += 1;
                    sum += which == RETAIN_TOKEN ? g * g : 0;
                }
            count += which == RETAIN_TOKEN ? n : 1;
            sum += which == RETAIN_MEAN ? mean * mean / n / n : 0;
        }
    return sum / count;
}

static void test_values_and_gradients(void) {
    for (int dtype = 0; dtype < LENS_N_DTYPES; dtype++) {
        problem *p = make((lens_dtype)dtype);
        double *h = values(p->h, N, p->dtype), *h0 = values(p->h0, N, p->dtype), value = 0;
        double coarse = dtype == LENS_F16 ? 1e-3 : dtype == LENS_BF16 ? 8e-3 : 1e-6;
        lens_fault fault;
        for (int which = 0; which < N_LOSSES; which++) {
            CHECK(call(p, which, &value, &fault) == LENS_OK);
            double expected = formula(p, which, h, h0);
            CHECK_NEAR(value, expected, (dtype == LENS_F64 ? 1e-13 : 1e-5) * (1e-3 + expected));
            double *grad = values(p->grad, N, p->dtype), *back = values(p->grad_p, N, p->dtype);
            for (size_t i = 0; i < (which < RETAIN_TOKEN ? B * D : N); i += 37) {
                double x = h[i], up, down;
                h[i] = x + 1e-3, up = formula(p, which, h, h0);
                h[i] = x - 1e-3, down = formula(p, which, h, h0);
                h[i] = x;
                CHECK_NEAR(grad[i], (up - down) / 2e-3, coarse * fabs(grad[i]) + 1e-7);
                if (which == ALIGN_MEAN || which == ALIGN_COMPLEMENT)
                    CHECK(back[i] == -grad[i]);
            }
            free(grad), free(back);
        }
        free(h), free(h0), drop(p);
    }
}

static void test_same_bits_for_any_isa_and_thread_count(void) {
    for (int dtype = 0; dtype < LENS_N_DTYPES; dtype++)
        for (int which = 0; which < N_LOSSES; which++) {
            problem *p = make((lens_dtype)dtype);
            size_t bytes = (which < RETAIN_TOKEN ? B * D : N) * lens_dtype_size(p->dtype);
            void *first = room(bytes, 1);
            double first_value = 0, value = 0;
            lens_fault fault;
            call(p, which, &first_value, &fault);
            memcpy(first, p->grad, bytes);
            EACH_ISA({
                for (p->n_threads = 1; p->n_threads < 5; p->n_threads++) {
                    memset(p->grad, 0x55, bytes);
                    CHECK(call(p, which, &value, &fault) == LENS_OK);
                    CHECK(memcmp(&value, &first_value, sizeof value) == 0);
                    CHECK(memcmp(first, p->grad, bytes) == 0);
                }
            })
            free(first), drop(p);
        }
}

static void test_faults(void) {
    problem *p = make(LENS_F32);
    lens_fault fault;
    double value = 0;
    ((float *)p->h)[D + 3] = NAN; /* row 1, or token 1, which the mask hides */
    CHECK(call(p, SEPARATE, &value, &fault) == LENS_ENONFINITE && fault.row == 1);
    CHECK(call(p, ALIGN_COMPLEMENT, &value, &fault) == LENS_ENONFINITE && fault.row == 1);
    CHECK(call(p, RETAIN_TOKEN, &value, &fault) == LENS_OK);
    CHECK(call(p, RETAIN_MEAN, &value, &fault) == LENS_OK);
    p->weights[1] = 0.0;
    CHECK(call(p, SEPARATE, &value, &fault) == LENS_OK && ((float *)p->grad)[D + 3] == 0.0f);
    memset(p->mask, 0, T);
    CHECK(call(p, RETAIN_MEAN, &value, &fault) == LENS_EMASKED && fault.row == 0);
    memset(p->mask, 0, sizeof p->mask);
    CHECK(call(p, RETAIN_TOKEN, &value, &fault) == LENS_EMASKED);
    p->dtype = LENS_N_DTYPES;
    CHECK(call(p, ALIGN_MEAN, &value, &fault) == LENS_EDTYPE);
    CHECK(lens_loss_align_mean(&value, p->grad, NULL, &fault, p->h, p->h0, p->basis32, NULL, B, 0,
                               LENS_F32, 1, p->work) == LENS_ESHAPE);
    p->dtype = LENS_F32;
    drop(p);
}

static void test_worksizes(void) {
    CHECK(lens_loss_separate_worksize(B, R) == B * (R + 1));
    CHECK(lens_loss_align_mean_worksize(B) == B);
    CHECK(lens_loss_align_complement_worksize(B, R) == B * (R + 1));
    CHECK(lens_loss_retain_token_worksize(B, T) == B * T);
    CHECK(lens_loss_retain_mean_worksize(B, D) == B * (D + 1));
    CHECK(lens_loss_retain_mean_worksize(SIZE_MAX / 2, 2) == SIZE_MAX);
}

int main(void) {
    lens_isa_init();
    RUN(test_values_and_gradients);
    RUN(test_same_bits_for_any_isa_and_thread_count);
    RUN(test_faults);
    RUN(test_worksizes);
    return REPORT();
}
