/* SPDX-License-Identifier: MIT
 * py_measures.c: shims of neurons and metrics.  Level 4. */
#include "shims.h"

SHIM(neuron_count) {
    lens_args v;
    lens_status status;
    if (PARSE(v, neuron_count))
        return NULL;
    WITHOUT_GIL(lens_neuron_count(v.ptr[0], &v.fault, v.ptr[1], v.ptr[2], v.ptr[3], v.dim['n'],
                                  v.dim['d'], v.dtype, threads(&v, 5)))
    return lens_return(&v, status, NULL);
}

SHIM(lape) {
    lens_args v;
    lens_status status;
    if (PARSE(v, lape))
        return NULL;
    WITHOUT_GIL(
        lens_neuron_lape(v.ptr[0], v.ptr[1], &v.fault, v.ptr[2], v.ptr[3], v.dim['L'], v.dim['m']))
    return lens_return(&v, status, NULL);
}

SHIM(lape_select) {
    lens_args v;
    lens_status status;
    double tau = 0.0;
    if (PARSE(v, lape_select))
        return NULL;
    WITHOUT_GIL(lens_neuron_select(v.ptr[0], v.ptr[1], &tau, &v.fault, v.ptr[2], v.ptr[3],
                                   v.dim['L'], v.dim['m'], (size_t)v.integer[4],
                                   (size_t)v.integer[5]))
    return lens_return(&v, status, PyFloat_FromDouble(tau));
}

SHIM(unit_rows) {
    lens_args v;
    lens_status status;
    if (PARSE(v, unit_rows))
        return NULL;
    WITHOUT_GIL(lens_metrics_unit(v.ptr[0], &v.fault, v.ptr[1], v.dim['n'], v.dim['d'], v.dtype,
                                  threads(&v, 3)))
    return lens_return(&v, status, NULL);
}

SHIM(match_rows) {
    lens_args v;
    lens_status status;
    if (PARSE(v, match_rows))
        return NULL;
    size_t n = v.dim['n'], d = v.dim['d'];
    if (lens_workspace(&v, lens_metrics_match_worksize(n, d, v.dtype, threads(&v, 5))) < 0)
        return NULL;
    WITHOUT_GIL(lens_metrics_match(v.ptr[0], v.ptr[1], &v.fault, v.ptr[2], v.ptr[3], n, d, v.dtype,
                                   threads(&v, 5), v.work))
    return lens_return(&v, status, NULL);
}

SHIM(nearest_mean) {
    lens_args v;
    lens_status status;
    if (PARSE(v, nearest_mean))
        return NULL;
    WITHOUT_GIL(lens_metrics_nearest(v.ptr[0], &v.fault, v.ptr[1], v.ptr[2], v.dim['n'], v.dim['L'],
                                     v.dim['d'], v.dtype, threads(&v, 4)))
    return lens_return(&v, status, NULL);
}
