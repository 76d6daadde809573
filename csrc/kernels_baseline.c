/* SPDX-License-Identifier: MIT
 * kernels_baseline.c: every kernel for the baseline target (SSE2, or NEON on AArch64).  Level 2. */
#include "dtype.h"
#include "kernels.h"

#include <math.h>
#include <string.h>

#define ISA baseline
#include "instances.inc.h"
