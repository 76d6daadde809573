/* SPDX-License-Identifier: MIT
 * shims.h: the parts of every shim.  Level 4.  A shim parses its arguments by the spec in ops.def,
 * allocates a workspace, calls the core once without the GIL and maps the status.  v.ptr[i] is
 * argument i. */
#ifndef LENS_SHIMS_H
#define LENS_SHIMS_H

#include "convert.h"

#define SHIM(name) PyObject *py_##name(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
#define PARSE(v, name) ((void)self, lens_parse(&(v), LENS_OP_##name, args, nargs) < 0)
#define WITHOUT_GIL(call)                 \
    Py_BEGIN_ALLOW_THREADS status = call; \
    Py_END_ALLOW_THREADS

#define OP(name, spec, row, item, signature, summary) SHIM(name);
#include "ops.def"
#undef OP

/* Argument i as a number of threads.  Never more than LENS_MAX_THREADS are started, so clamping a
 * large count changes nothing. */
static inline int threads(const lens_args *v, int i) {
    return v->integer[i] > 1024 ? 1024 : (int)v->integer[i];
}

#endif
