/* SPDX-License-Identifier: MIT
 * convert.c: the one argument parser, driven by the specs in ops.def.  Level 4.
 * Arrays must be aligned, native-endian, C-contiguous and of the exact dtype: nothing is copied. */
#include "convert.h"

#define PY_ARRAY_UNIQUE_SYMBOL lens_ARRAY_API
#include <numpy/arrayobject.h>

#include <string.h>

const lens_op_info lens_ops[] = {
#define OP(name, spec, row, item, signature, summary) {#name, spec, row, item},
#include "ops.def"
#undef OP
};

int lens_numpy_init(void) {
    import_array1(-1);
    return 0;
}

const char *lens_next_arg(const char *s, lens_arg_spec *a) {
    size_t n = 0;
    memset(a, 0, sizeof *a);
    while (*s == ' ')
        s++;
    if (*s == '\0')
        return NULL;
    for (; *s != ':'; s++)
        a->name[n++] = *s;
    a->kind = *++s;
    for (s++; *s != ' ' && *s != '\0'; s++)
        switch (*s) {
        case '*':
            a->output = 1;
            break;
        case '?':
            a->optional = 1;
            break;
        case '[':
        case ',':
        case ']':
            break;
        default:
            a->dims[a->ndim++] = *s;
        }
    return s;
}

static int typenum(char kind, lens_dtype dtype) {
    static const int stored[] = {NPY_FLOAT32, NPY_FLOAT64, NPY_FLOAT16, NPY_UINT16};
    switch (kind) {
    case 'x':
        return stored[dtype];
    case 'a':
        return dtype == LENS_F64 ? NPY_FLOAT64 : NPY_FLOAT32;
    case 'd':
        return NPY_FLOAT64;
    case 'f':
        return NPY_FLOAT32;
    case 'u':
        return NPY_UINT64;
    case 'h':
        return NPY_UINT16;
    default:
        return NPY_UINT8;
    }
}

/* "(n, t) = (3, any)": the dims of the spec and their sizes as far as known. */
static void describe(char *out, size_t size, const lens_args *v, const lens_arg_spec *a) {
    size_t at = (size_t)PyOS_snprintf(out, size, "(");
    for (int i = 0; i < a->ndim; i++)
        at += (size_t)PyOS_snprintf(out + at, size - at, i ? ", %c" : "%c", a->dims[i]);
    at += (size_t)PyOS_snprintf(out + at, size - at, ") = (");
    for (int i = 0; i < a->ndim; i++) {
        size_t dim = v->dim[(unsigned char)a->dims[i]];
        if (dim == LENS_NOWHERE)
            at += (size_t)PyOS_snprintf(out + at, size - at, i ? ", any" : "any");
        else
            at += (size_t)PyOS_snprintf(out + at, size - at, i ? ", %zu" : "%zu", dim);
    }
    PyOS_snprintf(out + at, size - at, ")");
}

static int fail_shape(const lens_args *v, const lens_arg_spec *a, PyObject *array) {
    char expected[256];
    PyObject *shape = PyObject_GetAttrString(array, "shape");
    if (shape == NULL)
        return -1;
    describe(expected, sizeof expected, v, a);
    PyErr_Format(PyExc_ValueError, "%s: '%s' has shape %R, expected %s", lens_ops[v->op].name,
                 a->name, shape, expected);
    Py_DECREF(shape);
    return -1;
}

static int check_layout(const lens_args *v, const lens_arg_spec *a, PyArrayObject *array) {
    const char *wrong, *shown, *repair; /* the problem, the attribute that shows it, the remedy */
    if (!PyArray_ISNOTSWAPPED(array)) {
        wrong = "is not in native byte order: it has dtype", shown = "dtype";
        repair = "use .astype(x.dtype.newbyteorder('='))";
    } else if (!PyArray_CHKFLAGS(array, NPY_ARRAY_ALIGNED)) {
        wrong = "is not aligned in memory to its item size,", shown = "itemsize";
        repair = "use .copy()";
    } else if (!PyArray_IS_C_CONTIGUOUS(array)) {
        wrong = "is not C-contiguous: it has strides", shown = "strides";
        repair = "use numpy.ascontiguousarray";
    } else if (a->output && !PyArray_ISWRITEABLE(array)) {
        wrong = "is read-only, but it is an output: it has shape", shown = "shape";
        repair = "expected a writeable array";
    } else {
        return 0;
    }
    PyObject *found = PyObject_GetAttrString((PyObject *)array, shown);
    if (found != NULL)
        PyErr_Format(PyExc_ValueError, "%s: '%s' %s %S; %s", lens_ops[v->op].name, a->name, wrong,
                     found, repair);
    Py_XDECREF(found);
    return -1;
}

