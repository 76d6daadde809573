/* SPDX-License-Identifier: MIT
 * py_alloc.c: the only allocator of level 4.  Level 4.
 * Tests can make the n-th request fail and read the number of live blocks; nothing else uses that.
 * LAPACK and the interpreter have allocators of their own, which are not affected. */
#include "shims.h"

#include <stdatomic.h>

static atomic_llong until_failure; /* requests up to the one that fails; 0: none fails */
static atomic_llong blocks;        /* allocated and not yet freed */

int lens_granted(void) {
    long long left = atomic_load(&until_failure);
    while (left > 0 && !atomic_compare_exchange_weak(&until_failure, &left, left - 1))
        ;
    if (left == 1)
        PyErr_NoMemory();
    return left != 1;
}

void *lens_block(size_t bytes) {
    void *block = lens_granted() && bytes <= PY_SSIZE_T_MAX ? PyMem_Malloc(bytes) : NULL;
    if (block != NULL)
        atomic_fetch_add(&blocks, 1);
    return block;
}

void lens_unblock(void *block) {
    if (block != NULL)
        atomic_fetch_sub(&blocks, 1);
    PyMem_Free(block);
}

int lens_workspace(lens_args *v, size_t count) {
    size_t bytes = lens_mul(count, sizeof *v->work);
    v->work = lens_block(bytes ? bytes : 1);
    if (v->work == NULL)
        PyErr_Format(PyExc_MemoryError, "%s: no memory for a workspace of %zu bytes",
                     lens_ops[v->op].name, bytes);
    return v->work == NULL ? -1 : 0;
}

SHIM(fail_allocation) {
    lens_args v;
    if (PARSE(v, fail_allocation))
        return NULL;
    long long left = atomic_exchange(&until_failure, 0);
    PyObject *value = PyLong_FromLongLong(left);
    atomic_store(&until_failure, value == NULL ? 0 : v.integer[0]);
    return value;
}

SHIM(live_blocks) {
    lens_args v;
    return PARSE(v, live_blocks) ? NULL : PyLong_FromLongLong(atomic_load(&blocks));
}
