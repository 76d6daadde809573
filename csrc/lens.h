/* SPDX-License-Identifier: MIT
 * lens.h: the whole public C API.  Level 0: includes nothing of ours.
 * Every function takes outputs, inputs, sizes, scalars, n_threads, in this order; the caller owns
 * all memory.  Arrays are C-contiguous; `basis` is stored (r,d), one orthonormal direction a row,
 * which is the column-major d x r matrix M_s.  T is the storage type of a dtype, ACC its
 * accumulator (float for 16 and 32 bit types, double for f64). */
#ifndef LENS_H
#define LENS_H

#include <stddef.h>
#include <stdint.h>

/* code, Python exception (a bare token, pasted to PyExc_ in level 4 only), text */
#define LENS_STATUSES(X)                                                               \
    X(OK, ValueError, "ok")                                                            \
    X(ESHAPE, ValueError, "sizes do not fit together")                                 \
    X(EDOMAIN, ValueError, "a value is outside the domain of this function")           \
    X(ENONFINITE, ValueError, "NaN or infinite value")                                 \
    X(EMASKED, ValueError, "every token is masked out, so there is nothing to pool")   \
    X(ERANK, ValueError, "the directions are linearly dependent")                      \
    X(EDTYPE, TypeError, "unknown dtype code")                                         \
    X(ENOMEM, MemoryError, "out of memory")                                            \
    X(EOVERFLOW, OverflowError, "a size does not fit the integer type of BLAS/LAPACK") \
    X(ENOCONV, LinAlgError, "LAPACK did not converge")

typedef enum {
#define X(code, exception, text) LENS_##code,
    LENS_STATUSES(X)
#undef X
} lens_status;

/* enum, suffix, storage, accumulator; load and store are lens_load_<suffix>, lens_store_<suffix> */
#define LENS_DTYPES(X)           \
    X(F32, f32, float, float)    \
    X(F64, f64, double, double)  \
    X(F16, f16, uint16_t, float) \
    X(BF16, bf16, uint16_t, float)

typedef enum {
#define X(code, suffix, storage, acc) LENS_##code,
    LENS_DTYPES(X)
#undef X
        LENS_N_DTYPES
} lens_dtype;

typedef enum { LENS_POOL_LAST, LENS_POOL_MEAN, LENS_POOL_WEIGHTED, LENS_N_POOLINGS } lens_pooling;

/* Where a function failed: row and item (token, column) of the first bad value, or LAPACK's info.
 * LENS_NOWHERE marks a field that is not set. */
#define LENS_NOWHERE ((size_t)-1)
typedef struct {
    size_t row, item;
    int info;
} lens_fault;

/* ---- status.c, kernels.c: text, sizes, instruction sets ------------------------------------- */

const char *lens_status_text(lens_status status);
/* Bytes of one stored element; 0 for an unknown dtype. */
size_t lens_dtype_size(lens_dtype dtype);
/* a*b and a+b, SIZE_MAX when they do not fit. */
size_t lens_mul(size_t a, size_t b);
size_t lens_add(size_t a, size_t b);
/* Choose the widest instruction set of this CPU.  Called once, at start. */
void lens_isa_init(void);
/* The instruction set in use, and the i-th this CPU can run (NULL past the last). */
const char *lens_isa(void);
const char *lens_isa_available(size_t i);
/* Use the named set from now on (tests only).  LENS_EDOMAIN if this CPU cannot run it. */
lens_status lens_isa_force(const char *name);

/* ---- dtype conversion (pool.c) --------------------------------------------------------------- */

/* out[n] = float32 of x[n].  f64 rounds to nearest even. */
lens_status lens_dtype_load(float *out, const void *x, size_t n, lens_dtype dtype);
/* out[n] = x[n] rounded to nearest even in dtype. */
lens_status lens_dtype_store(void *out, const float *x, size_t n, lens_dtype dtype);

/* ---- pool.c ---------------------------------------------------------------------------------- */