static int not_an_array(const lens_args *v, const lens_arg_spec *a, PyObject *arg) {
    PyErr_Format(PyExc_TypeError, "%s: '%s' must be a numpy.ndarray%s, got %S",
                 lens_ops[v->op].name, a->name, a->optional ? " or None" : "",
                 (PyObject *)Py_TYPE(arg));
    return -1;
}

static int parse_array(lens_args *v, const lens_arg_spec *a, PyObject *arg, size_t i) {
    if (arg == Py_None && a->optional)
        return 0;
    if (!PyArray_Check(arg))
        return not_an_array(v, a, arg);
    PyArrayObject *array = (PyArrayObject *)arg;
    int wanted = typenum(a->kind, v->dtype);
    if (PyArray_TYPE(array) != wanted) {
        PyArray_Descr *expected = PyArray_DescrFromType(wanted);
        PyErr_Format(PyExc_TypeError, "%s: '%s' has dtype %S, expected %S", lens_ops[v->op].name,
                     a->name, (PyObject *)PyArray_DESCR(array), (PyObject *)expected);
        Py_DECREF(expected);
        return -1;
    }
    if (PyArray_NDIM(array) != a->ndim)
        return fail_shape(v, a, arg);
    for (int k = 0; k < a->ndim; k++) {
        size_t *dim = &v->dim[(unsigned char)a->dims[k]], size = (size_t)PyArray_DIM(array, k);
        if (*dim == LENS_NOWHERE)
            *dim = size;
        if (*dim != size)
            return fail_shape(v, a, arg);
    }
    v->ptr[i] = PyArray_DATA(array);
    return check_layout(v, a, array);
}

/* The conversion of a scalar failed: name the argument.  Errors raised by its own methods stay. */
static int wrong_scalar(const lens_args *v, const lens_arg_spec *a, PyObject *arg,
                        const char *kind) {
    if (PyErr_ExceptionMatches(PyExc_OverflowError))
        PyErr_Format(PyExc_OverflowError, "%s: '%s' is too large, expected %s",
                     lens_ops[v->op].name, a->name, kind);
    else if (PyErr_ExceptionMatches(PyExc_TypeError))
        PyErr_Format(PyExc_TypeError, "%s: '%s' must be %s, got %S", lens_ops[v->op].name, a->name,
                     kind, (PyObject *)Py_TYPE(arg));
    return -1;
}

static int parse_scalar(lens_args *v, const lens_arg_spec *a, PyObject *arg, size_t i) {
    if (a->kind == 's') {
        v->ptr[i] = (void *)(uintptr_t)PyUnicode_AsUTF8AndSize(arg, NULL);
        return v->ptr[i] == NULL ? wrong_scalar(v, a, arg, "a string") : 0;
    }
    if (a->kind == 'r') {
        v->real[i] = PyFloat_AsDouble(arg);
        return v->real[i] == -1.0 && PyErr_Occurred() ? wrong_scalar(v, a, arg, "a real number")
                                                      : 0;
    }
    v->integer[i] = PyLong_AsLongLong(arg);
    if (v->integer[i] == -1 && PyErr_Occurred())
        return wrong_scalar(v, a, arg, "an integer from 0 to 2**63 - 1");
    if (v->integer[i] < 0 || (a->kind == 'c' && v->integer[i] >= LENS_N_DTYPES)) {
        PyErr_Format(PyExc_ValueError, "%s: '%s' is %lld, expected 0 %s", lens_ops[v->op].name,
                     a->name, v->integer[i], a->kind == 'c' ? "to 3 (see dtypes())" : "or more");
        return -1;
    }
    return 0;
}

static int fits(lens_args *v, char letter, size_t size) {
    size_t *dim = &v->dim[(unsigned char)letter];
    if (*dim == LENS_NOWHERE)
        *dim = size;
    return *dim == size;
}

/* One flat array of a tuple, of any dtype: data and dtype go to v->list. */
static int parse_item(lens_args *v, const lens_arg_spec *tuple, PyObject *item, Py_ssize_t k) {
    lens_arg_spec a = {.ndim = 1, .dims = {tuple->dims[1]}};
    int dtype = 0;
    PyOS_snprintf(a.name, sizeof a.name, "%s[%zd]", tuple->name, k);
    if (!PyArray_Check(item))
        return not_an_array(v, &a, item);
    PyArrayObject *x = (PyArrayObject *)item;
    while (dtype < LENS_N_DTYPES && typenum('x', (lens_dtype)dtype) != PyArray_TYPE(x))
        dtype++;
    if (dtype == LENS_N_DTYPES) {
        PyErr_Format(PyExc_TypeError,
                     "%s: '%s' has dtype %S, expected float32, float64, float16 or uint16",
                     lens_ops[v->op].name, a.name, (PyObject *)PyArray_DESCR(x));
        return -1;
    }
    if (PyArray_NDIM(x) != 1 || !fits(v, a.dims[0], (size_t)PyArray_DIM(x, 0)))
        return fail_shape(v, &a, item);
    v->list[k] = PyArray_DATA(x);
    v->list_dtype[k] = (lens_dtype)dtype;
    return check_layout(v, &a, x);
}

