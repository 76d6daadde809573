/* SPDX-License-Identifier: MIT
 * simd.h: the instruction sets of one build, and how to detect them.  Level 1.
 * Kernels are plain C over 16 fixed lanes; only the target of the compiler differs between the
 * kernels_<isa>.c files.  On AArch64 the baseline is NEON. */
#ifndef LENS_SIMD_H
#define LENS_SIMD_H

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define LENS_X86 1
#else
#define LENS_X86 0
#endif

#if LENS_X86
#define LENS_ISAS(X) X(baseline) X(avx2) X(avx512)
#else
#define LENS_ISAS(X) X(baseline)
#endif

typedef enum {
#define X(name) LENS_ISA_##name,
    LENS_ISAS(X)
#undef X
        LENS_N_ISAS
} lens_isa_id;

/* Everything between BEGIN and END is compiled for the target; put system headers before it. */
#define LENS_PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define LENS_TARGET_BEGIN(t) \
    LENS_PRAGMA(clang attribute push(__attribute__((target(t))), apply_to = function))
#define LENS_TARGET_END LENS_PRAGMA(clang attribute pop)
#else
#define LENS_TARGET_BEGIN(t)      \
    LENS_PRAGMA(GCC push_options) \
    LENS_PRAGMA(GCC target(t))
#define LENS_TARGET_END LENS_PRAGMA(GCC pop_options)
#endif

static inline int lens_isa_supported(lens_isa_id isa) {
#if LENS_X86
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
               __builtin_cpu_supports("f16c");
    if (isa == LENS_ISA_avx2)
        return avx2;
    if (isa == LENS_ISA_avx512)
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    return isa == LENS_ISA_baseline;
}

#endif
