"""Task arithmetic on sparse deltas: TIES, DARE, DELLA, breadcrumbs.

Deltas, masks, sums and the final addition are in float32, in the order of the models.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from lens.merging.config import MergeConfig, Parameter, Value
from lens.merging.methods.base import Method
from lens.merging.tensors import SLICE, Chunk, OutputTensor
from lens.merging.worker import TensorTask, uniform
from lens.weights import TopKMask, topk_mask

Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]

_NO_SIZE = 1e-7  # sums of |delta| below this are not scaled to
_NO_WEIGHT = 1e-8


class Mask(Protocol):
    """Elements of a chunk of a delta that are kept."""

    def __call__(self, delta: Float32, chunk: Chunk) -> Bool:
        """Mask of the chunk."""


def keep_all(delta: Float32, chunk: Chunk) -> Bool:
    """Keep every element."""
    return np.ones(delta.size, np.bool_)


def keep_none(delta: Float32, chunk: Chunk) -> Bool:
    """Keep no element."""
    return np.zeros(delta.size, np.bool_)


class Sparse(Method):
    """θ_o + λ Σ w_i mask_i (θ_i − θ_o), with or without an election of signs.

    Attributes
    ----------
    elect : bool
        Whether, at each element, only the deltas count that have the sign of their weighted sum
        (TIES); ``normalize`` then divides by the weights of those.
    """

    whole = True
    passes = 2
    rate = 7e7
    elect: ClassVar[bool] = False

    def scratch(self, n_inputs: int) -> int:
        """Deltas of all models, the base, sums and intermediate results."""
        return 4 * (n_inputs + 8)

    @abstractmethod
    def mask(self, task: TensorTask, i: int) -> Mask:
        """Mask of the delta of input ``i``."""

    def run(self, task: TensorTask) -> None:
        """Compute masks over the whole tensor, then combine; inputs of weight 0 are not read."""
        target = task.target
        used = [i for i in target.others if target.value("weight", i) != 0.0]
        base = target.base_input
        if not used:
            for chunk in task.missing:
                task.write_mix({base: 1.0}, chunk)
            return
        masks = {i: self.mask(task, i) for i in used}
        scales = {i: self._scale(task, i, mask) for i, mask in masks.items()}
        weights = [np.float32(target.value("weight", i)) for i in used]
        for chunk in task.missing:
            deltas = []
            for i, w in zip(used, weights, strict=True):
                delta = task.delta(i, chunk)
                delta *= masks[i](delta, chunk)
                delta *= scales[i]
                delta *= w
                deltas.append(delta)
            mixed, divisor = elected(deltas, weights) if self.elect else added(deltas, weights)
            if target.parameters["normalize"]:
                mixed /= divisor
            mixed *= np.float32(target.parameters["lambda"])
            mixed += task.base(chunk)
            task.write(chunk, mixed)

    def _scale(self, task: TensorTask, i: int, mask: Mask) -> np.float32:
        """Σ|delta| over all elements, divided by that over those kept."""
        if not task.target.parameters["rescale"] or mask is keep_all:
            return np.float32(1.0)
        before = after = 0.0
        for chunk in task.chunks:
            delta = task.delta(i, chunk)
            size = np.abs(delta)
            before += float(size.sum(dtype=np.float64))
            after += float(size[mask(delta, chunk)].sum(dtype=np.float64))
        if before < _NO_SIZE or after < _NO_SIZE:
            return np.float32(1.0)
        return np.float32(before / after)


def added(deltas: list[Float32], weights: Sequence[np.float32]) -> tuple[Float32, np.float32]:
    """Sum of deltas, in place of the first, and of their weights."""
    total = deltas[0]
    for delta in deltas[1:]:
        total += delta
    divisor = sum(weights, np.float32(0.0))
    return total, divisor if abs(divisor) >= _NO_WEIGHT else np.float32(1.0)


def elected(deltas: list[Float32], weights: Sequence[np.float32]) -> tuple[Float32, Float32]:
    """Sum of the deltas that have the sign of the sum of all, and of their weights.

    A sum of zero counts as positive; where no delta has the sign, the divisor is 1.
    """
    total = deltas[0].copy()
    for delta in deltas[1:]:
        total += delta
    positive = total >= 0
    total[:] = 0
    divisor = np.zeros_like(total)
    for delta, w in zip(deltas, weights, strict=True):
        agrees = np.where(positive, delta > 0, delta < 0)
        delta *= agrees
        total += delta
        divisor += w * agrees
    divisor[divisor == 0] = 1
    return total, divisor


def _top(task: TensorTask, i: int, k: int, *, last: bool = False) -> TopKMask:
    """Select the k largest of a tensor's delta."""
    return topk_mask(k, lambda: (task.delta(i, chunk) for chunk in task.chunks), last=last)


def _parameters(
    *, normalize: bool, rescale: bool, more: Sequence[Parameter] = ()
) -> tuple[Parameter, ...]:
    return (
        Parameter("weight", None, "others"),
        Parameter("density", 1.0, "others", low=0.0),
        Parameter("normalize", normalize),
        Parameter("rescale", rescale),
        Parameter("lambda", 1.0),
        *more,
    )


class Ties(Sparse):
    """The largest of each delta, signs elected, the mean of those that agree."""

    name = "ties"
    title = "TIES"
    rate = 1e8
    paper = "arXiv 2306.01708"
    elect = True
    passes = 3
    parameters = _parameters(normalize=True, rescale=False)

    def mask(self, task: TensorTask, i: int) -> Mask:
        """Keep the share ``density`` of the largest |delta| of the tensor, at least one."""
        density, n = task.target.value("density", i), task.target.size
        if density >= 1:
            return keep_all
        if density <= 0 or n == 0:
            return keep_none
        top = _top(task, i, max(1, int(density * n)))
        return lambda delta, chunk: top.mask(delta, chunk.number)


