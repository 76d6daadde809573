/* SPDX-License-Identifier: MIT
 * py_resample.c: shims of Gram matrices and refits.  Level 4. */
#include "shims.h"

SHIM(resample_gram) {
    lens_args v;
    lens_status status;
    if (PARSE(v, resample_gram))
        return NULL;
    size_t S = v.dim['S'], N = v.dim['N'], d = v.dim['d'];
    if (lens_workspace(&v, lens_resample_gram_worksize(S, N, threads(&v, 5))) < 0)
        return NULL;
    WITHOUT_GIL(lens_resample_gram(v.ptr[0], v.ptr[1], v.ptr[2], &v.fault, v.ptr[3], S, N, d,
                                   v.dtype, threads(&v, 5), v.work))
    return lens_return(&v, status, NULL);
}

SHIM(resample_refits) {
    lens_args v;
    lens_status status;
    if (PARSE(v, resample_refits))
        return NULL;
    size_t R = v.dim['R'], N = v.dim['N'];
    if (lens_workspace(&v, lens_resample_refits_worksize(R, N, threads(&v, 6))) < 0)
        return NULL;
    WITHOUT_GIL(lens_resample_refits(v.ptr[0], v.ptr[1], v.ptr[2], v.ptr[3], v.ptr[4], v.ptr[5], R,
                                     N, v.dim['L'], v.dim['F'], v.dim['w'], threads(&v, 6), v.work))
    return lens_return(&v, status, NULL);
}

SHIM(resample_labels) {
    lens_args v;
    lens_status status;
    if (PARSE(v, resample_labels))
        return NULL;
    size_t P = v.dim['P'], L = v.dim['L'];
    if (lens_workspace(&v, lens_resample_labels_worksize(P, L, threads(&v, 3))) < 0)
        return NULL;
    WITHOUT_GIL(lens_resample_labels(v.ptr[0], &v.fault, v.ptr[1], v.ptr[2], P, v.dim['N'], L,
                                     threads(&v, 3), v.work))
    return lens_return(&v, status, NULL);
}

SHIM(resample_angles) {
    lens_args v;
    lens_status status;
    if (PARSE(v, resample_angles))
        return NULL;
    size_t R = v.dim['R'], L = v.dim['L'], r = v.ptr[0] == NULL ? 0 : v.dim['r'];
    int whole = v.ptr[0] == NULL || (v.ptr[1] && v.ptr[4] && v.ptr[5] && v.dim['F'] == L + 1);
    if (L < 2 || v.dim['k'] != L - 1 || r >= L || !whole)
        return lens_return(&v, LENS_ESHAPE, NULL);
    if (lens_workspace(&v, lens_resample_angles_worksize(R, L, r, threads(&v, 7))) < 0)
        return NULL;
    WITHOUT_GIL(lens_resample_angles(v.ptr[0], v.ptr[1], v.ptr[2], &v.fault, v.ptr[3], v.ptr[4],
                                     v.ptr[5], R, L, r, v.real[6], threads(&v, 7), v.work))
    return lens_return(&v, status, NULL);
}
