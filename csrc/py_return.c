/* SPDX-License-Identifier: MIT
 * py_return.c: statuses and sizes of the core as Python values and exceptions.  Level 4. */
#include "convert.h"

#include <string.h>

static PyObject *PyExc_LinAlgError; /* so that every exception of LENS_STATUSES has this prefix */

int lens_convert_init(void) {
    if (lens_numpy_init() < 0)
        return -1;
    if (PyExc_LinAlgError == NULL) {
        PyObject *linalg = PyImport_ImportModule("numpy.linalg");
        if (linalg == NULL)
            return -1;
        PyExc_LinAlgError = PyObject_GetAttrString(linalg, "LinAlgError");
        Py_DECREF(linalg);
    }
    return PyExc_LinAlgError == NULL ? -1 : 0;
}

int lens_expect(const lens_args *v, char letter, size_t least, size_t most) {
    size_t size = v->dim[(unsigned char)letter];
    lens_arg_spec a;
    if (size >= least && size <= most)
        return 0;
    for (const char *s = lens_ops[v->op].spec;
         (s = lens_next_arg(s, &a)) && !strchr(a.dims, letter);)
        ;
    if (least != most)
        PyErr_Format(PyExc_ValueError,
                     "%s: size %c of '%s' is %zu, expected at least %zu and at most %zu",
                     lens_ops[v->op].name, letter, a.name, size, least, most);
    else
        PyErr_Format(PyExc_ValueError, "%s: size %c of '%s' is %zu, expected %zu",
                     lens_ops[v->op].name, letter, a.name, size, most);
    return -1;
}

static PyObject *exception_of(lens_status status) {
    switch (status) {
#define X(code, exception, text) \
    case LENS_##code:            \
        return PyExc_##exception;
        LENS_STATUSES(X)
#undef X
    }
    return PyExc_SystemError;
}

/* ": L = 3, m = 8, rank = 9": sizes and integers, for errors that name no element. */
static void numbers(char *out, size_t size, const lens_args *v) {
    char seen[128] = {0};
    lens_arg_spec a;
    size_t i = 0, at = 0;
    for (const char *s = lens_ops[v->op].spec; (s = lens_next_arg(s, &a)); i++) {
        for (const char *d = a.dims; *d && at < size; d++)
            if (!seen[(unsigned char)*d]++ && v->dim[(unsigned char)*d] != LENS_NOWHERE)
                at += (size_t)PyOS_snprintf(out + at, size - at, "%s%c = %zu", at ? ", " : ": ", *d,
                                            v->dim[(unsigned char)*d]);
        if (a.kind == 'i' && strcmp(a.name, "n_threads") != 0 && at < size)
            at += (size_t)PyOS_snprintf(out + at, size - at, "%s%s = %lld", at ? ", " : ": ",
                                        a.name, v->integer[i]);
    }
}

PyObject *lens_return(lens_args *v, lens_status status, PyObject *value) {
    lens_unblock(v->work);
    v->work = NULL;
    if (value != NULL && !lens_granted())
        Py_CLEAR(value);
    if (status == LENS_OK)
        return value != NULL || PyErr_Occurred() ? value : Py_NewRef(Py_None);
    Py_XDECREF(value);
    char where[256] = "", item[48] = "", info[40] = "";
    const lens_op_info *op = &lens_ops[v->op];
    if (v->fault.row == LENS_NOWHERE && v->fault.item == LENS_NOWHERE && v->fault.info == 0)
        numbers(where, sizeof where, v);
    if (v->fault.row != LENS_NOWHERE && *op->row)
        PyOS_snprintf(where, sizeof where, ", %s %zu", op->row, v->fault.row);
    if (v->fault.item != LENS_NOWHERE && *op->item)
        PyOS_snprintf(item, sizeof item, ", %s %zu", op->item, v->fault.item);
    if (v->fault.info != 0)
        PyOS_snprintf(info, sizeof info, ", LAPACK info %d", v->fault.info);
    PyErr_Format(exception_of(status), "%s: %s%s%s%s", op->name, lens_status_text(status), where,
                 item, info);
    return NULL;
}
