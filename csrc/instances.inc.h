/* SPDX-License-Identifier: MIT
 * instances.inc.h: includes each template once per dtype, for the instruction set ISA.  Level 2.
 * T storage, ACC accumulator, DIRECT when they are the same type, LOADN/STOREN runs of elements,
 * FN(name) the name of an instance, such as dot_f16_avx2. */
#define PASTE_(a, b, c) a##_##b##_##c
#define PASTE(a, b, c) PASTE_(a, b, c)
#define FN(name) PASTE(name, SUFFIX, ISA)

#define SUFFIX f32
#define T float
#define ACC float
#define CLEAN lens_clean_f32
#define DIRECT
#define COUNT uint32_t
#include "families.inc.h"

#define SUFFIX f64
#define T double
#define ACC double
#define CLEAN lens_clean_f64
#define DIRECT
#define COUNT uint64_t
#include "families.inc.h"

#define SUFFIX f16
#define T uint16_t
#define ACC float
#define LOAD lens_load_f16
#define STORE lens_store_f16
#define CLEAN lens_clean_f32
#define COUNT uint16_t
#define INFINITE 0x7c00
#ifdef ISA_F16C
#define LOADN PASTE(lens_loadn, f16, ISA)
#define STOREN lens_storen_f16c
#endif
#include "families.inc.h"

#define SUFFIX bf16
#define T uint16_t
#define ACC float
#define LOAD lens_load_bf16
#define STORE lens_store_bf16
#define CLEAN lens_clean_f32
#define COUNT uint16_t
#define INFINITE 0x7f80
#ifdef ISA_F16C
#define LOADN PASTE(lens_loadn, bf16, ISA)
#endif
#include "families.inc.h"

#define KERNEL(name, suffix) .name = PASTE(name, suffix, ISA)
#define TABLE(suffix)                  \
    {KERNEL(load, suffix),             \
     KERNEL(store, suffix),            \
     KERNEL(first_nonfinite, suffix),  \
     KERNEL(add, suffix),              \
     KERNEL(welford, suffix),          \
     KERNEL(project, suffix),          \
     KERNEL(separate, suffix),         \
     KERNEL(align_mean, suffix),       \
     KERNEL(align_complement, suffix), \
     KERNEL(retain, suffix),           \
     KERNEL(add_difference, suffix),   \
     KERNEL(spread, suffix),           \
     KERNEL(positive, suffix),         \
     KERNEL(first_nan, suffix),        \
     KERNEL(scale, suffix),            \
     KERNEL(unit, suffix),             \
     KERNEL(accumulate, suffix),       \
     KERNEL(reaches, suffix),          \
     KERNEL(similarity, suffix),       \
     KERNEL(distance, suffix),         \
     KERNEL(delta, suffix),            \
     KERNEL(delta_dots, suffix),       \
     KERNEL(delta_histogram, suffix),  \
     KERNEL(delta_select, suffix),     \
     KERNEL(delta_size, suffix),       \
     KERNEL(add_sizes, suffix),        \
     KERNEL(count_nonfinite, suffix),  \
     KERNEL(sum, suffix),              \
     KERNEL(round, suffix)}

#define TABLES_(isa) lens_kernels_##isa
#define TABLES(isa) TABLES_(isa)
extern const lens_kernels TABLES(ISA)[LENS_N_DTYPES];
const lens_kernels TABLES(ISA)[LENS_N_DTYPES] = {
#define X(code, suffix, storage, acc) [LENS_##code] = TABLE(suffix),
    LENS_DTYPES(X)
#undef X
};
