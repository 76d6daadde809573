/* SPDX-License-Identifier: MIT
 * resample.c: the Gram matrix of all states of a site, and products of resampled means.  Level 3.
 * Means of any choice of rows are Y W with W (N,L) of one nonzero a row, so their products are
 * W^T G W with G = Y^T Y: O(N^2) a refit and independent of d.  resample_angles.c continues there. */
#include "blas.h"
#include "kernels.h"
#include "parallel.h"

#include <math.h>
#include <string.h>

#define TILE 512    /* most rows a side of a tile of G */
#define DEPTH 512   /* columns converted to double at a time; at most LENS_PIECE */
#define REFITS 128  /* refits in one matrix product */
#define COLUMNS 128 /* columns of G held in cache while labels change */
#define SHUFFLES 64 /* permutations that share one reading of G */

typedef struct {
    double *G, *drift, *mean, *work;
    const unsigned char *X;
    size_t N, d, size, edge, tiles;
    const lens_kernels *k;
    lens_fault *faults; /* one a thread */
} gram_job;

static const unsigned char *element(const gram_job *j, size_t site, size_t row, size_t column) {
    return j->X + ((site * j->N + row) * j->d + column) * j->size;
}

/* A chunk is a tile of LENS_PIECE columns of one site, all rows, added in their order. */
static lens_status mean_chunk(void *ctx, size_t chunk, size_t thread) {
    const gram_job *j = ctx;
    size_t tiles = lens_n_chunks(j->d, LENS_PIECE), site = chunk / tiles;
    size_t at = chunk % tiles * LENS_PIECE, m = j->d - at < LENS_PIECE ? j->d - at : LENS_PIECE;
    double *mean = j->mean + site * j->d + at;
    memset(mean, 0, m * sizeof *mean);
    for (size_t i = 0; i < j->N; i++)
        j->k->add(mean, element(j, site, i, at), m, 1.0);
    for (size_t c = 0; c < m; c++) {
        mean[c] /= (double)j->N;
        if (isfinite(mean[c]))
            continue;
        lens_fault found = {.row = LENS_NOWHERE, .item = LENS_NOWHERE};
        for (size_t i = 0; i < j->N && found.row == LENS_NOWHERE; i++) {
            size_t bad = j->k->first_nonfinite(element(j, site, i, at), m);
            if (bad < m)
                found = (lens_fault){.row = site * j->N + i, .item = at + bad};
        }
        j->faults[thread] = found;
        return LENS_ENONFINITE;
    }
    return LENS_OK;
}

/* out (rows,m) = X - mean in columns at..at+m-1 of rows first.., in double */
static void centred(double *out, const gram_job *j, size_t site, size_t first, size_t rows,
                    size_t at, size_t m) {
    const double *mean = j->mean + site * j->d + at;
    for (size_t i = 0; i < rows; i++) {
        double *y = out + i * m;
        for (size_t c = 0; c < m; c++)
            y[c] = -mean[c];
        j->k->add(y, element(j, site, first + i, at), m, 1.0);
    }
}

/* drift[rows] += A (rows,m) mean[m] */
static void add_drift(double *drift, const double *A, const double *mean, size_t rows, size_t m) {
    for (size_t i = 0; i < rows; i++) {
        double sum = 0.0;
        for (size_t c = 0; c < m; c++)
            sum += A[i * m + c] * mean[c];
        drift[i] += sum;
    }
}

/* G[k,i] = G[i,k] for i in a..a+p-1, k in b..b+q-1, k > i; in blocks, so that both stay in cache */
static void mirror(double *G, size_t N, size_t a, size_t p, size_t b, size_t q) {
    enum { BLOCK = 16 };
    for (size_t i0 = a; i0 < a + p; i0 += BLOCK)
        for (size_t k0 = b; k0 < b + q; k0 += BLOCK)
            for (size_t k = k0; k < k0 + BLOCK && k < b + q; k++)
                for (size_t i = i0; i < i0 + BLOCK && i < a + p && i < k; i++)
                    G[k * N + i] = G[i * N + k];
}

/* A chunk is one tile on or above the diagonal of one site, over all columns of X. */
static lens_status gram_chunk(void *ctx, size_t chunk, size_t thread) {
    const gram_job *j = ctx;
    size_t pairs = j->tiles * (j->tiles + 1) / 2, site = chunk / pairs, b = chunk % pairs, a = 0;
    while (b >= j->tiles - a) /* row a of the triangle has tiles - a of them */
        b -= j->tiles - a++;
    size_t N = j->N, d = j->d, first = a * j->edge, second = (a + b) * j->edge;
    size_t p = N - first < j->edge ? N - first : j->edge;
    size_t q = N - second < j->edge ? N - second : j->edge;
    double *A = j->work + thread * 2 * j->edge * DEPTH, *B = A + j->edge * DEPTH;
    double *G = j->G + site * N * N, *tile = G + first * N + second;
    for (size_t i = 0; i < p; i++)
        memset(tile + i * N, 0, q * sizeof *tile);
    for (size_t i = 0; i < p && b == 0; i++)
        j->drift[site * N + first + i] = 0.0;
    for (size_t at = 0, m; at < d; at += m) {
        m = d - at < DEPTH ? d - at : DEPTH;
        centred(A, j, site, first, p, at, m);
        if (b > 0) {
            centred(B, j, site, second, q, at, m);
            lens_gemm_nt_add_f64(tile, N, A, m, B, m, p, q, m);
        } else {
            lens_syrk_add_f64(tile, N, A, m, p, m);
            add_drift(j->drift + site * N + first, A, j->mean + site * d + at, p, m);
        }
    }
    for (size_t i = 0; i < p && b == 0; i++)
        if (!isfinite(tile[i * N + i] + j->drift[site * N + first + i])) {
            j->faults[thread] = (lens_fault){.row = site * N + first + i, .item = LENS_NOWHERE};
            return LENS_ENONFINITE;
        }
    mirror(G, N, first, p, second, q);
    return LENS_OK;
}

