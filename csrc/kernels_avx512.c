/* SPDX-License-Identifier: MIT
 * kernels_avx512.c: every kernel compiled for avx512f,avx512bw,avx512dq,avx512vl,fma,f16c.  Level 2. */
#include "dtype.h"
#include "kernels.h"
#include "simd.h"

#include <math.h>
#include <string.h>

#if LENS_X86
#define ISA avx512
#define ISA_F16C
LENS_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
#include "instances.inc.h"
LENS_TARGET_END
#else
typedef int lens_no_kernels_avx512; /* a translation unit may not be empty */
#endif
