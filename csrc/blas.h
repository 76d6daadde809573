/* SPDX-License-Identifier: MIT
 * blas.h: the only place for BLAS and LAPACKE names, prefixes and integer width.  Level 1.
 * LENS_BLAS_SCIPY: the scipy-openblas32 wheel, where every symbol carries `scipy_`.
 * LENS_BLAS_ILP64: a library whose integers have 64 bits (LAPACK_ILP64 and OPENBLAS_USE64BITINT
 * follow from it).  Otherwise plain OpenBLAS, or any CBLAS with LAPACKE beside it. */
#ifndef LENS_BLAS_H
#define LENS_BLAS_H

#ifdef LENS_BLAS_ILP64
#define LAPACK_ILP64
#define OPENBLAS_USE64BITINT
#endif

#include <cblas.h>
#include <lapacke.h>
#include <limits.h>
#include <stdint.h>

#ifdef LENS_BLAS_SCIPY
#define BLAS(name) scipy_##name
#else
#define BLAS(name) name
#endif

typedef lapack_int blas_int;

#ifdef LENS_BLAS_ILP64
#define BLAS_INT_MAX INT64_MAX
#else
#define BLAS_INT_MAX INT32_MAX
#endif

#define blas_dgemm BLAS(cblas_dgemm)
#define blas_sgemm BLAS(cblas_sgemm)
#define blas_dsyrk BLAS(cblas_dsyrk)
#define lapack_dsyevd BLAS(LAPACKE_dsyevd_work)
#define lapack_dgeqrf BLAS(LAPACKE_dgeqrf_work)
#define lapack_dorgqr BLAS(LAPACKE_dorgqr_work)
#define lapack_dgesdd BLAS(LAPACKE_dgesdd_work)

/* The core runs sites in parallel itself.  The setting is per library, so a vendored copy touches
 * nobody else; OPENBLAS_VERSION tells OpenBLAS from another CBLAS. */
#if defined(LENS_BLAS_SCIPY) || defined(OPENBLAS_VERSION) || defined(OPENBLAS_CONFIG_H)
static inline void blas_single_thread(void) {
    BLAS(openblas_set_num_threads)(1);
}
static inline const char *blas_config(void) {
    return BLAS(openblas_get_config)();
}
#else
static inline void blas_single_thread(void) {
}
static inline const char *blas_config(void) {
    return "CBLAS and LAPACKE of the system";
}
#endif

#endif
