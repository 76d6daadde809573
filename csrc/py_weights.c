/* SPDX-License-Identifier: MIT
 * py_weights.c: shims of weights.  Level 4. */
#include "shims.h"

SHIM(weights_delta) {
    lens_args v;
    lens_status status;
    if (PARSE(v, weights_delta))
        return NULL;
    WITHOUT_GIL(
        lens_weights_delta(v.ptr[0], v.ptr[1], v.ptr[2], v.dim['n'], v.dtype, threads(&v, 4)))
    return lens_return(&v, status, NULL);
}

SHIM(weights_dots) {
    lens_args v;
    lens_status status;
    if (PARSE(v, weights_dots))
        return NULL;
    if (lens_expect(&v, 'k', 3, 3) < 0)
        return NULL;
    if (lens_workspace(&v, lens_weights_dots_worksize(v.dim['n'])) < 0)
        return NULL;
    WITHOUT_GIL(lens_weights_dots(v.ptr[0], &v.fault, v.ptr[1], v.ptr[2], v.ptr[3], v.ptr[4],
                                  v.dim['n'], v.dtype, threads(&v, 6), v.work))
    return lens_return(&v, status, NULL);
}

SHIM(weights_histogram) {
    lens_args v;
    lens_status status;
    if (PARSE(v, weights_histogram))
        return NULL;
    if (lens_expect(&v, 'k', LENS_BUCKETS, LENS_BUCKETS) < 0)
        return NULL;
    if (lens_workspace(&v, lens_weights_histogram_worksize(v.dim['n'], threads(&v, 4))) < 0)
        return NULL;
    WITHOUT_GIL(lens_weights_histogram(v.ptr[0], &v.fault, v.ptr[1], v.ptr[2], v.dim['n'], v.dtype,
                                       threads(&v, 4), (uint64_t *)(void *)v.work))
    return lens_return(&v, status, NULL);
}

SHIM(weights_select) {
    lens_args v;
    lens_status status;
    uint64_t counts[3] = {0};
    if (PARSE(v, weights_select))
        return NULL;
    if (v.integer[4] > UINT32_MAX || v.integer[5] > UINT32_MAX)
        return lens_return(&v, LENS_EDOMAIN, NULL);
    if (lens_workspace(&v, lens_weights_select_worksize(v.dim['n'])) < 0)
        return NULL;
    WITHOUT_GIL(lens_weights_select(v.ptr[0], v.ptr[1], counts, v.ptr[2], v.ptr[3], v.dim['n'],
                                    (uint32_t)v.integer[4], (uint32_t)v.integer[5], v.dtype,
                                    threads(&v, 7), (size_t *)(void *)v.work))
    return lens_return(&v, status, Py_BuildValue("(KKK)", counts[0], counts[1], counts[2]));
}

SHIM(weights_settle) {
    lens_args v;
    lens_status status;
    if (PARSE(v, weights_settle))
        return NULL;
    WITHOUT_GIL(lens_weights_settle(v.ptr[0], v.ptr[1], v.dim['n'], v.dim['k']))
    return lens_return(&v, status, NULL);
}

SHIM(weights_row_means) {
    lens_args v;
    lens_status status;
    if (PARSE(v, weights_row_means))
        return NULL;
    WITHOUT_GIL(lens_weights_row_means(v.ptr[0], &v.fault, v.ptr[1], v.ptr[2], v.dim['n'],
                                       v.dim['d'], v.dtype, threads(&v, 4)))
    return lens_return(&v, status, NULL);
}

SHIM(weights_column_means) {
    lens_args v;
    lens_status status;
    if (PARSE(v, weights_column_means))
        return NULL;
    WITHOUT_GIL(lens_weights_column_means(v.ptr[0], &v.fault, v.ptr[1], v.ptr[2], v.dim['n'],
                                          v.dim['d'], v.dtype, threads(&v, 4)))
    return lens_return(&v, status, NULL);
}

SHIM(weights_combine) {
    lens_args v;
    lens_status status;
    if (PARSE(v, weights_combine))
        return NULL;
    WITHOUT_GIL(lens_weights_combine(v.ptr[0], v.list, v.list_dtype, v.ptr[2], v.dim['s'],
                                     v.dim['n'], v.dtype, threads(&v, 4)))
    return lens_return(&v, status, NULL);
}

SHIM(weights_nonfinite) {
    lens_args v;
    lens_status status;
    uint64_t nan = 0, inf = 0;
    if (PARSE(v, weights_nonfinite))
        return NULL;
    WITHOUT_GIL(lens_weights_nonfinite(&nan, &inf, v.ptr[0], v.dim['n'], v.dtype, threads(&v, 2)))
    return lens_return(&v, status, Py_BuildValue("(KK)", nan, inf));
}
