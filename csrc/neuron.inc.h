/* SPDX-License-Identifier: MIT
 * neuron.inc.h: number of rows above zero in each column.  Level 2 template.
 * COUNT is an unsigned integer as wide as T, so that one register holds as many counters as
 * elements.  INFINITE, for 16-bit types, is the bits of infinity: anything larger is NaN. */
#if defined(DIRECT)
#define POSITIVE(x) ((x) > 0)
#define IS_NAN(x) ((x) != (x))
#else
#define POSITIVE(x) ((int16_t)(x) > 0)
#define IS_NAN(x) ((int16_t)((x) & 0x7fff) > INFINITE)
#endif

/* counts[n] += number of rows of X with mask != 0 (all, if NULL) above zero in columns 0..n-1, n <=
 * LENS_TILE.  Returns 1 if one of these elements is NaN; +infinity is above zero. */
static int FN(positive)(uint64_t *counts, const void *X_, const uint8_t *mask, size_t rows,
                        size_t d, size_t n) {
    const T *X = X_;
    COUNT local[LENS_TILE] = {0}, bad = 0;
    for (size_t row = 0, since = 0; row < rows; row++) {
        const T *x = X + row * d;
        if (mask != NULL && !mask[row])
            continue;
        for (size_t i = 0; i < n; i++) {
            local[i] = (COUNT)(local[i] + POSITIVE(x[i]));
            bad = (COUNT)(bad | IS_NAN(x[i]));
        }
        if (++since == LENS_COUNT_ROWS) { /* before a counter of 16 bits could wrap */
            for (size_t i = 0; i < n; i++)
                counts[i] += local[i], local[i] = 0;
            since = 0;
        }
    }
    for (size_t i = 0; i < n; i++)
        counts[i] += local[i];
    return bad != 0;
}

static size_t FN(first_nan)(const void *x_, size_t n) {
    const T *x = x_;
    size_t i = 0;
    while (i < n && !IS_NAN(x[i]))
        i++;
    return i;
}

#undef POSITIVE
#undef IS_NAN
