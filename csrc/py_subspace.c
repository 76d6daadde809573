/* SPDX-License-Identifier: MIT
 * py_subspace.c: shims of subspaces, factorisations and projections.  Level 4. */
#include "shims.h"

SHIM(subspace_fit) {
    lens_args v;
    lens_status status;
    if (PARSE(v, subspace_fit))
        return NULL;
    size_t S = v.dim['S'], L = v.dim['L'], d = v.dim['d'];
    if (lens_expect(&v, 'L', 2, d) < 0 || lens_expect(&v, 'k', L - 1, L - 1) < 0)
        return NULL;
    if (lens_workspace(&v, lens_subspace_fit_worksize(S, L, d, threads(&v, 5))) < 0)
        return NULL;
    WITHOUT_GIL(lens_subspace_fit(v.ptr[0], v.ptr[1], v.ptr[2], v.ptr[3], &v.fault, v.ptr[4], S, L,
                                  d, threads(&v, 5), v.work))
    return lens_return(&v, status, NULL);
}

SHIM(principal_angles) {
    lens_args v;
    lens_status status;
    if (PARSE(v, principal_angles))
        return NULL;
    size_t a = v.dim['a'], b = v.dim['b'], d = v.dim['d'];
    size_t q = a < b ? a : b;
    if (lens_expect(&v, 'a', 1, d) < 0 || lens_expect(&v, 'b', 1, d) < 0 ||
        lens_expect(&v, 'q', q, q) < 0)
        return NULL;
    if (lens_workspace(&v, lens_subspace_angles_worksize(a, b, d)) < 0)
        return NULL;
    WITHOUT_GIL(lens_subspace_angles(v.ptr[0], &v.fault, v.ptr[1], v.ptr[2], a, b, d, v.work))
    return lens_return(&v, status, NULL);
}

SHIM(thin_svd) {
    lens_args v;
    lens_status status;
    if (PARSE(v, thin_svd))
        return NULL;
    size_t n = v.dim['n'], d = v.dim['d'], k = n < d ? n : d;
    if (lens_expect(&v, 'k', k, k) < 0 || lens_workspace(&v, lens_thin_svd_worksize(n, d)) < 0)
        return NULL;
    WITHOUT_GIL(lens_thin_svd(v.ptr[0], v.ptr[1], v.ptr[2], &v.fault, v.ptr[3], n, d, v.work))
    return lens_return(&v, status, NULL);
}

SHIM(thin_qr) {
    lens_args v;
    lens_status status;
    if (PARSE(v, thin_qr))
        return NULL;
    size_t r = v.dim['r'], d = v.dim['d'];
    if (lens_expect(&v, 'r', 0, d) < 0 || lens_workspace(&v, lens_thin_qr_worksize(r, d)) < 0)
        return NULL;
    WITHOUT_GIL(lens_thin_qr(v.ptr[0], v.ptr[1], &v.fault, v.ptr[2], r, d, v.work))
    return lens_return(&v, status, NULL);
}

SHIM(matmul_nt) {
    lens_args v;
    lens_status status;
    if (PARSE(v, matmul_nt))
        return NULL;
    WITHOUT_GIL(lens_matmul_nt(v.ptr[0], v.ptr[1], v.ptr[2], v.dim['n'], v.dim['k'], v.dim['d']))
    return lens_return(&v, status, NULL);
}

SHIM(matmul_tn) {
    lens_args v;
    lens_status status;
    if (PARSE(v, matmul_tn))
        return NULL;
    WITHOUT_GIL(lens_matmul_tn(v.ptr[0], v.ptr[1], v.ptr[2], v.dim['n'], v.dim['k'], v.dim['d']))
    return lens_return(&v, status, NULL);
}

SHIM(project) {
    lens_args v;
    lens_status status;
    if (PARSE(v, project) || lens_workspace(&v, lens_project_worksize(v.dim['n'], v.dim['r'])) < 0)
        return NULL;
    WITHOUT_GIL(lens_project(v.ptr[0], v.ptr[1], v.ptr[2], v.dim['n'], v.dim['d'], v.dim['r'],
                             v.real[3], v.dtype, threads(&v, 5), v.work))
    return lens_return(&v, status, NULL);
}
