/* SPDX-License-Identifier: MIT
 * status.c: texts of status codes and size arithmetic that cannot wrap.  Level 0. */
#include "lens.h"

const char *lens_status_text(lens_status status) {
    switch (status) {
#define X(code, exception, text) \
    case LENS_##code:            \
        return text;
        LENS_STATUSES(X)
#undef X
    }
    return "unknown status";
}

size_t lens_dtype_size(lens_dtype dtype) {
    switch (dtype) {
#define X(code, suffix, storage, acc) \
    case LENS_##code:                 \
        return sizeof(storage);
        LENS_DTYPES(X)
#undef X
    case LENS_N_DTYPES:
        break;
    }
    return 0;
}

size_t lens_mul(size_t a, size_t b) {
    return b != 0 && a > SIZE_MAX / b ? SIZE_MAX : a * b;
}

size_t lens_add(size_t a, size_t b) {
    return a > SIZE_MAX - b ? SIZE_MAX : a + b;
}