static int parse_tuple(lens_args *v, const lens_arg_spec *a, PyObject *arg, size_t i) {
    if (!PyTuple_Check(arg)) {
        PyErr_Format(PyExc_TypeError, "%s: '%s' must be a tuple of arrays, got %S",
                     lens_ops[v->op].name, a->name, (PyObject *)Py_TYPE(arg));
        return -1;
    }
    Py_ssize_t n = PyTuple_Size(arg);
    if (n > LENS_MAX_SOURCES) {
        PyErr_Format(PyExc_ValueError, "%s: '%s' holds %zd arrays, expected at most %d",
                     lens_ops[v->op].name, a->name, n, LENS_MAX_SOURCES);
        return -1;
    }
    if (!fits(v, a->dims[0], (size_t)n)) {
        PyErr_Format(PyExc_ValueError, "%s: '%s' holds %zd arrays, expected %zu",
                     lens_ops[v->op].name, a->name, n, v->dim[(unsigned char)a->dims[0]]);
        return -1;
    }
    for (Py_ssize_t k = 0; k < n; k++)
        if (parse_item(v, a, PyTuple_GetItem(arg, k), k) < 0)
            return -1;
    v->ptr[i] = v->list;
    return 0;
}

static int share(PyObject *x, PyObject *y) {
    PyArrayObject *p = (PyArrayObject *)x, *q = (PyArrayObject *)y;
    uintptr_t a = (uintptr_t)PyArray_DATA(p), b = (uintptr_t)PyArray_DATA(q);
    size_t n = (size_t)PyArray_NBYTES(p), m = (size_t)PyArray_NBYTES(q);
    return n > 0 && m > 0 && a < b + m && b < a + n;
}

/* Outputs may share no byte with any other array.  Arrays are contiguous, so comparing ranges suffices. */
static int check_overlap(const lens_args *v, const lens_arg_spec *specs, PyObject *const *args,
                         size_t n) {
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < n; k++) {
            if (i == k || !specs[i].output || !specs[i].ndim || !specs[k].ndim || !v->ptr[i] ||
                !v->ptr[k])
                continue;
            int shared = 0;
            if (specs[k].kind != 't')
                shared = share(args[i], args[k]);
            else
                for (Py_ssize_t s = 0; s < PyTuple_Size(args[k]); s++)
                    shared |= share(args[i], PyTuple_GetItem(args[k], s));
            if (shared) {
                PyErr_Format(PyExc_ValueError,
                             "%s: output '%s' shares memory with '%s', expected "
                             "memory of its own",
                             lens_ops[v->op].name, specs[i].name, specs[k].name);
                return -1;
            }
        }
    return 0;
}

int lens_parse(lens_args *v, lens_op op, PyObject *const *args, Py_ssize_t nargs) {
    lens_arg_spec specs[LENS_MAX_ARGS];
    size_t n = 0;
    memset(v, 0, sizeof *v);
    v->op = op;
    v->fault = (lens_fault){.row = LENS_NOWHERE, .item = LENS_NOWHERE};
    for (size_t i = 0; i < sizeof v->dim / sizeof *v->dim; i++)
        v->dim[i] = LENS_NOWHERE;
    for (const char *s = lens_ops[op].spec; n < LENS_MAX_ARGS && (s = lens_next_arg(s, &specs[n]));
         n++)
        ;
    if ((size_t)nargs != n) {
        PyErr_Format(PyExc_TypeError, "%s: expected %zu arguments, got %zd", lens_ops[op].name, n,
                     nargs);
        return -1;
    }
    for (size_t i = 0; i < n; i++) /* scalars first: the dtype code sets the arrays' dtypes */
        if (specs[i].ndim == 0 && parse_scalar(v, &specs[i], args[i], i) < 0)
            return -1;
        else if (specs[i].kind == 'c')
            v->dtype = (lens_dtype)v->integer[i];
    for (int outputs = 0; outputs < 2; outputs++) /* inputs first: they define the sizes */
        for (size_t i = 0; i < n; i++)
            if (specs[i].ndim > 0 && specs[i].output == outputs &&
                (specs[i].kind == 't' ? parse_tuple : parse_array)(v, &specs[i], args[i], i) < 0)
                return -1;
    return check_overlap(v, specs, args, n);
}