/* out[i] = sum_k w_k X[i,k] / sum_k w_k over the tokens with mask != 0.  last: w = 1 at the last
 * of them; mean: w = 1; weighted: w = 1,2,3,… in order.  out: (n,d) float64, X: (n,t,d) dtype,
 * mask: (n,t).  LENS_EMASKED (row) if a row has no token, LENS_ENONFINITE (row, token). */
lens_status lens_pool(double *out, lens_fault *fault, const void *X, const uint8_t *mask, size_t n,
                      size_t t, size_t d, lens_dtype dtype, lens_pooling mode, int n_threads);

/* ---- moments.c ------------------------------------------------------------------------------- */

/* Welford, row after row: mean' and m2' after the n rows of X join `count` rows with (mean, m2).
 * Feeding rows in one call or in many gives the same bits.  mean, m2 and primed: (d,), X: (n,d)
 * dtype.  mean = m2 = NULL when count is 0.  LENS_ENONFINITE (row, column). */
lens_status lens_moments_update(double *mean_out, double *m2_out, lens_fault *fault,
                                const double *mean, const double *m2, const void *X, size_t n,
                                size_t d, uint64_t count, lens_dtype dtype, int n_threads);

/* Chan: moments of two disjoint sets, left first.  all: (d,).  LENS_EDOMAIN if a count is 0. */
lens_status lens_moments_merge(double *mean_out, double *m2_out, const double *mean_a,
                               const double *m2_a, const double *mean_b, const double *m2_b,
                               size_t d, uint64_t count_a, uint64_t count_b);

/* ---- blas.c ---------------------------------------------------------------------------------- */

/* Make BLAS single-threaded: the core runs sites in parallel itself.  Called once, at start. */
void lens_blas_init(void);
/* Name and build options of the BLAS, as the library reports them. */
const char *lens_blas_config(void);

/* ---- subspace.c ------------------------------------------------------------------------------ */

/* For each site s: mean[s] = means of the L rows; basis[s,k], sigma[s,k] = left singular vectors
 * and values of the centred d x L matrix, k < L-1, largest |component| of a vector > 0; route[s] =
 * 0 Gram matrix, 1 QR first.  basis: (S,L-1,d), sigma: (S,L-1), mean: (S,d), route: (S,),
 * means: (S,L,d).  Needs 2 <= L <= d.  Vectors of singular values that are zero are some
 * orthonormal completion.  LENS_ENONFINITE (site, language), LENS_ENOCONV (site, info). */
lens_status lens_subspace_fit(double *basis, double *sigma, double *mean, uint8_t *route,
                              lens_fault *fault, const double *means, size_t S, size_t L, size_t d,
                              int n_threads, double *work);
/* Size of `work` in doubles for the same arguments; SIZE_MAX if it would overflow. */
size_t lens_subspace_fit_worksize(size_t S, size_t L, size_t d, int n_threads);

/* Principal angles in radians, ascending, between the row spaces of A and B (any full-rank rows).
 * Small ones from sines, large ones from cosines.  angles: (min(a,b),), A: (a,d), B: (b,d).
 * LENS_ERANK (row) when the rows of A (item 0) or B (item 1) are dependent. */
lens_status lens_subspace_angles(double *angles, lens_fault *fault, const double *A,
                                 const double *B, size_t a, size_t b, size_t d, double *work);
size_t lens_subspace_angles_worksize(size_t a, size_t b, size_t d);

/* ---- factor.c -------------------------------------------------------------------------------- */

/* X = sum_k sigma[k] left[:,k] right[k], sigma descending, orthonormal columns of left and rows of
 * right, largest |component| of right[k] > 0.  left: (n,k), sigma: (k,), right: (k,d), X: (n,d),
 * k = min(n,d).  Vectors of singular values that are zero are some orthonormal completion.
 * LENS_ENONFINITE (row, column), or nowhere when a singular value passes the largest double;
 * LENS_ENOCONV (info). */
lens_status lens_thin_svd(double *left, double *sigma, double *right, lens_fault *fault,
                          const double *X, size_t n, size_t d, double *work);
