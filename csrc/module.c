/* SPDX-License-Identifier: MIT
 * module.c: lens._core.  Level 4.  A shim parses, lends a workspace, calls the core once without
 * the GIL and maps the status; ops.def says what its arguments are.  v.ptr[i] is argument i. */
#include "convert.h"

#define SHIM(name) \
    static PyObject *py_##name(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
#define PARSE(v, name) ((void)self, lens_parse(&(v), LENS_OP_##name, args, nargs) < 0)
#define WITHOUT_GIL(call)                 \
    Py_BEGIN_ALLOW_THREADS status = call; \
    Py_END_ALLOW_THREADS

/* More threads than this are never started, so any larger count means the same. */
static int threads(const lens_args *v, int i) {
    return v->integer[i] > 1024 ? 1024 : (int)v->integer[i];
}

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

SHIM(subspace_fit) {
    lens_args v;
    lens_status status;
    if (PARSE(v, subspace_fit))
        return NULL;
    size_t S = v.dim['S'], L = v.dim['L'], d = v.dim['d'];
    if (L < 2 || L > d || v.dim['k'] != L - 1)
        return lens_return(&v, LENS_ESHAPE, NULL);
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
    if (a < 1 || b < 1 || a > d || b > d || v.dim['q'] != (a < b ? a : b))
        return lens_return(&v, LENS_ESHAPE, NULL);
    if (lens_workspace(&v, lens_subspace_angles_worksize(a, b, d)) < 0)
        return NULL;
    WITHOUT_GIL(lens_subspace_angles(v.ptr[0], &v.fault, v.ptr[1], v.ptr[2], a, b, d, v.work))
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

SHIM(separate) {
    lens_args v;
    lens_status status;
    double value = 0.0;
    size_t B, p;
    if (PARSE(v, separate))
        return NULL;
    B = v.dim['B'], p = v.dim['p'];
    if (p != 1 && p != B)
        return lens_return(&v, LENS_ESHAPE, NULL);
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

/* A tuple of the first n strings of names. */
static PyObject *strings(const char *const *names, size_t n) {
    PyObject *tuple = PyTuple_New((Py_ssize_t)n);
    for (size_t i = 0; tuple != NULL && i < n; i++) {
        PyObject *name = PyUnicode_FromString(names[i]);
        if (name == NULL || PyTuple_SetItem(tuple, (Py_ssize_t)i, name) < 0)
            Py_CLEAR(tuple);
    }
    return tuple;
}

SHIM(dtypes) {
    static const char *const names[] = {
#define X(code, suffix, storage, acc) #suffix,
        LENS_DTYPES(X)
#undef X
    };
    lens_args v;
    return PARSE(v, dtypes) ? NULL : strings(names, LENS_N_DTYPES);
}

SHIM(isa) {
    lens_args v;
    return PARSE(v, isa) ? NULL : PyUnicode_FromString(lens_isa());
}

SHIM(isas) {
    const char *names[8];
    size_t n = 0;
    lens_args v;
    if (PARSE(v, isas))
        return NULL;
    for (const char *name; n < 8 && (name = lens_isa_available(n)) != NULL; n++)
        names[n] = name;
    return strings(names, n);
}

SHIM(force_isa) {
    lens_args v;
    if (PARSE(v, force_isa))
        return NULL;
    return lens_return(&v, lens_isa_force(v.ptr[0]), NULL);
}

SHIM(blas_config) {
    lens_args v;
    return PARSE(v, blas_config) ? NULL : PyUnicode_FromString(lens_blas_config());
}

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
    if (v.dim['k'] != 3)
        return lens_return(&v, LENS_ESHAPE, NULL);
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
    if (v.dim['k'] != LENS_BUCKETS)
        return lens_return(&v, LENS_ESHAPE, NULL);
    if (lens_workspace(&v, lens_weights_histogram_worksize(v.dim['n'], threads(&v, 4))) < 0)
        return NULL;
    WITHOUT_GIL(lens_weights_histogram(v.ptr[0], &v.fault, v.ptr[1], v.ptr[2], v.dim['n'], v.dtype,
                                       threads(&v, 4), (uint64_t *)(void *)v.work))
    return lens_return(&v, status, NULL);
}

SHIM(weights_select) {
    lens_args v;
    lens_status status;
    uint64_t chosen = 0;
    if (PARSE(v, weights_select))
        return NULL;
    if (v.integer[3] > UINT32_MAX || v.integer[4] > UINT32_MAX)
        return lens_return(&v, LENS_EDOMAIN, NULL);
    WITHOUT_GIL(lens_weights_select(v.ptr[0], &chosen, v.ptr[1], v.ptr[2], v.dim['n'],
                                    (uint32_t)v.integer[3], (uint32_t)v.integer[4], v.dtype,
                                    threads(&v, 6)))
    return lens_return(&v, status, PyLong_FromUnsignedLongLong(chosen));
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

static PyMethodDef methods[] = {
#define OP(name, spec, row, item, signature, summary)              \
    {#name, (PyCFunction)(void (*)(void))py_##name, METH_FASTCALL, \
     PyDoc_STR(#name signature "\n--\n\n" summary)},
#include "ops.def"
#undef OP
    {NULL, NULL, 0, NULL}};

static int exec(PyObject *module) {
    (void)module;
    if (lens_convert_init() < 0)
        return -1;
    lens_isa_init();
    lens_blas_init();
    return 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)exec},
#ifdef Py_GIL_DISABLED
                                   {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
                                   {0, NULL}};

static PyModuleDef definition = {.m_base = PyModuleDef_HEAD_INIT,
                                 .m_name = "lens._core",
                                 .m_doc = "C core of lens; positional arguments, no copies.",
                                 .m_methods = methods,
                                 .m_slots = slots};

PyMODINIT_FUNC PyInit__core(void);
PyMODINIT_FUNC PyInit__core(void) {
    return PyModuleDef_Init(&definition);
}
