/* SPDX-License-Identifier: MIT
 * py_stats.c: shims of dtype conversion, pooling and moments.  Level 4. */
#include "shims.h"

SHIM(dtype_load) {
    lens_args v;
    lens_status status;
    if (PARSE(v, dtype_load))
        return NULL;
    WITHOUT_GIL(lens_dtype_load(v.ptr[0], v.ptr[1], v.dim['n'], v.dtype))
    return lens_return(&v, status, NULL);
}

SHIM(dtype_store) {
    lens_args v;
    lens_status status;
    if (PARSE(v, dtype_store))
        return NULL;
    WITHOUT_GIL(lens_dtype_store(v.ptr[0], v.ptr[1], v.dim['n'], v.dtype))
    return lens_return(&v, status, NULL);
}

SHIM(pool) {
    lens_args v;
    lens_status status;
    if (PARSE(v, pool))
        return NULL;
    lens_pooling mode =
        v.integer[4] < LENS_N_POOLINGS ? (lens_pooling)v.integer[4] : LENS_N_POOLINGS;
    WITHOUT_GIL(lens_pool(v.ptr[0], &v.fault, v.ptr[1], v.ptr[2], v.dim['n'], v.dim['t'],
                          v.dim['d'], v.dtype, mode, threads(&v, 5)))
    return lens_return(&v, status, NULL);
}

SHIM(moments_update) {
    lens_args v;
    lens_status status;
    if (PARSE(v, moments_update))
        return NULL;
    WITHOUT_GIL(lens_moments_update(v.ptr[0], v.ptr[1], &v.fault, v.ptr[2], v.ptr[3], v.ptr[4],
                                    v.dim['n'], v.dim['d'], (uint64_t)v.integer[5], v.dtype,
                                    threads(&v, 7)))
    return lens_return(&v, status, NULL);
}

SHIM(moments_merge) {
    lens_args v;
    lens_status status;
    if (PARSE(v, moments_merge))
        return NULL;
    WITHOUT_GIL(lens_moments_merge(v.ptr[0], v.ptr[1], v.ptr[2], v.ptr[3], v.ptr[4], v.ptr[5],
                                   v.dim['d'], (uint64_t)v.integer[6], (uint64_t)v.integer[7]))
    return lens_return(&v, status, NULL);
}