static size_t edge_of(size_t N) {
    return lens_n_chunks(N, lens_n_chunks(N, TILE));
}

lens_status lens_resample_gram(double *G, double *drift, double *mean, lens_fault *fault,
                               const void *X, size_t S, size_t N, size_t d, lens_dtype dtype,
                               int n_threads, double *work) {
    lens_fault faults[LENS_MAX_THREADS];
    *fault = (lens_fault){.row = LENS_NOWHERE, .item = LENS_NOWHERE};
    if (dtype >= LENS_N_DTYPES)
        return LENS_EDTYPE;
    if (N < 1 || d < 1)
        return LENS_ESHAPE;
    if (!lens_blas_fits(N, d, d))
        return LENS_EOVERFLOW;
    for (size_t i = 0; i < LENS_MAX_THREADS; i++)
        faults[i] = *fault;
    gram_job j = {.G = G,
                  .drift = drift,
                  .mean = mean,
                  .work = work,
                  .X = X,
                  .N = N,
                  .d = d,
                  .size = lens_dtype_size(dtype),
                  .edge = edge_of(N),
                  .tiles = lens_n_chunks(N, edge_of(N)),
                  .k = lens_kernels_of(dtype),
                  .faults = faults};
    lens_status status = lens_parallel(mean_chunk, &j, S * lens_n_chunks(d, LENS_PIECE), n_threads);
    if (status == LENS_OK)
        status = lens_parallel(gram_chunk, &j, S * (j.tiles * (j.tiles + 1) / 2), n_threads);
    for (size_t i = 0; i < LENS_MAX_THREADS; i++)
        if (faults[i].row < fault->row)
            *fault = faults[i];
    return status;
}

size_t lens_resample_gram_worksize(size_t S, size_t N, int n_threads) {
    size_t edge = N < 1 ? 1 : edge_of(N), tiles = lens_n_chunks(N, edge);
    size_t chunks = lens_mul(S, lens_mul(tiles, tiles + 1) / 2);
    return lens_mul(lens_threads(chunks, n_threads), lens_mul(2 * DEPTH, edge));
}

typedef struct {
    double *K, *cross, *work;
    const double *G, *fixed, *weights;
    const uint64_t *rows;
    size_t R, N, L, F, w;
} refit_job;

/* Dot product in eight lanes: a fixed order, for any register width. */
static double dot(const double *x, const double *y, size_t n) {
    double lane[8] = {0};
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (size_t l = 0; l < 8; l++)
            lane[l] += x[i + l] * y[i + l];
    for (size_t l = 0; i + l < n; l++)
        lane[l] += x[i + l] * y[i + l];
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) +
           ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

/* A chunk is REFITS refits: T = weights of language l times its rows of G, from l rightwards. */
static lens_status refit_chunk(void *ctx, size_t chunk, size_t thread) {
    const refit_job *j = ctx;
    size_t N = j->N, L = j->L, first = chunk * REFITS, shared = j->w != N;
    size_t n = j->R - first < REFITS ? j->R - first : REFITS;
    double *T = j->work + thread * REFITS * N, *K = j->K + first * L * L;
    const double *W = j->weights + first * j->w;
    for (size_t l = 0, at = 0; l < L; at += (size_t)j->rows[l++]) {
        size_t rows = (size_t)j->rows[l], right = N - at;
        const double *Wl = shared ? W : W + at;
        lens_gemm_nn_f64(T, right, Wl, j->w, j->G + at * N + at, N, n, right, rows);
        for (size_t i = 0; i < n; i++)
            for (size_t m = l, to = at; m < L; to += (size_t)j->rows[m++]) {
                const double *Wm = W + i * j->w + (shared ? 0 : to);
                double v = dot(T + i * right + (to - at), Wm, (size_t)j->rows[m]);
                K[(i * L + l) * L + m] = K[(i * L + m) * L + l] = v;
            }
        lens_gemm_nt_f64(j->cross + (first * L + l) * j->F, L * j->F, Wl, j->w, j->fixed + at, N, n,
                         j->F, rows);
    }
    return LENS_OK;
}

