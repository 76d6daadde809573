/* SPDX-License-Identifier: MIT
 * py_loss.c: shims of the losses.  Level 4. */
#include "shims.h"

SHIM(separate) {
    lens_args v;
    lens_status status;
    double value = 0.0;
    size_t B, p;
    if (PARSE(v, separate))
        return NULL;
    B = v.dim['B'], p = v.dim['p'];
    if (p != 1 && lens_expect(&v, 'p', B, B) < 0)
        return NULL;
    if (lens_workspace(&v, lens_loss_separate_worksize(B, v.dim['r'])) < 0)
        return NULL;
    WITHOUT_GIL(lens_loss_separate(&value, v.ptr[0], &v.fault, v.ptr[1], v.ptr[2], v.ptr[3],
                                   v.ptr[4], v.ptr[5], B, v.dim['d'], v.dim['r'], p == B, v.dtype,
                                   threads(&v, 7), v.work))
    return lens_return(&v, status, PyFloat_FromDouble(value));
}

SHIM(align_mean) {
    lens_args v;
    lens_status status;
    double value = 0.0;
    if (PARSE(v, align_mean) || lens_workspace(&v, lens_loss_align_mean_worksize(v.dim['B'])) < 0)
        return NULL;
    WITHOUT_GIL(lens_loss_align_mean(&value, v.ptr[0], v.ptr[1], &v.fault, v.ptr[2], v.ptr[3],
                                     v.ptr[4], v.ptr[5], v.dim['B'], v.dim['d'], v.dtype,
                                     threads(&v, 7), v.work))
    return lens_return(&v, status, PyFloat_FromDouble(value));
}

SHIM(align_complement) {
    lens_args v;
    lens_status status;
    double value = 0.0;
    if (PARSE(v, align_complement) ||
        lens_workspace(&v, lens_loss_align_complement_worksize(v.dim['B'], v.dim['r'])) < 0)
        return NULL;
    WITHOUT_GIL(lens_loss_align_complement(&value, v.ptr[0], v.ptr[1], &v.fault, v.ptr[2], v.ptr[3],
                                           v.ptr[4], v.ptr[5], v.dim['B'], v.dim['d'], v.dim['r'],
                                           v.dtype, threads(&v, 7), v.work))
    return lens_return(&v, status, PyFloat_FromDouble(value));
}

SHIM(retain_token) {
    lens_args v;
    lens_status status;
    double value = 0.0;
    if (PARSE(v, retain_token))
        return NULL;
    size_t B = v.dim['B'], t = v.dim['t'], d = v.dim['d'];
    if (lens_workspace(&v, lens_loss_retain_token_worksize(B, t)) < 0)
        return NULL;
    WITHOUT_GIL(lens_loss_retain_token(&value, v.ptr[0], &v.fault, v.ptr[1], v.ptr[2], v.ptr[3], B,
                                       t, d, v.dtype, threads(&v, 5), v.work))
    return lens_return(&v, status, PyFloat_FromDouble(value));
}

SHIM(retain_mean) {
    lens_args v;
    lens_status status;
    double value = 0.0;
    if (PARSE(v, retain_mean))
        return NULL;
    size_t B = v.dim['B'], t = v.dim['t'], d = v.dim['d'];
    if (lens_workspace(&v, lens_loss_retain_mean_worksize(B, d)) < 0)
        return NULL;
    WITHOUT_GIL(lens_loss_retain_mean(&value, v.ptr[0], &v.fault, v.ptr[1], v.ptr[2], v.ptr[3], B,
                                      t, d, v.dtype, threads(&v, 5), v.work))
    return lens_return(&v, status, PyFloat_FromDouble(value));
}
