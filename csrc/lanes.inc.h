/* SPDX-License-Identifier: MIT
 * lanes.inc.h: views of a row as ACC, and the dot product over 16 lanes.  Level 2 template.
 * A reduction adds element i to lane i mod 16, then folds the lanes in a fixed tree: the compiler
 * may use registers of any width without changing a bit. */

/* n <= LENS_PIECE elements of x as ACC: x itself, or a converted copy in buf. */
static inline const ACC *FN(view)(ACC *buf, const T *x, size_t n) {
#if defined(DIRECT)
    (void)buf, (void)n;
    return x;
#elif defined(LOADN)
    LOADN(buf, x, n);
    return buf;
#else
    for (size_t i = 0; i < n; i++)
        buf[i] = LOAD(x[i]);
    return buf;
#endif
}

/* Buffer for values that flush() will store: out itself if T is ACC, else buf. */
static inline ACC *FN(target)(ACC *buf, T *out) {
#if defined(DIRECT)
    (void)buf;
    return out;
#else
    (void)out;
    return buf;
#endif
}

/* out[n] = buf[n] in T; no copy if buf is out. */
static inline void FN(flush)(T *out, const ACC *buf, size_t n) {
#if defined(DIRECT)
    if (buf != out)
        memcpy(out, buf, n * sizeof(T));
#elif defined(STOREN)
    STOREN(out, buf, n);
#else
    for (size_t i = 0; i < n; i++)
        out[i] = STORE(buf[i]);
#endif
}

static inline size_t FN(piece)(size_t i, size_t n) {
    return n - i < LENS_PIECE ? n - i : LENS_PIECE;
}

/* Sum of the lanes in a fixed tree; overwrites them.  Neither this nor tail() is inlined: compilers
 * would otherwise scatter the lanes of the preceding loop over scalars. */
LENS_NOINLINE static ACC FN(fold)(ACC *lane) {
    for (size_t l = 0; l < 8; l++)
        lane[l] += lane[l + 8];
    for (size_t l = 0; l < 4; l++)
        lane[l] += lane[l + 4];
    for (size_t l = 0; l < 2; l++)
        lane[l] += lane[l + 2];
    return lane[0] + lane[1];
}

/* lane += x y for the last n < LENS_LANES elements. */
LENS_NOINLINE static void FN(tail)(ACC *lane, const ACC *x, const ACC *y, size_t n) {
    for (size_t l = 0; l < n; l++)
        lane[l] += x[l] * y[l];
}

static inline ACC FN(dot)(const ACC *x, const ACC *y, size_t n) {
    ACC lane[LENS_LANES] = {0};
    size_t i = 0;
    for (; i + LENS_LANES <= n; i += LENS_LANES)
        for (size_t l = 0; l < LENS_LANES; l++)
            lane[l] += x[i + l] * y[i + l];
    if (i < n)
        FN(tail)(lane, x + i, y + i, n - i);
    return FN(fold)(lane);
}

/* buf[n] = x - y, both of n <= LENS_PIECE elements. */
static inline void FN(difference)(ACC *buf, const T *x, const T *y, size_t n) {
    ACC bx[LENS_PIECE], by[LENS_PIECE];
    const ACC *vx = FN(view)(bx, x, n), *vy = FN(view)(by, y, n);
    for (size_t i = 0; i < n; i++)
        buf[i] = vx[i] - vy[i];
}

static void FN(load)(float *out, const void *x_, size_t n) {
    const T *x = x_;
    ACC buf[LENS_PIECE];
    for (size_t i = 0, m; i < n; i += m) {
        m = FN(piece)(i, n);
        void *to = sizeof(ACC) == sizeof(float) ? (void *)(out + i) : buf;
        const ACC *v = FN(view)(to, x + i, m);
        for (size_t k = 0; v != (void *)(out + i) && k < m; k++)
            out[i + k] = (float)v[k];
    }
}

static void FN(store)(void *out_, const float *x, size_t n) {
    T *out = out_;
    ACC buf[LENS_PIECE];
    for (size_t i = 0, m; i < n; i += m) {
        m = FN(piece)(i, n);
        ACC *to = FN(target)(buf, out + i);
        for (size_t k = 0; k < m; k++)
            to[k] = (ACC)x[i + k];
        FN(flush)(out + i, to, m);
    }
}

static size_t FN(first_nonfinite)(const void *x_, size_t n) {
    const T *x = x_;
    ACC buf[LENS_PIECE];
    for (size_t i = 0, m; i < n; i += m) {
        m = FN(piece)(i, n);
        const ACC *v = FN(view)(buf, x + i, m);
        for (size_t k = 0; k < m; k++)
            if (!isfinite(v[k]))
                return i + k;
    }
    return n;
}
