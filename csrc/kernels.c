/* SPDX-License-Identifier: MIT
 * kernels.c: selects the instruction set.  Level 2.
 * Chosen once at module init; only lens_isa_force changes it.  Every set gives the same bits, so a
 * race between the two could not change a result. */
#include "kernels.h"

#include "simd.h"

#include <stdatomic.h>
#include <string.h>

#define X(name) extern const lens_kernels lens_kernels_##name[LENS_N_DTYPES];
LENS_ISAS(X)
#undef X

static const lens_kernels *const tables[] = {
#define X(name) lens_kernels_##name,
    LENS_ISAS(X)
#undef X
};

static const char *const names[] = {
#define X(name) #name,
    LENS_ISAS(X)
#undef X
};

static atomic_int in_use = LENS_ISA_baseline;

const lens_kernels *lens_kernels_of(lens_dtype dtype) {
    return &tables[atomic_load_explicit(&in_use, memory_order_relaxed)][dtype];
}

void lens_isa_init(void) {
    for (int i = 0; i < LENS_N_ISAS; i++)
        if (lens_isa_supported((lens_isa_id)i))
            atomic_store_explicit(&in_use, i, memory_order_relaxed);
}

const char *lens_isa(void) {
    return names[atomic_load_explicit(&in_use, memory_order_relaxed)];
}

const char *lens_isa_available(size_t i) {
    for (int k = 0; k < LENS_N_ISAS; k++)
        if (lens_isa_supported((lens_isa_id)k) && i-- == 0)
            return names[k];
    return NULL;
}

lens_status lens_isa_force(const char *name) {
    for (int i = 0; i < LENS_N_ISAS; i++)
        if (strcmp(name, names[i]) == 0 && lens_isa_supported((lens_isa_id)i)) {
            atomic_store_explicit(&in_use, i, memory_order_relaxed);
            return LENS_OK;
        }
    return LENS_EDOMAIN;
}
