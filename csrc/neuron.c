/* SPDX-License-Identifier: MIT
 * neuron.c: language activation probability entropy of neurons, arXiv 2402.16438.  Level 3.
 * p[l,j] = share of the tokens of language l on which gate j is above zero.  Order statistics are
 * exact: a non-negative double and its bits, read as an integer, have the same order. */
#include "kernels.h"
#include "parallel.h"

#include <math.h>
#include <string.h>

typedef struct {
    uint64_t *counts;
    const unsigned char *X;
    const uint8_t *mask;
    size_t n, d, size;
    const lens_kernels *k;
} count_job;

/* A chunk is a tile of LENS_TILE columns, all rows: its counters stay in L1. */
static lens_status count_chunk(void *ctx, size_t chunk, size_t thread) {
    const count_job *j = ctx;
    size_t i = chunk * LENS_TILE, m = j->d - i < LENS_TILE ? j->d - i : LENS_TILE;
    (void)thread;
    int bad = j->k->positive(j->counts + i, j->X + i * j->size, j->mask, j->n, j->d, m);
    return bad ? LENS_ENONFINITE : LENS_OK;
}

lens_status lens_neuron_count(uint64_t *out, lens_fault *fault, const uint64_t *counts,
                              const void *X, const uint8_t *mask, size_t n, size_t d,
                              lens_dtype dtype, int n_threads) {
    *fault = (lens_fault){.row = LENS_NOWHERE, .item = LENS_NOWHERE};
    if (dtype >= LENS_N_DTYPES)
        return LENS_EDTYPE;
    for (size_t i = 0; i < d; i++)
        out[i] = counts != NULL ? counts[i] : 0;
    count_job j = {.counts = out,
                   .X = X,
                   .mask = mask,
                   .n = n,
                   .d = d,
                   .size = lens_dtype_size(dtype),
                   .k = lens_kernels_of(dtype)};
    lens_status status = lens_parallel(count_chunk, &j, lens_n_chunks(d, LENS_TILE), n_threads);
    for (size_t row = 0; status == LENS_ENONFINITE && row < n; row++) {
        size_t column = d;
        if (mask == NULL || mask[row])
            column = j.k->first_nan(j.X + row * d * j.size, d);
        if (column < d) {
            *fault = (lens_fault){.row = row, .item = column};
            break;
        }
    }
    return status;
}

lens_status lens_neuron_lape(double *p, double *entropy, lens_fault *fault, const uint64_t *counts,
                             const uint64_t *tokens, size_t L, size_t m) {
    *fault = (lens_fault){.row = LENS_NOWHERE, .item = LENS_NOWHERE};
    for (size_t l = 0; l < L; l++) {
        for (size_t j = 0; j < m; j++) {
            if (counts[l * m + j] > tokens[l]) {
                *fault = (lens_fault){.row = l, .item = j};
                return LENS_EDOMAIN;
            }
            p[l * m + j] = (double)counts[l * m + j] / (double)tokens[l];
        }
        if (tokens[l] == 0) {
            fault->row = l;
            return LENS_EMASKED;
        }
    }
    for (size_t j = 0; j < m; j++) {
        double total = 0.0, sum = 0.0;
        for (size_t l = 0; l < L; l++)
            total += p[l * m + j];
        for (size_t l = 0; l < L; l++) {
            double share = p[l * m + j] / total;
            sum += share > 0.0 ? share * log(share) : 0.0;
        }
        entropy[j] = total > 0.0 ? 0.0 - sum : HUGE_VAL; /* 0 - 0 is +0, unlike -(0) */
    }
    return LENS_OK;
}

static uint64_t key_of(double x) {
    uint64_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

/* The k-th smallest of x[n], 1 <= k <= n, all non-negative: eight bits of the key at a time. */
static double kth_smallest(const double *x, size_t n, size_t k) {
    uint64_t prefix = 0, known = 0;
    for (int shift = 56; shift >= 0; shift -= 8) {
        size_t histogram[256] = {0}, digit = 0;
        for (size_t i = 0; i < n; i++) {
            uint64_t key = key_of(x[i]);
            histogram[key >> shift & 255] += (key & known) == prefix;
        }
        while (k > histogram[digit])
            k -= histogram[digit++];
        prefix |= (uint64_t)digit << shift;
        known |= (uint64_t)255 << shift;
    }
    double value;
    memcpy(&value, &prefix, sizeof value);
    return value;
}

lens_status lens_neuron_select(uint8_t *member, double *entropy, double *tau, lens_fault *fault,
                               const double *p, const double *raw, size_t L, size_t m, size_t rank,
                               size_t keep) {
    *fault = (lens_fault){.row = LENS_NOWHERE, .item = LENS_NOWHERE};
    if (rank < 1 || rank > lens_mul(L, m) || keep > m)
        return LENS_ESHAPE;
    for (size_t i = 0; i < L * m; i++)
        if (!(p[i] >= 0.0 && p[i] <= 1.0) || signbit(p[i])) {
            *fault = (lens_fault){.row = i / m, .item = i % m};
            return LENS_EDOMAIN;
        }
    *tau = kth_smallest(p, L * m, rank);
    for (size_t j = 0; j < m; j++) {
        if (!(raw[j] >= 0.0) || signbit(raw[j])) {
            fault->item = j;
            return LENS_EDOMAIN;
        }
        int active = 0;
        for (size_t l = 0; l < L; l++)
            active |= p[l * m + j] > *tau;
        entropy[j] = active ? raw[j] : HUGE_VAL;
    }
    memset(member, 0, L * m);
    double limit = keep > 0 ? kth_smallest(entropy, m, keep) : 0.0;
    size_t ties = keep; /* number of neurons at the limit that are still wanted */
    for (size_t j = 0; j < m; j++)
        ties -= entropy[j] < limit;
    for (size_t j = 0; j < m; j++) {
        int chosen = entropy[j] < limit || (entropy[j] == limit && ties > 0);
        ties -= chosen && entropy[j] == limit;
        for (size_t l = 0; l < L && chosen && isfinite(entropy[j]); l++)
            member[l * m + j] = p[l * m + j] > *tau;
    }
    return LENS_OK;
}
