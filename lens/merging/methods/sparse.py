"""Task arithmetic on thinned-out differences: TIES, DARE, DELLA, breadcrumbs.

Differences, masks, sums and the final addition are in float32, in the order of the models.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from lens.merging.config import MergeConfig, Parameter, Value
from lens.merging.methods.base import Method
from lens.merging.tensors import SLICE, Chunk, OutputTensor
from lens.merging.worker import TensorTask, uniform
from lens.weights import TensorCut, largest, tensor_cut

Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]

_NO_SIZE = 1e-7  # sums of |delta| below this are not scaled to
_NO_WEIGHT = 1e-8


class Mask(Protocol):
    """Which elements of a slice of a difference stay."""

    def __call__(self, delta: Float32, cut: Chunk) -> Bool:
        """Mask of the slice."""


def keep_all(delta: Float32, cut: Chunk) -> Bool:
    """Keep every element."""
    return np.ones(delta.size, np.bool_)


def keep_none(delta: Float32, cut: Chunk) -> Bool:
    """Keep no element."""
    return np.zeros(delta.size, np.bool_)


class Sparse(Method):
    """θ_o + λ Σ w_i mask_i (θ_i − θ_o), with or without an election of signs.

    Attributes
    ----------
    elect : bool
        Whether, at each element, only those differences count whose sign is that of their weighted
        sum (TIES); ``normalize`` then divides by the weights of those.
    """

    whole: ClassVar[bool] = True
    passes: ClassVar[int] = 2
    rate: ClassVar[float] = 7e7
    elect: ClassVar[bool] = False
    parameters: ClassVar[tuple[Parameter, ...]]

    def scratch(self, n_inputs: int) -> int:
        """Differences of all models, the base, sums, and what arises in passing."""
        return 4 * (n_inputs + 8)

    @abstractmethod
    def mask(self, work: TensorTask, i: int) -> Mask:
        """Mask of the difference of input ``i``."""

    def run(self, work: TensorTask) -> None:
        """Measure masks over the whole tensor, then combine; what has weight 0 is not read."""
        target = work.target
        used = [i for i in target.others if target.number_of("weight", i) != 0.0]
        if not used:
            return self._base_alone(work)
        masks = {i: self.mask(work, i) for i in used}
        scales = {i: self._scale(work, i, mask) for i, mask in masks.items()}
        weights = [np.float32(target.number_of("weight", i)) for i in used]
        for cut in work.missing:
            deltas = []
            for i, w in zip(used, weights, strict=True):
                delta = work.delta(i, cut)
                delta *= masks[i](delta, cut)
                delta *= scales[i]
                delta *= w
                deltas.append(delta)
            mixed, divisor = elected(deltas, weights) if self.elect else added(deltas, weights)
            if target.parameters["normalize"]:
                mixed /= divisor
            mixed *= np.float32(target.parameters["lambda"])
            mixed += work.mix({int(target.base or 0): 1.0}, cut)
            work.write(cut, mixed)

    def _base_alone(self, work: TensorTask) -> None:
        for cut in work.missing:
            work.write_mix({int(work.target.base or 0): 1.0}, cut)

    def _scale(self, work: TensorTask, i: int, mask: Mask) -> np.float32:
        """Σ|delta| over all elements, divided by that over those that stay."""
        if not work.target.parameters["rescale"] or mask is keep_all:
            return np.float32(1.0)
        before = after = 0.0
        for cut, delta in _deltas(work, i):
            size = np.abs(delta)
            before += float(size.sum(dtype=np.float64))
            after += float(size[mask(delta, cut)].sum(dtype=np.float64))
        if before < _NO_SIZE or after < _NO_SIZE:
            return np.float32(1.0)
        return np.float32(before / after)


def added(deltas: list[Float32], weights: Sequence[np.float32]) -> tuple[Float32, np.float32]:
    """Sum of differences, and of their weights, for division; changes the first."""
    total = deltas[0]
    for delta in deltas[1:]:
        total += delta
    divisor = sum(weights, np.float32(0.0))
    return total, divisor if abs(divisor) >= _NO_WEIGHT else np.float32(1.0)


def elected(deltas: list[Float32], weights: Sequence[np.float32]) -> tuple[Float32, Float32]:
    """Sum of the differences that have the sign of the sum of all, and of their weights.

    A sum of zero counts as positive; where no difference has the sign, the divisor is 1.
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


def _deltas(work: TensorTask, i: int) -> Iterator[tuple[Chunk, Float32]]:
    for cut in work.cuts:
        yield cut, work.delta(i, cut)


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


@dataclass(frozen=True, slots=True)
class _Between:
    """Elements of the first cut that are not in the second."""

    cut: TensorCut
    without: TensorCut | None = None

    def __call__(self, delta: Float32, cut: Chunk) -> Bool:
        mask = self.cut.mask(delta, cut.number)
        if self.without is not None:
            mask &= ~self.without.mask(delta, cut.number)
        return mask


class Ties(Sparse):
    """The largest of each difference, signs elected, the mean of those that agree."""

    name: ClassVar[str] = "ties"
    title: ClassVar[str] = "TIES"
    rate: ClassVar[float] = 1e8
    paper: ClassVar[str] = "arXiv 2306.01708"
    elect: ClassVar[bool] = True
    passes: ClassVar[int] = 3
    parameters: ClassVar[tuple[Parameter, ...]] = _parameters(normalize=True, rescale=False)

    def mask(self, work: TensorTask, i: int) -> Mask:
        """Keep the share ``density`` of the largest |delta| of the tensor, at least one."""
        density, n = work.target.number_of("density", i), work.target.size
        if density >= 1:
            return keep_all
        if density <= 0 or n == 0:
            return keep_none

        def slices() -> Iterator[Float32]:
            return (delta for _, delta in _deltas(work, i))

        return _Between(tensor_cut(largest(max(1, int(density * n)), slices), slices))


