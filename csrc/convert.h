/* SPDX-License-Identifier: MIT
 * convert.h: Python arguments to C pointers, checked, and statuses to exceptions.  Level 4. */
#ifndef LENS_CONVERT_H
#define LENS_CONVERT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "lens.h"

#define LENS_MAX_ARGS 12

typedef enum {
#define OP(name, spec, row, item, signature, summary) LENS_OP_##name,
#include "ops.def"
#undef OP
    LENS_N_OPS
} lens_op;

typedef struct {
    const char *name, *spec, *row, *item;
} lens_op_info;

extern const lens_op_info lens_ops[]; /* by lens_op */

/* One argument of a spec. */
typedef struct {
    char name[32], kind, dims[8];
    int ndim, output, optional;
} lens_arg_spec;

/* Read the next `name:kind[dims]flags` of a spec; NULL at its end. */
const char *lens_next_arg(const char *s, lens_arg_spec *a);

/* The arguments of one call.  Arrays are borrowed: the caller holds them for the whole call. */
typedef struct {
    lens_op op;
    void *ptr[LENS_MAX_ARGS]; /* data of arrays (NULL for None), UTF-8 of strings */
    long long integer[LENS_MAX_ARGS];
    double real[LENS_MAX_ARGS];
    const void *list[LENS_MAX_SOURCES]; /* data and dtypes of the arrays of a tuple */
    lens_dtype list_dtype[LENS_MAX_SOURCES];
    size_t dim[128]; /* size of each letter of the spec */
    lens_dtype dtype;
    lens_fault fault;
    double *work;
} lens_args;

/* lens_numpy_init loads the NumPy API (convert.c), lens_convert_init also numpy.linalg.LinAlgError.
 * -1 with an exception set on failure. */
int lens_numpy_init(void);
int lens_convert_init(void);

/* Fill v from args by the spec in ops.def.  -1 with an exception set if anything does not match it. */
int lens_parse(lens_args *v, lens_op op, PyObject *const *args, Py_ssize_t nargs);

/* Whether an allocation is allowed; if not (in tests only), MemoryError is set.  Blocks are allocated
 * by lens_block, which sets no exception when there is no memory, and freed by lens_unblock. */
int lens_granted(void);
void *lens_block(size_t bytes);
void lens_unblock(void *block);

/* -1 with an exception set unless the size of a letter of the spec is from least to most. */
int lens_expect(const lens_args *v, char letter, size_t least, size_t most);

/* Allocate `count` doubles in v->work, freed by lens_return.  -1 and MemoryError on failure. */
int lens_workspace(lens_args *v, size_t count);

/* Free the workspace; return `value` (NULL: None) if status is LENS_OK, else set its exception. */
PyObject *lens_return(lens_args *v, lens_status status, PyObject *value);

#endif
