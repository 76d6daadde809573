"""The numerics once more, in torch operations, for tensors on other devices than the CPU.

Nobody needs to call this package: ``lens.losses.separate(h, ...)`` of a tensor on a GPU comes here
by itself (`lens.arrays.anywhere`). A module is named as the one whose operations it repeats, and so
is each function, with the same signature. Where that returns arrays, this returns tensors on the
device of the first argument; plain numbers stay plain numbers, which waits for the device.

``n_threads`` is for the C core and ignored here; ``dtype`` is that of the tensor or not given.
Small arguments (bases, targets, weights, masks) may be anything and are moved to the device.

Sums are taken in float64. A device that has none (Apple's MPS) gets pairs of float32 instead
(`lens.tensors.pairs`) for pooling, moments and weights; subspaces and entropies of such a device
are computed by the C core on a copy, as they are small. Results agree with the C core to the
tolerances in ``docs/kernels.md``; they have not its promise of equal bits.
"""

from lens.tensors import losses, metrics, neurons, pooling, subspace, weights

__all__ = ["losses", "metrics", "neurons", "pooling", "subspace", "weights"]
