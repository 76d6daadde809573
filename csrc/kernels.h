/* SPDX-License-Identifier: MIT
 * kernels.h: the table of row kernels, one instance per dtype and instruction set.  Level 2.
 * A kernel works on one row (or one tile of columns); threads, masks and errors are its caller's.
 * x, h, h0, p, out, grad are of the dtype; basis, target, u of its accumulator ACC. */
#ifndef LENS_KERNELS_H
#define LENS_KERNELS_H

#include "lens.h"

#define LENS_LANES 16  /* fixed partial sums of every reduction */
#define LENS_PIECE 512 /* columns reduced in ACC before their sum joins a double: 32 adds a lane */
#define LENS_STRIP 128 /* columns of four rows processed together */
#define LENS_TILE 2048 /* columns counted together */
#define LENS_COUNT_ROWS 32768 /* rows counted before narrow counters are emptied */

#if defined(__GNUC__) || defined(__clang__)
#define LENS_NOINLINE __attribute__((noinline))
#else
#define LENS_NOINLINE
#endif

typedef struct {
    /* out[n] = float of x, and back */
    void (*load)(float *out, const void *x, size_t n);
    void (*store)(void *out, const float *x, size_t n);
    /* index of the first NaN or infinity in x[n], or n */
    size_t (*first_nonfinite)(const void *x, size_t n);
    /* acc[n] += w x[n], in double */
    void (*add)(double *acc, const void *x, size_t n, double w);
    /* Welford over rows of X (row stride d) in columns 0..n-1 */
    void (*welford)(double *mean, double *m2, const void *X, size_t rows, size_t d, size_t n,
                    uint64_t count);
    /* out = x - strength basis^T (basis x);  z: r doubles of scratch */
    void (*project)(void *out, double *z, const void *x, const void *basis, size_t d, size_t r,
                    double strength);
    /* n rows of a loss, where scale is not 0: gradients, and in terms scale/2 times the sums of
     * squares;  z: (n,r) doubles of scratch */
    void (*separate)(void *grad, double *terms, double *z, const void *h, const void *h0,
                     const void *basis, const void *target, size_t target_step, const double *scale,
                     size_t n, size_t d, size_t r);
    void (*align_complement)(void *grad, void *grad_p, double *terms, double *z, const void *h,
                             const void *p, const void *basis, const double *scale, size_t n,
                             size_t d, size_t r);
    /* one row: its gradient, returns scale/2 times its sum of squares */
    double (*align_mean)(void *grad, void *grad_p, const void *h, const void *p, const void *u,
                         size_t d, double scale);
    double (*retain)(void *grad, const void *h, const void *h0, size_t d, double scale);
    /* acc[d] += h - h0, in double;  grad[d] = scale mean[d] */
    void (*add_difference)(double *acc, const void *h, const void *h0, size_t d);
    void (*spread)(void *grad, const double *mean, size_t d, double scale);
    /* counts[n] += rows of X (stride d) above zero in columns 0..n-1 <= LENS_TILE; 1 if any is NaN */
    int (*positive)(uint64_t *counts, const void *X, const uint8_t *mask, size_t rows, size_t d,
                    size_t n);
    /* index of the first NaN in x[n], or n */
    size_t (*first_nan)(const void *x, size_t n);
    /* scale[2] with |x| = 1 / (scale[0] scale[1]); returns 0 if x has no direction;  out[n] = x / |x| */
    int (*scale)(double *scale, const void *x, size_t n);
    void (*unit)(void *out, const void *x, const double *scale, size_t n);
    /* z[n] += t;  whether some z[k] >= floor or floors[k];  z, t, floors of ACC */
    void (*accumulate)(void *z, const void *t, size_t n);
    int (*reaches)(const void *z, const void *floors, double floor, size_t n);
    /* z[p,q] = rows of A times rows of B, all of ACC */
    void (*similarity)(double *z, const void *A, const void *B, size_t p, size_t q, size_t d);
    /* |x - mean|^2, mean of ACC */
    double (*distance)(const void *x, const void *mean, size_t d);

    /* weights; x = a - b, y = c - d, where b or d NULL is zeros, and c NULL means no y */
    void (*delta)(float *out, const void *a, const void *b, size_t n);
    /* sums[3] = x.x, y.y, x.y */
    void (*delta_dots)(double *sums, const void *a, const void *b, const void *c, const void *d,
                       size_t n);
    /* counts[key >> LENS_BUCKET_BITS]++ where x != 0;  index of the first x not finite, or n */
    size_t (*delta_histogram)(uint64_t *counts, const void *a, const void *b, size_t n);
    /* marks = 1 where key >= high, else 2 where key >= low, else 0;  lows = the low bits of the
     * keys marked 2, in order; returns their number;  counts[2] += number marked 1, in high's bucket */
    size_t (*delta_select)(uint8_t *marks, uint16_t *lows, uint64_t *counts, const void *a,
                           const void *b, size_t n, uint32_t low, uint32_t high);
    /* sum of |x|;  acc[n] += |x|, both in double */
    double (*delta_size)(const void *a, const void *b, size_t n);
    void (*add_sizes)(double *acc, const void *a, const void *b, size_t n);
    /* counts[2] += NaN, infinite */
    void (*count_nonfinite)(uint64_t *counts, const void *x, size_t n);
    /* sum[m] = sum_s w[s] sources[s][i..i+m), m <= LENS_PIECE, added to sum if more != 0 */
    void (*sum)(double *sum, const void *const *sources, const double *w, size_t n_sources,
                int more, size_t i, size_t m);
    /* out[n] = x[n] rounded once */
    void (*round)(void *out, const double *x, size_t n);
} lens_kernels;

/* Kernels of a valid dtype for the instruction set in use. */
const lens_kernels *lens_kernels_of(lens_dtype dtype);

#endif