/* Size of `work` in doubles for the same sizes; SIZE_MAX if it would overflow.  The same below. */
size_t lens_thin_svd_worksize(size_t n, size_t d);

/* X[i] = sum_(k<=i) R[i,k] Q[k], Householder, rows of Q orthonormal whatever the rank of X, R[k,k]
 * >= 0 and zero above.  Q, X: (r,d), R: (r,r).  LENS_ESHAPE unless r <= d, LENS_ENONFINITE as above. */
lens_status lens_thin_qr(double *Q, double *R, lens_fault *fault, const double *X, size_t r,
                         size_t d, double *work);
size_t lens_thin_qr_worksize(size_t r, size_t d);

/* out (n,k) = X (n,d) B^T, B (k,d);  out (k,d) = Y^T X, Y (n,k), X (n,d): the products needed of a
 * matrix that is read in slices of rows.  Same bits for any number of CPUs.  LENS_EOVERFLOW. */
lens_status lens_matmul_nt(float *out, const float *X, const float *B, size_t n, size_t k,
                           size_t d);
lens_status lens_matmul_tn(float *out, const float *Y, const float *X, size_t n, size_t k,
                           size_t d);

/* ---- project.c ------------------------------------------------------------------------------- */

/* out[i] = X[i] - strength sum_k (X[i].basis[k]) basis[k].  out, X: (n,d) dtype, basis: (r,d) ACC,
 * work: n*r doubles.  strength 0 copies. */
lens_status lens_project(void *out, const void *X, const void *basis, size_t n, size_t d, size_t r,
                         double strength, lens_dtype dtype, int n_threads, double *work);
size_t lens_project_worksize(size_t n, size_t r);

/* ---- loss.c ---------------------------------------------------------------------------------- */
/* All: value: one double; gradients in dtype; a row of weight 0 is not read and its gradient is 0;
 * LENS_ENONFINITE (row) when a row's term is not finite.  weights: (B,) or NULL for 1/B each. */

/* value = sum_b w_b |z_b - t_b|^2 / d, z = basis.(h - h0);  grad_b = 2 w_b/d sum_k (z-t)_k basis_k.
 * grad, h, h0: (B,d), basis: (r,d) ACC, target: (B,r) ACC, or (r,) when per_row is 0. */
lens_status lens_loss_separate(double *value, void *grad, lens_fault *fault, const void *h,
                               const void *h0, const void *basis, const void *target,
                               const double *weights, size_t B, size_t d, size_t r, int per_row,
                               lens_dtype dtype, int n_threads, double *work);
size_t lens_loss_separate_worksize(size_t B, size_t r);

/* a_b = (p_b - h_b).u, |u| = 1;  value = sum_b w_b a_b^2 / d;  grad_b = -2 w_b a_b u / d;
 * grad_p = -grad unless it is NULL.  grad, grad_p, h, p: (B,d), u: (d,) ACC. */
lens_status lens_loss_align_mean(double *value, void *grad, void *grad_p, lens_fault *fault,
                                 const void *h, const void *p, const void *u, const double *weights,
                                 size_t B, size_t d, lens_dtype dtype, int n_threads, double *work);
size_t lens_loss_align_mean_worksize(size_t B);

/* g_b = (I - P_s)(h_b - p_b);  value = sum_b w_b |g_b|^2 / d;  grad_b = 2 w_b g_b / d;
 * grad_p = -grad unless it is NULL.  grad, grad_p, h, p: (B,d), basis: (r,d) ACC orthonormal. */
lens_status lens_loss_align_complement(double *value, void *grad, void *grad_p, lens_fault *fault,
                                       const void *h, const void *p, const void *basis,
                                       const double *weights, size_t B, size_t d, size_t r,
                                       lens_dtype dtype, int n_threads, double *work);
size_t lens_loss_align_complement_worksize(size_t B, size_t r);

