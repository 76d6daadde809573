/* SPDX-License-Identifier: MIT
 * minunit.h: the whole test harness.  CHECK counts and reports; RUN names a test; main returns
 * how many checks failed. */
#ifndef LENS_MINUNIT_H
#define LENS_MINUNIT_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lens.h"

static int checks, failures;

#define CHECK(condition)                                                    \
    do {                                                                    \
        checks++;                                                           \
        if (!(condition)) {                                                 \
            failures++;                                                     \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
        }                                                                   \
    } while (0)
#define CHECK_NEAR(a, b, tolerance) CHECK(fabs((double)(a) - (double)(b)) <= (tolerance))
#define RUN(test)                                                       \
    do {                                                                \
        int before = failures;                                          \
        test();                                                         \
        printf("%-4s %s\n", failures == before ? "ok" : "FAIL", #test); \
    } while (0)
#define REPORT() (printf("%d checks, %d failed\n", checks, failures), failures != 0)

/* Deterministic values in (-1, 1), the same on every machine. */
static uint64_t seed = 88172645463325252u;
static inline double uniform(void) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (double)(seed >> 11) / 4503599627370496.0 - 1.0;
}

/* malloc that ends the test when there is none, so that tests need not check. */
static inline void *room(size_t count, size_t size) {
    void *p = calloc(count ? count : 1, size);
    if (p == NULL) {
        fprintf(stderr, "out of memory\n");
        exit(2);
    }
    return p;
}

/* n random elements stored in dtype */
static inline void *random_block(size_t n, lens_dtype dtype) {
    void *out = room(n, lens_dtype_size(dtype));
    float *x = room(n, sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)uniform();
    lens_dtype_store(out, x, n, dtype);
    free(x);
    return out;
}

/* their values */
static inline double *values(const void *x, size_t n, lens_dtype dtype) {
    double *out = room(n, sizeof *out);
    float *f = room(n, sizeof *f);
    if (dtype == LENS_F64) {
        memcpy(out, x, n * sizeof *out);
    } else {
        lens_dtype_load(f, x, n, dtype);
        for (size_t i = 0; i < n; i++)
            out[i] = (double)f[i];
    }
    free(f);
    return out;
}

/* Run the statement once for every instruction set of this CPU, widest last. */
#define EACH_ISA(statement)                                         \
    for (size_t isa_ = 0; lens_isa_available(isa_); isa_++) {       \
        CHECK(lens_isa_force(lens_isa_available(isa_)) == LENS_OK); \
        statement;                                                  \
    }

#endif
