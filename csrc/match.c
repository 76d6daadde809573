/* SPDX-License-Identifier: MIT
 * match.c: mutual nearest neighbours of two sets of sentences by cosine, MEXA, arXiv 2410.05873.  Level 3.
 * BLAS computes the cosines block by block; of each block only the rivals are stored, the candidates
 * for the maximum of a row or column.  BLAS can give equal rows different bits, so rivals closer than
 * its rounding error (see margin_of) are compared again by the lanes of `similarity`.  The result is
 * the one the lanes alone would give, whatever BLAS does. */
#include "blas.h"
#include "kernels.h"
#include "parallel.h"

#include <float.h>
#include <math.h>

#define BLOCK 512    /* rows of one block of cosines */
#define WIDE 1024    /* columns of it */
#define STEP 64      /* columns compared at once */
#define RIVALS 6     /* rivals stored for a maximum; with more, the lanes do the whole row */
#define COLUMNS 1024 /* columns whose rivals one thread merges at once */
#define SWEEP 32     /* rows of the other side that the lanes compare at once */

/* Rivals for the maximum of a row or column: those within the margin of the largest so far. */
typedef struct {
    double top, value[RIVALS];
    size_t n, at[RIVALS]; /* n = RIVALS + 1: too many to store */
} contest;

typedef struct {
    const unsigned char *X[2]; /* A and B: the rows and the columns of the cosines */
    uint64_t *best[2];
    double *scale[2], *rooms; /* (n,2) each; a workspace for each thread */
    size_t n, d, size, acc_size, rows, per_thread, n_threads;
    double margin;
    const lens_kernels *k;
    lens_fault *faults; /* one a thread */
    int side;           /* of a sweep */
} match_job;

/* One thread's workspace; the panels also hold whole unit rows when the lanes compare. */
typedef struct {
    contest *columns, *row;
    unsigned char *floors, *z, *t, *panel[2];
} room;

static size_t least(size_t a, size_t b) {
    return a < b ? a : b;
}

/* Rows of a chunk: at least two chunks, for two threads, of equal size. */
static size_t match_rows(size_t n) {
    size_t chunks = 2 * (n / (2 * BLOCK) + (n % (2 * BLOCK) != 0));
    return n < 2 ? 1 : n / chunks + (n % chunks != 0);
}

static size_t panel_size(size_t rows, size_t d) {
    return lens_mul(rows, least(d, LENS_PIECE));
}

/* Doubles of one thread's workspace; an ACC is never larger than a double. */
static size_t room_size(size_t n, size_t d, size_t acc_size) {
    size_t p = match_rows(n), q = least(n, WIDE), contests = lens_add(n, p);
    size_t panels = lens_add(panel_size(p, d), panel_size(q, d));
    size_t units = lens_mul(least(n, SWEEP) + 1, d);
    size_t acc = lens_add(lens_add(n, 2 * p * q), panels > units ? panels : units);
    size_t doubles = acc_size == sizeof(double) ? acc : acc / 2 + acc % 2;
    return lens_add(lens_mul(contests, sizeof(contest) / sizeof(double)), doubles);
}

static room room_of(const match_job *j, size_t thread) {
    size_t p = j->rows, q = least(j->n, WIDE);
    room r = {.columns = (contest *)(void *)(j->rooms + thread * j->per_thread)};
    r.row = r.columns + j->n;
    r.floors = (unsigned char *)(r.row + p);
    r.z = r.floors + j->n * j->acc_size;
    r.t = r.z + p * q * j->acc_size;
    r.panel[0] = r.t + p * q * j->acc_size;
    r.panel[1] = r.panel[0] + panel_size(p, j->d) * j->acc_size;
    return r;
}

/* Twice the largest difference between BLAS and the lanes, for rows of length 1.  A sum of m products
 * in any order is off by at most (m + 1) u sum |a b|, and that sum is at most 1 (Cauchy-Schwarz).
 * Both add up pieces of LENS_PIECE coordinates; within a piece the lanes make 37 roundings.  The
 * rest of the 128 covers lengths that are 1 only to rounding, and rounded floors. */
