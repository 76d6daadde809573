/* SPDX-License-Identifier: MIT
 * families.inc.h: all templates for one dtype; undefines the macros of instances.inc.h.  Level 2. */
#include "lanes.inc.h"

#include "moments.inc.h"

#include "subspace.inc.h"

#include "loss.inc.h"

#include "neuron.inc.h"

#include "metrics.inc.h"

#include "weights.inc.h"

#include "combine.inc.h"

#undef SUFFIX
#undef T
#undef ACC
#undef DIRECT
#undef LOAD
#undef STORE
#undef LOADN
#undef STOREN
#undef CLEAN
#undef COUNT
#undef INFINITE
