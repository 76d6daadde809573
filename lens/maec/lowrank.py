"""The change of one matrix at low rank: made slice by slice, and fitted."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lens import _core
from lens.arrays import Array
from lens.maec.drawing import normal
from lens.maec.planning import MergePlan
from lens.maec.targets import Cut, Target
from lens.maec.work import Work
from lens.subspace import thin_svd
from lens.weights import delta as difference
from lens.weights import sum_of_squares

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_EXTRA = 8  # columns beyond the rank that is sought
_ITERATIONS = 2  # of the power method: each is two more passes
_FIRST = 16  # columns tried first when an energy is asked for


@dataclass(frozen=True, slots=True)
class Fit:
    """How well low rank does at one tensor.

    Attributes
    ----------
    rank : int
    norm : float
        |Δ|, Frobenius.
    error : float
        |Δ − B A| with the factors as they are written.
    """

    rank: int
    norm: float
    error: float


class Shelf:
    """Memory in which each worker keeps the first rows of the matrix it has in hand.

    Parameters
    ----------
    n_bytes : int
        For each worker.
    """

    def __init__(self, n_bytes: int) -> None:
        self._elements, self._local = max(n_bytes, 0) // 4, threading.local()

    def rows(self, n: int, d: int) -> Float32:
        """Room for as many of n rows as fit, (…, d)."""
        size = min(n, self._elements // d) * d
        held: Float32 | None = getattr(self._local, "held", None)
        if held is None or held.size < size:
            self._local.held = None  # before the next is asked for
            held = self._local.held = np.empty(size, np.float32)
        return held[:size].reshape(-1, d)


class _Catch:
    """Takes slices of a merge and passes on what they changed."""

    def __init__(
        self,
        work: Work,
        wanted: Callable[[Cut], bool],
        place: Callable[[Cut], Float32],
        then: Callable[[Cut, Float32], None],
    ) -> None:
        self._work, self._wanted, self._place, self._then = work, wanted, place, then

    def missing(self, target: Target, cut: Cut) -> bool:
        """Whether a slice must be made."""
        return self._wanted(cut)

    def write(self, target: Target, cut: Cut, content: Array) -> None:
        """Pass on the slice less the base."""
        base, out = int(target.base or 0), self._place(cut)
        plain = self._work.dtype(base) == "F32"
        before = self._work.read(base, cut) if plain else self._work.mix({base: 1.0}, cut)
        difference(content, before.reshape(-1), out=out)
        self._then(cut, out.reshape(-1, target.shape[-1]))


class Delta:
    """The change of one matrix (n, d): slices of rows, in order.

    Slices that fit on the shelf are made once, the others anew at each pass. What is calculated
    from them does not depend on which is which.

    Attributes
    ----------
    n, d : int
    squares : float
        |Δ|², Frobenius; known after the first pass.
    """

    def __init__(self, plan: MergePlan, work: Work, shelf: Shelf) -> None:
        self._plan, self._work = plan, work
        self.d = work.target.shape[-1]
        self.n = work.target.size // self.d
        self.name, self.squares = work.target.name, 0.0
        rows = shelf.rows(self.n, self.d)
        self._kept = [cut for cut in work.cuts if cut.stop <= rows.size]
        self._held, self._made = rows.reshape(-1), False
        self._spare = np.empty(max((c.size for c in work.cuts), default=0), np.float32)

    def each(self, use: Callable[[slice, Float32], None]) -> None:
        """Give rows and their change, in order; not to be kept or changed."""

        def then(cut: Cut, change: Float32) -> None:
            if not self._made:
                self.squares += sum_of_squares(change)
            use(slice(cut.start // self.d, cut.stop // self.d), change)

        def place(cut: Cut) -> Float32:
            kept = cut.number < len(self._kept)
            return self._held[cut.start : cut.stop] if kept else self._spare[: cut.size]

        first = len(self._kept) if self._made else 0
        for cut in self._kept[:first]:
            then(cut, place(cut).reshape(-1, self.d))
        if first < len(self._work.cuts):
            catch = _Catch(self._work, lambda cut: cut.number >= first, place, then)
            self._plan.method.make(self._work.into(catch))
        self._made = True

    def times(self, right: Float32) -> Float32:
        """Δ rightᵀ, (n, k), of right (k, d)."""
        out = np.empty((self.n, len(right)), np.float32)
        self.each(lambda rows, change: _core.matmul_nt(out[rows], change, right))
        return out

    def transposed_times(self, left: Float32) -> Float64:
        """Leftᵀ Δ, (k, d), of left (n, k)."""
        out, part = np.zeros((left.shape[1], self.d)), np.empty((left.shape[1], self.d), np.float32)

        def use(rows: slice, change: Float32) -> None:
            nonlocal out
            _core.matmul_tn(part, left[rows], change)
            out += part

        self.each(use)
        return out

    def error(self, b: Float32, a: Float32) -> float:
        """|Δ − B A|."""
        across = np.ascontiguousarray(a.T)
        spare = np.empty_like(self._spare)
        squares: list[float] = []

        def use(rows: slice, change: Float32) -> None:
            made = spare[: change.size].reshape(change.shape)
            _core.matmul_nt(made, b[rows], across)
            squares.append(sum_of_squares(change, made))

        self.each(use)
        return math.sqrt(math.fsum(squares))

    def whole(self) -> Float64:
        """All of it, (n, d)."""
        out = np.empty((self.n, self.d))

        def use(rows: slice, change: Float32) -> None:
            out[rows] = change

        self.each(use)
        return out


def factors(
    delta: Delta, *, rank: int | None, energy: float | None
) -> tuple[Fit, Float32 | None, Float32 | None]:
    """Fit, B (n, r) and A (r, d) of one matrix; no factors where nothing has changed."""
    most = min(delta.n, delta.d)
    k = _FIRST if rank is None else rank + _EXTRA
    while True:
        exact = 4 * k >= most  # nor is the long way longer then
        u, s, vt = _exactly(delta) if exact else _leading(delta, k)
        if delta.squares == 0:
            return Fit(0, 0.0, 0.0), None, None
        if rank is not None:
            r = min(rank, s.size)
            break
        enough = np.flatnonzero(np.cumsum(s**2) >= (float(energy or 1.0) - 1e-7) * delta.squares)
        r = int(enough[0]) + 1 if enough.size else s.size
        if exact or r + _EXTRA <= k:
            break
        k *= 2
    root = np.sqrt(s[:r])
    b = np.ascontiguousarray(u[:, :r] * root, np.float32)
    a = np.ascontiguousarray(root[:, None] * vt[:r], np.float32)
    return Fit(r, math.sqrt(delta.squares), delta.error(b, a)), b, a


def _exactly(delta: Delta) -> tuple[Array, Float64, Float64]:
    whole = delta.whole()
    if delta.squares == 0:
        return _nothing(delta)
    found = thin_svd(whole)
    return found.left, found.singular_values, found.right.T


def _leading(delta: Delta, k: int) -> tuple[Array, Float64, Float64]:
    """Leading singular vectors and values: a random sketch of k columns and its block Krylov space.

    The columns of every iteration are kept, not of the last alone: a last product of three times as
    many, and an error much nearer to the best where the spectrum is flat.
    """
    probe = normal(f"range {delta.name}", delta.d * k).reshape(k, delta.d)
    columns = delta.times(probe)
    if delta.squares == 0:
        return _nothing(delta)
    seen = [_orthonormal(columns.T)]
    for _ in range(_ITERATIONS):
        across = _orthonormal(delta.transposed_times(_columns(seen[-1])))
        seen.append(_orthonormal(delta.times(across).T))
    q = _columns(_orthonormal(np.concatenate(seen)))
    found = thin_svd(delta.transposed_times(q))
    left, turn = np.empty_like(q), np.ascontiguousarray(found.left.T, np.float32)
    _core.matmul_nt(left, q, turn)
    return left, found.singular_values, found.right.T


def _nothing(delta: Delta) -> tuple[Array, Float64, Float64]:
    return np.zeros((delta.n, 0)), np.zeros(0), np.zeros((0, delta.d))


def _orthonormal(rows: Array) -> Float32:
    """Orthonormal rows that span at least what rows (k, n) span, in float32."""
    rows = np.ascontiguousarray(rows, np.float64)
    q, triangle = np.empty_like(rows), np.empty((len(rows), len(rows)))
    _core.thin_qr(q, triangle, rows)
    return q.astype(np.float32)


def _columns(rows: Float32) -> Float32:
    return np.ascontiguousarray(rows.T)