static double margin_of(size_t d, size_t acc_size) {
    double roundings = (double)(least(d, LENS_PIECE) + 128 + 2 * (d / LENS_PIECE + 1));
    if (acc_size == sizeof(double))
        return roundings * DBL_EPSILON + 8.0 * (double)d * DBL_MIN;
    return roundings * (double)FLT_EPSILON + 8.0 * (double)d * (double)FLT_MIN;
}

/* Add value v of index `at` to the rivals if it is one, and drop those it beats. */
static void compete(contest *c, double v, size_t at, double margin) {
    if (!(v >= c->top - margin))
        return;
    if (v > c->top) {
        size_t kept = 0;
        for (size_t i = 0; c->n <= RIVALS && i < c->n; i++)
            if (c->value[i] >= v - margin) {
                c->value[kept] = c->value[i];
                c->at[kept++] = c->at[i];
            }
        if (c->n <= RIVALS || c->top < v - margin)
            c->n = kept;
        c->top = v;
    }
    if (c->n < RIVALS) {
        c->value[c->n] = v;
        c->at[c->n] = at;
    }
    c->n += c->n <= RIVALS;
}

/* Merge the rivals another thread stored for the same column. */
static void join(contest *c, const contest *other, double margin) {
    if (other->n <= RIVALS) {
        for (size_t i = 0; i < other->n; i++)
            compete(c, other->value[i], other->at[i], margin);
    } else if (other->top >= c->top - margin) {
        c->top = other->top > c->top ? other->top : c->top;
        c->n = RIVALS + 1;
    }
}

/* Element i of the ACC array x. */
static double element(const match_job *j, const unsigned char *x, size_t i) {
    const void *at = x + i * j->acc_size;
    return j->acc_size == sizeof(double) ? *(const double *)at : (double)*(const float *)at;
}

/* Coordinates c..c+m-1 of the unit row i of one side. */
static void unit_of(const match_job *j, unsigned char *out, int side, size_t i, size_t c,
                    size_t m) {
    j->k->unit(out, j->X[side] + (i * j->d + c) * j->size, j->scale[side] + 2 * i, m);
}

/* Update the strict maximum by v of index i; the index becomes n on a tie. */
static void compete_strictly(double *best, uint64_t *at, double v, size_t i, size_t n) {
    if (v > *best) {
        *best = v;
        *at = i;
    } else if (v == *best) {
        *at = n;
    }
}

/* Index of the strict maximum of row i of a side, n if it is tied, n + 1 if too many rivals are left
 * to decide here. */
static uint64_t decide(const match_job *j, const room *r, const contest *c, int side, size_t i) {
    if (c->n == 1)
        return c->at[0];
    if (c->n > RIVALS)
        return j->n + 1;
    uint64_t at = j->n;
    double best = -HUGE_VAL, z;
    unsigned char *mine = r->panel[0], *other = mine + j->d * j->acc_size;
    unit_of(j, mine, side, i, 0, j->d);
    for (size_t k = 0; k < c->n; k++) {
        unit_of(j, other, !side, c->at[k], 0, j->d);
        j->k->similarity(&z, mine, other, 1, 1, j->d);
        compete_strictly(&best, &at, z, c->at[k], j->n);
    }
    return at;
}

static lens_status scale_chunk(void *ctx, size_t chunk, size_t thread) {
    const match_job *j = ctx;
    size_t rows = lens_chunk_rows(j->d), end = least((chunk + 1) * rows, 2 * j->n);
    for (size_t i = chunk * rows; i < end; i++) {
        size_t side = i >= j->n, row = i - side * j->n;
        const unsigned char *x = j->X[side] + row * j->d * j->size;
        if (!j->k->scale(j->scale[side] + 2 * row, x, j->d)) {
            j->faults[thread].row = i;
            return j->k->first_nonfinite(x, j->d) < j->d ? LENS_ENONFINITE : LENS_EDOMAIN;
        }
    }
    return LENS_OK;
}