class Breadcrumbs(Sparse):
    """Neither the share ``gamma`` of the largest nor the smallest: ``density`` of all is kept."""

    name = "breadcrumbs"
    title = "Model breadcrumbs"
    paper = "arXiv 2312.06795"
    passes = 5
    rate = 1.5e8
    parameters = _parameters(
        normalize=False, rescale=False, more=(Parameter("gamma", 0.01, "others", 0.0, 1.0),)
    )

    def mask(self, task: TensorTask, i: int) -> Mask:
        """Keep what lies between the outliers and the smallest."""
        density, n = task.target.value("density", i), task.target.size
        if density >= 1:
            return keep_all
        kept, outliers = int(density * n), int(task.target.value("gamma", i) * n)
        smallest = max(0, n - kept - outliers)
        top = _top(task, i, n - smallest, last=True)
        without = _top(task, i, n - smallest - kept, last=True)

        def mask(delta: Float32, chunk: Chunk) -> Bool:
            number = chunk.number
            return top.mask(delta, number) & ~without.mask(delta, number)

        return mask


class BreadcrumbsTies(Breadcrumbs):
    """Breadcrumbs with an election of signs."""

    name = "breadcrumbs_ties"
    title = "Model breadcrumbs with TIES"
    elect = True


class Dare(Sparse):
    """A random share ``density`` of each delta, scaled back to its size."""

    name = "dare_linear"
    title = "DARE"
    paper = "arXiv 2311.03099"
    parameters = _parameters(normalize=False, rescale=True)

    def mask(self, task: TensorTask, i: int) -> Mask:
        """Draw one number for each element, seeded by seed, tensor, model and chunk."""
        target, density = task.target, task.target.value("density", i)
        if density >= 1:
            return keep_all
        seed = int(float(target.parameters["seed"]))
        return lambda delta, chunk: (
            uniform(seed, target.name, i, chunk.number, chunk.size) < density
        )


class DareTies(Dare):
    """DARE with an election of signs."""

    name = "dare_ties"
    title = "DARE with TIES"
    elect = True


class Della(Sparse):
    """As DARE, but the larger an element is in its row, the more probably it is kept."""

    name = "della_linear"
    title = "DELLA, no election"
    rate = 2.8e7
    paper = "arXiv 2406.11617"
    parameters = _parameters(
        normalize=False, rescale=True, more=(Parameter("epsilon", 0.15, "others", 0.0, 0.5),)
    )

    def scratch(self, n_inputs: int) -> int:
        """Two orderings of the elements in addition."""
        return super().scratch(n_inputs) + 24

    def problems(
        self, config: MergeConfig, parameters: Mapping[str, Value], targets: Sequence[OutputTensor]
    ) -> list[str]:
        """Find probabilities out of range, and tensors that have no rows."""
        found = []
        for target in targets:
            if len(target.shape) > 2 or (len(target.shape) < 2 and target.size > SLICE):
                found.append(
                    f"{self.name}: tensor '{target.name}' of shape {target.shape} has no rows"
                )
            for i in () if target.copied else target.others:
                density, epsilon = (target.value(name, i) for name in ("density", "epsilon"))
                inside = density - epsilon > 0 and density + epsilon < 1
                if 0 < density < 1 and not inside:
                    found.append(
                        f"{self.name}: density {density:g} ± epsilon {epsilon:g} at "
                        f"'{target.name}' leaves (0, 1); choose a smaller epsilon"
                    )
        return found[:3]

    def mask(self, task: TensorTask, i: int) -> Mask:
        """Draw with probabilities from density − ε to density + ε, by rank in the row."""
        target, density = task.target, task.target.value("density", i)
        if density >= 1:
            return keep_all
        if density <= 0:
            return keep_none
        epsilon, seed = target.value("epsilon", i), int(float(target.parameters["seed"]))
        columns = target.shape[-1] if len(target.shape) > 1 else max(target.size, 1)

        def mask(delta: Float32, chunk: Chunk) -> Bool:
            share = ranks(np.abs(delta).reshape(-1, columns)).reshape(-1)
            stays = np.float32(density - epsilon) + share * np.float32(2) * np.float32(epsilon)
            return uniform(seed, target.name, i, chunk.number, chunk.size) < stays

        return mask


class DellaTies(Della):
    """DELLA: ranks in rows, an election of signs, and the mean of those that agree."""

    name = "della"
    title = "DELLA"
    elect = True
    parameters = _parameters(
        normalize=True, rescale=True, more=(Parameter("epsilon", 0.15, "others", 0.0, 0.5),)
    )


def ranks(sizes: Float32) -> Float32:
    """Rank of each element in its row, from 0 for the smallest to 1; of equal ones the first."""
    n, d = sizes.shape
    # Sizes order as their bits do; with the place in the same number, any sort is a stable one.
    keys = sizes.view(np.uint32).astype(np.uint64) << np.uint64(32) | np.arange(d, dtype=np.uint64)
    keys.sort(axis=1)
    order = (keys & np.uint64(0xFFFFFFFF)).view(np.int64)
    found = np.empty((n, d), np.float32)
    np.put_along_axis(found, order, np.arange(d, dtype=np.float32)[None, :], axis=1)
    return found / np.float32(max(d - 1, 1))