/* value = sum_bk m |h - h0|^2 / (sum m * d);  grad = 2 m (h - h0) / (sum m * d).
 * grad, h, h0: (B,t,d), mask: (B,t); masked tokens are not read.  LENS_EMASKED if sum m = 0.
 * LENS_ENONFINITE (row, token). */
lens_status lens_loss_retain_token(double *value, void *grad, lens_fault *fault, const void *h,
                                   const void *h0, const uint8_t *mask, size_t B, size_t t,
                                   size_t d, lens_dtype dtype, int n_threads, double *work);
size_t lens_loss_retain_token_worksize(size_t B, size_t t);

/* value = sum_b |mean_k(h) - mean_k(h0)|^2 / (B d), means over the tokens with mask != 0;
 * grad = 2 m (difference of means) / (count_b B d).  Shapes as above.  LENS_EMASKED (row). */
lens_status lens_loss_retain_mean(double *value, void *grad, lens_fault *fault, const void *h,
                                  const void *h0, const uint8_t *mask, size_t B, size_t t, size_t d,
                                  lens_dtype dtype, int n_threads, double *work);
size_t lens_loss_retain_mean_worksize(size_t B, size_t d);

/* ---- neuron.c -------------------------------------------------------------------------------- */

/* out[i] = counts[i] + number of rows k with mask[k] != 0 and X[k,i] > 0; +infinity counts, masked
 * rows are not read.  out, counts: (d,), counts NULL for zeros, X: (n,d) dtype, mask: (n,) or NULL.
 * LENS_ENONFINITE (row, column) of a NaN. */
lens_status lens_neuron_count(uint64_t *out, lens_fault *fault, const uint64_t *counts,
                              const void *X, const uint8_t *mask, size_t n, size_t d,
                              lens_dtype dtype, int n_threads);

/* p = counts / tokens;  entropy[j] = -sum_l q ln q with q = p[l,j] / sum_l p[l,j] and 0 ln 0 = 0;
 * +infinity where that sum is 0.  p, counts: (L,m), entropy: (m,), tokens: (L,).  LENS_EMASKED
 * (language) without tokens, LENS_EDOMAIN (language, neuron) if a count exceeds the tokens. */
lens_status lens_neuron_lape(double *p, double *entropy, lens_fault *fault, const uint64_t *counts,
                             const uint64_t *tokens, size_t L, size_t m);

/* tau = the rank-th smallest of all p;  entropy = raw, or +infinity where no p > tau;  member[l,j]
 * = p[l,j] > tau for the `keep` neurons of lowest finite entropy (all of them if there are fewer; ties
 * to the lowest j), else 0.  member, p: (L,m), entropy, raw: (m,).  LENS_ESHAPE unless 1 <=
 * rank <= L m and keep <= m, LENS_EDOMAIN (language, neuron) of a p outside [0, 1] or raw < 0. */
lens_status lens_neuron_select(uint8_t *member, double *entropy, double *tau, lens_fault *fault,
                               const double *p, const double *raw, size_t L, size_t m, size_t rank,
                               size_t keep);

/* ---- metrics.c ------------------------------------------------------------------------------- */

/* out[i] = X[i] / |X[i]|.  out: (n,d) ACC, X: (n,d) dtype.  LENS_ENONFINITE (row), LENS_EDOMAIN
 * (row) if it is zero. */
lens_status lens_metrics_unit(void *out, lens_fault *fault, const void *X, size_t n, size_t d,
                              lens_dtype dtype, int n_threads);

/* With s the cosines of rows of A and of B: row_best[i] = the k whose s[i,k] is strictly the largest
 * of row i, column_best[k] = the i whose s[i,k] is strictly the largest of column k; n where the
 * largest is tied.  row_best, column_best: (n,), A, B: (n,d) dtype.  LENS_ENONFINITE, or LENS_EDOMAIN
 * if it is zero, (row, 0 for A or 1 for B). */
lens_status lens_metrics_match(uint64_t *row_best, uint64_t *column_best, lens_fault *fault,
                               const void *A, const void *B, size_t n, size_t d, lens_dtype dtype,
                               int n_threads, double *work);