lens_status lens_resample_refits(double *K, double *cross, const double *G, const double *fixed,
                                 const double *weights, const uint64_t *rows, size_t R, size_t N,
                                 size_t L, size_t F, size_t w, int n_threads, double *work) {
    size_t total = 0;
    for (size_t l = 0; l < L; l++) {
        if (rows[l] < 1 || rows[l] > N - total || (w != N && rows[l] != w))
            return LENS_ESHAPE;
        total += (size_t)rows[l];
    }
    if (L < 2 || F < 1 || total != N)
        return LENS_ESHAPE;
    if (!lens_blas_fits(N, R, lens_mul(L, F)))
        return LENS_EOVERFLOW;
    refit_job j = {.K = K,
                   .cross = cross,
                   .work = work,
                   .G = G,
                   .fixed = fixed,
                   .weights = weights,
                   .rows = rows,
                   .R = R,
                   .N = N,
                   .L = L,
                   .F = F,
                   .w = w};
    return lens_parallel(refit_chunk, &j, lens_n_chunks(R, REFITS), n_threads);
}

size_t lens_resample_refits_worksize(size_t R, size_t N, int n_threads) {
    return lens_mul(lens_threads(lens_n_chunks(R, REFITS), n_threads), lens_mul(REFITS, N));
}

typedef struct {
    double *K, *work;
    const double *G;
    const uint64_t *labels;
    size_t P, N, L;
    const lens_kernels *k;
    lens_fault *faults;
} label_job;

/* K (L,L) += sums over columns at..at+m-1 and the rows above them, half of those beside them. */
static void add_columns(double *K, double *sums, const label_job *j, const uint64_t *label,
                        size_t at, size_t m) {
    memset(sums, 0, j->L * COLUMNS * sizeof *sums);
    for (size_t i = 0; i < at + m; i++)
        j->k->add(sums + label[i] * COLUMNS, j->G + i * j->N + at, m, i < at ? 1.0 : 0.5);
    for (size_t a = 0; a < j->L; a++)
        for (size_t c = 0; c < m; c++)
            K[a * j->L + label[at + c]] += sums[a * COLUMNS + c];
}

/* K = (K + K^T) over the numbers of rows of both labels. */
static void finish(double *K, const double *count, size_t L) {
    for (size_t a = 0; a < L; a++)
        for (size_t b = a; b < L; b++)
            K[a * L + b] = K[b * L + a] = (K[a * L + b] + K[b * L + a]) / (count[a] * count[b]);
}

/* A chunk is SHUFFLES permutations.  Only additions, in an order that sizes fix: no BLAS here. */
static lens_status label_chunk(void *ctx, size_t chunk, size_t thread) {
    const label_job *j = ctx;
    size_t N = j->N, L = j->L, first = chunk * SHUFFLES;
    size_t end = j->P - first < SHUFFLES ? j->P : first + SHUFFLES;
    double *sums = j->work + thread * L * (COLUMNS + 1), *count = sums + L * COLUMNS;
    for (size_t p = first; p < end; p++)
        for (size_t i = 0; i < N; i++)
            if (j->labels[p * N + i] >= L) {
                j->faults[thread] = (lens_fault){.row = p, .item = i};
                return LENS_EDOMAIN;
            }
    memset(j->K + first * L * L, 0, (end - first) * L * L * sizeof *j->K);
    for (size_t at = 0; at < N; at += COLUMNS)
        for (size_t p = first; p < end; p++)
            add_columns(j->K + p * L * L, sums, j, j->labels + p * N, at,
                        N - at < COLUMNS ? N - at : COLUMNS);
    for (size_t p = first; p < end; p++) {
        memset(count, 0, L * sizeof *count);
        for (size_t i = 0; i < N; i++)
            count[j->labels[p * N + i]] += 1.0;
        for (size_t a = 0; a < L; a++)
            if (count[a] == 0.0) {
                j->faults[thread] = (lens_fault){.row = p, .item = LENS_NOWHERE};
                return LENS_EDOMAIN;
            }
        finish(j->K + p * L * L, count, L);
    }
    return LENS_OK;
}

lens_status lens_resample_labels(double *K, lens_fault *fault, const double *G,
                                 const uint64_t *labels, size_t P, size_t N, size_t L,
                                 int n_threads, double *work) {
    lens_fault faults[LENS_MAX_THREADS];
    *fault = (lens_fault){.row = LENS_NOWHERE, .item = LENS_NOWHERE};
    for (size_t i = 0; i < LENS_MAX_THREADS; i++)
        faults[i] = *fault;
    label_job j = {.K = K,
                   .work = work,
                   .G = G,
                   .labels = labels,
                   .P = P,
                   .N = N,
                   .L = L,
                   .k = lens_kernels_of(LENS_F64),
                   .faults = faults};
    lens_status status = lens_parallel(label_chunk, &j, lens_n_chunks(P, SHUFFLES), n_threads);
    for (size_t i = 0; i < LENS_MAX_THREADS; i++)
        if (faults[i].row < fault->row)
            *fault = faults[i];
    return status;
}

size_t lens_resample_labels_worksize(size_t P, size_t L, int n_threads) {
    return lens_mul(lens_threads(lens_n_chunks(P, SHUFFLES), n_threads), lens_mul(L, COLUMNS + 1));
}
