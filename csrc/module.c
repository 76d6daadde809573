/* SPDX-License-Identifier: MIT
 * module.c: lens._core, its table of functions, and the operations that describe the build.  Level 4. */
#include "shims.h"

/* A tuple of the first n strings of names. */
static PyObject *strings(const char *const *names, size_t n) {
    PyObject *tuple = lens_granted() ? PyTuple_New((Py_ssize_t)n) : NULL;
    for (size_t i = 0; tuple != NULL && i < n; i++) {
        PyObject *name = lens_granted() ? PyUnicode_FromString(names[i]) : NULL;
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
    return PARSE(v, dtypes) ? NULL : lens_return(&v, LENS_OK, strings(names, LENS_N_DTYPES));
}

SHIM(isa) {
    lens_args v;
    return PARSE(v, isa) ? NULL : lens_return(&v, LENS_OK, PyUnicode_FromString(lens_isa()));
}

SHIM(isas) {
    const char *names[8];
    size_t n = 0;
    lens_args v;
    if (PARSE(v, isas))
        return NULL;
    for (const char *name; n < 8 && (name = lens_isa_available(n)) != NULL; n++)
        names[n] = name;
    return lens_return(&v, LENS_OK, strings(names, n));
}

SHIM(force_isa) {
    lens_args v;
    if (PARSE(v, force_isa))
        return NULL;
    return lens_return(&v, lens_isa_force(v.ptr[0]), NULL);
}

SHIM(blas_config) {
    lens_args v;
    if (PARSE(v, blas_config))
        return NULL;
    return lens_return(&v, LENS_OK, PyUnicode_FromString(lens_blas_config()));
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