/* z (p,q) = cosines of rows a.. and columns b..; pieces are added here, as margin_of assumes. */
static void multiply(const match_job *j, const room *r, size_t a, size_t p, size_t b, size_t q) {
    for (size_t c = 0, m; c < j->d; c += m) {
        unsigned char *out = c == 0 ? r->z : r->t;
        m = least(j->d - c, LENS_PIECE);
        for (size_t i = 0; i < p; i++)
            unit_of(j, r->panel[0] + i * m * j->acc_size, 0, a + i, c, m);
        for (size_t k = 0; k < q; k++)
            unit_of(j, r->panel[1] + k * m * j->acc_size, 1, b + k, c, m);
        const void *A = r->panel[0], *B = r->panel[1];
        if (j->acc_size == sizeof(double))
            lens_gemm_nt_f64((void *)out, q, A, m, B, m, p, q, m);
        else
            lens_gemm_nt_f32((void *)out, q, A, m, B, m, p, q, m);
        if (c > 0)
            j->k->accumulate(r->z, r->t, p * q);
    }
}

static void set_floor(const match_job *j, const room *r, size_t k) {
    double floor = r->columns[k].top - j->margin;
    void *at = r->floors + k * j->acc_size;
    if (j->acc_size == sizeof(double))
        *(double *)at = floor;
    else
        *(float *)at = (float)floor;
}

/* Store the rivals of the block z; most runs of STEP columns have none and are skipped at once. */
static void note(const match_job *j, const room *r, size_t a, size_t p, size_t b, size_t q) {
    for (size_t i = 0; i < p; i++)
        for (size_t c = 0, m; c < q; c += m) {
            const unsigned char *z = r->z + (i * q + c) * j->acc_size;
            m = least(q - c, STEP);
            if (!j->k->reaches(z, r->floors + (b + c) * j->acc_size, r->row[i].top - j->margin, m))
                continue;
            for (size_t k = 0; k < m; k++) {
                double v = element(j, z, k);
                compete(&r->row[i], v, b + c + k, j->margin);
                compete(&r->columns[b + c + k], v, a + i, j->margin);
                set_floor(j, r, b + c + k);
            }
        }
}

static lens_status match_chunk(void *ctx, size_t chunk, size_t thread) {
    const match_job *j = ctx;
    size_t a = chunk * j->rows, p = least(j->rows, j->n - a);
    room r = room_of(j, thread);
    for (size_t i = 0; i < p; i++)
        r.row[i] = (contest){.top = -HUGE_VAL};
    for (size_t b = 0, q; b < j->n; b += q) {
        q = least(j->n - b, WIDE);
        multiply(j, &r, a, p, b, q);
        note(j, &r, a, p, b, q);
    }
    for (size_t i = 0; i < p; i++)
        j->best[0][a + i] = decide(j, &r, &r.row[i], 0, a + i);
    return LENS_OK;
}

static lens_status column_chunk(void *ctx, size_t chunk, size_t thread) {
    const match_job *j = ctx;
    room mine = room_of(j, thread);
    for (size_t k = chunk * COLUMNS; k < least((chunk + 1) * COLUMNS, j->n); k++) {
        contest c = {.top = -HUGE_VAL};
        for (size_t other = 0; other < j->n_threads; other++)
            join(&c, &room_of(j, other).columns[k], j->margin);
        j->best[1][k] = decide(j, &mine, &c, 1, k);
    }
    return LENS_OK;
}