class Breadcrumbs(Sparse):
    """Neither the share ``gamma`` of the largest nor the smallest; ``density`` of all stay."""

    name: ClassVar[str] = "breadcrumbs"
    title: ClassVar[str] = "Model breadcrumbs"
    paper: ClassVar[str] = "arXiv 2312.06795"
    passes: ClassVar[int] = 5
    rate: ClassVar[float] = 1.5e8
    parameters: ClassVar[tuple[Parameter, ...]] = _parameters(
        normalize=False, rescale=False, more=(Parameter("gamma", 0.01, "others", 0.0, 1.0),)
    )

    def mask(self, work: TensorTask, i: int) -> Mask:
        """Keep what lies between the outliers and the smallest."""
        density, n = work.target.number_of("density", i), work.target.size
        if density >= 1:
            return keep_all
        kept, outliers = int(density * n), int(work.target.number_of("gamma", i) * n)
        smallest = max(0, n - kept - outliers)

        def slices() -> Iterator[Float32]:
            return (delta for _, delta in _deltas(work, i))

        def cut(k: int) -> TensorCut:
            return tensor_cut(largest(k, slices), slices, from_end=True)

        return _Between(cut(n - smallest), cut(n - smallest - kept))


class BreadcrumbsTies(Breadcrumbs):
    """Breadcrumbs with an election of signs."""

    name: ClassVar[str] = "breadcrumbs_ties"
    title: ClassVar[str] = "Model breadcrumbs with TIES"
    elect: ClassVar[bool] = True


class Dare(Sparse):
    """A random share ``density`` of each difference, scaled back to its size."""

    name: ClassVar[str] = "dare_linear"
    title: ClassVar[str] = "DARE"
    paper: ClassVar[str] = "arXiv 2311.03099"
    parameters: ClassVar[tuple[Parameter, ...]] = _parameters(normalize=False, rescale=True)

    def mask(self, work: TensorTask, i: int) -> Mask:
        """Draw one number for each element, by seed, tensor, model and slice."""
        target, density = work.target, work.target.number_of("density", i)
        if density >= 1:
            return keep_all
        seed = int(float(target.parameters["seed"]))
        return lambda delta, cut: uniform(seed, target.name, i, cut.number, cut.size) < density


class DareTies(Dare):
    """DARE with an election of signs."""

    name: ClassVar[str] = "dare_ties"
    title: ClassVar[str] = "DARE with TIES"
    elect: ClassVar[bool] = True


class Della(Sparse):
    """As DARE, but the larger in its row an element is, the more probably it stays."""

    name: ClassVar[str] = "della_linear"
    title: ClassVar[str] = "DELLA, no election"
    rate: ClassVar[float] = 2.8e7
    paper: ClassVar[str] = "arXiv 2406.11617"
    parameters: ClassVar[tuple[Parameter, ...]] = _parameters(
        normalize=False, rescale=True, more=(Parameter("epsilon", 0.15, "others", 0.0, 0.5),)
    )

    def scratch(self, n_inputs: int) -> int:
        """Two orders of the elements besides."""
        return super().scratch(n_inputs) + 24

    def problems(
        self, config: MergeConfig, parameters: dict[str, Value], targets: Sequence[OutputTensor]
    ) -> list[str]:
        """Probabilities out of range, and tensors that have no rows."""
        found = []
        for target in targets:
            if len(target.shape) > 2 or (len(target.shape) < 2 and target.size > SLICE):
                found.append(
                    f"{self.name}: tensor '{target.name}' of shape {target.shape} has no rows"
                )
            for i in () if target.copied else target.others:
                density, epsilon = (target.number_of(name, i) for name in ("density", "epsilon"))
                inside = density - epsilon > 0 and density + epsilon < 1
                if 0 < density < 1 and not inside:
                    found.append(
                        f"{self.name}: density {density:g} ± epsilon {epsilon:g} at "
                        f"'{target.name}' leaves (0, 1); choose a smaller epsilon"
                    )
        return found[:3]

    def mask(self, work: TensorTask, i: int) -> Mask:
        """Draw with probabilities from density − ε to density + ε, by rank in the row."""
        target, density = work.target, work.target.number_of("density", i)
        if density >= 1:
            return keep_all
        if density <= 0:
            return keep_none
        epsilon, seed = target.number_of("epsilon", i), int(float(target.parameters["seed"]))
        columns = target.shape[-1] if len(target.shape) > 1 else max(target.size, 1)

        def mask(delta: Float32, cut: Chunk) -> Bool:
            share = ranks(np.abs(delta).reshape(-1, columns)).reshape(-1)
            stays = np.float32(density - epsilon) + share * np.float32(2) * np.float32(epsilon)
            return uniform(seed, target.name, i, cut.number, cut.size) < stays

        return mask


class DellaTies(Della):
    """DELLA: ranks in rows, an election of signs, and the mean of those that agree."""

    name: ClassVar[str] = "della"
    title: ClassVar[str] = "DELLA"
    elect: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = _parameters(
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
