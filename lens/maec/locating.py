"""Locate: the elements, rows or columns that an ability changed most, over the whole model.

Step 1 of MAEC (arXiv 2410.07825). The result is small plain values, from which the mask of any
slice is made again: a key and numbers of ties for elements (see `lens.maec.ranking`), packed bits
for rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lens.arrays import Array
from lens.maec.ranking import (
    BUCKET_BITS,
    BUCKETS,
    TensorCut,
    before_each,
    bucket,
    count_ties,
    largest,
    lows_in,
    tensor_cut,
    threshold,
)
from lens.maec.targets import Cut, Target
from lens.maec.work import Work
from lens.weights import histogram, importance, topk_units

if TYPE_CHECKING:
    from lens.maec.stream import Stream

Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]
Change = Callable[[Work, Cut], Float32]
_SOME = (0, 1 << 31)  # all of those that equal the key
_NONE = np.empty(0)


@dataclass(frozen=True, slots=True)
class Locating:
    """What is located, and how.

    Attributes
    ----------
    change : callable
        Gives θ' − θ_o of a slice.
    share : float
        k1, of all units.
    unit : {"element", "row", "column"}
        Rows are output neurons.
    per_tensor : bool
        Select the share of each tensor instead of the whole model.
    """

    change: Change
    share: float
    unit: str
    per_tensor: bool

    def find(self, stream: Stream, targets: Sequence[Target]) -> dict[str, Any]:
        """Masks of all tensors, as plain values by name."""
        ordered = sorted((t for t in targets if not t.copied), key=lambda t: t.name)
        if self.unit != "element":
            return self._units(stream, ordered)
        return (
            self._per_tensor(stream, ordered) if self.per_tensor else self._global(stream, ordered)
        )

    def _per_tensor(self, stream: Stream, targets: Sequence[Target]) -> dict[str, Any]:
        def cut(work: Work) -> TensorCut:
            def slices() -> Iterator[Float32]:
                return (self.change(work, cut) for cut in work.cuts)

            return tensor_cut(largest(count(self.share, work.target.size), slices), slices)

        found = stream.map(cut, targets, whole=True, label="Locating")
        return {piece.target.name: _plain(made) for piece, made in found}

    def _global(self, stream: Stream, targets: Sequence[Target]) -> dict[str, Any]:
        def run(function: Callable[[Float32], Any]) -> Iterator[tuple[Any, Any]]:
            def each(work: Work) -> Any:
                return function(self.change(work, work.cuts[0]))

            return stream.map(each, targets, whole=False, label="Locating")

        counts = np.zeros(BUCKETS, np.uint64)
        for _, made in run(histogram):
            counts += made
        q, wanted = bucket(counts, count(self.share, sum(t.size for t in targets)))
        lows = np.zeros(1 << BUCKET_BITS, np.uint64)
        if 0 <= q < BUCKETS:
            for _, made in run(lambda delta: lows_in(delta, q)):
                lows += made
        at = threshold(q, wanted, lows)
        if at.ties == at.of:
            return {t.name: _plain(TensorCut(at.key, *_SOME)) for t in targets}
        ties: dict[str, list[int]] = {t.name: [] for t in targets}
        for piece, made in run(lambda delta: count_ties(delta, at.key)):
            ties[piece.target.name].append(made)
        cuts, left = {}, at.ties
        for name, found in ties.items():  # in the order of names, as the targets are
            cuts[name] = _plain(TensorCut(at.key, 0, left, before_each(found) if found else ()))
            left = max(left - sum(found), 0)
        return cuts

    def _units(self, stream: Stream, targets: Sequence[Target]) -> dict[str, Any]:
        def sizes(work: Work) -> NDArray[np.float64]:
            target = work.target
            found: list[Array] = []
            if len(target.shape) < 2:
                found += [np.abs(self.change(work, cut)) for cut in work.cuts]
                return np.concatenate([_NONE, *found])
            total = np.zeros(target.shape[-1])
            by_row = is_by_row(self.unit, target)
            for cut in work.cuts:
                rows = self.change(work, cut).reshape(-1, target.shape[-1])
                if by_row:
                    found.append(importance(rows, unit="row").reshape(-1))
                else:
                    total += importance(rows, unit="column").reshape(-1) * len(rows)
            if by_row:
                return np.concatenate([_NONE, *found])
            return total / max(target.size // max(target.shape[-1], 1), 1)

        found = {
            piece.target.name: np.asarray(made, np.float64)
            for piece, made in stream.map(sizes, targets, whole=True, label="Locating")
        }
        masks: dict[str, Bool] = {}
        for names in [[name] for name in found] if self.per_tensor else [list(found)]:
            masks |= topk_units({name: found[name] for name in names}, share=self.share)
        return {name: {"units": np.packbits(mask).tobytes().hex()} for name, mask in masks.items()}


def count(share: float, n: int) -> int:
    """Share of n: floor(share n + 1/2)."""
    return int(np.floor(share * n + 0.5))


def is_by_row(unit: str, target: Target) -> bool:
    """Whether units of a matrix are its rows, as it is stored."""
    return (unit == "row") != target.transposed


def _plain(cut: TensorCut) -> dict[str, Any]:
    return {"key": cut.key, "first": cut.first, "last": cut.last, "before": list(cut.before)}


def mask_of(
    found: dict[str, Any], unit: str, target: Target, delta: Float32 | None, cut: Cut
) -> Bool:
    """Mask of a slice, from what `Locating.find` gave for its tensor.

    Parameters
    ----------
    delta : numpy.ndarray, float32, or None
        θ' − θ_o of the slice; needed for elements.
    """
    if "units" not in found:
        if delta is None:
            raise ValueError("a mask of elements needs their changes")
        made = TensorCut(found["key"], found["first"], found["last"], tuple(found["before"]))
        return made.mask(delta, cut.number)
    columns = target.shape[-1] if len(target.shape) > 1 else 1
    flat = len(target.shape) < 2
    by_row = is_by_row(unit, target)
    n = target.size // max(columns, 1) if flat or by_row else columns
    bits = np.frombuffer(bytes.fromhex(found["units"]), np.uint8)
    units = np.unpackbits(bits, count=n).view(np.bool_)
    if flat:
        return units[cut.start : cut.stop]
    if by_row:
        return np.repeat(units[cut.start // columns : cut.stop // columns], columns)
    return np.tile(units, cut.size // columns)