size_t lens_metrics_match_worksize(size_t n, size_t d, lens_dtype dtype, int n_threads);

/* label[i] = the l of smallest |X[i] - means[l]|^2, the first on ties.  label: (n,), X: (n,d) dtype,
 * means: (L,d) ACC.  LENS_ESHAPE if L = 0, LENS_ENONFINITE (row, mean) if a distance is not finite. */
lens_status lens_metrics_nearest(uint64_t *label, lens_fault *fault, const void *X,
                                 const void *means, size_t n, size_t L, size_t d, lens_dtype dtype,
                                 int n_threads);

/* ---- resample.c, resample_angles.c ----------------------------------------------------------- */
/* N rows of L languages, one language after the other; Y = rows - mean.  A refit needs G only. */

/* For each site s: mean = mean of the N rows, G[i,k] = Y[i].Y[k], drift[i] = Y[i].mean.
 * G: (S,N,N), drift: (S,N), mean: (S,d), X: (S,N,d) dtype.  LENS_ENONFINITE (row of S N, column). */
lens_status lens_resample_gram(double *G, double *drift, double *mean, lens_fault *fault,
                               const void *X, size_t S, size_t N, size_t d, lens_dtype dtype,
                               int n_threads, double *work);
size_t lens_resample_gram_worksize(size_t S, size_t N, int n_threads);

/* Means of weighted rows, m_l = sum_i weights[l,i] Y[l,i]:  K[r,l,k] = m_l.m_k, and
 * cross[r,l,f] = sum_i weights[l,i] fixed[f,(l,i)].  K: (R,L,L), cross: (R,L,F), G: (N,N),
 * fixed: (F,N), weights: (R,w), rows: (L,) with sum N.  w = N; or w = rows of each language, which
 * then share their weights. */
lens_status lens_resample_refits(double *K, double *cross, const double *G, const double *fixed,
                                 const double *weights, const uint64_t *rows, size_t R, size_t N,
                                 size_t L, size_t F, size_t w, int n_threads, double *work);
size_t lens_resample_refits_worksize(size_t R, size_t N, int n_threads);

/* K[p,a,b] = mean of G[i,k] over rows i labelled a and k labelled b.  K: (P,L,L), G: (N,N),
 * labels: (P,N).  LENS_EDOMAIN (p, row) for a label >= L, (p, nowhere) if a label has no rows. */
lens_status lens_resample_labels(double *K, lens_fault *fault, const double *G,
                                 const uint64_t *labels, size_t P, size_t N, size_t L,
                                 int n_threads, double *work);
size_t lens_resample_labels_worksize(size_t P, size_t L, int n_threads);

/* sigma[r] = singular values of the centred means whose products are K[r].  Unless angles is NULL,
 * with cross as above for the F = L means of one reference fit, then drift, and `fit` the same for
 * that fit itself: angles[r] = principal angles between the first `rank` directions of both, ascending;
 * agnostic[r] = angle between both M_a, pi/2 if one is zero.  mean_square = |mean|^2.  angles:
 * (R,rank), agnostic: (R,), sigma: (R,L-1), K: (R,L,L), cross: (R,L,L+1), fit: (L,L+1).
 * LENS_ESHAPE unless rank < L, LENS_ENOCONV (refit, info). */
lens_status lens_resample_angles(double *angles, double *agnostic, double *sigma, lens_fault *fault,
                                 const double *K, const double *cross, const double *fit, size_t R,
                                 size_t L, size_t rank, double mean_square, int n_threads,
                                 double *work);
size_t lens_resample_angles_worksize(size_t R, size_t L, size_t rank, int n_threads);

/* ---- weights.c ------------------------------------------------------------------------------- */
/* Flat arrays of n elements in dtype.  A delta is x = a - b in float32 (f64: in double); b = NULL
 * stands for zeros.  Its key is the 31 bits of |x| as float32, which sort as |x| does. */

