/* SPDX-License-Identifier: MIT
 * weights.inc.h: differences of two flat arrays, without storing them.  Level 2 template.
 * b = NULL stands for zeros.  The key of a delta is the bits of |delta| in float32: 31 bits that
 * sort as |delta| does. */

static const T FN(zeros)[LENS_PIECE];

/* b from element i, or zeros if b is NULL: x - 0 is x, even for x = -0. */
static inline const T *FN(or_zeros)(const T *b, size_t i) {
    return b ? b + i : FN(zeros);
}

static void FN(delta)(float *restrict out, const void *a_, const void *b_, size_t n) {
    const T *a = a_, *b = b_;
    ACC ba[LENS_PIECE], bb[LENS_PIECE];
    for (size_t i = 0, m; i < n; i += m) {
        m = FN(piece)(i, n);
        const ACC *x = FN(view)(ba, a + i, m), *y = FN(view)(bb, FN(or_zeros)(b, i), m);
        for (size_t k = 0; k < m; k++)
            out[i + k] = (float)(x[k] - y[k]);
    }
}

/* Lanes of double, where the square of a tiny float32 does not vanish and that of a large one is finite.
 * width <= LENS_LANES. */
static inline void FN(add_dots)(double *lanes, const ACC *a, const ACC *b, const ACC *c,
                                const ACC *d, size_t width) {
    double *xx = lanes, *yy = lanes + LENS_LANES, *xy = lanes + 2 * LENS_LANES;
    for (size_t l = 0; l < width; l++) {
        double x = (double)(a[l] - b[l]), y = (double)(c[l] - d[l]);
        xx[l] += x * x;
        yy[l] += y * y;
        xy[l] += x * y;
    }
}

static inline void FN(add_squares)(double *lane, const ACC *a, const ACC *b, size_t width) {
    for (size_t l = 0; l < width; l++) {
        double x = (double)(a[l] - b[l]);
        lane[l] += x * x;
    }
}

static inline double FN(fold_double)(double *lane) {
    for (size_t half = LENS_LANES / 2; half > 0; half /= 2)
        for (size_t l = 0; l < half; l++)
            lane[l] += lane[l + half];
    return lane[0];
}

static void FN(delta_dots)(double *sums, const void *a_, const void *b_, const void *c_,
                           const void *d_, size_t n) {
    const T *a = a_, *b = b_, *c = c_, *d = d_;
    ACC buf[4][LENS_PIECE];
    double lanes[3 * LENS_LANES] = {0};
    for (size_t i = 0, m, k; i < n; i += m) {
        m = FN(piece)(i, n);
        const ACC *x = FN(view)(buf[0], a + i, m);
        const ACC *y = FN(view)(buf[1], FN(or_zeros)(b, i), m);
        if (c == NULL) {
            for (k = 0; k + LENS_LANES <= m; k += LENS_LANES)
                FN(add_squares)(lanes, x + k, y + k, LENS_LANES);
            FN(add_squares)(lanes, x + k, y + k, m - k);
            continue;
        }
        const ACC *z = FN(view)(buf[2], c + i, m);
        const ACC *t = FN(view)(buf[3], FN(or_zeros)(d, i), m);
        for (k = 0; k + LENS_LANES <= m; k += LENS_LANES)
            FN(add_dots)(lanes, x + k, y + k, z + k, t + k, LENS_LANES);
        FN(add_dots)(lanes, x + k, y + k, z + k, t + k, m - k);
    }
    for (size_t k = 0; k < 3; k++)
        sums[k] = FN(fold_double)(lanes + k * LENS_LANES);
}

/* key[m] of a - b; returns the largest. */
static inline uint32_t FN(delta_keys)(uint32_t *restrict key, const T *a, const T *b, size_t m) {
    ACC ba[LENS_PIECE], bb[LENS_PIECE];
    const ACC *x = FN(view)(ba, a, m), *y = FN(view)(bb, b, m);
    uint32_t most = 0;
    for (size_t k = 0; k < m; k++) {
        key[k] = lens_f32_to_bits((float)(x[k] - y[k])) & 0x7fffffffu;
        most = key[k] > most ? key[k] : most;
    }
    return most;
}