/* Decide, by the lanes alone, the rows of a side that decide() left open. */
static lens_status sweep_chunk(void *ctx, size_t chunk, size_t thread) {
    const match_job *j = ctx;
    size_t open[BLOCK], n_open = 0, n = j->n, bytes = j->d * j->acc_size;
    double best[BLOCK], z[SWEEP];
    room r = room_of(j, thread);
    unsigned char *mine = r.panel[0], *others = mine + bytes;
    for (size_t i = chunk * j->rows; i < least((chunk + 1) * j->rows, n); i++)
        if (j->best[j->side][i] > n) {
            j->best[j->side][i] = n;
            best[n_open] = -HUGE_VAL;
            open[n_open++] = i;
        }
    for (size_t b = 0, q; b < n && n_open > 0; b += q) {
        q = least(n - b, SWEEP);
        for (size_t k = 0; k < q; k++)
            unit_of(j, others + k * bytes, !j->side, b + k, 0, j->d);
        for (size_t i = 0; i < n_open; i++) {
            unit_of(j, mine, j->side, open[i], 0, j->d);
            j->k->similarity(z, mine, others, 1, q, j->d);
            for (size_t k = 0; k < q; k++)
                compete_strictly(&best[i], &j->best[j->side][open[i]], z[k], b + k, n);
        }
    }
    return LENS_OK;
}

/* Scales of all rows; fault is (row, side) of the first without a direction. */
static lens_status scale_rows(match_job *j, lens_fault *fault, int n_threads) {
    size_t chunks = lens_n_chunks(2 * j->n, lens_chunk_rows(j->d));
    lens_status status = lens_parallel(scale_chunk, j, chunks, n_threads);
    for (size_t i = 0; i < LENS_MAX_THREADS; i++)
        if (j->faults[i].row < fault->row)
            *fault = (lens_fault){.row = j->faults[i].row};
    if (status != LENS_OK) {
        fault->item = fault->row >= j->n;
        fault->row -= fault->item * j->n;
    }
    return status;
}

lens_status lens_metrics_match(uint64_t *row_best, uint64_t *column_best, lens_fault *fault,
                               const void *A, const void *B, size_t n, size_t d, lens_dtype dtype,
                               int n_threads, double *work) {
    lens_fault faults[LENS_MAX_THREADS];
    *fault = (lens_fault){.row = LENS_NOWHERE, .item = LENS_NOWHERE};
    if (dtype >= LENS_N_DTYPES)
        return LENS_EDTYPE;
    for (size_t i = 0; i < LENS_MAX_THREADS; i++)
        faults[i] = *fault;
    match_job j = {.X = {A, B},
                   .best = {row_best, column_best},
                   .scale = {work, work + 2 * n},
                   .rooms = work + 4 * n,
                   .n = n,
                   .d = d,
                   .size = lens_dtype_size(dtype),
                   .acc_size = dtype == LENS_F64 ? sizeof(double) : sizeof(float),
                   .rows = match_rows(n),
                   .k = lens_kernels_of(dtype),
                   .faults = faults};
    size_t chunks = lens_n_chunks(n, j.rows);
    j.per_thread = room_size(n, d, j.acc_size);
    j.n_threads = lens_threads(chunks, n_threads);
    j.margin = margin_of(d, j.acc_size);
    lens_status status = scale_rows(&j, fault, n_threads);
    if (status != LENS_OK)
        return status;
    for (size_t thread = 0; thread < j.n_threads; thread++) {
        room r = room_of(&j, thread);
        for (size_t k = 0; k < n; k++) {
            r.columns[k] = (contest){.top = -HUGE_VAL};
            set_floor(&j, &r, k);
        }
    }
    lens_parallel(match_chunk, &j, chunks, n_threads);
    lens_parallel(column_chunk, &j, lens_n_chunks(n, COLUMNS), (int)j.n_threads);
    for (j.side = 0; j.side < 2; j.side++)
        for (size_t i = 0; i < n; i++)
            if (j.best[j.side][i] > n) {
                lens_parallel(sweep_chunk, &j, chunks, n_threads);
                break;
            }
    return LENS_OK;
}

size_t lens_metrics_match_worksize(size_t n, size_t d, lens_dtype dtype, int n_threads) {
    size_t acc_size = dtype == LENS_F64 ? sizeof(double) : sizeof(float);
    size_t threads = lens_threads(lens_n_chunks(n, match_rows(n)), n_threads);
    return lens_add(lens_mul(4, n), lens_mul(threads, room_size(n, d, acc_size)));
}