#define LENS_BUCKET_BITS 15 /* low bits of a key; the others number its bucket */
#define LENS_BUCKETS (1u << (31 - LENS_BUCKET_BITS))
#define LENS_MAX_SOURCES 16

/* out = float32 of a - b.  out: (n,) float32.  NaN and infinity pass through. */
lens_status lens_weights_delta(float *out, const void *a, const void *b, size_t n, lens_dtype dtype,
                               int n_threads);

/* sums[3] = x.x, y.y, x.y for x = a - b, y = c - d, in double; c = NULL: y = 0.
 * LENS_ENONFINITE (element, index of its array among a b c d). */
lens_status lens_weights_dots(double *sums, lens_fault *fault, const void *a, const void *b,
                              const void *c, const void *d, size_t n, lens_dtype dtype,
                              int n_threads, double *work);
size_t lens_weights_dots_worksize(size_t n);

/* counts[q] = number of x != 0 with key >> LENS_BUCKET_BITS equal to q.  counts: (LENS_BUCKETS,).
 * LENS_ENONFINITE (element).  The worksize is in uint64_t. */
lens_status lens_weights_histogram(uint64_t *counts, lens_fault *fault, const void *a,
                                   const void *b, size_t n, lens_dtype dtype, int n_threads,
                                   uint64_t *work);
size_t lens_weights_histogram_worksize(size_t n, int n_threads);

/* marks = 1 where key >= high, 2 where low <= key < high, else 0;  lows[0..c) = the low
 * LENS_BUCKET_BITS of the keys marked 2, in order, c = counts[2];  counts[0] = number marked 1,
 * counts[1] = number of nonzero keys in the bucket that ends at high, at least c.  marks: (n,),
 * lows: (n,), the rest is scratch, counts: (3,).  LENS_EDOMAIN unless 0 < low <= high <= 2^31 and the
 * keys from low to high - 1 are in one bucket.  The worksize is in size_t. */
lens_status lens_weights_select(uint8_t *marks, uint16_t *lows, uint64_t *counts, const void *a,
                                const void *b, size_t n, uint32_t low, uint32_t high,
                                lens_dtype dtype, int n_threads, size_t *work);
size_t lens_weights_select_worksize(size_t n);

/* In place: the k-th 2 in marks becomes keep[k] != 0.  marks: (n,), keep: (n_keep,).  LENS_ESHAPE,
 * with marks unchanged, unless there are n_keep of them. */
lens_status lens_weights_settle(uint8_t *marks, const uint8_t *keep, size_t n, size_t n_keep);

/* out[i] = mean_k |x[i,k]|, and out[k] = mean_i |x[i,k]|, in double.  out: (n,) and (d,), a, b: (n,d).
 * LENS_ESHAPE for a mean of no elements, LENS_ENONFINITE (row, column). */
lens_status lens_weights_row_means(double *out, lens_fault *fault, const void *a, const void *b,
                                   size_t n, size_t d, lens_dtype dtype, int n_threads);
lens_status lens_weights_column_means(double *out, lens_fault *fault, const void *a, const void *b,
                                      size_t n, size_t d, lens_dtype dtype, int n_threads);

/* out = sum_s weights[s] sources[s], in double and in order, then rounded once to dtype.  Source s
 * has n elements in dtypes[s].  Sources of weight 0 are not read; a single one of weight 1 and the same
 * dtype is copied; every NaN becomes the same quiet NaN.  LENS_ESHAPE for more than
 * LENS_MAX_SOURCES, LENS_EDOMAIN when a weight is not finite. */
lens_status lens_weights_combine(void *out, const void *const *sources, const lens_dtype *dtypes,
                                 const double *weights, size_t n_sources, size_t n,
                                 lens_dtype dtype, int n_threads);

/* Number of NaN and of infinite elements. */
lens_status lens_weights_nonfinite(uint64_t *nan, uint64_t *inf, const void *x, size_t n,
                                   lens_dtype dtype, int n_threads);

#endif