/* Counting would leave the memory idle if the next strip were not prefetched. */
static size_t FN(delta_histogram)(uint64_t *counts, const void *a_, const void *b_, size_t n) {
    const T *a = a_, *b = b_;
    uint32_t key[LENS_STRIP];
    for (size_t i = 0, m, next; i < n; i += m) {
        m = n - i < LENS_STRIP ? n - i : LENS_STRIP;
        next = n - i - m < LENS_STRIP ? n - i - m : LENS_STRIP;
        lens_prefetch(a + i + m, next * sizeof(T));
        if (b != NULL)
            lens_prefetch(b + i + m, next * sizeof(T));
        uint32_t most = FN(delta_keys)(key, a + i, FN(or_zeros)(b, i), m), zeros = 0;
        if (most >= 0x7f800000u) {
            for (size_t k = 0; k < m; k++)
                if (key[k] >= 0x7f800000u)
                    return i + k;
        }
        if (most == 0)
            continue;
        for (size_t k = 0; k < m; k++)
            zeros += key[k] == 0;
        for (size_t k = 0; k < m; k++)
            counts[key[k] >> LENS_BUCKET_BITS]++;
        counts[0] -= zeros;
    }
    return n;
}

static size_t FN(delta_select)(uint8_t *restrict marks, uint16_t *restrict lows, uint64_t *counts,
                               const void *a_, const void *b_, size_t n, uint32_t low,
                               uint32_t high) {
    const T *a = a_, *b = b_;
    uint32_t key[LENS_PIECE], floor = (high - 1u) >> LENS_BUCKET_BITS << LENS_BUCKET_BITS;
    size_t found = 0;
    floor = floor > 0 ? floor : 1u; /* a key of 0 is in no bucket */
    for (size_t i = 0, m; i < n; i += m) {
        m = FN(piece)(i, n);
        uint32_t most = FN(delta_keys)(key, a + i, FN(or_zeros)(b, i), m);
        uint32_t above = 0, bucket = 0, open = 0;
        if (most < floor) {
            memset(marks + i, 0, m);
            continue;
        }
        for (size_t k = 0; k < m; k++) {
            above += key[k] >= high;
            bucket += key[k] >= floor;
            open += key[k] >= low;
        }
        for (size_t k = 0; k < m; k++)
            marks[i + k] = (uint8_t)(key[k] >= high ? 1 : key[k] >= low ? 2 : 0);
        counts[0] += above;
        counts[1] += bucket - above;
        for (size_t k = 0, end = found + open - above; found < end; k++) {
            lows[found] = (uint16_t)(key[k] & ((1u << LENS_BUCKET_BITS) - 1u));
            found += marks[i + k] == 2;
        }
    }
    return found;
}

static double FN(delta_size)(const void *a_, const void *b_, size_t n) {
    const T *a = a_, *b = b_;
    ACC ba[LENS_PIECE], bb[LENS_PIECE];
    double lane[LENS_LANES] = {0};
    for (size_t i = 0, m, k; i < n; i += m) {
        m = FN(piece)(i, n);
        const ACC *x = FN(view)(ba, a + i, m), *y = FN(view)(bb, FN(or_zeros)(b, i), m);
        for (k = 0; k + LENS_LANES <= m; k += LENS_LANES)
            for (size_t l = 0; l < LENS_LANES; l++)
                lane[l] += fabs((double)(x[k + l] - y[k + l]));
        for (size_t l = 0; k + l < m; l++)
            lane[l] += fabs((double)(x[k + l] - y[k + l]));
    }
    return FN(fold_double)(lane);
}

static void FN(add_sizes)(double *restrict acc, const void *a_, const void *b_, size_t n) {
    const T *a = a_, *b = b_;
    ACC ba[LENS_PIECE], bb[LENS_PIECE];
    for (size_t i = 0, m; i < n; i += m) {
        m = FN(piece)(i, n);
        const ACC *x = FN(view)(ba, a + i, m), *y = FN(view)(bb, FN(or_zeros)(b, i), m);
        for (size_t k = 0; k < m; k++)
            acc[i + k] += fabs((double)(x[k] - y[k]));
    }
}

static void FN(count_nonfinite)(uint64_t *counts, const void *x_, size_t n) {
    const T *x = x_;
    ACC buf[LENS_PIECE];
    for (size_t i = 0, m; i < n; i += m) {
        m = FN(piece)(i, n);
        const ACC *v = FN(view)(buf, x + i, m);
        uint32_t nan = 0, inf = 0;
        for (size_t k = 0; k < m; k++) {
            nan += v[k] != v[k];
            inf += v[k] == (ACC)INFINITY || v[k] == -(ACC)INFINITY;
        }
        counts[0] += nan;
        counts[1] += inf;
    }
}
